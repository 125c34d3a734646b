-- Migration: 008_advanced_performance_indexes
-- Description: Take the indexes of the multi-project queries away

DROP INDEX CONCURRENTLY idx_session_performance_history;

DROP INDEX CONCURRENTLY idx_task_duration_performance;

DROP INDEX CONCURRENTLY idx_agent_project_assignments;

DROP INDEX CONCURRENTLY idx_task_complexity_metadata;

DROP INDEX CONCURRENTLY idx_active_resource_allocations;

DROP INDEX CONCURRENTLY idx_active_project_sessions;

DROP INDEX CONCURRENTLY idx_task_open_agent;

DROP INDEX CONCURRENTLY idx_agent_project_capacity_status;

DROP INDEX CONCURRENTLY idx_task_project_agent_status;
