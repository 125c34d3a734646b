"""explain_gate: plans that somebody has at hand, held against a gate file, with no server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgrollout.errors import RolloutError
from pgrollout.gates.files import limits_of, read_limits
from pgrollout.gates.judge import verdicts


def explain_gate(
    plans: list[dict[str, Any]],
    gate: str | dict[str, Any],
    tables: dict[str, dict[str, Any]] | None = None,
    before: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The verdicts of judge.verdicts on each plan.

    plans: as explain_parse gives them; of several each is a case of its own, `plan 1` and on. gate: the path of a gate
    file, or its content. tables: what plans do not tell and preconditions ask for, {name: {rows, analysed_s (age of its
    statistics in seconds, None: never analysed), indexes: {name: whether it is valid}}}. before: the plans to compare
    with, in the same order. Raises RolloutError for what is no gate and no plan.
    """
    if not isinstance(plans, list) or not plans or not all(isinstance(plan, Mapping) for plan in plans):
        raise RolloutError("explain_gate: expected the plans that explain_parse returns, at least one.")
    limits = read_limits(Path(gate)) if isinstance(gate, str) else limits_of(gate, "the gate")
    if before is not None and len(before) != len(plans):
        raise RolloutError(f"explain_gate: found {len(before)} plans to compare {len(plans)} with; expected as many.")
    names = [f"plan {number}" for number in range(1, len(plans) + 1)] if len(plans) > 1 else [""]
    asked = limits | {"migration": "", "cases": dict.fromkeys(names, ""), "plan_modes": [""]}
    then = _measured(names, before, tables) if before is not None else None
    return verdicts(asked, _measured(names, plans, tables), then)


def _measured(
    names: list[str], plans: list[dict[str, Any]], tables: dict[str, dict[str, Any]] | None
) -> dict[str, Any]:
    """As measure.sql says it."""
    settings = [plan.get("Settings") or {} for plan in plans]
    return {
        "version": 0,
        "tables": {name: {"analysed_s": 0, "indexes": {}} | facts for name, facts in (tables or {}).items()},
        "settings": settings[0] if all(found == settings[0] for found in settings) else {},
        "cases": {name: {"": _run(plan)} for name, plan in zip(names, plans, strict=True)},
    }


def _run(plan: dict[str, Any]) -> dict[str, Any]:
    times = {"execution_ms": "Execution Time", "planning_ms": "Planning Time"}
    return {"plan": plan} | {key: [plan[name]] if name in plan else [] for key, name in times.items()}
