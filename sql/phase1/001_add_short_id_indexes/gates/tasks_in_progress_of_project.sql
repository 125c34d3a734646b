SELECT t.*
FROM project_management_tasks t
JOIN project_management_projects p ON p.id = t.project_id
WHERE p.short_id = :short_id
  AND t.kanban_state = 'in_progress';
