"""Spills: the nodes that wrote to temporary files because their memory (work_mem) did not suffice, each named once.

Temporary blocks are printed cumulatively, so every node above a spill shows them too; here they are those of the
node alone. Disk space of a sort or an aggregate is told per process, and is summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pgrollout.explain.attribution import Attribution, Measures
from pgrollout.explain.nodes import Node, whole

_GROUPS = ("Full-sort Groups", "Pre-sorted Groups")


def spills(nodes: Sequence[Node], attribution: Attribution) -> dict[int, dict[str, Any]]:
    """By number of the node that caused it: {cause: sort|hash|aggregate|storage, disk_kb, batches, temp_blocks}.

    `disk_kb` and `batches` are null where PostgreSQL does not tell them, `temp_blocks` (8 kB, written and read) where
    BUFFERS is off. A hash join writes what its Hash could not hold as well: that counts as the Hash's.
    """
    found = {}
    for node in nodes:
        written = _temp(attribution.exclusive[node.number])
        cause, disk_kb, batches = _told(node)
        if node.type == "Hash" and node.parent is not None and written is not None:
            written += _temp(attribution.exclusive[node.parent.number]) or 0
        elif node.type == "Hash Join":
            continue
        if cause is None and written:
            cause = "storage"
        if cause is not None:
            blocks = None if written is None else int(written)
            found[node.number] = {"cause": cause, "disk_kb": disk_kb, "batches": batches, "temp_blocks": blocks}
    return found


def _temp(measures: Measures) -> float | None:
    known = [measures[key] for key in ("temp_read", "temp_written") if key in measures]
    return sum(known) if known else None


def _told(node: Node) -> tuple[str | None, int | None, int | None]:
    """(cause, kB on disk, batches) as the node's own lines tell it, with those of its workers."""
    if node.type == "Hash":
        batches = whole(node.raw, "Hash Batches") or 0
        return ("hash", None, batches) if batches > 1 else (None, None, None)
    parts = list(_processes(node.raw))
    if node.type in ("Sort", "Incremental Sort"):
        disk = sum(_sort_kb(part) for part in parts)
        return ("sort", disk, None) if disk else (None, None, None)
    if node.type == "Aggregate":
        disk = sum(whole(part, "Disk Usage") or 0 for part in parts)
        batches = max(whole(part, "HashAgg Batches") or 0 for part in parts)
        return ("aggregate", disk, batches or None) if disk or batches > 1 else (None, None, None)
    if node.raw.get("Storage") == "Disk":  # from 18 on
        return "storage", whole(node.raw, "Maximum Storage"), None
    return None, None, None


def _processes(raw: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The node as its leader saw it, then as each worker did."""
    yield raw
    workers = raw.get("Workers")
    if isinstance(workers, list):
        yield from (worker for worker in workers if isinstance(worker, Mapping))


def _sort_kb(part: Mapping[str, Any]) -> int:
    """kB on disk of one process's sort; of an incremental sort those of its largest group."""
    disk = (whole(part, "Sort Space Used") or 0) if part.get("Sort Space Type") == "Disk" else 0
    for key in _GROUPS:
        groups = part.get(key)
        space = groups.get("Sort Space Disk") if isinstance(groups, Mapping) else None
        if isinstance(space, Mapping):
            disk = max(disk, whole(space, "Peak Sort Space Used") or 0)
    return disk
