"""What a backup made elsewhere says of itself: the answers of the commands and URLs of backup_way: external."""

from __future__ import annotations

import datetime
import json
from typing import Any

from pgrollout.errors import RolloutError

_MADE = ("id", "started", "finished", "bytes", "lsn", "checksums", "restore")
_PLACE = ("host", "port", "user", "db", "password", "passfile", "ssl_mode")


def external_backup(answer: dict[str, Any]) -> dict[str, Any]:
    """{id, finished, …} of the registered result of a command or of ansible.builtin.uri.

    RolloutError: it failed, or did not answer with a JSON object with `id` and `finished` (a time as ISO 8601).
    """
    found = _object(answer, "the backup", "id and finished")
    if not found.get("id"):
        raise RolloutError(_unfit("the backup", "id and finished", answer))
    try:
        datetime.datetime.fromisoformat(str(found.get("finished")))
    except ValueError:
        raise RolloutError(_unfit("the backup", "id and finished (a time as in ISO 8601)", answer)) from None
    return {key: found[key] for key in _MADE if key in found}


def external_place(answer: dict[str, Any]) -> dict[str, Any]:
    """How to connect to what was restored, {login_host, login_port, login_db, …} as for the module pg_backup.

    RolloutError: the command failed, or did not answer with a JSON object with `host` and `db`.
    """
    found = _object(answer, "the restore", "host and db")
    if not (found.get("host") and found.get("db")) or not found.keys() <= set(_PLACE):
        raise RolloutError(_unfit("the restore", f"host and db, also {', '.join(_PLACE[1:])}", answer))
    return {key if key in ("passfile", "ssl_mode") else f"login_{key}": value for key, value in found.items()}


def seconds_of_delta(delta: str) -> float:
    """Seconds of a command's `delta`, such as 1 day, 0:00:02.345678."""
    days, _, clock = delta.rpartition(", ")
    hours, minutes, seconds = clock.split(":")
    total = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return round(total + (int(days.split(" ")[0]) * 86400 if days else 0), 1)


def _object(answer: dict[str, Any], what: str, expected: str) -> dict[str, Any]:
    if answer.get("rc", 0) or answer.get("failed") or answer.get("status", 200) not in (200, 201, 202):
        said = answer.get("stderr") or answer.get("content") or answer.get("stdout") or answer.get("msg") or "nothing"
        code = answer.get("rc", answer.get("status", "?"))
        raise RolloutError(f"The command or URL of {what} failed with {code}: {str(said).strip()[-1000:]}")
    try:
        found = json.loads(answer.get("stdout", answer.get("content", "")))
    except (TypeError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise RolloutError(_unfit(what, expected, answer))
    return found


def _unfit(what: str, expected: str, answer: dict[str, Any]) -> str:
    said = str(answer.get("stdout", answer.get("content", ""))).strip()
    return f"The command or URL of {what} answered [{said[:200]}]; expected is a JSON object with {expected}."
