SELECT * FROM project_management_projects WHERE short_id = :short_id;
