-- Migration: 003_agent_project_assignment
-- Description: Project assignment of agents
-- Risk Level: MEDIUM (new columns; a prepared SELECT * of the application fails once)
-- Expected duration: seconds
-- Locks: ACCESS EXCLUSIVE on agents, for milliseconds; SHARE ROW EXCLUSIVE on projects for the foreign key

-- All NULL at first, so the foreign key is known to hold without a scan.
ALTER TABLE agents ADD COLUMN current_project_id uuid
    CONSTRAINT agents_current_project_id_fkey REFERENCES project_management_projects (id) ON DELETE SET NULL;

ALTER TABLE agents ADD COLUMN project_assignments jsonb DEFAULT '[]';

ALTER TABLE agents ADD COLUMN tmux_session_id varchar(255);

ALTER TABLE agents ADD COLUMN max_concurrent_projects integer DEFAULT 1;

ALTER TABLE agents ADD COLUMN project_capacity_percentage integer DEFAULT 100;

ALTER TABLE agents ADD COLUMN last_project_assignment timestamp;

ALTER TABLE agents ADD COLUMN total_projects_completed integer DEFAULT 0;

-- Added unchecked, then checked while writers go on.
ALTER TABLE agents ADD CONSTRAINT agents_max_concurrent_projects_check
    CHECK (max_concurrent_projects > 0) NOT VALID;

ALTER TABLE agents VALIDATE CONSTRAINT agents_max_concurrent_projects_check;

ALTER TABLE agents ADD CONSTRAINT agents_project_capacity_percentage_check
    CHECK (project_capacity_percentage > 0 AND project_capacity_percentage <= 100) NOT VALID;

ALTER TABLE agents VALIDATE CONSTRAINT agents_project_capacity_percentage_check;

COMMENT ON COLUMN agents.last_project_assignment IS 'UTC';

CREATE INDEX CONCURRENTLY idx_agent_current_project ON agents (current_project_id)
    WHERE current_project_id IS NOT NULL;

CREATE INDEX CONCURRENTLY idx_agent_project_capacity ON agents (project_capacity_percentage, status)
    WHERE status IN ('idle', 'busy');
