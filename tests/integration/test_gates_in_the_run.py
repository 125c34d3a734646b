"""Gates in the run: after a phase, at the start of the next run, after a rollback, by themselves; what they stop."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import pytest

from demo.load import load
from tests.conftest import Database
from tests.support.rollouts import write_rollout
from tests.support.runs import words

if TYPE_CHECKING:
    from pathlib import Path

    from demo.server import Server
    from tests.conftest import Playbook, Run

SCHEMA = """
CREATE TABLE item (id int PRIMARY KEY, code text, note text, state text);
INSERT INTO item SELECT g, 'C-' || g, 'N-' || g, 'S-' || g % 10 FROM generate_series(1, 20000) AS g;
CREATE INDEX item_id_code ON item (id, code);
VACUUM ANALYZE item
"""
LOOK = """\
title: Look an item up
parameters: {code: text}
cases: {first: SELECT code FROM item ORDER BY id LIMIT 1}
sampling: {warmup: 0, runs: 1}
gates: {require_index: [{table: item, index: item_code, condition_on: [code]}]}
"""
NOTED = """\
title: Items of a note
parameters: {note: text}
cases: {first: SELECT note FROM item ORDER BY id LIMIT 1}
sampling: {warmup: 0, runs: 1}
gates: {forbid_seq_scan: {always: [item]}}
"""
FIRST = {
    "phase1/001_code/apply.sql": "CREATE INDEX CONCURRENTLY item_code ON item (code);",
    "phase1/001_code/rollback.sql": "DROP INDEX CONCURRENTLY IF EXISTS item_code;",
    "phase1/001_code/gates/look.sql": "SELECT * FROM item WHERE code = :code",
    "phase1/001_code/gates/look.gate.yml": LOOK,
}
SECOND = {
    "phase2/002_state/apply.sql": "CREATE INDEX CONCURRENTLY item_state ON item (state);",
    "phase2/002_state/rollback.sql": "DROP INDEX CONCURRENTLY IF EXISTS item_state;",
}
NEEDS_NOTE = "SELECT * FROM item WHERE note = :note"
TOLD = "noted: forbid_seq_scan: public.item is read from end to end, 20,000 rows; allowed up to 0"


@pytest.fixture
def item(empty_database: Database) -> Database:
    for statement in SCHEMA.split(";\n"):
        empty_database.execute(statement)
    return empty_database


def noted(phase: str, migration: str) -> dict[str, str]:
    """A gate that no index of the rollout helps to meet."""
    folder = f"{phase}/{migration}/gates"
    return {f"{folder}/noted.sql": NEEDS_NOTE, f"{folder}/noted.gate.yml": NOTED}


def given(tmp_path: Path, *files: dict[str, str]) -> dict[str, Any]:
    merged = {name: text for part in files for name, text in part.items()}
    return {
        "rollout_dir": str(write_rollout(tmp_path / "rollout", merged)),
        "backup_dir": str(tmp_path / "backups"),
    }


def indexes(database: Database) -> set[str]:
    return {name for (name,) in database.query("SELECT indexrelid::regclass::text FROM pg_index WHERE indisvalid")}


def moments(database: Database) -> list[tuple[Any, ...]]:
    return database.query(
        "SELECT moment, gate_id, coalesce(verdicts -> 0 ->> 'status', '') FROM pgrollout.gate ORDER BY at, gate_id"
    )


@pytest.mark.ci
def test_a_gate_that_fails_stops_the_run_until_it_is_met(item: Database, playbook: Playbook, tmp_path: Path) -> None:
    variables = given(tmp_path, FIRST, SECOND, noted("phase1", "001_code"))

    def run(name: str, *args: str) -> Run:
        return playbook(name, *args, database=item, variables=variables, check=False)

    first = run("migrate.yml")
    assert first.rc != 0
    assert f"phase1 is applied, and a query is not what its gate demands: 001_code/{TOLD}" in words(first), first.output
    assert "To take it back: ansible-playbook rollback.yml -l local --tags phase1." in words(first)
    assert {"item_code"} == indexes(item) & {"item_code", "item_state"}
    backups = len(item.query("SELECT FROM pgrollout.backup"))
    again = run("migrate.yml", "--tags", "phase2")
    assert again.rc != 0
    assert "A query still is not what its gate demands, so nothing was done: 001_code/noted" in words(again)
    assert "item_state" not in indexes(item)
    assert len(item.query("SELECT FROM pgrollout.backup")) == backups
    status = words(run("status.yml"))
    assert "gates: 2 queries, last measured again" in status
    assert f"gate fail: 001_code/noted: {TOLD.removeprefix('noted: ')} (again)" in status

    item.execute("CREATE INDEX item_note ON item (note)")
    done = run("migrate.yml")
    assert done.rc == 0, done.output
    assert "item_state" in indexes(item)
    assert moments(item) == [
        ("baseline", "001_code/look", ""),
        ("baseline", "001_code/noted", ""),
        ("after phase1", "001_code/look", "pass"),
        ("after phase1", "001_code/noted", "fail"),
        ("again", "001_code/look", "pass"),
        ("again", "001_code/noted", "fail"),
        ("again", "001_code/look", "pass"),
        ("again", "001_code/noted", "pass"),
        ("after phase2", "001_code/look", "pass"),
        ("after phase2", "001_code/noted", "pass"),
    ]
    assert "indexes: 2 of this rollout" in words(done)
    assert "1 serve a query that has a gate" in words(done)
    assert re.search(r"index item_state on public.item: \d+ kB; no gate's query uses it; ([\d,]+) writes", words(done))
    assert "index item_code on" not in words(done)
    used = words(run("status.yml"))
    assert "50 % were scanned since" in used
    assert ": under 70 %, look into it" in used
    assert "no gate's query uses it; never scanned; " in used


def test_gates_by_themselves(item: Database, playbook: Playbook, tmp_path: Path) -> None:
    """Without a ledger too, and without a trace."""
    variables = given(tmp_path, FIRST)

    def gates() -> Run:
        return playbook("validate.yml", "--tags", "gates", database=item, variables=variables, check=False)

    assert "not measured: 1 gate of 001_code: it is not applied as a whole" in words(gates())
    item.execute("CREATE INDEX item_code ON item (code)")
    met = gates()
    assert met.rc == 0, met.output
    assert "pass 001_code/look: Look an item up (2 plans;" in words(met)
    assert "phase1: the gates are met." in words(met)
    assert met.changed == 0
    assert item.value("SELECT to_regnamespace('pgrollout')") is None


@pytest.mark.ci
def test_a_gate_that_fails_takes_its_phase_back(item: Database, playbook: Playbook, tmp_path: Path) -> None:
    variables = given(tmp_path, FIRST, SECOND, noted("phase2", "002_state"))
    variables |= {"apply_on_gate_failure": "rollback"}
    run = playbook("migrate.yml", database=item, variables=variables, check=False)
    assert run.rc != 0
    assert f"a query is not what its gate demands: 002_state/{TOLD} (and 1 more). It is taken back now." in words(
        run
    ), run.output
    assert "demo: phase2 is taken back, because a query failed its gate after it." in words(run)
    assert {"item_code"} == indexes(item) & {"item_code", "item_state"}
    assert item.query("SELECT kind, status FROM pgrollout.run ORDER BY run_id") == [
        ("migrate", "failed"),
        ("rollback", "completed"),
    ]
    last = [(gate, status) for moment, gate, status in moments(item) if moment == "after the rollback of phase2"]
    assert last == [("001_code/look", "pass"), ("002_state/noted", "pass")]
    # The baseline is that of before phase1; nothing is measured as one once a phase stands.
    assert [moment for moment, *_ in moments(item)].count("baseline") == 2


@pytest.mark.ci
def test_a_rollback_after_which_a_query_does_worse(item: Database, playbook: Playbook, tmp_path: Path) -> None:
    limits = NOTED.replace("forbid_seq_scan: {always: [item]}", "max_shared_blocks: 10000")
    variables = given(tmp_path, FIRST, noted("phase1", "001_code") | {"phase1/001_code/gates/noted.gate.yml": limits})
    item.execute("ALTER TABLE item SET (autovacuum_enabled = false)")
    playbook("migrate.yml", database=item, variables=variables)
    for _ in range(3):  # dead rows that nobody clears away
        item.execute("UPDATE item SET note = note")
    run = playbook("rollback.yml", "--tags", "phase1", database=item, variables=variables, check=False)
    assert run.rc != 0
    assert (
        "phase1 is rolled back, and a query is not what it was: 001_code/noted: baseline.max_shared_blocks_ratio: "
        "blocks hit and read, compared with before the first phase:"
    ) in words(run), run.output
    assert "The rollback itself is complete and proven." in words(run)
    assert "item_code" not in indexes(item)


@pytest.mark.parametrize("value", ["halt", ""])
def test_a_gate_failure_that_is_to_do_something_else(
    value: str, item: Database, playbook: Playbook, tmp_path: Path
) -> None:
    variables = given(tmp_path, FIRST) | {"apply_on_gate_failure": value}
    run = playbook("migrate.yml", database=item, variables=variables, check=False)
    assert run.rc != 0
    assert f"apply_on_gate_failure is '{value}', expected is stop or rollback" in words(run), run.output
    assert item.value("SELECT to_regnamespace('pgrollout')") is None


@pytest.mark.full
def test_every_gate_of_agent_hive_is_met_at_300_000_tasks(server: Server, playbook: Playbook, tmp_path: Path) -> None:
    database = Database("hive_of_gates", server)
    load(server, database.name, "1")
    try:
        run = playbook("migrate.yml", database=database, variables={"backup_dir": str(tmp_path / "backups")})
        assert "fail" not in {status for (status,) in database.query("SELECT status FROM pgrollout.gate_status")}
        assert database.query("SELECT status, count(*) FROM pgrollout.gate_status GROUP BY 1") == [("pass", 17)], (
            run.output
        )
        back = playbook(
            "rollback.yml", "--tags", "full", "-e", "rollback_confirm=local", database=database,
            variables={"backup_dir": str(tmp_path / "backups")},
        )  # fmt: skip
        told = {status for (status,) in database.query("SELECT status FROM pgrollout.gate_status")}
        assert told <= {"pass", "inconclusive"}, back.output
        assert "pass" in told, back.output
    finally:
        with contextlib.closing(server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {database.name} WITH (FORCE)")
