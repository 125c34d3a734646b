#!/usr/bin/python
# Copyright: contributors of this project
# GNU General Public License v3.0 or later (see LICENSE)
"""Back up one PostgreSQL database with pg_dump, and prove the backup by restoring it.

Runs on the target host and needs nothing there but Python, psycopg2 and PostgreSQL's own clients. It is a module, not a
list of tasks, for two reasons: the exported snapshot lives only as long as the session that holds it, and what must be
cleaned up (a half-written folder, a scratch database) must be cleaned up even when the controller has gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ansible.module_utils.basic import AnsibleModule

try:
    import psycopg2
    from psycopg2 import sql
except ImportError:
    psycopg2 = None

DOCUMENTATION = r"""
module: pg_backup
short_description: Dump a PostgreSQL database from one snapshot and verify the dump by restoring it
description:
  - C(state=inspected) tells what a backup would need and what there is. It changes nothing.
  - C(state=dumped) writes a directory-format dump, a manifest and checksums into a folder of its own. The folder
    carries the suffix C(.partial) until everything is on disk; leftovers of dead runs are removed, those of live ones
    are not.
  - C(state=verified) restores a backup into a scratch database on the same server, compares the row count of every
    table with the count in the snapshot the dump was made from, and drops the scratch database, whatever happened.
  - C(state=pruned) removes old backups of the database, never the newest verified one.
options:
  state:
    description: What to do.
    type: str
    choices: [inspected, dumped, verified, pruned]
    default: dumped
  dir:
    description: Folder that holds the backups, made with mode 0700 when missing. Needed by all states but C(verified).
    type: path
  path:
    description: The backup to verify. Needed by C(verified).
    type: path
  run:
    description: Id of the run, part of the backup's name and of the scratch database's. Letters, digits, C(-) and C(_).
    type: str
  jobs:
    description: Parallel jobs of pg_dump and pg_restore. A dump takes this many connections and two more.
    type: int
    default: 2
  compression:
    description: C(auto) is zstd where pg_dump was built with it, else gzip.
    type: str
    choices: [auto, zstd, gzip, none]
    default: auto
  keep:
    description: How many backups C(pruned) keeps. The newest verified one stays on top of that.
    type: int
    default: 3
  lock_timeout_seconds:
    description: How long the dump waits for a table that somebody has locked.
    type: int
    default: 60
  bin_dir:
    description: Folder of pg_dump and pg_restore. Without it, PATH and the usual places are searched.
    type: path
  login_host:
    description: Server, or the folder of its socket.
    type: str
  login_port:
    description: Port.
    type: int
    default: 5432
  login_user:
    description: Role.
    type: str
    default: postgres
  login_password:
    description: Password. Handed to the clients in their environment, never in their arguments.
    type: str
  login_db:
    description: The database.
    type: str
    required: true
  passfile:
    description: libpq password file.
    type: path
  ssl_mode:
    description: libpq sslmode.
    type: str
    default: prefer
  ca_cert:
    description: Root certificate that the server's certificate is checked against.
    type: path
  ssl_cert:
    description: Client certificate.
    type: path
  ssl_key:
    description: Key of the client certificate.
    type: path
"""

EXAMPLES = r"""
- name: Dump
  pg_backup:
    dir: /var/backups/agent_hive
    login_db: agent_hive
  register: dump

- name: Verify
  pg_backup:
    state: verified
    path: "{{ dump['backup']['path'] }}"
    login_db: agent_hive
"""

RETURN = r"""
facts:
  description: Sizes in bytes, versions, codec and privileges.
  returned: state is inspected
  type: dict
backup:
  description: Id, path, bytes, started, finished, lsn, number of tables, number of rows; when the state is verified,
    also verified, restore_seconds and not_restored.
  returned: state is dumped or verified
  type: dict
removed:
  description: Names of the folders and scratch databases that were removed.
  returned: success
  type: list
  elements: str
"""

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
VERIFIED = "verified.json"
PARTIAL = ".partial"
SCRATCH = "pgrollout_scratch_"
SCRATCH_LOCK = 1885827699  # class of the advisory locks that mark a scratch database as in use
BIN_DIRS = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin", "usr/local/pgsql/bin")
UTC = timezone.utc  # noqa: UP017  (a target host's Python may be older than the controller's)

INSPECT = """
SELECT to_jsonb(i) FROM (
    SELECT current_setting('server_version_num')::int / 10000 AS server_major,
           current_setting('server_version') AS server_version,
           pg_database_size(current_database()) AS database_bytes,
           (SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user) AS may_create_database,
           (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS data_directory,
           host(inet_server_addr()) AS server_address
) i
"""

# Tables whose rows pg_dump writes: not foreign tables, not temporary ones, not what belongs to an extension.
TABLES = """
SELECT n.nspname, c.relname, format('%I.%I', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't'
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1, 2
"""

SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname <> 'information_schema' AND nspname !~ '^pg_' ORDER BY 1"

# A scratch database without its advisory lock has lost its session: its run is dead.
DEAD_SCRATCH = """
SELECT datname FROM pg_database d
WHERE datname LIKE %(like)s AND pg_has_role(datdba, 'USAGE')
  AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted
                  AND l.classid::bigint = %(lock)s AND l.objid::bigint = hashtext(datname)::bigint & 4294967295)
"""

# Extensions that only a superuser may create: a lesser role skips them in the scratch database, and the result says so.
SUPERUSER_EXTENSIONS = """
SELECT extname FROM pg_extension e JOIN pg_available_extension_versions v ON v.name = extname AND v.version = extversion
WHERE v.superuser AND NOT v.trusted AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
"""


class Refused(Exception):  # noqa: N818  (it reads as what it is: raise Refused(...))
    """A sentence for the operator: what was found, what was expected, what to do."""


# ------------------------------------------------------------------------------------------------- connection, clients


def connect(params: dict[str, Any], application: str, database: str | None = None) -> Any:
    """An autocommit session that no server-side timeout ends while it waits for pg_dump or pg_restore."""
    wanted = {
        "host": params["login_host"],
        "port": params["login_port"],
        "user": params["login_user"],
        "password": params["login_password"],
        "dbname": database or params["login_db"],
        "passfile": params["passfile"],
        "sslmode": params["ssl_mode"],
        "sslrootcert": params["ca_cert"],
        "sslcert": params["ssl_cert"],
        "sslkey": params["ssl_key"],
        "application_name": application,
        "connect_timeout": 10,
    }
    session = psycopg2.connect(**{key: value for key, value in wanted.items() if value not in (None, "")})
    session.autocommit = True
    with session.cursor() as cursor:
        for setting in ("statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"):
            cursor.execute("SELECT set_config(name, '0', false) FROM pg_settings WHERE name = %s", (setting,))
        cursor.execute("SET client_connection_check_interval = '1s'")
    return session


def environment(params: dict[str, Any], application: str) -> dict[str, str]:
    """The same connection for PostgreSQL's clients; the environment, unlike the arguments, is not shown by ps."""
    wanted = {
        "PGHOST": params["login_host"],
        "PGPORT": params["login_port"],
        "PGUSER": params["login_user"],
        "PGPASSWORD": params["login_password"],
        "PGDATABASE": params["login_db"],
        "PGPASSFILE": params["passfile"],
        "PGSSLMODE": params["ssl_mode"],
        "PGSSLROOTCERT": params["ca_cert"],
        "PGSSLCERT": params["ssl_cert"],
        "PGSSLKEY": params["ssl_key"],
        "PGAPPNAME": application,
        "PGCONNECT_TIMEOUT": 10,
        "LC_ALL": "C",
    }
    return {**os.environ, **{key: str(value) for key, value in wanted.items() if value not in (None, "")}}


def die_with_parent() -> None:
    """A client must not go on holding locks and a snapshot for a module that was killed (Linux has a call for it)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextlib.contextmanager
def client(argv: list[str], env: dict[str, str], keep_open: Iterable[int] = ()) -> Iterator[Any]:
    """Run a client beside the body of the with statement, then wait for it; raise with its own words when it fails."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=tuple(keep_open),
            preexec_fn=die_with_parent,
        )
        try:
            yield process
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()
    if code and not only_unknown_timeout(said):
        raise Refused(f"{Path(argv[0]).name} ended with {code}: {said[-2000:]}")


def only_unknown_timeout(said: str) -> bool:
    """True when all that pg_restore 17+ reports is that an older server does not know transaction_timeout.

    It sets that parameter in each of its sessions; on a server before 17 this is harmless and cannot be switched off.
    """
    errors = re.findall(r"^pg_\w+: error: (.*)$", said, re.MULTILINE)
    known = 'ERROR:  unrecognized configuration parameter "transaction_timeout"'
    return "errors ignored on restore" in said and all(error.endswith(known) for error in errors)


def major(version: str) -> int:
    """17 of "pg_dump (PostgreSQL) 17.10 (Debian 17.10-1)"; 0 of anything else."""
    found = re.match(r"\w+ \(.*?\) (\d+)", version)
    return int(found.group(1)) if found else 0


def find_clients(bin_dir: str | None, server_major: int) -> tuple[Path, str]:
    """Folder and version of pg_dump: the server's own major version if it is here, else the newest."""
    usual = [folder for pattern in BIN_DIRS for folder in sorted(Path("/").glob(pattern), reverse=True)]
    searched = [*map(Path, os.environ.get("PATH", "").split(os.pathsep)), *usual]
    found = []
    for folder in [Path(bin_dir)] if bin_dir else searched:
        if all(os.access(folder / name, os.X_OK) for name in ("pg_dump", "pg_restore")):
            answer = ask([str(folder / "pg_dump"), "--version"])
            if answer.returncode == 0:
                found.append((folder, answer.stdout.strip()))
    if not found:
        raise Refused(
            f"pg_dump and pg_restore are not in {bin_dir or 'PATH and the usual folders'}; the clients of PostgreSQL"
            f" {server_major} are needed on the host that makes the backup. Install them or set postgresql_bin_dir."
        )
    return max(found, key=lambda each: (major(each[1]) == server_major, major(each[1])))


def ask(argv: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a client that only tells something, in English."""
    return subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})


def knows_zstd(bin_dir: Path) -> bool:
    """Ask pg_dump itself: it looks at the codec before it tries to connect."""
    answer = ask([str(bin_dir / "pg_dump"), "--compress=zstd", "--host=/nonexistent", "--file=/dev/null"])
    return "connection to server" in answer.stderr


# ----------------------------------------------------------------------------------------------------- files and disks


def free_bytes(path: Path) -> int:
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize


def is_here(address: str | None) -> bool:
    """True when the server's address (None: a Unix socket) belongs to this host: only then can it be bound."""
    if address is None:
        return True
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def lock(folder: Path, wait: bool = False) -> int:
    """Lock a folder; the kernel lets go when the last process that has it open ends. BlockingIOError: it is taken."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        raise
    return handle


def sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)


def digest(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            total.update(chunk)
        os.fsync(file.fileno())
    return total.hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """Digest of every file that SHA256SUMS covers; each is on disk afterwards."""
    names = {path.name for path in folder.iterdir()} - {CHECKSUMS, VERIFIED, VERIFIED + ".new"}
    return {name: digest(folder / name) for name in sorted(names)}


def check_files(folder: Path) -> None:
    """Refuse a backup whose files are not, name by name and byte by byte, those that were written."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        expected = {name: total for total, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise Refused(
            f"{folder} is not a complete backup: {CHECKSUMS} cannot be read ({error}). Make a new one."
        ) from error
    found = checksums(folder)
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    wrong += [f"{name} does not belong to it" for name in sorted(found.keys() - expected.keys())]
    wrong += [f"{name} has changed" for name in sorted(found.keys() & expected.keys()) if found[name] != expected[name]]
    if wrong:
        raise Refused(f"Backup {folder} is not as it was written: {'; '.join(wrong)}. Do not use it; make a new one.")


def named(database: str, suffix: str = "") -> re.Pattern[str]:
    return re.compile(re.escape(quote(database, safe="")) + r"-\d{8}T\d{6}Z-[A-Za-z0-9_-]+" + re.escape(suffix) + "$")


def backups(folder: Path, database: str, suffix: str = "") -> list[Path]:
    """The database's backups, or with suffix its unfinished ones; newest first."""
    pattern = named(database, suffix)
    return sorted((path for path in folder.iterdir() if pattern.match(path.name)), reverse=True)


def sweep(folder: Path, database: str) -> list[str]:
    """Remove what dead runs left half-written. A live one holds the lock on its folder."""
    removed = []
    for path in backups(folder, database, PARTIAL):
        with contextlib.suppress(BlockingIOError):
            handle = lock(path)
            shutil.rmtree(path)
            os.close(handle)
            removed.append(path.name)
    return removed


# -------------------------------------------------------------------------------------------------------------- states


def inspect(params: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any]
    with contextlib.closing(connect(params, "pgrollout/backup")) as session, session.cursor() as cursor:
        cursor.execute(INSPECT)
        (facts,) = cursor.fetchone()
    bin_dir, facts["client_version"] = find_clients(params["bin_dir"], facts["server_major"])
    facts["client_major"] = major(facts["client_version"])
    facts["bin_dir"], facts["zstd"] = str(bin_dir), knows_zstd(bin_dir)
    folder = Path(params["dir"]).absolute()
    while not folder.exists():
        folder = folder.parent
    facts["free_bytes"] = free_bytes(folder)
    data, address = facts.pop("data_directory"), facts.pop("server_address")
    visible = data is not None and is_here(address) and os.access(data, os.F_OK)
    facts["server_free_bytes"] = free_bytes(Path(data)) if visible else None
    facts["same_filesystem"] = visible and Path(data).stat().st_dev == folder.stat().st_dev
    return facts


def count_rows(session: Any) -> dict[str, int]:
    """Rows of every table, by qualified name, in the session's snapshot. Fails where a row policy would hide rows."""
    with session.cursor() as cursor:
        cursor.execute("SET row_security = off")
        cursor.execute(TABLES)
        rows = {}
        for schema, table, name in cursor.fetchall():
            cursor.execute(sql.SQL("SELECT count(*) FROM ONLY {}").format(sql.Identifier(schema, table)))
            rows[name] = cursor.fetchone()[0]
    return rows


def summary(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    told = {key: manifest[key] for key in ("id", "bytes", "started", "finished", "lsn")}
    return {**told, "path": str(path), "tables": len(manifest["rows"]), "rows": sum(manifest["rows"].values())}


def dump(params: dict[str, Any]) -> dict[str, Any]:
    folder, database, run = Path(params["dir"]).absolute(), params["login_db"], params["run"] or uuid.uuid4().hex[:8]
    started = datetime.now(UTC)
    name = f"{quote(database, safe='')}-{started:%Y%m%dT%H%M%SZ}-{run}"
    partial, complete = folder / (name + PARTIAL), folder / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    gate = lock(folder, wait=True)  # between mkdir and lock a new folder looks like one of a dead run
    removed = sweep(folder, database)
    partial.mkdir(0o700)
    mine = lock(partial)
    os.close(gate)
    try:
        manifest = {
            "format": 1,
            "id": name,
            "run": run,
            "started": stamp(started),
            **dump_into(partial, params, run, mine),
        }
        write(partial / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        write(partial / CHECKSUMS, "".join(f"{total}  {each}\n" for each, total in checksums(partial).items()))
        sync(partial)
        partial.rename(complete)
        sync(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(mine)
    return {"changed": True, "removed": removed, "backup": summary(complete, manifest)}


def dump_into(partial: Path, params: dict[str, Any], run: str, handle: int) -> dict[str, Any]:
    """pg_dump, and beside it the row counts, both in one snapshot that this session holds."""
    application = f"pgrollout/{run}/backup"
    with contextlib.closing(connect(params, application)) as session, session.cursor() as cursor:
        cursor.execute("SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000")
        server_version, server_major = cursor.fetchone()
        bin_dir, client_version = find_clients(params["bin_dir"], server_major)
        codec = params["compression"]
        if codec == "auto":
            codec = "zstd" if knows_zstd(bin_dir) else "gzip"
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", (f"{params['lock_timeout_seconds']}s",))
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor.execute("SELECT pg_export_snapshot(), pg_current_wal_lsn()::text")
        snapshot, lsn = cursor.fetchone()
        argv = [str(bin_dir / "pg_dump"), "--format=directory", f"--file={partial}", f"--jobs={params['jobs']}"]
        argv += [f"--snapshot={snapshot}", f"--lock-wait-timeout={params['lock_timeout_seconds']}s", "--no-password"]
        argv += {"zstd": ["--compress=zstd"], "gzip": [], "none": ["--compress=0"]}[codec]
        with client(argv, environment(params, application), [handle]):
            rows = count_rows(session)
            cursor.execute(SCHEMAS)
            schemas = [schema for (schema,) in cursor.fetchall()]
        cursor.execute("COMMIT")
    return {
        "finished": stamp(datetime.now(UTC)),
        "database": params["login_db"],
        "server_version": server_version,
        "client_version": client_version,
        "compression": codec,
        "lsn": lsn,
        "bytes": sum(path.stat().st_size for path in partial.iterdir()),
        "schemas": schemas,
        "rows": rows,
    }


def stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def verify(params: dict[str, Any]) -> dict[str, Any]:
    path = Path(params["path"]).absolute()
    if not path.is_dir():
        raise Refused(f"{path} is not there; a backup made by state=dumped was expected.")
    try:
        mine = lock(path)  # nobody prunes what is being read
    except BlockingIOError as error:
        raise Refused(f"{path} is being verified or removed by another run; wait for it.") from error
    try:
        with contextlib.suppress(FileNotFoundError):
            (path / VERIFIED).unlink()  # an older proof does not outlive a failure
        check_files(path)
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["database"] != params["login_db"]:
            raise Refused(f"{path} is a backup of {manifest['database']}, not of {params['login_db']}.")
        restored, seconds, skipped, removed = restore(path, params, params["run"] or manifest["run"])
        wrong = differences(manifest["rows"], restored)
        if wrong:
            raise Refused(
                f"Backup {path}, restored, is not what the database held when it was made: {'; '.join(wrong)}."
                " Do not rely on it; make a new one."
            )
        proof = {"verified": True, "restore_seconds": seconds, "not_restored": skipped}
        write(path / VERIFIED, json.dumps({**proof, "at": stamp(datetime.now(UTC))}, indent=2) + "\n")
        sync(path)
    finally:
        os.close(mine)
    return {"changed": True, "removed": removed, "backup": {**summary(path, manifest), **proof}}


def differences(expected: dict[str, int], found: dict[str, int]) -> list[str]:
    """Tables whose row counts differ, each as a phrase."""
    told = []
    for table in sorted(expected.keys() | found.keys()):
        if expected.get(table) != found.get(table):
            counts = [f"{rows[table]} rows" if table in rows else "no such table" for rows in (expected, found)]
            told.append(f"{table} had {counts[0]}, restored {counts[1]}")
    return told


def restore(path: Path, params: dict[str, Any], run: str) -> tuple[dict[str, int], float, list[str], list[str]]:
    """Restore into a scratch database: rows by table, seconds, entries left out, leftovers removed."""
    application, scratch = f"pgrollout/{run}/backup", SCRATCH + run
    with contextlib.closing(connect(params, application)) as session, session.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", (SCRATCH_LOCK, scratch))
        if not cursor.fetchone()[0]:
            raise Refused(f"Scratch database {scratch} is in use by another verification of the same run; wait for it.")
        cursor.execute(DEAD_SCRATCH, {"like": SCRATCH.replace("_", r"\_") + "%", "lock": SCRATCH_LOCK})
        removed = [name for (name,) in cursor.fetchall()]
        for name in {*removed, scratch}:
            drop(cursor, name)
        cursor.execute("SELECT current_setting('server_version_num')::int / 10000")
        server_major = cursor.fetchone()[0]
        bin_dir, client_version = find_clients(params["bin_dir"], server_major)
        cursor.execute(SUPERUSER_EXTENSIONS)
        contents, skipped = table_of_contents(path, bin_dir, {name for (name,) in cursor.fetchall()})
        try:
            create(cursor, scratch)
            begun = time.monotonic()
            with tempfile.NamedTemporaryFile("w", encoding="utf-8") as listed:
                listed.write(contents)
                listed.flush()
                argv = [str(bin_dir / "pg_restore"), f"--dbname={scratch}", f"--jobs={params['jobs']}"]
                argv += [
                    f"--use-list={listed.name}",
                    "--no-owner",
                    "--no-privileges",
                    "--no-tablespaces",
                    "--no-password",
                ]
                argv += ["--no-publications", "--no-subscriptions"]  # a scratch database replicates nothing
                if not (major(client_version) >= 17 > server_major):  # see only_unknown_timeout
                    argv += ["--exit-on-error"]
                fast = {"PGOPTIONS": "-c synchronous_commit=off"}
                with client([*argv, str(path)], {**environment(params, application), **fast}):
                    pass
            seconds = round(time.monotonic() - begun, 1)
            with contextlib.closing(connect(params, application, scratch)) as reader:
                rows = count_rows(reader)
        finally:
            drop(cursor, scratch)
    return rows, seconds, skipped, removed


def table_of_contents(path: Path, bin_dir: Path, untrusted: set[str]) -> tuple[str, list[str]]:
    """pg_restore's list of the dump without the extensions that this role may not create, and those."""
    answer = ask([str(bin_dir / "pg_restore"), "--list", str(path)])
    if answer.returncode:
        raise Refused(f"pg_restore cannot read {path}: {answer.stderr.strip()[-2000:]}")
    kept, skipped = [], []
    for line in answer.stdout.splitlines(keepends=True):
        entry = re.match(r"\d+; \d+ \d+ (?:EXTENSION -|COMMENT - EXTENSION) (\S+)", line)
        if entry and entry.group(1) in untrusted:
            skipped.append(f"extension {entry.group(1)}")
        else:
            kept.append(line)
    return "".join(kept), sorted(set(skipped))


def create(cursor: Any, scratch: str) -> None:
    """An empty database with the source's encoding and collation, closed to other roles: it holds real data."""
    cursor.execute(
        "SELECT to_jsonb(d), pg_encoding_to_char(encoding) FROM pg_database d WHERE datname = current_database()"
    )
    source, encoding = cursor.fetchone()
    options = {
        "TEMPLATE": "template0",
        "ENCODING": encoding,
        "LC_COLLATE": source["datcollate"],
        "LC_CTYPE": source["datctype"],
    }
    provider = {"i": "icu", "b": "builtin"}.get(source.get("datlocprovider", "c"))
    if provider:
        options["LOCALE_PROVIDER"] = provider
        options[f"{provider.upper()}_LOCALE"] = source.get("datlocale") or source.get("daticulocale")
    clauses = [sql.SQL("{} {}").format(sql.SQL(key), sql.Literal(value)) for key, value in options.items()]
    cursor.execute(sql.SQL("CREATE DATABASE {} WITH {}").format(sql.Identifier(scratch), sql.SQL(" ").join(clauses)))
    cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM public").format(sql.Identifier(scratch)))


def drop(cursor: Any, scratch: str) -> None:
    cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(scratch)))


def prune(params: dict[str, Any], pretend: bool) -> dict[str, Any]:
    folder = Path(params["dir"]).absolute()
    complete = backups(folder, params["login_db"]) if folder.is_dir() else []
    newest_verified = next((path for path in complete if (path / VERIFIED).exists()), None)
    removed = []
    for path in complete[params["keep"] :]:
        if path == newest_verified:
            continue
        if not pretend:
            try:
                handle = lock(path)
            except BlockingIOError:  # being verified
                continue
            doomed = path.rename(path.with_name(path.name + PARTIAL))  # half removed, it must not look like a backup
            shutil.rmtree(doomed)
            os.close(handle)
        removed.append(path.name)
    return {
        "changed": bool(removed),
        "removed": removed,
        "kept": [path.name for path in complete if path.name not in removed],
    }


# ---------------------------------------------------------------------------------------------------------------- main


def answer(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    state = params["state"]
    if params["run"] and not re.match(r"[A-Za-z0-9_-]{1,40}$", params["run"]):
        raise Refused(f"Run id {params['run']!r} was given; 1 to 40 letters, digits, - and _ are allowed.")
    if state == "inspected":
        return {"changed": False, "facts": inspect(params)}
    if state == "pruned":
        return prune(params, check_mode)
    if check_mode:
        return {"changed": True, "removed": [], "backup": {}}
    return dump(params) if state == "dumped" else verify(params)


def stop(number: int, _frame: object) -> None:
    raise SystemExit(f"ended by signal {number}")


def main() -> None:
    text = {"type": "str"}
    path = {"type": "path"}
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["inspected", "dumped", "verified", "pruned"], "default": "dumped"},
            "dir": path,
            "path": path,
            "run": text,
            "jobs": {"type": "int", "default": 2},
            "compression": {"type": "str", "choices": ["auto", "zstd", "gzip", "none"], "default": "auto"},
            "keep": {"type": "int", "default": 3},
            "lock_timeout_seconds": {"type": "int", "default": 60},
            "bin_dir": path,
            "login_host": text,
            "login_port": {"type": "int", "default": 5432},
            "login_user": {"type": "str", "default": "postgres"},
            "login_password": {"type": "str", "no_log": True},
            "login_db": {"type": "str", "required": True},
            "passfile": {"type": "path", "no_log": False},
            "ssl_mode": {"type": "str", "default": "prefer"},
            "ca_cert": path,
            "ssl_cert": path,
            "ssl_key": {"type": "path", "no_log": False},
        },
        required_if=[
            ("state", "inspected", ["dir"]),
            ("state", "dumped", ["dir"]),
            ("state", "verified", ["path"]),
            ("state", "pruned", ["dir"]),
        ],
        supports_check_mode=True,
    )
    if psycopg2 is None:
        module.fail_json(
            msg=f"psycopg2 is not installed for {sys.executable} on this host; install it (python3-psycopg2)."
        )
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    os.umask(0o077)
    try:
        module.exit_json(**answer(module.params, module.check_mode))
    except Refused as error:
        module.fail_json(msg=str(error))
    except psycopg2.Error as error:
        where = f"{module.params['login_host'] or 'local socket'}, port {module.params['login_port']}"
        module.fail_json(msg=f"PostgreSQL at {where}, database {module.params['login_db']}: {str(error).strip()}")
    except (OSError, json.JSONDecodeError, KeyError) as error:
        module.fail_json(msg=f"Backup in {module.params['dir'] or module.params['path']}: {error}")


if __name__ == "__main__":
    main()
