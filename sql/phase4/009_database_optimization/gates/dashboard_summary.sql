SELECT * FROM project_dashboard_summary WHERE project_status = :status ORDER BY last_updated DESC LIMIT 10;
