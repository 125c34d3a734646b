"""The rows of the errata about new columns and tables: phase 2."""

from __future__ import annotations

from typing import Any

import psycopg2
import pytest
from psycopg2 import errors

from tests.errata import plain
from tests.errata.plain import rows, run, value

AGENTS_003 = "phase2/003_agent_project_assignment"
TASKS_004 = "phase2/004_task_orchestration_enhancement"
TABLES_005 = "phase2/005_session_management_tables"


def test_erratum_13_checks_are_verified_while_writers_go_on(full: Any) -> None:
    roadmap = (
        "ALTER TABLE project_management_tasks ADD COLUMN IF NOT EXISTS complexity_score INTEGER DEFAULT 5"
        " CHECK (complexity_score >= 1 AND complexity_score <= 10)"
    )
    scan = 'verifying table "project_management_tasks"'
    run(full, "BEGIN")
    assert scan in "".join(plain.messages(full, roadmap))  # under the ACCESS EXCLUSIVE of ADD COLUMN
    run(full, "ROLLBACK")

    validated = False
    for statement in plain.statements(f"{TASKS_004}/apply.sql"):
        if "VALIDATE CONSTRAINT" in statement.text:
            held = plain.locks(full, statement.text)
            assert ("project_management_tasks", "ShareUpdateExclusiveLock") in held
            assert ("project_management_tasks", "AccessExclusiveLock") not in held
            run(full, statement.text)
            validated = True
        elif statement.text.startswith("ALTER TABLE"):
            assert scan not in "".join(plain.messages(full, statement.text))
    assert validated

    # the foreign key on a new column is not scanned either; the second table's lock is announced
    column = next(s.text for s in plain.statements(f"{AGENTS_003}/apply.sql") if "REFERENCES" in s.text)
    assert not [m for m in plain.messages(full, f"BEGIN; {column}; ROLLBACK") if "verifying" in m or "validating" in m]
    assert ("project_management_projects", "ShareRowExclusiveLock") in plain.locks(full, column)
    assert "SHARE ROW EXCLUSIVE on projects" in plain.header(AGENTS_003)["Locks"]


def test_erratum_19_constraint_tests_write_nothing(bare: Any) -> None:
    plain.apply(bare, *plain.migrations("phase2"))
    run(
        bare,
        "INSERT INTO agent_tmux_sessions (session_name, tmux_session_id, workspace_path, status)"
        " VALUES ('test-session-' || gen_random_uuid(), 'tmux-test', '/tmp/test', 'active')",
    )
    sessions = "SELECT count(*) FROM agent_tmux_sessions"
    assert value(bare, sessions) == 1  # stopped here, the roadmap's row stays; and no bad value was tried
    run(bare, "DELETE FROM agent_tmux_sessions")

    refused = 0
    for folder in plain.migrations("phase2"):
        for statement in plain.statements(f"{folder}/validate.sql"):
            if "Refuses" not in statement.notes:
                assert statement.text.startswith("SELECT")
                continue
            with pytest.raises(psycopg2.IntegrityError) as caught:
                run(bare, statement.text)
            condition = statement.notes["Refuses"]
            assert type(caught.value).__name__.lower() == condition.replace("_", ""), statement.text
            refused += 1
    assert refused == 16
    assert value(bare, sessions) == 0
    assert value(bare, "SELECT count(*) FROM agents") == 0


def test_erratum_31_a_namesake_is_not_accepted(bare: Any) -> None:
    run(bare, "ALTER TABLE agents ADD COLUMN max_concurrent_projects text")
    said = plain.messages(
        bare,
        "ALTER TABLE agents ADD COLUMN IF NOT EXISTS max_concurrent_projects INTEGER DEFAULT 1"
        " CHECK (max_concurrent_projects > 0)",
    )
    assert 'column "max_concurrent_projects" of relation "agents" already exists, skipping' in "".join(said)
    assert value(bare, "SELECT count(*) FROM pg_constraint WHERE conrelid = 'agents'::regclass AND contype = 'c'") == 0

    with pytest.raises(errors.DuplicateColumn):
        plain.apply(bare, AGENTS_003)
    run(bare, "CREATE TABLE agent_tmux_sessions (id integer)")
    with pytest.raises(errors.DuplicateTable):
        plain.apply(bare, TABLES_005)


def test_erratum_32_new_tables_lock_the_tables_they_refer_to(bare: Any) -> None:
    referred = {
        (table, mode)
        for table in ("agents", "project_management_projects")
        for mode in ("ShareRowExclusiveLock", "AccessExclusiveLock")
    }
    create = [s.text for s in plain.statements(f"{TABLES_005}/apply.sql") if s.text.startswith("CREATE TABLE")]
    drop = [s.text for s in plain.statements(f"{TABLES_005}/rollback.sql")]
    assert {mode for _, mode in plain.locks(bare, *create) & referred} == {"ShareRowExclusiveLock"}
    plain.apply(bare, TABLES_005)
    assert {table for table, mode in plain.locks(bare, *drop) & referred if mode == "AccessExclusiveLock"} == {
        "agents",
        "project_management_projects",
    }

    # ours announces them and takes each in a short transaction of its own
    assert plain.header(TABLES_005)["Locks"].startswith("SHARE ROW EXCLUSIVE on agents and project_management_projects")
    assert len(create) == len(drop) == 3


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_erratum_37_timestamps_are_utc_whoever_writes(bare: Any, zone: str) -> None:
    off = "SELECT abs(extract(epoch FROM created_at - now() AT TIME ZONE 'utc')) > 3600 FROM {}"
    run(bare, f"SET TimeZone = '{zone}'")
    run(bare, "CREATE TABLE roadmap (id integer, created_at TIMESTAMP DEFAULT NOW())")
    run(bare, "INSERT INTO roadmap VALUES (1)")
    assert value(bare, off.format("roadmap")) is True

    plain.apply(bare, *plain.migrations("phase2"))
    run(bare, "INSERT INTO agent_tmux_sessions (session_name, tmux_session_id, workspace_path) VALUES ('s', 't', '/w')")
    assert value(bare, off.format("agent_tmux_sessions")) is False
    said = rows(
        bare,
        "SELECT c.relname, a.attname, col_description(c.oid, a.attnum) FROM pg_attribute a JOIN pg_class c"
        " ON c.oid = a.attrelid WHERE a.atttypid = 'timestamp'::regtype AND c.relnamespace = 'public'::regnamespace"
        " AND c.relkind = 'r' AND c.relname <> 'roadmap'",
    )
    assert len(said) == 8
    assert {comment for *_, comment in said} == {"UTC"}


def test_erratum_38_a_prepared_select_star_fails_once(bare: Any, empty_database: Any) -> None:
    application = empty_database.connect("hive_app")
    run(application, "PREPARE everything AS SELECT * FROM agents")
    run(application, "EXECUTE everything")
    plain.apply(bare, AGENTS_003)
    with pytest.raises(errors.FeatureNotSupported, match="cached plan must not change result type"):
        run(application, "EXECUTE everything")
    application.close()

    for folder in (AGENTS_003, TASKS_004):
        assert "a prepared SELECT * of the application fails once" in plain.header(folder)["Risk Level"]
