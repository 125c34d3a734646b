-- Migration: 009_database_optimization.sql
-- Description: Optimize database settings for multi-project workload
-- Risk Level: MEDIUM (configuration changes)

BEGIN;

-- Update table statistics for better query planning
ANALYZE project_management_projects;
ANALYZE project_management_epics;
ANALYZE project_management_prds;
ANALYZE project_management_tasks;
ANALYZE agents;
ANALYZE agent_tmux_sessions;
ANALYZE project_resource_allocations;
ANALYZE cross_project_dependencies;

-- Add table partitioning for large session logs (if needed)
-- Note: This would be implemented based on data volume assessment

-- Create materialized view for project dashboard queries
CREATE MATERIALIZED VIEW IF NOT EXISTS project_dashboard_summary AS
SELECT 
    p.id as project_id,
    p.short_id as project_short_id,
    p.name as project_name,
    p.status as project_status,
    COUNT(DISTINCT e.id) as epic_count,
    COUNT(DISTINCT t.id) as task_count,
    COUNT(DISTINCT t.id) FILTER (WHERE t.kanban_state = 'completed') as completed_tasks,
    COUNT(DISTINCT a.id) as assigned_agents,
    AVG(t.complexity_score) as avg_complexity,
    p.updated_at as last_updated
FROM project_management_projects p
LEFT JOIN project_management_epics e ON e.project_id = p.id
LEFT JOIN project_management_tasks t ON t.project_id = p.id
LEFT JOIN agents a ON a.current_project_id = p.id
WHERE p.status != 'archived'
GROUP BY p.id, p.short_id, p.name, p.status, p.updated_at;

-- Create index on materialized view
CREATE UNIQUE INDEX IF NOT EXISTS idx_project_dashboard_project_id 
    ON project_dashboard_summary(project_id);

CREATE INDEX IF NOT EXISTS idx_project_dashboard_status 
    ON project_dashboard_summary(project_status, last_updated DESC);

-- Refresh schedule for materialized view (would be handled by application)
-- REFRESH MATERIALIZED VIEW CONCURRENTLY project_dashboard_summary;

COMMIT;
