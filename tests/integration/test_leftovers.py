"""What DETACH and REINDEX leave when they are cut off half-way, and what the next run makes of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from tests.support.customer import Customer
from tests.support.ledger import InBackground, carry_out, claim, finish, install, settings, transaction
from tests.support.plans import plan_of, steps_of_plan
from tests.support.rollouts import rollout_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.conftest import Database

LONG = "i" * 63
INVALID = """
SELECT relname FROM pg_index JOIN pg_class ON oid = indexrelid
WHERE NOT indisvalid AND relnamespace = 'public'::regnamespace ORDER BY 1
"""
LOOKALIKE = "item_note_ccnew7"  # valid
ATTACHED = "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = 'p1'::regclass"


@pytest.fixture
def ledger(empty_database: Database) -> Database:
    install(empty_database)
    empty_database.execute(
        "CREATE TABLE item (id integer PRIMARY KEY, note text); INSERT INTO item SELECT generate_series(1, 1000);"
        f"CREATE INDEX item_note ON item (note); CREATE INDEX {LONG} ON item (note, id);"
        "CREATE TABLE other (id integer); INSERT INTO other VALUES (1);"
        "CREATE TABLE p (id integer) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);"
        "CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2); INSERT INTO p VALUES (1), (2)"
    )
    return empty_database


def steps(database: Database, rollout: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for step in steps_of_plan(plan_of(database, rollout)) if step["state"] != "satisfied"]


def cut_off(database: Database, run: int, rollout: dict[str, Any], holding: str, until: str) -> None:
    """Carries the rollout's step out behind `holding` until `until` has rows; then ends its session and its run."""
    with transaction(database, holding):
        work = InBackground(carry_out, database, run, steps(database, rollout), blocker_age_ms=3_600_000)
        wait_until(lambda: database.query(until), what=until)
        database.query("SELECT pg_terminate_backend(pid) FROM pgrollout.lock_holder()")
        with pytest.raises(psycopg2.OperationalError):
            work.result()
    finish(database, run, "failed")


def said(database: Database, run: int) -> list[str]:
    return [line for (line,) in database.query("SELECT line FROM pgrollout.report(%s)", run) if "leftover: " in line]


# ---- DETACH PARTITION … CONCURRENTLY

DETACH = "ALTER TABLE p DETACH PARTITION p1 CONCURRENTLY;"


@pytest.fixture
def half_detached(ledger: Database, tmp_path: Path) -> dict[str, Any]:
    rollout = rollout_of(tmp_path, {"001_a": DETACH})
    cut_off(ledger, claim(ledger), rollout, "SELECT FROM p", f"{ATTACHED} AND inhdetachpending")
    assert ledger.value(ATTACHED) is True
    return rollout


def test_a_half_detached_partition_is_detached_by_the_next_run(ledger: Database, half_detached: dict[str, Any]) -> None:
    with pytest.raises(psycopg2.Error, match="already pending detach"):
        ledger.execute(DETACH)  # what the same command does by itself
    run = claim(ledger)
    (step,) = steps(ledger, half_detached)
    assert (step["state"], step["kind"]) == ("rebuild", "DETACH PARTITION FINALIZE")
    carry_out(ledger, run, [step])
    assert ledger.query(ATTACHED) == []
    assert ledger.query("SELECT id FROM p1") == [(1,)]
    assert steps(ledger, half_detached) == []
    (line,) = said(ledger, run)
    assert line.startswith("leftover: 001_a/")
    assert "FINALIZE completes it" in line


def test_an_old_snapshot_in_front_of_finalize_is_named_and_holds_nobody_up(
    ledger: Database, half_detached: dict[str, Any]
) -> None:
    run = claim(ledger)
    with contextlib.closing(ledger.connect(autocommit=False, application_name="report-tool")) as report:
        report.cursor().execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM other")
        with Customer(ledger, "p1") as customer:
            work = InBackground(carry_out, ledger, run, steps(ledger, half_detached), blocker_age_ms=3_600_000)
            waits = wait_until(
                lambda: ledger.value("SELECT waiting_for FROM pgrollout.run WHERE run_id = %s", run), what="waiting_for"
            )
            assert f"pid {report.info.backend_pid} (user rollout, application 'report-tool'" in waits
            assert "has an old snapshot" in waits
            served = customer.served
            wait_until(lambda: customer.served > served + 100, what="an application that goes on")
            assert work.is_alive()
            report.commit()
            work.result()
    attempts = ledger.value("SELECT attempts FROM pgrollout.step WHERE run_id = %s", run)
    print(f"{attempts} attempts, longest wait behind us {customer.behind_us_ms:.0f} ms")
    assert attempts > 1
    assert customer.behind_us_ms <= settings()["lock_timeout_ms"] + 100
    assert customer.errors == {}
    assert ledger.query(ATTACHED) == []


def test_a_detach_does_not_begin_before_its_partition_is_free(ledger: Database, tmp_path: Path) -> None:
    """At its end it asks for ACCESS EXCLUSIVE on the partition, and nothing bounds that wait."""
    run = claim(ledger)
    planned = steps(ledger, rollout_of(tmp_path, {"001_a": DETACH}))
    with transaction(ledger, "SELECT FROM p1", "report-tool") as report, Customer(ledger, "p1") as customer:
        old = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND xact_start < clock_timestamp() - interval '300 ms'"
        wait_until(lambda: ledger.query(old, report.info.backend_pid), what="a reader old enough to be waited for")
        work = InBackground(carry_out, ledger, run, planned, blocker_age_ms=300)
        served = customer.served
        wait_until(lambda: customer.served > served + 500, what="an application that goes on")
        waits = ledger.value("SELECT waiting_for FROM pgrollout.run WHERE run_id = %s", run)
        assert f"pid {report.info.backend_pid} (user rollout, application 'report-tool'" in waits
        assert ledger.value(ATTACHED) is False
        assert work.is_alive()
        report.commit()
        work.result()
    assert ledger.query(ATTACHED) == []
    assert customer.errors == {}
    assert customer.behind_us_ms <= settings()["lock_timeout_ms"] + 100


# ---- REINDEX … CONCURRENTLY


@pytest.mark.parametrize(
    ("sql", "left"),
    [
        ("REINDEX INDEX CONCURRENTLY item_note;", ["item_note_ccnew"]),
        (f"REINDEX INDEX CONCURRENTLY {LONG};", ["i" * 57 + "_ccnew"]),
        (
            "REINDEX TABLE CONCURRENTLY item;",
            ["i" * 57 + "_ccnew", "item_note_ccnew", f"{LOOKALIKE}_ccnew", "item_pkey_ccnew"],
        ),
        ("REINDEX SCHEMA CONCURRENTLY public;", ["item_note_ccnew"]),
    ],
    ids=["index", "long name", "table", "schema"],
)
def test_what_a_reindex_left_is_dropped_before_it_goes_again(
    ledger: Database, tmp_path: Path, sql: str, left: list[str]
) -> None:
    rollout = rollout_of(tmp_path, {"001_a": sql})
    # Names like those that a REINDEX leaves: a valid one, an INVALID one of another table.
    ledger.execute(f"CREATE INDEX {LOOKALIKE} ON item (note); CREATE INDEX item_note_ccold ON other (id)")
    mark = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'item_note_ccold'::regclass"
    with contextlib.closing(ledger.server.connect(ledger.name)) as superuser:
        superuser.cursor().execute(mark)
    first = sql if "SCHEMA" not in sql else "REINDEX INDEX CONCURRENTLY item_note;"
    run = claim(ledger)
    cut_off(
        ledger,
        run,
        rollout_of(tmp_path / "first", {"001_a": first}),
        "UPDATE item SET note = 'x' WHERE id = 1",
        "SELECT 1 FROM pg_class WHERE relname ~ '_ccnew$'",
    )
    assert [name for (name,) in ledger.query(INVALID) if name != "item_note_ccold"] == left

    run = claim(ledger)
    (step,) = steps(ledger, rollout)
    assert step["state"] == "rebuild"
    assert step["leftovers"] == [f"public.{name}" for name in left]
    carry_out(ledger, run, [step])
    # The schema's REINDEX skips what is INVALID; what is not ours stays, whatever it is called.
    assert ledger.query(INVALID) == [("item_note_ccold",)]
    assert ledger.query("SELECT count(*) FROM pg_class WHERE relname = %s", LOOKALIKE) == [(1,)]
    assert steps(ledger, rollout) == []
    (line,) = said(ledger, run)
    assert all(name in line for name in left)


def test_a_reindex_that_goes_on_is_no_leftover(ledger: Database, tmp_path: Path) -> None:
    rollout = rollout_of(tmp_path, {"001_a": "REINDEX INDEX CONCURRENTLY item_note;"})
    with (
        contextlib.closing(ledger.connect()) as other,
        transaction(ledger, "UPDATE item SET note = 'x' WHERE id = 1") as writer,
    ):
        work = InBackground(other.cursor().execute, "REINDEX INDEX CONCURRENTLY item_note")
        wait_until(lambda: ledger.query(INVALID))
        (step,) = steps(ledger, rollout)
        assert step["state"] == "pending"
        writer.commit()
        work.result()
