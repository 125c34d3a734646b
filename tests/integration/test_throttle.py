"""A backfill stands back while the server has enough to do, says why, and goes on: each limit, on a server of its own.

A real standby whose replay is stopped, WAL that a slot or a failing archive keeps, dead rows that a snapshot keeps.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from demo.server import MIGRATION_ROLE, Server
from tests.conftest import Database
from tests.support.ledger import InBackground, carry_out, claim, install, settings, steps_of, transaction
from tests.support.standby import Standby
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 20_000
FILL = "-- Step: fill\n-- Backfill: by id\nUPDATE item AS t SET visits = t.visits + 1;"
# Batches small enough that a backfill looks at its limits many times, and none of the default limits.
SLOW = {"batch_rows": 1, "batch_max_rows": 1}
FREE = {
    "throttle_lag_s": 0,
    "throttle_lag_bytes": 0,
    "throttle_slot_bytes": 0,
    "throttle_archive_files": 0,
    "throttle_dead_ratio": 0,
    "throttle_active_backends": 0,
}


def administer(server: Server, *statements: str) -> None:
    with contextlib.closing(server.connect()) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@pytest.fixture(scope="module")
def primary() -> Iterator[Server]:
    """A server that archives (successfully, at first) and has room for a standby."""
    with tempfile.TemporaryDirectory(prefix="pgrollout-") as folder:
        made = Server(folder, fsync=False)
        try:
            made.start()
            administer(made, "ALTER SYSTEM SET archive_mode = on", "ALTER SYSTEM SET archive_command = 'true'")
            made.restart()
            yield made
        finally:
            made.stop("immediate")


@pytest.fixture
def standby(primary: Server) -> Iterator[Standby]:
    with tempfile.TemporaryDirectory(prefix="pgrollout-") as folder:
        made = Standby(folder, primary, "reporting")
        try:
            made.start()
            streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
            # One whose replay is stopped before does not begin to.
            wait_until(lambda: Database("postgres", primary).value(streaming), what="a standby that streams")
            yield made
        finally:
            made.stop("immediate")


@pytest.fixture
def ledger(primary: Server) -> Iterator[Database]:
    """A database of the migration role on the primary: the ledger, and a table of 20,000 rows."""
    administer(primary, f"CREATE DATABASE throttled OWNER {MIGRATION_ROLE}")
    database = Database("throttled", primary)
    install(database)
    database.execute(
        "CREATE TABLE item (id integer PRIMARY KEY, visits integer NOT NULL DEFAULT 0);"
        f"INSERT INTO item SELECT generate_series(1, {ROWS})"
    )
    yield database
    administer(primary, "DROP DATABASE throttled WITH (FORCE)")


@pytest.fixture
def run(ledger: Database) -> int:
    return claim(ledger)


def reasons(database: Database, *held: str, **limits: float | str) -> dict[str, str]:
    """What throttle() has against a backfill of item: {limit: reason}."""
    given = json.dumps(settings(**(FREE | limits)))
    return dict(database.query("SELECT * FROM pgrollout.throttle('item', %s::jsonb, %s::text[])", given, list(held)))


def begin(database: Database, run: int, folder: Path, **limits: float | str) -> InBackground:
    """A backfill at work, with these limits and no others."""
    return InBackground(carry_out, database, run, steps_of(folder, FILL), **(FREE | limits))


def waiting_for(database: Database) -> str:
    return database.value("SELECT waiting_for FROM pgrollout.run WHERE ended_at IS NULL") or ""


def visited(database: Database) -> Any:
    return database.value("SELECT coalesce(sum(rows_changed), 0) FROM pgrollout.cursor")


def assert_each_row_once(database: Database, rows: int = ROWS) -> None:
    assert database.query("SELECT visits, count(*) FROM item GROUP BY 1") == [(1, rows)]
    assert database.query("SELECT count(*), count(DISTINCT key) FROM pgrollout.row_change") == [(rows, rows)]


def assert_paused_then_finished(
    database: Database, work: InBackground, reason: str, cure: Callable[[], Any], rows: int = ROWS
) -> None:
    """It waits with this reason, does nothing meanwhile, goes on once cured, and has changed each row once."""
    wait_until(lambda: waiting_for(database) or not work.is_alive(), what="a pause")
    if not work.is_alive():
        work.result()
    assert re.search(reason, waiting_for(database)), waiting_for(database)
    done = visited(database)
    looked = "SELECT xmin::text::bigint FROM pgrollout.run WHERE ended_at IS NULL"
    first = database.value(looked)
    wait_until(lambda: database.value(looked) > first, what="another look at the limits")
    assert visited(database) == done < rows
    lines = [line for (line,) in database.query("SELECT line FROM pgrollout.status()")]
    assert re.search(f"; waits since [0-9:]{{8}} UTC for {reason.strip('^$')}$", lines[0])
    cure()
    work.result()
    assert_each_row_once(database, rows)
    assert waiting_for(database) == ""
    events = database.query(
        "SELECT what, detail FROM pgrollout.event WHERE step_id = '001_test/fill' ORDER BY event_id"
    )
    assert [what for what, _ in events] == ["waiting", "resumed"]
    assert re.search(reason, events[0][1])


# ---- standbys


def test_a_backfill_stands_back_behind_a_standby_whose_replay_is_stopped(
    ledger: Database, run: int, standby: Standby, tmp_path: Path
) -> None:
    limit = 2 * 1024**2
    administer(standby, "SELECT pg_wal_replay_pause()")
    work = begin(ledger, run, tmp_path, throttle_lag_bytes=limit, **SLOW)
    behind = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) FROM pg_stat_replication"

    def resume() -> None:
        # Between half the limit and the limit one that does not wait would not begin to, and one that waits goes on to.
        lag = int(ledger.value(behind))
        assert lag > limit
        between = lag * 1.5
        assert reasons(ledger, throttle_lag_bytes=between) == {}
        assert reasons(ledger, "throttle_lag_s", throttle_lag_bytes=between) == {}
        assert list(reasons(ledger, "throttle_lag_bytes", throttle_lag_bytes=between)) == ["throttle_lag_bytes"]
        administer(standby, "SELECT pg_wal_replay_resume()")

    assert_paused_then_finished(ledger, work, r"^paused: standby reporting is \d+ (kB|MB) behind$", resume)


def test_a_role_that_cannot_see_the_standbys_is_held_until_it_may(
    ledger: Database, run: int, standby: Standby, tmp_path: Path
) -> None:
    assert standby.pid()
    administer(ledger.server, f"REVOKE pg_monitor FROM {MIGRATION_ROLE}")
    try:
        work = begin(ledger, run, tmp_path, **settings())
        assert_paused_then_finished(
            ledger,
            work,
            f"^paused: what waits for the archive cannot be read; GRANT pg_monitor TO {MIGRATION_ROLE}; "
            f"how far the standbys are cannot be read; GRANT pg_monitor TO {MIGRATION_ROLE}$",
            lambda: administer(ledger.server, f"GRANT pg_monitor TO {MIGRATION_ROLE}"),
        )
    finally:
        administer(ledger.server, f"GRANT pg_monitor TO {MIGRATION_ROLE}")


def test_who_sets_no_limit_needs_no_privilege(ledger: Database, run: int, tmp_path: Path) -> None:
    administer(ledger.server, f"REVOKE pg_monitor FROM {MIGRATION_ROLE}")
    try:
        assert reasons(ledger) == {}
        assert reasons(ledger, throttle_active_backends=50) == {
            "throttle_active_backends": "how many sessions are active cannot be read; "
            f"GRANT pg_monitor TO {MIGRATION_ROLE}"
        }
        carry_out(ledger, run, steps_of(tmp_path, FILL), **FREE)
    finally:
        administer(ledger.server, f"GRANT pg_monitor TO {MIGRATION_ROLE}")
    assert_each_row_once(ledger)


# ---- what the primary keeps


def test_a_slot_that_nobody_reads(ledger: Database, run: int, tmp_path: Path) -> None:
    administer(ledger.server, "SELECT pg_create_physical_replication_slot('dead', true)")
    try:
        work = begin(ledger, run, tmp_path, throttle_slot_bytes=2 * 1024**2)
        assert_paused_then_finished(
            ledger,
            work,
            r"^paused: replication slot dead, which nobody reads, keeps \d+ (kB|MB) of WAL$",
            lambda: administer(ledger.server, "SELECT pg_drop_replication_slot('dead')"),
        )
    finally:
        administer(
            ledger.server,
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'dead'",
        )


def archive(server: Server, command: str) -> None:
    administer(server, f"ALTER SYSTEM SET archive_command = '{command}'", "SELECT pg_reload_conf()")


def test_an_archive_that_fails(ledger: Database, run: int, tmp_path: Path) -> None:
    archive(ledger.server, "false")
    for _ in range(4):
        administer(ledger.server, "CREATE TABLE t (); DROP TABLE t", "SELECT pg_switch_wal()")

    def cure() -> None:
        archive(ledger.server, "true")
        administer(ledger.server, "SELECT pg_switch_wal()")

    work = begin(ledger, run, tmp_path, throttle_archive_files=3)
    try:
        assert_paused_then_finished(ledger, work, r"^paused: [4-9] WAL files wait to be archived$", cure)
    finally:
        archive(ledger.server, "true")


def test_dead_rows_that_an_old_snapshot_keeps(ledger: Database, run: int, tmp_path: Path) -> None:
    rows = 110_000
    ledger.execute(
        "ALTER TABLE item SET (autovacuum_enabled = false);"
        f"INSERT INTO item SELECT generate_series({ROWS + 1}, {rows}); ANALYZE item"
    )
    with transaction(ledger, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM item", "report") as old:
        pid = old.info.backend_pid
        ledger.execute("UPDATE item SET visits = visits")
        ledger.execute("VACUUM item")  # removes nothing, and counts what it could not remove
        work = begin(ledger, run, tmp_path, throttle_dead_ratio=0.5)

        def cure() -> None:
            old.commit()
            ledger.execute("VACUUM item")

        assert_paused_then_finished(
            ledger,
            work,
            rf"^paused: item has \d{{6}} dead rows that vacuum has not removed; autovacuum is off: VACUUM item; "
            rf"the oldest transaction is pid {pid} \(user rollout, application 'report'\), open for \d\d:\d\d:\d\d$",
            cure,
            rows,
        )


def test_sessions_that_are_active(ledger: Database) -> None:
    with contextlib.closing(ledger.connect("hive_app")) as one, contextlib.closing(ledger.connect("hive_app")) as two:
        busy = [InBackground(each.cursor().execute, "SELECT pg_sleep(60)") for each in (one, two)]
        wait_until(lambda: reasons(ledger, throttle_active_backends=1) != {})
        assert reasons(ledger, throttle_active_backends=1)["throttle_active_backends"] == "2 sessions are active"
        assert reasons(ledger, throttle_active_backends=2) == {}
        assert list(reasons(ledger, "throttle_active_backends", throttle_active_backends=3)) == [
            "throttle_active_backends"
        ]
        one.cancel()
        two.cancel()
        for each in busy:
            with pytest.raises(psycopg2.errors.QueryCanceled):
                each.result()


BUSY = "SELECT count(*) FROM (SELECT generate_series(1, 10000000000)) AS n"
RESTING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pgrollout.backfill%' AND wait_event = 'PgSleep'"


def rest(database: Database, **changes: float | str) -> float:
    """How long a backfill rests after a batch of 100 ms, in ms."""
    return float(database.value("SELECT pgrollout.rest_ms(%s, 100)", json.dumps(settings(**changes))))


def test_it_rests_for_each_session_that_is_at_work(ledger: Database, run: int, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        holder, waiter, engine, *others = (
            stack.enter_context(contextlib.closing(ledger.connect("hive_app"))) for _ in range(5)
        )
        for session in (waiter, engine, *others):
            stack.callback(session.cancel)  # or close() would wait for its statement
        holder.cursor().execute("SELECT pg_advisory_lock(1)")
        engine.cursor().execute("SET application_name = 'pgrollout/1/x'")
        work = [
            InBackground(waiter.cursor().execute, "SELECT pg_advisory_lock(1)"),
            InBackground(engine.cursor().execute, BUSY),
            *(InBackground(other.cursor().execute, BUSY) for other in others),
        ]
        wait_until(lambda: rest(ledger) == 100, what="a rest for two, not for those that wait or are its own")
        assert rest(ledger, rest_per_session=0.25) == 50
        assert rest(ledger, rest_max=0.3) == 30
        assert rest(ledger, rest_max=0) == 0
        backfill = begin(ledger, run, tmp_path, rest_per_session=2, rest_max=4)
        wait_until(lambda: ledger.value(RESTING) and visited(ledger) > 0, what="a backfill that rests")
        assert waiting_for(ledger) == ""
    for each in work:
        with contextlib.suppress(psycopg2.Error):
            each.result()
    backfill.result()
    assert_each_row_once(ledger)
    assert rest(ledger) == 0


# ---- a query of the user's own


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("SELECT 'the night run is at work'", "the night run is at work"),
        ("SELECT NULL", None),
        ("SELECT ''", None),
        ("SELECT 'never' WHERE false", None),
        ("", None),
        ("SELECT 1/0", "apply_throttle_query fails: division by zero"),
        ("SELECT '50 % is too much' FROM nothing", 'apply_throttle_query fails: relation "nothing" does not exist'),
    ],
)
def test_a_query_of_the_users(ledger: Database, query: str, reason: str | None) -> None:
    assert reasons(ledger, throttle_query=query) == ({"throttle_query": reason} if reason else {})


def test_a_backfill_stands_back_as_long_as_the_users_query_says(ledger: Database, run: int, tmp_path: Path) -> None:
    ledger.execute("CREATE TABLE night (job text); INSERT INTO night VALUES ('billing')")
    work = begin(
        ledger,
        run,
        tmp_path,
        throttle_query="SELECT job || ' runs, by 50 %' FROM night",
    )
    cure = lambda: ledger.execute("DELETE FROM night")  # noqa: E731
    assert_paused_then_finished(ledger, work, "^paused: billing runs, by 50 %$", cure)


def test_one_who_waits_too_long_gives_up_and_the_next_run_goes_on(ledger: Database, run: int, tmp_path: Path) -> None:
    steps = steps_of(tmp_path, FILL)
    # It begins to speak once a thousand rows are done.
    query = "SELECT 'the disk is full' FROM pgrollout.cursor WHERE rows_changed > 1000"
    # A row that somebody holds keeps it at work until it has looked.
    held = transaction(ledger, "SELECT FROM item WHERE id = 3210 FOR UPDATE")
    with held, pytest.raises(psycopg2.Error) as error:
        carry_out(ledger, run, steps, **(FREE | SLOW), throttle_query=query, throttle_give_up_s=1)
    assert error.value.diag.message_primary == "stood back for 1 s; the disk is full"
    done = visited(ledger)
    assert 1000 < done < ROWS
    assert ledger.query("SELECT state, rows, message FROM pgrollout.step") == [
        ("failed", done, "stood back for 1 s; the disk is full")
    ]
    carry_out(ledger, run, steps, **FREE)
    assert_each_row_once(ledger)


def test_each_limit_has_its_own_way_back(ledger: Database) -> None:
    """A slot at 60 % of its limit does not keep a backfill that something else has made wait."""
    administer(ledger.server, "SELECT pg_create_physical_replication_slot('slow', true)")
    try:
        ledger.execute("UPDATE item SET visits = visits")
        kept = int(
            ledger.value("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) FROM pg_replication_slots LIMIT 1")
        )
        assert reasons(ledger, "throttle_query", throttle_slot_bytes=kept * 1.6) == {}
        assert list(reasons(ledger, "throttle_slot_bytes", throttle_slot_bytes=kept * 1.6)) == ["throttle_slot_bytes"]
    finally:
        administer(ledger.server, "SELECT pg_drop_replication_slot('slow')")


@pytest.mark.parametrize("request_", ["stop", "pause"])
def test_an_operators_word_counts_while_a_limit_holds(
    ledger: Database, run: int, tmp_path: Path, request_: str
) -> None:
    """Stop ends the waiting; a pause in it is not counted against the limit's patience."""
    ledger.execute("CREATE TABLE night (job text); INSERT INTO night VALUES ('billing')")
    query = "SELECT job FROM night"
    work = begin(ledger, run, tmp_path, throttle_query=query, throttle_give_up_s=4)
    wait_until(lambda: waiting_for(ledger) == "paused: billing")
    ledger.execute("SELECT pgrollout.steer(%s, 'ben', 'lunch')", request_)
    if request_ == "stop":
        with pytest.raises(psycopg2.Error, match=r"stopped by ben at \d\d:\d\d:\d\d UTC: lunch"):
            work.result()
        return
    wait_until(lambda: re.match(r"paused by ben at \d\d:\d\d:\d\d UTC: lunch$", waiting_for(ledger)))
    began = "SELECT clock_timestamp() - at > interval '5 seconds' FROM pgrollout.control"
    wait_until(lambda: ledger.value(began), what="a pause longer than the limit's patience")
    ledger.execute("SELECT pgrollout.steer('resume', 'ben', 'back')")
    wait_until(lambda: waiting_for(ledger) == "paused: billing")
    ledger.execute("DELETE FROM night")
    work.result()
    assert_each_row_once(ledger)
