"""What changed between two plans, where and by how much.

Nodes are matched by the tables below them, not by their place: a scan by the table it reads, a node above by the set
of tables it brings together. So a Sort that is put in is one change, and what stands below it is still compared with
itself.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from pgrollout.explain.fingerprint import accessed, normalised_lines
from pgrollout.explain.metrics import metrics
from pgrollout.explain.nodes import BITMAP_PARTS, GATHERS, JOINS, Node, documents, flat, label

# A measure that changed: (name for people, smallest ratio, smallest difference). Repeated runs of one plan measured:
# blocks within 2 % or a few, cost within 4 % after ANALYZE, time up to 2.8 times the median.
_TOTALS = {
    "total_cost": ("cost", 1.10, 1),
    "rows_processed": ("rows processed", 1.05, 100),
    "shared_blocks": ("shared blocks", 1.02, 8),
    "temp_blocks": ("temporary blocks", 1.02, 8),
    "execution_ms": ("ms of execution", 1.5, 5),
    "planning_ms": ("ms of planning", 1.5, 5),
}
_MEASURES = {
    "rows_read": ("rows read", 1.05, 100),
    "shared_blocks": ("shared blocks", 1.02, 8),
    "exclusive_ms": ("ms", 1.5, 5),
    "q_error": ("times misestimated", 2.0, 9),
    "workers_planned": ("workers planned", 1.0, 1),
    "workers_launched": ("workers launched", 1.0, 1),
}
# Without ANALYZE estimates are all there is.
_ESTIMATES = {"plan_rows": ("rows estimated", 1.1, 10), "exclusive_cost": ("cost", 1.10, 10)}
_SUMS = ("rows_read", "shared_blocks", "exclusive_ms", "exclusive_cost")
_NUMBERED = re.compile(r"(?<= )(.+)_\d+$")
STRUCTURE = ("scan", "join", "node", "added", "removed", "join_order", "condition")


@dataclass(eq=False, slots=True)
class _Unit:
    """A node with those that are part of what it does: a join's Hash, the index scans of a bitmap scan."""

    node: Node
    measures: dict[str, Any]
    does: str
    conditions: str
    role: str
    source: str
    covers: int
    indexes: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """`Bitmap Heap Scan using a_idx, b_idx on t`"""
        if self.node.type == "Bitmap Heap Scan" and self.indexes:
            return label(self.node).replace(" on ", f" using {', '.join(self.indexes)} on ", 1)
        return label(self.node)


def compare(before: Any, after: Any) -> dict[str, Any]:
    """`{"same_plan": bool, "lines": [str], "changes": [{kind, path, label, before, after, ratio}]}`

    Both are what explain_parse returns. `changes`: those of `kind` scan, join, node (another operation), added,
    removed, join_order and condition are of the plan; all others name the measure that changed (`shared_blocks`, …,
    `spill`), with numbers and their ratio (null from zero, or where it is no number). `path` is the node's in `after`,
    for removed nodes in `before`, and null for the totals. `lines` say the same for people, a line a node.
    """
    (old, old_totals), (new, new_totals) = _units(before), _units(after)
    changes = list(_total_changes(old_totals, new_totals))
    pairs = _matched(old, new)
    for one, other in pairs:
        if one is None or other is None:
            changes.append(_lone(one, other))
        else:
            changes += _unit_changes(one, other)
    if sorted(unit.source for unit in old if unit.source) == sorted(unit.source for unit in new if unit.source):
        changes += _join_orders(pairs)
    return {
        "same_plan": not any(change["kind"] in STRUCTURE for change in changes),
        "lines": list(lines(changes)),
        "changes": changes,
    }


# ---- units


def _units(plans: Any) -> tuple[list[_Unit], dict[str, Any]]:
    """The units of a plan and its totals."""
    nodes = flat(documents(plans, "explain_compare"), "explain_compare")
    measured = metrics(plans)
    lines = normalised_lines(nodes)["full"]
    units: dict[int, _Unit] = {}
    for node in reversed(nodes):  # children first
        ordinary = [units[child.number] for child in _ordinary(node)]
        source = _source(node)
        unit = _Unit(
            node=node,
            measures=dict(measured["nodes"][node.number]),
            does=accessed(node),
            conditions=lines[node.number].partition(" | ")[2],
            role=_role(node),
            source=source,
            # equal for equal sets of tables, and as cheap for a thousand of them as for one
            covers=hash(source) if source else sum(child.covers for child in ordinary) % 2**61,
        )
        if "Index Name" in node.raw:
            unit.indexes.append(str(node.raw["Index Name"]))
        for part in ordinary:
            if _is_part(part.node):
                _absorb(unit, part)
        units[node.number] = unit
    return [units[node.number] for node in nodes if not _is_part(node)], measured["totals"]


def _is_part(node: Node) -> bool:
    return node.parent is not None and (node.type in BITMAP_PARTS or node.type == "Hash")


def _absorb(unit: _Unit, part: _Unit) -> None:
    for key in _SUMS:
        known = [each.measures[key] for each in (unit, part) if each.measures[key] is not None]
        unit.measures[key] = round(sum(known), 6) if known else None
    unit.measures["spill"] = unit.measures["spill"] or part.measures["spill"]
    if part.node.type in BITMAP_PARTS:
        unit.indexes += part.indexes
        unit.does += f" / {part.does}"


def _ordinary(node: Node) -> list[Node]:
    return [child for child in node.children if not (child.is_initplan or child.is_subplan)]


def _source(node: Node) -> str:
    """What a leaf of the plan reads, by the name the query gives it; empty for nodes that work on others' rows."""
    if any(child.type not in BITMAP_PARTS for child in _ordinary(node)):
        return ""
    names = (node.raw.get(key) for key in ("Relation Name", "Function Name", "CTE Name", "Alias"))
    return " ".join(dict.fromkeys(str(name) for name in names if name)) or node.type


def _tables(node: Node) -> list[str]:
    """All that is read below a node, subqueries apart."""
    stack, found = [node], []
    while stack:
        each = stack.pop()
        stack += _ordinary(each) if each.type not in BITMAP_PARTS else []
        found += [_source(each)] if each.type not in BITMAP_PARTS and _source(each) else []
    return sorted(found)


def _role(node: Node) -> str:
    if node.type in JOINS:
        return "join"
    if node.type in GATHERS:
        return "gather"
    if node.type in ("Sort", "Incremental Sort"):
        return "sort"
    if node.type.endswith("Scan") and node.type != "Subquery Scan":
        return "scan"
    return node.type


# ---- matching


_Pair = tuple[_Unit | None, _Unit | None]


def _matched(old: Sequence[_Unit], new: Sequence[_Unit]) -> list[_Pair]:
    """Each unit once: with its counterpart, or alone."""
    groups: defaultdict[int, tuple[list[_Unit], list[_Unit]]] = defaultdict(lambda: ([], []))
    for unit in old:
        groups[unit.covers][0].append(unit)
    for unit in new:
        groups[unit.covers][1].append(unit)
    # Nodes over the same tables stand one above the other: those of the same role are the same, in this order.
    pairs = [pair for one, other in groups.values() for pair in _aligned(one, other, lambda unit: unit.role)]
    alone = [pair for pair in pairs if None in pair]
    left = sorted((one for one, _ in alone if one), key=lambda unit: unit.node.number)
    right = sorted((other for _, other in alone if other), key=lambda unit: unit.node.number)
    # What is left stands over other tables than before: other partitions, another join order. Versions number the
    # partitions of a table from `t` or from `t_1` on.
    rest = _aligned(left, right, lambda unit: unit.role + _NUMBERED.sub(r"\1", unit.source))
    found = [pair for pair in pairs if None not in pair] + rest
    return sorted(found, key=lambda pair: (pair[1] or pair[0]).node.number)  # type: ignore[union-attr]


def _aligned(one: list[_Unit], other: list[_Unit], key: Callable[[_Unit], str]) -> list[_Pair]:
    """Pairs of equal keys, both in their order; the others alone."""
    found: list[_Pair] = []
    matcher = SequenceMatcher(None, list(map(key, one)), list(map(key, other)), autojunk=False)
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal":
            found += zip(one[i:i_end], other[j:j_end], strict=True)
        else:
            found += [(unit, None) for unit in one[i:i_end]]
            found += [(None, unit) for unit in other[j:j_end]]
    return found


# ---- changes


def _change(kind: str, unit: _Unit | None, before: Any, after: Any, name: str = "") -> dict[str, Any]:
    numbers = all(isinstance(value, (int, float)) for value in (before, after))
    return {
        "kind": kind,
        "path": unit.node.path if unit else None,
        "label": unit.text if unit else name,
        "before": before,
        "after": after,
        "ratio": float(f"{after / before:.4g}") if numbers and before else None,
    }


def _lone(old: _Unit | None, new: _Unit | None) -> dict[str, Any]:
    return _change("added", new, None, new.text) if new else _change("removed", old, old.text if old else None, None)


def _total_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, (name, ratio, difference) in _TOTALS.items():
        if _differs(old[key], new[key], ratio, difference):
            yield _change(key, None, old[key], new[key], name)


def _unit_changes(old: _Unit, new: _Unit) -> Iterator[dict[str, Any]]:
    if old.does != new.does:
        yield _change(new.role if new.role in ("scan", "join") else "node", new, old.text, new.text)
    if old.conditions != new.conditions and old.node.type == new.node.type:
        yield _change("condition", new, *_different(old.conditions, new.conditions))
    if (old.measures["spill"] is None) != (new.measures["spill"] is None):
        yield _change("spill", new, old.measures["spill"], new.measures["spill"])
    analyzed = old.node.loops is not None and new.node.loops is not None
    for key, (_, ratio, difference) in (_MEASURES if analyzed else _ESTIMATES).items():
        if _differs(old.measures[key], new.measures[key], ratio, difference):
            yield _change(key, new, old.measures[key], new.measures[key])


def _join_orders(pairs: Sequence[_Pair]) -> Iterator[dict[str, Any]]:
    for old, new in pairs:
        if old and new and new.role == "join" and old.covers != new.covers:
            yield _change("join_order", new, _tables(old.node), _tables(new.node))


def _different(old: str, new: str) -> tuple[list[str], list[str]]:
    """The conditions that only one of two nodes has."""
    one, other = old.split(" | "), new.split(" | ")
    return [each for each in one if each and each not in other], [each for each in other if each and each not in one]


def _differs(old: float | None, new: float | None, ratio: float, difference: float) -> bool:
    if old is None or new is None or abs(new - old) < difference:
        return False
    return max(old, new) >= ratio * min(old, new)


# ---- lines


def lines(changes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line a node, of the changes of `compare` or some of them."""
    by_place: defaultdict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for change in changes:
        alone = change["kind"] == "removed" or change["path"] is None
        by_place[(change["path"], change["kind"] if alone else None)].append(change)
    for (path, _), found in by_place.items():
        said = [_said(change) for change in found]
        structural = found[0]["kind"] in STRUCTURE and found[0]["kind"] not in ("join_order", "condition")
        subject = "" if path is None or structural else f"{found[0]['label']}: "
        yield subject + "; ".join(said) + (f"  [{path}]" if path is not None else "")


def _said(change: Mapping[str, Any]) -> str:
    kind, before, after = change["kind"], change["before"], change["after"]
    if kind == "added":
        return f"added: {after}"
    if kind == "removed":
        return f"removed: {before}"
    if kind == "join_order":
        return f"joins {', '.join(after)} now, {', '.join(before)} before"
    if kind == "condition":
        return f"{', '.join(before) or 'no condition'} → {', '.join(after) or 'no condition'}"
    if kind == "spill":
        return f"spills now ({after['cause']})" if after else f"spills no more ({before['cause']})"
    if kind in ("scan", "join", "node"):
        return f"{before} → {after}"
    name = (_TOTALS if change["path"] is None else _MEASURES | _ESTIMATES)[kind][0]
    return f"{name} {_number(before)} → {_number(after)}{_times(change['ratio'])}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:,.3g}"


def _times(ratio: float | None) -> str:
    if not ratio:
        return ""
    sign, factor = ("×", ratio) if ratio >= 1 else ("÷", 1 / ratio)
    return f" ({sign}{_number(float(f'{factor:.3g}'))})"
