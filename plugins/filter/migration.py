"""Filters over rollouts and plans. The functions live in the package pgrollout, where they are tested."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

# Each filter's function, as module and name in pgrollout.migration. Ansible forks a process for every task, so what is
# imported here is imported a hundred times a run: each function's module waits for its first call.
FUNCTIONS = {
    "facts_queries": "facts.rollout_queries",
    "facts_read": "facts.read",
    "plan_apply": "plan.plan_apply",
    "plan_rollback": "plan.plan_rollback",
    "plan_lines": "show.plan_lines",
    "segments": "queries.segments",
    "segment_queries": "queries.segment_queries",
    "check_queries": "queries.check_queries",
    "check_violations": "show.violations",
    "immediate_queries": "queries.immediate_queries",
    "hold_queries": "queries.hold_queries",
    "materialized_views": "plan.materialized_views",
    "difference_lines": "show.difference_lines",
    "content_lines": "show.content_lines",
    "status_lines": "show.status_lines",
    "validation_sentences": "validation.sentences",
    "validation_checks": "validation.checks",
    "unknown_names": "plan.unknown_names",
    "server_message": "show.server_message",
    "step_failure": "show.failure",
}


def function(path: str) -> Callable[..., Any]:
    """The function of a `module.name`."""
    module, name = path.split(".")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(f"pgrollout.migration.{module}"), name)
    except ImportError as error:
        raise AnsibleFilterError(
            "The Python package 'pgrollout' of this project is not installed; run 'make setup' first."
        ) from error
    return found


def _late(path: str) -> Callable[..., Any]:
    """A filter that imports its function when it is called, and turns the package's errors into Ansible's."""

    def call(*args: Any, **kwargs: Any) -> Any:
        called = function(path)
        from pgrollout.errors import RolloutError

        try:
            return called(*args, **kwargs)
        except RolloutError as error:
            raise AnsibleFilterError(str(error)) from None

    return call


class FilterModule:
    """The filters of this file; each has a sidecar with its documentation."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {name: _late(path) for name, path in FUNCTIONS.items()}
