-- The expression of the index, to the letter: another one does not find it.
SELECT id, title
FROM project_management_tasks
WHERE to_tsvector('english', coalesce(title, '') || ' ' || left(coalesce(description, ''), 100000)) @@ plainto_tsquery('english', :words)
ORDER BY created_at DESC
LIMIT 20;
