"""The gates that look at one plan: how it reads, what it estimated, how much it worked, how long it took."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pgrollout.explain.metrics import metrics
from pgrollout.explain.nodes import flat
from pgrollout.gates.verdict import Verdict, amount, held_against, unknown, worst

_SCANS_BY_INDEX = ("Index Scan", "Index Only Scan", "Bitmap Index Scan")


@dataclass(frozen=True)
class Sample:
    """What was measured of a case in a mode: the last plan, its metrics, the times of each run, the parameters as text,
    the gate's settings."""

    plan: dict[str, Any]
    metrics: dict[str, Any]
    execution_ms: list[float]
    planning_ms: list[float]
    parameters: list[str | None] | None
    tables: dict[str, Any]
    max_spread: float

    @property
    def nodes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.metrics["nodes"]
        return found

    def total(self, key: str) -> float | None:
        value: float | None = self.metrics["totals"][key]
        return value


def sample(measured: dict[str, Any], tables: dict[str, Any], max_spread: float) -> Sample:
    """Of what measure.sql found of one case and mode."""
    plan = measured["plan"]
    times = measured["execution_ms"], measured["planning_ms"]
    return Sample(plan, metrics([plan]), *times, measured.get("parameters"), tables, max_spread)


# ---- how it reads


def forbid_seq_scan(rule: dict[str, Any], taken: Sample) -> list[Verdict]:
    verdicts = []
    for node in taken.nodes:
        table = node["relation"] or ""
        if node["node_type"] != "Seq Scan" or is_named(table, rule.get("ignore", ())):
            continue
        rows = node["rows_read"] if node["rows_read"] is not None else node["plan_rows"]
        limit = 0 if is_named(table, rule.get("always", ())) else rule["over_rows"]
        reason = f"{table} is read from end to end, {amount(rows)} rows; allowed up to {amount(limit)}"
        found = Verdict(rule["severity"], rows, limit, node["path"], table, reason, _why_not(taken.tables, table))
        verdicts.append(found if rows > limit else Verdict("pass", rows, limit, node["path"], table))
    return verdicts


def require_index(rules: list[dict[str, Any]], taken: Sample) -> list[Verdict]:
    return [_one_index(rule, taken) for rule in rules]


def _one_index(rule: dict[str, Any], taken: Sample) -> Verdict:
    wanted = [rule["index"]] if isinstance(rule["index"], str) else rule["index"]
    names, table = " or ".join(wanted), rule["table"]
    raw = {node.path: node.raw for node in flat([taken.plan], "explain_gate")}
    scans = [node for node in taken.nodes if node["node_type"] in _SCANS_BY_INDEX and node["index"] in wanted]
    for node in scans:
        condition = str(raw[node["path"]].get("Index Cond", ""))
        missing = [name for name in rule.get("condition_on", ()) if not _mentions(condition, name)]
        if not missing:
            return Verdict("pass", node["index"], names, node["path"], table)
    if scans:
        reason = f"{scans[0]['index']} is read without a condition on {', '.join(rule['condition_on'])}"
        return Verdict(rule["severity"], scans[0]["index"], names, scans[0]["path"], table, reason)
    indexes = facts_of(taken.tables, table).get("indexes", {})
    others = [node for node in taken.nodes if is_named(node["relation"] or "", [table])]
    read = f"{others[0]['label']} reads it" if others else f"the plan does not read {table}"
    there = [name for name in wanted if name in indexes]
    if not there:
        reason, hint = f"{names} does not exist on {table}; {read}", "Has its migration been applied?"
    elif not any(indexes[name] for name in there):
        reason, hint = f"{names} is INVALID; {read}", "The next migrate.yml builds it anew."
    else:
        reason, hint = f"{names} is there and was not chosen; {read}", _why_not(taken.tables, table)
    return Verdict(rule["severity"], "", names, others[0]["path"] if others else "", table, reason, hint)


def forbid_nodes(rules: list[dict[str, Any]], taken: Sample) -> list[Verdict]:
    verdicts = []
    for rule in rules:
        for node in taken.nodes:
            if node["node_type"] != rule["node"]:
                continue
            if "inner_loops_over" in rule:
                inner = [each for each in taken.nodes if each["parent"] == node["path"] and _is_inner(each)]
                value, limit, what = inner[0]["loops"] if inner else None, rule["inner_loops_over"], "inner loops"
            else:
                value = node["rows"] if node["rows"] is not None else node["plan_rows"]
                limit, what = rule.get("rows_over", -1), "rows"
            place = {"path": node["path"], "relation": node["relation"] or ""}
            if value is None:
                verdicts.append(unknown(f"the plan does not tell the {what} of {node['label']}"))
            elif value > limit:
                reason = f"{node['label']} with {amount(value)} {what}"
                reason += f", over the {amount(limit)} allowed" if limit >= 0 else ", which is not allowed here"
                verdicts.append(Verdict(rule["severity"], value, limit, **place, reason=reason))
            else:
                verdicts.append(Verdict("pass", value, limit, **place))
    return verdicts


# ---- what it estimated, how much it worked


def max_rows_estimate_error(rule: dict[str, Any], taken: Sample) -> list[Verdict]:
    if not taken.metrics["totals"]["analyzed"]:
        return [unknown("the plan was not run, so its estimates cannot be compared")]
    verdicts = []
    for node in taken.nodes:
        if node["q_error"] is None or max(node["plan_rows"], node["actual_rows"]) < rule["min_rows"]:
            continue
        reason = (
            f"{node['label']}: {amount(node['plan_rows'])} rows expected, {amount(node['actual_rows'])} found, "
            f"{amount(node['q_error'])} times as many or as few; allowed {amount(rule['factor'])}"
        )
        wrong = node["q_error"] > rule["factor"]
        verdicts.append(
            Verdict(
                rule["severity"] if wrong else "pass",
                node["q_error"],
                rule["factor"],
                node["path"],
                node["relation"] or "",
                reason if wrong else "",
                "ANALYZE its tables; CREATE STATISTICS where columns depend on each other." if wrong else "",
            )
        )
    return verdicts


def max_rows_removed_ratio(rule: dict[str, Any], taken: Sample) -> list[Verdict]:
    found = []
    for node in taken.nodes:
        removed, read = node["rows_removed"].get("filter", {}).get("total"), node["rows_read"]
        if removed is not None and read and read >= rule["min_rows"]:
            found.append(
                (node, removed / read, f"{node['label']} throws away {amount(removed)} of {amount(read)} rows")
            )
    return _ratios(rule, found, "An index on what the filter looks at would read fewer.")


def max_heap_fetch_ratio(rule: dict[str, Any], taken: Sample) -> list[Verdict]:
    found = []
    for node in taken.nodes:
        fetches, rows = node["heap_fetches"], node["rows"]
        if fetches is not None and rows and rows >= rule["min_rows"]:
            words = f"{node['label']} looks {amount(fetches)} of {amount(rows)} rows up in the table"
            found.append((node, fetches / rows, words))
    return _ratios(rule, found, "VACUUM the table: its visibility map is behind.")


def _ratios(rule: dict[str, Any], found: Iterable[tuple[dict[str, Any], float, str]], hint: str) -> list[Verdict]:
    verdicts = []
    for node, ratio, words in found:
        place = {"path": node["path"], "relation": node["relation"] or ""}
        if ratio > rule["ratio"]:
            reason = f"{words}, over the {100 * rule['ratio']:.0f} % allowed"
            verdicts.append(
                Verdict(rule["severity"], round(ratio, 3), rule["ratio"], **place, reason=reason, hint=hint)
            )
        else:
            verdicts.append(Verdict("pass", round(ratio, 3), rule["ratio"], **place))
    return verdicts


def max_shared_blocks_per_row(rule: dict[str, Any], taken: Sample) -> list[Verdict]:
    """For an answer that grows with the data. One of fewer rows than min_rows is held against min_rows."""
    root, blocks = taken.nodes[0], taken.total("shared_blocks")
    if blocks is None or root["rows"] is None:
        return [unknown("the plan was not run with BUFFERS, so its blocks per row are not known")]
    per_row = round(blocks / max(root["rows"], rule["min_rows"], 1), 2)
    if per_row <= rule["blocks"]:
        return [Verdict("pass", per_row, rule["blocks"])]
    words = f"{amount(blocks)} blocks hit and read for {amount(root['rows'])} row{'' if root['rows'] == 1 else 's'}"
    if root["rows"] < rule["min_rows"]:
        words += f", held against {amount(rule['min_rows'])}"
    reason = f"{words}: {amount(per_row)} each, over the {amount(rule['blocks'])} allowed"
    return [Verdict(rule["severity"], per_row, rule["blocks"], reason=reason)]


def max_temp_blocks(limit: Any, taken: Sample) -> list[Verdict]:
    verdict = held_against(limit, taken.total("temp_blocks"), "", "temporary blocks")
    spills = [node for node in taken.nodes if node["spill"]]
    if verdict.status not in ("fail", "warn") or not spills:
        return [verdict]
    node = spills[0]
    reason = f"{verdict.reason}; {node['label']} spills to disk ({node['spill']['cause']})"
    place = {"path": node["path"], "relation": node["relation"] or ""}
    hint = "More work_mem for this query, or an index that gives its order."
    return [Verdict(verdict.status, verdict.observed, verdict.limit, **place, reason=reason, hint=hint)]


def _counted(key: str, what: str) -> Callable[[Any, Sample], list[Verdict]]:
    def gate(limit: Any, taken: Sample) -> list[Verdict]:
        return [held_against(limit, taken.total(key), "", what)]

    return gate


# ---- how long it took


def _timed(runs: Callable[[Sample], list[float]], what: str) -> Callable[[Any, Sample], list[Verdict]]:
    def gate(limit: Any, taken: Sample) -> list[Verdict]:
        return [timed(limit, runs(taken), taken.max_spread, what)]

    return gate


def timed(limit: Any, runs: list[float], max_spread: float, what: str) -> Verdict:
    """The median against the limit; where the runs differ much and stand on both sides of it, nothing is known."""
    if not runs:
        return unknown(f"the plan does not tell {what}")
    middle = statistics.median(runs)
    low, _, high = statistics.quantiles(runs, n=4, method="inclusive") if len(runs) > 1 else (middle,) * 3
    verdict = held_against(limit, middle, " ms", what)
    bounds = [value for value in (limit.values() if isinstance(limit, dict) else [limit]) if low <= value < high]
    if bounds and middle > 0 and (high - low) / middle > max_spread:
        words = f"{what}: the middle half of {len(runs)} runs took {amount(low)} to {amount(high)} ms"
        return Verdict("inconclusive", middle, bounds[0], reason=f"{words}, on both sides of {amount(bounds[0])} ms")
    return verdict


GATES: dict[str, Callable[[Any, Sample], list[Verdict]]] = {
    "forbid_seq_scan": forbid_seq_scan,
    "require_index": require_index,
    "forbid_nodes": forbid_nodes,
    "max_rows_estimate_error": max_rows_estimate_error,
    "max_rows_removed_ratio": max_rows_removed_ratio,
    "max_heap_fetch_ratio": max_heap_fetch_ratio,
    "max_shared_blocks": _counted("shared_blocks", "blocks hit and read"),
    "max_shared_blocks_per_row": max_shared_blocks_per_row,
    "max_shared_read_blocks": _counted("shared_read", "blocks read from outside of shared buffers"),
    "max_temp_blocks": max_temp_blocks,
    "max_total_cost": _counted("total_cost", "cost"),
    "max_planning_ms": _timed(lambda taken: taken.planning_ms, "planning"),
    "max_execution_ms": _timed(lambda taken: taken.execution_ms, "execution"),
}


def judged(name: str, rule: Any, taken: Sample) -> Verdict:
    """The worst that a gate has to say; pass where it finds nothing to look at."""
    verdicts = GATES[name](rule, taken)
    return worst(verdicts) if verdicts else Verdict("pass")


# ---- names


def is_named(relation: str, names: Iterable[str]) -> bool:
    """Whether one of `names`, with schema or without, is this relation (schema.name as the plan has it)."""
    return any(relation in (name, f"public.{name}") or relation.endswith(f".{name}") for name in names)


def facts_of(tables: dict[str, Any], name: str) -> dict[str, Any]:
    return next((facts for known, facts in tables.items() if is_named(known, [name])), {})


def _mentions(condition: str, column: str) -> bool:
    return bool(re.search(rf'(?<![\w"]){re.escape(column)}(?![\w"])|"{re.escape(column)}"', condition))


def _is_inner(node: dict[str, Any]) -> bool:
    return bool(node["relationship"] == "Inner")


def _why_not(tables: dict[str, Any], name: str) -> str:
    """What may have kept the planner from an index."""
    known = facts_of(tables, name)
    if known and known["analysed_s"] is None:
        return f"{name} was never analysed: ANALYZE {name}."
    invalid = [index for index, valid in known.get("indexes", {}).items() if not valid]
    if invalid:
        return f"{invalid[0]} is INVALID: the next migrate.yml builds it anew."
    return ""
