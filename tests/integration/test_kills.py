"""Runs that are killed and servers that stop: the next run finishes, and ends like one that nothing happened to.

Moments are random and repeatable: each test prints PGROLLOUT_SEED=…, and the variable of that name gives it again. A
moment is a step of the ledger, or a row of a backfill, and a fraction of a second; no test sleeps until then.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from pgrollout.migration.plan import apply_steps
from pgrollout.rollout.load import load_rollout
from tests.support.ledger import Witness
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from demo.server import Server
    from tests.conftest import Database, Playbook, Run, Started
    from tests.integration.conftest import Undisturbed

SQL = Path(__file__).resolve().parents[2] / "sql"
PATIENCE_S = 600  # for what takes a minute where nothing else runs
FILL_TASKS = "006_short_id_backfill/backfill_tasks"
ENTITIES = {
    "project": "project_management_projects",
    "epic": "project_management_epics",
    "prd": "project_management_prds",
    "task": "project_management_tasks",
    "agent": "agents",
}


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Chance that can be repeated: PGROLLOUT_SEED, and the test's own name so that no two tests draw the same."""
    seed = int(os.environ.get("PGROLLOUT_SEED", random.randrange(2**32)))
    print(f"PGROLLOUT_SEED={seed}")
    return random.Random(f"{seed} {request.node.name}")


@dataclass
class Subject:
    """The database that is migrated, and what was known of it before."""

    database: Database
    playbook: Playbook
    undisturbed: Undisturbed
    backups: Path

    def __post_init__(self) -> None:
        self.given = {kind: dict(self._codes(table)) for kind, table in ENTITIES.items()}
        self._session: Any = None

    def _codes(self, table: str) -> list[tuple[Any, ...]]:
        return self.database.query(f"SELECT id::text, short_id FROM {table} WHERE short_id IS NOT NULL")

    def start(self, *args: str) -> Started:
        return self.playbook.start(
            "migrate.yml", *args, database=self.database, variables={"backup_dir": str(self.backups)}
        )

    def ask(self, statement: str) -> Any:
        """One value, None where there is no row, no ledger yet or no server.

        In one session as long as the server lives: a session for each look would take the run's connections and time.
        A session that ended with its server is replaced, so that None is said of the server that is there now.
        """
        try:
            if self._session is not None:
                with contextlib.suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
                    return self._value(statement)
            self._session = self.database.connect()
            return self._value(statement)
        except (psycopg2.errors.UndefinedTable, psycopg2.errors.InvalidSchemaName):
            return None
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            self._session = None
            return None

    def _value(self, statement: str) -> Any:
        with self._session.cursor() as cursor:
            cursor.execute(statement)
            found = cursor.fetchone()
        return found[0] if found else None

    def filled(self) -> dict[tuple[str, str], Any]:
        """{(step, key): what the backfill wrote}, of the batches that are committed."""
        if not self.ask("SELECT to_regclass('pgrollout.row_change')::text"):
            return {}
        found = self.database.query("SELECT step_id, key::text, new FROM pgrollout.row_change")
        return {(step, key): new for step, key, new in found}

    def workers(self) -> list[str]:
        """Application names of the sessions that work for a run."""
        found = self.database.query(
            "SELECT application_name FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name ~ '^pgrollout/[0-9]+/' AND state <> 'idle'"
        )
        return [name for (name,) in found]

    def reached(self, started: Started, step: str, timeout: float = PATIENCE_S) -> None:
        """Wait until the open run is at `step` or past it; returns too when the playbook ends before."""
        later = {name: place for place, name in enumerate(self.undisturbed.steps)}

        def there() -> bool:
            now = self.ask("SELECT step FROM pgrollout.run WHERE ended_at IS NULL")
            return started.process.poll() is not None or later.get(now, -1) >= later[step]

        wait_until(there, timeout, f"step {step}")

    def assert_finished(self, run: Run, kept: dict[tuple[str, str], Any]) -> None:
        """The run went through, and the database is as if nothing had happened. `kept`: what was filled before it."""
        assert run.rc == 0, run.told
        assert self.database.value("SELECT pgrollout.fingerprint()") == self.undisturbed.fingerprint
        migrations = {name for (name,) in self.database.query("SELECT migration FROM pgrollout.migration")}
        assert migrations == self.undisturbed.migrations
        assert self.database.query("SELECT step_id, state FROM pgrollout.step WHERE state <> 'done'") == []
        assert self.database.value("SELECT count(*) FROM pgrollout.run WHERE ended_at IS NULL") == 0
        assert self.database.value("SELECT count(*) FROM pgrollout.phase_run WHERE ended_at IS NULL") == 0
        assert self.database.value("SELECT status FROM pgrollout.run ORDER BY run_id DESC LIMIT 1") == "completed"
        self._assert_rows(kept)

    def _assert_rows(self, kept: dict[tuple[str, str], Any]) -> None:
        query = self.database.query
        twice = "SELECT step_id, key, count(*) FROM pgrollout.row_change GROUP BY 1, 2 HAVING count(*) > 1"
        assert query(twice) == []
        assert query("SELECT step_id FROM pgrollout.cursor WHERE NOT finished") == []
        history = "SELECT count(*) FROM pgrollout.row_change AS h WHERE h.step_id = c.step_id"
        assert query(f"SELECT step_id, rows_changed FROM pgrollout.cursor AS c WHERE rows_changed <> ({history})") == []
        now = self.filled()
        assert {place: now.get(place) for place in kept} == kept, "a row that was done has been done again"
        for step in apply_steps(load_rollout(str(SQL))):
            if step["mode"] == "data":
                spec = step["backfill"]
                left = f"SELECT count(*) FROM {spec['table']} AS {spec['alias']} WHERE {spec['where']}"
                assert query(left) == [(0,)], f"{step['id']} left rows out"
        for kind, table in ENTITIES.items():
            codes = dict(self._codes(table))
            assert query(f"SELECT count(*) FROM {table}") == [(len(codes),)]
            assert {key: codes[key] for key in self.given[kind]} == self.given[kind]
            changed = f"SELECT count(*) FROM pgrollout.row_change WHERE step_id LIKE '006%/backfill_{kind}s'"
            assert query(changed) == [(len(codes) - len(self.given[kind]),)]
            registered = f"SELECT entity_id::text, short_id FROM short_id_registry WHERE entity_type = '{kind}'"
            assert dict(query(registered)) == codes


@pytest.fixture
def subject(database: Database, playbook: Playbook, undisturbed: Undisturbed, tmp_path: Path) -> Subject:
    return Subject(database, playbook, undisturbed, tmp_path / "backups")


def kill(subject: Subject, started: Started, chance: random.Random, step: str) -> None:
    """kill -9 of the controller's process group a random moment after `step` was reached."""
    subject.reached(started, step)
    time.sleep(chance.uniform(0, 1.5))
    at = subject.ask("SELECT step FROM pgrollout.run WHERE ended_at IS NULL")
    run = started.kill()
    # A session that outlived the kill before this one may have done what was left: then there is nothing to kill.
    assert run.rc in (-9, 0), run.told
    print(f"killed after {run.seconds:.0f} s at {at}, meant {step}; still at work: {subject.workers()}")


def sentence(output: str) -> str:
    """The last error of a failed run; it must have ended with one and without a traceback."""
    assert "Traceback" not in output, output
    assert "Unexpected" not in output, output
    said = re.findall(r"^\[ERROR\]: Task failed: (?:\w+ failed: )?(.+)$", output, re.MULTILINE)
    assert said, output
    return str(said[-1])


# ---- kills


@pytest.mark.ci
def test_the_session_that_outlives_its_playbook_is_named_and_waited_for(
    subject: Subject, chance: random.Random
) -> None:
    """Killed in an index build that waits behind a transaction, then at a random moment, then let through."""
    database = subject.database
    with Witness(database) as witness:
        # the first index on tasks: a build waits for whoever has written the table
        with contextlib.closing(database.connect(autocommit=False, application_name="hive-web")) as writer:
            writer.cursor().execute("UPDATE project_management_tasks SET title = title WHERE id = "
                                    "(SELECT id FROM project_management_tasks ORDER BY id LIMIT 1)")  # fmt: skip
            first = subject.start()
            building = "SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database()"
            blocked = (
                f"{building} AND phase LIKE 'waiting for writers%' AND current_locker_pid = {writer.info.backend_pid}"
            )
            pid = wait_until(lambda: subject.ask(blocked), PATIENCE_S, "a build behind the writer")
            time.sleep(chance.uniform(0, 0.5))
            first.kill()
            time.sleep(2)  # twice client_connection_check_interval
            (worker,) = subject.workers()
            assert worker.startswith("pgrollout/1/001_add_short_id_indexes/")
            assert subject.ask(building) == pid

            second = subject.start()
            second.wait_for("which outlived its playbook", PATIENCE_S)
            said = re.sub(r"\s+", " ", second.output)
            assert f"Waiting for the session with pid {pid} ({worker}" in said
            assert "still runs: CREATE INDEX CONCURRENTLY idx_task_short_id" in said
            time.sleep(1)
            assert subject.ask(building) == pid
            writer.rollback()

        kill(subject, second, chance, chance.choice(subject.undisturbed.steps))
        kept = subject.filled()
        done = subject.start().wait()
    subject.assert_finished(done, kept)
    assert witness.faults == []
    assert witness.seen.keys() >= {1, 2}  # the third has next to nothing left where the kill came late
    runs = database.query("SELECT run_id, status, message FROM pgrollout.run ORDER BY run_id")
    assert [(number, status) for number, status, _ in runs] == [(1, "taken over"), (2, "taken over"), (3, "completed")]
    for (_, _, message), pid in zip(runs, (first.pid, second.pid), strict=False):
        assert message.startswith(f"its controller process {pid} is gone; taken over by run ")


def kill_again_and_again(subject: Subject, chance: random.Random, kills: int) -> None:
    """Kill as many runs, each further on than the one before, then let one through."""
    steps = ["", *subject.undisturbed.steps]  # '' is before the claim: guard, plan, ledger
    kept: dict[tuple[str, str], Any] = {}
    with Witness(subject.database) as witness:
        for place in sorted(chance.sample(range(len(steps)), kills)):
            started = subject.start()
            if steps[place]:
                kill(subject, started, chance, steps[place])
            else:
                time.sleep(chance.uniform(0, 15))
                started.kill()
            before = subject.filled()
            assert {key: before.get(key) for key in kept} == kept
            kept = before
        done = subject.start().wait()
    subject.assert_finished(done, kept)
    assert witness.faults == []


@pytest.mark.ci
def test_three_kills_at_random_moments(subject: Subject, chance: random.Random) -> None:
    kill_again_and_again(subject, chance, 3)


@pytest.mark.full
@pytest.mark.parametrize("chain", range(6))
def test_five_kills_at_random_moments(subject: Subject, chance: random.Random, chain: int) -> None:  # noqa: ARG001
    kill_again_and_again(subject, chance, 5)


# ---- server stops


def stop(subject: Subject, server: Server, started: Started, chance: random.Random, step: str, rows: int) -> Run:
    """`pg_ctl stop -m immediate` once `step` has visited `rows` rows (or was reached); the run's end; a new start."""
    subject.reached(started, step)
    visited = f"SELECT c.rows_visited >= {rows} OR c.finished FROM pgrollout.cursor AS c WHERE c.step_id = '{step}'"
    if rows:
        wait_until(lambda: subject.ask(visited), PATIENCE_S, f"row {rows} of {step}")
    else:
        time.sleep(chance.uniform(0, 1))
    port = server.port
    at = subject.ask("SELECT step FROM pgrollout.run WHERE ended_at IS NULL")
    server.stop("immediate")
    try:
        run = started.wait(PATIENCE_S)
    finally:
        server.start()
    assert server.port == port
    print(f"stopped at {at}, meant {step} row {rows}; the run said: {sentence(run.output)}")
    assert run.rc != 0
    return run


@pytest.mark.ci
def test_a_server_that_stops_in_mid_backfill(subject: Subject, server: Server, chance: random.Random) -> None:
    tasks = subject.database.value("SELECT count(*) FROM project_management_tasks")
    with Witness(subject.database) as witness:
        run = stop(subject, server, subject.start(), chance, FILL_TASKS, chance.randrange(1, tasks))
        said = sentence(run.output)
        assert "demo: " in said
        assert re.search(
            r"server closed the connection|terminating connection|Connection refused|connection to server", said
        )
        kept = subject.filled()
        assert kept
        position = subject.ask(f"SELECT rows_visited FROM pgrollout.cursor WHERE step_id = '{FILL_TASKS}'")
        print(f"{position} of {tasks} rows were done")
        done = subject.start().wait()
    subject.assert_finished(done, kept)
    assert witness.faults == []
    # their numbers need not follow each other: a server that crashes takes up a sequence some numbers later
    runs = subject.database.query("SELECT status FROM pgrollout.run ORDER BY run_id")
    assert runs == [("taken over",), ("completed",)]


def stop_again_and_again(subject: Subject, server: Server, chance: random.Random, stops: int) -> None:
    kept: dict[tuple[str, str], Any] = {}
    steps = subject.undisturbed.steps
    with Witness(subject.database) as witness:
        for place in sorted(chance.sample(range(len(steps)), stops)):
            stop(subject, server, subject.start(), chance, steps[place], 0)
            before = subject.filled()
            assert {key: before.get(key) for key in kept} == kept
            kept = before
        done = subject.start().wait()
    subject.assert_finished(done, kept)
    assert witness.faults == []


@pytest.mark.full
def test_two_stops_at_random_moments(subject: Subject, server: Server, chance: random.Random) -> None:
    stop_again_and_again(subject, server, chance, 2)


@pytest.mark.full
@pytest.mark.parametrize("chain", range(2))
def test_five_stops_at_random_moments(
    subject: Subject, server: Server, chance: random.Random, chain: int  # noqa: ARG001
) -> None:  # fmt: skip
    stop_again_and_again(subject, server, chance, 5)


# ---- back from the middle


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("phase3", marks=pytest.mark.ci),
        *(pytest.param(phase, marks=pytest.mark.full) for phase in ("phase1", "phase2", "phase4")),
    ],
)
def test_a_phase_that_was_killed_at_a_random_step_goes_back(
    subject: Subject, chance: random.Random, phase: str
) -> None:
    steps = [step for step in apply_steps(load_rollout(str(SQL))) if step["id"] in subject.undisturbed.steps]
    before = sorted({step["phase"] for step in steps if step["phase"] < phase})
    if before:
        first = subject.start("--tags", ",".join(before)).wait()
        assert first.rc == 0, first.told
    started = subject.start("--tags", phase)
    kill(subject, started, chance, chance.choice([step["id"] for step in steps if step["phase"] == phase]))
    back = subject.playbook.start(
        "rollback.yml", "--tags", phase, database=subject.database, variables={"rollback_confirm": "local"}
    ).wait()
    assert back.rc == 0, back.told
    proof = subject.ask("SELECT to_jsonb(p) FROM pgrollout.proof AS p ORDER BY at DESC LIMIT 1")
    assert (proof["phase"], proof["catalog"]) == (phase, [])
    assert [table["table_name"] for table in proof["contents"] if not table["equal"]] == []
    assert subject.ask(f"SELECT count(*) FROM pgrollout.standing_step() WHERE phase = '{phase}'") == 0
