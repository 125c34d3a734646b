"""How two catalogs and two contents differ, in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pgrollout.errors import RolloutError
from pgrollout.proof.contents import content_lines
from pgrollout.proof.fingerprints import difference_lines, fingerprint_diff

COLUMN = "owner app; grants ; integer; not null {}; default {}; comment "


def test_an_object_that_is_gone_new_or_other_is_told_by_what_differs() -> None:
    was = {"index public.i": "CREATE INDEX i", "column public.t.a": COLUMN.format("f", ""), "table public.t": "x"}
    now = {"index public.j": "CREATE INDEX j", "column public.t.a": COLUMN.format("t", "0"), "table public.t": "x"}
    assert fingerprint_diff(was, json.dumps(now)) == [
        "column public.t.a: found [not null t; default 0], expected [not null f; default ]",
        "index public.i: is not there, expected [CREATE INDEX i]",
        "index public.j: found [CREATE INDEX j], expected was none of that name",
    ]
    assert fingerprint_diff(was, was) == []


def test_of_a_long_definition_only_what_is_around_the_difference_is_told() -> None:
    body = "CREATE FUNCTION f() AS $$ BEGIN " + "x := 1; " * 50 + "{} RETURN; END " + "-- end; " * 50 + "$$; comment "
    (told,) = fingerprint_diff({"function f()": body.format("")}, {"function f()": body.format("y := 2; z := 3;")})
    assert len(told) < 300
    assert "y := 2; z := 3; RETURN; END" in told
    assert "[…" in told
    assert "…], expected […" in told


@pytest.mark.parametrize("garbage", ["{not json", "[1]", ["a"], {"a": 1}, None])
def test_what_is_no_fingerprint_is_refused(garbage: Any) -> None:
    with pytest.raises(RolloutError, match=r"expected is a fingerprint, .* SELECT pgrollout.fingerprint\(\)"):
        fingerprint_diff(garbage, {})


def test_rows_of_the_ledger_are_told_alike() -> None:
    rows = [{"object": "o", "found": "f", "expected": None}, {"object": "p", "found": None, "expected": "e"}]
    assert difference_lines(rows) == ["o: found [f], expected was none of that name", "p: is not there, expected [e]"]


def test_a_table_whose_content_differs_is_told_with_its_rows() -> None:
    content = [
        {"table_name": "a", "rows_before": 1000, "rows_now": 1001, "equal": False},
        {"table_name": "b", "rows_before": 5, "rows_now": None, "equal": False},
        {"table_name": "c", "rows_before": 5, "rows_now": 5, "equal": True},
    ]
    assert content_lines(content) == ["a (1,000 rows then, 1,001 now)", "b (5 rows then, gone now)"]
