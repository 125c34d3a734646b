-- Migration: 002_search_optimization_indexes
-- Description: Indexes for text search, filters and agent workload
-- Risk Level: LOW (indexes only, built concurrently)
-- Expected duration: under a minute at 300,000 tasks; the text index takes most of it
-- Locks: SHARE UPDATE EXCLUSIVE; reads and writes go on

-- Text search. coalesce: NULL || text is NULL and would hide the row. left: a tsvector over 1 MB is an error, which
-- would be the application's INSERT failing. Queries must use the same expression.
CREATE INDEX CONCURRENTLY idx_project_name_search ON project_management_projects
    USING gin (to_tsvector('english', coalesce(name, '') || ' ' || left(coalesce(description, ''), 100000)));

CREATE INDEX CONCURRENTLY idx_task_name_search ON project_management_tasks
    USING gin (to_tsvector('english', coalesce(title, '') || ' ' || left(coalesce(description, ''), 100000)));

-- Status and priority.
CREATE INDEX CONCURRENTLY idx_project_status_created ON project_management_projects (status, created_at DESC);

CREATE INDEX CONCURRENTLY idx_task_priority_status
    ON project_management_tasks (priority, kanban_state, created_at DESC);

-- Agent workload.
CREATE INDEX CONCURRENTLY idx_agent_status_type ON agents (status, agent_type) WHERE status IN ('idle', 'busy');
