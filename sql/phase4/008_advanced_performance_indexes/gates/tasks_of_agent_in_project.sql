SELECT id, title, kanban_state
FROM project_management_tasks
WHERE project_id = :project
  AND assigned_agent_id = :agent
  AND kanban_state = :state;
