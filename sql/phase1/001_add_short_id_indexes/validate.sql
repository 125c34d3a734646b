-- Migration: 001_add_short_id_indexes
-- Description: Each index by its exact name: there, on its table, valid

-- Check: every index is there and valid
SELECT name,
       CASE WHEN i.indexrelid IS NULL THEN 'no such index'
            WHEN i.indrelid <> to_regclass('public.' || on_table) THEN 'on ' || i.indrelid::regclass
            ELSE 'not valid' END,
       'a valid index on ' || on_table
FROM (VALUES
      ('idx_project_short_id', 'project_management_projects'),
      ('idx_epic_short_id', 'project_management_epics'),
      ('idx_prd_short_id', 'project_management_prds'),
      ('idx_task_short_id', 'project_management_tasks'),
      ('idx_agent_short_id', 'agents'),
      ('idx_epic_project_id', 'project_management_epics'),
      ('idx_prd_epic_id', 'project_management_prds'),
      ('idx_task_prd_id', 'project_management_tasks'),
      ('idx_task_project_id', 'project_management_tasks'),
      ('idx_task_status_project', 'project_management_tasks'),
      ('idx_task_assigned_agent', 'project_management_tasks')
     ) AS expected (name, on_table)
LEFT JOIN pg_index i ON i.indexrelid = to_regclass('public.' || name)
WHERE (i.indrelid = to_regclass('public.' || on_table) AND i.indisvalid AND i.indisready) IS NOT TRUE;
