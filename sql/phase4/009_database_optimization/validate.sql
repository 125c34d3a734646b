-- Migration: 009_database_optimization
-- Description: The dashboard can be read and refreshed without blocking readers; the metrics count right

-- Check: the dashboard is filled
SELECT 'project_dashboard_summary', 'not populated', 'populated'
FROM pg_matviews
WHERE schemaname = 'public' AND matviewname = 'project_dashboard_summary' AND NOT ispopulated;

-- Check: the dashboard's counts are possible
SELECT 'project_dashboard_summary.project_id = ' || project_id,
       completed_tasks || ' of ' || task_count || ' tasks completed',
       'at most all of them'
FROM project_dashboard_summary
WHERE completed_tasks > task_count;

-- Check: the metrics count each task once
SELECT 'project_performance_metrics.short_id = ' || coalesce(p.short_id, 'NULL'),
       coalesce(m.total_tasks::text, 'no row'),
       counted.tasks::text
FROM project_management_projects p
CROSS JOIN LATERAL (SELECT count(*) AS tasks FROM project_management_tasks t WHERE t.project_id = p.id) AS counted
LEFT JOIN project_performance_metrics m ON m.short_id = p.short_id
WHERE p.status IS DISTINCT FROM 'archived'
  AND p.created_at > now() - interval '30 days'
  AND m.total_tasks IS DISTINCT FROM counted.tasks;
