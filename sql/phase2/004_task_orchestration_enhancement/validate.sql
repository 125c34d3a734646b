-- Migration: 004_task_orchestration_enhancement
-- Description: Bad values are refused, and the rows present hold good ones

-- Check: complexity scores are in range
SELECT 'project_management_tasks.id = ' || id, 'complexity_score ' || complexity_score, '1 to 10'
FROM project_management_tasks
WHERE complexity_score NOT BETWEEN 1 AND 10;

-- Step: a_complexity_of_0_is_refused
-- Refuses: check_violation
INSERT INTO project_management_tasks (project_id, title, complexity_score)
VALUES (gen_random_uuid(), 'validation', 0);

-- Step: a_complexity_of_11_is_refused
-- Refuses: check_violation
INSERT INTO project_management_tasks (project_id, title, complexity_score)
VALUES (gen_random_uuid(), 'validation', 11);
