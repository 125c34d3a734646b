"""Lint: what is said of SQL without a database; and of the roadmap's own SQL, as its authors wrote it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pgrollout.errors import RolloutError
from pgrollout.migration.plan import plan_apply
from pgrollout.migration.show import lint_lines
from pgrollout.rollout.lint import lint, main
from tests.support.rollouts import rollout_of

ROOT = Path(__file__).resolve().parents[2]
ROADMAP = sorted((Path(__file__).parent / "data").glob("roadmap_*.sql"))


def files(folder: Path, **texts: str) -> str:
    for name, text in texts.items():
        (folder / f"{name}.sql").write_text(text)
    return str(folder)


def found(result: dict[str, Any], level: str) -> list[str]:
    return [finding["message"] for finding in result["findings"] if finding["level"] == level]


def test_each_level_of_finding(tmp_path: Path) -> None:
    result = lint(
        files(
            tmp_path,
            one="CREATE INDEX i ON a (b);\nTRUNCATE a;\n-- Accept: truncate because it is a cache\nTRUNCATE b;",
            two="ALTER TABLE a ADD x int;\nUPDATE a SET b = 1;\nMERGE INTO a USING b ON true WHEN MATCHED THEN DELETE;",
            three="ALTER TABLE a ALTER b TYPE text;\nALTER TABLE a ALTER b SET DEFAULT gen_random_bytes(4)",
            four="DROP INDEX i\n  oops;",
        )
    )
    assert (result["files"], result["steps"], result["refused"]) == (4, 8, 3)
    assert found(result, "accepted") == ["truncate: it is a cache"]
    (index,) = [finding for finding in result["findings"] if finding["level"] == "rewritten"]
    assert index["becomes"] == ["CREATE INDEX CONCURRENTLY i ON a (b)"]
    refused = " ".join(found(result, "refused"))
    for words in ("all rows go at once", "MERGE changes rows and nothing says", "four.sql:2:3: syntax error"):
        assert words in refused
    warnings = " ".join(found(result, "warning"))
    for words in ("along the primary key", "needs PostgreSQL 15", "depends on its present type", "extension pgcrypto"):
        assert words in warnings or words == "needs PostgreSQL 15"


def test_lines_for_people(tmp_path: Path) -> None:
    text = "CREATE INDEX i\n  ON a (b);\nALTER TABLE a ADD x int;\nALTER TABLE a ADD y int;"
    lines = lint_lines(lint(files(tmp_path, one=text)))
    assert lines[:3] == [
        f"rewritten {tmp_path}/one.sql:1: CREATE INDEX i ON a (b)",
        "            + CREATE INDEX CONCURRENTLY i",
        "            +   ON a (b)",
    ]
    assert lines[3].startswith(f"warning   {tmp_path}/one.sql:3 (and 1 more): application: a prepared")
    assert lines[4:] == ["1 files, 3 steps, 0 refused"]


def test_the_exit_code_and_the_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder in (good, bad):
        folder.mkdir()
    files(good, one="ANALYZE a")
    files(bad, one="LOCK TABLE a")
    assert main([str(good)]) == 0
    assert main([str(bad), "--format", "json"]) == 1
    shown = capsys.readouterr().out
    assert json.loads(shown[shown.index("{") :])["refused"] == 1
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/none: no such folder; name one that holds .sql files with " + (
        "-e lint_dir=<folder>.\n"
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(RolloutError, match=r"no \.sql files found"):
        lint(str(tmp_path / "empty"))


def test_the_shipped_rollout_has_nothing_to_refuse_or_to_rewrite() -> None:
    result = lint(str(ROOT / "sql"))
    assert result["refused"] == 0
    assert {finding["level"] for finding in result["findings"]} == {"warning"}


@pytest.mark.parametrize(("folder", "rc"), [("sql", 0), ("tests/unit/data", 2)])
def test_the_playbook_needs_no_inventory_and_no_database(playbook_alone: Any, folder: str, rc: int) -> None:
    run = playbook_alone("-e", f"lint_dir={folder}", "-e", "lint_format=json")
    assert run.returncode == rc, run.stdout + run.stderr
    assert f"directory: {folder}" in run.stdout
    assert ("statements of tests/unit/data would be refused" in run.stdout) == (rc != 0)


@pytest.fixture
def playbook_alone() -> Any:
    program = Path(sys.executable).parent / "ansible-playbook"
    return lambda *args: subprocess.run(
        [str(program), "lint.yml", *args], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


# ---- the roadmap's own SQL


@pytest.fixture(scope="module")
def roadmap(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One rollout of its nine migrations, byte by byte, planned on an empty PostgreSQL 17 without extensions."""
    texts = {path.stem.removeprefix("roadmap_"): path.read_text(encoding="utf-8") for path in ROADMAP}
    rollout = rollout_of(tmp_path_factory.mktemp("roadmap"), texts)
    tables = ["agents", *(f"project_management_{name}" for name in ("projects", "epics", "prds", "tasks"))]
    known = {"rows": 10, "bytes": 8192, "kind": "r", "key": ["id"], "unique": True, "children": [], "references": []}
    facts = {
        "server": {"version": 17, "functions": []},
        "relation": {f"public.{name}": known for name in tables},
    }
    return plan_apply(rollout, facts, [], {}, [], [])


def planned(roadmap: dict[str, Any], state: str) -> list[dict[str, Any]]:
    return [step for step in roadmap["phases"][0]["steps"] if step["state"] == state]


def test_all_of_the_roadmaps_migrations_are_planned(roadmap: dict[str, Any]) -> None:
    assert len(ROADMAP) == 9
    assert len({step["migration"] for step in roadmap["phases"][0]["steps"]}) == 9


def test_what_can_be_made_safe_is(roadmap: dict[str, Any]) -> None:
    steps = planned(roadmap, "pending")
    builds = [step for step in steps if step["kind"].startswith("CREATE INDEX")]
    in_use = [step for step in builds if step["mode"] == "concurrent"]
    assert len(in_use) == 28
    assert not [step for step in steps if "IF NOT EXISTS" in step["sql"].upper()]
    checks = {step["object"]["name"] for step in steps if step["kind"] == "VALIDATE CONSTRAINT"}
    assert checks >= {
        "agents_max_concurrent_projects_check",
        "agents_project_capacity_percentage_check",
        "project_management_tasks_complexity_score_check",
        "agents_short_id_present",
    }
    fills = {step["backfill"]["table"]: step["backfill"]["key"] for step in steps if step["mode"] == "data"}
    assert fills.keys() == {
        "public.agents",
        "public.project_management_projects",
        "public.project_management_epics",
        "public.project_management_prds",
        "public.project_management_tasks",
    }
    assert all(key == ["id"] for key in fills.values())


def test_what_is_wrong_is_refused_with_its_fault(roadmap: dict[str, Any]) -> None:
    refused = {step["id"].split("/")[1]: step["reason"] for step in planned(roadmap, "refused")}
    assert "encode() knows base64, hex, escape and not 'base32'" in refused.pop("generate_safe_short_id")
    namesake = refused.pop("idx_agent_project_capacity")
    assert "003_agent_project_assignment/idx_agent_project_capacity" in namesake
    assert "ON agents(project_capacity_percentage, status) WHERE status IN ('idle', 'busy')]" in namesake
    assert "ON agents(current_project_id, project_capacity_percentage, status) WHERE status" in namesake
    assert refused.keys() == {
        f"{table}.short_id"
        for table in ("agents", *(f"project_management_{name}" for name in ("projects", "epics", "prds", "tasks")))
    }
    assert all("fails if it does not write short_id" in reason for reason in refused.values())


def test_what_the_roadmap_computes_from_old_values_is_told(roadmap: dict[str, Any]) -> None:
    hazards = [hazard for step in roadmap["phases"][0]["steps"] for hazard in step["hazards"]]
    assert (
        "estimated_duration_minutes is computed from the old complexity_score, not from what this UPDATE sets"
        in hazards
    )


def test_a_function_of_an_extension_names_it(tmp_path: Path) -> None:
    body = "CREATE FUNCTION draw() RETURNS text LANGUAGE sql AS $$ SELECT encode(gen_random_bytes(4), 'hex') $$"
    facts: dict[str, Any] = {"server": {"version": 17, "functions": []}}
    (step,) = plan_apply(rollout_of(tmp_path / "a", {"001_a": body}), facts, [], {}, [], [])["phases"][0]["steps"]
    assert step["reason"] == (
        "gen_random_bytes() comes with the extension pgcrypto, which this database does not have; write CREATE "
        "EXTENSION pgcrypto in a migration before it, or do without"
    )
    there = {"server": {"version": 17, "functions": ["gen_random_bytes"]}}
    brought = {"001_a": f"CREATE EXTENSION pgcrypto; {body}"}
    for number, (texts, known) in enumerate([({"001_a": body}, there), (brought, facts)]):
        plan = plan_apply(rollout_of(tmp_path / str(number), texts), known, [], {}, [], [])
        assert {found["state"] for found in plan["phases"][0]["steps"]} == {"pending"}


def test_one_name_may_be_dropped_and_made_anew_or_made_twice_alike(tmp_path: Path) -> None:
    index = "CREATE INDEX CONCURRENTLY i ON a (b);"
    other = "CREATE INDEX CONCURRENTLY i ON a (c);"
    for number, (text, count) in enumerate(
        [(index + index, 0), (index + other, 1), (f"{index} DROP INDEX CONCURRENTLY i; {other}", 0)]
    ):
        rollout = rollout_of(tmp_path / str(number), {"001_a": text})
        steps = rollout["phases"][0]["migrations"][0]["apply"]
        assert sum(bool(step["refused"]) for step in steps) == count, text
