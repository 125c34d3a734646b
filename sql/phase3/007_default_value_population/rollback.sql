-- Migration: 007_default_value_population
-- Description: Rows get their former values back; what the application wrote since stays

-- Restore: task_complexity_and_estimates
SELECT FROM restored;

-- Restore: agent_project_limits
SELECT FROM restored;
