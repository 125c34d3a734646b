"""The rows of the errata that the engine answers, not the SQL alone (for that see tests/errata), and drift."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from tests.errata import plain
from tests.support.ledger import ledger_rows
from tests.support.pictures import Picture, differences, identity, index_valid, picture
from tests.support.runs import words
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from demo.server import Server
    from tests.conftest import Database, Run
    from tests.support.walks import Walker, Walkers

SQL = Path(__file__).resolve().parents[2] / "sql"
ROADMAP_LOG_QUERY = """
-- Monitor migration progress
SELECT
    phase,
    start_time,
    end_time,
    status,
    records_processed,
    errors_encountered
FROM migration_log
ORDER BY start_time DESC;
"""


def working(database: Database, statement: str) -> list[int]:
    """Sessions of the engine that wait for somebody in that statement."""
    return [
        pid
        for (pid,) in database.query(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            " AND application_name LIKE 'pgrollout/%%' AND query LIKE %s",
            f"%{statement}%",
        )
    ]


# ---- a plan that cannot be carried out, and what a plan says


@pytest.fixture(scope="module")
def namesakes(walkers: Walkers) -> str:
    """What `migrate.yml` says where other objects bear our names; nothing may have changed."""
    walk = walkers("namesakes", empty=True)
    walk.database.execute(
        "CREATE INDEX idx_task_project_id ON project_management_tasks (project_id, created_at);"
        "ALTER TABLE agents ADD COLUMN max_concurrent_projects text DEFAULT '1';"
        "ALTER TABLE agents ADD COLUMN tmux_session_id varchar(255);"  # this one is as ours is
        "CREATE TABLE agent_tmux_sessions (id uuid PRIMARY KEY, session_name text)"
    )
    said = walk.refused("migrate")
    assert walk.database.value("SELECT to_regnamespace('pgrollout')") is None
    return said


def test_erratum_3_an_index_of_that_name_with_another_definition_stops(namesakes: str) -> None:
    assert (
        "index idx_task_project_id exists with another definition; definition: "
        "found [CREATE INDEX idx_task_project_id ON project_management_tasks USING btree (project_id, created_at)], "
        "expected [CREATE INDEX idx_task_project_id ON project_management_tasks USING btree (project_id)]"
    ) in namesakes


def test_erratum_31_a_column_or_table_of_that_name_with_another_type_stops(namesakes: str) -> None:
    assert "column agents.max_concurrent_projects exists with another definition; type: " in namesakes
    assert "found [text], expected [integer]; default: found ['1'::text], expected [1]" in namesakes
    assert "table agent_tmux_sessions exists with another definition" in namesakes
    assert "column session_name: found [text], expected [character varying(255) NOT NULL]" in namesakes
    assert "column agents.tmux_session_id exists" not in namesakes


def test_erratum_38_the_plan_names_the_hazard(walkers: Walkers) -> None:
    said = words(walkers("plan", empty=True)("migrate", "--check"))
    hazard = "a prepared 'SELECT *' of the application fails once with 'cached plan must not change result type'"
    assert f"application hazard: {hazard}; name the columns, or let the driver re-prepare (16 steps, first " in said
    assert said.count(hazard) == 1


# ---- phase 1, whose build is cut off, is finished by the next run and goes back past a reader


@dataclass
class PhaseOne:
    """Phase 1 with an index of the user's own, a build that was cancelled and an index that went invalid."""

    walk: Walker
    before: Picture
    cancelled: Run
    status: Run
    finished: Run
    left: dict[str, tuple[bool | None, int]]


@pytest.fixture(scope="module")
def phase_one(walkers: Walkers, server: Server) -> PhaseOne:
    walk = walkers("phase1")
    database = walk.database
    database.execute("CREATE INDEX idx_task_project_id ON project_management_tasks (project_id)")
    before, own = picture(database), identity(database, "idx_task_project_id")
    with contextlib.closing(database.connect("hive_app", autocommit=False)) as writer:
        writer.cursor().execute("INSERT INTO agents (name, agent_type) VALUES ('open transaction', 'developer')")
        started = walk.start("migrate", "--tags", "phase1")
        build = "CREATE INDEX CONCURRENTLY idx_agent_short_id"
        wait_until(lambda: working(database, build), 120, "the build waits for the writer")
        database.execute("SELECT pg_cancel_backend(%s)", *working(database, build))
        cancelled = started.wait(60)
        writer.rollback()
    with contextlib.closing(server.connect(database.name)) as superuser, superuser.cursor() as cursor:
        cursor.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_epic_short_id'::regclass")
    names = ("idx_agent_short_id", "idx_epic_short_id", "idx_project_short_id")
    left = {name: (index_valid(database, name), identity(database, name)) for name in names}
    left["idx_task_project_id"] = (True, own)
    status = walk("status")
    finished = walk("migrate", "--tags", "phase1")
    return PhaseOne(walk, before, cancelled, status, finished, left)


def test_erratum_2_an_invalid_leftover_is_built_anew(phase_one: PhaseOne) -> None:
    database, left = phase_one.walk.database, phase_one.left
    said = words(phase_one.cancelled)
    assert phase_one.cancelled.rc != 0
    assert "001_add_short_id_indexes/idx_agent_short_id: canceling statement due to" in said
    assert (
        "What is committed stays and is in the ledger; the same command goes on from there: "
        "ansible-playbook migrate.yml -l local --tags phase1."
    ) in said
    assert {name: is_valid for name, (is_valid, _) in left.items()} == {
        "idx_agent_short_id": False,
        "idx_epic_short_id": False,
        "idx_project_short_id": True,
        "idx_task_project_id": True,
    }
    for name in ("idx_agent_short_id", "idx_epic_short_id"):
        assert (
            f"invalid: 001_add_short_id_indexes/{name}: an INVALID index of this definition" in phase_one.status.output
        )
        assert f"REBUILD   001_add_short_id_indexes/{name} " in phase_one.finished.output
        assert index_valid(database, name)
        assert identity(database, name) != left[name][1]
    assert identity(database, "idx_project_short_id") == left["idx_project_short_id"][1]  # built once only
    assert database.query("SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid") == []


def test_erratum_21_the_roadmaps_query_on_migration_log_runs_verbatim(phase_one: PhaseOne) -> None:
    with contextlib.closing(phase_one.walk.database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(ROADMAP_LOG_QUERY)
        names = [column.name for column in cursor.description]
        rows: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    assert names == ["phase", "start_time", "end_time", "status", "records_processed", "errors_encountered"]
    # newest first; the rollback may have been run by another test of this file
    forward = [row for row in rows if row["phase"] == "phase1"]
    assert [row["status"] for row in forward] == ["completed", "failed"]
    assert all(row["start_time"] < row["end_time"] for row in forward)
    assert forward[0]["errors_encountered"] == 0


def test_drift_is_reported_and_refused_until_accepted(phase_one: PhaseOne, tmp_path: Path) -> None:
    walk = phase_one.walk
    copied = tmp_path / "sql"
    shutil.copytree(SQL, copied)
    applied = copied / "phase1" / "001_add_short_id_indexes" / "apply.sql"
    applied.write_text(applied.read_text(encoding="utf-8") + "\n-- Changed afterwards.\n", encoding="utf-8")
    drift = f"{applied} was changed after it was applied on "
    ours: dict[str, Any] = {"rollout_dir": str(copied)}

    run = walk("status", **ours)
    assert (run.rc, run.changed) == (0, 0)
    assert drift in run.output
    assert "problem: " not in walk("status").output
    rows = ledger_rows(walk.database)
    said = walk.refused("migrate", "--tags", "phase1", **ours)
    assert drift in said
    assert "say -e accept_drift=001_add_short_id_indexes." in said
    assert drift in walk.refused("migrate", "--tags", "phase1", accept_drift="002_search_optimization_indexes", **ours)
    accepted = walk("migrate", "--tags", "phase1", accept_drift="001_add_short_id_indexes", **ours)
    assert (accepted.changed, ledger_rows(walk.database)) == (0, rows)


@dataclass
class WayBack:
    """The rollback of phase 1 while a reader had a table open for longer than any lock timeout."""

    run: Run
    waited: float
    named: str
    still_valid: Any
    invalid: list[Any]
    after: Picture


@pytest.fixture(scope="module")
def way_back(phase_one: PhaseOne) -> WayBack:
    walk, database = phase_one.walk, phase_one.walk.database
    waits_for = "SELECT coalesce(max(waiting_for), '') FROM pgrollout.run WHERE ended_at IS NULL"
    with contextlib.closing(database.connect("hive_app", autocommit=False)) as reader:
        reader.cursor().execute("SELECT count(*) FROM project_management_tasks")
        started = walk.start("rollback", "--tags", "phase1")
        wait_until(lambda: "hive_app" in database.value(waits_for), 120, "the run names the reader")
        began = time.monotonic()
        time.sleep(4)  # lock timeouts of the engine are 0.05 to 0.5 s, a deadlock is looked for after 1 s
        named = database.value(waits_for)
        still_valid = index_valid(database, "idx_task_priority_status")
        waited = time.monotonic() - began
        reader.rollback()
        run = started.wait(120)
    return WayBack(
        run,
        waited,
        named,
        still_valid,
        database.query("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"),
        picture(database),
    )


def test_erratum_26_a_concurrent_drop_waits_for_its_reader(way_back: WayBack, phase_one: PhaseOne) -> None:
    assert "hive_app" in way_back.named
    assert "SELECT count(*) FROM project_management_tasks" in way_back.named
    assert way_back.still_valid is True  # a drop that had begun would have taken that away before it waits
    assert way_back.waited > 3
    assert way_back.run.rc == 0, way_back.run.output
    assert way_back.invalid == []
    assert index_valid(phase_one.walk.database, "idx_task_priority_status") is None


def test_erratum_39_what_stood_there_before_is_kept(way_back: WayBack, phase_one: PhaseOne) -> None:
    database = phase_one.walk.database
    assert identity(database, "idx_task_project_id") == phase_one.left["idx_task_project_id"][1]
    assert "kept      001_add_short_id_indexes/idx_task_project_id" in way_back.run.output
    assert "it stood here before the rollout" in way_back.run.output
    assert differences(phase_one.before, way_back.after) == []


# ---- phase 2 goes, with what was written into it, and comes again


@pytest.mark.ci
def test_erratum_25_phase_2_comes_back_with_what_was_written(walkers: Walkers) -> None:
    walk = walkers("kept", empty=True)
    database = walk.database
    database.execute(
        "INSERT INTO agents (name, agent_type) SELECT 'agent ' || g, 'worker' FROM generate_series(1, 30) AS g"
    )
    walk("migrate", "--tags", "phase1,phase2")
    before = picture(database)["catalog"]
    database.execute(
        'UPDATE agents SET max_concurrent_projects = 3, project_assignments = \'[{"role": "lead"}]\' '
        "WHERE name < 'agent 2'"
    )
    database.execute(
        "INSERT INTO agent_tmux_sessions (session_name, tmux_session_id, agent_id, workspace_path) "
        "SELECT 'tmux ' || name, name, id, '/srv' FROM agents"
    )
    rows = "SELECT to_jsonb(t) FROM {} AS t ORDER BY id"
    written = {name: database.query(rows.format(name)) for name in ("agents", "agent_tmux_sessions")}

    said = walk.refused("rollback", "--tags", "phase2")
    assert "It is kept in the ledger, and the migration gives it back when it is applied again." in said
    run = walk("rollback", "--tags", "phase2", rollback_confirm="local")
    assert database.value("SELECT to_regclass('agent_tmux_sessions')") is None
    assert "phase2: the catalog is what it was before the phase." in run.output
    told, status = words(run), words(walk("status"))
    for line in (
        "kept: about 30 rows of public.agent_tmux_sessions",
        "kept: 11 rows of public.agents (current_project_id",
    ):
        assert line in told
        assert line in status

    assert "11 rows of agents (columns current_project_id" in words(walk("migrate", "--check", "--tags", "phase2"))
    run = walk("migrate", "--tags", "phase2")
    assert {name: database.query(rows.format(name)) for name in written} == written
    assert "given back: 005_session_management_tables/give_back_agent_tmux_sessions: 30 rows" in words(run)
    assert differences({"catalog": before}, {"catalog": picture(database)["catalog"]}) == []
    assert "kept: " not in walk("status").output


# ---- the refresh


def test_erratum_17_a_refresh_stops_no_reader(walkers: Walkers) -> None:
    walk = walkers("refresh", empty=True)
    database = walk.database
    with contextlib.closing(database.connect()) as connection:
        plain.apply(connection, *plain.migrations("phase2"), "phase4/009_database_optimization")
    database.execute("INSERT INTO project_management_projects (name) VALUES ('since the last refresh')")
    count = "SELECT count(*) FROM project_dashboard_summary"
    with contextlib.closing(database.connect("hive_app", autocommit=False)) as reader, reader.cursor() as cursor:
        cursor.execute(count)
        assert cursor.fetchone() == (0,)
        started = walk.start("refresh")  # not concurrently, it would wait for the reader
        run = started.wait(60)
        cursor.execute("SET LOCAL lock_timeout = '1s'")
        cursor.execute(count)
        assert cursor.fetchone() == (1,)
    assert run.rc == 0, run.output
    assert database.value(count) == 1

    # a second reader who comes while it runs: the lock that it takes is one that readers do not feel
    with contextlib.closing(database.connect(autocommit=False)) as session, session.cursor() as cursor:
        cursor.execute("REFRESH MATERIALIZED VIEW project_dashboard_summary")  # the roadmap's
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            database.execute(f"SET lock_timeout = '100ms'; {count}", user="hive_app")
        session.rollback()
        cursor.execute("REFRESH MATERIALIZED VIEW CONCURRENTLY project_dashboard_summary")
        database.execute(f"SET lock_timeout = '100ms'; {count}", user="hive_app")
