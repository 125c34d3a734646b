"""Two operators at once: one has the database, the other is told who, and nobody works under a run that is over."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg2
import pytest

from tests.support.ledger import (
    InBackground,
    Witness,
    carry_out,
    claim,
    claim_text,
    finish,
    install,
    steps_of,
)
from tests.support.runs import words
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.conftest import Database, Playbook, Run
    from tests.integration.conftest import Undisturbed

HERE = socket.gethostname()
INDEX = "idx_task_complexity_metadata"
RACES = 300
OPERATORS = 8
WHO = r"run {run} \(migrate\) by \S+ on {host}, started \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC, at step \S+"


# ---- the claim itself


class Racers:
    """Operators with a connection each, who claim at the same moment."""

    def __init__(self, database: Database, number: int) -> None:
        self.connections = [database.connect() for _ in range(number)]

    def close(self) -> None:
        for connection in self.connections:
            connection.close()

    def race(self, replaces: int | None) -> tuple[dict[int, int], dict[int, str]]:
        """({operator: run} of those who got it, {operator: what the other was told})."""
        start = threading.Barrier(len(self.connections))
        won: dict[int, int] = {}
        told: dict[int, str] = {}

        def claims(number: int) -> None:
            text = claim_text(f"operator-{number}", host=f"host-{number}", pid=1000 + number)
            with self.connections[number].cursor() as cursor:
                start.wait()
                try:
                    cursor.execute("SELECT pgrollout.claim(%s::jsonb, %s, 'its controller is gone')", (text, replaces))
                    won[number] = cursor.fetchone()[0]
                except psycopg2.Error as error:
                    told[number] = f"{error.diag.message_primary} {error.diag.message_hint}"

        for thread in [InBackground(claims, number) for number in range(len(self.connections))]:
            thread.result()
        return won, told


@pytest.mark.parametrize("over", ["nothing", "a dead run"])
def test_one_of_many_who_claim_at_once_wins_and_the_others_are_told_who(empty_database: Database, over: str) -> None:
    install(empty_database)
    racers = Racers(empty_database, OPERATORS)
    winners = set()
    try:
        for _ in range(RACES // 2):
            dead = claim(empty_database, "gone") if over == "a dead run" else None
            won, told = racers.race(dead)
            assert len(won) == 1, f"won: {won}, told: {told}"
            ((winner, run),) = won.items()
            winners.add(winner)
            assert len(told) == OPERATORS - 1
            for said in told.values():
                assert (
                    f"another run holds this database: run {run} (migrate) by operator-{winner} on host-{winner}"
                    in said
                )
                assert f"-e take_over={run}" in said
            opened = empty_database.query("SELECT run_id, took_over FROM pgrollout.run WHERE ended_at IS NULL")
            assert opened == [(run, dead)]
            finish(empty_database, run)
    finally:
        racers.close()
    # a claim that is refused uses up no number
    runs = RACES // 2 * (2 if over == "a dead run" else 1)
    assert empty_database.query("SELECT count(*), max(run_id) FROM pgrollout.run") == [(runs, runs)]
    print(f"{RACES // 2} races over {over}: won by {len(winners)} different operators")
    assert len(winners) > 1
    if over == "a dead run":
        message = empty_database.value("SELECT message FROM pgrollout.run WHERE operator = 'gone' LIMIT 1")
        assert re.fullmatch(r"its controller is gone; taken over by run \d+ \(operator-\d on host-\d\)", message)


def test_a_run_that_was_taken_over_can_do_nothing_more(empty_database: Database, tmp_path: Path) -> None:
    install(empty_database)
    old = claim(empty_database, "ann")
    new = claim(empty_database, "ben", replaces=old, host="db-ops-7")
    with pytest.raises(psycopg2.Error) as error:
        carry_out(empty_database, old, steps_of(tmp_path, "CREATE TABLE mine (id integer);"))
    assert error.value.diag.message_primary == (
        f"run {old} is over (taken over): the operator said take_over; taken over by run {new} (ben on db-ops-7)"
    )
    assert empty_database.value("SELECT to_regclass('mine')") is None
    finish(empty_database, old, "failed")  # the old playbook's last call changes nothing either
    assert empty_database.query("SELECT status FROM pgrollout.run ORDER BY run_id") == [("taken over",), ("running",)]
    assert empty_database.value("SELECT count(*) FROM pgrollout.event WHERE what = 'take over'") == 1


def test_a_run_that_is_taken_over_at_work_stops_at_its_next_batch(empty_database: Database, tmp_path: Path) -> None:
    install(empty_database)
    empty_database.execute("CREATE TABLE item (id integer PRIMARY KEY, note text)")
    empty_database.execute("INSERT INTO item SELECT generate_series(1, 1000)")
    fill = "-- Step: fill\n-- Backfill: by id\nUPDATE item AS t SET note = 'x' WHERE t.note IS NULL;"
    old = claim(empty_database, "ann")
    with contextlib.closing(empty_database.connect(autocommit=False)) as blocker:
        blocker.cursor().execute("SELECT FROM item WHERE id = 700 FOR UPDATE")
        work = InBackground(
            carry_out, empty_database, old, steps_of(tmp_path, fill), batch_rows=100, batch_max_rows=100
        )
        wait_until(lambda: empty_database.value("SELECT waiting_for FROM pgrollout.run WHERE run_id = %s", old))
        new = claim(empty_database, "ben", replaces=old)
        with pytest.raises(psycopg2.Error, match=rf"run {old} is over \(taken over\): .* by run {new} \(ben on "):
            work.result()
    assert empty_database.value("SELECT count(*) FROM item WHERE note = 'x'") == 600
    carry_out(empty_database, new, steps_of(tmp_path, fill))
    assert empty_database.value("SELECT count(*) FROM item WHERE note = 'x'") == 1000
    assert empty_database.value("SELECT count(DISTINCT key) FROM pgrollout.row_change") == 1000


# ---- whole runs


@pytest.fixture
def migrate(playbook: Playbook, tmp_path: Path) -> Callable[..., Run]:
    """`migrate(database, *args)` runs migrate.yml, refused or not."""

    def call(database: Database, *args: str) -> Run:
        variables = {"backup_dir": str(tmp_path / "backups")}
        return playbook("migrate.yml", *args, database=database, check=False, variables=variables)

    return call


@pytest.fixture
def almost(migrated: Database) -> Database:
    """A migrated database that lacks one index, so that a run is short."""
    migrated.execute(f"DROP INDEX {INDEX}")
    return migrated


def has_index(database: Database) -> bool:
    return bool(database.value("SELECT to_regclass(%s) IS NOT NULL", INDEX))


def assert_refused(database: Database, run: Run, sentence: str) -> None:
    assert run.rc != 0, run.output
    assert re.search(sentence, words(run)), run.output
    assert not has_index(database)


def test_an_operator_who_starts_between_two_tasks_of_another_is_refused(
    almost: Database, migrate: Callable[..., Run]
) -> None:
    """This process is the other controller: alive, its run open, no session of it connected."""
    held = claim(almost, "ann")
    assert almost.query("SELECT 1 FROM pgrollout.lock_holder()") == []
    run = migrate(almost)
    assert_refused(almost, run, "another run holds this database: " + WHO.format(run=held, host=re.escape(HERE)))
    assert "Nothing was changed; status.yml shows how far that run is." in words(run)
    assert f"by ann on {HERE}" in words(run)
    assert f"-e take_over={held}" in words(run)
    assert almost.query("SELECT run_id FROM pgrollout.run WHERE ended_at IS NULL") == [(held,)]


def test_taking_over_a_run_that_is_not_open_is_refused(almost: Database, migrate: Callable[..., Run]) -> None:
    held = claim(almost, "ann")
    run = migrate(almost, "-e", f"take_over={held + 7}")
    open_is = WHO.format(run=held, host=re.escape(HERE))
    assert_refused(almost, run, rf"-e take_over={held + 7} names no open run; open is {open_is}\.")
    assert almost.query("SELECT run_id FROM pgrollout.run WHERE ended_at IS NULL") == [(held,)]


def test_a_run_of_another_host_is_taken_over_only_when_told(almost: Database, migrate: Callable[..., Run]) -> None:
    """No process of its number is here, which says nothing about the host that it is on."""
    held = claim(almost, "ann", host="db-ops-7", pid=2**22 + 1)
    refused = migrate(almost)
    assert_refused(almost, refused, "another run holds this database: " + WHO.format(run=held, host="db-ops-7"))
    run = migrate(almost, "-e", f"take_over={held}")
    assert run.rc == 0, run.output
    assert has_index(almost)
    message = almost.value("SELECT message FROM pgrollout.run WHERE run_id = %s", held)
    assert re.fullmatch(rf"the operator said take_over; taken over by run \d+ \(\S+ on {re.escape(HERE)}\)", message)


@pytest.mark.parametrize("why", ["ended", "pid of another process"])
def test_a_run_whose_controller_is_dead_on_this_host_is_taken_over_by_itself(
    almost: Database, migrate: Callable[..., Run], why: str
) -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        changes: dict[str, Any] = {"pid": child.pid, "started": psutil.Process(child.pid).create_time()}
    if why == "pid of another process":  # this one, which is alive but started later than the run's controller did
        changes = {"started": psutil.Process().create_time() - 1000}
    held = claim(almost, "ann", **changes)
    run = migrate(almost)
    assert run.rc == 0, run.output
    assert has_index(almost)
    rows = almost.query("SELECT run_id, status, message FROM pgrollout.run WHERE run_id >= %s ORDER BY 1", held)
    assert [status for _, status, _ in rows] == ["taken over", "completed"]
    assert re.match(rf"its controller process \d+ is gone; taken over by run {held + 1} ", rows[0][2])
    assert almost.value("SELECT took_over FROM pgrollout.run WHERE run_id = %s", held + 1) == held


@pytest.mark.ci
def test_a_step_that_cannot_get_its_lock_gives_up_with_the_blocker_named(
    migrated: Database, migrate: Callable[..., Run]
) -> None:
    migrated.execute("ALTER TABLE agents ALTER COLUMN short_id DROP NOT NULL")
    with contextlib.closing(migrated.connect(autocommit=False, application_name="report-tool")) as reader:
        reader.cursor().execute("SELECT FROM agents LIMIT 1")
        run = migrate(migrated, "-e", "apply_give_up_seconds=3")
        pid = reader.info.backend_pid
    assert run.rc != 0
    assert re.search(
        rf"demo: 006_short_id_backfill/\S+: gave up after 3 s and \d+ attempts, nothing changed; blocked by pid {pid} "
        r"\(user rollout, application 'report-tool', idle in transaction, .*AccessShareLock on public\.agents",
        words(run),
    ), run.output
    assert migrated.value("SELECT status FROM pgrollout.run ORDER BY run_id DESC LIMIT 1") == "failed"


@pytest.mark.ci
def test_of_two_whole_runs_at_once_one_wins_and_a_taken_over_one_stops(
    empty_database: Database, playbook: Playbook, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    """Two start at once; later a third takes the winner's run over while it works, and finishes it."""
    database = empty_database
    variables = {"backup_dir": str(tmp_path / "backups")}
    with Witness(database) as witness:
        both = [playbook.start("migrate.yml", database=database, variables=variables) for _ in range(2)]
        wait_until(lambda: any(started.process.poll() is not None for started in both), 600, "one refused")
        loser, winner = sorted(both, key=lambda started: started.process.poll() is None)
        refused = loser.wait()
        assert refused.rc != 0
        assert winner.process.poll() is None, winner.output
        ((first, pid),) = database.query("SELECT run_id, pid FROM pgrollout.run WHERE ended_at IS NULL")
        assert pid == winner.pid
        holds = "another run holds this database: " + WHO.format(run=first, host=re.escape(HERE))
        assert re.search(holds, words(refused)), refused.output
        assert database.value("SELECT count(*) FROM pgrollout.run") == 1

        past = undisturbed.steps[len(undisturbed.steps) // 4 :]
        at = "SELECT step FROM pgrollout.run WHERE run_id = %s"
        wait_until(lambda: database.value(at, first) in past, 600, "a quarter of the steps")
        third = playbook("migrate.yml", "-e", f"take_over={first}", database=database, check=False, variables=variables)
        stopped = winner.wait()
    assert third.rc == 0, third.output
    assert stopped.rc != 0
    second = first + 1
    over = rf"run {first} is over \(taken over\): the operator said take_over; taken over by run {second} "
    assert re.search(over, words(stopped)), stopped.output
    assert "look at status.yml before you start anything." in words(stopped)
    assert "the same command goes on" not in words(stopped)
    assert database.value("SELECT pgrollout.fingerprint()") == undisturbed.fingerprint
    assert database.query("SELECT status FROM pgrollout.run ORDER BY run_id") == [("taken over",), ("completed",)]
    assert witness.faults == []
    assert witness.seen.keys() >= {first, second}


def test_a_run_that_died_after_its_last_step_is_finished_by_the_next(
    migrated: Database, migrate: Callable[..., Run], undisturbed: Undisturbed
) -> None:
    """Killed between its last step and the records of migration and run: nothing is pending, yet not all is done."""
    last = max(undisturbed.migrations)
    migrated.execute("DELETE FROM pgrollout.migration WHERE migration = %s", last)
    migrated.execute(
        "UPDATE pgrollout.run SET ended_at = NULL, status = 'running', pid = 4194305; "
        "UPDATE pgrollout.phase_run SET ended_at = NULL, status = 'running' WHERE phase = 'phase4'"
    )
    run = migrate(migrated)
    assert run.rc == 0, run.output
    found = {name for (name,) in migrated.query("SELECT migration FROM pgrollout.migration")}
    assert found == undisturbed.migrations
    assert migrated.query("SELECT run_id FROM pgrollout.run WHERE ended_at IS NULL") == []
