"""What TEXT leaves out because it is zero or the usual, where the same document proves that it was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pgrollout.explain.values import BUFFER_KEYS, OLD_IO_KEYS, SPLIT_IO_KEYS, TEMP_IO_KEYS, WAL_KEYS

Tree = dict[str, Any]

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
    told = {key for node in found for key in node}
    told |= {key for node in found for worker in node.get("Workers", ()) for key in worker}
    groups = [document[name] for name in ("Planning", "Serialization") if name in document]
    told |= {key for group in groups for key in group}
    usage = _usage(told)
    verbose = "Output" in told
    for node in found:
        _relate(node)
        _usual(node, verbose)
        for worker in node.get("Workers", ()):
            if "Actual Loops" in worker:
                _default(worker, usage)
        if "Actual Loops" in node:
            _default(node, usage)
            _measured(node, timed="Actual Total Time" in told)
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


def _usage(told: set[str]) -> Tree:
    """Buffers, I/O times and WAL as zeros, as far as one line of the document shows that they were counted."""
    usage: Tree = {}
    if not told.isdisjoint((*BUFFER_KEYS, *OLD_IO_KEYS, *TEMP_IO_KEYS, *SPLIT_IO_KEYS)):
        usage |= dict.fromkeys(BUFFER_KEYS, 0)
    for keys in ((*SPLIT_IO_KEYS, *TEMP_IO_KEYS), OLD_IO_KEYS):
        if not told.isdisjoint(set(keys) - set(TEMP_IO_KEYS)):
            usage |= dict.fromkeys(keys, 0.0)
    if not told.isdisjoint(TEMP_IO_KEYS):
        usage |= dict.fromkeys(TEMP_IO_KEYS, 0.0)
    if not told.isdisjoint(WAL_KEYS):
        usage |= dict.fromkeys((*WAL_KEYS, *(key for key in LATER_WAL_KEYS if key in told)), 0)
    return usage


def _default(properties: Tree, zeros: Tree) -> None:
    for key, zero in zeros.items():
        properties.setdefault(key, zero)


def _usual(node: Tree, verbose: bool) -> None:
    """What TEXT prints only where it is unusual."""
    kind = node["Node Type"]
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
    elif kind == "Aggregate" and "HashAgg Batches" in node and "Total Cost" in node:
        node.setdefault("Planned Partitions", 0)


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
