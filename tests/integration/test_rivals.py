"""The runner against what else goes on in a database: dumps, snapshots, prepared transactions, autovacuum, deadlocks.

Each time: who is waited for is named, the application is not held up behind the run, the step is done once.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from demo.server import Server
from pgrollout.migration.plan import plan_rollback
from pgrollout.rollout.load import load_rollout
from tests.conftest import Database, Databases
from tests.support.customer import Customer
from tests.support.ledger import InBackground, carry_out, claim, finish, install, settings, transaction
from tests.support.plans import facts_of, plan_of, steps_of_plan
from tests.support.probe import probing
from tests.support.rollouts import rollout_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from _pytest.fixtures import FixtureRequest

ROOT = Path(__file__).resolve().parents[2]
ADD = "ALTER TABLE item ADD COLUMN mood text;"
DROP = "DROP INDEX CONCURRENTLY item_note;"
BUILD = "CREATE INDEX CONCURRENTLY item_state ON item (state);"
NO_SLOWER_MS = 100  # beside the lock timeout in force: what an attempt may take besides its wait


def prepare(database: Database) -> Database:
    install(database)
    database.execute(
        "CREATE TABLE item (id integer PRIMARY KEY, note text, state text NOT NULL DEFAULT 'new');"
        "INSERT INTO item (id) SELECT generate_series(1, 1000);"
        "CREATE INDEX item_note ON item (note);"
        "CREATE TABLE other (id integer PRIMARY KEY); INSERT INTO other VALUES (1)"
    )
    return database


@pytest.fixture
def ledger(empty_database: Database) -> Database:
    return prepare(empty_database)


def planned(database: Database, tmp_path: Path, sql: str) -> list[dict[str, Any]]:
    """The steps as planned for this database: of a drop only its catalog knows the table."""
    return steps_of_plan(plan_of(database, rollout_of(tmp_path, {"001_test": sql})))


def waiting_for(database: Database, run: int) -> str:
    """Wait until the run says whom it waits for; what it says."""
    found = "SELECT waiting_for FROM pgrollout.run WHERE run_id = %s"
    return str(wait_until(lambda: database.value(found, run), what="waiting_for"))


def assert_goes_on(customer: Customer) -> None:
    served = customer.served
    wait_until(lambda: customer.served > served + 100, what="an application that goes on")


def assert_held_up_no_longer_than_a_timeout(customer: Customer, database: Database, run: int) -> None:
    """Waits for a table, against the lock timeout of the attempts that the run made; those for a row are only told."""
    attempts = database.value("SELECT max(attempts) FROM pgrollout.step WHERE run_id = %s", run)
    given = settings()
    timeout = min(given["lock_timeout_ms"] * 2 ** (attempts // 10), given["lock_timeout_max_ms"])
    ratio = customer.behind_us_ms / timeout
    said = f"longest wait behind {customer.behind}: {customer.behind_us_ms:.0f} ms, {ratio:.2f} of the timeout in force"
    waits = database.query("SELECT step_id, lock_wait_ms, lock_hold_ms FROM pgrollout.step WHERE lock_hold_ms > 20")
    print(said, waits, f"longest wait for a row: {customer.row_wait}")
    assert customer.errors == {}
    assert customer.behind_us_ms <= timeout + NO_SLOWER_MS, f"{said}; lock waits and holds: {waits}"


def assert_done_once(database: Database, run: int) -> None:
    """The run's only step is done, and what it waited for is no longer said."""
    assert database.query("SELECT state FROM pgrollout.step WHERE run_id = %s", run) == [("done",)]
    assert database.value("SELECT waiting_for FROM pgrollout.run WHERE run_id = %s", run) is None


def has_column(database: Database) -> bool:
    found = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'item'::regclass AND attname = 'mood')"
    return bool(database.value(found))


def validity(database: Database, index: str = "item_note") -> bool | None:
    """Whether the index is valid; None where there is none."""
    found = database.query("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", index)
    return bool(found[0][0]) if found else None


# ---- an old snapshot


def test_ddl_does_not_wait_for_an_old_snapshot_of_another_table(ledger: Database, tmp_path: Path) -> None:
    run = claim(ledger)
    snapshot = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM other"
    with transaction(ledger, snapshot), Customer(ledger, "item") as customer:
        carry_out(ledger, run, planned(ledger, tmp_path, ADD), blocker_age_ms=0)
    assert_done_once(ledger, run)
    assert ledger.query("SELECT detail FROM pgrollout.event WHERE what = 'waiting'") == []
    assert_held_up_no_longer_than_a_timeout(customer, ledger, run)


def test_nobody_waits_behind_a_build_that_waits_for_an_old_snapshot(ledger: Database, tmp_path: Path) -> None:
    run = claim(ledger)
    snapshot = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM other"
    with (
        transaction(ledger, snapshot, "report-tool") as report,
        probing(ledger, run, measure=False),
        Customer(ledger, "item") as customer,
    ):
        work = InBackground(carry_out, ledger, run, planned(ledger, tmp_path, BUILD))
        assert f"pid {report.info.backend_pid} (user rollout, application 'report-tool'" in waiting_for(ledger, run)
        assert_goes_on(customer)
        assert validity(ledger, "item_state") is False
        report.commit()
        work.result()
    assert validity(ledger, "item_state") is True
    assert ledger.query("SELECT state FROM pgrollout.step WHERE run_id = %s", run) == [("done",)]
    assert_held_up_no_longer_than_a_timeout(customer, ledger, run)


# ---- a dump


@pytest.fixture
def dump(ledger: Database) -> Iterator[subprocess.Popen[bytes]]:
    """pg_dump in the middle of a table, its reader not reading."""
    ledger.execute("INSERT INTO item SELECT i, repeat('x', 2000) FROM generate_series(10001, 20000) AS i")
    program = Path(ledger.variables()["postgresql_bin_dir"]) / "pg_dump"
    place = f"host={ledger.host} port={ledger.port} dbname={ledger.name} user=rollout passfile={ledger.passfile}"
    process = subprocess.Popen([str(program), "-d", place, "-t", "item"], stdout=subprocess.PIPE)
    stuck = (
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pg_dump' AND wait_event = 'ClientWrite'"
        f" AND xact_start < clock_timestamp() - interval '{settings()['blocker_age_ms']} ms'"
    )
    wait_until(lambda: ledger.query(stuck), what="a dump that is stuck")
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.parametrize("sql", [ADD, DROP], ids=["alter", "drop"])
def test_a_dump_is_named_and_completes(
    ledger: Database, dump: subprocess.Popen[bytes], tmp_path: Path, sql: str
) -> None:
    run = claim(ledger)
    with Customer(ledger, "item") as customer:
        work = InBackground(carry_out, ledger, run, planned(ledger, tmp_path, sql))
        said = waiting_for(ledger, run)
        assert "(user rollout, application 'pg_dump', active, transaction open for" in said
        assert "AccessShareLock on public.item" in said
        assert_goes_on(customer)
        assert work.is_alive()
        assert not has_column(ledger)
        assert validity(ledger) is True  # a drop has not begun
        text, _ = dump.communicate(timeout=60)
        work.result()
    assert dump.returncode == 0
    assert b"PostgreSQL database dump complete" in text
    assert_done_once(ledger, run)
    assert (has_column(ledger), validity(ledger)) == ((True, True) if sql == ADD else (False, None))
    assert_held_up_no_longer_than_a_timeout(customer, ledger, run)


# ---- a server that knows prepared transactions, and whose tables are soon old


FREEZE_MAX_AGE = 100_000  # the least that PostgreSQL takes


@pytest.fixture(scope="module")
def old_server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="pgrollout-") as folder:
        made = Server(folder, fsync=False)
        try:
            made.start()
            with contextlib.closing(made.connect()) as connection, connection.cursor() as cursor:
                for setting in (
                    "max_prepared_transactions = 5",
                    f"autovacuum_freeze_max_age = {FREEZE_MAX_AGE}",
                    "autovacuum_naptime = '1s'",
                    "autovacuum_vacuum_cost_delay = 0",
                    "log_autovacuum_min_duration = 0",
                ):
                    cursor.execute(f"ALTER SYSTEM SET {setting}")
            made.restart()
            yield made
        finally:
            made.stop("immediate")


@pytest.fixture
def old(old_server: Server, request: FixtureRequest) -> Iterator[Database]:
    databases = Databases(old_server, request)
    yield prepare(databases.clone(source="template0"))
    databases.drop()


@pytest.fixture
def prepared(old: Database) -> Iterator[str]:
    """The name of a prepared transaction that has changed a row which the application does not touch."""
    with contextlib.closing(old.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; UPDATE item SET state = 'paid' WHERE id = 1000")
        cursor.execute("PREPARE TRANSACTION 'order-17'")
    yield "order-17"
    if old.value("SELECT count(*) FROM pg_prepared_xacts"):
        old.execute("ROLLBACK PREPARED 'order-17'")


@pytest.mark.parametrize("sql", [ADD, DROP, BUILD], ids=["alter", "drop", "build"])
def test_a_prepared_transaction_is_named(old: Database, prepared: str, tmp_path: Path, sql: str) -> None:
    run = claim(old)
    with probing(old, run, measure=False), Customer(old, "item") as customer:
        work = InBackground(carry_out, old, run, planned(old, tmp_path, sql), blocker_age_ms=0)
        assert f"prepared transaction '{prepared}' of rollout" in waiting_for(old, run)
        assert_goes_on(customer)
        assert work.is_alive()
        old.execute(f"ROLLBACK PREPARED '{prepared}'")
        work.result()
    assert old.query("SELECT state FROM pgrollout.step WHERE run_id = %s", run) == [("done",)]
    assert has_column(old) == (sql == ADD)
    assert validity(old) is (None if sql == DROP else True)
    assert validity(old, "item_state") is (True if sql == BUILD else None)
    assert_held_up_no_longer_than_a_timeout(customer, old, run)


def test_giving_up_on_a_prepared_transaction_names_it(old: Database, prepared: str, tmp_path: Path) -> None:
    run = claim(old)
    with pytest.raises(psycopg2.errors.LockNotAvailable, match=f"blocked by prepared transaction '{prepared}' of"):
        carry_out(old, run, planned(old, tmp_path, ADD), give_up_s=1)
    assert old.query("SELECT state FROM pgrollout.step WHERE run_id = %s", run) == [("failed",)]
    assert not has_column(old)


# ---- autovacuum

SLOW = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1"
VACUUMED = (
    "SELECT query FROM pg_stat_activity WHERE backend_type = 'autovacuum worker' AND query ~ 'VACUUM.*public.item'"
)


def test_an_autovacuum_against_wraparound_is_waited_for(old: Database, tmp_path: Path) -> None:
    old.execute(f"ALTER TABLE item SET ({SLOW})")
    # A subtransaction that writes has a transaction id of its own.
    spend = "BEGIN INSERT INTO spent VALUES (i); EXCEPTION WHEN unique_violation THEN NULL; END"
    loop = f"FOR i IN 1..{FREEZE_MAX_AGE + 1000} LOOP {spend}; END LOOP"
    old.execute(f"CREATE UNLOGGED TABLE spent (i integer); DO $$ BEGIN {loop}; END $$")
    run = claim(old)
    query = wait_until(lambda: old.query(VACUUMED), what="an autovacuum of the table")
    assert "(to prevent wraparound)" in query[0][0]
    with Customer(old, "item") as customer:
        work = InBackground(carry_out, old, run, planned(old, tmp_path, ADD))
        said = waiting_for(old, run)
        assert re.search(r"its query: autovacuum: VACUUM( ANALYZE)? public\.item \(to prevent wraparound\)", said)
        assert "ShareUpdateExclusiveLock on public.item" in said
        work.result(300)
    assert_done_once(old, run)
    # It was not cut off, which would have made the table older still.
    assert old.value("SELECT age(relfrozenxid) FROM pg_class WHERE oid = 'item'::regclass") < FREEZE_MAX_AGE
    assert "deadlock detected" not in old.server.log.read_text()
    assert_held_up_no_longer_than_a_timeout(customer, old, run)


def test_an_ordinary_autovacuum_gives_way(old: Database, tmp_path: Path) -> None:
    old.execute(
        f"ALTER TABLE item SET ({SLOW}, autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0);"
        "UPDATE item SET note = repeat('x', 1000)"
    )
    run = claim(old)
    query = wait_until(lambda: old.query(VACUUMED), what="an autovacuum of the table")
    assert "wraparound" not in query[0][0]
    before = old.server.log.read_text().count("canceling autovacuum task")
    with Customer(old, "item") as customer:
        carry_out(old, run, planned(old, tmp_path, ADD))
    assert_done_once(old, run)
    assert old.server.log.read_text().count("canceling autovacuum task") > before
    assert_held_up_no_longer_than_a_timeout(customer, old, run)


# ---- a deadlock


@pytest.mark.parametrize(
    ("lock_timeout_ms", "deadlock_timeout"), [(50, "1s"), (500, "200ms")], ids=["by the timeout", "by the server"]
)
def test_a_deadlock_is_ended_and_the_step_goes_again(
    ledger: Database, tmp_path: Path, lock_timeout_ms: int, deadlock_timeout: str
) -> None:
    """The step has the first table and asks for the second; the application has that and asks for the first."""
    with contextlib.closing(ledger.server.connect(ledger.name)) as superuser:
        setting = f"ALTER DATABASE {ledger.name} SET deadlock_timeout = '{deadlock_timeout}'"
        superuser.cursor().execute(setting)
    run = claim(ledger)
    steps = planned(ledger, tmp_path, "ALTER TABLE item ADD COLUMN other_id integer REFERENCES other;")
    assert [lock["relation"] for lock in steps[0]["locks"]] == ["public.item", "public.other"]
    limits = {"lock_timeout_ms": lock_timeout_ms, "lock_timeout_max_ms": lock_timeout_ms}
    asks = "SELECT 1 FROM pg_locks WHERE relation = 'other'::regclass AND NOT granted"
    blocked = "SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted"
    crossed, lost = False, 0
    with (
        contextlib.closing(ledger.connect()) as looker,
        contextlib.closing(ledger.connect(autocommit=False)) as application,
    ):
        look, cursor = looker.cursor(), application.cursor()

        def seen(query: str, *args: Any) -> bool:
            look.execute(query, args)
            return look.fetchone() is not None

        cursor.execute("UPDATE other SET id = id")
        work = InBackground(carry_out, ledger, run, steps, blocker_age_ms=3_600_000, **limits)
        while not crossed:
            wait_until(lambda: seen(asks), what="a step that asks for the second table")
            wish = InBackground(cursor.execute, "UPDATE item SET state = 'x' WHERE id = 1")
            while wish.is_alive():
                crossed = crossed or seen(blocked, application.info.backend_pid)
            try:
                wish.result()
            except psycopg2.errors.DeadlockDetected:
                lost += 1
                application.rollback()
                cursor.execute("UPDATE other SET id = id; UPDATE item SET state = 'x' WHERE id = 1")
            if not crossed:
                application.rollback()
                cursor.execute("UPDATE other SET id = id")
        application.commit()
        work.result()
    print(f"the application lost {lost} transactions")
    assert lost <= (1 if deadlock_timeout == "200ms" else 0)
    assert_done_once(ledger, run)
    assert ledger.value("SELECT attempts FROM pgrollout.step") >= 2
    assert ledger.value("SELECT state FROM item WHERE id = 1") == "x"
    keys = "SELECT count(*) FROM pg_constraint WHERE conrelid = 'item'::regclass AND contype = 'f'"
    assert ledger.value(keys) == 1


# ---- a concurrent drop that is cut off


HALFWAY = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(%s) AND NOT indisvalid"


def cut_off_a_drop(database: Database, run: int, step: dict[str, Any], index: str, halfway: bool) -> None:
    """Cancels the drop while it waits for a reader: before its statement (the index stays good), or in its middle."""
    with transaction(database, "SELECT FROM item LIMIT 1", "report-tool"):
        # A reader that counts as in the way is waited for before the drop; one that does not, by the drop itself.
        work = InBackground(carry_out, database, run, [step], blocker_age_ms=3_600_000 if halfway else 0)
        if halfway:
            wait_until(lambda: database.query(HALFWAY, index), what="a drop in its middle")
        else:
            assert "application 'report-tool'" in waiting_for(database, run)
        assert validity(database, index) is not halfway
        database.query("SELECT pg_cancel_backend(pid) FROM pgrollout.lock_holder()")
        with pytest.raises(psycopg2.errors.QueryCanceled):
            work.result()
    assert validity(database, index) is not halfway
    assert database.query("SELECT state FROM pgrollout.step WHERE run_id = %s", run) == [("started",)]


@pytest.mark.parametrize("halfway", [False, True], ids=["before it begins", "half-way"])
def test_a_drop_that_was_cancelled_is_done_by_the_next_attempt(ledger: Database, tmp_path: Path, halfway: bool) -> None:
    run = claim(ledger)
    (step,) = planned(ledger, tmp_path, DROP)
    cut_off_a_drop(ledger, run, step, "item_note", halfway)
    (step,) = planned(ledger, tmp_path, DROP)
    assert step["state"] == "pending"
    carry_out(ledger, run, [step])
    assert validity(ledger) is None
    assert_done_once(ledger, run)
    assert [step["state"] for step in planned(ledger, tmp_path, DROP)] == ["satisfied"]


@pytest.mark.parametrize("then", ["back", "forward"])
@pytest.mark.parametrize("halfway", [False, True], ids=["before it begins", "half-way"])
def test_after_a_cancelled_drop_of_a_rollback_either_way_is_open(
    ledger: Database, tmp_path: Path, halfway: bool, then: str
) -> None:
    files = {
        "phase1/001_test/apply.sql": BUILD,
        "phase1/001_test/rollback.sql": "DROP INDEX CONCURRENTLY item_state;",
    }
    rollout = rollout_of(tmp_path, files)

    def back() -> list[dict[str, Any]]:
        return steps_of_plan(plan_rollback(rollout, facts_of(ledger, rollout), ["phase1"]))

    first = claim(ledger)
    carry_out(ledger, first, steps_of_plan(plan_of(ledger, rollout)))
    finish(ledger, first)
    second = claim(ledger, kind="rollback")
    (step,) = back()
    assert step["undoes"] == ["001_test/item_state"]
    cut_off_a_drop(ledger, second, step, "item_state", halfway)

    made = "SELECT state FROM pgrollout.step WHERE step_id = '001_test/item_state'"
    assert ledger.value(made) == "done"  # not rolled back: it stands there still
    if then == "back":
        carry_out(ledger, second, back())
        assert validity(ledger, "item_state") is None
        assert ledger.value(made) == "rolled_back"
    else:
        finish(ledger, second, "failed")
        (step,) = steps_of_plan(plan_of(ledger, rollout))
        assert step["state"] == ("rebuild" if halfway else "satisfied")
        carry_out(ledger, claim(ledger), [step] if halfway else [])
        assert validity(ledger, "item_state") is True
        assert ledger.value(made) == "done"


# ---- the shipped rollout, a reader in front of each step of DDL


TABLES = ("agents", *(f"project_management_{name}" for name in ("projects", "epics", "prds", "tasks")))


def behind_a_reader(database: Database, run: int, step: dict[str, Any], tables: list[str], seconds: float) -> None:
    """Carries the step out; a transaction that has read its tables stays for so long, and until it has been named."""
    with transaction(database, ";".join(f"SELECT FROM {table} LIMIT 1" for table in tables), "report-tool") as reader:
        began = time.monotonic()
        work = InBackground(carry_out, database, run, [step])
        told = "SELECT 1 FROM pgrollout.event WHERE step_id = %s AND what = 'waiting' AND detail LIKE %s"
        who = f"%pid {reader.info.backend_pid} (user rollout, application 'report-tool'%"
        wait_until(
            lambda: database.query(told, step["id"], who) and time.monotonic() - began >= seconds, what=step["id"]
        )
        assert work.is_alive(), f"{step['id']} did not wait for its reader"
        reader.commit()
    work.result()


@pytest.mark.parametrize("seconds", [pytest.param(0.3, marks=pytest.mark.ci), pytest.param(10, marks=pytest.mark.full)])
def test_a_reader_in_front_of_each_step_of_the_rollout(database: Database, seconds: float) -> None:
    install(database)
    rollout = load_rollout(str(ROOT / "sql"))
    run = claim(database)
    waited = 0
    with Customer(database, *TABLES) as customer:
        for step in steps_of_plan(plan_of(database, rollout)):
            if step["state"] != "pending":
                continue
            held = [lock["relation"] for lock in step["locks"] if lock["mode"] == "ACCESS EXCLUSIVE"]
            if step["mode"] != "ddl" or not held:
                carry_out(database, run, [step])
                continue
            behind_a_reader(database, run, step, held, seconds)
            waited += 1
    print(f"{waited} steps behind a reader; {customer.served} statements of the application")
    assert waited > 30
    assert_held_up_no_longer_than_a_timeout(customer, database, run)
    assert database.query("SELECT step_id, state FROM pgrollout.step WHERE state <> 'done'") == []
    left = [step for step in steps_of_plan(plan_of(database, rollout)) if step["state"] not in ("satisfied", "off")]
    assert left == []
