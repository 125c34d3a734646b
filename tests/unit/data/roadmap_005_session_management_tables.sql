-- Migration: 005_session_management_tables.sql
-- Description: Create comprehensive session tracking
-- Risk Level: LOW (new tables only)

BEGIN;

-- Enhanced agent sessions table
CREATE TABLE IF NOT EXISTS agent_tmux_sessions (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    
    -- Session identification
    session_name VARCHAR(255) NOT NULL UNIQUE,
    tmux_session_id VARCHAR(255) NOT NULL,
    
    -- Relationships
    agent_id UUID REFERENCES agents(id) ON DELETE CASCADE,
    project_id UUID REFERENCES project_management_projects(id) ON DELETE CASCADE,
    
    -- Session configuration
    workspace_path TEXT NOT NULL,
    environment_vars JSONB DEFAULT '{}',
    
    -- Status tracking
    status VARCHAR(50) DEFAULT 'active' CHECK (status IN ('creating', 'active', 'idle', 'busy', 'sleeping', 'error', 'terminated')),
    
    -- Performance metrics
    cpu_usage_percent DECIMAL(5,2) DEFAULT 0.0,
    memory_usage_mb INTEGER DEFAULT 0,
    disk_usage_mb INTEGER DEFAULT 0,
    
    -- Timing
    created_at TIMESTAMP DEFAULT NOW(),
    last_activity TIMESTAMP DEFAULT NOW(),
    terminated_at TIMESTAMP,
    
    -- Metadata
    session_metadata JSONB DEFAULT '{}',
    performance_history JSONB DEFAULT '[]'
);

-- Project resource allocation tracking
CREATE TABLE IF NOT EXISTS project_resource_allocations (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    
    -- Resource allocation
    project_id UUID REFERENCES project_management_projects(id) ON DELETE CASCADE,
    agent_id UUID REFERENCES agents(id) ON DELETE CASCADE,
    
    -- Allocation details
    capacity_percentage INTEGER NOT NULL CHECK (capacity_percentage > 0 AND capacity_percentage <= 100),
    allocated_at TIMESTAMP DEFAULT NOW(),
    deallocated_at TIMESTAMP,
    
    -- Status
    status VARCHAR(50) DEFAULT 'active' CHECK (status IN ('active', 'paused', 'completed', 'cancelled')),
    
    -- Performance tracking
    tasks_completed INTEGER DEFAULT 0,
    average_task_duration_minutes DECIMAL(10,2),
    efficiency_score DECIMAL(5,2),
    
    -- Metadata
    allocation_metadata JSONB DEFAULT '{}',
    
    UNIQUE(project_id, agent_id, allocated_at)
);

-- Cross-project coordination tracking
CREATE TABLE IF NOT EXISTS cross_project_dependencies (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    
    -- Dependency relationship
    source_project_id UUID REFERENCES project_management_projects(id) ON DELETE CASCADE,
    target_project_id UUID REFERENCES project_management_projects(id) ON DELETE CASCADE,
    
    -- Dependency details
    dependency_type VARCHAR(50) NOT NULL CHECK (dependency_type IN ('blocks', 'requires', 'shares_resources', 'sequential')),
    description TEXT,
    
    -- Status
    status VARCHAR(50) DEFAULT 'active' CHECK (status IN ('active', 'resolved', 'cancelled')),
    
    -- Timing
    created_at TIMESTAMP DEFAULT NOW(),
    resolved_at TIMESTAMP,
    
    -- Metadata
    dependency_metadata JSONB DEFAULT '{}',
    
    CHECK (source_project_id != target_project_id)
);

-- Create indexes for efficient querying
CREATE INDEX IF NOT EXISTS idx_tmux_sessions_agent 
    ON agent_tmux_sessions(agent_id, status);

CREATE INDEX IF NOT EXISTS idx_tmux_sessions_project 
    ON agent_tmux_sessions(project_id, status);

CREATE INDEX IF NOT EXISTS idx_resource_allocations_project 
    ON project_resource_allocations(project_id, status);

CREATE INDEX IF NOT EXISTS idx_resource_allocations_agent 
    ON project_resource_allocations(agent_id, status);

CREATE INDEX IF NOT EXISTS idx_cross_project_deps_source 
    ON cross_project_dependencies(source_project_id, status);

CREATE INDEX IF NOT EXISTS idx_cross_project_deps_target 
    ON cross_project_dependencies(target_project_id, status);

COMMIT;
