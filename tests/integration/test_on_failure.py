"""What a run that fails takes back by itself, and what it leaves to a person; backups that were made beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.ledger import claim, install
from tests.support.rollouts import write_rollout
from tests.support.runs import words

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Database, Playbook, Run

ROLLOUT = {
    "phase1/001_code/apply.sql": "CREATE INDEX CONCURRENTLY item_code ON item (code);",
    "phase1/001_code/rollback.sql": "DROP INDEX CONCURRENTLY item_code;",
    "phase2/002_more/apply.sql": "CREATE INDEX CONCURRENTLY item_more ON item (code, id);",
    "phase2/002_more/rollback.sql": "DROP INDEX CONCURRENTLY item_more;",
    "phase2/003_fails/apply.sql": "CREATE UNIQUE INDEX CONCURRENTLY item_once ON item (kind);",
    "phase2/003_fails/rollback.sql": "DROP INDEX CONCURRENTLY item_once;",
}


@pytest.fixture
def item(empty_database: Database) -> Database:
    empty_database.execute(
        "CREATE TABLE item (id int PRIMARY KEY, code text, kind int);"
        "INSERT INTO item SELECT g, 'C-' || g, g % 3 FROM generate_series(1, 1000) AS g"
    )
    return empty_database


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    return {"rollout_dir": str(write_rollout(tmp_path / "rollout", ROLLOUT)), "backup_dir": str(tmp_path / "backups")}


@pytest.fixture
def ledger(empty_database: Database) -> Database:
    install(empty_database)
    return empty_database


def indexes(database: Database) -> set[str]:
    found = database.query("SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'item'::regclass")
    return {name for (name,) in found} - {"item_pkey"}


def runs(database: Database) -> list[tuple[Any, ...]]:
    return database.query("SELECT kind, status FROM pgrollout.run ORDER BY run_id")


@pytest.mark.ci
@pytest.mark.parametrize(
    ("on_failure", "left", "told"),
    [
        ("stop", {"item_code", "item_more"}, ""),
        ("rollback_phase", {"item_code"}, "demo: phase2 is taken back, because it failed, and apply_on_failure is"),
        ("rollback_all", set(), "demo: phase2, phase1 is taken back, because it failed, and apply_on_failure is"),
    ],
)
def test_a_step_that_fails(
    on_failure: str, left: set[str], told: str, item: Database, given: dict[str, Any], playbook: Playbook
) -> None:
    run = playbook("migrate.yml", database=item, variables=given | {"apply_on_failure": on_failure}, check=False)
    assert run.rc != 0
    assert "003_fails/item_once: could not create unique index" in words(run), run.output
    assert told in words(run), run.output
    assert indexes(item) == left
    back = [] if on_failure == "stop" else [("rollback", "completed")]
    assert runs(item) == [("migrate", "failed"), *back]
    # The same command does what it did before, no matter what was taken back.
    again = playbook("migrate.yml", database=item, variables=given, check=False)
    assert "003_fails/item_once: could not create unique index" in words(again)
    assert indexes(item) == {"item_code", "item_more"}


@pytest.mark.parametrize(
    ("events", "request_", "on_failure", "phases"),
    [
        ([], "run", "stop", []),
        ([], "run", "rollback_phase", ["phase2"]),
        ([], "run", "rollback_all", ["phase2", "phase1"]),
        ([], "stop", "rollback_all", []),  # an operator's word
        (["abort"], "stop", "stop", ["phase2"]),
        (["gate"], "run", "stop", ["phase2"]),
    ],
)
def test_what_is_to_be_taken_back(
    events: list[str], request_: str, on_failure: str, phases: list[str], ledger: Database
) -> None:
    run = claim(ledger)
    for number, phase in enumerate(("phase1", "phase2")):
        ledger.execute(
            "INSERT INTO pgrollout.phase_run (run_id, phase, direction, started_at) "
            f"VALUES ({run}, '{phase}', 'apply', now() + '{number} s')"
        )
    for what in events:
        ledger.execute(f"INSERT INTO pgrollout.event (run_id, what, detail) VALUES ({run}, '{what}', '')")
    ledger.execute(f"UPDATE pgrollout.control SET request = '{request_}', at = clock_timestamp()")
    ledger.execute(f"SELECT pgrollout.finish_run({run}, 'failed', '')")
    asked = f"SELECT phase FROM pgrollout.to_take_back({run}, '{on_failure}')"
    assert [phase for (phase,) in ledger.query(asked)] == phases


@pytest.mark.ci
def test_a_run_that_relies_on_a_backup_made_beforehand(
    item: Database, given: dict[str, Any], playbook: Playbook
) -> None:
    variables = given | {"preflight_backup_in_run": False}

    def run(name: str, *args: str) -> Run:
        return playbook(name, *args, database=item, variables=variables, check=False)

    refused = run("migrate.yml", "--tags", "phase1")
    assert refused.rc != 0
    assert "No verified backup of" in words(refused)
    assert "is on record; expected is one of the last 24 hours" in words(refused)
    assert "ansible-playbook backup.yml -l local" in words(refused)
    assert item.value("SELECT to_regnamespace('pgrollout')") is None

    assert run("backup.yml").rc == 0
    item.execute("UPDATE pgrollout.backup SET recorded_at = recorded_at - interval '30 hours'")
    old = run("migrate.yml", "--tags", "phase1")
    assert "is 30.0 hours old; expected is one of the last 24 hours" in words(old), old.output
    assert run("migrate.yml", "--tags", "phase1", "-e", "preflight_backup_max_age_hours=31").rc == 0
    assert item.value("SELECT count(*) FROM pgrollout.backup") == 1
    assert indexes(item) == {"item_code"}


@pytest.mark.parametrize("value", ["halt", ""])
def test_a_failure_that_is_to_do_something_else(
    value: str, item: Database, given: dict[str, Any], playbook: Playbook
) -> None:
    run = playbook("migrate.yml", database=item, variables=given | {"apply_on_failure": value}, check=False)
    assert run.rc != 0
    said = f"apply_on_failure is '{value}', expected is stop or rollback_phase or rollback_all"
    assert said in words(run), run.output
    assert item.value("SELECT to_regnamespace('pgrollout')") is None
