-- Migration: 005_session_management_tables
-- Description: Take the session management tables away, indexes and comments with them

DROP TABLE cross_project_dependencies;

DROP TABLE project_resource_allocations;

DROP TABLE agent_tmux_sessions;
