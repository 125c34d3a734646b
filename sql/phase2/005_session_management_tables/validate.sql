-- Migration: 005_session_management_tables
-- Description: Bad values are refused

-- Check: no dependency leads back to its own project
SELECT 'cross_project_dependencies.id = ' || id, 'source and target ' || source_project_id, 'two projects'
FROM cross_project_dependencies
WHERE source_project_id = target_project_id;

-- Step: an_unknown_session_status_is_refused
-- Refuses: check_violation
INSERT INTO agent_tmux_sessions (session_name, tmux_session_id, workspace_path, status)
VALUES ('validation', 'validation', '/nowhere', 'gone');

-- Step: a_second_session_of_the_same_name_is_refused
-- Refuses: unique_violation
INSERT INTO agent_tmux_sessions (session_name, tmux_session_id, workspace_path)
VALUES ('validation', 'validation', '/nowhere'), ('validation', 'validation', '/nowhere');

-- Step: a_session_without_a_workspace_is_refused
-- Refuses: not_null_violation
INSERT INTO agent_tmux_sessions (session_name, tmux_session_id) VALUES ('validation', 'validation');

-- Step: a_session_of_an_unknown_agent_is_refused
-- Refuses: foreign_key_violation
INSERT INTO agent_tmux_sessions (session_name, tmux_session_id, workspace_path, agent_id)
VALUES ('validation', 'validation', '/nowhere', '00000000-0000-0000-0000-000000000000');

-- Step: an_allocation_of_0_percent_is_refused
-- Refuses: check_violation
INSERT INTO project_resource_allocations (capacity_percentage) VALUES (0);

-- Step: an_allocation_over_100_percent_is_refused
-- Refuses: check_violation
INSERT INTO project_resource_allocations (capacity_percentage) VALUES (101);

-- Step: an_unknown_allocation_status_is_refused
-- Refuses: check_violation
INSERT INTO project_resource_allocations (capacity_percentage, status) VALUES (50, 'gone');

-- Step: an_unknown_dependency_type_is_refused
-- Refuses: check_violation
INSERT INTO cross_project_dependencies (dependency_type) VALUES ('admires');

-- Step: an_unknown_dependency_status_is_refused
-- Refuses: check_violation
INSERT INTO cross_project_dependencies (dependency_type, status) VALUES ('blocks', 'gone');

-- Step: a_dependency_of_a_project_on_itself_is_refused
-- Refuses: check_violation
INSERT INTO cross_project_dependencies (source_project_id, target_project_id, dependency_type)
VALUES ('00000000-0000-0000-0000-000000000000', '00000000-0000-0000-0000-000000000000', 'blocks');
