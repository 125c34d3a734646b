"""The downtime probe on a real server: what it measures, how it ends, and that it is in nobody's way."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from tests.support.ledger import InBackground, claim, finish, install
from tests.support.probe import call, lives, probing
from tests.support.rollouts import write_rollout
from tests.support.runs import words
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from demo.server import Server
    from tests.conftest import Database, Playbook

ITEM, OTHER = "public.item", "public.other"
# Whether the probe holds a snapshot or a transaction number while it waits for a lock; no row when it does not wait.
SNAPSHOT = """
SELECT backend_xmin IS NOT NULL OR backend_xid IS NOT NULL FROM pg_stat_activity
WHERE application_name = 'pgrollout-probe/RUN' AND wait_event_type = 'Lock' AND datname = current_database()
"""


@pytest.fixture
def ledger(empty_database: Database) -> Database:
    """A database with the ledger and two tables."""
    install(empty_database)
    empty_database.execute(
        "CREATE TABLE item (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text);"
        "CREATE TABLE other (id integer, place text, note text, PRIMARY KEY (place, id));"
        "INSERT INTO item (note) SELECT n FROM generate_series(1, 100) AS n;"
        "INSERT INTO other SELECT n, 'a%s{}''' || n FROM generate_series(1, 100) AS n"
    )
    return empty_database


@pytest.fixture
def run(ledger: Database) -> int:
    return claim(ledger)


@contextlib.contextmanager
def holding(database: Database, table: str, mode: str = "ACCESS EXCLUSIVE") -> Iterator[Any]:
    """A transaction that holds a lock on `table` until its commit, or the end."""
    connection = database.connect(autocommit=False, application_name="hive-batch")
    try:
        connection.cursor().execute(f"LOCK TABLE {table} IN {mode} MODE")
        yield connection
    finally:
        connection.close()


def lines(database: Database, run: int) -> str:
    return "\n".join(line for (line,) in database.query("SELECT line FROM pgrollout.probe_lines(%s)", run))


# ---- what it measures


def test_a_stall_is_measured_from_the_time_at_which_operations_were_due(ledger: Database, run: int) -> None:
    with probing(ledger, run, ITEM, OTHER) as probe:
        ledger.execute(f"SELECT pgrollout.begin_phase({run}, 'phase1', 'apply')")
        began = time.monotonic()
        with holding(ledger, ITEM) as lock:
            said = probe.stalled(ITEM)
            wait_until(lambda: time.monotonic() - began > 1.5, what="a second and a half of stall")
            lock.commit()
            held = time.monotonic() - began
        probe.sampled(2)
        finish(ledger, run)
        probe.ended()
        assert "application 'hive-batch'" in said
        longest = probe.longest(ITEM)
        assert 0.7 * held < longest < 1.3 * held
        assert probe.longest(OTHER) < 0.5 * held
        # Each operation that was due meanwhile has waited, the first one longest, the last one hardly.
        waited = probe.ask(
            "SELECT count(*) FROM pgrollout.probe_sample, unnest(waits_ms) AS w"
            f" WHERE run_id = RUN AND table_name = '{ITEM}' AND w > {held * 1000 / 2}"
        )
        assert 0.6 < waited / (held / 2 / 0.1) < 1.4
        rate = probe.ask(
            "SELECT sum(cardinality(waits_ms)) / extract(epoch FROM max(second) - min(second) + interval '1 second')"
            f" FROM pgrollout.probe_sample WHERE run_id = RUN AND table_name = '{ITEM}'"
        )
        assert 8 < rate < 11
        assert probe.errors(ITEM) == 0
    text = lines(ledger, run)
    assert f"WARNING: {ITEM} stood still for {longest:.1f} s" in text
    assert "during phase1; public.item: has waited for" in text
    assert "ALERT" not in text


def test_writes_wait_for_a_lock_that_readers_do_not_notice(ledger: Database, run: int) -> None:
    with probing(ledger, run, ITEM) as probe, holding(ledger, ITEM, "SHARE"):
        assert "hive-batch" in probe.stalled(ITEM)


def test_errors_are_counted_and_a_lost_session_is_replaced(ledger: Database, run: int) -> None:
    with probing(ledger, run, ITEM, OTHER) as probe:
        ledger.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = current_database() AND application_name = 'pgrollout-probe/{run}'"
        )
        probe.sampled(2)
        killed = probe.errors(OTHER)
        ledger.execute("REVOKE UPDATE ON item FROM rollout")
        probe.sampled(2)
        ledger.execute("GRANT UPDATE ON item TO rollout")
        probe.sampled(2)
        assert killed > 0
        assert probe.errors(OTHER) == killed
        assert probe.errors(ITEM) > killed
        assert probe.longest(ITEM) > probe.longest(OTHER)  # refused writes are a stall until one goes through


def test_a_restart_of_the_server_is_survived_and_counts_as_a_stall(ledger: Database, run: int, server: Server) -> None:
    with probing(ledger, run, ITEM) as probe:
        began = time.monotonic()
        server.stop("immediate")
        down = time.monotonic() - began
        server.start()
        away = time.monotonic() - began
        probe.sampled(3)
        assert lives(probe.pid)
        for table in (ITEM, "commit"):
            assert probe.errors(table) > 0
            assert (away - down) * 0.7 < probe.longest(table) < away * 1.3 + 1
        finish(ledger, run)
        assert probe.ended() == f"run {run} is over (completed)"


def test_a_wait_of_too_long_asks_the_run_to_stop_and_names_the_way_back(ledger: Database, run: int) -> None:
    ledger.execute(f"SELECT pgrollout.begin_phase({run}, 'phase2', 'apply')")
    with probing(ledger, run, ITEM, abort_ms=300, limit="staging") as probe:
        ledger.execute(f"SELECT pgrollout.check_run({run})")
        with holding(ledger, ITEM):
            wait_until(lambda: probe.ask("SELECT 1 FROM pgrollout.control WHERE request = 'stop'"), what="a stop")
        with pytest.raises(psycopg2.Error) as raised:
            ledger.execute(f"SELECT pgrollout.check_run({run})")
    said = str(raised.value)
    assert "stopped by the downtime probe at" in said
    assert f"an operation on {ITEM} has waited for" in said
    assert "ms, probe_abort_ms is 300" in said
    assert "to take phase2 back: ansible-playbook rollback.yml -l staging --tags phase2" in said
    assert "ALERT: the downtime probe asked the run to stop: an operation on public.item" in lines(ledger, run)


def test_moments_of_a_phase_and_percentiles_are_exact(ledger: Database, run: int) -> None:
    ledger.execute(
        f'SELECT pgrollout.probe_begin({run}, \'{{"keep_days": 30, "interval_ms": 100, "warn_ms": 1000, '
        '"alert_ms": 30000, "tables": ["public.item"], "left_out": []}\');'
        "INSERT INTO pgrollout.phase_run (run_id, phase, direction, started_at, ended_at, status) VALUES "
        f"({run}, 'phase1', 'apply', to_timestamp(100.5), to_timestamp(103.5), 'completed'),"
        f"({run}, 'phase2', 'apply', to_timestamp(106.5), to_timestamp(107.5), 'completed')"
    )
    samples: list[dict[str, Any]] = [
        {"table": table, "second": second, "waits_ms": [second - 99.0 + n for n in range(10)], "errors": second % 2}
        for second in range(99, 110)
        for table in (ITEM, "commit")
    ]
    samples[-2]["waits_ms"][3] = 31_000.0
    for _ in range(2):  # an answer that was lost: the same samples once more
        assert ledger.value("SELECT pgrollout.probe_beat(%s, %s, false)", run, json.dumps(samples)) == ""
    found = {
        (phase, moment): values
        for phase, moment, *values in ledger.query(
            "SELECT phase, moment, operations, errors, p50_ms, p99_ms, longest_ms, extract(epoch FROM longest_at)::int"
            " FROM pgrollout.probe_phase WHERE table_name = %s",
            "all tables",
        )
    }
    assert found == {
        ("phase1", "before"): [10, 1, 4.0, 9.0, 9.0, 99],
        ("phase1", "during"): [40, 2, 7.0, 13.0, 13.0, 103],  # seconds 100 to 103: any part of a second counts
        ("phase1", "after"): [20, 1, 10.0, 15.0, 15.0, 105],
        ("phase2", "before"): [20, 1, 10.0, 15.0, 15.0, 105],
        ("phase2", "during"): [20, 1, 12.0, 17.0, 17.0, 107],
        ("phase2", "after"): [20, 1, 14.0, 31000.0, 31000.0, 109],
    }
    text = lines(ledger, run)
    assert "phase1: longest stall 13 ms (public.item at 00:01:43 UTC; before 9.0, after 15); 2 errors in 40" in text
    assert "ALERT: public.item stood still for 31.0 s at 00:01:49 UTC, after phase2" in text
    assert "WARNING: 2 of 40 operations failed (5.00 %) during phase1, over the 0.1 % allowed" in text


# ---- in nobody's way


def test_waiting_it_holds_up_no_concurrent_build(ledger: Database, run: int) -> None:
    """It waits on one table, after DDL that makes it look the table up anew; a build on another one goes through."""
    with probing(ledger, run, ITEM, OTHER) as probe:
        ddl = ledger.connect(autocommit=False)
        for _ in range(5):
            with contextlib.closing(ledger.connect(autocommit=False)) as first:
                # What waits behind the first has looked the table up before; what waits behind the second has not.
                first.cursor().execute("ALTER TABLE item ADD COLUMN extra integer")
                second = InBackground(ddl.cursor().execute, "ALTER TABLE item DROP COLUMN extra")
                wait_until(
                    lambda: probe.ask("SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted")
                )
                first.commit()
            second.result()
            wait_until(lambda: probe.ask(SNAPSHOT) is not None, what="a probe that waits")
            assert probe.ask(SNAPSHOT) is False
            with contextlib.closing(ledger.connect(options="-c statement_timeout=20s")) as builder:
                builder.cursor().execute("CREATE INDEX CONCURRENTLY other_note ON other (note)")
                builder.cursor().execute("DROP INDEX CONCURRENTLY other_note")
            assert probe.ask(SNAPSHOT) is False, "the probe was to wait all the time"
            ddl.commit()
        ddl.close()


def test_ddl_and_builds_on_the_table_itself_never_wait_for_it(ledger: Database, run: int) -> None:
    with probing(ledger, run, ITEM, OTHER, interval_ms=10):
        with contextlib.closing(ledger.connect(options="-c lock_timeout=50ms")) as session:
            for number in range(100):
                session.cursor().execute(f"ALTER TABLE item ALTER COLUMN note SET STATISTICS {number}")
        with contextlib.closing(ledger.connect(options="-c statement_timeout=20s")) as session:
            for _ in range(10):
                session.cursor().execute("CREATE INDEX CONCURRENTLY item_note ON item (note)")
                session.cursor().execute("DROP INDEX CONCURRENTLY item_note")


def test_it_leaves_nothing_behind_but_where_it_may(ledger: Database, run: int) -> None:
    ledger.execute(
        "CREATE TABLE fired (at timestamptz); CREATE TABLE bare (note text); CREATE TABLE part (id int) PARTITION BY"
        ' RANGE (id); CREATE SCHEMA odd; CREATE TABLE odd."my {} % \'table" ("the %s {} id" integer PRIMARY KEY);'
        'INSERT INTO odd."my {} % \'table" VALUES (1);'
        "CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN INSERT INTO fired VALUES (now()); RETURN NULL; END$$;"
        "CREATE TRIGGER each AFTER UPDATE ON item FOR EACH STATEMENT EXECUTE FUNCTION fire()"
    )
    tables = [ITEM, OTHER, "public.bare", "public.part", "public.none", 'odd."my {} % \'table"', "pgrollout.step"]
    written = "SELECT (SELECT max(xmin::text::bigint) FROM item), (SELECT max(xmin::text::bigint) FROM other)"
    before = ledger.query(written)
    with probing(ledger, run, *tables) as probe:
        assert probe.left_out == ["public.part is partitioned"]
        probe.sampled(2)
        found = ledger.query("SELECT DISTINCT table_name FROM pgrollout.probe_sample")
        assert {name for (name,) in found} == {ITEM, OTHER, "public.bare", 'odd."my {} % \'table"', "commit"}
        assert ledger.value("SELECT sum(errors) FROM pgrollout.probe_sample") == 0
        assert ledger.query(written) == before
    finish(ledger, run)
    with probing(ledger, claim(ledger), ITEM, OTHER, writes=[OTHER]) as probe:
        probe.sampled(2)
        ((item, other),) = ledger.query(written)
        assert (item, other > before[0][1]) == (before[0][0], True)
        assert probe.errors(OTHER) == 0
    assert ledger.query("SELECT * FROM fired") == []


def test_a_table_that_is_dropped_is_left_alone_and_named(ledger: Database, run: int) -> None:
    with probing(ledger, run, ITEM, OTHER) as probe:
        ledger.execute("ALTER TABLE other DROP COLUMN note")  # the one that it sets to itself
        probe.sampled(2)
        after = probe.errors(OTHER)
        assert after == 1  # as with any application that still names it
        ledger.execute("DROP TABLE item")
        lost = wait_until(lambda: probe.ask("SELECT left_out[1] FROM pgrollout.probe WHERE run_id = RUN"))
        assert lost.startswith("public.item since ")
        probe.sampled()
        assert "not looked at: public.item since" in lines(ledger, run)
        assert probe.errors(OTHER) == after
        assert probe.errors(ITEM) == 0


# ---- how it begins and ends


def test_it_ends_with_its_run_over_a_socket_too(ledger: Database, run: int) -> None:
    with probing(ledger, run, ITEM, login_host=ledger.socket_dir or ledger.host) as probe, holding(ledger, ITEM):
        probe.stalled(ITEM)
        finish(ledger, run, "failed")
        assert probe.ended() == f"run {run} is over (failed)"
        assert probe.longest(ITEM) > 0.4  # what was waited for at the end has waited until then
        # A session that still waits for its lock is ended by the server.
        left = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgrollout-probe/RUN'"
        wait_until(lambda: probe.ask(left) is None, what="the end of its sessions")


def test_it_ends_when_its_run_is_taken_over_or_its_time_is_up(ledger: Database, run: int) -> None:
    with probing(ledger, run, ITEM) as first:
        second = claim(ledger, "bob", replaces=run)
        assert first.ended() == f"run {run} is over (taken over)"
    with probing(ledger, second, ITEM, max_seconds=2) as probe:
        assert probe.ended() == "it has run for 2 s, the longest it may"
    assert "heard of last" not in lines(ledger, second)


def test_one_that_was_killed_is_missed(ledger: Database, run: int) -> None:
    with probing(ledger, run, ITEM):
        pass
    ledger.execute(f"SELECT pgrollout.probe_ask_to_end({run})")
    ledger.execute(f"CALL pgrollout.probe_await_end({run}, 0.1)")
    assert "WARNING: the downtime probe was heard of last at" in lines(ledger, run)


def test_what_is_wrong_is_said_in_one_sentence(ledger: Database, run: int) -> None:
    with probing(ledger, run, ITEM):
        assert f"Run {run} is not open, or has a probe already" in call(ledger, run, ITEM)["msg"]
    assert "Run 99 is not open" in call(ledger, 99, ITEM)["msg"]
    said = call(ledger, run, ITEM, login_db="nowhere")["msg"]
    assert "The downtime probe cannot work at" in said
    assert 'database "nowhere" does not exist' in said
    assert "-e probe_enabled=false goes without it" in said
    assert "interval_ms is 1000; expected 10 to 100" in call(ledger, run, ITEM, interval_ms=1000)["msg"]


@pytest.mark.parametrize(
    ("instead", "said"),
    [
        (
            "the load test of team B",
            "downtime: measured by the load test of team B, not by this run (probe_enabled is false)",
        ),
        ("", "downtime: NOT measured (probe_enabled is false, and probe_instead names nothing)"),
    ],
)
def test_who_measures_instead_is_in_the_report(ledger: Database, run: int, instead: str, said: str) -> None:
    with probing(ledger, run, ITEM, measure=False, instead=instead):
        assert lines(ledger, run) == said
        assert ledger.value("SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^pgrollout-probe'") == 1


# ---- from a playbook


def rollout(folder: Path) -> str:
    files = {
        "phase1/001_one/apply.sql": "CREATE INDEX CONCURRENTLY item_note ON item (note);",
        "phase1/001_one/rollback.sql": "DROP INDEX CONCURRENTLY item_note;",
    }
    return str(write_rollout(folder, files))


def test_a_killed_playbook_leaves_no_probe_and_no_secret_is_seen(
    ledger: Database, playbook: Playbook, tmp_path: Path
) -> None:
    (secret,) = [line.split(":")[4] for line in Path(ledger.passfile).read_text().split() if ":rollout:" in line]
    variables = {
        "rollout_dir": rollout(tmp_path / "sql"),
        "postgresql_passfile": "",
        "postgresql_password": secret,
        "backup_dir": str(tmp_path / "backups"),
    }
    with contextlib.closing(ledger.connect(autocommit=False)) as writer:
        writer.cursor().execute("UPDATE item SET note = note WHERE id = 1")
        started = playbook.start("migrate.yml", "-vvv", database=ledger, variables=variables)
        building = "SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database()"

        def there() -> bool:
            assert started.process.poll() is None, started.output
            return bool(ledger.query(building))

        wait_until(there, 300, "a build behind the writer")
        pid = ledger.value("SELECT pid FROM pgrollout.probe WHERE ended_at IS NULL")
        for name in ("cmdline", "environ"):
            assert secret.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
        assert Path(f"/proc/{pid}/comm").read_text() == "pgrollout-probe\n"
        assert os.getsid(pid) != os.getsid(started.pid)
        started.kill()
        seen = ledger.value("SELECT count(*) FROM pgrollout.probe_sample")
        wait_until(lambda: ledger.value("SELECT count(*) FROM pgrollout.probe_sample") > seen + 4)
        assert lives(pid), "the session that outlived its playbook is measured on"
    wait_until(lambda: not lives(pid), 30, "the end of the probe")
    assert secret not in started.output
    reason = ledger.value("SELECT reason FROM pgrollout.probe")
    assert reason == "the controller of run 1 is gone and no session works for it"


@pytest.mark.ci
def test_the_report_of_a_run_and_the_switch(ledger: Database, playbook: Playbook, tmp_path: Path) -> None:
    variables = {"rollout_dir": rollout(tmp_path / "sql"), "backup_dir": str(tmp_path / "backups")}
    run = playbook("migrate.yml", database=ledger, variables=variables)
    assert "downtime probe: 1 table and the commit, each 10 times a second" in run.stdout
    assert "phase1: longest stall" in run.stdout
    assert ledger.value("SELECT reason FROM pgrollout.probe WHERE run_id = 1") == "the work is done"
    back = playbook(
        "rollback.yml", "--tags", "full", "-e", "rollback_confirm=local", database=ledger, variables=variables
    )
    assert "phase1 (rollback): longest stall" in back.stdout
    off = ("-e", "probe_enabled=false", "-e", "probe_instead=telescope")
    assert (
        "downtime: measured by telescope" in playbook("migrate.yml", *off, database=ledger, variables=variables).stdout
    )
    assert ledger.value("SELECT count(*) FROM pgrollout.probe WHERE measures") == 2


@pytest.mark.ci
def test_a_phase_in_which_the_application_waits_too_long_is_taken_back(
    ledger: Database, playbook: Playbook, tmp_path: Path
) -> None:
    ledger.execute("INSERT INTO item (note) SELECT NULL FROM generate_series(1, 2000)")
    files = {
        "phase1/001_one/apply.sql": "CREATE INDEX CONCURRENTLY item_note ON item (note);",
        "phase1/001_one/rollback.sql": "DROP INDEX CONCURRENTLY item_note;",
        "phase2/002_two/apply.sql": "-- Step: fill\n-- Backfill: by id\n-- New rows: left\n"
        "UPDATE item SET note = 'filled' WHERE note IS NULL;",
        "phase2/002_two/rollback.sql": "-- Restore: fill\nSELECT FROM restored;",
    }
    variables = {
        "rollout_dir": str(write_rollout(tmp_path / "sql", files)),
        "backup_dir": str(tmp_path / "backups"),
        "apply_batch_rows": 100,
        "apply_batch_max_rows": 100,
    }
    filled = "SELECT count(*) FROM item WHERE note = 'filled'"
    with contextlib.closing(ledger.connect(autocommit=False)) as writer:
        started = playbook.start("migrate.yml", "-e", "probe_abort_ms=300", database=ledger, variables=variables)

        def there(question: str) -> bool:
            assert started.process.poll() is None, started.output
            return bool(ledger.value(question))

        begun = "SELECT count(*) FROM pgrollout.phase_run WHERE phase = 'phase2'"
        wait_until(lambda: there("SELECT to_regclass('pgrollout.phase_run')") and there(begun), 300, "the second phase")
        writer.cursor().execute("SELECT FROM item WHERE id = 1500 FOR SHARE")
        waits = "SELECT count(*) FROM pgrollout.run WHERE waiting_for IS NOT NULL"
        wait_until(lambda: there(waits), 300, "a batch that waits for the row")
        assert ledger.value(filled) > 0
        writer.cursor().execute("LOCK TABLE item IN ACCESS EXCLUSIVE MODE")
        stop = "SELECT count(*) FROM pgrollout.control WHERE request = 'stop'"
        wait_until(lambda: there(stop), 300, "the probe to ask for a stop")
    run = started.wait()
    assert run.rc != 0
    assert "stopped by the downtime probe" in words(run)
    assert "demo: phase2 is taken back, because the application waited" in words(run), run.output
    assert ledger.query("SELECT kind, status FROM pgrollout.run ORDER BY run_id") == [
        ("migrate", "failed"),
        ("rollback", "completed"),
    ]
    assert ledger.value(filled) == 0
    assert ledger.value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'item_note'::regclass")
    again = playbook("migrate.yml", database=ledger, variables=variables)
    assert again.rc == 0
    assert ledger.value(filled) == 2000
