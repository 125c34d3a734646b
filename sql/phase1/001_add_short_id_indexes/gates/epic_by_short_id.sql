SELECT * FROM project_management_epics WHERE short_id = :short_id;
