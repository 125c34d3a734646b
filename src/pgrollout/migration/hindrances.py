"""Why a step that is to do cannot be done on this very server: its version, its tables, what its rows would suffer."""

from __future__ import annotations

import re
from typing import Any

from pgrollout.migration.hazards import risk, settle
from pgrollout.migration.locks import ACCESS_EXCLUSIVE
from pgrollout.migration.names import identifiers, shown

# From how many rows on a cascading delete is thought of as one that may touch very many.
LARGE_TABLE_ROWS = 1_000_000
_INTEGERS = ["smallint", "integer", "bigint"]
_FLOATS = ["real", "double precision"]


def hindrance(step: dict[str, Any], facts: dict[str, Any]) -> str:
    """A sentence with the remedy, '' if nothing stands in the way. Gives a backfill without a key the primary key."""
    if lacking := missing(step["needs"], facts.get("server", {}).get("version", 99)):
        return f"{lacking}; write it otherwise, or upgrade the server first"
    known = facts.get("server", {}).get("functions", [])
    for name, extension in step["functions"].items():
        if name not in known:
            return (
                f"{name}() comes with the extension {extension}, which this database does not have; write CREATE "
                f"EXTENSION {extension} in a migration before it, or do without"
            )
    reason, accepted = settle(_risks(step, facts), step["accepts"])
    step["accepted"] = step["accepted"] + accepted
    return reason or _of_its_table(step, facts) or _key(step, facts)


def missing(step_needs: list[dict[str, Any]], version: int) -> str:
    """A sentence about what a server of that major version lacks, '' if nothing."""
    lacking = [need for need in step_needs if need["version"] > version]
    if not lacking:
        return ""
    newest = max(need["version"] for need in lacking)
    return f"{' and '.join(need['what'] for need in lacking)} came with PostgreSQL {newest}; this server is {version}"


def _risks(step: dict[str, Any], facts: dict[str, Any]) -> list[dict[str, str]]:
    """The hazards that only a look at the database shows."""
    fact, table = step.get("fact", {}), step["locks"][0]["relation"] if step["locks"] else ""
    if step["kind"] == "ALTER COLUMN TYPE" and fact.get("rewrites"):
        found, wanted = fact["actual"]["type"], fact["wanted"]["type"]
        recipe = "add a column of the new type, fill it by a trigger and a backfill, and let the application move over"
        hazard = "narrowing" if narrows(found, wanted) else "rewrite"
        what = f"from {found} to {wanted} every row is converted"
        return [risk(hazard, what, recipe, table, ACCESS_EXCLUSIVE)]
    rows = facts.get("relation", {}).get(table, {}).get("rows", 0)
    cascades = "on-delete-cascade" in step["plan_risks"]
    if cascades and step["kind"].startswith("ADD CONSTRAINT") and rows >= LARGE_TABLE_ROWS:
        what = f"ON DELETE CASCADE into {table} with {rows:,} rows deletes and locks all that refer to a deleted row"
        return [risk("on-delete-cascade", what, "let the application delete in batches, with ON DELETE RESTRICT")]
    return []


def narrows(found: str, wanted: str) -> bool:
    """Whether a type holds less than the one before: fewer characters, digits, bits."""
    for ladder in (_INTEGERS, _FLOATS):
        if found in ladder and wanted in ladder:
            return ladder.index(wanted) < ladder.index(found)
    (base, limits), (wanted_base, wanted_limits) = _limits(found), _limits(wanted)
    if base == "text" and wanted_base.startswith("character"):
        return bool(wanted_limits)
    if base != wanted_base:
        return wanted == "date" and base.startswith("timestamp")
    if not limits:
        return bool(wanted_limits)
    return bool(wanted_limits) and any(new < old for old, new in zip(limits, wanted_limits, strict=False))


def _limits(name: str) -> tuple[str, list[int]]:
    """('character varying', [20]) of 'character varying(20)'."""
    match = re.search(r"\(([\d, ]+)\)", name)
    return re.sub(r"\([\d, ]+\)", "", name), [int(part) for part in match[1].split(",")] if match else []


def _of_its_table(step: dict[str, Any], facts: dict[str, Any]) -> str:
    """What cannot be done to a partitioned table, or to a materialized view without a unique index."""
    table = step["locks"][0]["relation"] if step["locks"] else ""
    known = facts.get("relation", {}).get(table, {})
    partitioned = known.get("kind") == "p"
    if step["kind"] == "ADD CONSTRAINT" and " USING INDEX " in step["sql"].upper() and partitioned:
        return (
            f"{table} is partitioned, where PostgreSQL makes no constraint of an index that is there; write CREATE "
            "UNIQUE INDEX instead, which lets in no more than the constraint does and is built partition by partition"
        )
    if step["kind"] == "CREATE INDEX" and " only " in f" {step['sql'].lower()} " and known and not partitioned:
        return f"{table} is not partitioned, so that ON ONLY builds the whole index under SHARE; leave ONLY out"
    foreign = step["kind"] == "ADD CONSTRAINT NOT VALID" and "FOREIGN KEY" in step["sql"].upper()
    if foreign and partitioned and facts.get("server", {}).get("version", 18) < 18:
        return (
            f"{table} is partitioned, and before PostgreSQL 18 it takes no foreign key NOT VALID; add it NOT VALID to "
            f"each partition ({_some(known['children'])}), VALIDATE it there, then add it to {table}"
        )
    if step["kind"] == "REFRESH" and "CONCURRENTLY" in step["sql"].upper() and known and not known.get("unique"):
        return f"{table} has no unique index over whole columns, without which its refresh stops readers; create one"
    return ""


def _some(names: list[str]) -> str:
    return ", ".join(map(shown, names[:3])) + (", …" if len(names) > 3 else "")


def _key(step: dict[str, Any], facts: dict[str, Any]) -> str:
    """Completes a backfill whose author named no key, or the way back of one, with the primary key of its table."""
    if step["mode"] not in ("data", "restore") or step["backfill"]["key"]:
        return ""
    table = step["backfill"]["table"]
    known = facts.get("relation", {}).get(table)
    if known is None:
        return f"{table} is not there yet, so that its primary key is unknown; say '-- Backfill: by <key>' above it"
    if not known.get("key"):
        return (
            f"{table} has no primary key to walk along, and in one transaction an UPDATE locks every row that it "
            "changes until it ends; say '-- Backfill: by <key column>' (unique, not null, indexed) above it, or "
            "'-- Done when: SELECT …' if it touches a handful of rows"
        )
    step["backfill"] = step["backfill"] | {"key": known["key"]}
    if step["mode"] == "restore":
        return ""
    step["written"] = step["sql"]
    step["sql"] = f"-- Backfill: by {identifiers(known['key'])}\n{step['sql']}"
    return ""
