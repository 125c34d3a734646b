-- Migration: 010_feature_enablement
-- Description: Both features are on

-- Check: both flags read true
SELECT 'system_config.key = ' || flag.key, coalesce(c.value::text, 'no row'), 'true'
FROM (VALUES ('feature.short_id_enabled'), ('feature.multi_project_enabled')) AS flag (key)
LEFT JOIN system_config c ON c.key = flag.key
WHERE (c.value = 'true') IS NOT TRUE;
