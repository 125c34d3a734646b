-- Migration: 008_advanced_performance_indexes
-- Description: Indexes for the multi-project queries
-- Risk Level: LOW (indexes only, built concurrently)
-- Expected duration: seconds at 300,000 tasks; grows with the tables
-- Locks: SHARE UPDATE EXCLUSIVE; reads and writes go on

-- Common query patterns.
CREATE INDEX CONCURRENTLY idx_task_project_agent_status
    ON project_management_tasks (project_id, assigned_agent_id, kanban_state);

-- Beside idx_agent_project_capacity of 003, which has two columns.
CREATE INDEX CONCURRENTLY idx_agent_project_capacity_status
    ON agents (current_project_id, project_capacity_percentage, status)
    WHERE status IN ('idle', 'busy');

-- Active records. The resource query counts the open tasks, one in twelve, from the index alone.
CREATE INDEX CONCURRENTLY idx_task_open_agent ON project_management_tasks (assigned_agent_id)
    WHERE kanban_state IN ('ready', 'in_progress');

CREATE INDEX CONCURRENTLY idx_active_project_sessions ON agent_tmux_sessions (project_id, agent_id)
    WHERE status IN ('active', 'busy');

CREATE INDEX CONCURRENTLY idx_active_resource_allocations
    ON project_resource_allocations (project_id, capacity_percentage)
    WHERE status = 'active';

-- JSON.
CREATE INDEX CONCURRENTLY idx_task_complexity_metadata ON project_management_tasks USING gin (delegation_metadata)
    WHERE delegation_metadata <> '{}'::jsonb;

CREATE INDEX CONCURRENTLY idx_agent_project_assignments ON agents USING gin (project_assignments)
    WHERE project_assignments <> '[]'::jsonb;

-- Time.
CREATE INDEX CONCURRENTLY idx_task_duration_performance
    ON project_management_tasks (actual_duration_minutes, estimated_duration_minutes)
    WHERE actual_duration_minutes IS NOT NULL AND estimated_duration_minutes IS NOT NULL;

CREATE INDEX CONCURRENTLY idx_session_performance_history
    ON agent_tmux_sessions (last_activity DESC, cpu_usage_percent, memory_usage_mb)
    WHERE status = 'active';
