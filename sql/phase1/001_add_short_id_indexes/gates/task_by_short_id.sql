SELECT * FROM project_management_tasks WHERE short_id = :short_id;
