"""What a concurrent command that was cut off leaves behind, and what the same command does about it the next time.

An INVALID index of a build is told by its definition, which is `plan`'s; here is what the ledger's steps leave: the
half detached partition of DETACH … CONCURRENTLY, the _ccnew and _ccold indexes of REINDEX … CONCURRENTLY.
"""

from __future__ import annotations

import re
from typing import Any

from pgrollout.migration.names import canonical, parts


def leftover(step: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """What changes in a step that is to do, {} where nothing was left.

    {state: rebuild, reason} with, for a REINDEX, leftovers: names of the indexes to drop first, quoted; for a DETACH
    the statement that completes it. facts: `relation` and `leftover` as facts.sql returns them.
    """
    if step["kind"] == "DETACH PARTITION CONCURRENTLY":
        return _detach(step, facts.get("relation", {}))
    if step["kind"].startswith("REINDEX"):
        return _reindex(step, facts)
    return {}


def _detach(step: dict[str, Any], relations: dict[str, Any]) -> dict[str, Any]:
    """In short attempts, as other DDL: it takes ACCESS EXCLUSIVE on the partition before it waits for old snapshots."""
    partition = step["locks"][1]["relation"]
    if not relations.get(partition, {}).get("detaching"):
        return {}
    return {
        "state": "rebuild",
        "reason": "a DETACH CONCURRENTLY that was cut off left it half detached; FINALIZE completes it",
        "kind": "DETACH PARTITION FINALIZE",
        "mode": "ddl",
        "sql": re.sub(r"(?is)\bconcurrently\b(?!.*\bconcurrently\b)", "FINALIZE", step["sql"]),
    }


def _reindex(step: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    names = [found["index"] for found in facts.get("leftover", []) if _is_of(step, found, facts.get("relation", {}))]
    if not names:
        return {}
    reason = f"INVALID and left by a REINDEX that was cut off, dropped first: {', '.join(names)}"
    return {"state": "rebuild", "reason": reason, "leftovers": names}


def _is_of(step: dict[str, Any], found: dict[str, Any], relations: dict[str, Any]) -> bool:
    """Whether the command would have made that index."""
    name, table = step["reindexes"], canonical(found["table"])
    if step["kind"].startswith("REINDEX INDEX"):
        return name in map(canonical, found["of"])
    if step["kind"].startswith("REINDEX SCHEMA"):
        return parts(table)[0] == str(name)
    return table in (name, *map(canonical, relations.get(name, {}).get("children", [])))
