"""The rows of the errata about summaries, monitoring and the feature switch: phase 4."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg2 import errors

from tests.errata import plain
from tests.errata.plain import rows, run, value

OPTIMIZATION = "phase4/009_database_optimization"
FEATURES = "phase4/010_feature_enablement"

ROADMAP_DASHBOARD = """
SELECT p.id AS project_id, p.short_id AS project_short_id, p.name AS project_name, p.status AS project_status,
       COUNT(DISTINCT e.id) AS epic_count, COUNT(DISTINCT t.id) AS task_count,
       COUNT(DISTINCT t.id) FILTER (WHERE t.kanban_state = 'completed') AS completed_tasks,
       COUNT(DISTINCT a.id) AS assigned_agents, AVG(t.complexity_score) AS avg_complexity,
       p.updated_at AS last_updated
FROM project_management_projects p
LEFT JOIN project_management_epics e ON e.project_id = p.id
LEFT JOIN project_management_tasks t ON t.project_id = p.id
LEFT JOIN agents a ON a.current_project_id = p.id
WHERE p.status != 'archived'
GROUP BY p.id, p.short_id, p.name, p.status, p.updated_at"""

ROADMAP_METRICS = """
SELECT p.short_id, p.name, COUNT(DISTINCT t.id) AS total_tasks,
       AVG(t.actual_duration_minutes / NULLIF(t.estimated_duration_minutes, 0)) AS estimation_accuracy,
       COUNT(DISTINCT a.id) AS agents_used, AVG(ra.efficiency_score) AS avg_efficiency
FROM project_management_projects p
LEFT JOIN project_management_tasks t ON t.project_id = p.id
LEFT JOIN project_resource_allocations ra ON ra.project_id = p.id
LEFT JOIN agents a ON ra.agent_id = a.id
WHERE p.status != 'archived' AND p.created_at > NOW() - INTERVAL '30 days'
GROUP BY p.id, p.short_id, p.name"""

ROADMAP_PERFORMANCE = """
SELECT p.short_id, p.name, COUNT(t.id) AS total_tasks,
       COUNT(t.id) FILTER (WHERE t.kanban_state = 'in_progress') AS active_tasks,
       array_agg(DISTINCT a.short_id) AS assigned_agents
FROM project_management_projects p
LEFT JOIN project_management_tasks t ON t.project_id = p.id
LEFT JOIN agents a ON a.current_project_id = p.id
WHERE p.status = 'active'
GROUP BY p.id, p.short_id, p.name ORDER BY p.updated_at DESC LIMIT 10"""


def most_rows(connection: Any, query: str) -> int:
    """The largest number of rows that any node of the plan of `query` returns, over all its loops."""

    def nodes(node: dict[str, Any]) -> int:
        own: int = round(node["Actual Rows"] * node["Actual Loops"])
        return max([own, *map(nodes, node.get("Plans", []))])

    (plan,) = value(connection, f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {query}")
    return nodes(plan["Plan"])


def our_query(name: str) -> str:
    """The query of one of 009's views."""
    create = next(s.text for s in plain.statements(f"{OPTIMIZATION}/apply.sql") if f"VIEW {name} AS" in s.text)
    return create.split(" AS\n", 1)[1]


@pytest.fixture
def small(bare: Any) -> Any:
    """One active project with 300 tasks and 7 agents; phases 1 to 3 applied."""
    run(bare, "INSERT INTO project_management_projects (short_id, name, status) VALUES ('PRJ-A7B2', 'p', 'active')")
    run(
        bare,
        "INSERT INTO project_management_tasks (project_id, title, kanban_state)"
        " SELECT id, i, (ARRAY['done', 'in_progress', 'backlog'])[1 + i %% 3]"
        " FROM project_management_projects, generate_series(1, %s) AS i",
        300,
    )
    run(bare, "INSERT INTO agents (name, agent_type) SELECT i, 'developer' FROM generate_series(1, 7) AS i")
    plain.apply(bare, *(m for phase in ("phase1", "phase2", "phase3") for m in plain.migrations(phase)))
    run(bare, "UPDATE agents SET current_project_id = (SELECT id FROM project_management_projects)")
    return bare


def test_erratum_14_each_table_is_aggregated_on_its_own(full: Any) -> None:
    plain.apply(full, *plain.migrations("phase2"))
    run(
        full,
        "UPDATE agents SET current_project_id = (SELECT id FROM project_management_projects"
        " WHERE status IS DISTINCT FROM 'archived' AND agents.id IS NOT NULL ORDER BY random() LIMIT 1)",
    )
    tasks = value(full, "SELECT count(*) FROM project_management_tasks")
    assert most_rows(full, ROADMAP_DASHBOARD) > 8 * tasks
    assert most_rows(full, our_query("project_dashboard_summary")) <= tasks

    # the same columns and the same numbers, but for what errata 15 and 35 correct
    plain.apply(full, OPTIMIZATION)
    columns = "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass(%s)"
    corrected = ROADMAP_DASHBOARD.replace("= 'completed'", "= 'done'").replace("!=", "IS DISTINCT FROM")
    run(full, f"CREATE VIEW roadmap AS {corrected}")
    assert rows(full, f"{columns} AND attnum > 0 ORDER BY attnum", "project_dashboard_summary") == rows(
        full, f"{columns} AND attnum > 0 ORDER BY attnum", "roadmap"
    )
    numbers = (
        "SELECT project_id, epic_count, task_count, completed_tasks, assigned_agents, round(avg_complexity, 6),"
        " last_updated FROM {} ORDER BY project_id"
    )
    ours = rows(full, numbers.format("project_dashboard_summary"))
    assert len(ours) > 80
    assert ours == rows(full, numbers.format("roadmap"))


def test_erratum_15_done_tasks_are_completed_tasks(small: Any) -> None:
    completed = "SELECT completed_tasks FROM ({}) AS d"
    assert value(small, completed.format(ROADMAP_DASHBOARD)) == 0
    plain.apply(small, OPTIMIZATION)
    assert value(small, completed.format("TABLE project_dashboard_summary")) == 100


def test_erratum_16_a_task_counts_once(small: Any) -> None:
    assert rows(small, f"SELECT total_tasks, active_tasks FROM ({ROADMAP_PERFORMANCE}) AS q") == [(2100, 700)]
    ours = next(plain.statements(f"{OPTIMIZATION}/gates/active_projects.sql")).text
    assert rows(small, f"SELECT total_tasks, active_tasks, cardinality(assigned_agents) FROM ({ours}) AS q") == [
        (300, 100, 7)
    ]


def test_erratum_17_the_dashboard_is_refreshed_beside_its_readers(small: Any, empty_database: Any) -> None:
    plain.apply(small, OPTIMIZATION)
    reader = empty_database.connect("hive_app", autocommit=False)
    assert len(rows(reader, "SELECT * FROM project_dashboard_summary")) == 1
    run(small, "SET lock_timeout = '200ms'")
    with pytest.raises(errors.LockNotAvailable):
        run(small, "REFRESH MATERIALIZED VIEW project_dashboard_summary")  # and readers behind it would wait too

    run(small, "DELETE FROM project_management_tasks")
    run(small, "REFRESH MATERIALIZED VIEW CONCURRENTLY project_dashboard_summary")
    assert value(small, "SELECT task_count FROM project_dashboard_summary") == 0
    reader.close()


def test_erratum_20_statistics_by_their_columns(bare: Any) -> None:
    for query in (
        "SELECT schemaname, tablename, seq_scan FROM pg_stat_user_tables WHERE tablename LIKE '%project%'",
        "SELECT schemaname, tablename, indexname, idx_scan FROM pg_stat_user_indexes WHERE indexname LIKE 'idx_%'",
    ):
        with pytest.raises(errors.UndefinedColumn, match='column "tablename" does not exist'):
            run(bare, query)
    assert value(bare, "SELECT to_regclass('pg_stat_statements')") is None
    with pytest.raises(errors.UndefinedTable, match='relation "pg_stat_statements" does not exist'):
        run(bare, "SELECT query, calls, total_time FROM pg_stat_statements")

    plain.apply(bare, *plain.migrations("phase1"))
    assert len(rows(bare, "SELECT schemaname, relname, seq_scan FROM pg_stat_user_tables")) == 8
    named = "SELECT indexrelname, idx_scan FROM pg_stat_user_indexes WHERE indexrelname LIKE 'idx\\_%'"
    assert len(rows(bare, named)) == 16


def test_erratum_20_total_time_is_total_exec_time(bare: Any, empty_database: Any) -> None:
    superuser = empty_database.connect("postgres")
    if not rows(superuser, "SELECT FROM pg_available_extensions WHERE name = 'pg_stat_statements'"):
        pytest.skip("this server comes without pg_stat_statements")
    run(superuser, "CREATE EXTENSION pg_stat_statements")
    superuser.close()
    with pytest.raises(errors.UndefinedColumn, match='column "total_time" does not exist'):
        run(bare, "SELECT query, calls, total_time, mean_time FROM pg_stat_statements ORDER BY total_time DESC")
    columns = "SELECT attname FROM pg_attribute WHERE attrelid = 'pg_stat_statements'::regclass"
    assert {("total_exec_time",), ("mean_exec_time",)} <= set(rows(bare, columns))


def test_erratum_21_there_is_no_migration_log(bare: Any) -> None:
    with pytest.raises(errors.UndefinedTable, match='relation "migration_log" does not exist'):
        run(
            bare,
            "SELECT phase, start_time, end_time, status, records_processed, errors_encountered"
            " FROM migration_log ORDER BY start_time DESC",
        )


FLAGS = "SELECT key, value::text FROM system_config WHERE key LIKE 'feature.%' ORDER BY key"


def test_erratum_22_the_switch_needs_no_table_before(bare: Any) -> None:
    with pytest.raises(errors.UndefinedTable, match='relation "system_config" does not exist'):
        run(bare, "UPDATE system_config SET value = 'false' WHERE key = 'feature.short_id_enabled'")

    on = [("feature.multi_project_enabled", "true"), ("feature.short_id_enabled", "true")]
    off = [(key, "false") for key, _ in on]
    plain.apply(bare, "immediate")  # before there is anything to switch off
    assert rows(bare, FLAGS) == off
    assert not plain.violations(bare, "immediate/validate.sql")
    assert [key for key, *_ in plain.violations(bare, f"{FEATURES}/validate.sql")["both flags read true"]] == [
        "system_config.key = feature.short_id_enabled",
        "system_config.key = feature.multi_project_enabled",
    ]
    plain.apply(bare, FEATURES)
    assert rows(bare, FLAGS) == on
    plain.apply(bare, "immediate")
    assert rows(bare, FLAGS) == off

    # a missing row is a violation, not the roadmap's UPDATE 0
    run(bare, "DELETE FROM system_config")
    assert run(bare, "UPDATE system_config SET value = 'false' WHERE key = 'feature.short_id_enabled'") == 0
    assert len(plain.violations(bare, "immediate/validate.sql")["both flags read false"]) == 2
    plain.roll_back(bare, FEATURES)
    assert value(bare, "SELECT to_regclass('system_config')") is None


@pytest.mark.parametrize("value_type", ["text", "varchar(10)", "jsonb", "boolean"])
def test_erratum_22_an_existing_table_is_used(bare: Any, value_type: str) -> None:
    run(bare, f"CREATE TABLE system_config (key varchar(99), value {value_type}, changed_by text)")  # no unique key
    for _ in range(2):
        plain.apply(bare, FEATURES)
        assert rows(bare, FLAGS) == [("feature.multi_project_enabled", "true"), ("feature.short_id_enabled", "true")]
        assert not plain.violations(bare, f"{FEATURES}/validate.sql")
        for statement in plain.statements(f"{FEATURES}/apply.sql"):
            assert value(bare, statement.notes["Done when"]) is True
    plain.apply(bare, "immediate")
    assert not plain.violations(bare, "immediate/validate.sql")
    for statement in plain.statements("immediate/apply.sql"):
        assert value(bare, statement.notes["Done when"]) is True


def test_erratum_23_optimise_then_enable() -> None:
    assert plain.migrations("phase4")[-1] == FEATURES
    assert plain.header(FEATURES)["Only when"] == "enable_features"
    assert [m for m in plain.migrations() if "Only when" in plain.header(m)] == [FEATURES]
    title = (plain.SQL / "phase4" / "phase.yml").read_text(encoding="utf-8")
    assert "Performance optimization and feature enablement" in title


def test_erratum_34_metrics_are_ratios_and_leave_with_phase_4(small: Any) -> None:
    run(
        small,
        "UPDATE project_management_tasks SET actual_duration_minutes = 90, estimated_duration_minutes = 120"
        " WHERE kanban_state = 'done'",
    )
    run(
        small,
        "INSERT INTO project_resource_allocations (project_id, agent_id, capacity_percentage, efficiency_score)"
        " SELECT p.id, a.id, 50, 80 FROM project_management_projects p, agents a",
    )
    metrics = "SELECT total_tasks, round(estimation_accuracy, 4)::text, agents_used, avg_efficiency::int FROM ({}) AS m"
    assert rows(small, metrics.format(ROADMAP_METRICS)) == [(300, "0.0000", 7, 80)]
    tasks = value(small, "SELECT count(*) FROM project_management_tasks")
    assert most_rows(small, ROADMAP_METRICS) == 7 * tasks
    run(small, f"CREATE VIEW roadmap AS {ROADMAP_METRICS}")
    with pytest.raises(errors.DependentObjectsStillExist):  # the roadmap's phase 2 rollback
        run(small, "ALTER TABLE project_management_tasks DROP COLUMN IF EXISTS actual_duration_minutes")
    run(small, "DROP VIEW roadmap")

    plain.apply(small, *plain.migrations("phase4"))
    assert rows(small, metrics.format("TABLE project_performance_metrics")) == [(300, "0.7500", 7, 80)]
    assert most_rows(small, "TABLE project_performance_metrics") == tasks
    assert not plain.violations(small, f"{OPTIMIZATION}/validate.sql")
    for phase in ("phase4", "phase3", "phase2"):
        plain.roll_back(small, *plain.migrations(phase))


def test_erratum_35_projects_without_a_status_are_there(small: Any) -> None:
    run(small, "UPDATE project_management_projects SET status = NULL")
    assert not rows(small, ROADMAP_DASHBOARD)
    assert not rows(small, ROADMAP_METRICS)
    plain.apply(small, OPTIMIZATION)
    assert len(rows(small, "TABLE project_dashboard_summary")) == 1
    assert len(rows(small, "TABLE project_performance_metrics")) == 1
