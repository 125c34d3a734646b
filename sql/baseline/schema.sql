-- Agent Hive as it stands before phase 1: demo and tests only. Run as the database's owner in a fresh database;
-- the application role hive_app exists already.
--
-- Only primary and foreign keys here: every other index is the rollout's business.

CREATE TABLE project_management_projects (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    short_id varchar(20),
    name varchar(255),
    description text,
    status varchar(50) DEFAULT 'planning',                 -- planning, active, on_hold, completed, archived
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE project_management_epics (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    short_id varchar(20),
    project_id uuid NOT NULL REFERENCES project_management_projects (id) ON DELETE CASCADE,
    name varchar(255),
    status varchar(50) DEFAULT 'planning',
    -- backlog, ready, in_progress, review, done, blocked, cancelled
    kanban_state varchar(50) NOT NULL DEFAULT 'backlog',
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE project_management_prds (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    short_id varchar(20),
    epic_id uuid NOT NULL REFERENCES project_management_epics (id) ON DELETE CASCADE,
    title varchar(255),
    status varchar(50) DEFAULT 'draft',
    kanban_state varchar(50) NOT NULL DEFAULT 'backlog',
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE agents (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    short_id varchar(20),
    name varchar(255) NOT NULL,
    agent_type varchar(50) NOT NULL,
    status varchar(50) DEFAULT 'idle',                     -- idle, busy, sleeping, error, offline
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE project_management_tasks (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    short_id varchar(20),
    project_id uuid NOT NULL REFERENCES project_management_projects (id) ON DELETE CASCADE,
    prd_id uuid REFERENCES project_management_prds (id) ON DELETE SET NULL,
    title varchar(255),
    description text,
    task_type varchar(50),
    kanban_state varchar(50) NOT NULL DEFAULT 'backlog',
    priority integer DEFAULT 5,
    assigned_agent_id uuid REFERENCES agents (id) ON DELETE SET NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE agent_sessions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    agent_id uuid NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    status varchar(50) NOT NULL DEFAULT 'active',
    context jsonb NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL DEFAULT now(),
    last_activity timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
);

CREATE TABLE short_id_registry (
    short_id varchar(20) PRIMARY KEY,
    entity_type varchar(50) NOT NULL,                      -- project, epic, prd, task, agent
    entity_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE project_index (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    project_id uuid NOT NULL REFERENCES project_management_projects (id) ON DELETE CASCADE,
    path text NOT NULL,
    language varchar(50),
    content_hash char(64) NOT NULL,
    size_bytes bigint NOT NULL DEFAULT 0,
    indexed_at timestamptz NOT NULL DEFAULT now()
);

-- The application reads and writes rows, also in the tables that the rollout makes later, and changes no table.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO hive_app;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO hive_app;
