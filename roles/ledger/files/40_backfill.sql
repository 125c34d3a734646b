-- Changes rows of a live table in small transactions, each committed together with its cursor and its before-images.
--
-- A spec: {table, alias, key: [column], columns: [column], set, where, new_rows}. `set` and `where` are the author's SQL.
-- A row is decided once, when it is visited: locked, then tested, then changed.

-- The key columns of a spec as SQL: 't.id' or '(t.a, t.b)'.
CREATE OR REPLACE FUNCTION pgrollout.key_sql(p_spec jsonb, p_alias text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT format('(%s)', string_agg(format('%I.%I', p_alias, k), ', ')) FROM jsonb_array_elements_text(p_spec -> 'key') AS k
$$;

-- A position (JSON array of key values) as a row of typed literals, so that the key's index is used.
CREATE OR REPLACE FUNCTION pgrollout.position_sql(p_spec jsonb, p_position jsonb) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format('(%s)', string_agg(format('%L::%s', p_position ->> (k.place::integer - 1), format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY k.place))
    FROM jsonb_array_elements_text(p_spec -> 'key') WITH ORDINALITY AS k (name, place)
    JOIN pg_attribute AS a ON a.attrelid = to_regclass(p_spec ->> 'table') AND a.attname = k.name
$$;

CREATE OR REPLACE FUNCTION pgrollout.json_object_sql(p_columns jsonb, p_alias text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT format('jsonb_build_object(%s)', string_agg(format('%L, %I.%I', c, p_alias, c), ', '))
    FROM jsonb_array_elements_text(p_columns) AS c
$$;

-- The key of the p_rows-th row after p_position, of the last row where fewer are left; NULL where none is.
CREATE OR REPLACE FUNCTION pgrollout.batch_end(p_spec jsonb, p_position jsonb, p_rows integer) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_keys text := (SELECT string_agg(format('t.%I', k), ', ') FROM jsonb_array_elements_text(p_spec -> 'key') AS k);
    v_back text := (SELECT string_agg(format('t.%I DESC', k), ', ') FROM jsonb_array_elements_text(p_spec -> 'key') AS k);
    v_rows text := format('SELECT jsonb_build_array(%s) FROM %s AS t WHERE %s ORDER BY ', v_keys, to_regclass(p_spec ->> 'table'),
        CASE WHEN p_position IS NULL THEN 'true'
             ELSE pgrollout.key_sql(p_spec, 't') || ' > ' || pgrollout.position_sql(p_spec, p_position) END);
    v_end jsonb;
BEGIN
    EXECUTE format('%s %s OFFSET %s LIMIT 1', v_rows, v_keys, p_rows - 1) INTO v_end;
    IF v_end IS NULL THEN
        EXECUTE format('%s %s LIMIT 1', v_rows, v_back) INTO v_end;
    END IF;
    RETURN v_end;
END
$$;

-- A batch as SQL: changes the rows after p_from (NULL: from the first one) up to p_to, both written as key_sql is, keeps
-- what they were and returns how many it changed.
CREATE OR REPLACE FUNCTION pgrollout.batch_sql(p_step text, p_spec jsonb, p_from text, p_to text) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_alias text := p_spec ->> 'alias';
BEGIN
    -- ORDER BY locks rows in key order, so that two sessions never wait for each other crosswise.
    RETURN format($sql$
        WITH locked AS MATERIALIZED (
            SELECT %1$s AS pgrollout_key, %2$s AS pgrollout_old, %3$s
            FROM %4$s AS %5$I WHERE %6$s AND (%7$s) ORDER BY %8$s FOR NO KEY UPDATE OF %5$I
        ), changed AS (
            UPDATE %4$s AS %5$I SET %9$s FROM locked WHERE %10$s
            RETURNING locked.pgrollout_key AS key, locked.pgrollout_old AS old, %2$s AS new
        ), kept AS (
            INSERT INTO pgrollout.row_change (step_id, key, old, new) SELECT %11$L, c.key, c.old, c.new FROM changed AS c
        )
        SELECT count(*) FROM changed$sql$,
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
        (SELECT string_agg(format('%I.%I = locked.pgrollout_k%s', v_alias, k.name, k.place), ' AND ')
         FROM jsonb_array_elements_text(p_spec -> 'key') WITH ORDINALITY AS k (name, place)),
        p_step);
END
$$;

-- Whether a plan of a batch reads the table (under its alias) by an index condition only, so that a batch costs what its
-- rows cost and not what the table costs.
CREATE OR REPLACE FUNCTION pgrollout.walks_index(p_plan jsonb, p_alias text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT NOT EXISTS (
        SELECT FROM jsonb_path_query(p_plan, '$.**{0 to last} ? (exists (@."Alias"))') AS node
        WHERE node ->> 'Node Type' LIKE '%Scan' AND NOT node ? 'CTE Name' AND node ->> 'Alias' ~ ('^' || p_alias || '(_\d+)?$')
          AND (node ->> 'Node Type' = 'Seq Scan' OR node ->> 'Node Type' LIKE 'Index%' AND NOT node ? 'Index Cond'))
$$;

-- Prepares the session's batches as the statement pgrollout_batch(from, to) and sees to it that they walk the key's
-- index; returns the settings that this takes. A plan made once saves a tenth of a batch's time.
CREATE OR REPLACE FUNCTION pgrollout.prepare_batch(p_step text, p_spec jsonb) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    v_types text[] := ARRAY(
        SELECT format_type(a.atttypid, a.atttypmod)
        FROM jsonb_array_elements_text(p_spec -> 'key') WITH ORDINALITY AS k (name, place)
        JOIN pg_attribute AS a ON a.attrelid = to_regclass(p_spec ->> 'table') AND a.attname = k.name ORDER BY k.place);
    v_keys integer := cardinality(v_types);
    v_prepare text := format('PREPARE pgrollout_batch (%s) AS %s', array_to_string(v_types || v_types, ', '),
        pgrollout.batch_sql(p_step, p_spec,
            (SELECT format('(%s)', string_agg('$' || n, ', ' ORDER BY n)) FROM generate_series(1, v_keys) AS n),
            (SELECT format('(%s)', string_agg('$' || n, ', ' ORDER BY n)) FROM generate_series(v_keys + 1, 2 * v_keys) AS n)));
    v_plan jsonb;
    v_off text[];
BEGIN
    PERFORM set_config('plan_cache_mode', 'force_generic_plan', true);
    FOREACH v_off SLICE 1 IN ARRAY ARRAY[['', '', ''], ['enable_seqscan', '', ''], ['enable_seqscan', 'enable_hashjoin', 'enable_mergejoin']] LOOP
        v_off := array_remove(v_off, '');
        PERFORM set_config(s, 'off', true) FROM unnest(v_off) AS s;
        -- Anew: a plan that was made under other settings is kept.
        IF EXISTS (SELECT FROM pg_prepared_statements WHERE name = 'pgrollout_batch') THEN
            DEALLOCATE pgrollout_batch;
        END IF;
        EXECUTE v_prepare;
        EXECUTE format('EXPLAIN (FORMAT JSON) EXECUTE pgrollout_batch (%s)', array_to_string(array_fill('NULL'::text, ARRAY[2 * v_keys]), ', ')) INTO v_plan;
        -- A table of a megabyte is read faster as a whole, and the planner knows it.
        IF pg_relation_size(to_regclass(p_spec ->> 'table')) <= 1024 * 1024 OR pgrollout.walks_index(v_plan, p_spec ->> 'alias') THEN
            RETURN v_off;
        END IF;
    END LOOP;
    RAISE EXCEPTION 'each batch of this backfill would read all of %, because no index on (%) serves it', p_spec ->> 'table',
        (SELECT string_agg(k, ', ') FROM jsonb_array_elements_text(p_spec -> 'key') AS k)
        USING HINT = 'Name the columns of the primary key or of a unique index in ''-- Backfill: by …''.';
END
$$;

-- Changes the batch after p_from up to p_to; p_off are the settings that prepare_batch has found.
CREATE OR REPLACE FUNCTION pgrollout.change_batch(p_step text, p_spec jsonb, p_from jsonb, p_to jsonb, p_off text[]) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_changed bigint;
BEGIN
    PERFORM set_config('plan_cache_mode', 'force_generic_plan', true);
    PERFORM set_config(s, 'off', true) FROM unnest(p_off) AS s;
    IF p_from IS NULL THEN
        EXECUTE pgrollout.batch_sql(p_step, p_spec, NULL, pgrollout.position_sql(p_spec, p_to)) INTO v_changed;
    ELSE
        EXECUTE format('EXECUTE pgrollout_batch (%s, %s)', trim('()' FROM pgrollout.position_sql(p_spec, p_from)),
            trim('()' FROM pgrollout.position_sql(p_spec, p_to))) INTO v_changed;
    END IF;
    RETURN v_changed;
END
$$;

-- The next batch's size from the last one's time: at most half again as many rows, at once fewer where it was too slow.
CREATE OR REPLACE FUNCTION pgrollout.next_batch_rows(p_rows integer, p_ms double precision, p_target_ms double precision, p_max integer)
RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT greatest(1, least(p_max, p_rows * 1.5, p_rows * p_target_ms / greatest(p_ms, 0.1)))::integer
$$;

-- Raises unless the table has the columns that a spec names.
CREATE OR REPLACE FUNCTION pgrollout.check_spec(p_spec jsonb) RETURNS void LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF to_regclass(p_spec ->> 'table') IS NULL THEN
        RAISE EXCEPTION 'table % does not exist', p_spec ->> 'table';
    END IF;
    IF EXISTS (SELECT FROM jsonb_array_elements_text((p_spec -> 'key') || (p_spec -> 'columns')) AS c
               WHERE NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = to_regclass(p_spec ->> 'table')
                                                               AND a.attname = c AND NOT a.attisdropped)) THEN
        RAISE EXCEPTION 'table % lacks a column of this backfill (key %, columns %)',
            p_spec ->> 'table', p_spec -> 'key', p_spec -> 'columns';
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
    v_spec jsonb := p_step -> 'backfill';
    v_id text := p_step ->> 'id';
    v_cursor pgrollout.cursor;
    v_off text[];
    v_end jsonb;
    v_changed bigint;
    v_left bigint;
    v_begun timestamptz;
    v_looked timestamptz := '-infinity';
    v_first_failure timestamptz;
    v_blocked text;
    v_error text;
BEGIN
    PERFORM pgrollout.check_spec(v_spec);
    IF NOT EXISTS (SELECT FROM pgrollout.step WHERE step_id = v_id AND run_id = p_run AND state = 'started') THEN
        PERFORM pgrollout.step_started(p_run, p_step);
    END IF;
    INSERT INTO pgrollout.cursor (step_id, batch_rows, rows_estimated)
    SELECT v_id, (v_settings ->> 'batch_rows')::integer,
           -- Never analysed: rows of 100 bytes are as good a guess as any.
           CASE WHEN c.reltuples > 0 THEN c.reltuples ELSE pg_relation_size(c.oid) / 100 END
    FROM pg_class AS c WHERE c.oid = to_regclass(v_spec ->> 'table')
    ON CONFLICT DO NOTHING;
    v_off := pgrollout.prepare_batch(v_id, v_spec);
    COMMIT;
    LOOP
        PERFORM pgrollout.check_run(p_run);
        SELECT * INTO v_cursor FROM pgrollout.cursor WHERE step_id = v_id;
        IF v_cursor.finished THEN
            EXIT WHEN p_part < 1;
            -- A row that the declared trigger should have filled and did not: go over the table once more.
            EXECUTE format('SELECT count(*) FROM %s AS %I WHERE %s', to_regclass(v_spec ->> 'table'), v_spec ->> 'alias', v_spec ->> 'where') INTO v_left;
            EXIT WHEN v_left = 0 OR v_spec ->> 'new_rows' NOT LIKE 'trigger%';
            IF v_cursor.pass >= 3 THEN
                RAISE EXCEPTION '% rows of % still need this backfill after % passes; is the trigger in place that fills new rows?',
                    v_left, v_spec ->> 'table', v_cursor.pass;
            END IF;
            UPDATE pgrollout.cursor SET finished = false, position = NULL, pass = pass + 1 WHERE step_id = v_id;
            COMMIT;
            CONTINUE;
        END IF;
        EXIT WHEN p_part < 1 AND v_cursor.rows_visited >= p_part * v_cursor.rows_estimated;
        IF clock_timestamp() > v_looked + interval '1 second' THEN
            CALL pgrollout.await_clearance(p_run, p_step, v_spec ->> 'table');
            v_looked := clock_timestamp();
        END IF;
        v_begun := clock_timestamp();
        v_blocked := NULL;
        v_error := NULL;
        BEGIN
            PERFORM set_config('lock_timeout', (v_settings ->> 'lock_timeout_max_ms') || 'ms', true),
                    -- A crash may take back the last batches: with their cursor, so they are done again, once.
                    set_config('synchronous_commit', 'off', true);
            v_end := pgrollout.batch_end(v_spec, v_cursor.position, v_cursor.batch_rows);
            v_changed := CASE WHEN v_end IS NULL THEN 0 ELSE pgrollout.change_batch(v_id, v_spec, v_cursor.position, v_end, v_off) END;
            UPDATE pgrollout.cursor
            SET position = coalesce(v_end, position), finished = v_end IS NULL, rows_changed = rows_changed + v_changed,
                rows_visited = CASE WHEN v_end IS NULL THEN greatest(rows_visited, rows_estimated) ELSE rows_visited + batch_rows END,
                batches = batches + 1, updated_at = clock_timestamp(),
                batch_rows = pgrollout.next_batch_rows(batch_rows, extract(epoch FROM clock_timestamp() - v_begun) * 1000,
                    (v_settings ->> 'batch_target_ms')::double precision, (v_settings ->> 'batch_max_rows')::integer)
            WHERE step_id = v_id;
            UPDATE pgrollout.run SET waiting_for = NULL WHERE run_id = p_run AND waiting_for IS NOT NULL;
            v_first_failure := NULL;
        EXCEPTION
            WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
                v_blocked := format('rows of %s that another transaction holds (%s)', v_spec ->> 'table', SQLERRM);
                v_first_failure := coalesce(v_first_failure, clock_timestamp());
            WHEN data_exception OR integrity_constraint_violation OR raise_exception THEN
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
        END IF;
        COMMIT;
    END LOOP;
    IF v_cursor.finished AND p_part >= 1 THEN
        UPDATE pgrollout.cursor SET rows_left = v_left, updated_at = clock_timestamp() WHERE step_id = v_id;
        PERFORM pgrollout.step_ended(p_run, p_step, 'done',
            CASE WHEN v_left > 0 THEN format('%s rows came or changed since and are left as they are', v_left) END, v_cursor.rows_changed);
        COMMIT;
    END IF;
END
$$;
