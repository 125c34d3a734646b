"""The SQL that is sent: what a segment, a check, the emergency switch and the facts query are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pglast import parse_sql

from pgrollout.migration import queries
from pgrollout.migration.facts import facts_queries
from pgrollout.migration.plan import apply_steps, plan_apply, rollback_steps
from pgrollout.migration.text import literal
from tests.support.rollouts import rollout_of

INDEX = "CREATE INDEX CONCURRENTLY i ON a (b);"
TEXT = st.text(st.characters(exclude_characters="\x00", codec="utf-8"), max_size=40)


def planned(root: Path, text: str, facts: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    plan = plan_apply(rollout_of(root, {"001_a": text}), facts or {}, [], {}, [], [])
    return [step for phase in plan["phases"] for step in phase["steps"]]


def segment(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"label": "", "steps": steps, "record": None}


def value(literal: str) -> str:
    """What PostgreSQL's parser reads in a literal."""
    return str(parse_sql(f"SELECT {literal}")[0].stmt.targetList[0].val.val.sval)


@settings(deadline=None)  # the machine may be busy
@given(TEXT)
def test_literal_is_read_back_as_it_was(text: str) -> None:
    assert value(literal(text)) == text


def test_neighbours_among_short_ddl_share_a_session(tmp_path: Path) -> None:
    steps = planned(
        tmp_path,
        f"ALTER TABLE a ADD COLUMN c int; ALTER TABLE a ADD COLUMN d int; {INDEX}\n"
        "-- Step: fill\n-- Backfill: by id\nUPDATE a SET c = 1; ANALYZE a;",
    )
    found = queries.segments(steps)
    assert [segment["label"] for segment in found] == [
        "001_a/a.c (ADD COLUMN) to i (CREATE INDEX CONCURRENTLY), 3 steps",
        "001_a/fill (BACKFILL)",
        "001_a/analyze_a (ANALYZE)",
    ]
    steps[2] = steps[2] | {"bytes": queries.SMALL_TABLE_BYTES + 1}  # a build that takes its time
    assert [len(segment["steps"]) for segment in queries.segments(steps)] == [2, 1, 1, 1]
    assert queries.segments([*steps[:1], steps[1] | {"migration": "002_b"}])[0]["label"] == "001_a/a.c (ADD COLUMN)"


def test_the_last_call_of_a_migration_records_it_and_makes_one_up_where_no_step_is_left(tmp_path: Path) -> None:
    steps = planned(tmp_path, "ALTER TABLE a ADD COLUMN c int;\n-- Step: fill\n-- Backfill: by id\nUPDATE a SET c = 1;")
    record = {"name": "001_a", "phase": "phase1", "checksum": "ab'c"}
    first, last = queries.segments(steps, record)
    written = "SELECT pgrollout.record_migration(7, '001_a', 'phase1', 'ab''c')"
    assert written not in queries.segment_queries(first, 7, {})
    assert queries.segment_queries(last, 7, {})[-1] == written
    (alone,) = queries.segments([], record)
    assert queries.segment_queries(alone, 7, {})[0] == "CALL pgrollout.enter(7, '001_a')"
    assert queries.segment_queries(alone, 7, {})[-1] == written
    assert queries.segments([]) == []


def test_short_ddl_and_data_go_through_the_ledgers_procedures(tmp_path: Path) -> None:
    steps = planned(tmp_path, "ALTER TABLE a ADD COLUMN c int;\n-- Step: fill\n-- Backfill: by id\nUPDATE a SET c = 1;")
    sent = queries.segment_queries(segment(steps), 7, {"lock_timeout_ms": 50})
    assert sent[0] == "CALL pgrollout.enter(7, '001_a/a.c')"
    assert json.loads(value(sent[1].split("pgrollout.settings', ")[1].removesuffix(", false)"))) == {
        "lock_timeout_ms": 50
    }
    assert [query for query in sent if query.startswith("CALL")][1:] == [
        "CALL pgrollout.run_ddl(7, pgrollout.this_step('001_a/a.c'))",
        "CALL pgrollout.backfill(7, pgrollout.this_step('001_a/fill'), 1)",
    ]


def test_concurrent_build_is_sent_as_the_author_wrote_it_between_its_ledger_rows(tmp_path: Path) -> None:
    (step,) = planned(tmp_path, INDEX)
    sent = queries.segment_queries(segment([step]), 7, {})
    assert sent[3:] == [
        "CALL pgrollout.begin_step(7, pgrollout.this_step('001_a/i'))",
        "CREATE INDEX CONCURRENTLY i ON a (b)",
        "SELECT pgrollout.end_step(7, pgrollout.this_step('001_a/i'))",
    ]
    sent = queries.segment_queries(segment([step | {"state": "rebuild"}]), 7, {})
    assert sent[4:6] == ["DROP INDEX CONCURRENTLY public.i", "CREATE INDEX CONCURRENTLY i ON a (b)"]


def test_a_rollback_step_has_a_ledger_row_of_its_own(tmp_path: Path) -> None:
    (step,) = planned(tmp_path, "ALTER TABLE a ADD COLUMN c int;")
    assert queries.segment_queries(segment([step | {"rollback": True}]), 7, {})[0].endswith("'001_a/a.c (rollback)')")


def check(sql: str, refuses: str = "", title: str = "it's so") -> dict[str, Any]:
    return {"title": title, "sql": sql, "refuses": refuses, "where": "validate.sql:1"}


def test_checks_are_one_query_of_violations() -> None:
    sent = queries.check_queries(
        [check("SELECT a, b, c FROM x"), check("INSERT INTO x VALUES (1)", "check_violation")], "public"
    )
    assert len(sent) == 3
    assert "set_config('search_path', 'public', true)" in sent[0]
    assert "WHEN check_violation THEN verdict := NULL;" in sent[1]
    assert "SELECT 'it''s so', q.object::text" in sent[2]
    for query in sent:
        parse_sql(query)


@settings(deadline=None)  # the machine may be busy
@given(TEXT, TEXT)
def test_no_title_or_statement_breaks_out_of_a_check(title: str, text: str) -> None:
    refused = check(f"SELECT {literal(text)}", "check_violation", title)
    reading = check(f"SELECT {literal(text)}, 2, 3", "", title)
    for query in queries.check_queries([refused, reading], "public"):
        if "$pgrollout_check$" not in text + title:
            assert len(parse_sql(query)) == 1


def test_condition_names_are_no_way_in() -> None:
    """A condition is a word of SQL in the block, so anything else is replaced."""
    (_, block, _) = queries.check_queries(
        [check("SELECT 1", "others THEN DROP TABLE x; WHEN check_violation")], "public"
    )
    assert "DROP TABLE" not in block.split("EXCEPTION")[-1]


def test_emergency_switch_is_bounded_and_holds_what_it_took(tmp_path: Path) -> None:
    rollout = rollout_of(
        tmp_path,
        {
            "phase1/001_a/apply.sql": INDEX,
            "immediate/apply.sql": "-- Holds: 001_a/i\n\n-- Done when: SELECT true\nUPDATE flags SET value = 'false';",
        },
    )
    sent = queries.immediate_queries(rollout["immediate"], "public", 5000)
    assert "set_config('lock_timeout', '5000ms', true)" in sent[0]
    assert sent[1:] == ["UPDATE flags SET value = 'false'"]
    (hold,) = queries.hold_queries(rollout["immediate"], "ada o'neil")
    assert "001_a/i" in hold
    assert "taken away by ada o''neil" in hold
    assert "request = 'stop'" in hold
    assert "request = 'stop'" not in queries.hold_queries(rollout["immediate"], "ada", stop=False)[0]


def test_facts_are_asked_for_each_step_once_with_the_tables_that_it_locks(tmp_path: Path) -> None:
    rollout = rollout_of(
        tmp_path,
        {
            "phase1/001_a/apply.sql": "ALTER TABLE a ADD COLUMN b uuid REFERENCES public.c (id);",
            "phase1/001_a/rollback.sql": "ALTER TABLE a DROP COLUMN b;",
        },
    )
    sent = facts_queries(rollout, apply_steps(rollout) + rollback_steps(rollout))
    request = json.loads(value(sent[0].split("pgrollout.request', ")[1].removesuffix(", true)")))
    assert request["relations"] == ["public.a", "public.c"]
    assert [(step["id"], step["twins"]) for step in request["steps"]] == [
        ("001_a/a.b", ["public.a", "public.c"]),
        ("001_a/a.b (rollback)", []),
    ]
    probe = " ".join(request["steps"][0]["probe"].split())
    assert probe == "ALTER TABLE a ADD COLUMN b uuid REFERENCES c (id)"
    assert sent[-1].startswith("SELECT current_setting('pgrollout.facts')")


@pytest.mark.parametrize("name", ["i", 'I "quoted"'])
def test_leftover_is_dropped_by_its_exact_name(tmp_path: Path, name: str) -> None:
    (step,) = planned(tmp_path, INDEX)
    sent = queries.segment_queries(
        segment([step | {"state": "rebuild", "object": {"kind": "index", "table": 's."T"', "name": name}}]), 1, {}
    )
    assert [part.sval for part in parse_sql(sent[4])[0].stmt.objects[0]] == ["s", name]
