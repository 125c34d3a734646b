-- Migration: 008_advanced_performance_indexes.sql
-- Description: Create specialized indexes for complex queries
-- Risk Level: LOW (performance enhancement only)

BEGIN;

-- Multi-column indexes for common query patterns
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_task_project_agent_status 
    ON project_management_tasks(project_id, assigned_agent_id, kanban_state);

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_agent_project_capacity 
    ON agents(current_project_id, project_capacity_percentage, status)
    WHERE status IN ('idle', 'busy');

-- Partial indexes for active records
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_active_project_sessions 
    ON agent_tmux_sessions(project_id, agent_id) 
    WHERE status IN ('active', 'busy');

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_active_resource_allocations 
    ON project_resource_allocations(project_id, capacity_percentage)
    WHERE status = 'active';

-- Functional indexes for JSON queries
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_task_complexity_metadata 
    ON project_management_tasks USING gin(delegation_metadata) 
    WHERE delegation_metadata != '{}'::jsonb;

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_agent_project_assignments 
    ON agents USING gin(project_assignments) 
    WHERE project_assignments != '[]'::jsonb;

-- Time-based indexes for performance queries
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_task_duration_performance 
    ON project_management_tasks(actual_duration_minutes, estimated_duration_minutes)
    WHERE actual_duration_minutes IS NOT NULL AND estimated_duration_minutes IS NOT NULL;

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_session_performance_history 
    ON agent_tmux_sessions(last_activity DESC, cpu_usage_percent, memory_usage_mb)
    WHERE status = 'active';

COMMIT;
