# Copyright: contributors of this project
# GNU General Public License v3.0 or later (see LICENSE)
"""PostgreSQL's own programs on this host: where they are, what they can, and running them so that none is left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plugins.module_utils.pg_session import Refused, connect, environment
else:
    from ansible.module_utils.pg_session import Refused, connect, environment

BIN_DIRS = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin", "usr/local/pgsql/bin")


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


def amcheck(bin_dir: Path, there: dict[str, Any], application: str) -> str:
    """Look at every table and index of a scratch server from inside, as far as its contrib has what that needs."""
    program = bin_dir / "pg_amcheck"
    if not os.access(program, os.X_OK):
        return f"not run: {program} is not there"
    with contextlib.closing(connect(there, application)) as session, session.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'")
        if not cursor.fetchone()[0]:
            return "not run: the extension amcheck is not there"
    argv = [str(program), "--install-missing", "--heapallindexed", "--parent-check", "--rootdescend", "--no-password"]
    with client([*argv, there["login_db"]], environment(there, application)):
        pass
    return "passed"
