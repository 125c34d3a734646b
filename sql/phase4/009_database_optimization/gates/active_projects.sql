-- The active projects changed last, with their tasks and agents. Each is counted on its own; joined first, every task
-- would count once per agent of its project.
SELECT
    p.short_id,
    p.name,
    t.total_tasks,
    t.active_tasks,
    a.assigned_agents
FROM (
    SELECT id, short_id, name, updated_at
    FROM project_management_projects
    WHERE status = 'active'
    ORDER BY updated_at DESC
    LIMIT 10
) p
CROSS JOIN LATERAL (
    SELECT count(*) AS total_tasks, count(*) FILTER (WHERE kanban_state = 'in_progress') AS active_tasks
    FROM project_management_tasks
    WHERE project_id = p.id
) t
CROSS JOIN LATERAL (
    SELECT array_agg(short_id ORDER BY short_id) AS assigned_agents
    FROM agents
    WHERE current_project_id = p.id
) a
ORDER BY p.updated_at DESC;
