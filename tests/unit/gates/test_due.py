"""Which gates hold when: of what is applied, of what a run has done since its plan, of what was taken back."""

from __future__ import annotations

from typing import Any

import pytest

from pgrollout.gates.due import due, left_out, restored
from pgrollout.gates.judge import verdicts


def gate(name: str, phase: str) -> dict[str, Any]:
    return {
        "id": f"{name}/look",
        "migration": name,
        "phase": phase,
        "gates": {"max_temp_blocks": 0},
        "baseline": {},
        "sampling": {"warmup": 1, "runs": 5, "timeout_ms": 30000, "max_spread": 1},
        "preconditions": {},
        "cases": {"one": ""},
        "plan_modes": ["custom", "generic"],
        "waivers": [],
    }


ROLLOUT = {"gates": [gate("001_a", "phase1"), gate("002_b", "phase1"), gate("003_c", "phase2")]}


def plan(applied: list[str], **states: list[str]) -> dict[str, Any]:
    """A plan of those phases, each with one migration per state."""
    names = {"phase1": ["001_a", "002_b"], "phase2": ["003_c"]}
    return {
        "applied": applied,
        "phases": [
            {
                "name": phase,
                "steps": [{"migration": m, "state": s} for m, s in zip(names[phase], of_phase, strict=True)],
            }
            for phase, of_phase in states.items()
        ],
    }


def test_gates_of_what_is_applied_and_of_what_was_done_since() -> None:
    before = plan([], phase1=["pending", "held"], phase2=["pending"])
    assert due(ROLLOUT, before) == []
    assert [found["id"] for found in due(ROLLOUT, before, ["phase1"])] == ["001_a/look"]
    later = plan(["001_a"], phase2=["pending"])  # another phase's gates hold too
    assert [found["id"] for found in due(ROLLOUT, later, ["phase2"])] == ["001_a/look", "003_c/look"]


def test_what_is_not_due_is_told() -> None:
    told = left_out(ROLLOUT, plan(["001_a"], phase1=["satisfied", "held"]))
    assert told == ["not measured: 1 gate of 002_b: it is not applied as a whole"]


@pytest.mark.parametrize("known", [True, False])
def test_what_was_taken_back_is_held_against_the_time_before(known: bool) -> None:
    limits = {"max_shared_blocks_ratio": 3}
    (found,) = restored(ROLLOUT, ["phase2"], limits)
    assert (found["id"], found["gates"], found["baseline"]) == ("003_c/look", {}, limits)
    # With its index a query is to need no more than before; without it again, on a larger table, it needs more.
    assert (found["sampling"]["warmup"], found["sampling"]["runs"]) == (0, 1)
    own = {"gates": [gate("001_a", "phase1") | {"baseline": {"max_shared_blocks_ratio": 1}}]}
    assert restored(own, ["phase1"], limits)[0]["baseline"] == limits

    asked = found | {"plan_modes": ["custom"]}
    blocks = {"Node Type": "Result", "Shared Hit Blocks": 500, "Shared Read Blocks": 0}
    run = {"plan": {"Plan": blocks}, "execution_ms": [], "planning_ms": []}
    measured = {"version": 170000, "tables": {}, "settings": {}, "cases": {"one": {"custom": run}}}
    few = run | {"plan": {"Plan": blocks | {"Shared Hit Blocks": 100}}}
    then = measured | {"cases": {"one": {"custom": few} if known else {"error": "no such column"}}}
    (result,) = verdicts(asked, measured, then)
    if known:
        assert result["status"] == "fail"
        assert "5 times, over the 3 times allowed" in result["reason"]
    else:
        assert (result["status"], result["reason"]) == (
            "inconclusive",
            "it could not run before the first phase either",
        )


def test_what_was_as_slow_before_is_not_a_rollbacks_fault() -> None:
    (asked,) = restored(ROLLOUT, ["phase2"], {"max_shared_blocks_ratio": 3})
    blocks = {"Node Type": "Result", "Shared Hit Blocks": 500, "Shared Read Blocks": 0}
    run = {"plan": {"Plan": blocks}, "execution_ms": [], "planning_ms": []}
    cancelled = {"error": "canceling statement due to statement timeout", "sqlstate": "57014"}
    slow = {"version": 170000, "tables": {}, "settings": {}, "cases": {"one": {"custom": run, "generic": cancelled}}}
    quick = slow | {"cases": {"one": {"custom": run, "generic": run}}}
    assert [result["status"] for result in verdicts(asked, slow, slow)] == ["pass", "inconclusive"]
    assert [result["status"] for result in verdicts(asked, slow, quick)] == ["pass", "fail"]
