-- Migration: 001_add_short_id_indexes
-- Description: Indexes for short ID lookups and the project hierarchy
-- Risk Level: LOW (indexes only, built concurrently)
-- Expected duration: seconds at 300,000 tasks; grows with the tables
-- Locks: SHARE UPDATE EXCLUSIVE; reads and writes go on

-- Short ID lookups. Not unique: short_id_registry's primary key is the one guard over all entities.
CREATE INDEX CONCURRENTLY idx_project_short_id ON project_management_projects (short_id) WHERE short_id IS NOT NULL;

CREATE INDEX CONCURRENTLY idx_epic_short_id ON project_management_epics (short_id) WHERE short_id IS NOT NULL;

CREATE INDEX CONCURRENTLY idx_prd_short_id ON project_management_prds (short_id) WHERE short_id IS NOT NULL;

CREATE INDEX CONCURRENTLY idx_task_short_id ON project_management_tasks (short_id) WHERE short_id IS NOT NULL;

CREATE INDEX CONCURRENTLY idx_agent_short_id ON agents (short_id) WHERE short_id IS NOT NULL;

-- The project hierarchy.
CREATE INDEX CONCURRENTLY idx_epic_project_id ON project_management_epics (project_id);

CREATE INDEX CONCURRENTLY idx_prd_epic_id ON project_management_prds (epic_id);

CREATE INDEX CONCURRENTLY idx_task_prd_id ON project_management_tasks (prd_id);

CREATE INDEX CONCURRENTLY idx_task_project_id ON project_management_tasks (project_id);

-- Open work. A query finds a partial index only where its predicate is written out, not sent as a parameter.
CREATE INDEX CONCURRENTLY idx_task_status_project ON project_management_tasks (project_id, kanban_state)
    WHERE kanban_state IN ('backlog', 'ready', 'in_progress');

CREATE INDEX CONCURRENTLY idx_task_assigned_agent ON project_management_tasks (assigned_agent_id)
    WHERE assigned_agent_id IS NOT NULL;
