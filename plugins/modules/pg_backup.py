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
    from plugins.module_utils import backup_files, logical_backup, pg_programs, physical_backup
    from plugins.module_utils.pg_session import OPTIONS, Refused, connect, where
else:
    from ansible.module_utils import backup_files, logical_backup, pg_programs, physical_backup
    from ansible.module_utils.pg_session import OPTIONS, Refused, connect, where

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
  - C(state=compared) compares the database with what somebody else has restored from a backup of it.
  - C(state=pruned) removes old backups of the database, never the newest verified one.
options:
  state:
    description: What to do.
    type: str
    choices: [inspected, dumped, verified, compared, pruned]
    default: dumped
  way:
    description:
      - C(dump) is pg_dump of the database, in directory format, from one snapshot.
      - C(basebackup) is pg_basebackup of the whole server, as tar files with the WAL they need; pg_verifybackup looks
        at them, and a server of its own is started from them. C(verified) takes the way from the backup.
    type: str
    choices: [dump, basebackup]
    default: dump
  dir:
    description: Folder that holds the backups, made with mode 0700 when missing. Needed by all states but C(verified).
    type: path
  path:
    description: The backup to verify. Needed by C(verified).
    type: path
  restored:
    description: How to connect to what was restored, C(login_host) and so on; what it lacks is as for the original.
    type: dict
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
WAYS = {"dump": logical_backup, "basebackup": physical_backup}
UTC = timezone.utc  # noqa: UP017  (a target host's Python may be older than the controller's)

INSPECT = """
SELECT to_jsonb(i) FROM (
    SELECT current_setting('server_version_num')::int / 10000 AS server_major,
           current_setting('server_version') AS server_version,
           (SELECT sum(pg_database_size(oid))::bigint FROM pg_database
            WHERE datname = current_database() OR %s = 'basebackup') AS database_bytes,
           (SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user) AS may_create_database,
           (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS data_directory,
           host(inet_server_addr()) AS server_address
) i
"""


def inspect(params: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any]
    with contextlib.closing(connect(params, "pgrollout/backup")) as session, session.cursor() as cursor:
        cursor.execute(INSPECT, (params["way"],))
        (facts,) = cursor.fetchone()
    bin_dir, facts["client_version"] = pg_programs.find_clients(params["bin_dir"], facts["server_major"])
    facts["client_major"] = pg_programs.major(facts["client_version"])
    facts["bin_dir"], facts["zstd"] = str(bin_dir), pg_programs.knows_zstd(bin_dir)
    folder = Path(params["dir"]).absolute()
    while not folder.exists():
        folder = folder.parent
    facts["free_bytes"] = backup_files.free_bytes(folder)
    facts["scratch"] = "server"
    facts["cannot_verify"] = ""
    if params["way"] == "dump":
        facts["scratch"] = logical_backup.where_to_restore(params, bin_dir, facts["server_major"])
    else:
        facts["cannot_verify"] = physical_backup.lacks(bin_dir, facts["server_major"])
    data, address = facts.pop("data_directory"), facts.pop("server_address")
    visible = data is not None and backup_files.is_here(address) and os.access(data, os.F_OK)
    facts["server_free_bytes"] = backup_files.free_bytes(Path(data)) if visible else None
    facts["same_filesystem"] = visible and Path(data).stat().st_dev == folder.stat().st_dev
    return facts


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
            "way": params["way"],
            "database": database,
            **WAYS[params["way"]].make(partial, params, f"pgrollout/{run}/backup", mine),
            "bytes": sum(path.stat().st_size for path in partial.iterdir()),
            "finished": stamp(datetime.now(UTC)),
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
        application = f"pgrollout/{params['run'] or manifest['run']}/backup"
        proof, wrong = WAYS[manifest["way"]].restore(path, params, manifest, application, removed)
        proof = {"verified": True, **proof}
        _believe(f"Backup {path}", wrong)
        backup_files.write(
            path / backup_files.VERIFIED, json.dumps({**proof, "at": stamp(datetime.now(UTC))}, indent=2) + "\n"
        )
        backup_files.sync(path)
    finally:
        os.close(mine)
    return {"changed": True, "removed": removed, "backup": {**summary(path, manifest), **proof}}


def compared(params: dict[str, Any]) -> dict[str, Any]:
    proof, wrong = physical_backup.compare(params, f"pgrollout/{params['run'] or 'external'}/backup")
    _believe("The backup", wrong)
    return {"changed": False, "backup": {"verified": True, "verified_on": "elsewhere", **proof}}


def _believe(what: str, wrong: list[str]) -> None:
    if wrong:
        raise Refused(
            f"{what}, restored, is not what the database held when it was made: {_few(wrong)}."
            " Do not rely on it; make a new one."
        )


def _few(phrases: list[str], most: int = 10) -> str:
    more = f"; and {len(phrases) - most} more" if len(phrases) > most else ""
    return "; ".join(phrases[:most]) + more


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
    return {"dumped": dump, "verified": verify, "compared": compared}[state](params)


def stop(number: int, _frame: object) -> None:
    raise SystemExit(f"ended by signal {number}")


def main() -> None:
    path = {"type": "path"}
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["inspected", "dumped", "verified", "compared", "pruned"],
                "default": "dumped",
            },
            "restored": {"type": "dict"},
            "way": {"type": "str", "choices": sorted(WAYS), "default": "dump"},
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
            ("state", "compared", ["restored", "contents_sql"]),
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
