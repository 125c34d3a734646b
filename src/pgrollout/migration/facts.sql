-- Asks one database, in one transaction that is always rolled back, for everything a plan needs to know.
-- The request (steps, relations) comes as JSON in the setting pgrollout.request.
--
-- A definition is compared as PostgreSQL itself prints it: our statement runs on an empty temporary twin of its table
-- (CREATE TEMP TABLE … LIKE takes ACCESS SHARE on the real one), and both are printed by the same function below.

SET LOCAL check_function_bodies = off;

CREATE FUNCTION pg_temp.pgrollout_describe(target jsonb, twin boolean, schema text) RETURNS jsonb
LANGUAGE plpgsql AS $describe$
DECLARE
    kind text := target ->> 'kind';
    name text := target ->> 'name';
    plain_name text := coalesce(nullif(split_part(name, '.', 2), ''), name);
    owner_schema text := coalesce(nullif(split_part(target ->> 'table', '.', 1), ''), schema);
    relation_name text := split_part(target ->> 'table', '.', 2);
    namespace oid := CASE WHEN twin THEN pg_my_temp_schema() ELSE to_regnamespace(quote_ident(owner_schema)) END;
    -- Every schema name that a printed definition may carry in front of an object of ours or of its twin.
    qualifier text := format('(pg_temp_\d+|pg_temp|%s)\.', quote_ident(owner_schema));
    relation oid;
    answer jsonb;
BEGIN
    SELECT c.oid INTO relation FROM pg_class AS c
    WHERE c.relnamespace = namespace
      AND c.relname = CASE WHEN kind = 'view' AND twin THEN 'pgrollout_view_twin' ELSE relation_name END;
    IF kind = 'index' THEN
        SELECT jsonb_build_object(
                   'definition', regexp_replace(pg_get_indexdef(c.oid), qualifier, '', 'g'),
                   'valid', i.indisvalid AND i.indisready,
                   'table', (SELECT n.nspname || '.' || t.relname FROM pg_class AS t
                             JOIN pg_namespace AS n ON n.oid = t.relnamespace WHERE t.oid = i.indrelid),
                   'building', (SELECT min(p.pid) FROM pg_stat_progress_create_index AS p WHERE p.index_relid = c.oid),
                   'builder', (SELECT min(a.application_name) FROM pg_stat_progress_create_index AS p
                               JOIN pg_stat_activity AS a ON a.pid = p.pid WHERE p.index_relid = c.oid))
          INTO answer
        FROM pg_class AS c JOIN pg_index AS i ON i.indexrelid = c.oid
        WHERE c.relnamespace = namespace AND c.relname = plain_name;
    ELSIF kind IN ('column', 'not_null', 'default') THEN
        SELECT jsonb_build_object(
                   'type', format_type(a.atttypid, a.atttypmod),
                   'not_null', a.attnotnull,
                   'default', coalesce(regexp_replace(pg_get_expr(d.adbin, d.adrelid), qualifier, '', 'g'), ''),
                   'generated', a.attgenerated::text || a.attidentity::text,
                   'constraints', coalesce((
                       SELECT jsonb_object_agg(k.conname,
                                  regexp_replace(replace(pg_get_constraintdef(k.oid), ' NOT VALID', ''), qualifier, '', 'g'))
                       FROM pg_constraint AS k
                       WHERE k.conrelid = relation AND a.attnum = ANY (k.conkey) AND k.contype IN ('c', 'f', 'p', 'u')),
                       '{}'))
          INTO answer
        FROM pg_attribute AS a
        LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = relation AND a.attname = name AND NOT a.attisdropped;
    ELSIF kind IN ('constraint', 'validation') THEN
        SELECT jsonb_build_object(
                   'definition', regexp_replace(replace(pg_get_constraintdef(k.oid), ' NOT VALID', ''), qualifier, '', 'g'),
                   'valid', k.convalidated)
          INTO answer
        FROM pg_constraint AS k WHERE k.conrelid = relation AND k.conname = name;
    ELSIF kind = 'table' THEN
        IF relation IS NOT NULL THEN
            SELECT jsonb_build_object(
                       'columns', (
                           SELECT jsonb_object_agg(a.attname, concat_ws(' ', format_type(a.atttypid, a.atttypmod),
                                      CASE WHEN a.attnotnull THEN 'NOT NULL' END,
                                      'DEFAULT ' || regexp_replace(pg_get_expr(d.adbin, d.adrelid), qualifier, '', 'g')))
                           FROM pg_attribute AS a
                           LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                           WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped),
                       'constraints', coalesce((
                           SELECT jsonb_object_agg(k.conname, regexp_replace(pg_get_constraintdef(k.oid), qualifier, '', 'g'))
                           FROM pg_constraint AS k WHERE k.conrelid = relation AND k.contype IN ('c', 'f', 'p', 'u')), '{}'))
              INTO answer;
        END IF;
    ELSIF kind = 'view' THEN
        IF relation IS NOT NULL THEN
            answer := jsonb_build_object('definition', regexp_replace(pg_get_viewdef(relation), qualifier, '', 'g'));
        END IF;
    ELSIF kind = 'trigger' THEN
        SELECT jsonb_build_object('definition', regexp_replace(pg_get_triggerdef(t.oid), qualifier, '', 'g'),
                                  'enabled', t.tgenabled <> 'D')
          INTO answer
        FROM pg_trigger AS t WHERE t.tgrelid = relation AND t.tgname = name AND NOT t.tgisinternal;
    ELSIF kind = 'function' THEN
        SELECT jsonb_build_object('definition',
                   string_agg(regexp_replace(pg_get_functiondef(p.oid), qualifier, '', 'g'), E'\n' ORDER BY p.oid))
          INTO answer
        FROM pg_proc AS p
        WHERE p.pronamespace = namespace AND p.proname = plain_name AND p.prokind IN ('f', 'p')
        HAVING count(*) > 0;
    ELSIF kind = 'comment' THEN
        SELECT jsonb_build_object('text', coalesce(
                   CASE WHEN name = '' THEN obj_description(relation, 'pg_class')
                        ELSE col_description(relation, (SELECT a.attnum FROM pg_attribute AS a
                                                        WHERE a.attrelid = relation AND a.attname = name)) END, ''))
          INTO answer WHERE relation IS NOT NULL;
    ELSIF kind = 'schema' THEN
        SELECT jsonb_build_object('definition', n.nspname) INTO answer FROM pg_namespace AS n WHERE n.nspname = name;
    ELSIF kind = 'extension' THEN
        SELECT jsonb_build_object('definition', e.extname) INTO answer FROM pg_extension AS e WHERE e.extname = name;
    END IF;
    RETURN answer;
END
$describe$;

CREATE TEMP TABLE pgrollout_facts (topic text, key text, value jsonb) ON COMMIT DROP;

DO $facts$
DECLARE
    request jsonb := current_setting('pgrollout.request')::jsonb;
    schema text := request ->> 'schema';
    path text := quote_ident(schema);
    step jsonb;
    target jsonb;
    relation_name text;
    actual jsonb;
    twin jsonb;
    error text;
    done boolean;
    constraint_row record;
BEGIN
    -- Sizes, and what a drop of the relation locks besides: dropping a foreign key takes its other side.
    INSERT INTO pgrollout_facts
    SELECT 'relation', r.name, jsonb_build_object(
               'rows', greatest(c.reltuples, 0)::bigint,
               'bytes', pg_total_relation_size(c.oid),
               'references', coalesce((SELECT jsonb_agg(DISTINCT n.nspname || '.' || f.relname)
                                       FROM pg_constraint AS k
                                       JOIN pg_class AS f ON f.oid = k.confrelid
                                       JOIN pg_namespace AS n ON n.oid = f.relnamespace
                                       WHERE k.conrelid = c.oid AND k.contype = 'f' AND k.confrelid <> c.oid), '[]'))
    FROM jsonb_array_elements_text(request -> 'relations') AS r (name)
    JOIN pg_class AS c ON c.relname = split_part(r.name, '.', 2)
                      AND c.relnamespace = to_regnamespace(quote_ident(split_part(r.name, '.', 1)));

    FOR step IN SELECT * FROM jsonb_array_elements(request -> 'steps') LOOP
        target := step -> 'object';
        actual := NULL;
        twin := NULL;
        error := '';
        done := NULL;
        PERFORM set_config('search_path', path, true);
        IF target <> 'null' THEN
            actual := pg_temp.pgrollout_describe(target, false, schema);
        END IF;
        IF step ->> 'done_when' <> '' THEN
            BEGIN
                EXECUTE step ->> 'done_when' INTO done;
            EXCEPTION
                WHEN undefined_table OR undefined_column OR undefined_function THEN done := false;
                WHEN OTHERS THEN error := SQLERRM;
            END;
        ELSIF actual IS NOT NULL AND step ->> 'probe' <> '' THEN
            BEGIN
                PERFORM set_config('search_path', 'pg_temp, ' || path, true);
                FOR relation_name IN
                    SELECT * FROM jsonb_array_elements_text(step -> 'twins')
                LOOP
                    CONTINUE WHEN EXISTS (SELECT FROM pg_class AS c WHERE c.relnamespace = pg_my_temp_schema()
                                                                    AND c.relname = split_part(relation_name, '.', 2));
                    EXECUTE format('CREATE TEMP TABLE %I (LIKE %I.%I INCLUDING DEFAULTS INCLUDING GENERATED '
                                   'INCLUDING IDENTITY INCLUDING CONSTRAINTS)', split_part(relation_name, '.', 2),
                                   split_part(relation_name, '.', 1), split_part(relation_name, '.', 2));
                    FOR constraint_row IN
                        SELECT k.conname, pg_get_constraintdef(k.oid) AS definition FROM pg_constraint AS k
                        WHERE k.contype IN ('p', 'u')
                          AND k.conrelid = format('%I.%I', split_part(relation_name, '.', 1),
                                                  split_part(relation_name, '.', 2))::regclass
                    LOOP
                        EXECUTE format('ALTER TABLE pg_temp.%I ADD CONSTRAINT %I %s', split_part(relation_name, '.', 2),
                                       constraint_row.conname, constraint_row.definition);
                    END LOOP;
                END LOOP;
                EXECUTE CASE target ->> 'kind'
                    WHEN 'index' THEN format('DROP INDEX IF EXISTS pg_temp.%I', target ->> 'name')
                    WHEN 'column' THEN format('ALTER TABLE pg_temp.%I DROP COLUMN IF EXISTS %I CASCADE',
                                              split_part(target ->> 'table', '.', 2), target ->> 'name')
                    WHEN 'constraint' THEN format('ALTER TABLE pg_temp.%I DROP CONSTRAINT IF EXISTS %I CASCADE',
                                                  split_part(target ->> 'table', '.', 2), target ->> 'name')
                    WHEN 'trigger' THEN format('DROP TRIGGER IF EXISTS %I ON pg_temp.%I', target ->> 'name',
                                               split_part(target ->> 'table', '.', 2))
                    WHEN 'table' THEN format('DROP TABLE IF EXISTS pg_temp.%I CASCADE',
                                             split_part(target ->> 'table', '.', 2))
                    WHEN 'view' THEN 'DROP VIEW IF EXISTS pg_temp.pgrollout_view_twin'
                    ELSE 'SELECT'
                END;
                EXECUTE step ->> 'probe';
                PERFORM set_config('search_path', path, true);
                twin := pg_temp.pgrollout_describe(target, true, schema);
            EXCEPTION WHEN OTHERS THEN
                error := SQLERRM;
            END;
        END IF;
        INSERT INTO pgrollout_facts VALUES ('step', step ->> 'id',
            jsonb_build_object('actual', actual, 'wanted', twin, 'error', error, 'done', done));
    END LOOP;

    IF to_regclass('pgrollout.step') IS NOT NULL THEN
        INSERT INTO pgrollout_facts SELECT 'ledger', 'steps', coalesce(jsonb_object_agg(s.step_id, to_jsonb(s)), '{}')
        FROM pgrollout.step AS s;
        INSERT INTO pgrollout_facts SELECT 'ledger', 'open', to_jsonb(EXISTS (SELECT FROM pgrollout.run WHERE ended_at IS NULL));
        INSERT INTO pgrollout_facts SELECT 'ledger', 'migrations', coalesce(jsonb_object_agg(m.migration, to_jsonb(m)), '{}')
        FROM pgrollout.migration AS m;
    END IF;
END
$facts$;

SELECT coalesce(jsonb_object_agg(topic, found), '{}')::text AS facts
FROM (SELECT topic, jsonb_object_agg(key, value) AS found FROM pgrollout_facts GROUP BY topic) AS by_topic;
