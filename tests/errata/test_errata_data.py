"""The rows of the errata about short IDs and default values: phase 3."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from psycopg2 import errors

from tests.errata import plain
from tests.errata.plain import rows, run, value

SHORT_IDS = "phase3/006_short_id_backfill"
DEFAULTS = "phase3/007_default_value_population"
ALPHABET = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
TABLES = {
    "project_management_projects": "PRJ",
    "project_management_epics": "EPC",
    "project_management_prds": "PRD",
    "project_management_tasks": "TSK",
    "agents": "AGT",
}

ROADMAP_GENERATE = """
CREATE FUNCTION generate_safe_short_id(entity_prefix text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN entity_prefix || '-' || translate(encode(gen_random_bytes(3), 'base32'), '018', '239');
END;
$$"""


def seed(connection: Any, tasks: int = 20) -> None:
    """A few rows in the five tables; a project has a code that is registered, an epic one that is not."""
    run(connection, "INSERT INTO project_management_projects (short_id, name) VALUES ('PRJ-OLD1', 'old'), (NULL, NULL)")
    run(
        connection,
        "INSERT INTO short_id_registry (short_id, entity_type, entity_id)"
        " SELECT short_id, 'project', id FROM project_management_projects WHERE short_id IS NOT NULL",
    )
    run(
        connection,
        "INSERT INTO project_management_epics (short_id, project_id, name)"
        " SELECT code, id, 'epic' FROM project_management_projects, (VALUES ('EPIC-00001'), (NULL)) AS c (code)"
        " WHERE short_id = 'PRJ-OLD1'",
    )
    run(
        connection,
        "INSERT INTO project_management_prds (epic_id, title) SELECT id, 'prd' FROM project_management_epics",
    )
    run(
        connection,
        "INSERT INTO agents (name, agent_type) SELECT 'agent ' || i, CASE WHEN i % 4 = 0 THEN 'meta_agent'"
        " WHEN i % 4 = 1 THEN 'architect' ELSE 'developer' END FROM generate_series(1, 8) AS i",
    )
    run(
        connection,
        "INSERT INTO project_management_tasks (project_id, title, task_type)"
        " SELECT p.id, 'task ' || i,"
        " (ARRAY['architecture', 'refactoring', 'testing', 'documentation', NULL])[1 + i %% 5]"
        " FROM generate_series(1, %s) AS i, (SELECT id FROM project_management_projects LIMIT 1) AS p",
        tasks,
    )


@pytest.fixture
def seeded(bare: Any) -> Any:
    """A few rows, phases 1 and 2 applied."""
    seed(bare)
    plain.apply(bare, *plain.migrations("phase1"), *plain.migrations("phase2"))
    return bare


@pytest.fixture
def application(empty_database: Any) -> Iterator[Any]:
    """A second session, of the application's role."""
    with contextlib.closing(empty_database.connect("hive_app")) as connection:
        yield connection


def contents(connection: Any) -> dict[str, list[Any]]:
    tables = [*TABLES, "short_id_registry", "agent_sessions", "project_index"]
    return {t: sorted(map(str, rows(connection, f"SELECT to_jsonb(t) FROM {t} AS t"))) for t in tables}


def test_erratum_4_no_extension_is_needed(seeded: Any) -> None:
    run(seeded, ROADMAP_GENERATE)
    with pytest.raises(errors.UndefinedFunction, match=r"function gen_random_bytes\(integer\) does not exist"):
        run(seeded, "SELECT generate_safe_short_id('PRJ')")

    plain.apply(seeded, SHORT_IDS)
    assert rows(seeded, "SELECT extname FROM pg_extension") == [("plpgsql",)]
    assert not plain.violations(seeded, f"{SHORT_IDS}/validate.sql")


def test_erratum_5_codes_are_of_thirty_unmistakable_symbols(seeded: Any) -> None:
    with pytest.raises(errors.InvalidParameterValue, match='unrecognized encoding: "base32"'):
        run(seeded, r"SELECT translate(encode('\x0a0b0c'::bytea, 'base32'), '018', '239')")

    plain.apply(seeded, SHORT_IDS)
    codes = [c for (c,) in rows(seeded, "SELECT generate_short_id('PRJ', 4) FROM generate_series(1, 3000)")]
    assert all(code.startswith("PRJ-") and len(code) == 8 for code in codes)
    counts = {symbol: sum(code[4:].count(symbol) for code in codes) for symbol in ALPHABET}
    assert sum(counts.values()) == 12_000  # no other symbol, and each as likely: 400 are expected, 20 is one sigma
    assert all(280 < count < 520 for count in counts.values())
    for table, prefix in TABLES.items():
        drawn = rows(seeded, f"SELECT short_id FROM {table} WHERE short_id NOT IN ('PRJ-OLD1', 'EPIC-00001')")
        assert drawn
        assert all(code.startswith(f"{prefix}-") and set(code[4:]) <= set(ALPHABET) for (code,) in drawn)


def test_erratum_6_codes_grow_with_the_table(seeded: Any, empty_database: Any) -> None:
    plain.apply(seeded, SHORT_IDS)
    draws = 60_000
    distinct = value(
        seeded,
        "SELECT count(DISTINCT code) FROM"
        " (SELECT generate_short_id('TSK', 4) AS code FROM generate_series(1, %s)) AS drawn",
        draws,
    )
    assert draws - distinct > 0.02 * draws  # the roadmap's four symbols: already at a fifth of the tasks
    assert 30**4 < 3_000_000  # and ten times the tasks do not fit at all

    insert = (
        "INSERT INTO project_management_tasks (project_id) SELECT id FROM project_management_projects LIMIT 1"
        " RETURNING length(short_id) - 4"
    )
    superuser = empty_database.connect("postgres")
    for count, symbols in [(-1, 4), (500, 4), (30_000, 5), (300_000, 6), (3_000_000, 6), (30_000_000, 7), (1e9, 8)]:
        run(
            superuser,
            "UPDATE pg_class SET reltuples = %s WHERE oid = 'project_management_tasks'::regclass",
            count,
        )
        assert value(seeded, insert) == symbols
        assert count / 30**symbols < 0.01
    superuser.close()


def test_erratum_6_conflicts_grow_the_code(seeded: Any) -> None:
    plain.apply(seeded, SHORT_IDS)
    run(
        seeded,
        "CREATE OR REPLACE FUNCTION generate_short_id(prefix text, size integer) RETURNS text LANGUAGE sql"
        " AS $$ SELECT prefix || '-' || repeat('A', size) $$",
    )
    insert = "INSERT INTO agents (name, agent_type) VALUES ('a', 'developer') RETURNING short_id"
    assert [value(seeded, insert) for _ in range(3)] == ["AGT-AAAA", "AGT-AAAAA", "AGT-AAAAAA"]
    assert "count(" not in value(seeded, "SELECT prosrc FROM pg_proc WHERE proname = 'assign_short_id'")


def test_erratum_7_one_guard_over_all_entities(seeded: Any, application: Any, empty_database: Any) -> None:
    project = "INSERT INTO project_management_projects (short_id, name) VALUES ('PRJ-A7B2', 'p')"
    agent = "INSERT INTO agents (short_id, name, agent_type) VALUES ('PRJ-A7B2', 'a', 'developer')"
    taken = "SELECT EXISTS (SELECT FROM project_management_projects WHERE short_id = 'PRJ-A7B2')"
    with contextlib.closing(empty_database.connect("hive_app", autocommit=False)) as other:
        run(other, project)
        assert value(application, taken) is False  # the roadmap's check, before the other writer has committed
        run(application, agent)
        other.commit()
    twice = plain.violations(seeded, f"{SHORT_IDS}/require.sql")["no two rows hold the same short ID"]
    assert len(twice) == 1
    assert twice[0][0] == "short_id PRJ-A7B2"

    run(seeded, "UPDATE agents SET short_id = NULL WHERE short_id = 'PRJ-A7B2'")
    assert not plain.violations(seeded, f"{SHORT_IDS}/require.sql")
    plain.apply(seeded, SHORT_IDS)
    run(seeded, "DELETE FROM project_management_projects WHERE short_id = 'PRJ-A7B2'")
    run(seeded, "DELETE FROM short_id_registry WHERE short_id = 'PRJ-A7B2'")
    with contextlib.closing(empty_database.connect("hive_app", autocommit=False)) as other:
        run(other, project)
        run(application, "SET lock_timeout = '200ms'")
        with pytest.raises(errors.LockNotAvailable):  # waits for the first writer
            run(application, agent)
        other.commit()
    with pytest.raises(errors.UniqueViolation, match="short ID 'PRJ-A7B2' is taken") as caught:
        run(application, agent)
    assert caught.value.diag.column_name == "short_id"
    assert not plain.violations(seeded, f"{SHORT_IDS}/validate.sql")


def test_erratum_7_a_registry_row_of_another_entity_is_listed(seeded: Any) -> None:
    run(seeded, "UPDATE short_id_registry SET entity_id = gen_random_uuid() WHERE short_id = 'PRJ-OLD1'")
    found = plain.violations(seeded, f"{SHORT_IDS}/require.sql")
    assert list(found) == ["the registry names the row that holds the code"]
    ((code, registered, holder),) = found["the registry names the row that holds the code"]
    assert code == "short_id PRJ-OLD1"
    assert registered.startswith("registered for project ")
    assert holder.startswith("project ")


def test_erratum_8_a_batch_locks_its_rows_only(seeded: Any, application: Any, empty_database: Any) -> None:
    first, *_, last = rows(seeded, "SELECT id FROM project_management_tasks ORDER BY id")
    write = "UPDATE project_management_tasks SET priority = 1 WHERE id = %s"
    run(application, "SET lock_timeout = '200ms'")
    with contextlib.closing(empty_database.connect(autocommit=False)) as migration:
        run(migration, "UPDATE project_management_tasks SET short_id = 'x' WHERE short_id IS NULL")
        with pytest.raises(errors.LockNotAvailable):
            run(application, write, *last)
        migration.rollback()

        updates = [s for s in plain.statements(f"{SHORT_IDS}/apply.sql") if s.text.startswith("UPDATE")]
        assert len(updates) == 10
        assert all(s.notes["Backfill"] == "by id" for s in updates)
        for statement in plain.statements(f"{SHORT_IDS}/apply.sql"):
            if statement.text.startswith("CREATE"):
                run(seeded, statement.text)
        batch = next(s.text for s in updates if s.notes["Step"] == "backfill_tasks")
        assert run(migration, f"{batch} AND t.id <= %s", *first) == 1  # as the engine adds its key range
        assert run(application, write, *last) == 1
        migration.commit()


def test_erratum_9_not_null_without_a_scan_under_the_lock(seeded: Any) -> None:
    run(seeded, "ALTER TABLE agents ALTER COLUMN agent_type DROP NOT NULL")
    scanned = plain.messages(seeded, "ALTER TABLE agents ALTER COLUMN agent_type SET NOT NULL")
    assert "are sufficient to prove" not in "".join(scanned)

    proved, validated = 0, 0
    for statement in plain.statements(f"{SHORT_IDS}/apply.sql"):
        if "VALIDATE" in statement.text:
            assert not [mode for _, mode in plain.locks(seeded, statement.text) if mode == "AccessExclusiveLock"]
            validated += 1
        said = "".join(plain.messages(seeded, statement.text))
        if "SET NOT NULL" in statement.text:
            assert "are sufficient to prove that it does not contain nulls" in said
            proved += 1
        assert statement.text.startswith("ALTER TABLE") is ("ALTER TABLE" in statement.text)
    assert proved == validated == 5
    assert value(
        seeded,
        "SELECT count(*) FROM pg_attribute"
        " WHERE attname = 'short_id' AND attnotnull AND attrelid::regclass::text = ANY(%s)",
        list(TABLES),
    ) == len(TABLES)
    assert value(seeded, "SELECT count(*) FROM pg_constraint WHERE conname LIKE '%%present'") == 0


def test_erratum_10_an_application_that_knows_no_short_id_goes_on(seeded: Any, application: Any) -> None:
    insert = "INSERT INTO agents (name, agent_type) VALUES ('a', 'developer') RETURNING short_id"
    explicit = "INSERT INTO agents (short_id, name, agent_type) VALUES ({}, 'a', 'developer') RETURNING short_id"
    run(seeded, "CREATE TABLE roadmap (LIKE agents INCLUDING DEFAULTS)")
    run(seeded, "ALTER TABLE roadmap ALTER COLUMN short_id SET NOT NULL")
    for statement in (insert, explicit.format("NULL")):
        with pytest.raises(errors.NotNullViolation):
            run(seeded, statement.replace("agents", "roadmap"))

    plain.apply(seeded, SHORT_IDS)
    run(seeded, "REVOKE ALL ON short_id_registry FROM hive_app")  # it need not be allowed to write the registry
    codes = [value(application, s) for s in (insert, explicit.format("NULL"), explicit.format("'mine'"))]
    assert codes[2] == "mine"
    registered = (
        "SELECT count(*) FROM agents a JOIN short_id_registry r"
        " ON (r.short_id, r.entity_type, r.entity_id) = (a.short_id, 'agent', a.id) WHERE a.short_id = ANY(%s)"
    )
    assert value(seeded, registered, codes) == 3

    # written back as it was read before the backfill, NULL included: the row keeps its code
    run(application, "UPDATE agents SET short_id = NULL, status = 'busy' WHERE short_id = %s", codes[0])
    assert value(seeded, "SELECT status FROM agents WHERE short_id = %s", codes[0]) == "busy"
    run(application, "UPDATE agents SET short_id = 'renamed' WHERE short_id = 'mine'")
    assert not plain.violations(seeded, f"{SHORT_IDS}/validate.sql")


def test_erratum_10_the_trigger_stands_before_the_backfill() -> None:
    texts = [s.text for s in plain.statements(f"{SHORT_IDS}/apply.sql")]
    kinds = [text.split()[0] + " " + text.split()[1] for text in texts]
    assert max(i for i, kind in enumerate(kinds) if kind == "CREATE TRIGGER") < min(
        i for i, kind in enumerate(kinds) if kind.startswith("UPDATE")
    )


ROADMAP_AGENTS = """
UPDATE agents SET project_assignments = '[]'::jsonb, max_concurrent_projects = CASE
        WHEN agent_type = 'meta_agent' THEN 5 WHEN agent_type IN ('senior_developer', 'architect') THEN 3 ELSE 1 END,
    project_capacity_percentage = 100, total_projects_completed = 0
WHERE project_assignments IS NULL OR max_concurrent_projects IS NULL"""

ROADMAP_TASKS = """
UPDATE project_management_tasks SET complexity_score = CASE
        WHEN task_type IN ('architecture', 'research') THEN 8
        WHEN task_type IN ('feature_development', 'refactoring') THEN 6
        WHEN task_type IN ('bug_fix', 'testing') THEN 4 ELSE 5 END,
    estimated_duration_minutes = CASE WHEN complexity_score >= 8 THEN 480 WHEN complexity_score >= 6 THEN 240
        WHEN complexity_score >= 4 THEN 120 ELSE 60 END
WHERE {}"""


def test_erratum_11_untouched_defaults_are_filled_and_written_ones_are_not(full: Any) -> None:
    plain.apply(full, *plain.migrations("phase2"))
    assert run(full, ROADMAP_AGENTS) == 0
    assert run(full, ROADMAP_TASKS.format("agent_assignment_history IS NULL OR delegation_metadata IS NULL")) == 0
    limits = (
        "SELECT max_concurrent_projects, count(*) FROM agents WHERE agent_type = 'meta_agent' GROUP BY 1 ORDER BY 1"
    )
    assert rows(full, limits) == [(1, 13)]

    # the application has since written one column of each of a few rows
    by_row = "UPDATE {0} SET {1} WHERE id = (SELECT id FROM {0} WHERE {2} ORDER BY id OFFSET %s LIMIT 1) RETURNING id"
    agent_writes = [
        "max_concurrent_projects = 2",
        "project_assignments = '[1]'",
        "project_capacity_percentage = 50",
        "total_projects_completed = 1",
    ]
    for i, write in enumerate(agent_writes):
        run(full, by_row.format("agents", write, "agent_type = 'meta_agent'"), i)
    task_writes = [
        "agent_assignment_history = '[1]'",
        "delegation_metadata = '{\"to\": 1}'",
        "tmux_session_info = '{\"at\": 1}'",
        "complexity_score = 3",
        "depends_on_tasks = ARRAY[id]",
        "blocks_tasks = ARRAY[id]",
    ]
    written = [
        rows(full, by_row.format("project_management_tasks", write, "true"), i)[0]
        for i, write in enumerate(task_writes)
    ]
    run(full, by_row.format("project_management_tasks", "estimated_duration_minutes = 7", "true"), len(task_writes))
    plain.apply(full, DEFAULTS)
    assert value(full, "SELECT count(*) FROM project_management_tasks WHERE estimated_duration_minutes = 7") == 1
    assert rows(full, limits) == [(1, 3), (2, 1), (5, 9)]
    assert rows(full, "SELECT DISTINCT max_concurrent_projects FROM agents WHERE agent_type = 'architect'") == [(3,)]
    left = rows(full, "SELECT id FROM project_management_tasks WHERE estimated_duration_minutes IS NULL")
    assert sorted(left) == sorted(written)
    for update in plain.statements(f"{DEFAULTS}/apply.sql"):
        assert update.notes["New rows"] == "left"


def test_erratum_12_the_estimate_follows_the_new_score(seeded: Any) -> None:
    estimates = (
        "SELECT DISTINCT task_type, complexity_score, estimated_duration_minutes FROM project_management_tasks"
        " ORDER BY complexity_score DESC, task_type"
    )
    run(seeded, "BEGIN")
    run(seeded, ROADMAP_TASKS.format("true"))
    assert {minutes for *_, minutes in rows(seeded, estimates)} == {120}
    run(seeded, "ROLLBACK")

    plain.apply(seeded, DEFAULTS)
    assert rows(seeded, estimates) == [
        ("architecture", 8, 480),
        ("refactoring", 6, 240),
        ("documentation", 5, 120),
        (None, 5, 120),
        ("testing", 4, 120),
    ]


def test_erratum_24_phase_3_goes_back(seeded: Any) -> None:
    before = contents(seeded)
    plain.apply(seeded, *plain.migrations("phase3"))
    assert contents(seeded) != before
    plain.roll_back(seeded, *plain.migrations("phase3"))
    assert contents(seeded) == before

    # what the application wrote since stays: a code of its own, a new row's code, an estimate
    plain.apply(seeded, *plain.migrations("phase3"))
    run(seeded, "UPDATE agents SET short_id = 'mine' WHERE name = 'agent 1'")
    run(seeded, "INSERT INTO agents (name, agent_type) VALUES ('agent new', 'developer')")
    run(seeded, "UPDATE project_management_tasks SET estimated_duration_minutes = 7 WHERE title = 'task 1'")
    plain.roll_back(seeded, *plain.migrations("phase3"))
    kept = dict(rows(seeded, "SELECT name, short_id FROM agents WHERE short_id IS NOT NULL"))
    assert set(kept) == {"agent 1", "agent new"}
    assert kept["agent 1"] == "mine"
    assert value(seeded, "SELECT count(*) FROM short_id_registry WHERE short_id = ANY(%s)", list(kept.values())) == 2
    assert rows(seeded, "SELECT title FROM project_management_tasks WHERE estimated_duration_minutes IS NOT NULL") == [
        ("task 1",)
    ]
    assert value(seeded, "SELECT count(*) FROM project_management_tasks WHERE short_id IS NOT NULL") == 0
    assert value(seeded, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal") == 0
    run(seeded, "INSERT INTO agents (name, agent_type) VALUES ('agent last', 'developer')")  # nullable again

    plain.apply(seeded, *plain.migrations("phase3"))
    assert not plain.violations(seeded, f"{SHORT_IDS}/validate.sql")


def test_present_codes_stay_as_they_are(full: Any) -> None:
    """At the baseline's size: old codes untouched, unregistered ones registered, everything unique."""
    held = (
        "SELECT short_id, id FROM project_management_tasks WHERE {0} UNION ALL"
        " SELECT short_id, id FROM project_management_projects WHERE {0} ORDER BY 1, 2"
    )
    before = rows(full, held.format("short_id IS NOT NULL"))
    assert len(before) > 900
    plain.apply(full, SHORT_IDS)
    assert set(before) <= set(rows(full, held.format("true")))
    assert not plain.violations(full, f"{SHORT_IDS}/validate.sql")
    with pytest.raises(psycopg2.IntegrityError):
        run(full, "INSERT INTO agents (short_id, name, agent_type) VALUES (%s, 'a', 'developer')", before[0][0])
