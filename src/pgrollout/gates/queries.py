"""The statements that measure gates on a server. Their SQL is in measure.sql beside this file."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from pgrollout.migration.names import identifier
from pgrollout.migration.text import literal

_ASKED = ("id", "sql", "parameters", "cases", "relations", "plan_modes", "preconditions", "sampling")


# The ledger may not be there: who only validates needs none.
_BASELINE = """
DO $pgrollout_baseline$
DECLARE
    found jsonb := '{}';
BEGIN
    IF to_regprocedure('pgrollout.gate_baseline()') IS NOT NULL THEN
        found := pgrollout.gate_baseline();
    END IF;
    PERFORM set_config('pgrollout.gate_baseline', found::text, false);
END
$pgrollout_baseline$"""
# What baselines need: one look, however slow the query still is.
_ONCE = {"warmup": 0, "runs": 1, "timeout_ms": 5000}


def gate_queries(gates: list[dict[str, Any]], search_path: str, run: int | None = None, moment: str = "") -> list[str]:
    """Statements for one session, each its own transaction; the last returns what gates_measured reads.

    With `run` and `moment` the ledger keeps what was found; as the `baseline` each query runs once.
    """
    block = files("pgrollout.gates").joinpath("measure.sql").read_text(encoding="utf-8")
    queries = [
        f"SELECT set_config('search_path', {literal(identifier(search_path))}, false), "
        "set_config('application_name', 'pgrollout/gates', false), set_config('lock_timeout', '2s', false), "
        "set_config('pgrollout.measured', '{}', false)"
    ]
    for gate in gates:
        sampling = gate["sampling"] | (_ONCE if moment == "baseline" else {})
        asked = json.dumps({key: gate[key] for key in _ASKED} | {"sampling": sampling})
        timeout = f"{int(sampling['timeout_ms'])}ms"
        queries += [
            f"SELECT set_config('statement_timeout', '{timeout}', false), "
            f"set_config('pgrollout.gate', {literal(asked)}, false)",
            block,
        ]
    queries.append("SELECT set_config('statement_timeout', '0', false)")  # it was the queries', not the ledger's
    measured = "current_setting('pgrollout.measured')"
    if moment:
        queries.append(f"SELECT pgrollout.keep_gates({int(run or 0)}, {literal(moment)}, {measured}::jsonb)")
    answer = f"SELECT {measured} AS measured, current_setting('pgrollout.gate_baseline') AS baseline"
    return [*queries, _BASELINE, answer]


def gates_measured(rows: list[dict[str, str]]) -> dict[str, Any]:
    """{measured, baseline}, each {gate id: {version, tables, settings, cases}} as measure.sql says."""
    return {name: json.loads(rows[0][name]) for name in ("measured", "baseline")}
