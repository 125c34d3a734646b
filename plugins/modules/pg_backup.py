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
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ansible.module_utils.basic import AnsibleModule

try:
    import psycopg2
except ImportError:
    psycopg2 = None

if TYPE_CHECKING:
    from plugins.module_utils import backup_files, database_contents, pg_programs, scratch
    from plugins.module_utils.pg_session import OPTIONS, Refused, connect, environment, where
else:
    from ansible.module_utils import backup_files, database_contents, pg_programs, scratch
    from ansible.module_utils.pg_session import OPTIONS, Refused, connect, environment, where

DOCUMENTATION = r"""
module: pg_backup
short_description: Dump a PostgreSQL database from one snapshot and verify the dump by restoring it
description:
  - C(state=inspected) tells what a backup would need and what there is. It changes nothing.
  - C(state=dumped) writes a directory-format dump, a manifest and checksums into a folder of its own. The folder
    carries the suffix C(.partial) until everything is on disk; leftovers of dead runs are removed, those of live ones
    are not.
  - C(state=verified) restores a backup into a scratch server of its own, or a scratch database beside the original, and
    compares what is there with what the snapshot held that the dump was made from, rows and digest of every table,
    every sequence, every object of the catalog. What was made for that is gone afterwards, whatever happened.
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
  keep_days:
    description: C(pruned) also removes those that are older; 0 is no limit. The newest verified one stays.
    type: int
    default: 0
  lock_timeout_seconds:
    description: How long the dump waits for a table that somebody has locked.
    type: int
    default: 60
  contents_sql:
    description: The SQL functions that tell what a database holds. Needed by C(dumped) and C(verified).
    type: str
  digest_max_bytes:
    description:
      - Of larger tables the rows are counted, and only a sample of them is compared, from ranges of the primary key.
        Without it the rows of all tables are compared. C(verified) takes the samples of the dump.
    type: int
  verify_on:
    description:
      - C(server) restores into a server of its own, made of this host's programs, which ends with the module.
      - C(database) restores into a database beside the original.
      - C(auto) is C(server) where the programs are there, in the server's major version.
    type: str
    choices: [auto, server, database]
    default: auto
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
    contents_sql: "{{ lookup('ansible.builtin.file', 'contents.sql') }}"
    login_db: agent_hive
  register: dump

- name: Verify
  pg_backup:
    state: verified
    path: "{{ dump['backup']['path'] }}"
    contents_sql: "{{ lookup('ansible.builtin.file', 'contents.sql') }}"
    login_db: agent_hive
"""

RETURN = r"""
facts:
  description: Sizes in bytes, versions, codec and privileges.
  returned: state is inspected
  type: dict
backup:
  description: Id, path, bytes, started, finished, lsn, number of tables, number of rows; when the state is verified,
    also verified, verified_on, restore_seconds, not_restored, counted_only, sampled, sequences, objects and amcheck.
  returned: state is dumped or verified
  type: dict
removed:
  description: Names of the folders and scratch databases that were removed.
  returned: success
  type: list
  elements: str
"""

FORMAT = 2  # of the manifest
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

# Extensions that only a superuser may create: a lesser role skips them in the scratch database, and the result says so.
SUPERUSER_EXTENSIONS = """
SELECT extname FROM pg_extension e JOIN pg_available_extension_versions v ON v.name = extname AND v.version = extversion
WHERE v.superuser AND NOT v.trusted AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
"""


def inspect(params: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any]
    with contextlib.closing(connect(params, "pgrollout/backup")) as session, session.cursor() as cursor:
        cursor.execute(INSPECT)
        (facts,) = cursor.fetchone()
    bin_dir, facts["client_version"] = pg_programs.find_clients(params["bin_dir"], facts["server_major"])
    facts["client_major"] = pg_programs.major(facts["client_version"])
    facts["bin_dir"], facts["zstd"] = str(bin_dir), pg_programs.knows_zstd(bin_dir)
    folder = Path(params["dir"]).absolute()
    while not folder.exists():
        folder = folder.parent
    facts["free_bytes"] = backup_files.free_bytes(folder)
    facts["scratch"] = _where_to_restore(params, bin_dir, facts["server_major"])
    data, address = facts.pop("data_directory"), facts.pop("server_address")
    visible = data is not None and backup_files.is_here(address) and os.access(data, os.F_OK)
    facts["server_free_bytes"] = backup_files.free_bytes(Path(data)) if visible else None
    facts["same_filesystem"] = visible and Path(data).stat().st_dev == folder.stat().st_dev
    return facts


def _where_to_restore(params: dict[str, Any], bin_dir: Path, server_major: int) -> str:
    """server: one of its own, made of this host's programs; database: beside the original, on its server."""
    wanted: str = params["verify_on"]
    there = scratch.server_programs(bin_dir, server_major)
    if wanted == "server" and not there:
        raise Refused(
            f"verify_on is server, but {bin_dir} has no initdb and postgres of PostgreSQL {server_major}; "
            "install the server's programs on this host, set postgresql_bin_dir, or say backup_verify_on: database."
        )
    return ("server" if there else "database") if wanted == "auto" else wanted


def summary(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    told = {key: manifest[key] for key in ("id", "bytes", "started", "finished", "lsn")}
    tables = manifest["contents"]["tables"].values()
    return {**told, "path": str(path), "tables": len(tables), "rows": sum(table["rows"] for table in tables)}


def dump(params: dict[str, Any]) -> dict[str, Any]:
    folder, database, run = Path(params["dir"]).absolute(), params["login_db"], params["run"] or uuid.uuid4().hex[:8]
    started = datetime.now(UTC)
    name = f"{quote(database, safe='')}-{started:{backup_files.STAMP}}-{run}"
    partial, complete = folder / (name + backup_files.PARTIAL), folder / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    gate = backup_files.lock(folder, wait=True)  # between mkdir and lock a new folder looks like one of a dead run
    removed = backup_files.sweep(folder, database)
    partial.mkdir(0o700)
    mine = backup_files.lock(partial)
    os.close(gate)
    try:
        manifest = {
            "format": FORMAT,
            "id": name,
            "run": run,
            "started": stamp(started),
            **dump_into(partial, params, run, mine),
        }
        backup_files.write(partial / backup_files.MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        backup_files.write(
            partial / backup_files.CHECKSUMS,
            "".join(f"{total}  {each}\n" for each, total in backup_files.checksums(partial).items()),
        )
        backup_files.sync(partial)
        partial.rename(complete)
        backup_files.sync(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(mine)
    return {"changed": True, "removed": removed, "backup": summary(complete, manifest)}


def dump_into(partial: Path, params: dict[str, Any], run: str, handle: int) -> dict[str, Any]:
    """pg_dump, and beside it what it should hold, both in one snapshot that this session has."""
    application = f"pgrollout/{run}/backup"
    with contextlib.closing(connect(params, application)) as session, session.cursor() as cursor:
        cursor.execute("SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000")
        server_version, server_major = cursor.fetchone()
        bin_dir, client_version = pg_programs.find_clients(params["bin_dir"], server_major)
        codec = params["compression"]
        if codec == "auto":
            codec = "zstd" if pg_programs.knows_zstd(bin_dir) else "gzip"
        database_contents.prepare(session, params["contents_sql"])
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", (f"{params['lock_timeout_seconds']}s",))
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor.execute("SELECT pg_export_snapshot(), pg_current_wal_lsn()::text")
        snapshot, lsn = cursor.fetchone()
        argv = [str(bin_dir / "pg_dump"), "--format=directory", f"--file={partial}", f"--jobs={params['jobs']}"]
        argv += [f"--snapshot={snapshot}", f"--lock-wait-timeout={params['lock_timeout_seconds']}s", "--no-password"]
        argv += {"zstd": ["--compress=zstd"], "gzip": [], "none": ["--compress=0"]}[codec]
        with pg_programs.client(argv, environment(params, application), [handle]):
            held = database_contents.contents(session, params["digest_max_bytes"])
        cursor.execute("COMMIT")
    return {
        "finished": stamp(datetime.now(UTC)),
        "database": params["login_db"],
        "server_version": server_version,
        "client_version": client_version,
        "compression": codec,
        "lsn": lsn,
        "bytes": sum(path.stat().st_size for path in partial.iterdir()),
        "contents": held,
    }


def stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def verify(params: dict[str, Any]) -> dict[str, Any]:
    path = Path(params["path"]).absolute()
    if not path.is_dir():
        raise Refused(f"{path} is not there; a backup made by state=dumped was expected.")
    try:
        mine = backup_files.lock(path)  # nobody prunes what is being read
    except BlockingIOError as error:
        raise Refused(f"{path} is being verified or removed by another run; wait for it.") from error
    try:
        with contextlib.suppress(FileNotFoundError):
            (path / backup_files.VERIFIED).unlink()  # an older proof does not outlive a failure
        backup_files.check_files(path)
        manifest = json.loads((path / backup_files.MANIFEST).read_text(encoding="utf-8"))
        if manifest["database"] != params["login_db"]:
            raise Refused(f"{path} is a backup of {manifest['database']}, not of {params['login_db']}.")
        if manifest["id"] != path.name:
            raise Refused(f"{path} says of itself that it is {manifest['id']}: another backup was put in its place.")
        if manifest["format"] != FORMAT:
            raise Refused(f"{path} is of format {manifest['format']}, not {FORMAT}: this program did not make it.")
        removed: list[str] = []
        restored, proof = restore(path, params, manifest, removed)
        wrong = database_contents.differences(_without(manifest["contents"], proof["not_restored"]), restored)
        if wrong:
            raise Refused(
                f"Backup {path}, restored, is not what the database held when it was made: {_few(wrong)}."
                " Do not rely on it; make a new one."
            )
        backup_files.write(
            path / backup_files.VERIFIED, json.dumps({**proof, "at": stamp(datetime.now(UTC))}, indent=2) + "\n"
        )
        backup_files.sync(path)
    finally:
        os.close(mine)
    return {"changed": True, "removed": removed, "backup": {**summary(path, manifest), **proof}}


def _without(held: dict[str, Any], not_restored: list[str]) -> dict[str, Any]:
    return {**held, "catalog": {name: what for name, what in held["catalog"].items() if name not in not_restored}}


def _few(phrases: list[str], most: int = 10) -> str:
    more = f"; and {len(phrases) - most} more" if len(phrases) > most else ""
    return "; ".join(phrases[:most]) + more


def restore(
    path: Path, params: dict[str, Any], manifest: dict[str, Any], removed: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the backup holds once it is restored, the proof); names of leftovers that went are added to `removed`."""
    run = params["run"] or manifest["run"]
    application = f"pgrollout/{run}/backup"
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(contextlib.closing(connect(params, application)))
        with session.cursor() as cursor:
            cursor.execute("SELECT current_setting('server_version_num')::int / 10000")
            server_major = cursor.fetchone()[0]
        bin_dir, client_version = pg_programs.find_clients(params["bin_dir"], server_major)
        way = _where_to_restore(params, bin_dir, server_major)
        if way == "server":
            folder = path.with_name(f"{path.name}-scratch{backup_files.PARTIAL}")
            stack.enter_context(_scratch_folder(folder))
            there = stack.enter_context(scratch.server(folder, bin_dir, session, params, application))
        else:
            there = stack.enter_context(scratch.database(session, params, run, removed))
        reader = stack.enter_context(contextlib.closing(connect(there, application)))
        left_out, seconds = _restore_into(
            there, reader, path, bin_dir, params, pg_programs.major(client_version) >= 17 > server_major
        )
        database_contents.prepare(reader, params["contents_sql"])
        found = database_contents.contents(reader, like=manifest["contents"]["tables"])
        checked = _amcheck(there, bin_dir, application) if way == "server" else "not run: it needs a scratch server"
    tables = manifest["contents"]["tables"].items()
    proof = {
        "verified": True,
        "verified_on": way,
        "restore_seconds": seconds,
        "not_restored": left_out,
        "counted_only": [name for name, table in tables if table["digest"] is None],
        "sampled": [name for name, table in tables if table["sample"]],
        "sequences": len(found["sequences"]),
        "objects": len(found["catalog"]),
        "amcheck": checked,
    }
    return found, proof


@contextlib.contextmanager
def _scratch_folder(folder: Path) -> Any:
    """Beside the backup, and like an unfinished one to whoever cleans up: it is removed once nobody holds it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(0o700)
    mine = backup_files.lock(folder)
    try:
        yield
    finally:
        os.close(mine)
        shutil.rmtree(folder, ignore_errors=True)


def _restore_into(
    there: dict[str, Any], session: Any, path: Path, bin_dir: Path, params: dict[str, Any], may_complain: bool
) -> tuple[list[str], float]:
    """(what was left out, seconds)"""
    application = f"{session.info.parameter_status('application_name')}"
    with session.cursor() as cursor:
        cursor.execute(SUPERUSER_EXTENSIONS)
        listing, skipped = table_of_contents(path, bin_dir, {name for (name,) in cursor.fetchall()})
    begun = time.monotonic()
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as listed:
        listed.write(listing)
        listed.flush()
        argv = [str(bin_dir / "pg_restore"), f"--dbname={there['login_db']}", f"--jobs={params['jobs']}"]
        argv += [f"--use-list={listed.name}", "--no-owner", "--no-privileges", "--no-tablespaces", "--no-password"]
        argv += ["--no-publications", "--no-subscriptions"]  # a scratch database replicates nothing
        if not may_complain:  # see only_unknown_timeout
            argv += ["--exit-on-error"]
        fast = {"PGOPTIONS": "-c synchronous_commit=off"}
        with pg_programs.client([*argv, str(path)], {**environment(there, application), **fast}):
            pass
    return skipped, round(time.monotonic() - begun, 1)


def _amcheck(there: dict[str, Any], bin_dir: Path, application: str) -> str:
    """Every table and index looked at from inside, as far as this server's contrib has what that needs."""
    program = bin_dir / "pg_amcheck"
    if not os.access(program, os.X_OK):
        return f"not run: {program} is not there"
    with contextlib.closing(connect(there, application)) as session, session.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'")
        if not cursor.fetchone()[0]:
            return "not run: the extension amcheck is not there"
    argv = [str(program), "--install-missing", "--heapallindexed", "--parent-check", "--rootdescend", "--no-password"]
    with pg_programs.client([*argv, there["login_db"]], environment(there, application)):
        pass
    return "passed"


def table_of_contents(path: Path, bin_dir: Path, untrusted: set[str]) -> tuple[str, list[str]]:
    """pg_restore's list of the dump without the extensions that this role may not create, and those."""
    answer = pg_programs.ask([str(bin_dir / "pg_restore"), "--list", str(path)])
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


def prune(params: dict[str, Any], pretend: bool) -> dict[str, Any]:
    folder = Path(params["dir"]).absolute()
    complete = backup_files.backups(folder, params["login_db"]) if folder.is_dir() else []
    newest_verified = next((path for path in complete if (path / backup_files.VERIFIED).exists()), None)
    days = params["keep_days"] or float("inf")
    removed = []
    for place, path in enumerate(complete):
        wanted = place < params["keep"] and backup_files.age_days(path, params["login_db"]) <= days
        if wanted or path == newest_verified:
            continue
        if not pretend:
            try:
                handle = backup_files.lock(path)
            except BlockingIOError:  # being verified
                continue
            # Half removed, it must not look like a backup.
            doomed = path.rename(path.with_name(path.name + backup_files.PARTIAL))
            shutil.rmtree(doomed)
            os.close(handle)
        removed.append(path.name)
    return {
        "changed": bool(removed),
        "removed": removed,
        "kept": [path.name for path in complete if path.name not in removed],
    }


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
    path = {"type": "path"}
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["inspected", "dumped", "verified", "pruned"], "default": "dumped"},
            "dir": path,
            "path": path,
            "run": {"type": "str"},
            "jobs": {"type": "int", "default": 2},
            "compression": {"type": "str", "choices": ["auto", "zstd", "gzip", "none"], "default": "auto"},
            "keep": {"type": "int", "default": 3},
            "keep_days": {"type": "int", "default": 0},
            "lock_timeout_seconds": {"type": "int", "default": 60},
            "contents_sql": {"type": "str"},
            "digest_max_bytes": {"type": "int"},
            "verify_on": {"type": "str", "choices": ["auto", "server", "database"], "default": "auto"},
            "bin_dir": path,
            **OPTIONS,
        },
        required_if=[
            ("state", "inspected", ["dir"]),
            ("state", "dumped", ["dir", "contents_sql"]),
            ("state", "verified", ["path", "contents_sql"]),
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
        module.fail_json(msg=f"PostgreSQL at {where(module.params)}: {str(error).strip()}")
    except (OSError, json.JSONDecodeError, KeyError) as error:
        module.fail_json(msg=f"Backup in {module.params['dir'] or module.params['path']}: {error}")


if __name__ == "__main__":
    main()
