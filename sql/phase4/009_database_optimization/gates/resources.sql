SELECT a.short_id AS agent_id, a.current_project_id, a.project_capacity_percentage, count(t.assigned_agent_id) AS assigned_tasks
FROM agents a
LEFT JOIN project_management_tasks t ON t.assigned_agent_id = a.id AND t.kanban_state IN ('ready', 'in_progress')
WHERE a.status IN ('idle', 'busy')
GROUP BY a.id
ORDER BY a.project_capacity_percentage;
