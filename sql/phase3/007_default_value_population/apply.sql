-- Migration: 007_default_value_population
-- Description: Project limits of agents by their type; complexity and estimate of tasks by theirs
-- Risk Level: LOW (data updates in small batches; rows the application has written stay as they are)
-- Expected duration: about a minute at 300,000 tasks; grows with the table
-- Locks: row locks, a batch at a time

-- The columns came with defaults, so nothing is NULL: a row that nobody has written since holds all of them. Where the
-- default is the sensible value (no assignments, full capacity, no dependencies, ...) there is nothing to write.

-- Step: agent_project_limits
-- Backfill: by id
-- New rows: left
UPDATE agents AS t
SET max_concurrent_projects = CASE WHEN t.agent_type = 'meta_agent' THEN 5 ELSE 3 END
WHERE t.agent_type IN ('meta_agent', 'senior_developer', 'architect')
  AND t.project_assignments = '[]'
  AND t.max_concurrent_projects = 1
  AND t.project_capacity_percentage = 100
  AND t.total_projects_completed = 0;

-- The estimate goes by the new score, 8 and more is 480 minutes, 6 is 240, 4 is 120; 60 is for less, which no type has.
-- Step: task_complexity_and_estimates
-- Backfill: by id
-- New rows: left
UPDATE project_management_tasks AS t
SET complexity_score = CASE
        WHEN t.task_type IN ('architecture', 'research') THEN 8
        WHEN t.task_type IN ('feature_development', 'refactoring') THEN 6
        WHEN t.task_type IN ('bug_fix', 'testing') THEN 4
        ELSE 5
    END,
    estimated_duration_minutes = CASE
        WHEN t.task_type IN ('architecture', 'research') THEN 480
        WHEN t.task_type IN ('feature_development', 'refactoring') THEN 240
        ELSE 120
    END
WHERE t.agent_assignment_history = '[]'
  AND t.delegation_metadata = '{}'
  AND t.tmux_session_info = '{}'
  AND t.complexity_score = 5
  AND t.estimated_duration_minutes IS NULL
  AND t.depends_on_tasks = '{}'
  AND t.blocks_tasks = '{}';
