-- Asks one database, in one transaction that is always rolled back, for everything a plan needs to know.
-- The request (steps, relations) comes as JSON in the setting pgrollout.request; the answer goes into pgrollout.facts.
-- A relation is known by what format('%I.%I', schema, name) prints (names.py), here and in the answer.
--
-- A definition is compared as PostgreSQL itself prints it: our statement runs on an empty temporary twin of its table
-- (CREATE TEMP TABLE … LIKE takes ACCESS SHARE on the real one), and both are described by the same lines below. A
-- role without TEMPORARY, a read-only session and a standby cannot make twins: then `wanted` stays NULL and `unproven`
-- says why.

SET LOCAL check_function_bodies = off;

DO $facts$
DECLARE
    request jsonb := current_setting('pgrollout.request')::jsonb;
    schema text := request ->> 'schema';
    -- Looked into first unless it is named: what an author asks about a table must not be answered by its empty twin.
    path text := quote_ident(schema) || ', pg_temp';
    facts jsonb := '{}';
    steps jsonb := '{}';
    step jsonb;
    target jsonb;
    kind text;
    name text;
    plain_name text;
    table_name text;
    owner_schema text;
    qualifier text;
    namespace oid;
    relation oid;
    relation_name text[];
    answer jsonb;
    actual jsonb;
    twin jsonb;
    partitions jsonb;
    is_twin boolean;
    error text;
    unproven text;
    done boolean;
    filenode oid;
    rewrites boolean;
    constraint_row record;
    no_twins CONSTANT text := CASE
        WHEN pg_is_in_recovery() THEN 'this server is a standby'
        WHEN current_setting('transaction_read_only') = 'on' THEN 'this session is read-only'
        WHEN NOT has_database_privilege(current_database(), 'TEMPORARY')
        THEN format('the role %I lacks TEMPORARY; GRANT TEMPORARY ON DATABASE %I TO %1$I', current_user, current_database())
    END;
BEGIN
    facts := jsonb_build_object('server', jsonb_build_object(
        'version', current_setting('server_version_num')::integer / 10000,
        'functions', (SELECT coalesce(jsonb_agg(DISTINCT p.proname), '[]') FROM pg_proc AS p
                      WHERE p.proname IN (SELECT jsonb_array_elements_text(request -> 'functions')))));

    -- Sizes, what a drop of the relation locks besides (dropping a foreign key takes its other side), and what a safe
    -- form depends on: the primary key, a unique index without a condition, partitions.
    facts := facts || jsonb_build_object('relation', (
        SELECT coalesce(jsonb_object_agg(r.name, jsonb_build_object(
                   'rows', held.rows,
                   'bytes', held.bytes,
                   'kind', c.relkind,
                   'key', coalesce((SELECT jsonb_agg(a.attname ORDER BY k.place)
                                    FROM pg_index AS i
                                    CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
                                    JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                                    WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts), '[]'),
                   'unique', EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid
                                                                AND i.indpred IS NULL AND i.indexprs IS NULL),
                   -- Partitions and heirs, however deep; and of a partition its parents.
                   'children', (WITH RECURSIVE below AS (
                                    SELECT h.inhrelid AS oid FROM pg_inherits AS h WHERE h.inhparent = c.oid
                                    UNION ALL
                                    SELECT h.inhrelid FROM pg_inherits AS h JOIN below AS b ON h.inhparent = b.oid)
                                SELECT coalesce(jsonb_agg(format('%I.%I', n.nspname, f.relname) ORDER BY f.oid), '[]')
                                FROM below AS b JOIN pg_class AS f ON f.oid = b.oid
                                JOIN pg_namespace AS n ON n.oid = f.relnamespace),
                   'detaching', EXISTS (SELECT FROM pg_inherits AS h WHERE h.inhrelid = c.oid AND h.inhdetachpending),
                   'parents', (SELECT coalesce(jsonb_agg(format('%I.%I', n.nspname, f.relname)), '[]')
                               FROM pg_inherits AS h JOIN pg_class AS f ON f.oid = h.inhparent
                               JOIN pg_namespace AS n ON n.oid = f.relnamespace
                               WHERE h.inhrelid = c.oid AND c.relispartition),
                   'references', coalesce((SELECT jsonb_agg(DISTINCT format('%I.%I', n.nspname, f.relname))
                                           FROM pg_constraint AS k
                                           JOIN pg_class AS f ON f.oid = k.confrelid
                                           JOIN pg_namespace AS n ON n.oid = f.relnamespace
                                           WHERE k.conrelid = c.oid AND k.contype = 'f' AND k.confrelid <> c.oid), '[]'))), '{}')
        FROM jsonb_array_elements_text(request -> 'relations') AS r (name)
        JOIN pg_class AS c ON c.relname = (parse_ident(r.name))[2]
                          AND c.relnamespace = to_regnamespace(quote_ident((parse_ident(r.name))[1]))
        -- A partitioned table holds what its leaves hold; its own reltuples is their sum as ANALYZE last saw it.
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(greatest(t.reltuples, 0)), 0)::bigint AS rows,
                   coalesce(sum(pg_total_relation_size(t.oid)), 0)::bigint AS bytes
            FROM (SELECT c.oid WHERE c.relkind <> 'p' UNION ALL SELECT p.relid FROM pg_partition_tree(c.oid) AS p WHERE c.relkind = 'p' AND p.isleaf) AS s (oid)
            JOIN pg_class AS t ON t.oid = s.oid) AS held));

    -- Who is in the way right now: holders of locks on these relations, old snapshots, prepared transactions.
    facts := facts || jsonb_build_object('blocker', (
        SELECT coalesce(jsonb_agg(to_jsonb(b) ORDER BY b.seconds DESC), '[]')
        FROM (
            SELECT l.pid, r.name AS relation,
                   upper(regexp_replace(replace(l.mode, 'Lock', ''), '(?<=[a-z])(?=[A-Z])', ' ', 'g')) AS mode,
                   coalesce(a.usename::text, x.owner::text, '?') AS "user", coalesce(a.application_name, '') AS application,
                   CASE WHEN l.pid IS NULL THEN 'prepared transaction ' || x.gid ELSE coalesce(a.state, '?') END AS state,
                   round(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, x.prepared)))::bigint AS seconds,
                   left(regexp_replace(coalesce(a.query, ''), '\s+', ' ', 'g'), 120) AS query
            FROM jsonb_array_elements_text(request -> 'relations') AS r (name)
            JOIN pg_class AS c ON c.relname = (parse_ident(r.name))[2]
                              AND c.relnamespace = to_regnamespace(quote_ident((parse_ident(r.name))[1]))
            JOIN pg_locks AS l ON l.locktype = 'relation' AND l.relation = c.oid AND l.granted
                 AND l.pid IS DISTINCT FROM pg_backend_pid()
                 AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
            LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
            -- Until the server is restarted its locks carry the virtual id of the session that prepared it; its own id is locked too.
            LEFT JOIN pg_prepared_xacts AS x ON l.pid IS NULL AND x.transaction IN (
                SELECT t.transactionid FROM pg_locks AS t
                WHERE t.locktype = 'transactionid' AND t.pid IS NULL AND t.virtualtransaction = l.virtualtransaction)
            WHERE coalesce(a.xact_start, x.prepared) < clock_timestamp() - interval '1 second'
              AND coalesce(a.application_name, '') NOT LIKE 'pgrollout/%'
            UNION ALL
            -- A concurrent build waits for every older snapshot of its database, whatever it reads.
            SELECT a.pid, NULL, 'SNAPSHOT', a.usename, a.application_name, a.state,
                   round(extract(epoch FROM clock_timestamp() - a.xact_start))::bigint,
                   left(regexp_replace(a.query, '\s+', ' ', 'g'), 120)
            FROM pg_stat_activity AS a
            WHERE a.datname = current_database() AND a.backend_xmin IS NOT NULL AND a.pid <> pg_backend_pid()
              AND a.xact_start < clock_timestamp() - interval '1 second' AND a.backend_type = 'client backend'
              AND coalesce(a.application_name, '') NOT LIKE 'pgrollout/%'
        ) AS b));

    -- What a REINDEX CONCURRENTLY that was cut off left: INVALID, named after another index of the same table (shortened
    -- where its name is long), and nobody works on it.
    facts := facts || jsonb_build_object('leftover', (
        SELECT coalesce(jsonb_agg(jsonb_build_object('index', format('%I.%I', n.nspname, c.relname),
                                                     'table', format('%I.%I', n.nspname, t.relname), 'of', o.names) ORDER BY c.relname), '[]')
        FROM pg_index AS i
        JOIN pg_class AS c ON c.oid = i.indexrelid
        JOIN pg_class AS t ON t.oid = i.indrelid
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        CROSS JOIN LATERAL (
            SELECT jsonb_agg(DISTINCT format('%I.%I', s.nspname, f.relname)) AS names
            FROM pg_index AS other
            JOIN pg_class AS own ON own.oid = other.indexrelid
                AND (own.relname = regexp_replace(c.relname, '_cc(new|old)\d*$', '')
                     OR octet_length(c.relname) > 59 AND starts_with(own.relname::text, regexp_replace(c.relname, '_cc(new|old)\d*$', '')))
            CROSS JOIN LATERAL (SELECT other.indexrelid AS oid UNION SELECT p.relid FROM pg_partition_ancestors(other.indexrelid) AS p) AS whole
            JOIN pg_class AS f ON f.oid = whole.oid
            JOIN pg_namespace AS s ON s.oid = f.relnamespace
            WHERE other.indrelid = i.indrelid AND other.indexrelid <> i.indexrelid) AS o
        WHERE NOT i.indisvalid AND c.relname ~ '_cc(new|old)\d*$' AND o.names IS NOT NULL AND n.nspname <> 'pg_toast'
          AND NOT EXISTS (SELECT FROM pg_locks AS l WHERE l.relation = i.indexrelid AND l.mode = 'ShareUpdateExclusiveLock'
                          AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database()))));

    FOR step IN SELECT * FROM jsonb_array_elements(request -> 'steps') LOOP
        target := step -> 'object';
        actual := NULL;
        twin := NULL;
        partitions := NULL;
        error := '';
        unproven := '';
        done := NULL;
        rewrites := NULL;
        kind := target ->> 'kind';
        name := target ->> 'name';
        owner_schema := coalesce((parse_ident(nullif(target ->> 'table', '')))[1], schema);
        table_name := (parse_ident(nullif(target ->> 'table', '')))[2];
        -- What bears a schema of its own has it in its name; the name of a column or an index may hold dots.
        plain_name := CASE WHEN kind IN ('table', 'view', 'function', 'type', 'sequence') THEN (parse_ident(name))[2] ELSE name END;
        -- Every schema name that a printed definition may carry in front of an object of ours or of its twin.
        qualifier := format('(pg_temp_\d+|pg_temp|%s)\.', regexp_replace(quote_ident(owner_schema), '(\W)', '\\\1', 'g'));
        PERFORM set_config('search_path', path, true);
        IF step ->> 'done_when' <> '' THEN
            BEGIN
                EXECUTE step ->> 'done_when' INTO done;
            EXCEPTION
                WHEN undefined_table OR undefined_column OR undefined_function OR undefined_object THEN done := false;
                WHEN OTHERS THEN error := SQLERRM;
            END;
        END IF;
        BEGIN
            -- First what is there, then our statement on the twin, by the same lines.
            FOREACH is_twin IN ARRAY ARRAY[false, true] LOOP
                EXIT WHEN target = 'null';
                EXIT WHEN is_twin AND (coalesce(actual, partitions) IS NULL OR step ->> 'probe' = '' OR step ->> 'done_when' <> '');
                IF is_twin AND no_twins IS NOT NULL THEN
                    unproven := no_twins;
                    EXIT;
                END IF;
                IF is_twin THEN
                    PERFORM set_config('search_path', 'pg_temp, ' || quote_ident(schema), true);
                    FOR relation_name IN SELECT parse_ident(t.name) FROM jsonb_array_elements_text(step -> 'twins') AS t (name) LOOP
                        CONTINUE WHEN EXISTS (SELECT FROM pg_class AS c WHERE c.relnamespace = pg_my_temp_schema()
                                                                        AND c.relname = relation_name[2]);
                        EXECUTE format('CREATE TEMP TABLE %2$I (LIKE %1$I.%2$I INCLUDING DEFAULTS INCLUDING GENERATED '
                                       'INCLUDING IDENTITY INCLUDING CONSTRAINTS)', relation_name[1], relation_name[2]);
                        FOR constraint_row IN
                            SELECT k.conname, pg_get_constraintdef(k.oid) AS definition FROM pg_constraint AS k
                            WHERE k.contype IN ('p', 'u')
                              AND k.conrelid = format('%I.%I', relation_name[1], relation_name[2])::regclass
                        LOOP
                            EXECUTE format('ALTER TABLE pg_temp.%I ADD CONSTRAINT %I %s', relation_name[2],
                                           constraint_row.conname, constraint_row.definition);
                        END LOOP;
                    END LOOP;
                    EXECUTE CASE kind
                        -- The twin of a constraint holds the twin of its index.
                        WHEN 'index' THEN format('ALTER TABLE pg_temp.%I DROP CONSTRAINT IF EXISTS %I; DROP INDEX IF EXISTS pg_temp.%I',
                                                 table_name, name, name)
                        WHEN 'column' THEN format('ALTER TABLE pg_temp.%I DROP COLUMN IF EXISTS %I CASCADE',
                                                  table_name, name)
                        WHEN 'constraint' THEN format('ALTER TABLE pg_temp.%I DROP CONSTRAINT IF EXISTS %I CASCADE; '
                                                      'DROP INDEX IF EXISTS pg_temp.%I',
                                                      table_name, name, name)
                        WHEN 'trigger' THEN format('DROP TRIGGER IF EXISTS %I ON pg_temp.%I', name,
                                                   table_name)
                        WHEN 'policy' THEN format('DROP POLICY IF EXISTS %I ON pg_temp.%I', name,
                                                  table_name)
                        WHEN 'table' THEN format('DROP TABLE IF EXISTS pg_temp.%I CASCADE',
                                                 table_name)
                        WHEN 'type' THEN format('DROP TYPE IF EXISTS pg_temp.%I CASCADE', plain_name)
                        WHEN 'sequence' THEN format('DROP SEQUENCE IF EXISTS pg_temp.%I CASCADE', plain_name)
                        WHEN 'view' THEN 'DROP VIEW IF EXISTS pg_temp.pgrollout_view_twin'
                        ELSE 'SELECT'
                    END;
                    filenode := CASE WHEN kind = 'column_type'
                                     THEN pg_relation_filenode(format('pg_temp.%I', table_name)::regclass) END;
                    EXECUTE step ->> 'probe';
                    -- An ALTER that copies the table gives even an empty one a new file.
                    IF kind = 'column_type' THEN
                        rewrites := filenode <> pg_relation_filenode(format('pg_temp.%I', table_name)::regclass);
                    END IF;
                    PERFORM set_config('search_path', path, true);
                END IF;
                namespace := CASE WHEN is_twin THEN pg_my_temp_schema() ELSE to_regnamespace(quote_ident(owner_schema)) END;
                relation := (SELECT c.oid FROM pg_class AS c
                             WHERE c.relnamespace = namespace
                               AND c.relname = CASE WHEN kind = 'view' AND is_twin THEN 'pgrollout_view_twin'
                                                    ELSE table_name END);
                answer := NULL;
                IF kind = 'index' THEN
                    SELECT jsonb_build_object(
                               'definition', regexp_replace(
                                   CASE WHEN c.relkind = 'I' THEN replace(pg_get_indexdef(c.oid), ' ON ONLY ', ' ON ')
                                        ELSE pg_get_indexdef(c.oid) END, qualifier, '', 'g'),
                               'shape', replace(regexp_replace(pg_get_indexdef(c.oid), qualifier, '', 'g'),
                                                format('INDEX %I ON %s%I ', c.relname, CASE WHEN c.relkind = 'I' THEN 'ONLY ' ELSE '' END,
                                                       (SELECT t.relname FROM pg_class AS t WHERE t.oid = i.indrelid)),
                                                'INDEX '),
                               'valid', i.indisvalid AND i.indisready,
                               'partitioned', c.relkind = 'I',
                               'table', (SELECT format('%I.%I', n.nspname, t.relname) FROM pg_class AS t
                                         JOIN pg_namespace AS n ON n.oid = t.relnamespace WHERE t.oid = i.indrelid),
                               'building', (SELECT min(p.pid) FROM pg_stat_progress_create_index AS p WHERE p.index_relid = c.oid),
                               'builder', (SELECT min(a.application_name) FROM pg_stat_progress_create_index AS p
                                           JOIN pg_stat_activity AS a ON a.pid = p.pid WHERE p.index_relid = c.oid))
                      INTO answer
                    FROM pg_class AS c JOIN pg_index AS i ON i.indexrelid = c.oid
                    WHERE c.relnamespace = namespace AND c.relname = plain_name;
                    -- Of a partitioned table: each partition below it with its indexes, but for those that belong to a constraint.
                    IF NOT is_twin AND (SELECT c.relkind FROM pg_class AS c WHERE c.oid = relation) = 'p' THEN
                        SELECT coalesce(jsonb_agg(jsonb_build_object(
                                   'relation', format('%I.%I', n.nspname, t.relname),
                                   'parent', (SELECT format('%I.%I', pn.nspname, pt.relname) FROM pg_class AS pt
                                              JOIN pg_namespace AS pn ON pn.oid = pt.relnamespace WHERE pt.oid = p.parentrelid),
                                   'leaf', p.isleaf,
                                   'rows', greatest(t.reltuples, 0)::bigint,
                                   'bytes', pg_total_relation_size(t.oid),
                                   'indexes', (
                                       SELECT coalesce(jsonb_agg(jsonb_build_object(
                                                  'name', format('%I.%I', n.nspname, x.relname),
                                                  'shape', regexp_replace(replace(pg_get_indexdef(x.oid), format('INDEX %I ON %s%I.%I ',
                                                      x.relname, CASE WHEN x.relkind = 'I' THEN 'ONLY ' ELSE '' END, n.nspname, t.relname),
                                                      'INDEX '), qualifier, '', 'g'),
                                                  'valid', i.indisvalid AND i.indisready,
                                                  'parent', (SELECT format('%I.%I', hn.nspname, h.relname)
                                                             FROM pg_inherits AS s JOIN pg_class AS h ON h.oid = s.inhparent
                                                             JOIN pg_namespace AS hn ON hn.oid = h.relnamespace
                                                             WHERE s.inhrelid = x.oid)) ORDER BY x.oid), '[]')
                                       FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid
                                       WHERE i.indrelid = t.oid
                                         AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = x.oid))) ORDER BY p.level, t.oid), '[]')
                          INTO partitions
                        FROM pg_partition_tree(relation) AS p JOIN pg_class AS t ON t.oid = p.relid
                        JOIN pg_namespace AS n ON n.oid = t.relnamespace
                        WHERE p.level > 0;
                    END IF;
                ELSIF kind IN ('column', 'column_type', 'not_null', 'default') THEN
                    SELECT jsonb_build_object(
                               'type', format_type(a.atttypid, a.atttypmod),
                               'not_null', a.attnotnull,
                               'default', coalesce(regexp_replace(pg_get_expr(d.adbin, d.adrelid), qualifier, '', 'g'), ''),
                               'generated', a.attgenerated::text || a.attidentity::text,
                               'constraints', coalesce((
                                   SELECT jsonb_object_agg(k.conname, regexp_replace(
                                              replace(pg_get_constraintdef(k.oid), ' NOT VALID', ''), qualifier, '', 'g'))
                                   FROM pg_constraint AS k
                                   WHERE k.conrelid = relation AND a.attnum = ANY (k.conkey)
                                     AND k.contype IN ('c', 'f', 'p', 'u')),
                                   '{}'),
                               'references', (
                                   SELECT coalesce(jsonb_agg(DISTINCT format('%I.%I', n.nspname, f.relname)), '[]')
                                   FROM pg_constraint AS k JOIN pg_class AS f ON f.oid = k.confrelid
                                   JOIN pg_namespace AS n ON n.oid = f.relnamespace
                                   WHERE k.conrelid = relation AND a.attnum = ANY (k.conkey)))
                      INTO answer
                    FROM pg_attribute AS a
                    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                    WHERE a.attrelid = relation AND a.attname = name AND NOT a.attisdropped;
                ELSIF kind IN ('constraint', 'validation') THEN
                    SELECT jsonb_build_object(
                               'definition', regexp_replace(replace(pg_get_constraintdef(k.oid), ' NOT VALID', ''), qualifier, '', 'g'),
                               'valid', k.convalidated,
                               'references', (
                                   SELECT coalesce(jsonb_agg(format('%I.%I', n.nspname, f.relname)), '[]')
                                   FROM pg_class AS f JOIN pg_namespace AS n ON n.oid = f.relnamespace
                                   WHERE f.oid = k.confrelid))
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
                ELSIF kind = 'policy' THEN
                    SELECT jsonb_build_object('definition', regexp_replace(
                               concat_ws(' ', 'FOR', p.polcmd, CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
                                   'TO', (SELECT string_agg(CASE WHEN r = 0 THEN 'public' ELSE pg_get_userbyid(r)::text END, ', ' ORDER BY r)
                                          FROM unnest(p.polroles) AS r),
                                   'USING ' || pg_get_expr(p.polqual, p.polrelid),
                                   'WITH CHECK ' || pg_get_expr(p.polwithcheck, p.polrelid)), qualifier, '', 'g'))
                      INTO answer
                    FROM pg_policy AS p WHERE p.polrelid = relation AND p.polname = name;
                ELSIF kind = 'statistics' THEN
                    SELECT jsonb_build_object('definition', regexp_replace(pg_get_statisticsobjdef(s.oid), qualifier, '', 'g'),
                                              'table', (SELECT format('%I.%I', n.nspname, t.relname) FROM pg_class AS t
                                                        JOIN pg_namespace AS n ON n.oid = t.relnamespace WHERE t.oid = s.stxrelid))
                      INTO answer
                    FROM pg_statistic_ext AS s WHERE s.stxnamespace = namespace AND s.stxname = name;
                ELSIF kind = 'type' THEN
                    SELECT jsonb_build_object('definition', regexp_replace(
                               concat_ws(' ', CASE t.typtype WHEN 'e' THEN 'ENUM' WHEN 'd' THEN 'DOMAIN' WHEN 'c' THEN 'COMPOSITE'
                                              WHEN 'r' THEN 'RANGE' ELSE t.typtype::text END,
                                   (SELECT string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
                                    FROM pg_attribute AS a
                                    WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped AND t.typtype = 'c'),
                                   (SELECT format_type(r.rngsubtype, NULL) FROM pg_range AS r WHERE r.rngtypid = t.oid),
                                   CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END,
                                   CASE WHEN t.typnotnull THEN 'NOT NULL' END, 'DEFAULT ' || t.typdefault,
                                   (SELECT string_agg(pg_get_constraintdef(k.oid), ' ' ORDER BY k.conname)
                                    FROM pg_constraint AS k WHERE k.contypid = t.oid AND k.contype = 'c')), qualifier, '', 'g'),
                               'labels', coalesce((SELECT jsonb_agg(e.enumlabel ORDER BY e.enumsortorder)
                                                   FROM pg_enum AS e WHERE e.enumtypid = t.oid), '[]'))
                      INTO answer
                    FROM pg_type AS t WHERE t.typnamespace = namespace AND t.typname = plain_name;
                ELSIF kind = 'sequence' THEN
                    SELECT jsonb_build_object('definition', format('AS %s START %s INCREMENT %s MINVALUE %s MAXVALUE %s CACHE %s CYCLE %s',
                               format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle))
                      INTO answer
                    FROM pg_sequence AS s JOIN pg_class AS c ON c.oid = s.seqrelid
                    WHERE c.relnamespace = namespace AND c.relname = plain_name;
                ELSIF kind = 'function' THEN
                    SELECT jsonb_build_object('definition',
                               string_agg(regexp_replace(pg_get_functiondef(p.oid), qualifier, '', 'g'), E'\n' ORDER BY p.oid))
                      INTO answer
                    FROM pg_proc AS p
                    WHERE p.pronamespace = namespace AND p.proname = plain_name AND p.prokind IN ('f', 'p')
                    HAVING count(*) > 0;
                ELSIF kind = 'comment' THEN
                    IF relation IS NOT NULL THEN
                        answer := jsonb_build_object('text', coalesce(
                            CASE WHEN name = '' THEN obj_description(relation, 'pg_class')
                                 ELSE col_description(relation, (SELECT a.attnum FROM pg_attribute AS a
                                                                 WHERE a.attrelid = relation AND a.attname = name)) END, ''));
                    END IF;
                ELSIF kind = 'schema' THEN
                    SELECT jsonb_build_object('definition', n.nspname) INTO answer FROM pg_namespace AS n WHERE n.nspname = name;
                ELSIF kind = 'extension' THEN
                    SELECT jsonb_build_object('definition', e.extname) INTO answer FROM pg_extension AS e WHERE e.extname = name;
                END IF;
                IF is_twin THEN
                    twin := answer;
                    -- The next twin's columns are of the real one.
                    IF kind IN ('type', 'sequence') THEN
                        EXECUTE format('DROP %s pg_temp.%I CASCADE', kind, plain_name);
                    END IF;
                ELSE
                    actual := answer;
                END IF;
            END LOOP;
        EXCEPTION WHEN OTHERS THEN
            error := SQLERRM;
        END;
        steps := steps || jsonb_build_object(step ->> 'id', jsonb_build_object(
            'actual', actual, 'wanted', twin, 'error', error, 'done', done, 'unproven', unproven, 'rewrites', rewrites,
            'partitions', partitions));
    END LOOP;
    facts := facts || jsonb_build_object('step', steps);

    IF to_regclass('pgrollout.step') IS NOT NULL THEN
        facts := facts || jsonb_build_object('ledger', jsonb_build_object(
            'steps', (SELECT coalesce(jsonb_object_agg(s.step_id, to_jsonb(s)), '{}') FROM pgrollout.step AS s),
            'open', EXISTS (SELECT FROM pgrollout.run WHERE ended_at IS NULL),
            'migrations', (SELECT coalesce(jsonb_object_agg(m.migration, to_jsonb(m)), '{}') FROM pgrollout.migration AS m)));
    END IF;
    IF to_regclass('pgrollout.kept') IS NOT NULL THEN
        facts := jsonb_set(facts, '{ledger,kept}', (SELECT coalesce(jsonb_agg(to_jsonb(k) ORDER BY k.kept_id), '[]') FROM pgrollout.kept AS k
                           WHERE (k.state = 'capturing' OR k.state = 'kept' AND k.rows > 0)
                             AND NOT EXISTS (SELECT FROM pgrollout.kept AS n WHERE n.kept_id > k.kept_id AND n.relation = k.relation
                                             AND n.columns IS NOT DISTINCT FROM k.columns)));
    END IF;
    IF to_regclass('pgrollout.gate_status') IS NOT NULL THEN  -- an older ledger has none
        facts := jsonb_set(facts, '{ledger,gates_failed}', (SELECT to_jsonb(count(*)) FROM pgrollout.gate_status WHERE status = 'fail'));
    END IF;
    PERFORM set_config('pgrollout.facts', facts::text, true);
END
$facts$;

SELECT current_setting('pgrollout.facts') AS facts;
