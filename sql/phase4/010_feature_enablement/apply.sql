-- Migration: 010_feature_enablement
-- Description: Switch the features on, as the last step of all
-- Risk Level: MEDIUM (the application starts to use short IDs and several projects per agent)
-- Expected duration: seconds
-- Locks: row locks on system_config
-- Only when: enable_features

-- An application that has a system_config with these two columns goes on using its own.
-- Done when: SELECT to_regclass('public.system_config') IS NOT NULL
CREATE TABLE IF NOT EXISTS system_config (
    key text CONSTRAINT system_config_pkey PRIMARY KEY,
    value text NOT NULL
);

-- No ON CONFLICT, because an existing table need not have a unique key.
-- Step: feature.short_id_enabled
-- Done when: SELECT bool_and(value = 'true') IS TRUE FROM system_config WHERE key = 'feature.short_id_enabled'
WITH updated AS (
    UPDATE system_config SET value = 'true' WHERE key = 'feature.short_id_enabled' RETURNING key
)
INSERT INTO system_config (key, value)
SELECT 'feature.short_id_enabled', 'true'
WHERE NOT EXISTS (SELECT FROM updated);

-- Step: feature.multi_project_enabled
-- Done when: SELECT bool_and(value = 'true') IS TRUE FROM system_config WHERE key = 'feature.multi_project_enabled'
WITH updated AS (
    UPDATE system_config SET value = 'true' WHERE key = 'feature.multi_project_enabled' RETURNING key
)
INSERT INTO system_config (key, value)
SELECT 'feature.multi_project_enabled', 'true'
WHERE NOT EXISTS (SELECT FROM updated);
