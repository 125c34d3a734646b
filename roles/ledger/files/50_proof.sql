-- What the database looked like and held before each phase, and how that compares with now (see 48_contents.sql).

-- Digests of every table outside the ledger, {table: {rows, digest, columns}}; of a table over p_max_bytes those of a
-- sample of its rows, `sampled` by that condition, and `of` about how many; or, without a primary key, no digest and why
-- it was `skipped`.
CREATE OR REPLACE FUNCTION pgrollout.digests(p_max_bytes bigint) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT coalesce(jsonb_object_agg(c.oid::regclass::text, CASE
               WHEN pg_relation_size(c.oid) <= p_max_bytes THEN pgrollout.digest(c.oid::regclass, a.columns)
               WHEN p.condition IS NULL THEN jsonb_build_object('rows', c.reltuples::bigint,
                   'skipped', format('it is larger than %s and has no primary key', pg_size_pretty(p_max_bytes)))
               ELSE pgrollout.digest(c.oid::regclass, a.columns, p.condition) || jsonb_build_object('sampled', p.condition, 'of', c.reltuples::bigint) END), '{}')
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL (SELECT coalesce(array_agg(a.attname::text ORDER BY a.attname), '{}') AS columns FROM pg_attribute AS a
                        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS a
    CROSS JOIN LATERAL (SELECT CASE WHEN pg_relation_size(c.oid) > p_max_bytes THEN pgrollout.sample_of(c.oid::regclass) END AS condition) AS p
    WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgrollout')
$$;

-- The roadmap's performance baseline: {tables (sizes, how they are read), indexes (how often), statements}. `statements` are the ten that cost most, or the
-- reason why there are none.
CREATE OR REPLACE FUNCTION pgrollout.statistics() RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_extension_schema text := (SELECT n.nspname FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
                                WHERE e.extname = 'pg_stat_statements');
    v_statements jsonb;
BEGIN
    IF v_extension_schema IS NULL THEN
        v_statements := to_jsonb('the extension pg_stat_statements is not installed in this database'::text);
    ELSE
        BEGIN
            EXECUTE format('SELECT coalesce(jsonb_agg(to_jsonb(s)), ''[]'') FROM (SELECT left(query, 200) AS query, calls, '
                           'total_exec_time, mean_exec_time, min_exec_time, max_exec_time FROM %I.pg_stat_statements '
                           'WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) '
                           'ORDER BY total_exec_time DESC LIMIT 10) AS s', v_extension_schema) INTO v_statements;
        EXCEPTION WHEN object_not_in_prerequisite_state OR undefined_column THEN
            v_statements := to_jsonb('pg_stat_statements cannot be read: ' || SQLERRM);
        END;
    END IF;
    RETURN jsonb_build_object(
        'tables', (SELECT coalesce(jsonb_object_agg(format('%I.%I', t.schemaname, t.relname), jsonb_build_object(
                              'bytes', pg_total_relation_size(t.relid), 'rows', t.n_live_tup, 'inserted', t.n_tup_ins, 'updated', t.n_tup_upd, 'deleted', t.n_tup_del, 'operations', t.n_tup_ins + t.n_tup_upd + t.n_tup_del, 'seq_scan', t.seq_scan,
                              'seq_tup_read', t.seq_tup_read, 'idx_scan', t.idx_scan, 'idx_tup_fetch', t.idx_tup_fetch)), '{}')
                   FROM pg_stat_user_tables AS t WHERE t.schemaname <> 'pgrollout'),
        'indexes', (SELECT coalesce(jsonb_object_agg(format('%I.%I', i.schemaname, i.indexrelname), i.idx_scan), '{}')
                    FROM pg_stat_user_indexes AS i WHERE i.schemaname <> 'pgrollout'),
        'statements', v_statements);
END
$$;

-- Only before the first step of a phase: what a half-applied one has made is no "before".
CREATE OR REPLACE FUNCTION pgrollout.take_snapshot(p_run bigint, p_phase text, p_max_bytes bigint) RETURNS void LANGUAGE sql AS $$
    INSERT INTO pgrollout.snapshot (phase, run_id, fingerprint, digests, visible, statistics)
    SELECT p_phase, p_run, pgrollout.fingerprint(), pgrollout.digests(p_max_bytes), pg_current_snapshot(), pgrollout.statistics()
    WHERE NOT EXISTS (SELECT FROM pgrollout.standing_step() AS s WHERE s.phase = p_phase)
    ON CONFLICT (phase) DO UPDATE
    SET run_id = excluded.run_id, taken_at = clock_timestamp(), fingerprint = excluded.fingerprint,
        digests = excluded.digests, visible = excluded.visible, statistics = excluded.statistics
$$;

-- A table that the emergency switch had to make itself (not p_step, this rollout's own) counts as having stood there before:
-- the table, what is named after it, and its indexes.
CREATE OR REPLACE FUNCTION pgrollout.accept_table(p_table text, p_step text) RETURNS void LANGUAGE sql AS $$
    WITH accepted AS (
        SELECT f.key, f.value
        FROM jsonb_each_text(pgrollout.fingerprint()) AS f, format('%I.%I', (parse_ident(p_table))[1], (parse_ident(p_table))[2]) AS t (name)
        WHERE substr(f.key, strpos(f.key, ' ') + 1) = t.name OR starts_with(substr(f.key, strpos(f.key, ' ') + 1), t.name || '.')
           OR (f.key LIKE 'index %' AND strpos(f.value, ' ON ' || t.name || ' ') > 0)
    )
    UPDATE pgrollout.snapshot AS s
    SET fingerprint = s.fingerprint || (SELECT coalesce(jsonb_object_agg(a.key, a.value), '{}') FROM accepted AS a WHERE NOT s.fingerprint ? a.key)
    WHERE NOT EXISTS (SELECT FROM pgrollout.step AS t WHERE t.kind = 'CREATE TABLE' AND t.state = 'done' AND split_part(t.step_id, '/', 2) = p_step)
$$;

-- Whether that index (label and definition of a fingerprint) is missing because it was to be: somebody had it dropped by
-- name (its step is held), or it was an INVALID one which this rollout has built anew and taken away again. That answered
-- no query before, and nobody can put an INVALID index back.
CREATE OR REPLACE FUNCTION pgrollout.was_taken_away(p_label text, p_definition text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT p_label LIKE 'index %'
       AND EXISTS (SELECT FROM pgrollout.step AS s
                   CROSS JOIN (SELECT (parse_ident(substr(p_label, length('index ') + 1)))[2]) AS i (name)
                   WHERE s.kind LIKE 'CREATE%INDEX%' AND s.state IN ('rolled_back', 'held')
                     AND (s.state = 'held' OR p_definition LIKE '%; valid f; ready _')
                     AND (i.name = ANY (regexp_split_to_array(s.statement, '[^\w$]+'))
                          OR strpos(s.statement, '"' || replace(i.name, '"', '""') || '"') > 0))
$$;

-- Compares the catalog with the snapshot from before p_phase: one row a difference. One that does not count is told.
CREATE OR REPLACE FUNCTION pgrollout.catalog_differences(p_phase text)
RETURNS TABLE (object text, found text, expected text, counts boolean) LANGUAGE sql STABLE AS $$
    SELECT coalesce(now.key, was.key), now.value, was.value,
           now.value IS NOT NULL OR NOT pgrollout.was_taken_away(was.key, was.value)
    FROM jsonb_each_text(pgrollout.fingerprint()) AS now
    FULL JOIN (SELECT f.* FROM pgrollout.snapshot AS s, jsonb_each_text(s.fingerprint) AS f WHERE s.phase = p_phase) AS was ON was.key = now.key
    WHERE now.value IS DISTINCT FROM was.value
    ORDER BY 1
$$;

-- Compares the contents with the snapshot from before p_phase, over the columns that existed then: one row a table. Of
-- one of which a sample was taken, the rows are the sample's, and its name says so.
CREATE OR REPLACE FUNCTION pgrollout.content_differences(p_phase text)
RETURNS TABLE (table_name text, rows_before bigint, rows_now bigint, equal boolean) LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_was record;
    v_now jsonb;
BEGIN
    FOR v_was IN SELECT d.key, d.value FROM pgrollout.snapshot AS s, jsonb_each(s.digests) AS d WHERE s.phase = p_phase ORDER BY 1 LOOP
        table_name := v_was.key || CASE WHEN v_was.value ? 'sampled' THEN ' (a sample)' ELSE '' END;
        rows_before := (v_was.value ->> 'rows')::bigint;
        CONTINUE WHEN v_was.value ? 'skipped';
        IF to_regclass(v_was.key) IS NULL THEN
            rows_now := NULL;
            equal := false;
        ELSE
            v_now := pgrollout.digest(to_regclass(v_was.key), ARRAY(SELECT jsonb_array_elements_text(v_was.value -> 'columns')),
                coalesce(v_was.value ->> 'sampled', 'true'));
            rows_now := (v_now ->> 'rows')::bigint;
            equal := v_now ->> 'digest' = v_was.value ->> 'digest';
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

-- Compares the database with the snapshot from before p_phase, and keeps what comes of it as the proof of its rollback.
CREATE OR REPLACE FUNCTION pgrollout.prove(p_run bigint, p_phase text) RETURNS jsonb LANGUAGE sql AS $$
    INSERT INTO pgrollout.proof AS p (run_id, phase, fingerprint, catalog, contents)
    SELECT p_run, p_phase, pgrollout.fingerprint_hash(pgrollout.fingerprint()),
           (SELECT coalesce(jsonb_agg(to_jsonb(d) ORDER BY d.object), '[]') FROM pgrollout.catalog_differences(p_phase) AS d),
           (SELECT coalesce(jsonb_agg(to_jsonb(d) ORDER BY d.table_name), '[]') FROM pgrollout.content_differences(p_phase) AS d)
    ON CONFLICT (run_id, phase) DO UPDATE
    SET at = clock_timestamp(), fingerprint = excluded.fingerprint, catalog = excluded.catalog, contents = excluded.contents
    RETURNING to_jsonb(p)
$$;

-- What the database holds and looks like, a line a table, sequence and object: for `diff` with another server's.
CREATE OR REPLACE FUNCTION pgrollout.contents_lines() RETURNS TABLE (line text) LANGUAGE sql STABLE AS $$
    (SELECT format('table %s: %s rows, digest %s', t.key, t.value ->> 'rows', t.value ->> 'digest')
     FROM jsonb_each(pgrollout.digests(9223372036854775807)) AS t ORDER BY t.key)
    UNION ALL
    SELECT 'catalog: fingerprint ' || pgrollout.fingerprint_hash(pgrollout.fingerprint())
    UNION ALL
    (SELECT format('sequence %s: %s', q.key, q.value) FROM jsonb_each(pgrollout.sequence_values()) AS q ORDER BY q.key)
    UNION ALL
    (SELECT format('%s: %s', f.key, f.value) FROM jsonb_each_text(pgrollout.fingerprint()) AS f ORDER BY f.key)
$$;
