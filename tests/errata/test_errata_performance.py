"""The rows of the errata about performance: what is measured, and against which thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pgrollout.rollout.load import load_rollout
from tests.errata.plain import SQL, value
from tests.support.gates import measure

ENTITIES = {
    "agent": "agents",
    "epic": "project_management_epics",
    "prd": "project_management_prds",
    "project": "project_management_projects",
    "task": "project_management_tasks",
}


def gates() -> dict[str, dict[str, Any]]:
    return {Path(gate["id"]).name: gate for gate in load_rollout(str(SQL))["gates"]}


def test_erratum_28_codes_are_drawn_from_the_data(full: Any, database: Any) -> None:
    literal = "SELECT count(*) FROM project_management_projects WHERE short_id = 'PRJ-A7B2'"
    assert value(full, literal) == 0  # the roadmap's check looks nothing up

    shipped = gates()
    measured = measure(database, *(shipped[f"{name}_by_short_id"] for name in ENTITIES))
    for name, table in ENTITIES.items():
        cases = measured[shipped[f"{name}_by_short_id"]["id"]]["cases"]
        assert len(cases) >= 3
        for case in ("oldest", "newest"):
            for mode in ("custom", "generic"):
                (code,) = cases[case][mode]["parameters"]
                assert value(full, f"SELECT count(*) FROM {table} WHERE short_id = %s", code) == 1
                assert cases[case][mode]["plan"]["Plan"]["Actual Rows"] == 1


def test_erratum_29_thresholds_are_gates() -> None:
    times = {name: gate["gates"]["max_execution_ms"] for name, gate in gates().items()}
    assert all(times[f"{name}_by_short_id"] == 50 for name in ENTITIES)
    for query in ("tasks_in_progress_of_project", "search_projects", "search_tasks", "active_projects", "resources"):
        assert times[query] == {"warn": 200, "fail": 500}
