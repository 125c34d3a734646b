"""Shared fixtures: one throwaway server a session, a database of its own for each test, and the playbooks.

    def test_something(database, playbook):
        run = playbook("migrate.yml", "--tags", "phase1", database=database)
        assert run.rc == 0 and run.changed > 0
        assert database.query("SELECT count(*) FROM public.agents") == [(50,)]

Databases are clones of templates prepared once: `database` (baseline at scale 0.1: 30,000 tasks), `empty_database`
(baseline schema, no rows). `databases` makes more of either, for tests that compare two.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from psycopg2 import sql

from demo.load import load
from demo.server import MIGRATION_ROLE, Server

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE, EMPTY_TEMPLATE = "template_baseline", "template_schema"
SCALE = "0.1"
PLAYBOOK_TIMEOUT_S = 600


@dataclass(frozen=True)
class Database:
    """A database of the throwaway server. Connects as the migration role unless told otherwise."""

    name: str
    server: Server

    @property
    def host(self) -> str:
        return self.server.host

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def socket_dir(self) -> str | None:
        return self.server.socket_dir

    @property
    def passfile(self) -> str:
        return str(self.server.passfile)

    def dsn(self, user: str = MIGRATION_ROLE) -> dict[str, Any]:
        """Arguments for psycopg2.connect."""
        return {"host": self.host, "port": self.port, "dbname": self.name, "user": user, "passfile": self.passfile}

    def connect(self, user: str = MIGRATION_ROLE, autocommit: bool = True, **options: Any) -> Any:
        """A psycopg2 connection; the caller closes it. One left open is cut when the database is dropped."""
        connection = psycopg2.connect(**(self.dsn(user) | {"connect_timeout": 10} | options))
        connection.autocommit = autocommit
        return connection

    def query(self, statement: str, *args: Any, user: str = MIGRATION_ROLE) -> list[tuple[Any, ...]]:
        """Rows of one statement run in a session of its own; [] where it returns none. Without args % is literal."""
        with contextlib.closing(self.connect(user)) as connection, connection.cursor() as cursor:
            cursor.execute(statement, args or None)
            return list(cursor.fetchall()) if cursor.description else []

    def value(self, statement: str, *args: Any, user: str = MIGRATION_ROLE) -> Any:
        """The one value of a statement that returns one row of one column."""
        ((found,),) = self.query(statement, *args, user=user)
        return found

    def execute(self, statement: str, *args: Any, user: str = MIGRATION_ROLE) -> None:
        """Run statements in a session of its own (several in one string are one transaction)."""
        self.query(statement, *args, user=user)

    def variables(self) -> dict[str, Any]:
        """The playbooks' connection variables."""
        return {
            "postgresql_host": self.host,
            "postgresql_port": self.port,
            "postgresql_db": self.name,
            "postgresql_user": MIGRATION_ROLE,
            "postgresql_passfile": self.passfile,
            "postgresql_bin_dir": self.server.connection["client_bin_dir"],
        }


# ---- server and databases

for _name in list(os.environ):  # settings of libpq speak of another server
    if _name.startswith("PG") and not _name.startswith("PGROLLOUT_"):
        del os.environ[_name]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A started throwaway PostgreSQL with the roles `rollout` and `hive_app`, without fsync."""
    # not in pytest's tmp_path: its path is too long for a socket, and closed to the account that runuser may need
    with tempfile.TemporaryDirectory(prefix="pgrollout-") as folder:
        made = Server(folder, fsync=False)
        try:
            made.start()
            yield made
        finally:
            made.stop("immediate")


def _template(server: Server, name: str, data: bool) -> str:
    load(server, name, SCALE, data=data)
    _administer(server, "ALTER DATABASE {} ALLOW_CONNECTIONS false", name)
    return name


def _administer(server: Server, statement: str, *names: str) -> None:
    with contextlib.closing(server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """Name of the database with the baseline's schema and data that `database` clones."""
    return _template(server, TEMPLATE, data=True)


@pytest.fixture(scope="session")
def empty_template(server: Server) -> str:
    """Name of the database with the baseline's schema that `empty_database` clones."""
    return _template(server, EMPTY_TEMPLATE, data=False)


_numbers = itertools.count(1)


class Databases:
    """Makes clones for one test and drops them after it, sessions in them included."""

    def __init__(self, server: Server, request: pytest.FixtureRequest) -> None:
        self._server = server
        self._request = request
        self._made: list[str] = []

    def clone(self, empty: bool = False, name: str | None = None, source: str | None = None) -> Database:
        source = source or self._request.getfixturevalue("empty_template" if empty else "template")
        name = name or f"hive_{os.getpid()}_{next(_numbers)}"
        self._made.append(name)
        # a copy of files is the quickest here; versions before 15 know no other way and no such option
        with contextlib.closing(self._server.connect()) as connection:
            strategy = " STRATEGY file_copy" if connection.server_version >= 150000 else ""
        _administer(
            self._server, f"CREATE DATABASE {{}} OWNER {{}} TEMPLATE {{}}{strategy}", name, MIGRATION_ROLE, source
        )
        return Database(name, self._server)

    def loaded(self, scale: str) -> Database:
        """The baseline at another scale; 1 is 300,000 tasks."""
        name = f"hive_{os.getpid()}_{next(_numbers)}"
        self._made.append(name)
        load(self._server, name, scale)
        return Database(name, self._server)

    def drop(self) -> None:
        if self._made and not self._server.pid():
            self._server.start()  # a test of server stops ended with it down
        while self._made:
            _administer(self._server, "DROP DATABASE IF EXISTS {} WITH (FORCE)", self._made.pop())


@pytest.fixture
def databases(server: Server, request: pytest.FixtureRequest) -> Iterator[Databases]:
    """`databases.clone()` and `databases.clone(empty=True)`: further databases of the test's own."""
    made = Databases(server, request)
    yield made
    made.drop()


@pytest.fixture
def database(databases: Databases) -> Database:
    """A fresh database with the baseline's schema and data (30,000 tasks)."""
    return databases.clone()


@pytest.fixture
def empty_database(databases: Databases) -> Database:
    """A fresh database with the baseline's schema and no rows."""
    return databases.clone(empty=True)


# ---- playbooks

RECAP_LINE = re.compile(r"^(\S+)\s+: (ok=\d+ .*)$", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """A finished ansible-playbook. `recap` maps host to {ok, changed, unreachable, failed, skipped, …}."""

    rc: int
    stdout: str
    stderr: str
    seconds: float = 0.0
    recap: dict[str, dict[str, int]] = field(init=False)

    def __post_init__(self) -> None:
        _, _, tail = self.stdout.rpartition("PLAY RECAP")
        found = {
            host: {name: int(value) for name, value in (pair.split("=") for pair in counts.split())}
            for host, counts in RECAP_LINE.findall(tail)
        }
        object.__setattr__(self, "recap", found)

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def told(self) -> str:
        """The output, and what it says of errors once more at its end, where a long log is cut off before it."""
        return "\n".join([self.output, *re.findall(r"^\[ERROR\]: .*$", self.output, re.MULTILINE)])

    @property
    def changed(self) -> int:
        """Changed tasks over all hosts; -1 when the run never came to its recap."""
        return sum(counts["changed"] for counts in self.recap.values()) if self.recap else -1

    @property
    def failed(self) -> int:
        return sum(counts["failed"] + counts["unreachable"] for counts in self.recap.values())


class Started:
    """A running ansible-playbook in a process group of its own, its output going to a file."""

    def __init__(self, command: list[str], environ: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._workers: list[psutil.Process] = []
        self.began = time.monotonic()
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the whole process group; what the modules started in sessions of their own lives on."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> Run:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._workers += psutil.Process(self.pid).children(recursive=True)
        self.signal(signal.SIGKILL)
        return self.wait()

    def end(self) -> None:
        """End it if it runs, and the workers of a killed one: each waits for ever to hand over a large result."""
        if self.process.poll() is None:
            self.kill()
        for worker in self._workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()  # psutil sees to it that it is still the same process

    def wait(self, timeout: float = PLAYBOOK_TIMEOUT_S) -> Run:
        rc = self.process.wait(timeout)
        return Run(rc, self.output, "", time.monotonic() - self.began)

    def wait_for(self, text: str, timeout: float = 60) -> None:
        """Wait until the output shows `text`."""
        end = time.monotonic() + timeout
        while text not in self.output:
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"{text!r} did not appear in:\n{self.output}")
            time.sleep(0.05)


class Playbook:
    """Runs this project's playbooks against a test database, as a user does from the project's root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self.started: list[Started] = []

    def _command(self, playbook: str | Path, args: tuple[str, ...], variables: Mapping[str, Any]) -> list[str]:
        overrides = self._folder / f"variables_{next(self._numbers)}.json"
        overrides.write_text(json.dumps(variables))
        program = Path(sys.executable).parent / "ansible-playbook"
        return [str(program), str(playbook), "-i", "inventories", "-l", "local", "-e", f"@{overrides}", *args]

    def _environ(self, env: Mapping[str, str] | None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        own = {
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_HOME": str(self._folder),  # the tests leave nothing in the home folder
            "ANSIBLE_REMOTE_TMP": str(self._folder / "tmp"),
            "ANSIBLE_ASYNC_DIR": str(self._folder / "async"),
            "LC_ALL": "C.UTF-8",
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return kept | own | {"PATH": path} | dict(env or {})

    def __call__(
        self,
        playbook: str | Path,
        *args: str,
        database: Database | None = None,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        variables: Mapping[str, Any] | None = None,
        timeout: float = PLAYBOOK_TIMEOUT_S,
    ) -> Run:
        """Run to the end. `check` makes a failed run fail the test, showing its output; `variables` are further -e."""
        given = (database.variables() if database else {}) | dict(variables or {})
        command, began = self._command(playbook, args, given), time.monotonic()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._environ(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        run = Run(done.returncode, done.stdout, done.stderr, time.monotonic() - began)
        assert not check or run.rc == 0, f"{playbook} {' '.join(args)} ended with {run.rc}:\n{run.output}"
        return run

    def start(
        self,
        playbook: str | Path,
        *args: str,
        database: Database | None = None,
        env: Mapping[str, str] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Started:
        """Start it in a process group of its own; one still running when the test ends is killed."""
        given = (database.variables() if database else {}) | dict(variables or {})
        log = self._folder / f"run_{next(self._numbers)}.log"
        started = Started(self._command(playbook, args, given), self._environ(env), log)
        self.started.append(started)
        return started


@pytest.fixture
def playbook(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Playbook]:
    """`playbook("migrate.yml", *args, database=…)`."""
    request.getfixturevalue("databases")  # so that runs end before their databases go
    folder = tmp_path / "ansible"
    folder.mkdir()
    runner = Playbook(folder)
    yield runner
    for started in runner.started:
        started.end()
