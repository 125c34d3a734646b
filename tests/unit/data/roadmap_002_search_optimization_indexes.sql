-- Migration: 002_search_optimization_indexes.sql  
-- Description: Optimize search and filtering operations
-- Risk Level: LOW (read-only index creation)

BEGIN;

-- Text Search Indexes
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_project_name_search 
    ON project_management_projects 
    USING gin(to_tsvector('english', name || ' ' || coalesce(description, '')));

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_task_name_search 
    ON project_management_tasks 
    USING gin(to_tsvector('english', title || ' ' || coalesce(description, '')));

-- Status and Priority Indexes
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_project_status_created 
    ON project_management_projects(status, created_at DESC);

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_task_priority_status 
    ON project_management_tasks(priority, kanban_state, created_at DESC);

-- Agent Workload Indexes
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_agent_status_type 
    ON agents(status, agent_type) 
    WHERE status IN ('idle', 'busy');

COMMIT;
