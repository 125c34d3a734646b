-- Migration: 004_task_orchestration_enhancement
-- Description: Orchestration, effort and dependencies of tasks
-- Risk Level: MEDIUM (new columns; a prepared SELECT * of the application fails once)
-- Expected duration: seconds at 300,000 tasks; the index builds grow with the table
-- Locks: ACCESS EXCLUSIVE on project_management_tasks, for milliseconds

-- Orchestration.
ALTER TABLE project_management_tasks ADD COLUMN orchestrator_session_id uuid;

ALTER TABLE project_management_tasks ADD COLUMN agent_assignment_history jsonb DEFAULT '[]';

ALTER TABLE project_management_tasks ADD COLUMN delegation_metadata jsonb DEFAULT '{}';

ALTER TABLE project_management_tasks ADD COLUMN tmux_session_info jsonb DEFAULT '{}';

-- Effort.
ALTER TABLE project_management_tasks ADD COLUMN estimated_duration_minutes integer;

ALTER TABLE project_management_tasks ADD COLUMN actual_duration_minutes integer;

ALTER TABLE project_management_tasks ADD COLUMN complexity_score integer DEFAULT 5;

-- Dependencies across projects.
ALTER TABLE project_management_tasks ADD COLUMN depends_on_tasks uuid[] DEFAULT '{}';

ALTER TABLE project_management_tasks ADD COLUMN blocks_tasks uuid[] DEFAULT '{}';

-- Added unchecked, then checked while writers go on.
ALTER TABLE project_management_tasks ADD CONSTRAINT project_management_tasks_complexity_score_check
    CHECK (complexity_score >= 1 AND complexity_score <= 10) NOT VALID;

ALTER TABLE project_management_tasks VALIDATE CONSTRAINT project_management_tasks_complexity_score_check;

CREATE INDEX CONCURRENTLY idx_task_orchestrator_session ON project_management_tasks (orchestrator_session_id)
    WHERE orchestrator_session_id IS NOT NULL;

CREATE INDEX CONCURRENTLY idx_task_complexity_status ON project_management_tasks (complexity_score, kanban_state);

CREATE INDEX CONCURRENTLY idx_task_dependencies ON project_management_tasks USING gin (depends_on_tasks);
