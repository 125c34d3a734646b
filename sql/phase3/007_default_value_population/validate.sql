-- Migration: 007_default_value_population
-- Description: Limits and estimates are usable; rows that came without an estimate since are no fault

-- Check: agents may work on a project
SELECT 'agents.id = ' || id, 'max_concurrent_projects ' || max_concurrent_projects, 'at least 1'
FROM agents
WHERE max_concurrent_projects < 1;

-- Check: estimates are positive
SELECT 'project_management_tasks.id = ' || id, 'estimated_duration_minutes ' || estimated_duration_minutes, 'over 0'
FROM project_management_tasks
WHERE estimated_duration_minutes <= 0;
