"""The statements that measure gates on a server. Their SQL is in measure.sql beside this file."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from pgrollout.migration.names import identifier
from pgrollout.migration.text import literal

_ASKED = ("id", "sql", "parameters", "cases", "relations", "plan_modes", "preconditions", "sampling")


def gate_queries(gates: list[dict[str, Any]], search_path: str) -> list[str]:
    """Statements for one session, each its own transaction; the last returns what gates_measured reads."""
    block = files("pgrollout.gates").joinpath("measure.sql").read_text(encoding="utf-8")
    queries = [
        f"SELECT set_config('search_path', {literal(identifier(search_path))}, false), "
        "set_config('application_name', 'pgrollout/gates', false), set_config('lock_timeout', '2s', false), "
        "set_config('pgrollout.measured', '{}', false)"
    ]
    for gate in gates:
        asked = json.dumps({key: gate[key] for key in _ASKED})
        timeout = f"{int(gate['sampling']['timeout_ms'])}ms"
        queries += [
            f"SELECT set_config('statement_timeout', '{timeout}', false), "
            f"set_config('pgrollout.gate', {literal(asked)}, false)",
            block,
        ]
    return [*queries, "SELECT current_setting('pgrollout.measured') AS measured"]


def gates_measured(rows: list[dict[str, str]]) -> dict[str, Any]:
    """{gate id: {tables, settings, cases}} of the last statement's answer (see measure.sql)."""
    found: dict[str, Any] = json.loads(rows[0]["measured"])
    return found
