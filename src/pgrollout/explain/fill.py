"""What TEXT leaves out because it is zero or the usual, where the same document proves that it was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pgrollout.explain.values import BUFFER_KEYS, OLD_IO_KEYS, SPLIT_IO_KEYS, TEMP_IO_KEYS, WAL_KEYS

Tree = dict[str, Any]

IO_KEYS = (*OLD_IO_KEYS, *TEMP_IO_KEYS, *SPLIT_IO_KEYS)
# Properties that earlier versions do not have.
SINCE_17 = ("Local I/O Read Time", "Local I/O Write Time", "Memory Used")
SINCE_18 = ("Disabled", "Index Searches", "Storage", "Window", "WAL Buffers Full", "WAL FPI Bytes")
LATER_WAL_KEYS = ("WAL FPI Bytes", "WAL Buffers Full")
REMOVED_BY = {
    "Filter": "Rows Removed by Filter",
    "Join Filter": "Rows Removed by Join Filter",
    "Conflict Filter": "Rows Removed by Conflict Filter",
}
RECHECKED = {"Index Scan": "Index Cond", "Index Only Scan": "Index Cond", "Bitmap Heap Scan": "Recheck Cond"}
JOINS = frozenset(("Nested Loop", "Hash Join", "Merge Join"))
APPENDS = frozenset(("Append", "Merge Append"))
MEMBERS = frozenset((*APPENDS, "BitmapAnd", "BitmapOr"))


def fill(document: Tree) -> Tree:
    """The document with what is known to be zero, and with each node's relationship to its parent."""
    found = list(nodes(document["Plan"]))
    workers = [worker for node in found for worker in node.get("Workers", ())]
    groups = [document[name] for name in ("Planning", "Serialization") if name in document]
    told = {key for properties in (*found, *workers, *groups) for key in properties}
    version = _version(document, found, told)
    if version < 17:
        for properties in (*found, *workers, *groups):
            _rename_io(properties)
    usage = _usage(told, version)
    verbose = "Output" in told
    for node in found:
        _relate(node)
        _usual(node, verbose, version)
        if "Actual Loops" in node:
            _default(node, usage)
            _measured(node, timed="Actual Total Time" in told)
    for worker in workers:
        if "Actual Loops" in worker:
            _default(worker, usage)
    for group in groups:
        _default(group, {key: zero for key, zero in usage.items() if not key.startswith("WAL")})
    if "Actual Loops" in document["Plan"]:
        document.setdefault("Triggers", [])
    return document


def nodes(plan: Tree) -> Iterator[Tree]:
    """All nodes of a plan, a node before its children."""
    waiting = [plan]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(node.get("Plans", ())))


def _version(document: Tree, found: list[Tree], told: set[str]) -> int:
    """The version that at least wrote this, as far as something shows it: 18, 17, or 0."""
    if not told.isdisjoint(SINCE_18) or any(isinstance(node.get("Actual Rows"), float) for node in found):
        return 18
    generation = document.get("JIT", {}).get("Timing", {}).get("Generation")
    if "Serialization" in document or not told.isdisjoint(SINCE_17) or isinstance(generation, dict):
        return 17
    return 0


def _rename_io(properties: Tree) -> None:
    """`shared` is shared and local together in 15 and 16; where a later version wrote it local is zero, or told."""
    for what in ("Read", "Write"):
        if (time := properties.pop(f"Shared I/O {what} Time", None)) is not None:
            properties[f"I/O {what} Time"] = time


def _usage(told: set[str], version: int) -> Tree:
    """Buffers, I/O times and WAL as zeros, as far as one line of the document shows that they were counted."""
    usage: Tree = {}
    temporary, timed = not told.isdisjoint(TEMP_IO_KEYS), not told.isdisjoint(IO_KEYS)
    if timed or not told.isdisjoint(BUFFER_KEYS):
        usage |= dict.fromkeys(BUFFER_KEYS, 0)
    if timed:
        usage |= dict.fromkeys(SPLIT_IO_KEYS if version >= 17 else OLD_IO_KEYS, 0.0)
    if temporary or not told.isdisjoint(SPLIT_IO_KEYS):  # until 14 there was neither
        usage |= dict.fromkeys(TEMP_IO_KEYS, 0.0)
    if not told.isdisjoint(WAL_KEYS):
        later = [key for key in LATER_WAL_KEYS if key in told or (version >= 18 and key == "WAL Buffers Full")]
        usage |= dict.fromkeys((*WAL_KEYS, *later), 0)
    return usage


def _default(properties: Tree, zeros: Tree) -> None:
    for key, zero in zeros.items():
        properties.setdefault(key, zero)


def _usual(node: Tree, verbose: bool, version: int) -> None:
    """What TEXT prints only where it is unusual."""
    kind = node["Node Type"]
    if version >= 17:
        node.setdefault("Async Capable", False)  # since 14
    if version >= 18:
        node.setdefault("Disabled", False)
    if kind in APPENDS:
        node.setdefault("Subplans Removed", 0)
    elif kind == "Gather":
        node.setdefault("Single Copy", False)
    elif kind in JOINS and verbose:
        node.setdefault("Inner Unique", False)
    elif kind == "Function Scan" and verbose and "Schema" not in node:
        node.pop("Function Name", None)  # ROWS FROM with several functions, or none left: what stood there is the alias


def _measured(node: Tree, timed: bool) -> None:
    """Counts of an executed (or never executed) node."""
    kind = node["Node Type"]
    if timed and not node["Actual Loops"]:
        _default(node, {"Actual Startup Time": 0.0, "Actual Total Time": 0.0})
    for condition, removed in REMOVED_BY.items():
        if condition in node:
            node.setdefault(removed, 0)
    if RECHECKED.get(kind) in node:
        node.setdefault("Rows Removed by Index Recheck", 0)
    if kind == "Bitmap Heap Scan":
        _default(node, {"Exact Heap Blocks": 0, "Lossy Heap Blocks": 0})
    elif kind == "ModifyTable" and node["Operation"] == "Merge":
        _default(node, {f"Tuples {what}": 0 for what in ("Inserted", "Updated", "Deleted", "Skipped")})
    elif kind == "Aggregate" and "Total Cost" in node and any("HashAgg Batches" in part for part in _parts(node)):
        node.setdefault("Planned Partitions", 0)


def _parts(node: Tree) -> tuple[Tree, ...]:
    """A node and its workers."""
    return (node, *node.get("Workers", ()))


def _relate(node: Tree) -> None:
    """Each child's relationship to this node, as PostgreSQL words it; InitPlans and SubPlans have theirs already."""
    children = [child for child in node.get("Plans", ()) if "Parent Relationship" not in child]
    for child, relationship in zip(children, _relationships(node, len(children)), strict=True):
        child["Parent Relationship"] = relationship


def _relationships(node: Tree, count: int) -> list[str]:
    kind = node["Node Type"]
    if kind in MEMBERS or (kind == "ModifyTable" and count > 1):  # several children of a ModifyTable: until 13
        return ["Member"] * count
    if kind == "Subquery Scan":
        return ["Subquery"] * count
    if kind == "Custom Scan":
        return ["child" if count == 1 else "children"] * count
    return ["Outer", "Inner", *["Member"] * count][:count]
