"""Verdicts in words: a line a gate, and below it what a person has to know."""

from __future__ import annotations

import re
import statistics
from typing import Any

from pgrollout.explain.tree import tree
from pgrollout.gates.verdict import STATUSES, amount


def gate_lines(gates: list[dict[str, Any]], measured: dict[str, Any], judged: dict[str, Any]) -> list[str]:
    """judged: {gate id: verdicts}. What several cases and plan modes have alike stands there once, with the worst
    value; of a gate that failed the first plan that did so follows."""
    lines = []
    for gate in gates:
        results = judged[gate["id"]]
        lines.append(f"{status_of(results):<12} {gate['id']}: {gate['title']}{_figures(measured[gate['id']])}")
        alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for result in results:
            if result["status"] != "pass":
                told = re.sub(r"[\d.,]+", "", result["reason"])
                alike.setdefault((result["status"], result["gate"], told, result["hint"]), []).append(result)
        for (status, name, _, hint), group in alike.items():
            worst = max(group, key=_size)
            reason = worst["reason"]
            plans = sum(result["gate"] == name for result in results)
            lines.append(f"  {status}: {name}{_places(group, worst, plans)}: {reason}{_ended(reason)} {hint}".rstrip())
        lines += [f"    {line}" for line in _plan(measured[gate["id"]], results)]
    return lines


def _size(result: dict[str, Any]) -> float:
    return result["observed"] if isinstance(result["observed"], int | float) else 0


def _places(group: list[dict[str, Any]], worst: dict[str, Any], plans: int) -> str:
    """` (all 6 plans, worst: newest custom)`"""
    names = [_place(result) for result in group if _place(result)]
    if not names:
        return ""
    where = f"all {plans} plans" if len(names) == plans > 1 else ", ".join(names)
    differ = len({result["reason"] for result in group}) > 1
    return f" ({where}; worst: {_place(worst)})" if differ else f" ({where})"


def _place(result: dict[str, Any]) -> str:
    return f"{result['case']} {result['mode']}".strip()


def gate_failures(judged: dict[str, Any]) -> list[str]:
    """A sentence for each gate that failed."""
    found = []
    for name, results in judged.items():
        failed = [result for result in results if result["status"] == "fail"]
        if failed:
            first = failed[0]
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            found.append(f"{name}: {first['gate']}: {first['reason']}{more}")
    return found


def status_of(results: list[dict[str, Any]]) -> str:
    """The worst of a gate's verdicts."""
    return max((result["status"] for result in results), key=STATUSES.index, default="pass")


def _figures(measured: dict[str, Any]) -> str:
    """` (6 plans; 0.04 ms, 4 blocks at most)`: the medians of the slowest case and the most blocks."""
    modes = [mode for case in measured["cases"].values() if "error" not in case for mode in case.values()]
    times = [statistics.median(mode["execution_ms"]) for mode in modes if mode.get("execution_ms")]
    blocks = [max(mode["shared_blocks"]) for mode in modes if mode.get("shared_blocks")]
    if not times:
        return ""
    return f" ({len(times)} plans; {amount(max(times))} ms, {amount(max(blocks))} blocks at most)"


def _plan(measured: dict[str, Any], results: list[dict[str, Any]]) -> list[str]:
    for result in results:
        plan = measured["cases"].get(result["case"], {}).get(result["mode"], {}).get("plan")
        if result["status"] == "fail" and plan:
            return tree([plan])
    return []


def _ended(sentence: str) -> str:
    return "" if sentence.endswith((".", "?")) else "."
