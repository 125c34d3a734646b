-- Migration: 006_short_id_backfill
-- Description: Rows get their former value back; what the application wrote since stays, and stays registered

ALTER TABLE agents ALTER COLUMN short_id DROP NOT NULL;

ALTER TABLE project_management_tasks ALTER COLUMN short_id DROP NOT NULL;

ALTER TABLE project_management_prds ALTER COLUMN short_id DROP NOT NULL;

ALTER TABLE project_management_epics ALTER COLUMN short_id DROP NOT NULL;

ALTER TABLE project_management_projects ALTER COLUMN short_id DROP NOT NULL;

-- Without the trigger a NULL stays NULL.
DROP TRIGGER assign_agent_short_id ON agents;

DROP TRIGGER assign_task_short_id ON project_management_tasks;

DROP TRIGGER assign_prd_short_id ON project_management_prds;

DROP TRIGGER assign_epic_short_id ON project_management_epics;

DROP TRIGGER assign_project_short_id ON project_management_projects;

-- Where a row holds its former value again, the registry forgets what the backfill registered for it.

-- Restore: backfill_agents
DELETE FROM short_id_registry r USING restored x
WHERE r.short_id = x.new ->> 'short_id' AND r.entity_id = (x.key ->> 'id')::uuid;

-- Restore: backfill_tasks
DELETE FROM short_id_registry r USING restored x
WHERE r.short_id = x.new ->> 'short_id' AND r.entity_id = (x.key ->> 'id')::uuid;

-- Restore: backfill_prds
DELETE FROM short_id_registry r USING restored x
WHERE r.short_id = x.new ->> 'short_id' AND r.entity_id = (x.key ->> 'id')::uuid;

-- Restore: backfill_epics
DELETE FROM short_id_registry r USING restored x
WHERE r.short_id = x.new ->> 'short_id' AND r.entity_id = (x.key ->> 'id')::uuid;

-- Restore: backfill_projects
DELETE FROM short_id_registry r USING restored x
WHERE r.short_id = x.new ->> 'short_id' AND r.entity_id = (x.key ->> 'id')::uuid;

-- Restore: register_agents
DELETE FROM short_id_registry r USING restored x
WHERE r.short_id = x.new ->> 'short_id' AND r.entity_id = (x.key ->> 'id')::uuid;

-- Restore: register_tasks
DELETE FROM short_id_registry r USING restored x
WHERE r.short_id = x.new ->> 'short_id' AND r.entity_id = (x.key ->> 'id')::uuid;

-- Restore: register_prds
DELETE FROM short_id_registry r USING restored x
WHERE r.short_id = x.new ->> 'short_id' AND r.entity_id = (x.key ->> 'id')::uuid;

-- Restore: register_epics
DELETE FROM short_id_registry r USING restored x
WHERE r.short_id = x.new ->> 'short_id' AND r.entity_id = (x.key ->> 'id')::uuid;

-- Restore: register_projects
DELETE FROM short_id_registry r USING restored x
WHERE r.short_id = x.new ->> 'short_id' AND r.entity_id = (x.key ->> 'id')::uuid;

DROP FUNCTION assign_short_id();

DROP FUNCTION generate_short_id(text, integer);
