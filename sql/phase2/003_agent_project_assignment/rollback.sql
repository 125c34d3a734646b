-- Migration: 003_agent_project_assignment
-- Description: Take the project assignment of agents away

DROP INDEX CONCURRENTLY idx_agent_project_capacity;

DROP INDEX CONCURRENTLY idx_agent_current_project;

-- Their constraints and comments go with the columns.
ALTER TABLE agents DROP COLUMN total_projects_completed;

ALTER TABLE agents DROP COLUMN last_project_assignment;

ALTER TABLE agents DROP COLUMN project_capacity_percentage;

ALTER TABLE agents DROP COLUMN max_concurrent_projects;

ALTER TABLE agents DROP COLUMN tmux_session_id;

ALTER TABLE agents DROP COLUMN project_assignments;

ALTER TABLE agents DROP COLUMN current_project_id;
