SELECT s.session_name, s.agent_id
FROM agent_tmux_sessions s
WHERE s.project_id = :project
  AND s.status IN ('active', 'busy');
