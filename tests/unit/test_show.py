"""Text for people: plans, status, and the server's own words out of a module's message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgrollout.migration import show
from pgrollout.migration.plan import plan_apply
from tests.support.rollouts import rollout_of

FILES = {
    "001_a": "CREATE INDEX CONCURRENTLY i ON a (b);\nALTER TABLE a ADD COLUMN c int;\nALTER TABLE a ADD COLUMN d int;"
}
FACTS = {
    "relation": {"public.a": {"rows": 1234567, "bytes": 182452224}},
    "ledger": {"steps": {"001_a/a.d": {"state": "held", "message": "taken away by ada"}}, "migrations": {}},
}


def test_plan_shows_state_lock_size_hazard_and_with_diff_the_sql(tmp_path: Path) -> None:
    plan = plan_apply(rollout_of(tmp_path, FILES), FACTS, [], {}, [], [])
    lines = show.plan_lines(plan, statements=True)
    assert lines[0] == "phase1: phase1 [not applied; 2 of 3 steps to do]"
    assert " ".join(lines[1].split()) == (
        "to do 001_a/i CREATE INDEX CONCURRENTLY; SHARE UPDATE EXCLUSIVE on a; 174 MB, 1,234,567 rows"
    )
    assert lines[2] == "          + CREATE INDEX CONCURRENTLY i ON a (b)"
    assert lines[6] == "            taken away by ada; -e reapply=001_a/a.d brings it back"
    assert lines[7].startswith("  application hazard: a prepared 'SELECT *'")
    assert lines[7].endswith("(1 steps, first a.c)")
    assert not any(line.startswith("          +") for line in show.plan_lines(plan))


def test_a_rewritten_statement_is_a_difference_and_who_is_in_the_way_is_told(tmp_path: Path) -> None:
    text = (
        "ALTER TABLE a\n  ADD b int DEFAULT 1 CHECK (b > 0);\nCREATE INDEX CONCURRENTLY i ON a (b);\n"
        "-- Accept: rename because both names are read\nALTER TABLE a RENAME c TO d;"
    )
    session = {"user": "app", "application": "web", "state": "idle in transaction", "seconds": 12, "query": "SELECT 1"}
    blockers = [
        {"pid": 42, "relation": "public.a", "mode": "ACCESS SHARE", **session},
        {"pid": 43, "relation": None, "mode": "SNAPSHOT", **session},
        {"pid": 44, "relation": "public.z", "mode": "ACCESS EXCLUSIVE", **session},
    ]
    lines = show.plan_lines(
        plan_apply(rollout_of(tmp_path, {"001_a": text}), FACTS | {"blocker": blockers}, [], {}, [], []), True
    )
    sql = [line.strip() for line in lines if line.startswith("          ")]
    assert sql == [
        "- ALTER TABLE a",
        "-   ADD b int DEFAULT 1 CHECK (b > 0)",
        "+ ALTER TABLE a ADD COLUMN b integer DEFAULT 1",
        "+ ALTER TABLE a ADD CONSTRAINT a_b_check CHECK (b > 0) NOT VALID",
        "+ ALTER TABLE a VALIDATE CONSTRAINT a_b_check",
        "+ CREATE INDEX CONCURRENTLY i ON a (b)",
        "accepted rename: both names are read",
        "+ ALTER TABLE a RENAME c TO d",
    ]
    assert lines[-3:] == [
        "in the way now: pid 42 (user app, application 'web', idle in transaction, for 12 s) holds ACCESS SHARE on a: "
        "SELECT 1",
        "in the way now: pid 43 (user app, application 'web', idle in transaction, for 12 s) has an old snapshot, for "
        "which concurrent builds wait: SELECT 1",
        "phase1: 5 to do (4 short DDL, 1 concurrent builds or drops); strongest lock ACCESS EXCLUSIVE; largest table "
        "a, 174 MB, 1,234,567 rows",
    ]


def test_status_is_a_line_a_phase_and_what_needs_a_person(tmp_path: Path) -> None:
    invalid = {"definition": "x", "valid": False, "building": None, "table": "public.a"}
    facts = FACTS | {"step": {"001_a/i": {"actual": invalid, "wanted": {"definition": "x"}}}}
    lines = show.status_lines(plan_apply(rollout_of(tmp_path, FILES), facts, [], {}, ["nope"], []))
    assert lines == [
        "phase1: not applied, 2 of 3 steps to do (phase1)",
        "  held: 001_a/a.d: taken away by ada; -e reapply=001_a/a.d brings it back",
        "  invalid: 001_a/i: an INVALID index of this definition was left by a build that failed",
        "problem: -e reapply=nope: no step of that name is held.",
    ]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (8192, "8 kB"), (182452224, "174 MB"), (5 << 30, "5 GB"), (3 << 40, "3.0 TB")],
)
def test_size(number: int, text: str) -> None:
    assert show.size(number) == text


MESSAGES = {
    "Cannot execute SQL 'SELECT 1 FROM nope' None: relation \"nope\" does not exist\nLINE 1: SELECT 1 FROM nope\n"
    "                      ^\n, query list: ['SELECT 1 FROM nope']": 'relation "nope" does not exist.',
    "Cannot execute SQL 'CALL pgrollout.run_ddl(3, pgrollout.this_step('003_x/a.b'))' None: "
    "gave up after 2 s and 7 attempts, nothing changed; blocked by pid 42\n"
    "HINT:  End that transaction or wait for it, then start the same command again.\n"
    "CONTEXT:  PL/pgSQL function run_ddl(bigint,jsonb) line 70 at RAISE\n, query list: ['CALL …', 'CALL …']": (
        "gave up after 2 s and 7 attempts, nothing changed; blocked by pid 42. "
        "End that transaction or wait for it, then start the same command again."
    ),
    "Cannot execute SQL 'SELECT %(a)s' {'a': 1}: division by zero\n": "division by zero.",
    "something else altogether": "something else altogether.",
    "": "",
}


@pytest.mark.parametrize("message", MESSAGES, ids=["relation", "hint", "arguments", "other", "nothing"])
def test_server_message(message: str) -> None:
    assert show.server_message(message) == MESSAGES[message]


def test_failure_names_the_step_of_the_statement_that_failed() -> None:
    message = next(message for message in MESSAGES if "run_ddl" in message)
    segments = [{"label": "one", "steps": []}, {"label": "003_x/a to c", "steps": []}]
    results: list[dict[str, Any]] = [{"failed": False}, {"failed": True, "msg": message}]
    assert show.failure(results, segments) == f"003_x/a.b: {MESSAGES[message]}"
    builds = [
        {"label": "001_a/h to i", "steps": [{"id": "001_a/h", "sql": "BUILD h"}, {"id": "001_a/i", "sql": "BUILD i"}]}
    ]
    built = [{"failed": True, "msg": "Cannot execute SQL 'BUILD i' None: deadlock detected\n, query list: ['BUILD h']"}]
    assert show.failure(built, builds) == "001_a/i: deadlock detected."
    assert show.failure([{"failed": True, "msg": "no connection"}], builds) == "001_a/h to i: no connection."
    assert show.failure([{"failed": False}], builds) == ""


def test_sentences_of_rows() -> None:
    row = {"title": "t", "object": "o", "found": None, "expected": "e", "source": "validate.sql:1"}
    assert show.violations([row]) == ["t: o: found None, expected e (validate.sql:1)"]
    assert show.violations({}) == []


@pytest.mark.parametrize(
    ("why", "advice"),
    [
        ("run 4 is over (taken over): the operator said take_over", "look at status.yml before you start anything."),
        ("another run holds this database: run 5 (migrate) by ann", "status.yml shows how far that run is."),
        (
            "005_sessions/agent_tmux_sessions: disk full.",
            "the same command goes on from there: ansible-playbook migrate.yml -l prod.",
        ),
    ],
)
def test_who_stops_is_told_to_start_again_only_where_nobody_else_works(why: str, advice: str) -> None:
    assert show.stop_advice(why, "ansible-playbook migrate.yml -l prod").endswith(advice)
