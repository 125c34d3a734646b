-- Changes rows of a live table in small transactions, each committed together with its cursor and its before-images.
--
-- A spec: {table, alias, key: [column], columns: [column], set, where, new_rows}. `set` and `where` are the author's SQL.
-- A row is decided once, when it is visited: locked, then tested, then changed.

-- The tables that hold a table's rows: itself, or its partitions.
CREATE OR REPLACE FUNCTION pgrollout.stored(p_table regclass) RETURNS SETOF regclass LANGUAGE sql STABLE AS $$
    SELECT p_table WHERE (SELECT c.relkind FROM pg_class AS c WHERE c.oid = p_table) <> 'p'
    UNION
    SELECT t.relid FROM pg_partition_tree(p_table) AS t WHERE t.isleaf
$$;

-- About how many rows a table has now: as dense as they were when it was last analysed, else 100 bytes each.
CREATE OR REPLACE FUNCTION pgrollout.estimated_rows(p_table regclass) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(CASE WHEN c.relpages > 0 AND c.reltuples > 0
                             THEN c.reltuples / c.relpages * (pg_relation_size(c.oid) / current_setting('block_size')::integer)
                             ELSE pg_relation_size(c.oid) / 100 END), 0)::bigint
    FROM pgrollout.stored(p_table) AS r JOIN pg_class AS c ON c.oid = r
$$;

-- The key columns of a spec as SQL: 't.id' or '(t.a, t.b)'.
CREATE OR REPLACE FUNCTION pgrollout.key_sql(p_spec jsonb, p_alias text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT format('(%s)', string_agg(format('%I.%I', p_alias, k), ', ')) FROM jsonb_array_elements_text(p_spec -> 'key') AS k
$$;

-- The types of the key columns, of a domain the type below it: what a domain checks and collates is the column's affair.
CREATE OR REPLACE FUNCTION pgrollout.key_types(p_spec jsonb) RETURNS text[] LANGUAGE sql STABLE AS $$
    WITH RECURSIVE base AS (
        SELECT k.place, a.atttypid AS type, a.atttypmod AS modifier
        FROM jsonb_array_elements_text(p_spec -> 'key') WITH ORDINALITY AS k (name, place)
        JOIN pg_attribute AS a ON a.attrelid = to_regclass(p_spec ->> 'table') AND a.attname = k.name
        UNION ALL
        SELECT b.place, t.typbasetype, t.typtypmod FROM base AS b JOIN pg_type AS t ON t.oid = b.type WHERE t.typtype = 'd'
    )
    SELECT array_agg(format_type(b.type, b.modifier) ORDER BY b.place) FROM base AS b JOIN pg_type AS t ON t.oid = b.type AND t.typtype <> 'd'
$$;

-- A position (JSON array of key values) as typed literals, so that the key's index is used: '5'::bigint, 'x'::text. Called
-- four times a batch, so the spec holds the types (see backfill) and this is PL/pgSQL, which keeps its plans.
CREATE OR REPLACE FUNCTION pgrollout.position_sql(p_spec jsonb, p_position jsonb) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_literals text[];
BEGIN
    FOR i IN 0 .. jsonb_array_length(p_position) - 1 LOOP
        v_literals[i + 1] := format('%L::%s', p_position ->> i, p_spec -> 'types' ->> i);
    END LOOP;
    RETURN array_to_string(v_literals, ', ');
END
$$;

CREATE OR REPLACE FUNCTION pgrollout.json_object_sql(p_columns jsonb, p_alias text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT format('jsonb_build_object(%s)', string_agg(format('%L, %I.%I', c, p_alias, c), ', '))
    FROM jsonb_array_elements_text(p_columns) AS c
$$;

-- The key of the p_rows-th row after p_position (NULL: from the first one) and not after p_last (NULL: no bound), of the
-- last such row where fewer are left; NULL where none is.
CREATE OR REPLACE FUNCTION pgrollout.batch_end(p_spec jsonb, p_position jsonb, p_last jsonb, p_rows integer) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_keys text := (SELECT string_agg(format('t.%I', k), ', ') FROM jsonb_array_elements_text(p_spec -> 'key') AS k);
    v_back text := (SELECT string_agg(format('t.%I DESC', k), ', ') FROM jsonb_array_elements_text(p_spec -> 'key') AS k);
    v_rows text := format('SELECT jsonb_build_array(%s) FROM %s AS t WHERE %s ORDER BY ', v_keys, to_regclass(p_spec ->> 'table'),
        concat_ws(' AND ', 'true',
                  CASE WHEN p_position IS NOT NULL THEN format('(%s) > (%s)', v_keys, pgrollout.position_sql(p_spec, p_position)) END,
                  CASE WHEN p_last IS NOT NULL THEN format('(%s) <= (%s)', v_keys, pgrollout.position_sql(p_spec, p_last)) END));
    v_end jsonb;
BEGIN
    EXECUTE format('%s %s OFFSET %s LIMIT 1', v_rows, v_keys, p_rows - 1) INTO v_end;
    IF v_end IS NULL THEN
        EXECUTE format('%s %s LIMIT 1', v_rows, v_back) INTO v_end;
    END IF;
    RETURN v_end;
END
$$;

-- A batch as SQL: changes the rows after p_from (NULL: from the first one) up to p_to, both written as key_sql is, and
-- keeps what they were. Returns how many it changed, how many of those have another key now, and (where a further pass
-- may follow) how many still meet the WHERE.
CREATE OR REPLACE FUNCTION pgrollout.batch_sql(p_step text, p_spec jsonb, p_from text, p_to text) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_alias text := p_spec ->> 'alias';
BEGIN
    IF p_spec ? 'kept' THEN
        RETURN pgrollout.keep_batch_sql(p_spec, concat_ws(' AND ',
            pgrollout.key_sql(p_spec, v_alias) || ' > ' || p_from, pgrollout.key_sql(p_spec, v_alias) || ' <= ' || p_to));
    END IF;
    -- ORDER BY locks rows in key order, so that two sessions never wait for each other crosswise; it
    -- also keeps an index that serves the author's WHERE from being read from end to end (prepare_batch forbids sorting).
    RETURN format($sql$
        WITH pgrollout_locked AS MATERIALIZED (
            SELECT %1$s AS pgrollout_key, %2$s AS pgrollout_old, %3$s
            FROM %4$s AS %5$I WHERE %6$s AND (%7$s) ORDER BY %8$s FOR NO KEY UPDATE OF %5$I
        ), pgrollout_changed AS (
            UPDATE %4$s AS %5$I SET %9$s FROM pgrollout_locked WHERE %10$s
            RETURNING pgrollout_key AS key, pgrollout_old AS old, %2$s AS new, NOT (%10$s) AS moved
        ), pgrollout_kept AS (
            INSERT INTO pgrollout.row_change (step_id, key, old, new) SELECT %11$L, c.key, c.old, c.new FROM pgrollout_changed AS c
        )
        SELECT count(*), count(*) FILTER (WHERE moved) FROM pgrollout_changed$sql$,
        pgrollout.json_object_sql(p_spec -> 'key', v_alias),
        pgrollout.json_object_sql(p_spec -> 'columns', v_alias),
        (SELECT string_agg(format('%I.%I AS pgrollout_k%s', v_alias, k.name, k.place), ', ')
         FROM jsonb_array_elements_text(p_spec -> 'key') WITH ORDINALITY AS k (name, place)),
        to_regclass(p_spec ->> 'table'),
        v_alias,
        concat_ws(' AND ', pgrollout.key_sql(p_spec, v_alias) || ' > ' || p_from, pgrollout.key_sql(p_spec, v_alias) || ' <= ' || p_to),
        p_spec ->> 'where',
        (SELECT string_agg(format('%I.%I', v_alias, k), ', ') FROM jsonb_array_elements_text(p_spec -> 'key') AS k),
        p_spec ->> 'set',
        (SELECT string_agg(format('%I.%I = pgrollout_k%s', v_alias, k.name, k.place), ' AND ')
         FROM jsonb_array_elements_text(p_spec -> 'key') WITH ORDINALITY AS k (name, place)),
        p_step);
END
$$;

-- Whether a plan (EXPLAIN VERBOSE as JSON) reads the table by conditions on an index that begins with the key's first
-- column and in no other way, so that a batch costs what its rows cost and not what the table costs.
CREATE OR REPLACE FUNCTION pgrollout.walks_index(p_plan jsonb, p_spec jsonb) RETURNS boolean LANGUAGE sql STABLE AS $$
    WITH stored AS (
        SELECT c.oid, c.relnamespace::regnamespace AS schema, c.relname
        FROM pgrollout.stored(to_regclass(p_spec ->> 'table')) AS r JOIN pg_class AS c ON c.oid = r
    )
    SELECT NOT EXISTS (
        SELECT FROM jsonb_path_query(p_plan, 'strict $.** ? (exists (@."Relation Name"))') AS node
        JOIN stored AS s ON s.relname = node ->> 'Relation Name' AND s.schema = to_regnamespace(quote_ident(node ->> 'Schema'))
        WHERE node ->> 'Node Type' LIKE '%Scan' AND NOT (node ? 'Index Cond' AND EXISTS (
            SELECT FROM pg_index AS x
            JOIN pg_class AS i ON i.oid = x.indexrelid AND i.relname = node ->> 'Index Name'
            JOIN pg_attribute AS a ON a.attrelid = s.oid AND a.attnum = x.indkey[0] AND a.attname = p_spec -> 'key' ->> 0
            WHERE x.indrelid = s.oid)))
$$;

-- The planner's settings that the batches take, for this transaction. A generic plan is made once, not for each batch.
CREATE OR REPLACE FUNCTION pgrollout.steer_planner(p_off text[]) RETURNS void LANGUAGE sql AS $$
    SELECT set_config('plan_cache_mode', 'force_generic_plan', true);
    SELECT set_config(s, 'off', true) FROM unnest(p_off) AS s;
$$;

-- Prepares the session's batches as the statement pgrollout_batch(from, to) and sees to it that they walk the key's
-- index; returns the planner's methods that are off for that. It must not depend on statistics, which may be old or
-- come anew half-way; the two joins go only where they are in the way, because the author's own SQL may want them.
CREATE OR REPLACE FUNCTION pgrollout.prepare_batch(p_step text, p_spec jsonb) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    v_types text[] := ARRAY(SELECT jsonb_array_elements_text(p_spec -> 'types'));
    v_keys integer := cardinality(v_types);
    v_off text[] := ARRAY['enable_seqscan', 'enable_bitmapscan', 'enable_sort'];
    v_joins text[];
    v_plan jsonb;
    v_small boolean := (SELECT sum(pg_relation_size(r)) FROM pgrollout.stored(to_regclass(p_spec ->> 'table')) AS r) <= 65536;
BEGIN
    FOREACH v_joins SLICE 1 IN ARRAY ARRAY[['', ''], ['enable_hashjoin', 'enable_mergejoin']] LOOP
        v_off := v_off || array_remove(v_joins, '');
        PERFORM pgrollout.steer_planner(v_off);
        -- A plan once made stays when the settings change, so it is prepared anew.
        IF EXISTS (SELECT FROM pg_prepared_statements WHERE name = 'pgrollout_batch') THEN
            DEALLOCATE pgrollout_batch;
        END IF;
        EXECUTE format('PREPARE pgrollout_batch (%s) AS %s', array_to_string(v_types || v_types, ', '),
            pgrollout.batch_sql(p_step, p_spec,
                (SELECT format('(%s)', string_agg('$' || n, ', ' ORDER BY n)) FROM generate_series(1, v_keys) AS n),
                (SELECT format('(%s)', string_agg('$' || n, ', ' ORDER BY n)) FROM generate_series(v_keys + 1, 2 * v_keys) AS n)));
        EXECUTE format('EXPLAIN (VERBOSE, FORMAT JSON) EXECUTE pgrollout_batch (%s)',
            array_to_string(array_fill('NULL'::text, ARRAY[2 * v_keys]), ', ')) INTO v_plan;
        -- Where a table has a few pages, any way to read it is as good as another.
        IF v_small OR pgrollout.walks_index(v_plan, p_spec) THEN
            RETURN v_off;
        END IF;
    END LOOP;
    RAISE EXCEPTION 'each batch of this backfill would read all of %, because its plan does not go by the index on (%)', p_spec ->> 'table',
        (SELECT string_agg(k, ', ') FROM jsonb_array_elements_text(p_spec -> 'key') AS k)
        USING HINT = 'The index must have the collation of its columns, and SET and WHERE no sub-select that reads the whole table.';
END
$$;

-- Changes the batch after p_from up to p_to and returns how many rows those are. p_first: no row was changed before.
CREATE OR REPLACE FUNCTION pgrollout.change_batch(p_step text, p_spec jsonb, p_from jsonb, p_to jsonb, p_first boolean) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_changed bigint;
    v_moved bigint;
    v_again bigint;
BEGIN
    IF p_from IS NULL THEN
        EXECUTE pgrollout.batch_sql(p_step, p_spec, NULL, format('(%s)', pgrollout.position_sql(p_spec, p_to))) INTO v_changed, v_moved;
    ELSE
        EXECUTE format('EXECUTE pgrollout_batch (%s, %s)', pgrollout.position_sql(p_spec, p_from), pgrollout.position_sql(p_spec, p_to)) INTO v_changed, v_moved;
    END IF;
    IF p_spec ? 'kept' THEN
        PERFORM pgrollout.check_kept((p_spec ->> 'kept')::bigint);
    ELSIF v_moved > 0 THEN
        RAISE EXCEPTION 'a trigger gives it another key, so that it would be visited again';
    -- Asked in a statement of its own, which sees what triggers have written, and of the first rows: they stand for all.
    ELSIF p_first AND v_changed > 0 AND p_spec ->> 'new_rows' LIKE 'trigger%' THEN
        EXECUTE format('SELECT count(*) FROM %s AS %I WHERE %s AND (%s)', to_regclass(p_spec ->> 'table'), p_spec ->> 'alias',
            concat_ws(' AND ', pgrollout.key_sql(p_spec, p_spec ->> 'alias') || CASE WHEN p_from IS NOT NULL THEN format(' > (%s)', pgrollout.position_sql(p_spec, p_from)) END,
                      pgrollout.key_sql(p_spec, p_spec ->> 'alias') || format(' <= (%s)', pgrollout.position_sql(p_spec, p_to))),
            p_spec ->> 'where') INTO v_again;
        IF v_again >= v_changed THEN
            RAISE EXCEPTION 'it still meets the WHERE after its change, so that the next pass would change it again';
        END IF;
    END IF;
    RETURN v_changed;
END
$$;

-- The next batch's size from the last one's time: at most half again as many rows, at once fewer where it was too slow.
CREATE OR REPLACE FUNCTION pgrollout.next_batch_rows(p_rows integer, p_ms double precision, p_target_ms double precision, p_max integer)
RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT greatest(1, least(p_max, p_rows * 1.5, p_rows * p_target_ms / greatest(p_ms, 0.1)))::integer
$$;

-- Raises unless a backfill can visit each row of the table once, in the order of the key that its spec names.
CREATE OR REPLACE FUNCTION pgrollout.check_spec(p_spec jsonb) RETURNS void LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_table regclass := to_regclass(p_spec ->> 'table');
    v_key text[] := ARRAY(SELECT jsonb_array_elements_text(p_spec -> 'key'));
    v_columns text[] := ARRAY(SELECT jsonb_array_elements_text(p_spec -> 'columns'));
    v_found text;
    v_keys text[];
BEGIN
    IF v_table IS NULL THEN
        RAISE EXCEPTION 'table % does not exist', p_spec ->> 'table';
    ELSIF NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = v_table AND (c.relkind = 'p' OR c.relkind = 'r'
                          AND NOT EXISTS (SELECT FROM pg_inherits AS h WHERE h.inhparent = v_table))) THEN
        RAISE EXCEPTION '% is neither a table without heirs nor a partitioned one, so no key of it is sure to be unique', v_table;
    END IF;
    SELECT string_agg(c, ', ') INTO v_found FROM unnest(v_key || v_columns) AS c
    WHERE NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = v_table AND a.attname = c AND a.attnum > 0 AND NOT a.attisdropped);
    IF v_found IS NOT NULL THEN
        RAISE EXCEPTION 'table % has no column %, which this backfill names', v_table, v_found;
    END IF;
    SELECT string_agg(c, ', ') INTO v_found FROM unnest(v_columns) AS c WHERE c = ANY (v_key);
    IF v_found IS NOT NULL THEN
        RAISE EXCEPTION 'this backfill of % sets %, by which it goes from row to row', v_table, v_found
            USING HINT = 'Name another unique key in ''-- Backfill: by …''.';
    END IF;
    -- A position is kept as JSON and read back as text, which these types do not survive.
    SELECT string_agg(t.name, ', ') INTO v_found
    FROM pg_attribute AS a CROSS JOIN format_type(a.atttypid, a.atttypmod) AS t (name) JOIN pg_type AS y ON y.oid = a.atttypid
    WHERE a.attrelid = v_table AND a.attname = ANY (v_key) AND (y.typcategory IN ('A', 'C') OR t.name IN ('json', 'jsonb'));
    IF v_found IS NOT NULL THEN
        RAISE EXCEPTION 'a backfill cannot go through % by a key of type %', v_table, v_found
            USING HINT = 'Name another unique key in ''-- Backfill: by …''.';
    END IF;
    v_keys := ARRAY(
        SELECT string_agg(a.attname, ', ' ORDER BY k.place)
        FROM pg_index AS i
        CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (number, place)
        LEFT JOIN pg_attribute AS a ON a.attrelid = v_table AND a.attnum = k.number AND a.attnotnull
        WHERE i.indrelid = v_table AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND k.place <= i.indnkeyatts
        GROUP BY i.indexrelid HAVING count(a.attname) = count(*) ORDER BY i.indexrelid);
    IF array_to_string(v_key, ', ') <> ALL (v_keys) THEN
        RAISE EXCEPTION 'a backfill cannot go through % by %: no valid unique index without a WHERE has exactly these columns, all NOT NULL',
            v_table, array_to_string(v_key, ', ')
            USING HINT = CASE WHEN v_keys = '{}' THEN 'The table has no such index at all; a primary key is one.'
                              ELSE 'It has one on: ' || array_to_string(v_keys, '; ') END;
    END IF;
    IF p_spec ->> 'new_rows' LIKE 'trigger%' AND p_spec ->> 'where' = 'true' THEN
        RAISE EXCEPTION 'the backfill of % needs a WHERE that tells which rows want their value yet, since its new rows get it by a trigger', v_table;
    END IF;
END
$$;

-- Ends a step as failed, in a transaction of its own, and raises.
CREATE OR REPLACE PROCEDURE pgrollout.fail_step(p_run bigint, p_step jsonb, p_message text, p_hint text, p_rows bigint)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pgrollout.step_ended(p_run, p_step, 'failed', p_message, p_rows);
    COMMIT;
    RAISE EXCEPTION '%', p_message USING HINT = p_hint;
END
$$;

-- Works until p_part (of 1) of the rows are visited, or all. The session's setting pgrollout.settings: {batch_rows,
-- batch_max_rows, batch_target_ms, lock_timeout_max_ms, give_up_s, …}; throttle() reads some more.
CREATE OR REPLACE PROCEDURE pgrollout.backfill(p_run bigint, p_step jsonb, p_part double precision) LANGUAGE plpgsql AS $$
DECLARE
    v_settings jsonb := current_setting('pgrollout.settings')::jsonb;
    -- Of a rollback's step that keeps columns, the walk over what is in them.
    v_spec jsonb := coalesce(pgrollout.keep_spec(p_step ->> 'keeps'), p_step -> 'backfill');
    v_id text := p_step ->> 'id';
    v_table regclass := to_regclass(v_spec ->> 'table');
    v_cursor pgrollout.cursor;
    v_off text[];
    v_end jsonb;
    v_changed bigint;
    v_left bigint;
    v_begun timestamptz;
    v_ms double precision;
    v_rest_ms double precision := 0;  -- after the batch before
    v_looked timestamptz := '-infinity';
    v_first_failure timestamptz;
    v_blocked text;
    v_error text;
BEGIN
    PERFORM pgrollout.check_spec(v_spec);
    v_spec := v_spec || jsonb_build_object('types', pgrollout.key_types(v_spec));
    IF NOT EXISTS (SELECT FROM pgrollout.step WHERE step_id = v_id AND run_id = p_run AND state = 'started') THEN
        PERFORM pgrollout.step_started(p_run, p_step);
    END IF;
    v_off := pgrollout.prepare_batch(v_id, v_spec);
    INSERT INTO pgrollout.cursor (step_id, batch_rows, rows_estimated)
    VALUES (v_id, (v_settings ->> 'batch_rows')::integer, pgrollout.estimated_rows(v_table)) ON CONFLICT DO NOTHING;
    -- The pass ends at the row that is the last one now: the application may insert behind it faster than a batch is done.
    UPDATE pgrollout.cursor SET last = pgrollout.batch_end(v_spec, NULL, NULL, 2147483647) WHERE step_id = v_id AND last IS NULL;
    COMMIT;
    LOOP
        PERFORM pgrollout.check_run(p_run);
        SELECT * INTO v_cursor FROM pgrollout.cursor WHERE step_id = v_id;
        IF v_cursor.finished THEN
            -- A backfill of every row leaves nothing by which to tell the rows that came since.
            EXIT WHEN p_part < 1 OR v_spec ->> 'where' = 'true' OR v_spec ? 'kept';
            EXECUTE format('SELECT count(*) FROM %s AS %I WHERE %s', v_table, v_spec ->> 'alias', v_spec ->> 'where') INTO v_left;
            EXIT WHEN v_left = 0 OR v_spec ->> 'new_rows' NOT LIKE 'trigger%';
            -- Rows that the declared trigger should have filled and did not: go over the table once more.
            IF v_cursor.pass >= 3 THEN
                -- The next run begins with three passes of its own.
                UPDATE pgrollout.cursor SET pass = 0 WHERE step_id = v_id;
                CALL pgrollout.fail_step(p_run, p_step, format('%s rows of %s still need this backfill after %s passes',
                    v_left, v_spec ->> 'table', v_cursor.pass), format('Is the trigger in place that fills new rows (%s)?', v_spec ->> 'new_rows'), v_cursor.rows_changed);
            END IF;
            UPDATE pgrollout.cursor
            SET finished = false, position = NULL, last = pgrollout.batch_end(v_spec, NULL, NULL, 2147483647), pass = pass + 1, rows_visited = 0, worked_ms = 0
            WHERE step_id = v_id;
            COMMIT;
            CONTINUE;
        END IF;
        EXIT WHEN p_part < 1 AND v_cursor.rows_visited >= p_part * v_cursor.rows_estimated;
        IF clock_timestamp() > v_looked + interval '1 second' THEN
            v_begun := clock_timestamp();
            CALL pgrollout.await_clearance(p_run, p_step, v_table, v_cursor.rows_changed);
            v_looked := clock_timestamp();
            v_first_failure := v_first_failure + (v_looked - v_begun);
        END IF;
        v_begun := clock_timestamp();
        v_blocked := NULL;
        v_error := NULL;
        BEGIN
            PERFORM set_config('lock_timeout', (v_settings ->> 'lock_timeout_max_ms') || 'ms', true),
                    -- A crash may take back the last batches: with their cursor, so they are done again, once.
                    set_config('synchronous_commit', 'off', true);
            PERFORM pgrollout.steer_planner(v_off);
            v_end := CASE WHEN v_cursor.last IS NOT NULL THEN pgrollout.batch_end(v_spec, v_cursor.position, v_cursor.last, v_cursor.batch_rows) END;
            v_changed := CASE WHEN v_end IS NULL THEN 0 ELSE pgrollout.change_batch(v_id, v_spec, v_cursor.position, v_end, v_cursor.rows_changed = 0) END;
            v_ms := extract(epoch FROM clock_timestamp() - v_begun) * 1000;
            UPDATE pgrollout.cursor
            SET position = coalesce(v_end, position), finished = v_end IS NULL, rows_changed = rows_changed + v_changed,
                rows_visited = CASE WHEN v_end IS NULL THEN greatest(rows_visited, rows_estimated) ELSE rows_visited + batch_rows END,
                batches = batches + 1, worked_ms = worked_ms + v_ms + v_rest_ms, updated_at = clock_timestamp(),
                batch_rows = pgrollout.next_batch_rows(batch_rows, v_ms,
                    (v_settings ->> 'batch_target_ms')::double precision, (v_settings ->> 'batch_max_rows')::integer)
            WHERE step_id = v_id;
            UPDATE pgrollout.run SET waiting_for = NULL WHERE run_id = p_run AND waiting_for IS NOT NULL;
            v_first_failure := NULL;
        EXCEPTION
            WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
                v_blocked := format('rows of %s that another transaction holds (%s)', v_spec ->> 'table', SQLERRM);
                v_first_failure := coalesce(v_first_failure, clock_timestamp());
            WHEN OTHERS THEN
                -- What no other row would escape either: SQL that does not fit the table, no space, the operator, a fault.
                IF SQLSTATE ~ '^(25|42|53|57|58|XX)' THEN
                    RAISE;
                END IF;
                v_error := SQLERRM;
        END;
        COMMIT;
        IF v_error IS NOT NULL AND v_cursor.batch_rows > 1 THEN
            -- Halve until the row that fails is alone, so that all before it are done and it can be named.
            UPDATE pgrollout.cursor SET batch_rows = batch_rows / 2 WHERE step_id = v_id;
        ELSIF v_error IS NOT NULL THEN
            UPDATE pgrollout.cursor SET batch_rows = (v_settings ->> 'batch_rows')::integer WHERE step_id = v_id;
            CALL pgrollout.fail_step(p_run, p_step, format('the row of %s with key %s fails: %s', v_spec ->> 'table', v_end, v_error),
                'Correct that row or the migration; the next run goes on with it.', v_cursor.rows_changed);
        ELSIF v_blocked IS NOT NULL THEN
            IF clock_timestamp() > v_first_failure + make_interval(secs => (v_settings ->> 'give_up_s')::double precision) THEN
                CALL pgrollout.fail_step(p_run, p_step, format('gave up after %s s; blocked by %s', v_settings ->> 'give_up_s', v_blocked),
                    'Everything committed stays; start the same command again.', v_cursor.rows_changed);
            END IF;
            PERFORM pgrollout.note_waiting(p_run, p_step, v_blocked);
            CALL pgrollout.nap(0.2 + random() * 0.3);
        ELSE
            v_rest_ms := pgrollout.rest_ms(v_settings, v_ms);
            CALL pgrollout.nap(v_rest_ms / 1000);
        END IF;
        COMMIT;
    END LOOP;
    IF v_cursor.finished AND p_part >= 1 THEN
        UPDATE pgrollout.cursor SET rows_left = v_left, updated_at = clock_timestamp() WHERE step_id = v_id;
        PERFORM pgrollout.step_ended(p_run, p_step, 'done',
            CASE WHEN v_left > 0 THEN format('%s rows meet its WHERE now and are left as they are', v_left) END, v_cursor.rows_changed);
        IF v_spec ? 'kept' THEN
            UPDATE pgrollout.kept SET copied = true WHERE kept_id = (v_spec ->> 'kept')::bigint;
            DELETE FROM pgrollout.cursor WHERE step_id = v_id;  -- the next rollback has a walk of its own
        END IF;
        COMMIT;
    END IF;
END
$$;
