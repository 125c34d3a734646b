"""How two catalogs and two contents differ, in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pgrollout.errors import RolloutError
from pgrollout.proof.backups import backup_line
from pgrollout.proof.contents import content_lines
from pgrollout.proof.external import external_backup, external_place, seconds_of_delta
from pgrollout.proof.fingerprints import difference_lines, fingerprint_diff
from plugins.module_utils import database_contents as contents

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


EVIDENCE = {"id": "b-1", "tables": 3, "rows": 1200, "bytes": 3 << 20, "verified": True, "verified_on": "server"}
EVIDENCE |= {"restore_seconds": 2.5, "amcheck": "passed"}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, "restored in 2.5 s into a server of its own and compared, row by row; pg_amcheck passed."),
        ({"verified": False}, "NOT verified (backup_verify: none)."),
        (
            {"sampled": ["public.a"], "counted_only": list("bcdefgh")},
            "restored in 2.5 s into a server of its own and compared, row by row; pg_amcheck passed; "
            "of these only a sample, by key range: public.a; only counted: b, c, d, e, f and 2 more.",
        ),
        (
            {"written_meanwhile": ["public.a had 1 rows, restored 0 rows"]},
            "restored in 2.5 s into a server of its own and compared; pg_amcheck passed; "
            "written while it was made: public.a had 1 rows, restored 0 rows.",
        ),
    ],
)
def test_a_backup_is_told_with_what_its_proof_leaves_out(more: dict[str, Any], told: str) -> None:
    assert backup_line(EVIDENCE | more) == f"Backup b-1: 3 tables, 1,200 rows, 3.0 MB, {told}"


def test_of_a_backup_made_elsewhere_little_may_be_known() -> None:
    known = {"id": "20260101-000000F", "verified": True, "verified_on": "elsewhere", "restore_seconds": 60}
    assert backup_line(known) == (
        "Backup 20260101-000000F: restored in 60 s by backup_external_restore and compared, row by row."
    )


# ---- backups made elsewhere


def test_a_backup_made_elsewhere_says_what_and_when() -> None:
    said = {"rc": 0, "stdout": '{"id": "20260101F", "finished": "2026-01-01T00:00:00Z", "else": 1, "bytes": 5}\n'}
    assert external_backup(said) == {"id": "20260101F", "finished": "2026-01-01T00:00:00Z", "bytes": 5}
    assert external_backup({"status": 201, "content": said["stdout"]})["id"] == "20260101F"
    place = {"rc": 0, "stdout": '{"host": "/tmp/s", "port": 5433, "db": "a", "passfile": "/p"}'}
    expected = {"login_host": "/tmp/s", "login_port": 5433, "login_db": "a", "passfile": "/p"}
    assert external_place(place) == expected


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"rc": 3, "stderr": "no repo\n", "stdout": ""}, "of the backup failed with 3: no repo"),
        ({"status": 503, "content": "later", "failed": False}, "of the backup failed with 503: later"),
        ({"rc": 0, "stdout": "done"}, r"answered \[done\]; expected is a JSON object with id and finished"),
        ({"rc": 0, "stdout": "[1]"}, "expected is a JSON object with id and finished"),
        ({"rc": 0, "stdout": '{"finished": "2026-01-01T00:00:00Z"}'}, "expected is a JSON object with id and finished"),
        ({"rc": 0, "stdout": '{"id": "a", "finished": "yesterday"}'}, r"finished \(a time as in ISO 8601\)"),
        ({"rc": 0, "stdout": '{"id": "a"}'}, r"finished \(a time as in ISO 8601\)"),
    ],
)
def test_an_answer_that_is_none_is_refused(answer: dict[str, Any], told: str) -> None:
    with pytest.raises(RolloutError, match=told):
        external_backup(answer)


@pytest.mark.parametrize("said", ['{"host": "a"}', '{"db": "a"}', '{"host": "a", "db": "b", "sslmode": "c"}', "ok"])
def test_a_place_that_is_none_is_refused(said: str) -> None:
    with pytest.raises(RolloutError, match=r"of the restore answered .* expected is a JSON object with host and db"):
        external_place({"rc": 0, "stdout": said})


@pytest.mark.parametrize(("delta", "seconds"), [("0:00:02.345678", 2.3), ("1 day, 0:01:00.000000", 86460.0)])
def test_the_seconds_of_a_command(delta: str, seconds: float) -> None:
    assert seconds_of_delta(delta) == seconds


# ---- what a restore prints otherwise


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (
            "CHECK (((status)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[])))",
            "CHECK (((status)::text = ANY (ARRAY[('a'::character varying)::text, ('b'::character varying)::text])))",
            True,
        ),
        (
            "(at > '2024-01-01'::timestamp(3) without time zone)",
            "at > ('2024-01-01'::timestamp without time zone)",
            True,
        ),
        ("(a = ANY ('{1}'::\"My.Type\"[]))", "(a = ANY ('{1}'::public.\"My.Type\"[]))", True),
        ("CHECK ((a > 1))", "CHECK ((a > 2))", False),
        ("CHECK ((a = 'x'::text))", "CHECK ((a = 'X'::text))", False),
        ("CHECK ((a AND b))", "CHECK ((a OR b))", False),
    ],
)
def test_a_definition_that_was_printed_read_and_printed_again(one: str, other: str, alike: bool) -> None:
    held, found = ({"catalog": {"constraint public.t.c": f"{each}; validated t; comment "}} for each in (one, other))
    assert (contents.catalog_differences(held, found) == []) is alike


def test_an_invalid_index_is_in_no_dump() -> None:
    index = "CREATE INDEX i ON public.t USING btree (a); comment ; valid {}; ready f"
    held = {"catalog": {"index public.i": index.format("f"), "table public.t": "x"}}
    assert contents.catalog_differences(held, {"catalog": {"table public.t": "x"}}) == []
    held["catalog"]["index public.i"] = index.format("t")
    assert len(contents.catalog_differences(held, {"catalog": {"table public.t": "x"}})) == 1
