-- Migration: immediate
-- Description: Emergency: switch the features off, whatever else is going on
-- Risk Level: LOW (the application returns to what it did before the rollout)
-- Expected duration: under a second
-- Locks: row locks on system_config
-- Holds: 010_feature_enablement/feature.short_id_enabled, 010_feature_enablement/feature.multi_project_enabled

-- Phase 4 makes the table; an emergency before that must not fail on its absence.
-- Done when: SELECT to_regclass('public.system_config') IS NOT NULL
CREATE TABLE IF NOT EXISTS system_config (
    key text CONSTRAINT system_config_pkey PRIMARY KEY,
    value text NOT NULL
);

-- Step: feature.short_id_enabled.off
-- Done when: SELECT bool_and(value = 'false') IS TRUE FROM system_config WHERE key = 'feature.short_id_enabled'
WITH updated AS (
    UPDATE system_config SET value = 'false' WHERE key = 'feature.short_id_enabled' RETURNING key
)
INSERT INTO system_config (key, value)
SELECT 'feature.short_id_enabled', 'false'
WHERE NOT EXISTS (SELECT FROM updated);

-- Step: feature.multi_project_enabled.off
-- Done when: SELECT bool_and(value = 'false') IS TRUE FROM system_config WHERE key = 'feature.multi_project_enabled'
WITH updated AS (
    UPDATE system_config SET value = 'false' WHERE key = 'feature.multi_project_enabled' RETURNING key
)
INSERT INTO system_config (key, value)
SELECT 'feature.multi_project_enabled', 'false'
WHERE NOT EXISTS (SELECT FROM updated);
