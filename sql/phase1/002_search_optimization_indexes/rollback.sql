-- Migration: 002_search_optimization_indexes
-- Description: Take the search and filter indexes away

DROP INDEX CONCURRENTLY idx_agent_status_type;

DROP INDEX CONCURRENTLY idx_task_priority_status;

DROP INDEX CONCURRENTLY idx_project_status_created;

DROP INDEX CONCURRENTLY idx_task_name_search;

DROP INDEX CONCURRENTLY idx_project_name_search;
