"""The application of a bench, whom it waits for, and a reader that stays.

The application is pgbench. At a fixed rate an operation's latency counts from the time at which it was due, so one that
could not even be sent, because the clients hung, has waited too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg2

from bench.lab import Lab
from bench.report import percentile
from demo.server import ThrowawayError
from tests.conftest import Database
from tests.support.waiting import wait_until

APPLICATION, READER, WITNESS = "bench application", "bench reader", "bench witness"
AUTOVACUUM = "autovacuum worker"
CLIENTS = 4
IN_TIME_MS = 100.0  # an answer within this is what users call immediate
LOOK_S = 0.01
READER_STAYS_S, READER_EVERY_S = 5, 15
TABLES = (
    "project_management_tasks",
    "project_management_projects",
    "project_management_epics",
    "project_management_prds",
    "agents",
)


class Operation(NamedTuple):
    due: float  # seconds since 1970
    wait_ms: float
    failed: bool


def read_log(lines: Iterable[str]) -> list[Operation]:
    """pgbench's --log: client, transaction, time in us or `failed`, script, seconds, microseconds (of the end), …"""
    found = []
    for line in lines:
        _, _, took, _, seconds, micros, *_ = line.split()
        ended = int(seconds) + int(micros) / 1e6
        wait_us = float(took) if took.isdigit() else 0.0
        found.append(Operation(ended - wait_us / 1e6, wait_us / 1000, not took.isdigit()))
    return found


@dataclass(frozen=True)
class Felt:
    """What an application felt in a stretch of time."""

    operations: int
    failed: int
    p99_ms: float
    longest_ms: float
    per_second: float
    in_time: float  # part (of 1) that was answered within IN_TIME_MS


def felt(operations: Sequence[Operation], since: float, until: float) -> Felt:
    """Of the operations that were due in [since, until)."""
    those = [o for o in operations if since <= o.due < until]
    waits = [o.wait_ms for o in those if not o.failed]
    seconds = max(until - since, 1e-9)
    return Felt(
        operations=len(those),
        failed=len(those) - len(waits),
        p99_ms=percentile(waits, 0.99),
        longest_ms=max(waits, default=0.0),
        per_second=len(waits) / seconds,
        in_time=sum(wait <= IN_TIME_MS for wait in waits) / max(len(those), 1),
    )


class Application:
    """pgbench on a database until `stop`. rate: operations a second, or None for as many as it can."""

    def __init__(
        self,
        lab: Lab,
        database: Database,
        scripts: Sequence[str],
        rate: float | None,
        variables: Mapping[str, int],
    ) -> None:
        self._lab, self._database = lab, database
        self._folder = lab.scratch("application")
        self._said = self._folder / "said"
        files = [self._folder / f"{number}.sql" for number in range(len(scripts))]
        for file, text in zip(files, scripts, strict=True):
            file.write_text(text)
        command = [lab.program("pgbench"), "--no-vacuum", f"--client={CLIENTS}", "--time=86400", "--log"]
        command += ["--max-tries=1", f"--host={database.host}", f"--port={database.port}", "--username=rollout"]
        command += [f"--rate={rate}"] if rate else []
        command += [f"--define={name}={value}" for name, value in variables.items()]
        command += [part for file in files for part in ("--file", str(file))]
        environment = os.environ | {"PGPASSFILE": database.passfile, "PGAPPNAME": APPLICATION}
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [*command, database.name], cwd=self._folder, env=environment, stdout=said, stderr=said
            )
        wait_until(lambda: self._sessions() >= CLIENTS or self._process.poll() is not None, what="the application")
        self._check()

    def _sessions(self) -> int:
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
        return int(self._database.value(count, APPLICATION))

    def _check(self) -> None:
        if self._process.poll() is not None or self._sessions() < CLIENTS:
            raise ThrowawayError(f"The application ended by itself: {self._said.read_text().strip()[-500:]}")

    def stop(self) -> list[Operation]:
        """End it; what it did. Its sessions are cut, because pgbench keeps the end of its log when it is killed."""
        self._check()
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name = %s"
        with contextlib.closing(self._lab.server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(cut, (self._database.name, APPLICATION))
        self._process.wait(60)
        logs = sorted(self._folder.glob("pgbench_log.*"))
        return read_log(itertools.chain.from_iterable(log.read_text().splitlines() for log in logs))

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)


# ---- who is waited for

WAITS = """
WITH waiting AS MATERIALIZED (
    SELECT l.pid, min(l.waitstart) AS since FROM pg_locks AS l WHERE NOT l.granted GROUP BY l.pid
)
SELECT w.pid, coalesce(extract(epoch FROM clock_timestamp() - w.since) * 1000, 0)::float8, pg_blocking_pids(w.pid)
FROM waiting AS w
"""
NAMES = r"""
SELECT pid, CASE WHEN backend_type = 'client backend' THEN application_name ELSE backend_type END,
       left(regexp_replace(query, '\s+', ' ', 'g'), 100)
FROM pg_stat_activity
"""


class Wait(NamedTuple):
    pid: int
    ms: float
    blockers: tuple[int, ...]


def behind(pid: int, waits: Mapping[int, Wait]) -> set[int]:
    """Whom a wait is for, directly or through others."""
    seen: set[int] = set()
    ahead = list(waits[pid].blockers)
    while ahead:
        blocker = ahead.pop()
        if blocker not in seen:
            seen.add(blocker)
            ahead += waits[blocker].blockers if blocker in waits else []
    return seen


def laid_to(blockers: Iterable[str]) -> str:
    """Which of the blockers' names a wait is laid to: migration, autovacuum, reader, or the application itself."""
    found = set(blockers)
    if found - {APPLICATION, READER, AUTOVACUUM, ""}:
        return "migration"
    return "autovacuum" if AUTOVACUUM in found else "reader" if READER in found else "application"


class Witness(threading.Thread):
    """Looks every ten milliseconds whom the application waits for; `longest` is its longest lock wait by who it is for.

    A wait is seen up to one look before its end, so what is told is up to LOOK_S too short.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(daemon=True)
        self._database = database
        self._enough = threading.Event()
        self.longest: dict[str, float] = {}
        self.behind = ""  # what the longest wait for the migration was behind

    def __enter__(self) -> Witness:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self.join(10)

    def run(self) -> None:
        with contextlib.closing(self._database.connect(application_name=WITNESS)) as connection:
            cursor = connection.cursor()
            while not self._enough.wait(LOOK_S):
                cursor.execute(WAITS)
                waits = {pid: Wait(pid, ms, tuple(blockers)) for pid, ms, blockers in cursor.fetchall()}
                if waits:
                    cursor.execute(NAMES)
                    self._judge(waits, {pid: (name, query) for pid, name, query in cursor.fetchall()})

    def _judge(self, waits: Mapping[int, Wait], sessions: Mapping[int, tuple[str, str]]) -> None:
        for wait in waits.values():
            if sessions.get(wait.pid, ("", ""))[0] != APPLICATION or not wait.blockers:
                continue
            blockers = [sessions[pid] for pid in behind(wait.pid, waits) if pid in sessions]
            who = laid_to(name for name, _ in blockers)
            if wait.ms > self.longest.get(who, 0.0):
                self.longest[who] = wait.ms
                if who == "migration":
                    others = [f"{name}: {query}" for name, query in blockers if laid_to([name]) == "migration"]
                    self.behind = "; ".join(others)


class Reader(threading.Thread):
    """Somebody's report: reads the touched tables in one transaction that stays 5 s, once in 15 s."""

    def __init__(self, database: Database) -> None:
        super().__init__(daemon=True)
        self._database = database
        self._enough = threading.Event()
        self.came = 0

    def __enter__(self) -> Reader:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self.join(READER_STAYS_S + 60)

    def run(self) -> None:
        with contextlib.closing(self._database.connect(autocommit=False, application_name=READER)) as connection:
            while not self._enough.is_set():
                with contextlib.suppress(psycopg2.Error), connection.cursor() as cursor:
                    for table in TABLES:
                        cursor.execute(f"SELECT FROM {table} LIMIT 1")
                    self.came += 1
                    cursor.execute("SELECT pg_sleep(%s)", (READER_STAYS_S,))  # its snapshot stays as long
                connection.rollback()
                self._enough.wait(READER_EVERY_S - READER_STAYS_S)


@dataclass(frozen=True)
class Measured:
    """What some work did to an application, and how long it took."""

    before: Felt
    during: Felt
    seconds: float


def measured(application: Application, work: Callable[[], Any], before_s: float) -> Measured:
    """The application undisturbed for `before_s`, then with `work` beside it."""
    try:
        begun = time.time()
        time.sleep(before_s)
        started = time.time()
        work()
        ended = time.time()
        time.sleep(1)  # what was due at the end is answered
        operations = application.stop()
    finally:
        application.kill()
    return Measured(felt(operations, begun, started), felt(operations, started, ended), ended - started)
