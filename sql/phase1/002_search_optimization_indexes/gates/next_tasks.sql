SELECT id, title, priority
FROM project_management_tasks
WHERE priority = :priority
  AND kanban_state = :state
ORDER BY created_at DESC
LIMIT 50;
