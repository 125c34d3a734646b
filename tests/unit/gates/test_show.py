"""Verdicts in words: what several plans have alike is told once."""

from __future__ import annotations

from typing import Any

from pgrollout.gates.show import gate_failures, gate_lines

GATE = {"id": "001_a/look", "title": "Look it up"}
PLAN = {"Plan": {"Node Type": "Seq Scan", "Relation Name": "task", "Plan Rows": 5, "Total Cost": 10, "Startup Cost": 0}}


def result(
    case: str, mode: str, observed: float, status: str = "fail", gate: str = "max_execution_ms"
) -> dict[str, Any]:
    reason = "" if status == "pass" else f"execution: {observed} ms, over the 50 ms allowed"
    return {
        "gate": gate,
        "case": case,
        "mode": mode,
        "status": status,
        "observed": observed,
        "reason": reason,
        "hint": "",
    }


def lines(*results: dict[str, Any]) -> list[str]:
    measured = {"cases": {"old": {"custom": {"plan": PLAN}}, "new": {"custom": {"plan": PLAN}}}}
    return gate_lines([GATE], {GATE["id"]: measured}, {GATE["id"]: list(results)})


def test_what_is_alike_is_told_once_with_the_worst() -> None:
    first, told, *plan = lines(
        result("old", "custom", 60.5), result("new", "custom", 71.2), result("new", "generic", 66)
    )
    assert first == "fail         001_a/look: Look it up"
    assert (
        told == "  fail: max_execution_ms (all 3 plans; worst: new custom): execution: 71.2 ms, over the 50 ms allowed."
    )
    assert "Seq Scan on task" in "\n".join(plan)


def test_what_holds_in_some_plans_names_them() -> None:
    found = lines(result("old", "custom", 60.5), result("new", "custom", 1, "pass"), result("new", "generic", 60.5))
    assert found[1].startswith("  fail: max_execution_ms (old custom, new generic): execution: 60.5 ms")
    assert lines(result("new", "custom", 1, "pass")) == ["pass         001_a/look: Look it up"]


def test_a_warning_shows_no_plan_and_is_no_failure() -> None:
    warned = [result("", "", 55, "warn")]
    assert lines(*warned)[1:] == ["  warn: max_execution_ms: execution: 55 ms, over the 50 ms allowed."]
    assert gate_failures({"001_a/look": warned}) == []
    failed = [result("", "", 55), result("", "", 56)]
    assert gate_failures({"001_a/look": failed}) == [
        "001_a/look: max_execution_ms: execution: 55 ms, over the 50 ms allowed (and 1 more)"
    ]
