-- Migration: 001_add_short_id_indexes.sql
-- Description: Add performance indexes for short ID lookups
-- Risk Level: LOW (read-only index creation)

BEGIN;

-- Project Management Indexes
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_project_short_id 
    ON project_management_projects(short_id) 
    WHERE short_id IS NOT NULL;

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_epic_short_id 
    ON project_management_epics(short_id) 
    WHERE short_id IS NOT NULL;

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_prd_short_id 
    ON project_management_prds(short_id) 
    WHERE short_id IS NOT NULL;

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_task_short_id 
    ON project_management_tasks(short_id) 
    WHERE short_id IS NOT NULL;

-- Agent System Indexes
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_agent_short_id 
    ON agents(short_id) 
    WHERE short_id IS NOT NULL;

-- Project Hierarchy Queries
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_epic_project_id 
    ON project_management_epics(project_id);

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_prd_epic_id 
    ON project_management_prds(epic_id);

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_task_prd_id 
    ON project_management_tasks(prd_id);

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_task_project_id 
    ON project_management_tasks(project_id);

-- Performance Optimization Indexes
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_task_status_project 
    ON project_management_tasks(project_id, kanban_state) 
    WHERE kanban_state IN ('backlog', 'ready', 'in_progress');

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_task_assigned_agent 
    ON project_management_tasks(assigned_agent_id) 
    WHERE assigned_agent_id IS NOT NULL;

COMMIT;
