"""The filters of this project. The functions live in the package pgrollout, where they are tested."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

# Each filter's function, as module and name in the package pgrollout. Ansible forks a process for every task, so what
# is imported here is imported a hundred times a run: each function's module waits for its first call.
FUNCTIONS = {
    "facts_queries": "migration.facts.rollout_queries",
    "facts_read": "migration.facts.read",
    "plan_apply": "migration.plan.plan_apply",
    "plan_rollback": "migration.plan.plan_rollback",
    "plan_lines": "migration.show.plan_lines",
    "lint_lines": "migration.show.lint_lines",
    "segments": "migration.queries.segments",
    "segment_queries": "migration.queries.segment_queries",
    "check_queries": "migration.queries.check_queries",
    "check_violations": "migration.show.violations",
    "immediate_queries": "migration.queries.immediate_queries",
    "hold_queries": "migration.queries.hold_queries",
    "materialized_views": "migration.plan.materialized_views",
    "rollout_indexes": "migration.plan.rollout_indexes",
    "rollout_fills": "migration.plan.rollout_fills",
    "difference_lines": "proof.fingerprints.difference_lines",
    "fingerprint_diff": "proof.fingerprints.fingerprint_diff",
    "backup_line": "proof.backups.backup_line",
    "external_backup": "proof.external.external_backup",
    "external_place": "proof.external.external_place",
    "seconds_of_delta": "proof.external.seconds_of_delta",
    "content_lines": "proof.contents.content_lines",
    "status_lines": "migration.show.status_lines",
    "validation_sentences": "migration.validation.sentences",
    "validation_checks": "migration.validation.checks",
    "unknown_names": "migration.plan.unknown_names",
    "server_message": "migration.show.server_message",
    "step_failure": "migration.show.failure",
    "failed_build": "migration.show.failed_build",
    "leftover_queries": "migration.queries.leftover_queries",
    "stop_advice": "migration.show.stop_advice",
    "gates_due": "gates.due.due",
    "gates_left_out": "gates.due.left_out",
    "gates_restored": "gates.due.restored",
    "gate_queries": "gates.queries.gate_queries",
    "gates_measured": "gates.queries.gates_measured",
    "gates_judged": "gates.judge.judged",
    "gate_lines": "gates.show.gate_lines",
    "gate_failures": "gates.show.gate_failures",
    "connection_remedy": "connection.connection_remedy",
    "explain_parse": "explain.read.explain_parse",
    "explain_metrics": "explain.metrics.metrics",
    "explain_fingerprint": "explain.fingerprint.fingerprint",
    "explain_gate": "gates.pasted.explain_gate",
    "explain_compare": "explain.compare.compare",
    "explain_tree": "explain.tree.tree",
}


def function(path: str) -> Callable[..., Any]:
    """The function of a `module.name` in the package."""
    module, _, name = path.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(f"pgrollout.{module}"), name)
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
