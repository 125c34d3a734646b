# Copyright: contributors of this project
# GNU General Public License v3.0 or later (see LICENSE)
"""A backup of the whole server by pg_basebackup: checked file by file, started as a server of its own, read through.

It ends at a moment of its own, at which nobody can take a snapshot. So the manifest says what the database held right
after it: a table that nobody wrote between the two is equal, one that is not is named with its rows then and now.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plugins.module_utils import database_contents, pg_programs, scratch
    from plugins.module_utils.pg_session import Refused, connect, environment
else:
    from ansible.module_utils import database_contents, pg_programs, scratch
    from ansible.module_utils.pg_session import Refused, connect, environment

ASK = """
SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000,
       (SELECT rolname FROM pg_roles WHERE oid = 10), current_setting('max_prepared_transactions'),
       (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user), current_user
"""


def make(partial: Path, params: dict[str, Any], application: str, handle: int) -> dict[str, Any]:
    """pg_basebackup into the folder, as tar files; what the manifest says of it."""
    with contextlib.closing(connect(params, application)) as session, session.cursor() as cursor:
        cursor.execute(ASK)
        server_version, server_major, superuser, prepared, allowed, role = cursor.fetchone()
        if not allowed:
            raise Refused(
                f"Role {role} may not make a base backup; expected is REPLICATION: run ALTER ROLE {role} REPLICATION "
                "as a superuser, and allow it in pg_hba.conf for the database `replication`; or backup_way: dump."
            )
        bin_dir, client_version = pg_programs.find_clients(params["bin_dir"], server_major)
        argv = [str(bin_dir / "pg_basebackup"), f"--pgdata={partial}", "--format=tar", "--wal-method=stream"]
        argv += ["--checkpoint=fast", f"--label={application}", "--manifest-checksums=SHA256", "--no-password"]
        argv += [] if params["compression"] == "none" else ["--gzip"]
        with pg_programs.client(argv, environment(params, application), [handle]):
            pass
        database_contents.prepare(session, params["contents_sql"])
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        held = database_contents.contents(session, params["digest_max_bytes"])
        cursor.execute("COMMIT")
    wal = json.loads((partial / "backup_manifest").read_text(encoding="utf-8"))["WAL-Ranges"]
    return {
        "server_version": server_version,
        "client_version": client_version,
        "compression": "none" if params["compression"] == "none" else "gzip",
        "lsn": wal[-1]["End-LSN"],
        "superuser": superuser,
        "max_prepared_transactions": prepared,
        "contents": held,
    }


def lacks(bin_dir: Path, server_major: int) -> str:
    """Why a base backup could not be verified here, in a sentence; empty where it can."""
    if scratch.server_programs(bin_dir, server_major):
        return ""
    return (
        f"A base backup is verified by starting it, but {bin_dir} has no postgres of PostgreSQL {server_major}; "
        "install the server's programs on this host, set postgresql_bin_dir, or say backup_way: dump."
    )


def restore(
    path: Path,
    params: dict[str, Any],
    manifest: dict[str, Any],
    application: str,
    removed: list[str],  # noqa: ARG001  (as of every way; nothing is left on the original's server)
) -> tuple[dict[str, Any], list[str]]:
    """(the proof, what is not as it was)."""
    server_major = int(re.match(r"\d+", manifest["server_version"]).group())  # type: ignore[union-attr]
    bin_dir, _ = pg_programs.find_clients(params["bin_dir"], server_major)
    if why := lacks(bin_dir, server_major):
        raise Refused(why)
    held = manifest["contents"]
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch.folder_of(path))
        data = folder / "data"
        _unpack(path, folder, data)
        with pg_programs.client([str(bin_dir / "pg_verifybackup"), str(data)], environment(params, application)):
            pass
        _at_home(data, folder)
        settings = {"max_prepared_transactions": manifest["max_prepared_transactions"]}
        there = stack.enter_context(scratch.copy(folder, bin_dir, params, application, manifest["superuser"], settings))
        there = {**there, "login_db": params["login_db"]}
        reader = stack.enter_context(contextlib.closing(connect(there, application)))
        seconds = round(time.monotonic() - begun, 1)
        database_contents.prepare(reader, params["contents_sql"])
        found = database_contents.contents(reader, like=held["tables"])
        checked = pg_programs.amcheck(bin_dir, there, application)
    proof = {"verified_on": "server", "restore_seconds": seconds, "not_restored": [], "amcheck": checked}
    return {**proof, **_compared(held, found)}, database_contents.catalog_differences(held, found)


def compare(params: dict[str, Any], application: str) -> tuple[dict[str, Any], list[str]]:
    """The same of what somebody else has restored, params["restored"] (login_* as of this module), and the original."""
    there = {**params, **dict.fromkeys(("login_password", "passfile")), **params["restored"]}
    with contextlib.closing(connect(params, application)) as session:
        database_contents.prepare(session, params["contents_sql"])
        with session.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        held = database_contents.contents(session, params["digest_max_bytes"])
    with contextlib.closing(connect(there, application)) as reader:
        database_contents.prepare(reader, params["contents_sql"])
        found = database_contents.contents(reader, like=held["tables"])
    proof = {"tables": len(found["tables"]), "rows": sum(table["rows"] for table in found["tables"].values())}
    return {**proof, **_compared(held, found)}, database_contents.catalog_differences(held, found)


def _compared(held: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    meanwhile = database_contents.table_differences(held, found)
    return {**database_contents.told(held, found), "written_meanwhile": meanwhile}


def _unpack(path: Path, folder: Path, data: Path) -> None:
    """base.tar is the data directory, pg_wal.tar the WAL it needs, <oid>.tar a tablespace each."""
    for file in sorted(path.iterdir(), key=lambda each: (not each.name.startswith("base."), each.name)):
        found = re.match(r"(base|pg_wal|\d+)\.tar(\.gz)?$", file.name)
        if not found:
            continue
        place = {"base": data, "pg_wal": data / "pg_wal"}.get(found.group(1), folder / found.group(1))
        place.mkdir(mode=0o700, exist_ok=True)
        if found.group(1).isdigit():
            (data / "pg_tblspc" / found.group(1)).symlink_to(place)
        argv = [
            "tar",
            "--extract",
            "--no-same-owner",
            f"--file={file}",
            f"--directory={place}",
            *(["--gzip"] if found.group(2) else []),
        ]
        answer = pg_programs.ask(argv)
        if answer.returncode:
            raise Refused(f"{file} cannot be unpacked: {answer.stderr.strip()[-1000:]}")
    (data / "backup_manifest").write_bytes((path / "backup_manifest").read_bytes())


def _at_home(data: Path, folder: Path) -> None:
    """The copy takes its tablespaces from beside it and its settings from scratch.py, none from where it comes from."""
    with contextlib.suppress(FileNotFoundError):
        lines = (data / "tablespace_map").read_text(encoding="utf-8").splitlines()
        (data / "tablespace_map").write_text(
            "".join(f"{line.split(' ')[0]} {folder / line.split(' ')[0]}\n" for line in lines)
        )
    for name in ("standby.signal", "recovery.signal"):
        with contextlib.suppress(FileNotFoundError):
            (data / name).unlink()
    (data / "postgresql.auto.conf").write_text("")
    data.chmod(0o700)
