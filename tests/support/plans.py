"""Plans of a real database without Ansible: the facts query as the role sends it, and steps run one by one."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from pgrollout.migration.facts import facts_queries
from pgrollout.migration.plan import apply_steps, plan_apply, rollback_steps

if TYPE_CHECKING:
    from tests.conftest import Database


def facts_of(database: Database, rollout: dict[str, Any], user: str | None = None, **options: Any) -> dict[str, Any]:
    """The facts as the role `plan` asks for them: one transaction, rolled back."""
    connect = {"user": user} if user else {}
    with contextlib.closing(database.connect(autocommit=False, **connect, **options)) as connection:
        cursor = connection.cursor()
        for query in facts_queries(rollout, apply_steps(rollout) + rollback_steps(rollout)):
            cursor.execute(query)
        facts: dict[str, Any] = json.loads(cursor.fetchone()[0])
        connection.rollback()
    return facts


def plan_of(database: Database, rollout: dict[str, Any], **options: Any) -> dict[str, Any]:
    return plan_apply(rollout, facts_of(database, rollout, **options), [], {}, [], [])


def steps_of_plan(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for phase in plan["phases"] for step in phase["steps"]]


def states(plan: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["state"] for step in steps_of_plan(plan)}
