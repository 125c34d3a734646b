"""The watcher over concurrent builds and drops: it names who is waited for, and ends a build that waits too long."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from pgrollout.migration.queries import leftover_queries
from tests.support.ledger import InBackground, carry_out, claim, install, settings, steps_of
from tests.support.probe import probing
from tests.support.rollouts import write_rollout
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.conftest import Database, Playbook

INDEX = "CREATE INDEX CONCURRENTLY item_note ON item (note);"
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('item_note')"
BUILDING = "SELECT pid FROM pg_stat_progress_create_index WHERE relid = 'item'::regclass"
WAITING = "SELECT waiting_for FROM pgrollout.run WHERE ended_at IS NULL"


@pytest.fixture
def ledger(empty_database: Database) -> Database:
    install(empty_database)
    empty_database.execute(
        "CREATE TABLE item (id integer PRIMARY KEY, note text); INSERT INTO item SELECT generate_series(1, 1000);"
        "CREATE TABLE other (id integer); GRANT ALL ON item, other TO hive_app"
    )
    return empty_database


@pytest.fixture
def run(ledger: Database) -> int:
    return claim(ledger)


@pytest.fixture
def old_snapshot(ledger: Database) -> Any:
    """A report that looks at another table, in one long snapshot."""
    connection = ledger.connect(autocommit=False, application_name="report-tool")
    cursor = connection.cursor()
    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM other")
    yield connection
    connection.close()


def clear_up(database: Database, run: int, step: dict[str, Any]) -> None:
    with contextlib.closing(database.connect()) as connection:
        for query in leftover_queries(step, run, settings(blocker_age_ms=0)):
            connection.cursor().execute(query)


def test_whoever_a_build_waits_for_is_named_while_it_waits(
    ledger: Database, run: int, tmp_path: Path, old_snapshot: Any
) -> None:
    work = InBackground(carry_out, ledger, run, steps_of(tmp_path, INDEX))
    with probing(ledger, run, measure=False):
        said = wait_until(lambda: ledger.value(WAITING), what="waiting_for")
        assert re.match(
            rf"pid {old_snapshot.info.backend_pid} \(user \w+, application 'report-tool', idle in trans", said
        )
        assert "waits since" in str(ledger.query("SELECT line FROM pgrollout.status()"))
        assert ledger.value(VALID) is False
        old_snapshot.commit()
        work.result()
        wait_until(lambda: ledger.value(WAITING) is None, what="the end of waiting_for")
    assert ledger.value(VALID)
    assert ledger.query("SELECT what FROM pgrollout.event WHERE what = 'cancelled'") == []


def test_a_build_that_waits_too_long_is_cancelled_with_the_reason(
    ledger: Database, run: int, tmp_path: Path, old_snapshot: Any
) -> None:
    (step,) = steps_of(tmp_path, INDEX)
    work = InBackground(carry_out, ledger, run, [step])
    with probing(ledger, run, measure=False, build_max_wait_s=1), pytest.raises(psycopg2.errors.QueryCanceled):
        work.result()
    why = ledger.value("SELECT pgrollout.cancelled(%s, %s)", run, step["id"])
    assert why.startswith(f"the build has waited for more than 1 s for pid {old_snapshot.info.backend_pid} ")
    assert ledger.value(VALID) is False
    # The reader of another table is not in the way of the drop.
    clear_up(ledger, run, step)
    assert ledger.query(VALID) == []


def test_a_leftover_in_use_is_left_and_the_failure_says_for_whom(ledger: Database, run: int, tmp_path: Path) -> None:
    (step,) = steps_of(tmp_path, INDEX)
    reader = ledger.connect(autocommit=False)
    writer = ledger.connect(autocommit=False)
    writer.cursor().execute("UPDATE item SET note = 'x' WHERE id = 1")
    work = InBackground(carry_out, ledger, run, [step])
    with probing(ledger, run, measure=False, build_max_wait_s=1), pytest.raises(psycopg2.errors.QueryCanceled):
        work.result()
    writer.close()
    reader.cursor().execute("SELECT FROM item LIMIT 1")
    with pytest.raises(psycopg2.Error, match="gave up after 5 s, nothing changed"):
        clear_up(ledger, run, step)
    reader.close()
    assert ledger.value(VALID) is False


@pytest.mark.usefixtures("old_snapshot")
def test_a_stop_ends_a_build_but_not_a_drop(ledger: Database, run: int, tmp_path: Path) -> None:
    work = InBackground(carry_out, ledger, run, steps_of(tmp_path, INDEX))
    with probing(ledger, run, measure=False):
        wait_until(lambda: ledger.value(WAITING))
        ledger.execute("SELECT pgrollout.steer('stop', 'ben', 'lunch')")
        with pytest.raises(psycopg2.errors.QueryCanceled):
            work.result()
    assert "stopped by ben at" in ledger.value("SELECT detail FROM pgrollout.event WHERE what = 'cancelled'")

    ledger.execute("SELECT pgrollout.finish_run(%s, 'failed', '')", run)
    second = claim(ledger)
    (step,) = steps_of(tmp_path / "drop", "DROP INDEX CONCURRENTLY item_note;")
    ledger.execute("DROP INDEX item_note; CREATE INDEX item_note ON item (note)")
    work = InBackground(carry_out, ledger, second, [step])
    work.result()  # an old snapshot of another table is not in its way
    assert ledger.query("SELECT what FROM pgrollout.event WHERE what = 'cancelled' AND run_id = %s", second) == []


@pytest.mark.ci
def test_from_a_playbook(playbook: Playbook, empty_database: Database, tmp_path: Path) -> None:
    """The run stops with the reason, the INVALID index goes, the next run builds it."""
    files = {"phase1/001_one/apply.sql": INDEX, "phase1/001_one/rollback.sql": "DROP INDEX CONCURRENTLY item_note;"}
    folder = write_rollout(tmp_path, files)
    empty_database.execute("CREATE TABLE item (id integer PRIMARY KEY, note text); CREATE TABLE other (id integer)")
    connection = empty_database.connect(autocommit=False, application_name="report-tool")
    connection.cursor().execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM other")
    variables = {
        "rollout_dir": str(folder),
        "backup_dir": str(tmp_path / "backups"),
        "probe_build_max_wait_s": 1,
        "probe_enabled": False,
    }
    stopped = playbook("migrate.yml", database=empty_database, variables=variables, check=False)
    assert stopped.rc == 2, stopped.output
    said = " ".join(stopped.stdout.split())
    assert "It was cancelled: the build has waited for more than 1 s for pid" in said
    assert "application 'report-tool'" in said
    assert "The INVALID index that it left is dropped." in said
    assert empty_database.query(VALID) == []
    connection.close()
    playbook("migrate.yml", database=empty_database, variables=variables)
    assert empty_database.value(VALID)
