-- Migration: 009_database_optimization
-- Description: Statistics, the project dashboard and the performance metrics
-- Risk Level: MEDIUM (reads every project, epic and task once)
-- Expected duration: seconds at 300,000 tasks; grows with the tables
-- Locks: SHARE UPDATE EXCLUSIVE for ANALYZE; reads and writes go on

ANALYZE project_management_projects;

ANALYZE project_management_epics;

ANALYZE project_management_prds;

ANALYZE project_management_tasks;

ANALYZE agents;

ANALYZE agent_tmux_sessions;

ANALYZE project_resource_allocations;

ANALYZE cross_project_dependencies;

-- Each table is aggregated on its own and then joined; joined first, a project's epics, tasks and agents multiply.
-- IS DISTINCT FROM keeps the projects without a status.
CREATE MATERIALIZED VIEW project_dashboard_summary AS
SELECT
    p.id AS project_id,
    p.short_id AS project_short_id,
    p.name AS project_name,
    p.status AS project_status,
    coalesce(e.epic_count, 0) AS epic_count,
    coalesce(t.task_count, 0) AS task_count,
    coalesce(t.completed_tasks, 0) AS completed_tasks,
    coalesce(a.assigned_agents, 0) AS assigned_agents,
    t.avg_complexity,
    p.updated_at AS last_updated
FROM project_management_projects p
LEFT JOIN (
    SELECT project_id, count(*) AS epic_count
    FROM project_management_epics
    GROUP BY project_id
) e ON e.project_id = p.id
LEFT JOIN (
    SELECT
        project_id,
        count(*) AS task_count,
        count(*) FILTER (WHERE kanban_state IN ('done', 'completed')) AS completed_tasks,
        avg(complexity_score) AS avg_complexity
    FROM project_management_tasks
    GROUP BY project_id
) t ON t.project_id = p.id
LEFT JOIN (
    SELECT current_project_id AS project_id, count(*) AS assigned_agents
    FROM agents
    GROUP BY current_project_id
) a ON a.project_id = p.id
WHERE p.status IS DISTINCT FROM 'archived';

-- REFRESH ... CONCURRENTLY, which blocks no reader, needs the unique one.
CREATE UNIQUE INDEX idx_project_dashboard_project_id ON project_dashboard_summary (project_id);

CREATE INDEX idx_project_dashboard_status ON project_dashboard_summary (project_status, last_updated DESC);

-- Estimation accuracy is a ratio of minutes, and would be 0 or 1 as integers divide.
CREATE VIEW project_performance_metrics AS
SELECT
    p.short_id,
    p.name,
    coalesce(t.total_tasks, 0) AS total_tasks,
    t.estimation_accuracy,
    coalesce(ra.agents_used, 0) AS agents_used,
    ra.avg_efficiency
FROM project_management_projects p
LEFT JOIN (
    SELECT
        project_id,
        count(*) AS total_tasks,
        avg(actual_duration_minutes::numeric / nullif(estimated_duration_minutes, 0)) AS estimation_accuracy
    FROM project_management_tasks
    GROUP BY project_id
) t ON t.project_id = p.id
LEFT JOIN (
    SELECT project_id, count(DISTINCT agent_id) AS agents_used, avg(efficiency_score) AS avg_efficiency
    FROM project_resource_allocations
    GROUP BY project_id
) ra ON ra.project_id = p.id
WHERE p.status IS DISTINCT FROM 'archived'
  AND p.created_at > now() - interval '30 days';

ANALYZE project_dashboard_summary;
