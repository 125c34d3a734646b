"""The numbers of plans: what each node took and how much work it did, and what the statements took in all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pgrollout.explain.attribution import BLOCKS, IO, TIME, WAL, Attribution, Measures, counters, processes
from pgrollout.explain.early_stop import Caveat, caveats, q_error
from pgrollout.explain.nodes import Node, documents, flat, label, number, relation, whole
from pgrollout.explain.spill import spills

_REMOVED = {
    "filter": "Rows Removed by Filter",
    "join_filter": "Rows Removed by Join Filter",
    "index_recheck": "Rows Removed by Index Recheck",
    "conflict_filter": "Rows Removed by Conflict Filter",
}
_CACHE = {
    "hits": "Cache Hits",
    "misses": "Cache Misses",
    "evictions": "Cache Evictions",
    "overflows": "Cache Overflows",
}


def metrics(plans: Any) -> dict[str, Any]:
    """`{"totals": {…}, "nodes": [{…}, …]}` of what explain_parse returns, or of one of its documents.

    Times are milliseconds, blocks 8 kB, costs the planner's units. null is unknown (the option was off), 0 is a
    measured zero. In parallel parts times are those of one process on average, all counts those of all processes.

    Each node, parents before children:
    - `path` ("0" the root of the first statement, "0.1" its second child), `parent` (its path), `depth`, `label`,
      `node_type`, `relation`, `alias`, `index`, `relationship`, `subplan`
    - `startup_cost`, `total_cost`, `exclusive_cost`, `plan_rows`, `plan_width`
    - `actual_rows` (per loop), `loops`, `rows` (all loops), `never_executed`, `processes`, `workers_planned`,
      `workers_launched`
    - `inclusive_ms`, `exclusive_ms`, `exclusive_percent` (of all nodes)
    - `inclusive`, `exclusive`: `{shared_hit: blocks, …}` of the keys that are known, I/O times and WAL among them;
      `shared_blocks`: hit + read, exclusive; `spent_in`: for an InitPlan or CTE the paths of the nodes whose time it is
    - `rows_removed`: `{filter: {per_loop, total}, …}`, `rows_read`: rows it looked at in all loops, removed ones too
    - `q_error`: how many times too high or too low the estimate is; `caveat`: why there is none
    - `spill`: null or `{cause, disk_kb, batches, temp_blocks}`
    - `heap_fetches`, `exact_heap_blocks`, `lossy_heap_blocks`, `index_searches`, `cache` (of a Memoize)

    Totals: `statements`, `node_count`, `analyzed`, `total_cost`, `rows`; `planning_ms`, `execution_ms`, `nodes_ms`,
    `triggers_ms` (those of constraints run after the nodes, others inside them), `jit_ms` (all processes together, so
    more than the execution sometimes), `serialization_ms`; the counters of the nodes, `shared_blocks`, `temp_blocks`;
    `rows_processed` (the `rows_read` of all nodes), `rows_removed`, `heap_fetches`, `max_q_error` and its path,
    `spills` (paths), `triggers`, `jit`, `planning`, `serialization`, `settings`.
    """
    found = documents(plans, "explain_metrics")
    nodes = flat(found, "explain_metrics")
    attribution = Attribution(nodes)
    measured = _nodes(nodes, attribution)
    return {"totals": _totals(found, nodes, measured, attribution), "nodes": measured}


def _nodes(nodes: Sequence[Node], attribution: Attribution) -> list[dict[str, Any]]:
    spread, stopped, spilled = processes(nodes), caveats(nodes), spills(nodes, attribution)
    all_ms = sum(_positive(measures).get(TIME, 0) for measures in attribution.exclusive)
    return [
        _identity(node)
        | _estimate(node)
        | _actual(node, spread[node.number])
        | _spent(node, attribution, all_ms)
        | _work(node, stopped.get(node.number))
        | {"spill": spilled.get(node.number)}
        for node in nodes
    ]


def _identity(node: Node) -> dict[str, Any]:
    return {
        "path": node.path,
        "parent": node.parent.path if node.parent else None,
        "depth": node.depth,
        "label": label(node),
        "node_type": node.type,
        "relation": relation(node),
        "alias": node.raw.get("Alias"),
        "index": node.raw.get("Index Name"),
        "relationship": node.relationship or None,
        "subplan": node.subplan or None,
    }


def _estimate(node: Node) -> dict[str, Any]:
    cost = number(node.raw, "Total Cost")
    below = sum(number(child.raw, "Total Cost") or 0 for child in node.children)
    return {
        "startup_cost": number(node.raw, "Startup Cost"),
        "total_cost": cost,
        # A Limit costs less than what it stops, and a join that stops early too: those add nothing.
        "exclusive_cost": None if cost is None else max(0.0, round(cost - below, 2)),
        "plan_rows": number(node.raw, "Plan Rows"),
        "plan_width": whole(node.raw, "Plan Width"),
    }


def _actual(node: Node, spread: float) -> dict[str, Any]:
    rows = number(node.raw, "Actual Rows")
    return {
        "actual_rows": rows,
        "loops": node.loops,
        "rows": _times(rows, node.loops),
        "never_executed": None if node.loops is None else node.loops == 0,
        "processes": round(spread, 3),
        "workers_planned": whole(node.raw, "Workers Planned"),
        "workers_launched": whole(node.raw, "Workers Launched"),
    }


def _spent(node: Node, attribution: Attribution, all_ms: float) -> dict[str, Any]:
    inclusive = _rounded(attribution.inclusive[node.number])
    exclusive = _rounded(_positive(attribution.exclusive[node.number]))
    inclusive_ms, exclusive_ms = inclusive.pop(TIME, None), exclusive.pop(TIME, None)
    return {
        "inclusive_ms": inclusive_ms,
        "exclusive_ms": exclusive_ms,
        "exclusive_percent": None if exclusive_ms is None or not all_ms else round(100 * exclusive_ms / all_ms, 1),
        "inclusive": inclusive,
        "exclusive": exclusive,
        "shared_blocks": _shared(exclusive),
        "spent_in": [user.path for user in attribution.spent_in.get(node.number, ())],
    }


def _work(node: Node, caveat: Caveat | None) -> dict[str, Any]:
    raw, loops = node.raw, node.loops
    removed = {
        name: {"per_loop": per_loop, "total": _times(per_loop, loops)}
        for name, key in _REMOVED.items()
        if (per_loop := number(raw, key)) is not None
    }
    rows = _times(number(raw, "Actual Rows"), loops)
    error = q_error(node, caveat)
    return {
        "rows_removed": removed,
        "rows_read": None if rows is None else rows + sum(count["total"] or 0 for count in removed.values()),
        "q_error": None if error is None else round(error, 2),
        "caveat": "never executed" if loops == 0 else caveat.reason if caveat and loops and error is None else None,
        "heap_fetches": whole(raw, "Heap Fetches"),
        # From 18 on each worker tells its own, before only the leader's are known.
        "exact_heap_blocks": _with_workers(raw, "Exact Heap Blocks"),
        "lossy_heap_blocks": _with_workers(raw, "Lossy Heap Blocks"),
        "index_searches": whole(raw, "Index Searches"),
        "cache": {name: count for name, key in _CACHE.items() if (count := _with_workers(raw, key)) is not None},
    }


def _totals(
    found: Sequence[Mapping[str, Any]],
    nodes: Sequence[Node],
    measured: Sequence[Mapping[str, Any]],
    attribution: Attribution,
) -> dict[str, Any]:
    roots = [node for node in nodes if node.parent is None]
    spent = _added([*(attribution.inclusive[root.number] for root in roots), *attribution.outside.values()])
    nodes_ms = spent.pop(TIME, None)
    worst = max((node for node in measured if node["q_error"]), key=lambda node: node["q_error"], default=None)
    triggers = [trigger for document in found for trigger in document.get("Triggers") or []]
    jit = _jit([document["JIT"] for document in found if isinstance(document.get("JIT"), Mapping)])
    serialization = _section(found, "Serialization")
    return {
        "statements": len(found),
        "node_count": len(nodes),
        "analyzed": all(root.loops is not None for root in roots),
        "total_cost": _sum(number(root.raw, "Total Cost") for root in roots),
        "rows": _sum(measured[root.number]["rows"] for root in roots),
        "planning_ms": _sum(number(document, "Planning Time") for document in found),
        "execution_ms": _sum(number(document, "Execution Time") for document in found),
        "nodes_ms": nodes_ms,
        "triggers_ms": _sum(number(trigger, "Time") for trigger in triggers),
        "jit_ms": jit.get("ms"),
        "serialization_ms": serialization.get("ms"),
        **{key: spent.get(key) for key in (*BLOCKS, *IO, *WAL)},
        "shared_blocks": _shared(spent),
        "temp_blocks": _sum(spent.get(key) for key in ("temp_read", "temp_written")),
        "rows_processed": _sum(node["rows_read"] for node in measured),
        "rows_removed": _sum(count["total"] for node in measured for count in node["rows_removed"].values()),
        "heap_fetches": _sum(node["heap_fetches"] for node in measured),
        "max_q_error": worst["q_error"] if worst else None,
        "max_q_error_path": worst["path"] if worst else None,
        "spills": [node["path"] for node in measured if node["spill"]],
        "triggers": [_trigger(trigger) for trigger in triggers],
        "jit": jit,
        "planning": _section(found, "Planning"),
        "serialization": serialization,
        "settings": {name: value for document in found for name, value in (document.get("Settings") or {}).items()},
    }


def _trigger(raw: Mapping[str, Any]) -> dict[str, Any]:
    """{name, constraint, relation, ms, calls}"""
    return {
        "name": raw.get("Trigger Name"),
        "constraint": raw.get("Constraint Name"),
        "relation": raw.get("Relation"),
        "ms": number(raw, "Time"),
        "calls": whole(raw, "Calls"),
    }


def _jit(sections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{functions, ms, generation_ms, inlining_ms, optimization_ms, emission_ms}; the server has added its workers'."""
    if not sections:
        return {}
    timings = [section.get("Timing") or {} for section in sections]
    parts = {
        f"{name.lower()}_ms": _sum(_part(timing, name) for timing in timings)
        for name in ("Generation", "Inlining", "Optimization", "Emission")
    }
    return {
        "functions": _sum(whole(section, "Functions") for section in sections),
        "ms": _sum(number(timing, "Total") for timing in timings),
    } | parts


def _part(timing: Mapping[str, Any], name: str) -> float | None:
    """A part of JIT's time: a number, or from 17 on for Generation {Deform, Total}."""
    value = timing.get(name)
    return number(value, "Total") if isinstance(value, Mapping) else number(timing, name)


def _section(found: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Counters of planning or serialisation, with `ms`, and memory or output in kB where they are known."""
    sections = [document[name] for document in found if isinstance(document.get(name), Mapping)]
    known: dict[str, Any] = dict(_added([counters(section) for section in sections]))
    for key, source in (
        ("ms", "Time"),
        ("memory_used_kb", "Memory Used"),
        ("memory_allocated_kb", "Memory Allocated"),
        ("output_kb", "Output Volume"),
    ):
        value = _sum(number(section, source) for section in sections)
        if value is not None:
            known[key] = value
    return known


def _shared(measures: Mapping[str, float]) -> float | None:
    return _sum(measures.get(key) for key in ("shared_hit", "shared_read"))


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return _round(sum(known)) if known else None


def _added(several: Iterable[Measures]) -> Measures:
    total: Measures = {}
    for measures in several:
        for key, value in measures.items():
            total[key] = _round(total.get(key, 0) + value)
    return total


def _positive(measures: Measures) -> Measures:
    """Averages are rounded, so a node can seem to have taken less than what ran inside it."""
    return {key: max(value, 0) for key, value in measures.items()}


def _rounded(measures: Measures) -> Measures:
    return {key: _round(value) for key, value in measures.items()}


def _round(value: float) -> float:
    """To a millionth; counts stay whole numbers."""
    return round(value, 6) if isinstance(value, float) else value


def _times(per_loop: float | None, loops: float | None) -> float | None:
    return None if per_loop is None or loops is None else _round(per_loop * loops)


def _with_workers(raw: Mapping[str, Any], key: str) -> int | None:
    workers = raw.get("Workers")
    parts = [raw, *(workers if isinstance(workers, list) else ())]
    known = [count for part in parts if isinstance(part, Mapping) and (count := whole(part, key)) is not None]
    return sum(known) if known else None
