-- The expression of the index, to the letter: another one does not find it.
SELECT id, name
FROM project_management_projects
WHERE to_tsvector('english', coalesce(name, '') || ' ' || left(coalesce(description, ''), 100000)) @@ plainto_tsquery('english', :words)
ORDER BY created_at DESC
LIMIT 20;
