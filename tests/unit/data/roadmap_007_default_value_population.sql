-- Migration: 007_default_value_population.sql
-- Description: Set sensible defaults for new columns
-- Risk Level: LOW (safe default updates)

BEGIN;

-- Update agent metadata with defaults
UPDATE agents 
SET 
    project_assignments = '[]'::jsonb,
    max_concurrent_projects = CASE 
        WHEN agent_type = 'meta_agent' THEN 5
        WHEN agent_type IN ('senior_developer', 'architect') THEN 3
        ELSE 1
    END,
    project_capacity_percentage = 100,
    total_projects_completed = 0
WHERE project_assignments IS NULL OR max_concurrent_projects IS NULL;

-- Update task metadata with estimates
UPDATE project_management_tasks 
SET 
    agent_assignment_history = '[]'::jsonb,
    delegation_metadata = '{}'::jsonb,
    tmux_session_info = '{}'::jsonb,
    complexity_score = CASE 
        WHEN task_type IN ('architecture', 'research') THEN 8
        WHEN task_type IN ('feature_development', 'refactoring') THEN 6
        WHEN task_type IN ('bug_fix', 'testing') THEN 4
        ELSE 5
    END,
    estimated_duration_minutes = CASE 
        WHEN complexity_score >= 8 THEN 480  -- 8 hours
        WHEN complexity_score >= 6 THEN 240  -- 4 hours  
        WHEN complexity_score >= 4 THEN 120  -- 2 hours
        ELSE 60  -- 1 hour
    END,
    depends_on_tasks = '{}',
    blocks_tasks = '{}'
WHERE agent_assignment_history IS NULL OR delegation_metadata IS NULL;

COMMIT;
