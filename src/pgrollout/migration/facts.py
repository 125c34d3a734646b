"""The facts query: what to ask a database before planning. Its SQL is in facts.sql beside this file."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from pglast import split

from pgrollout.migration.plan import apply_steps, rollback_steps


def rollout_queries(rollout: dict[str, Any]) -> list[str]:
    """The facts query over all steps of a rollout."""
    return facts_queries(rollout, apply_steps(rollout) + rollback_steps(rollout))


def read(rows: list[dict[str, str]]) -> dict[str, Any]:
    """The answer of the facts query."""
    answer: dict[str, Any] = json.loads(rows[0]["facts"])
    return answer


def facts_queries(rollout: dict[str, Any], steps: list[dict[str, Any]]) -> list[str]:
    """The statements of one facts query about `steps`, for one transaction that the caller rolls back.

    The last one returns one row with one column `facts`: JSON text, {topic: {key: value}} (see `plan`).
    """
    relations = sorted({lock["relation"] for step in steps for lock in step["locks"]})
    request = {
        "schema": rollout["schema"],
        "relations": relations,
        "functions": sorted({name for step in steps for name in step["functions"]}),
        "steps": [
            {
                "id": step["id"] + (" (rollback)" if step.get("rollback") else ""),
                "object": step["object"],
                "probe": step["probe"],
                "done_when": step["done_when"],
                "twins": _twins(step),
            }
            for step in steps
        ],
    }
    text = files("pgrollout.migration").joinpath("facts.sql").read_text(encoding="utf-8")
    setting = json.dumps(request).replace("'", "''")
    return [f"SELECT set_config('pgrollout.request', '{setting}', true)", *split(text)]


def _twins(step: dict[str, Any]) -> list[str]:
    """The relations whose empty twins the probe needs: its own table first, then those that a foreign key points at."""
    target = step["object"]
    if not step["probe"] or target["kind"] in ("view", "function", "type", "sequence"):
        return []
    own = [] if target["kind"] == "table" else [target["table"]]
    return own + [lock["relation"] for lock in step["locks"] if lock["relation"] not in own]
