SELECT id, short_id, project_capacity_percentage
FROM agents
WHERE current_project_id = :project
  AND project_capacity_percentage >= 20
  AND status IN ('idle', 'busy');
