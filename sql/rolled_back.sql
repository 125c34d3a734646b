-- Description: What holds after every rollback, whichever phase was taken back; the application's own queries among it

-- Check: every task that is assigned has its agent
SELECT 'project_management_tasks ' || t.id, t.assigned_agent_id, 'an agent'
FROM project_management_tasks t
WHERE t.assigned_agent_id IS NOT NULL AND NOT EXISTS (SELECT FROM agents a WHERE a.id = t.assigned_agent_id);

-- Check: every task has its project
SELECT 'project_management_tasks ' || t.id, t.project_id, 'a project'
FROM project_management_tasks t
WHERE NOT EXISTS (SELECT FROM project_management_projects p WHERE p.id = t.project_id);

-- Check: agents are idle, busy or what else the application knows, or have no status, as ever
SELECT 'agents ' || a.id, a.status, 'idle, busy, sleeping, error or offline'
FROM agents a
WHERE a.status NOT IN ('idle', 'busy', 'sleeping', 'error', 'offline');

-- Check: the application's queries on projects and tasks can be asked
SELECT 'project_management_projects', p.name, 'an id' FROM (SELECT p.id, p.name FROM project_management_projects p LIMIT 5) AS p WHERE p.id IS NULL
UNION ALL
SELECT 'project_management_tasks', t.title, 'an id' FROM (SELECT t.id, t.title FROM project_management_tasks t LIMIT 5) AS t WHERE t.id IS NULL;
