# Copyright: contributors of this project
# GNU General Public License v3.0 or later (see LICENSE)
"""A backup as files: a folder that is complete or does not look like one, with checksums, locked while it is used."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from plugins.module_utils.pg_session import Refused
else:
    from ansible.module_utils.pg_session import Refused

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
VERIFIED = "verified.json"
PARTIAL = ".partial"
STAMP = "%Y%m%dT%H%M%SZ"  # when a backup was begun, in its name
UTC = timezone.utc  # noqa: UP017  (a target host's Python may be older than the controller's)


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
    return re.compile(re.escape(quote(database, safe="")) + r"-(\d{8}T\d{6}Z)-[A-Za-z0-9_-]+" + re.escape(suffix) + "$")


def backups(folder: Path, database: str, suffix: str = "") -> list[Path]:
    """The database's backups, or with suffix its unfinished ones; newest first."""
    pattern = named(database, suffix)
    return sorted((path for path in folder.iterdir() if pattern.match(path.name)), reverse=True)


def age_days(path: Path, database: str) -> float:
    """Days since that backup was begun, as its name says."""
    match = named(database).match(path.name)
    begun = datetime.strptime(match.group(1), STAMP).replace(tzinfo=UTC) if match else datetime.now(UTC)
    return (datetime.now(UTC) - begun).total_seconds() / 86400


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
