"""Which gates hold when."""

from __future__ import annotations

from typing import Any

from pgrollout.migration.validation import migrations_in

_ONE_RUN = {"warmup": 0, "runs": 1}


def due(rollout: dict[str, Any], plan: dict[str, Any], done: list[str] | None = None) -> list[dict[str, Any]]:
    """The gates of what is applied, and of the phases (names) that were carried out since the plan was made."""
    names = {*plan["applied"]}
    for phase in plan["phases"]:
        if phase["name"] in (done or ()):
            names |= migrations_in({"phases": [phase]}, {"satisfied", "pending", "rebuild"})
    return [gate for gate in rollout["gates"] if gate["migration"] in names]


def left_out(rollout: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    """A sentence for each migration of the plan's phases whose gates are not due."""
    waiting: dict[str, int] = {}
    phases = {phase["name"] for phase in plan["phases"]}
    for gate in rollout["gates"]:
        if gate["phase"] in phases and gate["migration"] not in plan["applied"]:
            waiting[gate["migration"]] = waiting.get(gate["migration"], 0) + 1
    return [
        f"not measured: {count} gate{'s' if count > 1 else ''} of {name}: it is not applied as a whole"
        for name, count in waiting.items()
    ]


def restored(rollout: dict[str, Any], phases: list[str], limits: dict[str, Any]) -> list[dict[str, Any]]:
    """The gates of phases that were taken back, held against what was before the first phase, by these limits alone.

    A gate's own limits are those of a query that has its index; without it, on a table that was filled and emptied, it
    cannot be asked to need no more than ever. It runs once, as it did before the first phase: it may be as slow again.
    """
    return [
        gate | {"gates": {}, "baseline": limits, "taken_back": True, "sampling": gate["sampling"] | _ONE_RUN}
        for gate in rollout["gates"]
        if gate["phase"] in phases
    ]
