-- Migration: 003_agent_project_assignment.sql
-- Description: Add project assignment tracking to agents
-- Risk Level: MEDIUM (schema changes)

BEGIN;

-- Add project assignment columns to agents table
ALTER TABLE agents 
ADD COLUMN IF NOT EXISTS current_project_id UUID 
    REFERENCES project_management_projects(id) ON DELETE SET NULL;

ALTER TABLE agents 
ADD COLUMN IF NOT EXISTS project_assignments JSONB DEFAULT '[]';

ALTER TABLE agents 
ADD COLUMN IF NOT EXISTS tmux_session_id VARCHAR(255);

ALTER TABLE agents 
ADD COLUMN IF NOT EXISTS max_concurrent_projects INTEGER DEFAULT 1 CHECK (max_concurrent_projects > 0);

ALTER TABLE agents 
ADD COLUMN IF NOT EXISTS project_capacity_percentage INTEGER DEFAULT 100 
    CHECK (project_capacity_percentage > 0 AND project_capacity_percentage <= 100);

-- Add metadata tracking
ALTER TABLE agents 
ADD COLUMN IF NOT EXISTS last_project_assignment TIMESTAMP;

ALTER TABLE agents 
ADD COLUMN IF NOT EXISTS total_projects_completed INTEGER DEFAULT 0;

-- Create index for efficient project queries
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_agent_current_project 
    ON agents(current_project_id) 
    WHERE current_project_id IS NOT NULL;

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_agent_project_capacity 
    ON agents(project_capacity_percentage, status) 
    WHERE status IN ('idle', 'busy');

COMMIT;
