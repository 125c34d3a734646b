"""Splitting a file, its steering comments, and what a person reads when PostgreSQL would not accept it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pglast import parse_sql

from pgrollout.errors import RolloutError
from pgrollout.migration.read import SqlFile, read_sql
from pgrollout.migration.text import literal


def read(text: str) -> SqlFile:
    return read_sql(text, "apply.sql")


def statements(text: str) -> list[str]:
    return [statement.sql for statement in read(text).statements]


def refusal(text: str) -> str:
    with pytest.raises(RolloutError) as caught:
        read(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1", ["SELECT 1"]),
        ("SELECT 1;;SELECT 2;", ["SELECT 1", "SELECT 2"]),
        ("SELECT 'a;b', \"c;d\";", ["SELECT 'a;b', \"c;d\""]),
        ("SELECT $$;$$; SELECT $x$ $$; $x$;", ["SELECT $$;$$", "SELECT $x$ $$; $x$"]),
        ("DO $$ BEGIN NULL; END; $$; SELECT 1;", ["DO $$ BEGIN NULL; END; $$", "SELECT 1"]),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 3;",
            ["CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END", "SELECT 3"],
        ),
        ("SELECT 'Ж€𝕏'; SELECT 'ü';", ["SELECT 'Ж€𝕏'", "SELECT 'ü'"]),
        ("/* ; /* nested ; */ */ SELECT 1; -- ;\nSELECT 2 -- tail", ["SELECT 1", "SELECT 2 -- tail"]),
        ("SELECT E'\\';' ;\r\nSELECT 2;\r\n", ["SELECT E'\\';'", "SELECT 2"]),
    ],
)
def test_splits_as_postgresql_does(text: str, expected: list[str]) -> None:
    assert statements(text) == expected


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.text(st.characters(exclude_characters="\x00", codec="utf-8")), min_size=1, max_size=5))
def test_any_text_survives_as_literal_and_splits_back(texts: list[str]) -> None:
    written = [f"SELECT {literal(text)}" for text in texts]
    assert statements(";\n".join(written)) == written
    for text, sql in zip(texts, written, strict=True):
        assert parse_sql(sql)[0].stmt.targetList[0].val.val.sval == text


def test_lines_count_the_statements_first_word() -> None:
    found = read("-- Migration: x\n\n-- free\nSELECT\n  1;\n\n  -- Step: b\n  SELECT 2;").statements
    assert [statement.line for statement in found] == [4, 8]


def test_keys_belong_to_the_statement_below_and_header_keys_to_the_file() -> None:
    found = read(
        "-- Migration: 001_x\n-- Risk Level: LOW\n-- Only when: enable_features\n-- what follows is free: text\n"
        "-- Step: first\n-- Done when: SELECT true\nSELECT 1;\n"
        "-- Step: second\n-- Backfill: by id, tenant\nSELECT 2;\nSELECT '\n-- Step: no\n';"
    )
    assert found.header == {"Migration": "001_x", "Risk Level": "LOW", "Only when": "enable_features"}
    assert [statement.notes for statement in found.statements] == [
        {"Step": "first", "Done when": "SELECT true"},
        {"Step": "second", "Backfill": "by id, tenant"},
        {},
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "apply.sql: the file is empty; expected at least one SQL statement."),
        (" \n\t\n", "apply.sql: the file is empty; expected at least one SQL statement."),
        (
            "-- later\n/* much later */\n",
            "apply.sql: the file holds comments only; expected at least one SQL statement.",
        ),
        ("SELECT 1;\nSELEC 2;", 'apply.sql:2:1: syntax error at or near "SELEC".'),
        ("SELECT 1;\n  CREATE TABLE (\n);", 'apply.sql:2:16: syntax error at or near "(".'),
        ("SELECT 'Ж€𝕏',, 1;", 'apply.sql:1:14: syntax error at or near ",".'),
        ("SELECT 1;\nSELECT 'never ends;\n", 'apply.sql:2:8: unterminated quoted string at or near "\'never ends;\n".'),
        ("\\timing on\nSELECT 1;", "apply.sql:1:1: '\\timing' is a psql command, not SQL; remove it."),
        ("SELECT 1;\n  \\i other.sql\n", "apply.sql:2:3: '\\i' is a psql command, not SQL; remove it."),
        ("-- Backfil: by id\nSELECT 1;", "apply.sql:1: unknown comment key 'Backfil:'; did you mean 'Backfill:'?"),
        ("SELECT 1;\n-- Steps: a\nSELECT 2;", "apply.sql:2: unknown comment key 'Steps:'; did you mean 'Step:'?"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_in_one_sentence(text: str, sentence: str) -> None:
    assert refusal(text) == sentence


@settings(deadline=None)  # the machine may be busy
@given(st.text(max_size=60))
def test_nothing_but_a_sentence_comes_out(text: str) -> None:
    with contextlib.suppress(RolloutError):  # a sentence about the file; any other exception fails the test
        read(text)


def test_keys_are_read_in_any_case_and_once() -> None:
    file = read_sql("-- only when: x\n\n-- STEP: s\n-- new rows: left\nUPDATE a SET b = 1;", "apply.sql")
    assert file.header == {"Only when": "x"}
    assert file.statements[0].notes == {"Step": "s", "New rows": "left"}
    with pytest.raises(RolloutError, match=r"apply\.sql:2: 'Step:' stands twice"):
        read_sql("-- Step: a\n-- Step: b\nSELECT 1;", "apply.sql")


def test_a_nul_byte_is_refused() -> None:
    with pytest.raises(RolloutError, match=r"apply\.sql:2: a NUL byte"):
        read_sql("SELECT 1;\nSELECT \0 2;", "apply.sql")
