"""The engine's database side without Ansible: installs the ledger, claims runs, carries out steps as the roles do.

install(database)
run = claim(database, operator="ann")
carry_out(database, run, steps_of(tmp_path, "ALTER TABLE agents ADD COLUMN mood text;"), give_up_s=1)
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg2
import yaml

from pgrollout.migration.queries import segment_queries, segments
from pgrollout.rollout.load import load_rollout
from tests.support.waiting import POLL_S

if TYPE_CHECKING:
    from tests.conftest import Database

ROOT = Path(__file__).resolve().parents[2]


def install(database: Database) -> None:
    """Install the ledger in one transaction, as roles/ledger/tasks/install.yml does."""
    files = sorted((ROOT / "roles" / "ledger" / "files").glob("*.sql"))
    database.execute("\n".join(file.read_text(encoding="utf-8") for file in files))


def claim_text(operator: str = "ann", **changes: Any) -> str:
    """What a controller says of itself when it claims; by default this process is the controller."""
    claim = {
        "kind": "migrate",
        "operator": operator,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "phases": [],
        "git_revision": "unknown",
        "search_path": "public",
    }
    return json.dumps(claim | changes)


def claim(database: Database, operator: str = "ann", replaces: int | None = None, **changes: Any) -> int:
    """Open a run; its number. `changes`: kind, host, pid, started (seconds since 1970) and so on."""
    found = database.value(
        "SELECT pgrollout.claim(%s::jsonb, %s, 'the operator said take_over')",
        claim_text(operator, **changes),
        replaces,
    )
    return int(found)


def finish(database: Database, run: int, status: str = "completed") -> None:
    database.execute("SELECT pgrollout.finish_run(%s, %s, '')", run, status)


def ledger_rows(database: Database) -> tuple[int, ...]:
    """Rows of the ledger that only work may add to."""
    names = ("run", "phase_run", "backup", "snapshot", "event", "step", "row_change")
    return tuple(database.value(f"SELECT count(*) FROM pgrollout.{name}") for name in names)


def steps_of(folder: Path, sql: str) -> list[dict[str, Any]]:
    """The steps of a rollout of one migration, as planned for a database that has none of it."""
    migration = folder / "phase1" / "001_test"
    migration.mkdir(parents=True, exist_ok=True)
    (folder / "phase1" / "phase.yml").write_text(
        "{title: Test, objective: Test, expected_duration_minutes: {min: 1, max: 1}, needs: []}\n"
    )
    (migration / "apply.sql").write_text(sql)
    (migration / "rollback.sql").write_text("DROP INDEX CONCURRENTLY nothing;\n")
    steps = load_rollout(str(folder))["phases"][0]["migrations"][0]["apply"]
    assert [step["refused"] for step in steps if step["refused"]] == []
    return [step | {"state": "pending", "rows": 0, "bytes": 0} for step in steps]


def settings(**changes: float | str) -> dict[str, Any]:
    """What roles/apply hands to the procedures, of its defaults but for `changes`."""
    found = yaml.safe_load((ROOT / "roles" / "apply" / "defaults" / "main.yml").read_text(encoding="utf-8"))
    names = {"apply_give_up_seconds": "give_up_s", "apply_throttle_give_up_seconds": "throttle_give_up_s"}
    kept = {"keep_max_mb": 100}
    return {names.get(key, key.removeprefix("apply_")): value for key, value in found.items()} | kept | changes


def carry_out(database: Database, run: int, steps: list[dict[str, Any]], **changes: float | str) -> None:
    """Carry steps out, a session a segment; raises psycopg2.Error where a step fails."""
    for segment in segments(steps):
        with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
            for query in segment_queries(segment, run, settings(**changes)):
                cursor.execute(query)


@contextlib.contextmanager
def transaction(database: Database, statement: str, application: str = "hive-web") -> Iterator[Any]:
    """A transaction that has done `statement` and stays open until its connection's commit, or the end."""
    connection = database.connect(autocommit=False, application_name=application)
    try:
        connection.cursor().execute(statement)
        yield connection
    finally:
        connection.close()


class InBackground(threading.Thread):
    """Runs a call; `result()` waits for it and raises what it raised."""

    def __init__(self, call: Callable[..., Any], *args: Any, **named: Any) -> None:
        super().__init__(daemon=True)
        self._call, self._args, self._named = call, args, named
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._call(*self._args, **self._named)
        except BaseException as error:  # raised again by result()
            self._error = error

    def result(self, timeout: float = 60) -> None:
        self.join(timeout)
        assert not self.is_alive(), f"still running after {timeout} s"
        if self._error:
            raise self._error


WORKERS = """
SELECT array(SELECT h.pid FROM pg_locks AS h
             WHERE h.locktype = 'advisory' AND h.granted AND h.objid = 1 AND h.objsubid = 2
               AND h.classid = (hashtext('pgrollout')::bigint & 4294967295)::oid
               AND h.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())),
       array(SELECT DISTINCT a.pid || ' ' || a.application_name FROM pg_stat_activity AS a
             WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.state <> 'idle'
               AND a.application_name ~ '^pgrollout/[0-9]+/'
               AND a.application_name !~ '/backup$')
"""


class Witness(threading.Thread):
    """Watches that one session at most works for a run. `faults` says when two did, `samples` how often it looked.

    The two catalogs that it reads are no snapshot, so a session that is just ending may be seen with its successor:
    what it sees once is no fault, what it sees in two looks running is. A server that restarts is waited for. A dump
    is left out: it only reads, and in several sessions.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(daemon=True)
        self._database = database
        self._enough = threading.Event()
        self._suspects: set[str] = set()
        self.samples = 0
        self.seen: Counter[int] = Counter()  # run: how often a session of it was seen at work
        self.faults: list[str] = []

    def __enter__(self) -> Witness:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self.join(10)

    def run(self) -> None:
        while not self._enough.is_set():
            with contextlib.suppress(psycopg2.Error), contextlib.closing(self._database.connect()) as connection:
                cursor = connection.cursor()
                while not self._enough.wait(POLL_S):
                    cursor.execute(WORKERS)
                    self._judge(*cursor.fetchone())
            self._enough.wait(0.2)

    def _judge(self, holders: list[int], workers: list[str]) -> None:
        self.samples += 1
        runs = {int(worker.split("/")[1]) for worker in workers}
        self.seen.update(runs)
        pairs = {f"{sorted(holders)} hold the run lock at once"} if len(holders) > 1 else set()
        if len(workers) > 1:
            pairs.add(f"{sorted(workers)} work at once")
        self.faults += sorted(pairs & self._suspects)
        self._suspects = pairs
