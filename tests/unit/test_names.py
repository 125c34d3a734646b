"""The one form in which relations travel, made and taken apart."""

from __future__ import annotations

import pytest

from pgrollout.migration.names import beside, column_names, identifier, parts, qualified, shown

NAMES = ["a", "A", "order", "between", "order-line", "a.b", 'a"b', '"', '".".', "100%", "größe", "1a", "_a$", "a b"]


@pytest.mark.parametrize("schema", NAMES)
def test_a_canonical_text_comes_apart_as_it_was_put_together(schema: str) -> None:
    for name in NAMES:
        assert parts(qualified(schema, name)) == (schema, name)
        assert parts(beside(qualified(schema, "x"), name)) == (schema, name)


def test_only_names_that_need_quotes_get_them() -> None:
    assert [name for name in NAMES if identifier(name) == name] == ["a"]
    assert identifier('a"b') == '"a""b"'
    assert (shown("public.a"), shown('public."A"'), shown("other.a")) == ("a", '"A"', "other.a")


@pytest.mark.parametrize("text", ["a", "a.", ".a", '"a', '"a"b.c', "a.b.c", ""])
def test_what_is_no_canonical_text_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="is no schema and name"):
        parts(text)


def test_key_columns_are_read_as_sql_reads_them() -> None:
    assert column_names('id, "userId"') == ["id", "userId"]
    assert column_names('ID, "a, b"') == ["id", "a, b"]
    assert [column_names(text) for text in ("", "order", "a.b", "1", "a, *", "a AS b", "a; SELECT b", "f(a)")] == [
        []
    ] * 8
