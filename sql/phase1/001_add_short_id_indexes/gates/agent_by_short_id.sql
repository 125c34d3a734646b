SELECT * FROM agents WHERE short_id = :short_id;
