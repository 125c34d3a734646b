SELECT r.agent_id, r.capacity_percentage
FROM project_resource_allocations r
WHERE r.project_id = :project
  AND r.status = 'active';
