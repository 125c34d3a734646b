-- Migration: 006_short_id_backfill
-- Description: A short ID for every project, epic, PRD, task and agent, the present rows and the new ones
-- Risk Level: LOW (data updates in small batches; present codes stay as they are)
-- Expected duration: about two minutes at 300,000 tasks; grows with the tables
-- Locks: row locks, a batch at a time; SHARE ROW EXCLUSIVE and ACCESS EXCLUSIVE for milliseconds

-- The length of a code follows the stored row count, which has to be there.
ANALYZE project_management_projects;

ANALYZE project_management_epics;

ANALYZE project_management_prds;

ANALYZE project_management_tasks;

ANALYZE agents;

-- A code such as PRJ-A7B2: the prefix and `size` symbols of an alphabet of 30 that nobody misreads (no 0, 1, I, L,
-- O, U). The last twelve hex digits of a version 4 UUID are 48 random bits, cryptographically strong and built in.
-- Taking remainders favours some codes over others by one part in 2^48 / 30^size, which is 1 in 390,000 at six symbols
-- and 1 in 430 at eight; beyond nine, which no table reaches, the further symbols are not random.
CREATE FUNCTION generate_short_id(prefix text, size integer) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    alphabet CONSTANT text := '23456789ABCDEFGHJKMNPQRSTVWXYZ';
    rest bigint := ('x' || right(gen_random_uuid()::text, 12))::bit(48)::bigint;
    code text := prefix || '-';
BEGIN
    FOR symbol IN 1..size LOOP
        code := code || substr(alphabet, 1 + (rest % 30)::integer, 1);
        rest := rest / 30;
    END LOOP;
    RETURN code;
END
$$;

-- Gives a row its code and registers it, in the row's own transaction. The registry's primary key is the one guard
-- over all entities: two writers with the same code wait for each other there, and one of them draws again (or, with a
-- code of its own choice, is refused). SECURITY DEFINER: an application need not be allowed to write the registry.
--
-- As many symbols as make a draw collide with less than 1 in 100 at twice the table's stored row count, at least four:
-- 30^size >= 100 * 2 * rows. Never count(*). A stored count that lags behind costs redraws, which grow the code.
--
-- A code stays registered when its row gets another or goes, because links and commit messages go on naming it.
CREATE FUNCTION assign_short_id() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    prefix CONSTANT text := TG_ARGV[0];
    entity CONSTANT text := TG_ARGV[1];
BEGIN
    -- An application that read the row before it had a code writes NULL back: the row keeps its code.
    IF TG_OP = 'UPDATE' AND NEW.short_id IS NULL THEN
        NEW.short_id := OLD.short_id;
    END IF;

    IF NEW.short_id IS NULL THEN
        FOR attempt IN 0..29 LOOP
            INSERT INTO public.short_id_registry (short_id, entity_type, entity_id)
            SELECT public.generate_short_id(
                       prefix,
                       greatest(4, ceil(ln(100 * 2 * greatest(reltuples, 1)::float8) / ln(30::float8)))::integer
                           + attempt / 3),
                   entity, NEW.id
            FROM pg_class WHERE oid = TG_RELID
            ON CONFLICT (short_id) DO NOTHING
            RETURNING short_id INTO NEW.short_id;
            IF FOUND THEN
                RETURN NEW;
            END IF;
        END LOOP;
        RAISE unique_violation USING
            MESSAGE = format('no free short ID for a new row of %s after 30 draws', TG_TABLE_NAME);
    END IF;

    INSERT INTO public.short_id_registry (short_id, entity_type, entity_id)
    VALUES (NEW.short_id, entity, NEW.id)
    ON CONFLICT (short_id) DO NOTHING;
    IF NOT FOUND AND NOT EXISTS (
        SELECT FROM public.short_id_registry r
        WHERE r.short_id = NEW.short_id AND r.entity_type = entity AND r.entity_id = NEW.id
    ) THEN
        RAISE unique_violation USING
            MESSAGE = format('short ID %L is taken: it is registered for another entity', NEW.short_id),
            DETAIL = format('Wanted by %s %s; registered for %s.', entity, NEW.id,
                            (SELECT r.entity_type || ' ' || r.entity_id FROM public.short_id_registry r
                             WHERE r.short_id = NEW.short_id)),
            HINT = 'Give another code, or none to have one drawn.',
            SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME, COLUMN = 'short_id';
    END IF;
    RETURN NEW;
END
$$;

-- Before the backfill, so that no row slips in behind it.
CREATE TRIGGER assign_project_short_id BEFORE INSERT OR UPDATE OF short_id ON project_management_projects
    FOR EACH ROW EXECUTE FUNCTION assign_short_id('PRJ', 'project');

CREATE TRIGGER assign_epic_short_id BEFORE INSERT OR UPDATE OF short_id ON project_management_epics
    FOR EACH ROW EXECUTE FUNCTION assign_short_id('EPC', 'epic');

CREATE TRIGGER assign_prd_short_id BEFORE INSERT OR UPDATE OF short_id ON project_management_prds
    FOR EACH ROW EXECUTE FUNCTION assign_short_id('PRD', 'prd');

CREATE TRIGGER assign_task_short_id BEFORE INSERT OR UPDATE OF short_id ON project_management_tasks
    FOR EACH ROW EXECUTE FUNCTION assign_short_id('TSK', 'task');

CREATE TRIGGER assign_agent_short_id BEFORE INSERT OR UPDATE OF short_id ON agents
    FOR EACH ROW EXECUTE FUNCTION assign_short_id('AGT', 'agent');

-- First the codes that are there and not registered, of all tables: a draw must not take one of them. The codes stay
-- as they are; the trigger registers them.

-- Step: register_projects
-- Backfill: by id
-- New rows: trigger assign_project_short_id
UPDATE project_management_projects AS t SET short_id = t.short_id
WHERE t.short_id IS NOT NULL AND NOT EXISTS (SELECT FROM short_id_registry r WHERE r.short_id = t.short_id);

-- Step: register_epics
-- Backfill: by id
-- New rows: trigger assign_epic_short_id
UPDATE project_management_epics AS t SET short_id = t.short_id
WHERE t.short_id IS NOT NULL AND NOT EXISTS (SELECT FROM short_id_registry r WHERE r.short_id = t.short_id);

-- Step: register_prds
-- Backfill: by id
-- New rows: trigger assign_prd_short_id
UPDATE project_management_prds AS t SET short_id = t.short_id
WHERE t.short_id IS NOT NULL AND NOT EXISTS (SELECT FROM short_id_registry r WHERE r.short_id = t.short_id);

-- Step: register_tasks
-- Backfill: by id
-- New rows: trigger assign_task_short_id
UPDATE project_management_tasks AS t SET short_id = t.short_id
WHERE t.short_id IS NOT NULL AND NOT EXISTS (SELECT FROM short_id_registry r WHERE r.short_id = t.short_id);

-- Step: register_agents
-- Backfill: by id
-- New rows: trigger assign_agent_short_id
UPDATE agents AS t SET short_id = t.short_id
WHERE t.short_id IS NOT NULL AND NOT EXISTS (SELECT FROM short_id_registry r WHERE r.short_id = t.short_id);

-- Then the rows without one, for which the trigger draws.

-- Step: backfill_projects
-- Backfill: by id
-- New rows: trigger assign_project_short_id
UPDATE project_management_projects AS t SET short_id = t.short_id
WHERE t.short_id IS NULL;

-- Step: backfill_epics
-- Backfill: by id
-- New rows: trigger assign_epic_short_id
UPDATE project_management_epics AS t SET short_id = t.short_id
WHERE t.short_id IS NULL;

-- Step: backfill_prds
-- Backfill: by id
-- New rows: trigger assign_prd_short_id
UPDATE project_management_prds AS t SET short_id = t.short_id
WHERE t.short_id IS NULL;

-- Step: backfill_tasks
-- Backfill: by id
-- New rows: trigger assign_task_short_id
UPDATE project_management_tasks AS t SET short_id = t.short_id
WHERE t.short_id IS NULL;

-- Step: backfill_agents
-- Backfill: by id
-- New rows: trigger assign_agent_short_id
UPDATE agents AS t SET short_id = t.short_id
WHERE t.short_id IS NULL;

-- NOT NULL by way of a CHECK that is validated while writers go on; SET NOT NULL then need not scan under its lock.
ALTER TABLE project_management_projects ADD CONSTRAINT project_management_projects_short_id_present
    CHECK (short_id IS NOT NULL) NOT VALID;

ALTER TABLE project_management_projects VALIDATE CONSTRAINT project_management_projects_short_id_present;

ALTER TABLE project_management_projects ALTER COLUMN short_id SET NOT NULL;

ALTER TABLE project_management_projects DROP CONSTRAINT project_management_projects_short_id_present;

ALTER TABLE project_management_epics ADD CONSTRAINT project_management_epics_short_id_present
    CHECK (short_id IS NOT NULL) NOT VALID;

ALTER TABLE project_management_epics VALIDATE CONSTRAINT project_management_epics_short_id_present;

ALTER TABLE project_management_epics ALTER COLUMN short_id SET NOT NULL;

ALTER TABLE project_management_epics DROP CONSTRAINT project_management_epics_short_id_present;

ALTER TABLE project_management_prds ADD CONSTRAINT project_management_prds_short_id_present
    CHECK (short_id IS NOT NULL) NOT VALID;

ALTER TABLE project_management_prds VALIDATE CONSTRAINT project_management_prds_short_id_present;

ALTER TABLE project_management_prds ALTER COLUMN short_id SET NOT NULL;

ALTER TABLE project_management_prds DROP CONSTRAINT project_management_prds_short_id_present;

ALTER TABLE project_management_tasks ADD CONSTRAINT project_management_tasks_short_id_present
    CHECK (short_id IS NOT NULL) NOT VALID;

ALTER TABLE project_management_tasks VALIDATE CONSTRAINT project_management_tasks_short_id_present;

ALTER TABLE project_management_tasks ALTER COLUMN short_id SET NOT NULL;

ALTER TABLE project_management_tasks DROP CONSTRAINT project_management_tasks_short_id_present;

ALTER TABLE agents ADD CONSTRAINT agents_short_id_present
    CHECK (short_id IS NOT NULL) NOT VALID;

ALTER TABLE agents VALIDATE CONSTRAINT agents_short_id_present;

ALTER TABLE agents ALTER COLUMN short_id SET NOT NULL;

ALTER TABLE agents DROP CONSTRAINT agents_short_id_present;
