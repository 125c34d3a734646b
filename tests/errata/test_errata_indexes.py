"""The rows of the errata about indexes: phase 1, and what later phases build like it."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg2
import pytest
from psycopg2 import errors

from tests.errata import plain
from tests.errata.plain import rows, run, value

INDEXES_001 = "phase1/001_add_short_id_indexes"
SEARCH_002 = "phase1/002_search_optimization_indexes"

VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"
DEFINITION = "SELECT pg_get_indexdef(to_regclass(%s))"


def test_erratum_1_concurrent_builds_are_statements_of_their_own(bare: Any) -> None:
    run(bare, "BEGIN")
    with pytest.raises(errors.ActiveSqlTransaction, match="CREATE INDEX CONCURRENTLY cannot run inside a transaction"):
        run(bare, "CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_epic_project_id ON project_management_epics(project_id)")
    run(bare, "ROLLBACK")

    built = [*plain.migrations("phase1"), *plain.migrations("phase2"), "phase4/008_advanced_performance_indexes"]
    plain.apply(bare, *built)
    names = {
        s.text.split("CONCURRENTLY")[1].split()[0]
        for folder in built
        for s in plain.statements(f"{folder}/apply.sql")
        if "CONCURRENTLY" in s.text
    }
    assert len(names) == 30
    assert all(value(bare, VALID, name) for name in names)


def test_erratum_2_a_failed_build_is_not_taken_for_an_index(bare: Any, empty_database: Any) -> None:
    writer = empty_database.connect(autocommit=False)
    run(writer, "INSERT INTO agents (name, agent_type) VALUES ('a', 'developer')")
    run(bare, "SET lock_timeout = '100ms'")
    build = "CREATE INDEX CONCURRENTLY {} idx_agent_short_id ON agents (short_id) WHERE short_id IS NOT NULL"
    with pytest.raises(errors.LockNotAvailable):
        run(bare, build.format("IF NOT EXISTS"))
    writer.rollback()
    writer.close()

    assert 'relation "idx_agent_short_id" already exists, skipping' in "".join(
        plain.messages(bare, build.format("IF NOT EXISTS"))
    )
    assert value(bare, VALID, "idx_agent_short_id") is False  # and that was the roadmap's success

    # ours never says IF NOT EXISTS, and looks at validity
    for folder in plain.migrations():
        for statement in plain.statements(f"{folder}/apply.sql"):
            assert "INDEX" not in statement.text or "IF NOT EXISTS" not in statement.text
    with pytest.raises(errors.DuplicateTable):
        run(bare, build.format(""))
    found = plain.violations(bare, f"{INDEXES_001}/validate.sql")["every index is there and valid"]
    assert ("idx_agent_short_id", "not valid", "a valid index on agents") in found


def test_erratum_3_two_indexes_two_names(bare: Any) -> None:
    plain.apply(bare, *plain.migrations("phase2"))
    said = plain.messages(
        bare,
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_agent_project_capacity"
        " ON agents(current_project_id, project_capacity_percentage, status) WHERE status IN ('idle', 'busy')",
    )
    assert 'relation "idx_agent_project_capacity" already exists, skipping' in "".join(said)
    assert "(project_capacity_percentage, status)" in value(bare, DEFINITION, "idx_agent_project_capacity")

    plain.apply(bare, "phase4/008_advanced_performance_indexes")
    assert "(project_capacity_percentage, status)" in value(bare, DEFINITION, "idx_agent_project_capacity")
    assert "(current_project_id, project_capacity_percentage, status)" in value(
        bare, DEFINITION, "idx_agent_project_capacity_status"
    )


ROADMAP_NAMES = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'idx_%short_id%'"


def test_erratum_18_names_are_exact(bare: Any) -> None:
    plain.apply(bare, INDEXES_001)
    run(bare, "DROP INDEX idx_task_short_id")
    run(bare, "CREATE INDEX idx_old_shortXid ON project_index (path)")
    run(bare, "CREATE TABLE elsewhere (session_token text)")
    columns = rows(
        bare,
        "SELECT table_name FROM information_schema.columns WHERE table_name IN ('agents', 'project_management_tasks')"
        " AND column_name LIKE '%project%' OR column_name LIKE '%session%' OR column_name LIKE '%orchestrator%'",
    )
    assert ("elsewhere",) in columns  # the OR leaves the list of tables
    assert value(bare, ROADMAP_NAMES) == 5  # as many as there should be: _ is a wildcard

    assert plain.violations(bare, f"{INDEXES_001}/validate.sql") == {
        "every index is there and valid": [
            ("idx_task_short_id", "no such index", "a valid index on project_management_tasks")
        ]
    }


def test_erratum_27_an_index_counts_when_it_is_valid_and_on_its_table(bare: Any, empty_database: Any) -> None:
    plain.apply(bare, INDEXES_001)
    reader = empty_database.connect(autocommit=False)
    rows(reader, "SELECT * FROM agents")
    run(bare, "SET lock_timeout = '100ms'")
    with pytest.raises(errors.LockNotAvailable):
        run(bare, "DROP INDEX CONCURRENTLY idx_agent_short_id")  # leaves it invalid
    reader.close()
    run(bare, "DROP INDEX idx_prd_short_id")
    run(bare, "CREATE INDEX idx_prd_short_id ON short_id_registry (entity_id)")
    assert value(bare, ROADMAP_NAMES) == 5  # "Test 2: All indexes exist" passes

    assert sorted(plain.violations(bare, f"{INDEXES_001}/validate.sql")["every index is there and valid"]) == [
        ("idx_agent_short_id", "not valid", "a valid index on agents"),
        ("idx_prd_short_id", "on short_id_registry", "a valid index on project_management_prds"),
    ]


def test_erratum_26_a_drop_under_a_lock_timeout_leaves_a_live_index_invalid(bare: Any, empty_database: Any) -> None:
    plain.apply(bare, INDEXES_001)
    reader = empty_database.connect(autocommit=False)
    rows(reader, "SELECT * FROM agents")
    run(bare, "SET lock_timeout = '100ms'")
    with pytest.raises(errors.LockNotAvailable):
        run(bare, "DROP INDEX CONCURRENTLY IF EXISTS idx_agent_short_id")
    assert value(bare, VALID, "idx_agent_short_id") is False

    # ours sets no timeout over a concurrent drop: it waits for the reader
    run(bare, "RESET lock_timeout")
    assert not [s for s in plain.statements(f"{INDEXES_001}/rollback.sql") if "lock_timeout" in s.text]
    threading.Timer(0.4, reader.close).start()
    started = time.monotonic()
    plain.roll_back(bare, INDEXES_001)
    assert time.monotonic() - started > 0.3
    assert value(bare, "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'idx\\_%'") == 0


LONG = "SELECT string_agg(md5(i::text), ' ') FROM generate_series(1, 40000) AS i"
FIND = "SELECT count(*) FROM project_management_projects WHERE to_tsvector('english', {}) @@ to_tsquery('fault')"


def test_erratum_33_no_description_makes_an_insert_fail(bare: Any) -> None:
    insert_long = f"INSERT INTO project_management_projects (name, description) VALUES ('p', ({LONG}))"
    roadmap = "name || ' ' || coalesce(description, '')"
    ours = "coalesce(name, '') || ' ' || left(coalesce(description, ''), 100000)"
    run(bare, "INSERT INTO project_management_projects (name, description) VALUES (NULL, 'a fault')")
    run(bare, f"CREATE INDEX roadmap ON project_management_projects USING gin(to_tsvector('english', {roadmap}))")
    assert value(bare, FIND.format(roadmap)) == 0  # the NULL name hides the row
    with pytest.raises(errors.ProgramLimitExceeded, match="string is too long for tsvector"):
        run(bare, insert_long)
    run(bare, "DROP INDEX roadmap")

    plain.apply(bare, SEARCH_002)
    assert run(bare, insert_long) == 1
    run(bare, "SET enable_seqscan = off")
    assert value(bare, FIND.format(ours)) == 1
    assert "idx_project_name_search" in str(rows(bare, "EXPLAIN " + FIND.format(ours)))


def test_erratum_36_a_partial_index_needs_its_predicate_in_the_query(full: Any) -> None:
    plain.apply(full, INDEXES_001)
    run(full, "SET plan_cache_mode = force_generic_plan")
    run(full, "DROP INDEX idx_task_project_id")
    project = value(full, "SELECT project_id FROM project_management_tasks LIMIT 1")
    query = "SELECT id FROM project_management_tasks WHERE project_id = $1 AND kanban_state = "
    run(full, f"PREPARE as_parameter (uuid, text) AS {query} $2")
    run(full, f"PREPARE written_out (uuid) AS {query} 'ready'")
    assert "idx_task_status_project" not in str(rows(full, f"EXPLAIN EXECUTE as_parameter ('{project}', 'ready')"))
    assert "idx_task_status_project" in str(rows(full, f"EXPLAIN EXECUTE written_out ('{project}')"))


def test_erratum_39_a_rollback_never_drops_by_name_alone(bare: Any) -> None:
    run(bare, "CREATE INDEX idx_epic_project_id ON project_management_epics (project_id, created_at)")  # the user's own
    run(bare, "DROP INDEX CONCURRENTLY IF EXISTS idx_epic_project_id")
    assert value(bare, "SELECT to_regclass('idx_epic_project_id')") is None  # gone, without a word

    # ours does not pass over what is there before it, so the engine knows what is its own, and asks it before a drop
    run(bare, "CREATE INDEX idx_epic_project_id ON project_management_epics (project_id, created_at)")
    with pytest.raises(psycopg2.ProgrammingError, match='relation "idx_epic_project_id" already exists'):
        plain.apply(bare, INDEXES_001)
    for folder in plain.migrations():
        for statement in plain.statements(f"{folder}/rollback.sql"):
            assert "IF EXISTS" not in statement.text
            assert "CASCADE" not in statement.text
