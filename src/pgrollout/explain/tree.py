"""A plan as lines for people: a table on the left, the tree on the right, the nodes that matter marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pgrollout.explain.metrics import metrics
from pgrollout.explain.nodes import Node, documents, flat

# The share of all nodes' own time, or blocks, from which on a node is marked `!`, and `!!`.
_WARM, _HOT = 20.0, 50.0
_MISESTIMATE = 10.0
_MATTERS = 0.1  # the share of a node's rows that is worth a line
_REMOVED_BY = {
    "filter": "Filter",
    "join_filter": "Join Filter",
    "index_recheck": "Recheck Cond",
    "conflict_filter": "Conflict Filter",
}
_CONDITIONS = ("Index Cond", "Hash Cond", "Merge Cond")
_WIDTH = 100  # of a condition; what is longer is cut


def tree(plans: Any) -> list[str]:
    """The lines of what explain_parse returns.

    A line a node: what it took itself (ms, and its share of all nodes), its loops, rows per loop as actual/estimated,
    shared blocks (8 kB, hit or read) of its own. Columns that nobody measured are left out; without ANALYZE there are
    cost and estimated rows. `!` marks a fifth of all time, `!!` half; of the blocks or else the rows read where times
    are unknown; of the cost where nothing ran. Below a node stands only what explains it: many rows thrown away, with
    the condition that did so, spills, misestimates, heap fetches, lossy blocks, workers that did not come. Last, a
    line of the totals.
    """
    found = documents(plans, "explain_tree")
    nodes = flat(found, "explain_tree")
    measured = metrics(plans)
    columns, rule = _columns(measured["nodes"]), _share_of(measured["nodes"])
    rows = [[_cell(entry, column) for column in columns] for entry in measured["nodes"]]
    widths = [max([len(column), *(len(row[place]) for row in rows)]) for place, column in enumerate(columns)]
    margin = 3 + sum(widths) + 2 * len(widths)
    lines = ["   " + "".join(f"{name:>{width}}  " for name, width in zip(columns, widths, strict=True)) + "node"]
    for node, entry, row in zip(nodes, measured["nodes"], rows, strict=True):
        if node.parent is None and node.number:
            lines.append("")
        cells = "".join(f"{cell:>{width}}  " for cell, width in zip(row, widths, strict=True))
        indent = "  " * node.depth
        lines.append(f"{_mark(entry, rule):<3}{cells}{indent}{_titled(node, entry)}")
        lines += [f"{'':{margin}}{indent}    {note}" for note in _notes(node, entry)]
    return [line.rstrip() for line in [*lines, *_summary(measured["totals"])]]


def _titled(node: Node, entry: Mapping[str, Any]) -> str:
    """The label, behind the name of the subquery that it computes."""
    subplan = node.subplan.partition(" (returns")[0].replace("\n", "\\n")
    return f"{subplan}: {entry['label']}" if subplan else str(entry["label"])


# ---- columns


def _columns(entries: list[dict[str, Any]]) -> list[str]:
    if all(entry["loops"] is None for entry in entries):
        return [name for name, key in (("cost", "total_cost"), ("rows", "plan_rows")) if _known(entries, key)]
    columns = []
    if _known(entries, "exclusive_ms"):
        columns += ["own ms", "%"]
    columns += ["loops", "rows/estimated" if _known(entries, "plan_rows") else "rows"]
    if _known(entries, "shared_blocks"):
        columns.append("blocks")
    return columns


def _known(entries: list[dict[str, Any]], key: str) -> bool:
    return any(entry[key] is not None for entry in entries)


def _cell(entry: Mapping[str, Any], column: str) -> str:
    if column == "cost":
        return _decimal(entry["total_cost"], 2)
    if column == "own ms":
        return _decimal(entry["exclusive_ms"], 3)
    if column == "%":
        return _decimal(entry["exclusive_percent"], 0)
    if column == "loops":
        return "never" if entry["never_executed"] else _count(entry["loops"])
    if column == "blocks":
        return _count(entry["shared_blocks"])
    if column == "rows/estimated":
        return f"{'-' if entry['never_executed'] else _count(entry['actual_rows'])}/{_count(entry['plan_rows'])}"
    return _count(entry["plan_rows"] if entry["loops"] is None else entry["actual_rows"])


def _count(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


def _decimal(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:,.{places}f}"


# ---- marks and notes


def _share_of(entries: list[dict[str, Any]]) -> tuple[str, float]:
    """(the measure that tells hot nodes, what all nodes have of it)"""
    ran = _known(entries, "loops")
    for key in ("exclusive_ms", "shared_blocks", "rows_read") if ran else ("exclusive_cost",):
        total = sum(entry[key] or 0 for entry in entries)
        if total:
            return key, total
    return "exclusive_ms", 1.0


def _mark(entry: Mapping[str, Any], rule: tuple[str, float]) -> str:
    key, total = rule
    share = 100 * (entry[key] or 0) / total
    return "!!" if share >= _HOT else "!" if share >= _WARM else ""


def _notes(node: Node, entry: Mapping[str, Any]) -> Iterator[str]:
    for name, condition in _REMOVED_BY.items():
        removed = entry["rows_removed"].get(name)
        if removed and removed["total"] >= _MATTERS * entry["rows_read"] > 0:
            yield f"{_count(removed['total'])} rows removed by {condition}: {_cut(node.raw.get(condition, '?'))}"
    if entry["loops"] is None:
        yield from (f"{key}: {_cut(node.raw[key])}" for key in (*_CONDITIONS, "Filter") if key in node.raw)
    if entry["spill"]:
        yield _spilled(entry["spill"])
    if entry["q_error"] and entry["q_error"] >= _MISESTIMATE:
        many = max(1, entry["actual_rows"]) > max(1, entry["plan_rows"])
        yield f"{_count(round(entry['q_error']))} times {'more' if many else 'fewer'} rows than estimated"
    if entry["heap_fetches"] and entry["heap_fetches"] >= _MATTERS * (entry["rows"] or 0):
        yield f"{_count(entry['heap_fetches'])} heap fetches of {_count(entry['rows'])} rows"
    if entry["lossy_heap_blocks"]:
        yield f"{_count(entry['lossy_heap_blocks'])} lossy blocks: read whole, each row checked again"
    if (entry["workers_launched"] or 0) < (entry["workers_planned"] or 0) and entry["loops"]:
        yield f"{_count(entry['workers_launched'])} of {entry['workers_planned']} workers launched"
    if entry["cache"].get("evictions"):
        yield f"cache too small: {_count(entry['cache']['evictions'])} evictions, {_count(entry['cache']['hits'])} hits"


def _spilled(spill: Mapping[str, Any]) -> str:
    told = [f"{_count(spill['disk_kb'])} kB"] if spill["disk_kb"] else []
    told += [f"{_count(spill['batches'])} batches"] if spill["batches"] else []
    told += [f"{_count(spill['temp_blocks'])} temporary blocks"] if spill["temp_blocks"] else []
    return ": ".join(filter(None, ("spilled to disk", ", ".join(told))))


def _cut(text: Any) -> str:
    plain = str(text).replace("\n", "\\n")
    return plain if len(plain) <= _WIDTH else f"{plain[: _WIDTH - 1]}…"


# ---- totals


def _summary(totals: Mapping[str, Any]) -> list[str]:
    parts = [
        ("planning", totals["planning_ms"]),
        ("execution", totals["execution_ms"]),
        ("triggers", totals["triggers_ms"]),
        ("serialization", totals["serialization_ms"]),
        ("JIT, all processes", totals["jit_ms"]),
    ]
    told = [f"{name} {value:,.3f} ms" for name, value in parts if value]
    if totals["shared_blocks"] is not None:
        told.append(f"shared blocks: {_count(totals['shared_hit'])} hit, {_count(totals['shared_read'])} read")
    if totals["temp_blocks"]:
        told.append(f"{_count(totals['temp_blocks'])} temporary blocks")
    return ["; ".join(told)] if told else []
