"""Filters over rollouts and plans. The functions live in the package pgrollout, where they are tested."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

try:
    from pgrollout.errors import RolloutError
    from pgrollout.migration import facts, lint, plan, queries, show, validation
except ImportError as error:
    raise AnsibleFilterError(
        "The Python package 'pgrollout' of this project is not installed; run 'make setup' first."
    ) from error


def facts_queries(rollout: dict[str, Any]) -> list[str]:
    """The facts query over all steps of a rollout."""
    return facts.facts_queries(rollout, plan.apply_steps(rollout) + plan.rollback_steps(rollout))


def facts_read(rows: list[dict[str, str]]) -> dict[str, Any]:
    """The answer of the facts query."""
    answer: dict[str, Any] = json.loads(rows[0]["facts"])
    return answer


def _sentence(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turns the package's errors into Ansible's."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except RolloutError as error:
            raise AnsibleFilterError(str(error)) from None

    return call


class FilterModule:
    """The filters of this file; each has a sidecar with its documentation."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        functions: dict[str, Callable[..., Any]] = {
            "facts_queries": facts_queries,
            "facts_read": facts_read,
            "plan_apply": plan.plan_apply,
            "plan_rollback": plan.plan_rollback,
            "plan_lines": show.plan_lines,
            "lint_lines": lint.lint_lines,
            "segments": queries.segments,
            "segment_queries": queries.segment_queries,
            "check_queries": queries.check_queries,
            "check_violations": show.violations,
            "immediate_queries": queries.immediate_queries,
            "hold_queries": queries.hold_queries,
            "materialized_views": plan.materialized_views,
            "difference_lines": show.difference_lines,
            "content_lines": show.content_lines,
            "status_lines": show.status_lines,
            "validation_sentences": validation.sentences,
            "validation_checks": validation.checks,
            "unknown_names": plan.unknown_names,
            "server_message": show.server_message,
            "step_failure": show.failure,
        }
        return {name: _sentence(function) for name, function in functions.items()}
