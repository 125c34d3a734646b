# Copyright: contributors of this project
# GNU General Public License v3.0 or later (see LICENSE)
"""A backup of one database by pg_dump: made from one snapshot, restored into a scratch server or database, compared.

What its manifest says and what is restored are of the same moment, so every row must be equal.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plugins.module_utils import database_contents, pg_programs, scratch
    from plugins.module_utils.pg_session import Refused, connect, environment
else:
    from ansible.module_utils import database_contents, pg_programs, scratch
    from ansible.module_utils.pg_session import Refused, connect, environment

# Extensions that only a superuser may create: a lesser role skips them in the scratch database, and the result says so.
SUPERUSER_EXTENSIONS = """
SELECT extname FROM pg_extension e JOIN pg_available_extension_versions v ON v.name = extname AND v.version = extversion
WHERE v.superuser AND NOT v.trusted AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
"""


def make(partial: Path, params: dict[str, Any], application: str, handle: int) -> dict[str, Any]:
    """pg_dump into the folder; what the manifest says of it. What it should hold is read in the dump's own snapshot."""
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
        "server_version": server_version,
        "client_version": client_version,
        "compression": codec,
        "lsn": lsn,
        "contents": held,
    }


def restore(
    path: Path, params: dict[str, Any], manifest: dict[str, Any], application: str, removed: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """(the proof, what is not as it was); names of leftovers that went are added to `removed`."""
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(contextlib.closing(connect(params, application)))
        with session.cursor() as cursor:
            cursor.execute("SELECT current_setting('server_version_num')::int / 10000")
            server_major = cursor.fetchone()[0]
        bin_dir, client_version = pg_programs.find_clients(params["bin_dir"], server_major)
        way = where_to_restore(params, bin_dir, server_major)
        if way == "server":
            folder = stack.enter_context(scratch.folder_of(path))
            there = stack.enter_context(scratch.server(folder, bin_dir, session, params, application))
        else:
            there = stack.enter_context(scratch.database(session, params, params["run"] or manifest["run"], removed))
        reader = stack.enter_context(contextlib.closing(connect(there, application)))
        may_complain = pg_programs.major(client_version) >= 17 > server_major
        rights = reader if way == "server" else session  # the original knows what extensions there are to create
        left_out, seconds = _restore_into(there, rights, path, bin_dir, params["jobs"], application, may_complain)
        held = manifest["contents"]
        database_contents.prepare(reader, params["contents_sql"])
        found = database_contents.contents(reader, like=held["tables"])
        checked = "not run: it needs a scratch server"
        if way == "server":
            checked = pg_programs.amcheck(bin_dir, there, application)
    proof = {"verified_on": way, "restore_seconds": seconds, "not_restored": left_out, "amcheck": checked}
    expected = {name: what for name, what in held["catalog"].items() if name not in left_out}
    wrong = database_contents.differences({**held, "catalog": expected}, found)
    return {**proof, **database_contents.told(held, found)}, wrong


def where_to_restore(params: dict[str, Any], bin_dir: Path, server_major: int) -> str:
    """server: one of its own, made of this host's programs; database: beside the original, on its server."""
    wanted: str = params["verify_on"]
    there = scratch.server_programs(bin_dir, server_major)
    if wanted == "server" and not there:
        raise Refused(
            f"verify_on is server, but {bin_dir} has no initdb and postgres of PostgreSQL {server_major}; "
            "install the server's programs on this host, set postgresql_bin_dir, or say backup_verify_on: database."
        )
    return ("server" if there else "database") if wanted == "auto" else wanted


def _restore_into(
    there: dict[str, Any],
    session: Any,
    path: Path,
    bin_dir: Path,
    jobs: int,
    application: str,
    may_complain: bool,
) -> tuple[list[str], float]:
    """(what was left out, seconds)"""
    with session.cursor() as cursor:
        cursor.execute(SUPERUSER_EXTENSIONS)
        listing, skipped = table_of_contents(path, bin_dir, {name for (name,) in cursor.fetchall()})
    begun = time.monotonic()
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as listed:
        listed.write(listing)
        listed.flush()
        argv = [str(bin_dir / "pg_restore"), f"--dbname={there['login_db']}", f"--jobs={jobs}"]
        argv += [f"--use-list={listed.name}", "--no-owner", "--no-privileges", "--no-tablespaces", "--no-password"]
        argv += ["--no-publications", "--no-subscriptions"]  # a scratch database replicates nothing
        if not may_complain:  # see only_unknown_timeout
            argv += ["--exit-on-error"]
        fast = {"PGOPTIONS": "-c synchronous_commit=off"}
        try:
            with pg_programs.client([*argv, str(path)], {**environment(there, application), **fast}):
                pass
        except Refused as error:
            if not re.search(r'extension "\S+" is not available|could not open extension control file', str(error)):
                raise
            raise Refused(
                f"{error} The scratch server is made of {bin_dir}, which lacks it: install the extension on this host, "
                "or say backup_verify_on: database, which restores beside the original."
            ) from error
    return skipped, round(time.monotonic() - begun, 1)


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
