SELECT * FROM project_management_prds WHERE short_id = :short_id;
