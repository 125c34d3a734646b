"""What a validation says: whether every object stands as its migration wrote it, and which checks to run."""

from __future__ import annotations

from typing import Any

from pgrollout.migration.plan import label_of


def sentences(plan: dict[str, Any]) -> list[str]:
    """One sentence for each step of the plan that the database does not satisfy: object, found, expected."""
    found = []
    for phase in plan["phases"]:
        for step in phase["steps"]:
            if step["state"] == "pending":
                what = label_of(step["object"]) if step["object"] else step["kind"]
                found.append(
                    f"{step['id']}: {what}: found {_found(step)}, expected: {' '.join(step['sql'].split())[:200]}"
                )
            elif step["state"] in ("rebuild", "conflict", "unproven", "refused"):
                found.append(f"{step['id']}: {step['reason']}")
    return found


def checks(
    rollout: dict[str, Any], plan: dict[str, Any], states_wanted: list[str] | None = None
) -> list[dict[str, Any]]:
    """The checks of the migrations whose every step is in one of these states: what is off or held has no outcome.

    states_wanted: satisfied alone where nothing is given.
    """
    names = migrations_in(plan, set(states_wanted or ["satisfied"]))
    return [
        check
        for phase in rollout["phases"]
        for migration in phase["migrations"]
        if migration["name"] in names
        for check in migration["validate"]
    ]


def migrations_in(plan: dict[str, Any], wanted: set[str]) -> set[str]:
    """The migrations whose every step is in one of these states."""
    states: dict[str, set[str]] = {}
    for phase in plan["phases"]:
        for step in phase["steps"]:
            states.setdefault(step["migration"], set()).add(step["state"])
    return {name for name, found in states.items() if found <= wanted}


def _found(step: dict[str, Any]) -> str:
    actual = step["fact"].get("actual")
    return str(actual) if actual else "nothing"
