-- Measures one gate: plans and runs its query for each set of parameters and each plan mode. The gate comes as JSON in
-- the setting pgrollout.gate; what was found is added to the JSON in pgrollout.measured, under the gate's id:
-- {version, tables: {name: {rows, bytes, analysed_s, indexes: {name: valid}}}, settings: {name: value}, cases: {case: {mode: {plan, parameters: [],
-- execution_ms: [], planning_ms: [], shared_blocks: [], error}}}}.
-- Each run is taken back, whatever the query wrote. Where the statement_timeout strikes, what was measured until then
-- stays and the run that was cut off has an error. It may strike anywhere, so all is done in blocks that
-- expect it.
DO $measure$
DECLARE
    gate jsonb;
    signature text;
    columns text;
    tables jsonb;
    settings jsonb;
    cases jsonb;
    modes jsonb;
    drawn text[];
    given text;
    chosen record;
    mode text;
    answer json;
    found jsonb;
    error text;
    unknown text;  -- why nothing is known of any case
    timed_out boolean := false;  -- the timeout is for all runs together, and strikes only once in a statement
BEGIN
    BEGIN
        gate := current_setting('pgrollout.gate')::jsonb;
        cases := '{}';
        SELECT string_agg(p ->> 'type', ', ' ORDER BY n), string_agg(format('q.%I::text', p ->> 'name'), ', ' ORDER BY n) INTO signature, columns
        FROM jsonb_array_elements(gate -> 'parameters') WITH ORDINALITY AS x (p, n);
        -- A partitioned table has the rows of its leaves, and is as old as the oldest of their statistics.
        SELECT jsonb_object_agg(r.name, jsonb_build_object('rows', s.rows, 'bytes', s.bytes, 'analysed_s', s.analysed_s, 'indexes',
                   (SELECT coalesce(jsonb_object_agg(i.relname, x.indisvalid), '{}')
                    FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid WHERE x.indrelid = to_regclass(r.name)))) INTO tables
        FROM jsonb_array_elements_text(gate -> 'relations') AS r (name)
        CROSS JOIN LATERAL (
            SELECT sum(greatest(c.reltuples, 0))::bigint AS rows, sum(pg_table_size(c.oid))::bigint AS bytes,
                   -- Of one that was never analysed nothing is known: NULL.
                   CASE WHEN bool_and(coalesce(t.last_analyze, t.last_autoanalyze) IS NOT NULL) THEN
                       round(max(extract(epoch FROM clock_timestamp() - greatest(t.last_analyze, t.last_autoanalyze)))) END AS analysed_s
            FROM (SELECT to_regclass(r.name)::oid WHERE NOT EXISTS (SELECT FROM pg_partition_tree(to_regclass(r.name)))
                  UNION ALL SELECT p.relid FROM pg_partition_tree(to_regclass(r.name)) AS p WHERE p.isleaf) AS leaf (oid)
            JOIN pg_class AS c USING (oid)
            LEFT JOIN pg_stat_all_tables AS t ON t.relid = c.oid) AS s
        WHERE s.rows IS NOT NULL;
        SELECT jsonb_object_agg(s.name, current_setting(s.name, true)) INTO settings
        FROM jsonb_object_keys(coalesce(gate -> 'preconditions' -> 'settings', '{}')) AS s (name);
        FOR chosen IN SELECT * FROM jsonb_each_text(gate -> 'cases') LOOP
            error := NULL;
            drawn := NULL;
            BEGIN
                IF signature IS NULL THEN
                    EXECUTE format('SELECT ARRAY[]::text[] FROM (%s) AS q LIMIT 1', chosen.value) INTO drawn;
                ELSE
                    EXECUTE format('SELECT ARRAY[%s] FROM (%s) AS q LIMIT 1', columns, chosen.value) INTO drawn;
                END IF;
                IF drawn IS NULL THEN
                    error := 'its parameters: the query that draws them returns no row';
                END IF;
            EXCEPTION WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
                RAISE;
            WHEN OTHERS OR query_canceled THEN
                error := 'its parameters: ' || SQLERRM;
                timed_out := SQLSTATE = '57014';
            END;
            IF error IS NOT NULL THEN
                cases := cases || jsonb_build_object(chosen.key, jsonb_build_object('error', error));
                EXIT WHEN timed_out;
                CONTINUE;
            END IF;
            SELECT string_agg(format('%L::%s', v, p ->> 'type'), ', ' ORDER BY n) INTO given
            FROM jsonb_array_elements(gate -> 'parameters') WITH ORDINALITY AS x (p, n) JOIN unnest(drawn) WITH ORDINALITY AS y (v, n) USING (n);
            modes := '{}';
            FOR mode IN SELECT * FROM jsonb_array_elements_text(gate -> 'plan_modes') LOOP
                found := jsonb_build_object('parameters', to_jsonb(drawn), 'execution_ms', '[]'::jsonb, 'planning_ms', '[]'::jsonb, 'shared_blocks', '[]'::jsonb);
                BEGIN
                    PERFORM set_config('plan_cache_mode', format('force_%s_plan', mode), true);
                    EXECUTE format('PREPARE pgrollout_gate %s AS %s', '(' || signature || ')', gate ->> 'sql');
                    FOR run IN 1 - (gate -> 'sampling' ->> 'warmup')::integer .. (gate -> 'sampling' ->> 'runs')::integer LOOP
                        BEGIN
                            EXECUTE format('EXPLAIN (ANALYZE, BUFFERS, VERBOSE, SETTINGS, FORMAT JSON) EXECUTE pgrollout_gate %s', '(' || given || ')') INTO answer;
                            RAISE EXCEPTION USING ERRCODE = 'PGR00', MESSAGE = 'measured, and taken back';
                        EXCEPTION WHEN SQLSTATE 'PGR00' THEN
                            NULL;
                        END;
                        IF run > 0 THEN
                            found := found || jsonb_build_object(
                                'plan', answer -> 0,
                                'execution_ms', found -> 'execution_ms' || (answer -> 0 -> 'Execution Time')::jsonb,
                                'planning_ms', found -> 'planning_ms' || (answer -> 0 -> 'Planning Time')::jsonb,
                                'shared_blocks', found -> 'shared_blocks' || to_jsonb(
                                    (answer -> 0 -> 'Plan' ->> 'Shared Hit Blocks')::bigint + (answer -> 0 -> 'Plan' ->> 'Shared Read Blocks')::bigint));
                        END IF;
                    END LOOP;
                EXCEPTION WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
                    RAISE;
                WHEN OTHERS OR query_canceled THEN
                    found := found || jsonb_build_object('error', SQLERRM, 'sqlstate', SQLSTATE);
                    timed_out := SQLSTATE = '57014';
                END;
                IF EXISTS (SELECT FROM pg_prepared_statements WHERE name = 'pgrollout_gate') THEN
                    DEALLOCATE pgrollout_gate;
                END IF;
                modes := modes || jsonb_build_object(mode, found);
                EXIT WHEN timed_out;
            END LOOP;
            cases := cases || jsonb_build_object(chosen.key, modes);
            EXIT WHEN timed_out;
        END LOOP;
    EXCEPTION WHEN OTHERS OR query_canceled THEN  -- tells nothing of the query
        unknown := CASE WHEN SQLSTATE <> '57014' THEN SQLERRM END;
    END;
    FOR attempt IN 1 .. 2 LOOP  -- the timeout strikes once in a statement, so at the second attempt no more
        BEGIN
            IF EXISTS (SELECT FROM pg_prepared_statements WHERE name = 'pgrollout_gate') THEN
                DEALLOCATE pgrollout_gate;
            END IF;
            gate := current_setting('pgrollout.gate')::jsonb;
            IF unknown IS NOT NULL THEN
                SELECT jsonb_object_agg(c.key, jsonb_build_object('error', unknown)) INTO cases FROM jsonb_each(gate -> 'cases') AS c;
            END IF;
            PERFORM set_config('pgrollout.measured', (current_setting('pgrollout.measured')::jsonb || jsonb_build_object(gate ->> 'id', jsonb_build_object(
                'version', current_setting('server_version_num')::integer, 'tables', coalesce(tables, '{}'),
                'settings', coalesce(settings, '{}'), 'cases', coalesce(cases, '{}'))))::text, false);
            EXIT;
        EXCEPTION WHEN query_canceled THEN
            NULL;
        END;
    END LOOP;
END
$measure$
