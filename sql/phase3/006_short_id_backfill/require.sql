-- Migration: 006_short_id_backfill
-- Description: Which of two holders keeps a code is for people to decide, before any row is touched

-- Check: no two rows hold the same short ID
WITH held AS (
    SELECT 'project' AS entity_type, short_id, id FROM project_management_projects WHERE short_id IS NOT NULL
    UNION ALL SELECT 'epic', short_id, id FROM project_management_epics WHERE short_id IS NOT NULL
    UNION ALL SELECT 'prd', short_id, id FROM project_management_prds WHERE short_id IS NOT NULL
    UNION ALL SELECT 'task', short_id, id FROM project_management_tasks WHERE short_id IS NOT NULL
    UNION ALL SELECT 'agent', short_id, id FROM agents WHERE short_id IS NOT NULL
)
SELECT 'short_id ' || short_id,
       string_agg(entity_type || ' ' || id, ', ' ORDER BY entity_type, id),
       'one row'
FROM held
GROUP BY short_id
HAVING count(*) > 1;

-- Check: the registry names the row that holds the code
WITH held AS (
    SELECT 'project' AS entity_type, short_id, id FROM project_management_projects WHERE short_id IS NOT NULL
    UNION ALL SELECT 'epic', short_id, id FROM project_management_epics WHERE short_id IS NOT NULL
    UNION ALL SELECT 'prd', short_id, id FROM project_management_prds WHERE short_id IS NOT NULL
    UNION ALL SELECT 'task', short_id, id FROM project_management_tasks WHERE short_id IS NOT NULL
    UNION ALL SELECT 'agent', short_id, id FROM agents WHERE short_id IS NOT NULL
)
SELECT 'short_id ' || r.short_id,
       'registered for ' || r.entity_type || ' ' || r.entity_id,
       h.entity_type || ' ' || h.id
FROM held h
JOIN short_id_registry r USING (short_id)
WHERE (r.entity_type, r.entity_id) <> (h.entity_type, h.id);
