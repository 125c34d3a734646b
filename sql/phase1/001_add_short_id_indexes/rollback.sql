-- Migration: 001_add_short_id_indexes
-- Description: Take the short ID and hierarchy indexes away

DROP INDEX CONCURRENTLY idx_task_assigned_agent;

DROP INDEX CONCURRENTLY idx_task_status_project;

DROP INDEX CONCURRENTLY idx_task_project_id;

DROP INDEX CONCURRENTLY idx_task_prd_id;

DROP INDEX CONCURRENTLY idx_prd_epic_id;

DROP INDEX CONCURRENTLY idx_epic_project_id;

DROP INDEX CONCURRENTLY idx_agent_short_id;

DROP INDEX CONCURRENTLY idx_task_short_id;

DROP INDEX CONCURRENTLY idx_prd_short_id;

DROP INDEX CONCURRENTLY idx_epic_short_id;

DROP INDEX CONCURRENTLY idx_project_short_id;
