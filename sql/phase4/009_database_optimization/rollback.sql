-- Migration: 009_database_optimization
-- Description: Take the dashboard and the metrics away; statistics stay, they are always right to have

DROP VIEW project_performance_metrics;

-- Its indexes go with it.
DROP MATERIALIZED VIEW project_dashboard_summary;
