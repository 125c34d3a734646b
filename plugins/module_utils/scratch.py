# Copyright: contributors of this project
# GNU General Public License v3.0 or later (see LICENSE)
"""Somewhere to restore a backup into, which is gone afterwards whatever happened: a server of its own, or a database.

The server of its own costs the production server nothing, lets pg_amcheck look at everything, and is taken where this
host has the server's programs of the same major version.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import psycopg2
    from psycopg2 import sql
except ImportError:
    psycopg2 = None

if TYPE_CHECKING:
    from plugins.module_utils import backup_files, unprivileged
    from plugins.module_utils.pg_programs import ask, major
    from plugins.module_utils.pg_session import Refused, connect
else:
    from ansible.module_utils import backup_files, unprivileged
    from ansible.module_utils.pg_programs import ask, major
    from ansible.module_utils.pg_session import Refused, connect

SCRATCH = "pgrollout_scratch_"
SCRATCH_LOCK = 1885827699  # class of the advisory locks that mark a scratch database as in use
START_S = 3600  # a base backup first replays the WAL it brings; a server that has ended is noticed at once
SUPERUSER = "postgres"
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "autovacuum": "off",
    "jit": "off",
    "maintenance_work_mem": "256MB",
}

# A scratch database without its advisory lock has lost its session: its run is dead.
DEAD_SCRATCH = """
SELECT datname FROM pg_database d
WHERE datname LIKE %(like)s AND pg_has_role(datdba, 'USAGE')
  AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted
                  AND l.classid::bigint = %(lock)s AND l.objid::bigint = hashtext(datname)::bigint & 4294967295)
"""

SOURCE = "SELECT to_jsonb(d), pg_encoding_to_char(encoding) FROM pg_database d WHERE datname = current_database()"


# ---- a server of its own


def server_programs(bin_dir: Path, server_major: int) -> bool:
    """Whether initdb and postgres of the server's major version are beside pg_restore."""
    if not all(os.access(bin_dir / name, os.X_OK) for name in ("initdb", "postgres")):
        return False
    answer = ask([str(bin_dir / "postgres"), "--version"])
    return answer.returncode == 0 and major(answer.stdout.strip()) == server_major


@contextlib.contextmanager
def folder_of(path: Path) -> Iterator[Path]:
    """A folder beside a backup, and like an unfinished one to whoever cleans up: it is removed once nobody holds it."""
    folder = path.with_name(f"{path.name}-scratch{backup_files.PARTIAL}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(0o700)
    mine = backup_files.lock(folder)
    try:
        yield folder
    finally:
        os.close(mine)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def server(
    folder: Path, bin_dir: Path, source: Any, params: dict[str, Any], application: str
) -> Iterator[dict[str, Any]]:
    """A server below `folder` with an empty database like the one of the session `source`; how to connect to it."""
    data = folder / "data"
    data.mkdir(mode=0o700)
    account = _account()
    if account:
        shutil.chown(data, account)
    _make(unprivileged.prefix(account), bin_dir, data)
    with (data / "postgresql.conf").open("a") as conf:
        conf.write(_settings({**SETTINGS, "wal_level": "minimal"}))
    with _started(folder, bin_dir, account, [], params, SUPERUSER, application) as there:
        with contextlib.closing(connect(there, application)) as session, session.cursor() as cursor:
            create(cursor, source, "scratch")
        yield {**there, "login_db": "scratch"}


@contextlib.contextmanager
def copy(
    folder: Path, bin_dir: Path, params: dict[str, Any], application: str, superuser: str, settings: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """The server whose data directory is folder/data, a base backup with the WAL it needs; how to connect to it.

    Its own configuration speaks of another host, or is not in its directory: it is not read.
    """
    account = _account()
    for name, text in (("hba.conf", "local all all trust\n"), ("ident.conf", "")):
        (folder / name).write_text(text)
    files = {"hba_file": str(folder / "hba.conf"), "ident_file": str(folder / "ident.conf")}
    (folder / "server.conf").write_text(_settings({**SETTINGS, **settings, **files}))
    if account:
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, account)
    own = ["-c", f"config_file={folder / 'server.conf'}"]
    with _started(folder, bin_dir, account, own, params, superuser, application) as there:
        yield there


def _account() -> str | None:
    """For `runuser`; None for a user who is not root, and for root where namespaces work."""
    return unprivileged.account() if os.geteuid() == 0 and not unprivileged.namespace_works() else None


def _settings(settings: dict[str, str]) -> str:
    return "".join(f"{name} = '{value}'\n" for name, value in settings.items())


@contextlib.contextmanager
def _started(
    folder: Path,
    bin_dir: Path,
    account: str | None,
    options: list[str],
    params: dict[str, Any],
    superuser: str,
    application: str,
) -> Iterator[dict[str, Any]]:
    """The server of folder/data as long as the body runs; how to connect to its database postgres."""
    with tempfile.TemporaryDirectory(prefix="pgrollout-") as sockets:  # a short path: a socket's has 103 bytes at most
        if account:
            shutil.chown(sockets, account)
        argv = [*unprivileged.prefix(account), str(bin_dir / "postgres"), "-D", str(folder / "data"), "-k", sockets]
        with _running([*argv, *options], folder) as process:
            none = dict.fromkeys(("login_password", "passfile", "ca_cert", "ssl_cert", "ssl_key"))
            there = {**params, **none, "ssl_mode": "disable", "login_host": sockets, "login_port": 5432}
            there = {**there, "login_user": superuser, "login_db": "postgres"}
            with contextlib.closing(_answering(there, application, process)):
                yield there


def _make(before: list[str], bin_dir: Path, data: Path) -> None:
    argv = [*before, str(bin_dir / "initdb"), "-D", str(data), "--auth=trust", "--no-sync", "--data-checksums"]
    argv += [f"--username={SUPERUSER}", "--encoding=UTF8", "--no-locale"]
    done = ask(argv)
    if done.returncode:
        raise Refused(f"A scratch server could not be made in {data}: {(done.stderr or done.stdout).strip()[-1000:]}")


@contextlib.contextmanager
def _running(argv: list[str], folder: Path) -> Iterator[Any]:
    """The server runs as long as the body, and no longer than this process, however that ends."""
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, cwd="/", stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=_plain(), start_new_session=True
        )
    with _guarded(process.pid, folder):
        try:
            yield process
        except psycopg2.OperationalError as error:
            if process.poll() is None:
                raise
            said = log.read_text(errors="replace").strip()[-1000:]
            raise Refused(f"The scratch server in {folder} ended: {said or error}") from error
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGQUIT)
                process.wait()


@contextlib.contextmanager
def _guarded(pid: int, folder: Path) -> Iterator[None]:
    """A child that outlives this process only to end the server and remove its folder, where this process is killed."""
    hear, hold = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(hold)
        os.closerange(3, hear)
        os.closerange(hear + 1, 4096)
        if not os.read(hear, 1):  # the other end is gone, and nobody has said that all is well
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
    os.close(hear)
    try:
        yield
    finally:
        os.write(hold, b".")
        os.close(hold)
        os.waitpid(child, 0)


def _plain() -> dict[str, str]:
    """The environment without what speaks of another server."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("PG")}, "LC_ALL": "C"}


def _answering(params: dict[str, Any], application: str, process: Any) -> Any:
    until = time.monotonic() + START_S
    while True:
        try:
            return connect(params, application)
        except psycopg2.OperationalError:
            if process.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.05)


# ---- a database of the same server


@contextlib.contextmanager
def database(source: Any, params: dict[str, Any], run: str, removed: list[str]) -> Iterator[dict[str, Any]]:
    """An empty database beside the one of the session `source`; how to connect to it. Those of dead runs go first."""
    name = SCRATCH + run
    with source.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", (SCRATCH_LOCK, name))
        if not cursor.fetchone()[0]:
            raise Refused(f"Scratch database {name} is in use by another verification of the same run; wait for it.")
        cursor.execute(DEAD_SCRATCH, {"like": SCRATCH.replace("_", r"\_") + "%", "lock": SCRATCH_LOCK})
        removed += [dead for (dead,) in cursor.fetchall()]
        for dead in {*removed, name}:
            drop(cursor, dead)
        try:
            create(cursor, source, name)
            yield {**params, "login_db": name}
        finally:
            drop(cursor, name)


def create(cursor: Any, source: Any, name: str) -> None:
    """An empty database with the source's encoding and collation, closed to other roles: it holds real data."""
    with source.cursor() as asked:
        asked.execute(SOURCE)
        like, encoding = asked.fetchone()
    options = {
        "TEMPLATE": "template0",
        "ENCODING": encoding,
        "LC_COLLATE": like["datcollate"],
        "LC_CTYPE": like["datctype"],
    }
    provider = {"i": "icu", "b": "builtin"}.get(like.get("datlocprovider", "c"))
    if provider:
        options["LOCALE_PROVIDER"] = provider
        options[f"{provider.upper()}_LOCALE"] = like.get("datlocale") or like.get("daticulocale")
    clauses = [sql.SQL("{} {}").format(sql.SQL(key), sql.Literal(value)) for key, value in options.items()]
    try:
        cursor.execute(sql.SQL("CREATE DATABASE {} WITH {}").format(sql.Identifier(name), sql.SQL(" ").join(clauses)))
    except psycopg2.Error as error:
        if "locale" not in str(error):
            raise
        raise Refused(
            f"The scratch server on this host cannot make a database like this one: {str(error).strip()} "
            "Install the locale here, or say backup_verify_on: database, which restores beside the original."
        ) from error
    cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM public").format(sql.Identifier(name)))


def drop(cursor: Any, name: str) -> None:
    cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
