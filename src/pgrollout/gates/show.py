"""Verdicts in words: a line a gate, and below it what a person has to know."""

from __future__ import annotations

import statistics
from typing import Any

from pgrollout.explain.tree import tree
from pgrollout.gates.verdict import STATUSES, amount


def gate_lines(gates: list[dict[str, Any]], measured: dict[str, Any], judged: dict[str, Any]) -> list[str]:
    """judged: {gate id: verdicts}. Alike sentences of several cases and plan modes stand there once; of a gate that
    failed the first plan that did so follows."""
    lines = []
    for gate in gates:
        results = judged[gate["id"]]
        lines.append(f"{status_of(results):<12} {gate['id']}: {gate['title']}{_figures(measured[gate['id']])}")
        told: dict[tuple[str, ...], list[str]] = {}
        for result in results:
            if result["status"] != "pass":
                sentence = (result["status"], result["gate"], result["reason"], result["hint"])
                told.setdefault(sentence, []).append(" ".join(filter(None, (result["case"], result["mode"]))))
        for (status, name, reason, hint), where in told.items():
            places = f" ({', '.join(filter(None, where))})" if any(where) else ""
            lines.append(f"  {status}: {name}{places}: {reason}{_ended(reason)}{' ' if hint else ''}{hint}")
        lines += [f"    {line}" for line in _plan(measured[gate["id"]], results)]
    return lines


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
