-- Migration: 004_task_orchestration_enhancement
-- Description: Take the orchestration of tasks away

DROP INDEX CONCURRENTLY idx_task_dependencies;

DROP INDEX CONCURRENTLY idx_task_complexity_status;

DROP INDEX CONCURRENTLY idx_task_orchestrator_session;

-- The constraint goes with its column.
ALTER TABLE project_management_tasks DROP COLUMN blocks_tasks;

ALTER TABLE project_management_tasks DROP COLUMN depends_on_tasks;

ALTER TABLE project_management_tasks DROP COLUMN complexity_score;

ALTER TABLE project_management_tasks DROP COLUMN actual_duration_minutes;

ALTER TABLE project_management_tasks DROP COLUMN estimated_duration_minutes;

ALTER TABLE project_management_tasks DROP COLUMN tmux_session_info;

ALTER TABLE project_management_tasks DROP COLUMN delegation_metadata;

ALTER TABLE project_management_tasks DROP COLUMN agent_assignment_history;

ALTER TABLE project_management_tasks DROP COLUMN orchestrator_session_id;
