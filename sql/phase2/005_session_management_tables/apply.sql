-- Migration: 005_session_management_tables
-- Description: Tmux sessions, resource allocations and dependencies between projects
-- Risk Level: LOW (new tables; their foreign keys lock agents and projects for milliseconds)
-- Expected duration: seconds
-- Locks: SHARE ROW EXCLUSIVE on agents and project_management_projects, for milliseconds

-- Timestamps without time zone hold UTC, whatever the writer's TimeZone: now() alone would store local time.
CREATE TABLE agent_tmux_sessions (
    id uuid CONSTRAINT agent_tmux_sessions_pkey PRIMARY KEY DEFAULT gen_random_uuid(),

    -- Session identification
    session_name varchar(255) NOT NULL CONSTRAINT agent_tmux_sessions_session_name_key UNIQUE,
    tmux_session_id varchar(255) NOT NULL,

    -- Relationships
    agent_id uuid CONSTRAINT agent_tmux_sessions_agent_id_fkey REFERENCES agents (id) ON DELETE CASCADE,
    project_id uuid CONSTRAINT agent_tmux_sessions_project_id_fkey
        REFERENCES project_management_projects (id) ON DELETE CASCADE,

    -- Session configuration
    workspace_path text NOT NULL,
    environment_vars jsonb DEFAULT '{}',

    -- Status tracking
    status varchar(50) DEFAULT 'active' CONSTRAINT agent_tmux_sessions_status_check
        CHECK (status IN ('creating', 'active', 'idle', 'busy', 'sleeping', 'error', 'terminated')),

    -- Performance metrics
    cpu_usage_percent decimal(5, 2) DEFAULT 0.0,
    memory_usage_mb integer DEFAULT 0,
    disk_usage_mb integer DEFAULT 0,

    -- Timing
    created_at timestamp DEFAULT (now() AT TIME ZONE 'utc'),
    last_activity timestamp DEFAULT (now() AT TIME ZONE 'utc'),
    terminated_at timestamp,

    -- Metadata
    session_metadata jsonb DEFAULT '{}',
    performance_history jsonb DEFAULT '[]'
);

CREATE TABLE project_resource_allocations (
    id uuid CONSTRAINT project_resource_allocations_pkey PRIMARY KEY DEFAULT gen_random_uuid(),

    -- Resource allocation
    project_id uuid CONSTRAINT project_resource_allocations_project_id_fkey
        REFERENCES project_management_projects (id) ON DELETE CASCADE,
    agent_id uuid CONSTRAINT project_resource_allocations_agent_id_fkey REFERENCES agents (id) ON DELETE CASCADE,

    -- Allocation details
    capacity_percentage integer NOT NULL CONSTRAINT project_resource_allocations_capacity_percentage_check
        CHECK (capacity_percentage > 0 AND capacity_percentage <= 100),
    allocated_at timestamp DEFAULT (now() AT TIME ZONE 'utc'),
    deallocated_at timestamp,

    -- Status
    status varchar(50) DEFAULT 'active' CONSTRAINT project_resource_allocations_status_check
        CHECK (status IN ('active', 'paused', 'completed', 'cancelled')),

    -- Performance tracking
    tasks_completed integer DEFAULT 0,
    average_task_duration_minutes decimal(10, 2),
    efficiency_score decimal(5, 2),

    -- Metadata
    allocation_metadata jsonb DEFAULT '{}',

    CONSTRAINT project_resource_allocations_project_id_agent_id_allocated__key
        UNIQUE (project_id, agent_id, allocated_at)
);

CREATE TABLE cross_project_dependencies (
    id uuid CONSTRAINT cross_project_dependencies_pkey PRIMARY KEY DEFAULT gen_random_uuid(),

    -- Dependency relationship
    source_project_id uuid CONSTRAINT cross_project_dependencies_source_project_id_fkey
        REFERENCES project_management_projects (id) ON DELETE CASCADE,
    target_project_id uuid CONSTRAINT cross_project_dependencies_target_project_id_fkey
        REFERENCES project_management_projects (id) ON DELETE CASCADE,

    -- Dependency details
    dependency_type varchar(50) NOT NULL CONSTRAINT cross_project_dependencies_dependency_type_check
        CHECK (dependency_type IN ('blocks', 'requires', 'shares_resources', 'sequential')),
    description text,

    -- Status
    status varchar(50) DEFAULT 'active' CONSTRAINT cross_project_dependencies_status_check
        CHECK (status IN ('active', 'resolved', 'cancelled')),

    -- Timing
    created_at timestamp DEFAULT (now() AT TIME ZONE 'utc'),
    resolved_at timestamp,

    -- Metadata
    dependency_metadata jsonb DEFAULT '{}',

    CONSTRAINT cross_project_dependencies_check CHECK (source_project_id <> target_project_id)
);

COMMENT ON COLUMN agent_tmux_sessions.created_at IS 'UTC';

COMMENT ON COLUMN agent_tmux_sessions.last_activity IS 'UTC';

COMMENT ON COLUMN agent_tmux_sessions.terminated_at IS 'UTC';

COMMENT ON COLUMN project_resource_allocations.allocated_at IS 'UTC';

COMMENT ON COLUMN project_resource_allocations.deallocated_at IS 'UTC';

COMMENT ON COLUMN cross_project_dependencies.created_at IS 'UTC';

COMMENT ON COLUMN cross_project_dependencies.resolved_at IS 'UTC';

CREATE INDEX idx_tmux_sessions_agent ON agent_tmux_sessions (agent_id, status);

CREATE INDEX idx_tmux_sessions_project ON agent_tmux_sessions (project_id, status);

CREATE INDEX idx_resource_allocations_project ON project_resource_allocations (project_id, status);

CREATE INDEX idx_resource_allocations_agent ON project_resource_allocations (agent_id, status);

CREATE INDEX idx_cross_project_deps_source ON cross_project_dependencies (source_project_id, status);

CREATE INDEX idx_cross_project_deps_target ON cross_project_dependencies (target_project_id, status);
