-- The second condition is the index's own: without it the index cannot be used.
SELECT id, title
FROM project_management_tasks
WHERE delegation_metadata @> :metadata
  AND delegation_metadata <> '{}'::jsonb;
