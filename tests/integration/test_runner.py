"""The procedures that do the work, called as the roles call them but without Ansible: locks, batches, bad rows."""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from tests.support.ledger import InBackground, carry_out, claim, finish, install, steps_of, transaction
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.conftest import Database

ROWS = 5_000


@pytest.fixture
def ledger(empty_database: Database) -> Database:
    """A database with the ledger and a table of its own: id, note (NULL), state."""
    install(empty_database)
    empty_database.execute(
        "CREATE TABLE item (id integer PRIMARY KEY, note text, state text NOT NULL DEFAULT 'new');"
        f"INSERT INTO item (id) SELECT generate_series(1, {ROWS});"
        "GRANT ALL ON item TO hive_app;"
        "ANALYZE item"
    )
    return empty_database


@pytest.fixture
def run(ledger: Database) -> int:
    return claim(ledger)


def step(database: Database, name: str, what: str) -> Any:
    return database.value(f"SELECT {what} FROM pgrollout.step WHERE step_id = %s", f"001_test/{name}")


def columns(database: Database) -> set[str]:
    found = database.query("SELECT attname FROM pg_attribute WHERE attrelid = 'item'::regclass AND attnum > 0")
    return {name for (name,) in found}


# ---- DDL behind others' locks

ADD = "ALTER TABLE item ADD COLUMN mood text;"
TRIGGER = """
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touch BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION touch();
"""


@pytest.mark.parametrize(
    ("holds", "sql"),
    [
        ("SELECT FROM item LIMIT 1", ADD),
        ("UPDATE item SET state = 'seen' WHERE id = 1", ADD),
        ("UPDATE item SET state = 'seen' WHERE id = 1", TRIGGER),
    ],
    ids=["reader", "idle writer", "idle writer before a trigger"],
)
def test_ddl_waits_for_a_transaction_and_nobody_waits_behind_it(
    ledger: Database, run: int, tmp_path: Path, holds: str, sql: str
) -> None:
    with transaction(ledger, holds) as blocker:
        work = InBackground(carry_out, ledger, run, steps_of(tmp_path, sql))
        longest = 0.0  # of the reads of somebody else, from the first attempt on
        with contextlib.closing(ledger.connect("hive_app")) as other, other.cursor() as cursor:
            end = time.monotonic() + 3
            while time.monotonic() < end:
                began = time.monotonic()
                cursor.execute("SELECT count(*) FROM item WHERE id = 2")
                longest = max(longest, time.monotonic() - began)
                time.sleep(0.005)
        print(f"longest read behind the waiting statement: {longest * 1000:.0f} ms")
        waits = ledger.value("SELECT waiting_for FROM pgrollout.run WHERE run_id = %s", run)
        assert f"pid {blocker.info.backend_pid} (user rollout, application 'hive-web', idle in transaction" in waits
        assert "public.item" in waits
        assert "its query: " + holds in waits
        assert longest < 0.5
        assert work.is_alive()
        blocker.commit()
    work.result()
    name, attempts = ledger.query("SELECT step_id, attempts FROM pgrollout.step ORDER BY started_at DESC LIMIT 1")[0]
    assert attempts >= 2
    assert step(ledger, name.split("/")[1], "state") == "done"
    assert ledger.query("SELECT detail FROM pgrollout.event WHERE what = 'waiting' AND run_id = %s", run)
    assert ledger.value("SELECT waiting_for FROM pgrollout.run WHERE run_id = %s", run) is None


def test_a_busy_table_is_had_between_its_short_transactions(ledger: Database, run: int, tmp_path: Path) -> None:
    """Transactions of half a second, one after the other, with no pause that a timeout of 50 ms could count on."""
    stop = False

    def writer() -> None:
        with contextlib.closing(ledger.connect("hive_app", autocommit=False)) as connection:
            while not stop:
                connection.cursor().execute("UPDATE item SET state = 'seen' WHERE id = 1")
                time.sleep(0.5)
                connection.commit()

    writing = InBackground(writer)
    try:
        carry_out(ledger, run, steps_of(tmp_path, ADD), give_up_s=60)
    finally:
        stop = True
        writing.result()
    assert "mood" in columns(ledger)


def test_giving_up_names_who_has_the_lock_and_changes_nothing(ledger: Database, run: int, tmp_path: Path) -> None:
    before = ledger.value("SELECT pgrollout.fingerprint()")
    with transaction(ledger, "SELECT FROM item LIMIT 1", "report-tool") as blocker:
        began = time.monotonic()
        with pytest.raises(psycopg2.errors.LockNotAvailable) as error:
            carry_out(ledger, run, steps_of(tmp_path, ADD), give_up_s=2)
        assert 2 <= time.monotonic() - began < 10
        pid = blocker.info.backend_pid
    sentence = error.value.diag.message_primary or ""
    assert re.match(rf"gave up after 2 s and \d+ attempts, nothing changed; blocked by pid {pid} ", sentence)
    assert "application 'report-tool'" in sentence
    assert "AccessShareLock on public.item" in sentence
    assert ledger.value("SELECT pgrollout.fingerprint()") == before
    assert step(ledger, "item.mood", "state") == "failed"
    assert f"pid {pid}" in step(ledger, "item.mood", "message")
    carry_out(ledger, run, steps_of(tmp_path, ADD), give_up_s=2)
    assert step(ledger, "item.mood", "state") == "done"
    assert step(ledger, "item.mood", "message") is None


def test_a_statement_that_fails_says_so_and_leaves_the_ones_before_it(
    ledger: Database, run: int, tmp_path: Path
) -> None:
    steps = steps_of(tmp_path, ADD + "ALTER TABLE item ADD CONSTRAINT odd CHECK (nothing > 0) NOT VALID;")
    with pytest.raises(psycopg2.errors.UndefinedColumn, match='column "nothing" does not exist'):
        carry_out(ledger, run, steps)
    assert "mood" in columns(ledger)
    assert step(ledger, "item.mood", "state") == "done"
    assert step(ledger, "item.odd", "state") == "failed"


def test_what_an_author_accepted_is_in_the_ledger_and_the_report(ledger: Database, run: int, tmp_path: Path) -> None:
    sql = "-- Accept: rename because the application reads both names\nALTER TABLE item RENAME COLUMN state TO mood;"
    carry_out(ledger, run, steps_of(tmp_path, sql))
    ((accepted, name),) = ledger.query("SELECT accepted, step_id FROM pgrollout.step")
    assert accepted == [{"hazard": "rename", "reason": "the application reads both names"}]
    lines = [line for (line,) in ledger.query("SELECT line FROM pgrollout.report(%s)", run)]
    assert f"accepted: {name}: rename because the application reads both names" in lines


# ---- backfills

FILL = """
-- Step: fill
-- Backfill: by id
-- New rows: left
UPDATE item AS t SET note = 'n' || t.id WHERE t.note IS NULL;
"""
QUICK = {"batch_rows": 500, "batch_max_rows": 500}


def cursor_of(database: Database) -> tuple[Any, ...]:
    (found,) = database.query("SELECT finished, rows_changed, position, batch_rows FROM pgrollout.cursor")
    return found


def assert_filled_once(database: Database, rows: int = ROWS) -> None:
    """Every row has its value, and the history holds every key once, with what was there and what came."""
    assert database.value("SELECT count(*) FROM item WHERE note IS DISTINCT FROM 'n' || id") == 0
    history = "FROM pgrollout.row_change WHERE step_id = '001_test/fill'"
    assert database.query(f"SELECT count(*), count(DISTINCT key) {history}") == [(rows, rows)]
    wrong = f"{history} AND (old <> '{{\"note\": null}}' OR new ->> 'note' <> 'n' || (key ->> 'id'))"
    assert database.value(f"SELECT count(*) {wrong}") == 0
    finished, changed, _, _ = cursor_of(database)
    assert (finished, changed) == (True, rows)
    assert step(database, "fill", "state") == "done"
    assert step(database, "fill", "rows") == rows


def test_a_backfill_fills_every_row_once(ledger: Database, run: int, tmp_path: Path) -> None:
    carry_out(ledger, run, steps_of(tmp_path, FILL))
    assert_filled_once(ledger)
    carry_out(ledger, run, steps_of(tmp_path, FILL))  # again: nothing left to do
    assert ledger.value("SELECT count(*) FROM pgrollout.row_change") == ROWS


def test_a_backfill_waits_for_a_locked_row_and_goes_on(ledger: Database, run: int, tmp_path: Path) -> None:
    with transaction(ledger, "SELECT FROM item WHERE id = 3210 FOR UPDATE") as blocker:
        work = InBackground(carry_out, ledger, run, steps_of(tmp_path, FILL), **QUICK)
        waits = wait_until(
            lambda: ledger.value("SELECT waiting_for FROM pgrollout.run WHERE run_id = %s", run), what="waiting_for"
        )
        assert "rows of public.item that another transaction holds" in waits
        time.sleep(1)
        assert work.is_alive()
        assert ledger.value("SELECT max(id) FROM item WHERE note IS NOT NULL") < 3210
        # what it has done is committed, and a writer of a row that it has not done waits for nothing
        began = time.monotonic()
        ledger.execute("UPDATE item SET state = 'seen' WHERE id = 4999")
        assert time.monotonic() - began < 0.5
        blocker.commit()
    work.result()
    assert_filled_once(ledger)
    assert ledger.value("SELECT state FROM item WHERE id = 4999") == "seen"


def test_a_backfill_that_gives_up_keeps_what_it_has_done(ledger: Database, run: int, tmp_path: Path) -> None:
    with transaction(ledger, "SELECT FROM item WHERE id = 3210 FOR UPDATE"):
        with pytest.raises(psycopg2.Error, match=r"gave up after 1 s; blocked by rows of public.item that another"):
            carry_out(ledger, run, steps_of(tmp_path, FILL), **QUICK, give_up_s=1)
        done = ledger.value("SELECT count(*) FROM item WHERE note IS NOT NULL")
        assert 2000 < done < 3210
        assert cursor_of(ledger)[:2] == (False, done)
        assert step(ledger, "fill", "state") == "failed"
    carry_out(ledger, run, steps_of(tmp_path, FILL))
    assert_filled_once(ledger)


@pytest.mark.parametrize("bad", [1, 777, ROWS - 1, ROWS])
def test_a_bad_row_is_found_named_and_everything_before_it_done(
    ledger: Database, run: int, tmp_path: Path, bad: int
) -> None:
    ledger.execute(f"ALTER TABLE item ADD CONSTRAINT no_{bad} CHECK (note <> 'n{bad}')")
    with pytest.raises(psycopg2.Error) as error:
        carry_out(ledger, run, steps_of(tmp_path, FILL))
    assert error.value.diag.message_primary == (
        f"the row of public.item with key [{bad}] fails: "
        f'new row for relation "item" violates check constraint "no_{bad}"'
    )
    assert "the next run goes on with it" in (error.value.diag.message_hint or "")
    assert ledger.query("SELECT count(*), max(id) FROM item WHERE note IS NOT NULL") == [(bad - 1, bad - 1 or None)]
    finished, changed, position, _ = cursor_of(ledger)
    assert (finished, changed, position) == (False, bad - 1, [bad - 1] if bad > 1 else None)
    assert step(ledger, "fill", "message").startswith(f"the row of public.item with key [{bad}]")
    finish(ledger, run, "failed")

    ledger.execute(f"ALTER TABLE item DROP CONSTRAINT no_{bad}")
    carry_out(ledger, claim(ledger), steps_of(tmp_path, FILL))
    assert_filled_once(ledger)


def test_a_batch_grows_again_behind_a_bad_row(ledger: Database, run: int, tmp_path: Path) -> None:
    """Rows 100 and 4000 are bad; the second run stops at the second of them, with few batches in between."""
    ledger.execute("ALTER TABLE item ADD CONSTRAINT bad CHECK (note NOT IN ('n100', 'n4000'))")
    for bad in (100, 4000):
        with pytest.raises(psycopg2.Error, match=rf"with key \[{bad}\] fails"):
            carry_out(ledger, run, steps_of(tmp_path, FILL))
        ledger.execute(f"DELETE FROM item WHERE id = {bad}")
    carry_out(ledger, run, steps_of(tmp_path, FILL))
    assert_filled_once(ledger, ROWS - 2)
    assert ledger.value("SELECT batches FROM pgrollout.cursor") < 200


def test_a_value_that_does_not_fit_is_a_bad_row_too(ledger: Database, run: int, tmp_path: Path) -> None:
    ledger.execute("ALTER TABLE item ADD COLUMN share integer; UPDATE item SET state = '0' WHERE id = 42")
    share = (
        "-- Backfill: by id\n"
        "UPDATE item AS t SET share = 10 / CASE t.state WHEN 'new' THEN 1 ELSE 0 END WHERE t.share IS NULL;"
    )
    steps = steps_of(tmp_path, share)
    with pytest.raises(psycopg2.Error, match=r"the row of public.item with key \[42\] fails: division by zero"):
        carry_out(ledger, run, steps)
    assert ledger.value("SELECT count(*) FROM item WHERE share = 10") == 41


def test_a_backfill_whose_session_is_ended_again_and_again(ledger: Database, run: int, tmp_path: Path) -> None:
    """pg_terminate_backend at random moments: every row is counted once, and only the cursor tells which were."""
    seed = int(os.environ.get("PGROLLOUT_SEED", random.randrange(2**32)))
    print(f"PGROLLOUT_SEED={seed}")
    chance = random.Random(seed)
    ledger.execute("ALTER TABLE item ADD COLUMN visits integer NOT NULL DEFAULT 0")
    count = "-- Step: count\n-- Backfill: by id\nUPDATE item AS t SET visits = t.visits + 1;"
    steps = steps_of(tmp_path, count)
    ended = 0
    for _ in range(200):
        work = InBackground(carry_out, ledger, run, steps, batch_rows=5, batch_max_rows=5)
        time.sleep(chance.uniform(0.01, 0.08))
        ledger.query("SELECT pg_terminate_backend(pid) FROM pgrollout.lock_holder()")
        try:
            work.result()
            break
        except psycopg2.OperationalError:
            ended += 1
    print(f"{ended} sessions ended")
    carry_out(ledger, run, steps)
    assert ended > 0
    assert ledger.query("SELECT visits, count(*) FROM item GROUP BY 1") == [(1, ROWS)]
    assert ledger.query("SELECT count(*), count(DISTINCT key) FROM pgrollout.row_change") == [(ROWS, ROWS)]
    assert cursor_of(ledger)[:2] == (True, ROWS)


def test_an_order_to_stop_is_obeyed_between_two_batches(ledger: Database, run: int, tmp_path: Path) -> None:
    with transaction(ledger, "SELECT FROM item WHERE id = 3210 FOR UPDATE"):
        work = InBackground(carry_out, ledger, run, steps_of(tmp_path, FILL), **QUICK)
        wait_until(lambda: ledger.value("SELECT waiting_for FROM pgrollout.run WHERE run_id = %s", run))
        ledger.execute(
            "UPDATE pgrollout.control SET request = 'stop', who = 'ben', why = 'too slow', at = clock_timestamp()"
        )
        with pytest.raises(psycopg2.Error, match=r"stopped by ben at \d\d:\d\d:\d\d UTC: too slow"):
            work.result()
    finish(ledger, run, "failed")
    carry_out(ledger, claim(ledger), steps_of(tmp_path, FILL))
    assert_filled_once(ledger)


# ---- top-level statements

INDEX = "CREATE INDEX CONCURRENTLY idx_item_note ON item (note);"


def test_a_build_waits_for_a_writer_without_a_timeout(ledger: Database, run: int, tmp_path: Path) -> None:
    with transaction(ledger, "UPDATE item SET state = 'seen' WHERE id = 1") as writer:
        work = InBackground(carry_out, ledger, run, steps_of(tmp_path, INDEX))
        wait_until(lambda: ledger.query("SELECT 1 FROM pg_stat_progress_create_index WHERE relid = 'item'::regclass"))
        time.sleep(1.5)
        assert work.is_alive()
        began = time.monotonic()
        ledger.execute("UPDATE item SET state = 'seen' WHERE id = 2")
        assert time.monotonic() - began < 0.5
        writer.commit()
    work.result()
    assert ledger.value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_item_note'::regclass")
    assert step(ledger, "idx_item_note", "state") == "done"


def test_a_build_that_is_cut_off_is_not_recorded_as_done(ledger: Database, run: int, tmp_path: Path) -> None:
    steps = steps_of(tmp_path, INDEX)
    with transaction(ledger, "UPDATE item SET state = 'seen' WHERE id = 1"):
        work = InBackground(carry_out, ledger, run, steps)
        wait_until(lambda: ledger.query("SELECT 1 FROM pg_stat_progress_create_index WHERE relid = 'item'::regclass"))
        ledger.query("SELECT pg_terminate_backend(pid) FROM pgrollout.lock_holder()")
        with pytest.raises(psycopg2.OperationalError):
            work.result()
    assert not ledger.value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_item_note'::regclass")
    assert step(ledger, "idx_item_note", "state") == "started"
    carry_out(ledger, run, [steps[0] | {"state": "rebuild"}])  # as the next plan calls it
    assert ledger.value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_item_note'::regclass")
    assert step(ledger, "idx_item_note", "state") == "done"


# ---- the run lock


def test_a_second_session_of_a_run_is_refused_while_the_first_works(ledger: Database, run: int, tmp_path: Path) -> None:
    with transaction(ledger, "SELECT FROM item WHERE id = 3210 FOR UPDATE") as blocker:
        work = InBackground(carry_out, ledger, run, steps_of(tmp_path / "one", FILL))
        wait_until(lambda: ledger.value("SELECT waiting_for FROM pgrollout.run WHERE run_id = %s", run))
        (pid,) = ledger.query("SELECT pid FROM pgrollout.lock_holder()")[0]
        with pytest.raises(psycopg2.Error, match=rf"another session works on this database for a run: pid {pid} "):
            carry_out(ledger, run, steps_of(tmp_path / "two", ADD))
        blocker.commit()
    work.result()
    assert "mood" not in columns(ledger)
    carry_out(ledger, run, steps_of(tmp_path / "two", ADD))


def test_an_older_ledger_is_upgraded_though_its_routines_were_of_another_kind(ledger: Database) -> None:
    first = claim(ledger)
    finish(ledger, first)
    ledger.execute("DROP PROCEDURE pgrollout.begin_step(bigint, jsonb)")
    ledger.execute("CREATE FUNCTION pgrollout.begin_step(bigint, jsonb) RETURNS integer LANGUAGE sql AS 'SELECT 1'")
    install(ledger)
    assert ledger.value("SELECT prokind FROM pg_proc WHERE proname = 'begin_step'") == "p"
    assert ledger.value("SELECT status FROM pgrollout.run WHERE run_id = %s", first) == "completed"
