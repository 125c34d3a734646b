"""What a database looks like and holds, to compare one moment with another."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conftest import Database

LEDGER = Path(__file__).resolve().parents[2] / "roles" / "ledger" / "files"
Picture = dict[str, dict[str, Any]]


def picture(database: Database) -> Picture:
    """Catalog and contents of a database, by the engine's functions but without its ledger and its snapshots."""
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SET check_function_bodies = off")
        for name in ("48_contents.sql", "50_proof.sql"):
            cursor.execute((LEDGER / name).read_text(encoding="utf-8").replace("pgrollout.", "pg_temp."))
        cursor.execute("SELECT pg_temp.fingerprint(), pg_temp.digests(1::bigint << 40)")
        catalog, content = cursor.fetchone()
        return {"catalog": catalog, "content": content}


def differences(before: Picture, after: Picture) -> list[str]:
    """One line for each object or table that is not the same in both."""
    return [
        f"{kind} {key}: {before[kind].get(key)} became {after[kind].get(key)}"
        for kind in before
        for key in sorted(before[kind].keys() | after[kind].keys())
        if before[kind].get(key) != after[kind].get(key)
    ]


def index_valid(database: Database, index: str) -> bool | None:
    """None when there is no such index."""
    found = database.query("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", f"public.{index}")
    return bool(found[0][0]) if found else None


def identity(database: Database, relation: str) -> int:
    """The relation's oid, 0 when there is none: one that was made anew has another."""
    return int(database.value("SELECT to_regclass(%s)::oid::bigint", f"public.{relation}") or 0)
