-- Whether the rows that stood before a run still do: each table against its digest from before the run's first phase,
-- with what the rollout itself filled undone, and what the application wrote meanwhile told apart by the server's counts.

-- digest() of a table's rows of p_where as if the backfills p_fills ([{id, columns}]) had not been: where a row still holds what one
-- wrote, what it was before counts. `filled`: how many rows that were. `stood`: the same of those rows alone that p_visible
-- saw and nothing but a backfill has written since.
CREATE OR REPLACE FUNCTION pgrollout.digest_undone(p_table regclass, p_columns text[], p_fills jsonb, p_where text, p_visible pg_snapshot) RETURNS jsonb LANGUAGE plpgsql STABLE
SET search_path = pg_catalog SET lc_monetary = 'C' SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD' SET "IntervalStyle" = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex' AS $$
DECLARE
    v_row text := (SELECT format('%I.%I', n.nspname, y.typname) FROM pg_class AS c JOIN pg_type AS y ON y.oid = c.reltype
                   JOIN pg_namespace AS n ON n.oid = y.typnamespace WHERE c.oid = p_table);
    v_fill jsonb;
    v_number integer := 0;
    v_joins text := '';
    v_values jsonb := (SELECT jsonb_object_agg(c, format('t.%I', c)) FROM unnest(p_columns) AS c);
    v_filled text := 'false';
    -- A row's xmin is half a transaction's number; age() puts the halves in their order, also across a wraparound.
    v_seen text := coalesce(format('(age(t.xmin) > age(%L::xid) AND t.xmin::text <> ALL (%L))', pg_snapshot_xmax(p_visible)::xid,
                                   ARRAY(SELECT x::xid::text FROM pg_snapshot_xip(p_visible) AS x)), 'false');
    v_answer jsonb;
BEGIN
    FOR v_fill IN SELECT f FROM jsonb_array_elements(p_fills) AS f LOOP
        v_number := v_number + 1;
        v_joins := v_joins || format(
            ' LEFT JOIN (SELECT h.key, (array_agg(h.old ORDER BY h.change_id))[1] AS old, (array_agg(h.new ORDER BY h.change_id DESC))[1] AS new'
            ' FROM pgrollout.row_change AS h WHERE h.step_id = %L GROUP BY h.key) AS h%s ON %s', v_fill ->> 'id', v_number,
            (SELECT string_agg(format('t.%1$I = (jsonb_populate_record(NULL::%2$s, h%3$s.key)).%1$I', k, v_row, v_number), ' AND ')
             FROM jsonb_object_keys((SELECT h.key FROM pgrollout.row_change AS h WHERE h.step_id = v_fill ->> 'id' LIMIT 1)) AS k));
        v_filled := format('%s OR h%s.key IS NOT NULL', v_filled, v_number);
        SELECT v_values || coalesce(jsonb_object_agg(c, format(
                   'CASE WHEN h%1$s.key IS NOT NULL AND coalesce(to_jsonb(t.%2$I), ''null'') = h%1$s.new -> %2$L '
                   'THEN (jsonb_populate_record(NULL::%3$s, h%1$s.old)).%2$I ELSE %4$s END', v_number, c, v_row, v_values ->> c)), '{}')
        INTO v_values
        FROM jsonb_array_elements_text(v_fill -> 'columns') AS c WHERE c = ANY (p_columns);
    END LOOP;
    EXECUTE format('SELECT jsonb_build_object(''rows'', count(*), ''filled'', count(*) FILTER (WHERE filled), ''digest'', coalesce(sum(hash), 0)::text, '
                   '''stood'', jsonb_build_object(''rows'', count(*) FILTER (WHERE seen OR filled), ''digest'', coalesce(sum(hash) FILTER (WHERE seen OR filled), 0)::text)) '
                   'FROM (SELECT hashtextextended(ROW(%s)::text, 0)::numeric AS hash, %s AS filled, %s AS seen FROM ONLY %s AS t%s WHERE %s) AS r',
        (SELECT string_agg(v_values ->> c, ', ' ORDER BY c) FROM unnest(p_columns) AS c), v_filled, v_seen, p_table, v_joins, p_where) INTO v_answer;
    RETURN v_answer;
END
$$;

-- Each table that stood before p_phase: `equal` to what it was (but for `filled` rows into which the rollout wrote);
-- `added to`: it holds every row as it was, and others besides; `written` meanwhile, with the rows that the server counts as inserted, updated and deleted since (counts come seconds
-- late, so they explain and do not prove); `not compared`, and why.
-- p_fills: the backfills of the rollout, [{id, phase, table, columns}].
CREATE OR REPLACE FUNCTION pgrollout.integrity(p_phase text, p_fills jsonb)
RETURNS TABLE (table_name text, state text, why text, rows_before bigint, rows_now bigint, filled bigint, inserted bigint, updated bigint, deleted bigint)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_was record;
    v_table regclass;
    v_columns text[];
    v_gone text;
    v_now jsonb;
    v_then jsonb;
BEGIN
    FOR v_was IN SELECT d.key, d.value, s.taken_at, s.visible, s.statistics -> 'tables' AS tables
                 FROM pgrollout.snapshot AS s, jsonb_each(s.digests) AS d WHERE s.phase = p_phase ORDER BY 1 LOOP
        table_name := v_was.key || CASE WHEN v_was.value ? 'sampled' THEN ' (a sample)' ELSE '' END;
        rows_before := (v_was.value ->> 'rows')::bigint;
        state := 'not compared';
        SELECT NULL, NULL, NULL, NULL, NULL, NULL INTO why, rows_now, filled, inserted, updated, deleted;
        v_table := to_regclass(v_was.key);
        v_columns := ARRAY(SELECT jsonb_array_elements_text(v_was.value -> 'columns'));
        SELECT string_agg(c, ', ') INTO v_gone FROM unnest(v_columns) AS c
        WHERE NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = v_table AND a.attname = c AND NOT a.attisdropped);
        why := CASE WHEN v_was.value ? 'skipped' THEN v_was.value ->> 'skipped' WHEN v_table IS NULL THEN 'it is gone'
                    WHEN v_gone IS NOT NULL THEN 'it has no longer ' || v_gone END;
        IF why IS NULL THEN
            v_now := pgrollout.digest_undone(v_table, v_columns, (
                SELECT coalesce(jsonb_agg(f ORDER BY f ->> 'id'), '[]') FROM jsonb_array_elements(p_fills) AS f
                JOIN pgrollout.snapshot AS s ON s.phase = f ->> 'phase' AND s.taken_at >= v_was.taken_at
                WHERE to_regclass(f ->> 'table') IN (v_table, pg_partition_root(v_table))
                  AND EXISTS (SELECT FROM pgrollout.row_change AS h WHERE h.step_id = f ->> 'id')), coalesce(v_was.value ->> 'sampled', 'true'), v_was.visible);
            rows_now := (v_now ->> 'rows')::bigint;
            filled := (v_now ->> 'filled')::bigint;
            state := CASE WHEN v_now ->> 'digest' = v_was.value ->> 'digest' AND rows_now = rows_before THEN 'equal'
                          WHEN v_now -> 'stood' = jsonb_build_object('rows', rows_before, 'digest', v_was.value ->> 'digest') THEN 'added to'
                          ELSE 'written' END;
            v_then := v_was.tables -> (SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class AS c
                                       JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = v_table);
            SELECT s.n_tup_ins - (v_then ->> 'inserted')::bigint, s.n_tup_upd - (v_then ->> 'updated')::bigint, s.n_tup_del - (v_then ->> 'deleted')::bigint
            INTO inserted, updated, deleted
            FROM pg_stat_user_tables AS s
            WHERE s.relid = v_table AND pg_postmaster_start_time() < v_was.taken_at AND s.n_tup_ins >= (v_then ->> 'inserted')::bigint;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;

-- Compares what the run found before its first phase with what is there now, and keeps that for its report: a line about
-- all tables, then one for each that was added to, was written meanwhile or cannot be compared.
CREATE OR REPLACE FUNCTION pgrollout.keep_integrity(p_run bigint, p_fills jsonb) RETURNS void LANGUAGE sql AS $$
    WITH first AS (
        SELECT phase FROM pgrollout.phase_run WHERE run_id = p_run AND direction = 'apply' ORDER BY started_at LIMIT 1
    ), compared AS MATERIALIZED (
        SELECT i.*, f.phase FROM first AS f, pgrollout.integrity(f.phase, p_fills) AS i
    ), told AS (
        SELECT 1 AS place, '' AS name, format('%s of %s tables hold every row as it was before %s (%s %%)%s', count(*) FILTER (WHERE state IN ('equal', 'added to')), count(*), min(phase),
                   round(100.0 * count(*) FILTER (WHERE state IN ('equal', 'added to')) / count(*)),
                   CASE WHEN sum(filled) > 0 THEN format(', but for %s rows that the rollout filled', sum(filled)) ELSE '' END
                   || CASE WHEN bool_or(table_name LIKE '% (a sample)') THEN format('; sampled by key range, because they are large: %s',
                          string_agg(left(table_name, -length(' (a sample)')), ', ' ORDER BY table_name) FILTER (WHERE table_name LIKE '% (a sample)')) ELSE '' END) AS line
        FROM compared HAVING count(*) > 0
        UNION ALL
        SELECT 2, table_name, format('%s was added to: each of the %s rows is as it was, %s are new', table_name, rows_before, rows_now - rows_before)
        FROM compared WHERE state = 'added to'
        UNION ALL
        SELECT 2, table_name, format('%s was written meanwhile: %s rows then, %s now%s', table_name, rows_before, rows_now,
                   CASE WHEN inserted IS NULL THEN '; the server has begun to count anew since, so nothing tells how many were added or removed'
                        ELSE format('; the server counts %s added, %s removed, %s changed (%s of them by the rollout)', inserted, deleted, updated, least(filled, updated)) END)
        FROM compared WHERE state = 'written'
        UNION ALL
        SELECT 3, table_name, format('%s was not compared: %s', table_name, why) FROM compared WHERE state = 'not compared'
    )
    INSERT INTO pgrollout.event (run_id, what, detail)
    SELECT p_run, 'integrity', line FROM told ORDER BY place, name
$$;
