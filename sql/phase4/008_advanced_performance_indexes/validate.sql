-- Migration: 008_advanced_performance_indexes
-- Description: Each index by its exact name: there, on its table, valid

-- Check: every index is there and valid
SELECT name,
       CASE WHEN i.indexrelid IS NULL THEN 'no such index'
            WHEN i.indrelid <> to_regclass('public.' || on_table) THEN 'on ' || i.indrelid::regclass
            ELSE 'not valid' END,
       'a valid index on ' || on_table
FROM (VALUES
      ('idx_task_project_agent_status', 'project_management_tasks'),
      ('idx_agent_project_capacity_status', 'agents'),
      ('idx_task_open_agent', 'project_management_tasks'),
      ('idx_active_project_sessions', 'agent_tmux_sessions'),
      ('idx_active_resource_allocations', 'project_resource_allocations'),
      ('idx_task_complexity_metadata', 'project_management_tasks'),
      ('idx_agent_project_assignments', 'agents'),
      ('idx_task_duration_performance', 'project_management_tasks'),
      ('idx_session_performance_history', 'agent_tmux_sessions')
     ) AS expected (name, on_table)
LEFT JOIN pg_index i ON i.indexrelid = to_regclass('public.' || name)
WHERE (i.indrelid = to_regclass('public.' || on_table) AND i.indisvalid AND i.indisready) IS NOT TRUE;
