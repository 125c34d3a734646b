-- Migration: immediate
-- Description: Both features are off

-- Check: both flags read false
SELECT 'system_config.key = ' || flag.key, coalesce(c.value::text, 'no row'), 'false'
FROM (VALUES ('feature.short_id_enabled'), ('feature.multi_project_enabled')) AS flag (key)
LEFT JOIN system_config c ON c.key = flag.key
WHERE (c.value = 'false') IS NOT TRUE;
