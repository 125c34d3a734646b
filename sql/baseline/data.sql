-- Agent Hive's data before phase 1: demo and tests only. Deterministic: every value comes from the seed and a row
-- number. The loader says how much, and may pin the day that the timestamps count back from:
--
--     SET baseline.scale = '1';            1,000 projects, 10,000 epics, 30,000 PRDs, 300,000 tasks, 500 agents
--     SET baseline.seed = '1';             an integer
--     SET baseline.today = '2026-01-31';   optional; the current date where unset
--
-- Skewed as life is: a tenth of the projects holds more than half of the tasks, most tasks are done or in the backlog,
-- about 3 % of the rows have a short ID from earlier times, and a few of those codes are not in the registry.

-- ---- helpers, gone with the session --------------------------------------------------------------------------------
-- Simple enough to be inlined, which is what makes them fast: each marked as its expression is, each argument cheap.

CREATE FUNCTION pg_temp.id_of(kind text, i bigint) RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT md5(current_setting('baseline.seed') || '/' || kind || '/' || i)::uuid
$$;

-- 0 <= draw < 1; `salt` tells apart the draws made for one row.
CREATE FUNCTION pg_temp.draw(i bigint, salt integer) RETURNS double precision LANGUAGE sql STABLE AS $$
    SELECT (hashint8extended(i, current_setting('baseline.seed')::bigint * 1000 + salt) & 1073741823)
           / 1073741824.0::float8
$$;

CREATE FUNCTION pg_temp.pick(choices text[], at double precision) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT choices[1 + (at * cardinality(choices))::integer % cardinality(choices)]
$$;

CREATE FUNCTION pg_temp.day() RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT coalesce(nullif(current_setting('baseline.today', true), ''), current_date::text)::timestamptz
$$;

CREATE FUNCTION pg_temp.symbol(n bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT substr('23456789ABCDEFGHJKMNPQRSTVWXYZ', 1 + (n % 30)::integer, 1)
$$;

-- The codes of earlier times, in the five manners of five earlier programs: every 33rd row has one.
CREATE FUNCTION pg_temp.old_code(prefix text, word text, i bigint) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN i % 33 <> 7 THEN NULL
        WHEN i / 33 % 5 = 0 THEN prefix || '-OLD' || i / 33
        WHEN i / 33 % 5 = 1 THEN word || '-' || lpad(i::text, greatest(5, length(i::text)), '0')
        WHEN i / 33 % 5 = 2 THEN lower(prefix) || '_' || i
        WHEN i / 33 % 5 = 3 THEN prefix || i
        ELSE prefix || '-' || pg_temp.symbol(i / 33 * 7919 / 27000) || pg_temp.symbol(i / 33 * 7919 / 900)
             || pg_temp.symbol(i / 33 * 7919 / 30) || pg_temp.symbol(i / 33 * 7919)   -- the form the rollout will draw
    END
$$;

CREATE TEMPORARY TABLE size AS
SELECT projects, projects * 10 AS epics, projects * 30 AS prds, projects * 300 AS tasks, projects AS sessions, agents
FROM (SELECT greatest(1, round(1000 * current_setting('baseline.scale')::numeric))::bigint AS projects,
             greatest(4, round(500 * current_setting('baseline.scale')::numeric))::bigint AS agents) AS counts;

CREATE TEMPORARY TABLE words AS
SELECT ARRAY['Fix', 'Add', 'Remove', 'Review', 'Document', 'Speed up', 'Test', 'Refactor', 'Investigate', 'Automate',
             'Überprüfe', 'Réparer', '修正', 'Исправить'] AS verbs,
       ARRAY['login form', 'billing export', 'search index', 'agent scheduler', 'webhook retries', 'session cleanup',
             'dashboard filter', 'audit log', 'cache invalidation', 'Größenprüfung', 'naïve résumé parser', 'タスク一覧',
             'mobile layout 📱', 'rate limiter', 'image upload', 'permission model', 'deployment pipeline',
             'message queue'] AS things,
       ARRAY['Users report that it fails when two requests arrive at once.',
             'It has to work for a project with ten thousand tasks too.',
             'The steps are in the linked document; please keep the old behaviour.',
             'See also the discussion with the infrastructure team – decision pending.',
             'Acceptance: a test that fails today and passes afterwards.',
             'Nur nach Rücksprache mit dem Betrieb ausrollen.',
             'Affected since the last release; a workaround is known.',
             'Estimated with the architect; the risk is in the migration of stored data.',
             '再現手順は添付を参照してください。',
             'Customers on the free plan are not affected 🎉.',
             'Check the timeouts, the retries and what the logs say about them.',
             'Keep it small.'] AS sentences;

-- ---- rows ----------------------------------------------------------------------------------------------------------

INSERT INTO project_management_projects (id, short_id, name, description, status, created_at, updated_at)
SELECT pg_temp.id_of('project', i),
       pg_temp.old_code('PRJ', 'PROJ', i),
       CASE WHEN i % 97 <> 50 THEN initcap(pg_temp.pick(things, pg_temp.draw(i, 1))) || ' ' || i END,
       CASE WHEN i % 10 <> 9 THEN pg_temp.pick(sentences, pg_temp.draw(i, 2)) || ' '
            || pg_temp.pick(sentences, pg_temp.draw(i, 3)) END,
       CASE WHEN i % 61 <> 60 THEN
           pg_temp.pick('{active,active,active,active,planning,on_hold,completed,completed,archived}',
                        pg_temp.draw(i, 4))
       END,
       pg_temp.day() - pg_temp.draw(i, 5) * interval '700 days',
       pg_temp.day() - pg_temp.draw(i, 5) * pg_temp.draw(i, 6) * interval '700 days'
FROM size, words, generate_series(0, projects - 1) AS i;

INSERT INTO project_management_epics (id, short_id, project_id, name, status, kanban_state, created_at)
SELECT pg_temp.id_of('epic', i),
       pg_temp.old_code('EPC', 'EPIC', i),
       pg_temp.id_of('project', i % projects),
       pg_temp.pick(verbs, pg_temp.draw(i, 11)) || ' ' || pg_temp.pick(things, pg_temp.draw(i, 12)),
       CASE WHEN i % 61 <> 60 THEN pg_temp.pick('{planning,active,active,completed}', pg_temp.draw(i, 13)) END,
       pg_temp.pick('{backlog,backlog,ready,in_progress,review,done,done,done,blocked,cancelled}', pg_temp.draw(i, 14)),
       pg_temp.day() - pg_temp.draw(i, 15) * interval '600 days'
FROM size, words, generate_series(0, epics - 1) AS i;

INSERT INTO project_management_prds (id, short_id, epic_id, title, status, kanban_state, created_at)
SELECT pg_temp.id_of('prd', i),
       pg_temp.old_code('PRD', 'PRD', i),
       pg_temp.id_of('epic', i % epics),
       pg_temp.pick(verbs, pg_temp.draw(i, 21)) || ' ' || pg_temp.pick(things, pg_temp.draw(i, 22)),
       CASE WHEN i % 61 <> 60 THEN pg_temp.pick('{draft,approved,approved,implemented}', pg_temp.draw(i, 23)) END,
       pg_temp.pick('{backlog,backlog,ready,in_progress,review,done,done,done,blocked,cancelled}', pg_temp.draw(i, 24)),
       pg_temp.day() - pg_temp.draw(i, 25) * interval '500 days'
FROM size, words, generate_series(0, prds - 1) AS i;

INSERT INTO agents (id, short_id, name, agent_type, status, created_at)
SELECT pg_temp.id_of('agent', i),
       pg_temp.old_code('AGT', 'AGENT', i),
       'agent-' || i,
       CASE WHEN i % 4 = 0 THEN 'meta_agent'
            ELSE pg_temp.pick('{senior_developer,architect,developer,developer,developer,qa_engineer,devops}',
                              pg_temp.draw(i, 31))
       END,
       CASE WHEN i % 61 <> 60 THEN
           pg_temp.pick('{idle,idle,idle,busy,busy,sleeping,error,offline}', pg_temp.draw(i, 32))
       END,
       pg_temp.day() - pg_temp.draw(i, 33) * interval '700 days'
FROM size, generate_series(0, agents - 1) AS i;

-- A task's PRD belongs to its project: PRD n hangs under epic n % epics, and that under project n % projects.
-- Checking 900,000 foreign keys row by row takes longer than all the rest; added afterwards, each is one join.
ALTER TABLE project_management_tasks
    DROP CONSTRAINT project_management_tasks_project_id_fkey,
    DROP CONSTRAINT project_management_tasks_prd_id_fkey,
    DROP CONSTRAINT project_management_tasks_assigned_agent_id_fkey;

INSERT INTO project_management_tasks (id, short_id, project_id, prd_id, title, description, task_type, kanban_state,
                                      priority, assigned_agent_id, created_at, updated_at)
SELECT pg_temp.id_of('task', i),
       pg_temp.old_code('TSK', 'TASK', i),
       pg_temp.id_of('project', project),
       CASE WHEN a < 0.9 THEN pg_temp.id_of('prd', project + projects * floor(pg_temp.draw(i, 42) * 30)::bigint) END,
       CASE WHEN i % 997 <> 500 THEN pg_temp.pick(verbs, a) || ' ' || pg_temp.pick(things, b) || ' (#' || i || ')' END,
       CASE WHEN i % 300 = 3 THEN
                repeat(pg_temp.pick(sentences, c) || ' ' || pg_temp.pick(things, a) || E'.\n', 10 + (b * 190)::integer)
            WHEN i % 10 < 7 THEN pg_temp.pick(sentences, c) || ' ' || pg_temp.pick(sentences, a) END,
       CASE WHEN i % 50 <> 49 THEN
           pg_temp.pick('{feature_development,feature_development,feature_development,bug_fix,bug_fix,testing,'
                        'refactoring,architecture,research,documentation}', b)
       END,
       CASE WHEN d < 0.55 THEN 'done' WHEN d < 0.83 THEN 'backlog' WHEN d < 0.87 THEN 'ready'
            WHEN d < 0.91 THEN 'in_progress' WHEN d < 0.94 THEN 'review' WHEN d < 0.97 THEN 'cancelled'
            ELSE 'blocked' END,
       CASE WHEN i % 200 <> 199 THEN 1 + (c * 997)::integer % 10 END,
       CASE WHEN d < 0.55 OR d >= 0.87 THEN pg_temp.id_of('agent', floor(a * b * agents)::bigint) END,
       pg_temp.day() - d * interval '400 days',
       pg_temp.day() - d * c * interval '400 days'
FROM (SELECT *, pg_temp.draw(i, 43) AS a, pg_temp.draw(i, 44) AS b, pg_temp.draw(i, 45) AS c,
             pg_temp.draw(i, 46) AS d,
             floor(projects * power(pg_temp.draw(i, 41), 4))::bigint AS project
      FROM size, words, generate_series(0, tasks - 1) AS i OFFSET 0) AS task;   -- OFFSET 0: each draw once, not per use

ALTER TABLE project_management_tasks
    ADD CONSTRAINT project_management_tasks_project_id_fkey
        FOREIGN KEY (project_id) REFERENCES project_management_projects (id) ON DELETE CASCADE,
    ADD CONSTRAINT project_management_tasks_prd_id_fkey
        FOREIGN KEY (prd_id) REFERENCES project_management_prds (id) ON DELETE SET NULL,
    ADD CONSTRAINT project_management_tasks_assigned_agent_id_fkey
        FOREIGN KEY (assigned_agent_id) REFERENCES agents (id) ON DELETE SET NULL;

INSERT INTO agent_sessions (id, agent_id, status, context, started_at, last_activity, ended_at)
SELECT pg_temp.id_of('session', i),
       pg_temp.id_of('agent', i % agents),
       CASE WHEN i % 3 = 0 THEN 'ended' ELSE 'active' END,
       jsonb_build_object('host', 'hive-' || i % 12, 'tokens', floor(pg_temp.draw(i, 51) * 100000)),
       pg_temp.day() - (1 + pg_temp.draw(i, 52)) * interval '10 days',
       pg_temp.day() - pg_temp.draw(i, 52) * interval '10 days',
       CASE WHEN i % 3 = 0 THEN pg_temp.day() - pg_temp.draw(i, 52) * interval '9 days' END
FROM size, generate_series(0, sessions - 1) AS i;

INSERT INTO project_index (id, project_id, path, language, content_hash, size_bytes, indexed_at)
SELECT pg_temp.id_of('index', i),
       pg_temp.id_of('project', floor(projects * power(pg_temp.draw(i, 61), 3))::bigint),
       'src/module_' || i % 40 || '/file_' || i || pg_temp.pick('{.py,.ts,.sql,.md}', pg_temp.draw(i, 62)),
       nullif(pg_temp.pick('{python,typescript,sql,""}', pg_temp.draw(i, 62)), ''),
       md5('a' || i) || md5('b' || i),
       floor(pg_temp.draw(i, 63) * 40000)::bigint,
       pg_temp.day() - pg_temp.draw(i, 64) * interval '60 days'
FROM size, generate_series(0, projects * 5 - 1) AS i;

-- Most of the old codes are registered.
INSERT INTO short_id_registry (short_id, entity_type, entity_id, created_at)
SELECT short_id, entity_type, id, created_at
FROM (SELECT short_id, 'project' AS entity_type, id, created_at FROM project_management_projects
      UNION ALL SELECT short_id, 'epic', id, created_at FROM project_management_epics
      UNION ALL SELECT short_id, 'prd', id, created_at FROM project_management_prds
      UNION ALL SELECT short_id, 'task', id, created_at FROM project_management_tasks
      UNION ALL SELECT short_id, 'agent', id, created_at FROM agents) AS entity
WHERE short_id IS NOT NULL AND left(md5(short_id), 1) <> '7';

DROP TABLE size, words;

ANALYZE project_management_projects;
ANALYZE project_management_epics;
ANALYZE project_management_prds;
ANALYZE project_management_tasks;
ANALYZE agents;
ANALYZE agent_sessions;
ANALYZE short_id_registry;
ANALYZE project_index;
