-- Migration: 010_feature_enablement
-- Description: Switch the features off; system_config goes if this rollout made it

-- Step: feature.multi_project_enabled.off
-- Done when: SELECT bool_and(value = 'false') IS TRUE FROM system_config WHERE key = 'feature.multi_project_enabled'
WITH updated AS (
    UPDATE system_config SET value = 'false' WHERE key = 'feature.multi_project_enabled' RETURNING key
)
INSERT INTO system_config (key, value)
SELECT 'feature.multi_project_enabled', 'false'
WHERE NOT EXISTS (SELECT FROM updated);

-- Step: feature.short_id_enabled.off
-- Done when: SELECT bool_and(value = 'false') IS TRUE FROM system_config WHERE key = 'feature.short_id_enabled'
WITH updated AS (
    UPDATE system_config SET value = 'false' WHERE key = 'feature.short_id_enabled' RETURNING key
)
INSERT INTO system_config (key, value)
SELECT 'feature.short_id_enabled', 'false'
WHERE NOT EXISTS (SELECT FROM updated);

DROP TABLE system_config;
