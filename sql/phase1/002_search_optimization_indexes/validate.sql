-- Migration: 002_search_optimization_indexes
-- Description: Each index by its exact name: there, on its table, valid

-- Check: every index is there and valid
SELECT name,
       CASE WHEN i.indexrelid IS NULL THEN 'no such index'
            WHEN i.indrelid <> to_regclass('public.' || on_table) THEN 'on ' || i.indrelid::regclass
            ELSE 'not valid' END,
       'a valid index on ' || on_table
FROM (VALUES
      ('idx_project_name_search', 'project_management_projects'),
      ('idx_task_name_search', 'project_management_tasks'),
      ('idx_project_status_created', 'project_management_projects'),
      ('idx_task_priority_status', 'project_management_tasks'),
      ('idx_agent_status_type', 'agents')
     ) AS expected (name, on_table)
LEFT JOIN pg_index i ON i.indexrelid = to_regclass('public.' || name)
WHERE (i.indrelid = to_regclass('public.' || on_table) AND i.indisvalid AND i.indisready) IS NOT TRUE;
