-- Migration: 003_agent_project_assignment
-- Description: Bad values are refused, and the rows present hold good ones

-- Check: agents' limits are in range
SELECT 'agents.id = ' || id,
       'max_concurrent_projects ' || max_concurrent_projects
           || ', project_capacity_percentage ' || project_capacity_percentage,
       'at least 1, and 1 to 100'
FROM agents
WHERE max_concurrent_projects <= 0 OR project_capacity_percentage NOT BETWEEN 1 AND 100;

-- Check: agents work on projects that exist
SELECT 'agents.id = ' || a.id, 'current_project_id ' || a.current_project_id, 'a project'
FROM agents a
WHERE a.current_project_id IS NOT NULL
  AND NOT EXISTS (SELECT FROM project_management_projects p WHERE p.id = a.current_project_id);

-- Step: no_concurrent_project_is_refused
-- Refuses: check_violation
INSERT INTO agents (name, agent_type, max_concurrent_projects) VALUES ('validation', 'validation', 0);

-- Step: a_capacity_of_0_percent_is_refused
-- Refuses: check_violation
INSERT INTO agents (name, agent_type, project_capacity_percentage) VALUES ('validation', 'validation', 0);

-- Step: a_capacity_over_100_percent_is_refused
-- Refuses: check_violation
INSERT INTO agents (name, agent_type, project_capacity_percentage) VALUES ('validation', 'validation', 101);

-- Step: an_unknown_project_is_refused
-- Refuses: foreign_key_violation
INSERT INTO agents (name, agent_type, current_project_id)
VALUES ('validation', 'validation', '00000000-0000-0000-0000-000000000000');
