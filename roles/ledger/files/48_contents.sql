-- What a database looks like and what it holds, in a form that can be compared: before and after a rollout, and a backup
-- with what was restored from it. The backup makes these functions in pg_temp of a database that has no ledger, so they
-- name nothing else of it.

-- Every object outside the system's and the ledger's own schemas, as {label: definition}, alike on every version. Column
-- order is left out; with p_access owners and grants are in it.
CREATE OR REPLACE FUNCTION pgrollout.fingerprint(p_access boolean DEFAULT true) RETURNS jsonb LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    WITH schemas AS (
        SELECT n.oid, n.nspname FROM pg_namespace AS n
        WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgrollout')
    ), relations AS (
        SELECT c.*, s.nspname, format('%I.%I', s.nspname, c.relname) AS label FROM pg_class AS c JOIN schemas AS s ON s.oid = c.relnamespace
        WHERE (s.nspname, c.relname) IS DISTINCT FROM ('public', 'migration_log')
    ), objects AS (
        SELECT 'pg_namespace'::regclass AS class, n.oid, format('schema %I', n.nspname) AS label, n.nspowner AS owner, n.nspacl AS grants,
               format('comment %s', obj_description(n.oid, 'pg_namespace')) AS definition
        FROM pg_namespace AS n JOIN schemas AS s ON s.oid = n.oid
        UNION ALL
        SELECT 'pg_extension'::regclass, e.oid, format('extension %I', e.extname), e.extowner, NULL, format('version %s; schema %s', e.extversion, e.extnamespace::regnamespace)
        FROM pg_extension AS e
        UNION ALL
        SELECT 'pg_class'::regclass, r.oid, CASE r.relkind WHEN 'v' THEN 'view ' WHEN 'm' THEN 'materialized view ' WHEN 'f' THEN 'foreign table ' ELSE 'table ' END || r.label,
               r.relowner, r.relacl,
               format('options %s; persistence %s; row security %s %s; replica identity %s; partition %s of %s by %s; populated %s; comment %s; %s',
                      r.reloptions, r.relpersistence, r.relrowsecurity, r.relforcerowsecurity, r.relreplident,
                      pg_get_expr(r.relpartbound, r.oid), (SELECT string_agg(i.inhparent::regclass::text, ',' ORDER BY i.inhseqno) FROM pg_inherits AS i WHERE i.inhrelid = r.oid),
                      CASE WHEN r.relkind = 'p' THEN pg_get_partkeydef(r.oid) END, r.relispopulated, obj_description(r.oid, 'pg_class'),
                      CASE WHEN r.relkind IN ('v', 'm') THEN pg_get_viewdef(r.oid) END)
        FROM relations AS r WHERE r.relkind IN ('r', 'p', 'v', 'm', 'f')
        UNION ALL
        SELECT 'pg_class'::regclass, r.oid, 'sequence ' || r.label, r.relowner, r.relacl,
               format('%s; start %s; by %s; %s to %s; cache %s; cycle %s; owned by %s; persistence %s; comment %s', q.seqtypid::regtype, q.seqstart, q.seqincrement,
                      q.seqmin, q.seqmax, q.seqcache, q.seqcycle,
                      (SELECT format('%s.%I', a.attrelid::regclass, a.attname) FROM pg_depend AS d JOIN pg_attribute AS a ON (a.attrelid, a.attnum) = (d.refobjid, d.refobjsubid)
                       WHERE d.classid = 'pg_class'::regclass AND d.objid = r.oid AND d.deptype IN ('a', 'i') AND d.refclassid = 'pg_class'::regclass),
                      r.relpersistence, obj_description(r.oid, 'pg_class'))
        FROM relations AS r JOIN pg_sequence AS q ON q.seqrelid = r.oid
        UNION ALL
        SELECT 'pg_class'::regclass, r.oid, format('column %s.%I', r.label, a.attname), NULL, a.attacl,
               format('%s; not null %s; default %s; collation %s; generated %s%s; storage %s; statistics %s; comment %s',
                      format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
                      nullif(a.attcollation, 0)::regcollation, a.attidentity, a.attgenerated, a.attstorage,
                      nullif(a.attstattarget, -1), col_description(r.oid, a.attnum))
        FROM relations AS r
        JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef AS d ON d.adrelid = r.oid AND d.adnum = a.attnum
        WHERE r.relkind IN ('r', 'p', 'v', 'm', 'f')
        UNION ALL
        SELECT 'pg_class'::regclass, r.oid, format('constraint %s.%I', r.label, k.conname), NULL, NULL,
               format('%s; validated %s; comment %s', pg_get_constraintdef(k.oid), k.convalidated, obj_description(k.oid, 'pg_constraint'))
        FROM relations AS r JOIN pg_constraint AS k ON k.conrelid = r.oid WHERE k.contype <> 'n'  -- a column's property before 18
        UNION ALL
        SELECT 'pg_class'::regclass, r.oid, format('index %s', r.label), NULL, NULL,
               format('%s; comment %s; valid %s; ready %s', pg_get_indexdef(r.oid), obj_description(r.oid, 'pg_class'), i.indisvalid, i.indisready)
        FROM relations AS r JOIN pg_index AS i ON i.indexrelid = r.oid
        UNION ALL
        SELECT 'pg_class'::regclass, r.oid, format('trigger %s.%I', r.label, t.tgname), NULL, NULL,
               format('%s; enabled %s; comment %s', pg_get_triggerdef(t.oid), t.tgenabled, obj_description(t.oid, 'pg_trigger'))
        FROM relations AS r JOIN pg_trigger AS t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal
        UNION ALL
        SELECT 'pg_class'::regclass, r.oid, format('rule %s.%I', r.label, u.rulename), NULL, NULL, format('%s; enabled %s', pg_get_ruledef(u.oid), u.ev_enabled)
        FROM relations AS r JOIN pg_rewrite AS u ON u.ev_class = r.oid WHERE u.rulename <> '_RETURN'
        UNION ALL
        SELECT 'pg_class'::regclass, r.oid, format('policy %s.%I', r.label, y.polname), NULL, NULL,
               format('%s; permissive %s; to %s; using %s; check %s', y.polcmd, y.polpermissive,
                      (SELECT string_agg(CASE o.role WHEN 0 THEN 'public' ELSE pg_get_userbyid(o.role) END, ',' ORDER BY 1) FROM unnest(y.polroles) AS o (role)),
                      pg_get_expr(y.polqual, r.oid), pg_get_expr(y.polwithcheck, r.oid))
        FROM relations AS r JOIN pg_policy AS y ON y.polrelid = r.oid
        UNION ALL
        SELECT 'pg_statistic_ext'::regclass, x.oid, format('statistics %I.%I', s.nspname, x.stxname), x.stxowner, NULL, pg_get_statisticsobjdef(x.oid)
        FROM pg_statistic_ext AS x JOIN schemas AS s ON s.oid = x.stxnamespace
        UNION ALL
        SELECT 'pg_proc'::regclass, p.oid, format('function %I.%I(%s)', s.nspname, p.proname, pg_get_function_identity_arguments(p.oid)), p.proowner, p.proacl,
               format('%s; comment %s', CASE WHEN p.prokind = 'a' THEN (
                          SELECT format('aggregate %s; %s; %s; %s', g.aggtransfn, g.aggtranstype::regtype, g.aggfinalfn, g.agginitval)
                          FROM pg_aggregate AS g WHERE g.aggfnoid = p.oid) ELSE pg_get_functiondef(p.oid) END, obj_description(p.oid, 'pg_proc'))
        FROM pg_proc AS p JOIN schemas AS s ON s.oid = p.pronamespace
        UNION ALL
        SELECT 'pg_type'::regclass, t.oid, format('type %I.%I', s.nspname, t.typname), t.typowner, t.typacl,
               format('%s; %s; comment %s', t.typtype, CASE t.typtype
                      WHEN 'e' THEN (SELECT string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder) FROM pg_enum AS e WHERE e.enumtypid = t.oid)
                      WHEN 'd' THEN format('%s; not null %s; default %s; %s', format_type(t.typbasetype, t.typtypmod), t.typnotnull, t.typdefault,
                          (SELECT string_agg(format('%s %s', k.conname, pg_get_constraintdef(k.oid)), ', ' ORDER BY k.conname)
                           FROM pg_constraint AS k WHERE k.contypid = t.oid AND k.contype <> 'n'))
                      WHEN 'r' THEN (SELECT format_type(g.rngsubtype, NULL) FROM pg_range AS g WHERE g.rngtypid = t.oid)
                      ELSE (SELECT string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
                            FROM pg_attribute AS a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) END,
                      obj_description(t.oid, 'pg_type'))
        FROM pg_type AS t JOIN schemas AS s ON s.oid = t.typnamespace
        WHERE t.typtype IN ('e', 'd', 'r') OR (t.typtype = 'c' AND EXISTS (SELECT FROM pg_class AS c WHERE c.oid = t.typrelid AND c.relkind = 'c'))
    )
    SELECT coalesce(jsonb_object_agg(label, regexp_replace(
               CASE WHEN p_access THEN format('owner %s; grants %s; %s', pg_get_userbyid(owner), grants, definition) ELSE definition END, '\s+', ' ', 'g')), '{}')
    FROM objects AS o
    -- What an extension brings is told by its version.
    WHERE NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.deptype = 'e' AND d.classid = o.class AND d.objid = o.oid)
$$;

-- A fingerprint as SHA-256: two catalogs are alike where it is.
CREATE OR REPLACE FUNCTION pgrollout.fingerprint_hash(p_fingerprint jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT encode(sha256(convert_to(p_fingerprint::text, 'UTF8')), 'hex')
$$;

-- Where every sequence stands, {sequence: [last value, whether it was handed out]}.
CREATE OR REPLACE FUNCTION pgrollout.sequence_values() RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_answer jsonb := '{}';
    v_one jsonb;
    v_name text;
BEGIN
    FOR v_name IN SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                  WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgrollout') LOOP
        EXECUTE format('SELECT jsonb_build_array(last_value, is_called) FROM %s', v_name) INTO v_one;
        v_answer := v_answer || jsonb_build_object(v_name, v_one);
    END LOOP;
    RETURN v_answer;
END
$$;

-- Order-independent digest of some columns of a table, of the rows of p_where alone: {rows, digest}. The settings that
-- shape a value's text are pinned.
CREATE OR REPLACE FUNCTION pgrollout.digest(p_table regclass, p_columns text[], p_where text DEFAULT 'true') RETURNS jsonb LANGUAGE plpgsql STABLE
SET search_path = pg_catalog SET lc_monetary = 'C' SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD' SET "IntervalStyle" = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex' AS $$
DECLARE
    v_answer jsonb;
BEGIN
    EXECUTE format('SELECT jsonb_build_object(''rows'', count(*), ''digest'', coalesce(sum(hashtextextended(ROW(%s)::text, 0)::numeric), 0)::text) FROM ONLY %s AS t WHERE %s',
        (SELECT string_agg(format('t.%I', c), ', ' ORDER BY c) FROM unnest(p_columns) AS c), p_table, p_where) INTO v_answer;
    RETURN v_answer || jsonb_build_object('columns', to_jsonb(p_columns));
END
$$;

-- Which rows of a very large table to take for all of it, as a condition for digest(): p_ranges ranges of its primary key,
-- p_rows rows each, begun where the statistics say that as many rows lie between one and the next (without statistics only
-- the first). NULL: it has no primary key.
CREATE OR REPLACE FUNCTION pgrollout.sample_of(p_table regclass, p_ranges integer DEFAULT 10, p_rows integer DEFAULT 10000) RETURNS text LANGUAGE plpgsql STABLE
SET search_path = pg_catalog SET lc_monetary = 'C' SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD' SET "IntervalStyle" = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex' AS $$
DECLARE
    v_keys text[];
    v_first record;  -- column of the key
    v_values text;  -- the key as literals, made by the server
    v_bounds text[];
    v_from text;
    v_to text;
    v_ranges text[] := '{}';
BEGIN
    SELECT array_agg(format('t.%I', a.attname) ORDER BY k.place),
           string_agg(format('quote_literal(t.%I) || %L', a.attname, '::' || format_type(a.atttypid, a.atttypmod)), ' || '', '' || ' ORDER BY k.place)
    INTO v_keys, v_values
    FROM pg_index AS i CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
    JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid = p_table AND i.indisprimary AND k.place <= i.indnkeyatts;
    IF v_keys IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT a.attname, format_type(a.atttypid, a.atttypmod) AS type INTO v_first
    FROM pg_attribute AS a WHERE a.attrelid = p_table AND format('t.%I', a.attname) = v_keys[1];
    SELECT s.histogram_bounds::text::text[] INTO v_bounds
    FROM pg_stats AS s JOIN pg_class AS c ON c.oid = p_table AND s.tablename = c.relname AND s.schemaname = c.relnamespace::regnamespace::name
    WHERE s.attname = v_first.attname AND NOT s.inherited;
    FOR n IN 0 .. CASE WHEN cardinality(v_bounds) > p_ranges THEN p_ranges - 1 ELSE 0 END LOOP
        v_from := CASE n WHEN 0 THEN 'true' ELSE format('%s >= %L::%s', v_keys[1], v_bounds[1 + n * (cardinality(v_bounds) - 1) / p_ranges], v_first.type) END;
        EXECUTE format('SELECT %s FROM ONLY %s AS t WHERE %s ORDER BY %s OFFSET %s LIMIT 1',
            v_values, p_table, v_from, array_to_string(v_keys, ', '), p_rows - 1) INTO v_to;
        v_ranges := v_ranges || format('(%s AND %s)', v_from, CASE WHEN v_to IS NULL THEN 'true' ELSE format('(%s) <= (%s)', array_to_string(v_keys, ', '), v_to) END);
        EXIT WHEN v_to IS NULL;
    END LOOP;
    RETURN array_to_string(v_ranges, ' OR ');
END
$$;
