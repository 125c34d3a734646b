-- Migration: 006_short_id_backfill
-- Description: Every row has a short ID, unique over all entities and registered

-- Check: every row has a short ID
SELECT on_table, rows || ' rows without a short ID', 'none'
FROM (
    SELECT 'project_management_projects', count(*) FROM project_management_projects WHERE short_id IS NULL
    UNION ALL SELECT 'project_management_epics', count(*) FROM project_management_epics WHERE short_id IS NULL
    UNION ALL SELECT 'project_management_prds', count(*) FROM project_management_prds WHERE short_id IS NULL
    UNION ALL SELECT 'project_management_tasks', count(*) FROM project_management_tasks WHERE short_id IS NULL
    UNION ALL SELECT 'agents', count(*) FROM agents WHERE short_id IS NULL
) AS missing (on_table, rows)
WHERE rows > 0;

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

-- Check: every short ID is registered
WITH held AS (
    SELECT 'project' AS entity_type, short_id, id FROM project_management_projects WHERE short_id IS NOT NULL
    UNION ALL SELECT 'epic', short_id, id FROM project_management_epics WHERE short_id IS NOT NULL
    UNION ALL SELECT 'prd', short_id, id FROM project_management_prds WHERE short_id IS NOT NULL
    UNION ALL SELECT 'task', short_id, id FROM project_management_tasks WHERE short_id IS NOT NULL
    UNION ALL SELECT 'agent', short_id, id FROM agents WHERE short_id IS NOT NULL
)
SELECT h.entity_type || ' ' || h.id, 'short_id ' || h.short_id || ' is not in short_id_registry', 'registered'
FROM held h
WHERE NOT EXISTS (SELECT FROM short_id_registry r WHERE r.short_id = h.short_id);

-- Check: codes are drawn from the alphabet
SELECT 'generate_short_id', code, 'PRJ- and six of 23456789ABCDEFGHJKMNPQRSTVWXYZ'
FROM (SELECT generate_short_id('PRJ', 6) AS code FROM generate_series(1, 100)) AS drawn
WHERE code !~ '^PRJ-[23456789ABCDEFGHJKMNPQRSTVWXYZ]{6}$';

-- Step: the_short_id_of_another_entity_is_refused
-- Refuses: unique_violation
INSERT INTO project_management_projects (short_id, name) VALUES ('PRJ-validation', 'one'), ('PRJ-validation', 'two');
