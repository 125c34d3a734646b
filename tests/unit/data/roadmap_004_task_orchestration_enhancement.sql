-- Migration: 004_task_orchestration_enhancement.sql
-- Description: Add orchestration tracking to tasks
-- Risk Level: MEDIUM (schema changes)

BEGIN;

-- Add orchestration tracking to tasks
ALTER TABLE project_management_tasks 
ADD COLUMN IF NOT EXISTS orchestrator_session_id UUID;

ALTER TABLE project_management_tasks 
ADD COLUMN IF NOT EXISTS agent_assignment_history JSONB DEFAULT '[]';

ALTER TABLE project_management_tasks 
ADD COLUMN IF NOT EXISTS delegation_metadata JSONB DEFAULT '{}';

ALTER TABLE project_management_tasks 
ADD COLUMN IF NOT EXISTS tmux_session_info JSONB DEFAULT '{}';

-- Add performance tracking
ALTER TABLE project_management_tasks 
ADD COLUMN IF NOT EXISTS estimated_duration_minutes INTEGER;

ALTER TABLE project_management_tasks 
ADD COLUMN IF NOT EXISTS actual_duration_minutes INTEGER;

ALTER TABLE project_management_tasks 
ADD COLUMN IF NOT EXISTS complexity_score INTEGER DEFAULT 5 
    CHECK (complexity_score >= 1 AND complexity_score <= 10);

-- Add cross-project dependency tracking
ALTER TABLE project_management_tasks 
ADD COLUMN IF NOT EXISTS depends_on_tasks UUID[] DEFAULT '{}';

ALTER TABLE project_management_tasks 
ADD COLUMN IF NOT EXISTS blocks_tasks UUID[] DEFAULT '{}';

-- Create performance indexes
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_task_orchestrator_session 
    ON project_management_tasks(orchestrator_session_id) 
    WHERE orchestrator_session_id IS NOT NULL;

CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_task_complexity_status 
    ON project_management_tasks(complexity_score, kanban_state);

-- GIN index for dependency arrays
CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_task_dependencies 
    ON project_management_tasks USING gin(depends_on_tasks);

COMMIT;
