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

-- The key of the p_rows-th row after p_position; NULL when fewer are left.
CREATE OR REPLACE FUNCTION pgrollout.batch_end(p_spec jsonb, p_position jsonb, p_rows integer) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_end jsonb;
BEGIN
    EXECUTE format('SELECT jsonb_build_array(%s) FROM %s AS t WHERE %s ORDER BY %s OFFSET %s LIMIT 1',
        (SELECT string_agg(format('t.%I', k), ', ') FROM jsonb_array_elements_text(p_spec -> 'key') AS k),
        to_regclass(p_spec ->> 'table'),
        CASE WHEN p_position IS NULL THEN 'true'
             ELSE pgrollout.key_sql(p_spec, 't') || ' > ' || pgrollout.position_sql(p_spec, p_position) END,
        (SELECT string_agg(format('t.%I', k), ', ') FROM jsonb_array_elements_text(p_spec -> 'key') AS k),
        p_rows - 1) INTO v_end;
    RETURN v_end;
END
$$;

-- Changes the rows after p_from up to p_to (NULL: no bound) and keeps what they were. Returns how many it changed.
CREATE OR REPLACE FUNCTION pgrollout.change_batch(p_step text, p_spec jsonb, p_from jsonb, p_to jsonb) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_alias text := p_spec ->> 'alias';
    v_changed bigint;
BEGIN
    -- ORDER BY locks rows in key order, so that two sessions never wait for each other crosswise.
    EXECUTE format($sql$
        WITH locked AS MATERIALIZED (
            SELECT %1$s AS pgrollout_key, %2$s AS pgrollout_old, %3$s
            FROM %4$s AS %5$I WHERE %6$s AND %7$s AND (%8$s) ORDER BY %9$s FOR NO KEY UPDATE OF %5$I
        ), changed AS (
            UPDATE %4$s AS %5$I SET %10$s FROM locked WHERE %11$s
            RETURNING locked.pgrollout_key AS key, locked.pgrollout_old AS old, %2$s AS new
        ), kept AS (
            INSERT INTO pgrollout.row_change (step_id, key, old, new) SELECT %12$L, c.key, c.old, c.new FROM changed AS c
        )
        SELECT count(*) FROM changed$sql$,
        pgrollout.json_object_sql(p_spec -> 'key', v_alias),
        pgrollout.json_object_sql(p_spec -> 'columns', v_alias),
        (SELECT string_agg(format('%I.%I AS pgrollout_k%s', v_alias, k.name, k.place), ', ')
         FROM jsonb_array_elements_text(p_spec -> 'key') WITH ORDINALITY AS k (name, place)),
        to_regclass(p_spec ->> 'table'),
        v_alias,
        CASE WHEN p_from IS NULL THEN 'true'
             ELSE pgrollout.key_sql(p_spec, v_alias) || ' > ' || pgrollout.position_sql(p_spec, p_from) END,
        CASE WHEN p_to IS NULL THEN 'true'
             ELSE pgrollout.key_sql(p_spec, v_alias) || ' <= ' || pgrollout.position_sql(p_spec, p_to) END,
        p_spec ->> 'where',
        (SELECT string_agg(format('%I.%I', v_alias, k), ', ') FROM jsonb_array_elements_text(p_spec -> 'key') AS k),
        p_spec ->> 'set',
        (SELECT string_agg(format('%I.%I = locked.pgrollout_k%s', v_alias, k.name, k.place), ' AND ')
         FROM jsonb_array_elements_text(p_spec -> 'key') WITH ORDINALITY AS k (name, place)),
        p_step) INTO v_changed;
    RETURN v_changed;
END
$$;

-- The next batch's size from the last one's time: at most half again as many rows, at once fewer where it was too slow.
CREATE OR REPLACE FUNCTION pgrollout.next_batch_rows(p_rows integer, p_ms double precision, p_target_ms double precision, p_max integer)
RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT greatest(1, least(p_max, p_rows * 1.5, p_rows * p_target_ms / greatest(p_ms, 0.1)))::integer
$$;

-- The session's setting pgrollout.settings: {batch_rows, batch_max_rows, batch_target_ms, lock_timeout_max_ms, give_up_s}.
CREATE OR REPLACE PROCEDURE pgrollout.backfill(p_run bigint, p_step jsonb) LANGUAGE plpgsql AS $$
DECLARE
    v_settings jsonb := current_setting('pgrollout.settings')::jsonb;
    v_spec jsonb := p_step -> 'backfill';
    v_id text := p_step ->> 'id';
    v_cursor pgrollout.cursor;
    v_end jsonb;
    v_changed bigint;
    v_left bigint;
    v_begun timestamptz;
    v_first_failure timestamptz;
    v_blocked text;
    v_error text;
BEGIN
    IF to_regclass(v_spec ->> 'table') IS NULL THEN
        RAISE EXCEPTION 'table % does not exist', v_spec ->> 'table';
    END IF;
    IF EXISTS (SELECT FROM jsonb_array_elements_text((v_spec -> 'key') || (v_spec -> 'columns')) AS c
               WHERE NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = to_regclass(v_spec ->> 'table')
                                                               AND a.attname = c AND NOT a.attisdropped)) THEN
        RAISE EXCEPTION 'table % lacks a column of this backfill (key %, columns %)',
            v_spec ->> 'table', v_spec -> 'key', v_spec -> 'columns';
    END IF;
    PERFORM pgrollout.step_started(p_run, p_step);
    INSERT INTO pgrollout.cursor (step_id, batch_rows, rows_estimated)
    SELECT v_id, (v_settings ->> 'batch_rows')::integer, greatest(c.reltuples, 0)::bigint
    FROM pg_class AS c WHERE c.oid = to_regclass(v_spec ->> 'table')
    ON CONFLICT DO NOTHING;
    COMMIT;
    LOOP
        PERFORM pgrollout.check_run(p_run);
        SELECT * INTO v_cursor FROM pgrollout.cursor WHERE step_id = v_id;
        IF v_cursor.finished THEN
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
        v_begun := clock_timestamp();
        v_blocked := NULL;
        v_error := NULL;
        BEGIN
            PERFORM set_config('lock_timeout', (v_settings ->> 'lock_timeout_max_ms') || 'ms', true);
            v_end := pgrollout.batch_end(v_spec, v_cursor.position, v_cursor.batch_rows);
            v_changed := pgrollout.change_batch(v_id, v_spec, v_cursor.position, v_end);
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
            v_error := format('the row of %s with key %s fails: %s', v_spec ->> 'table',
                              coalesce(v_end, pgrollout.batch_end(v_spec, v_cursor.position, 1)), v_error);
            UPDATE pgrollout.cursor SET batch_rows = (v_settings ->> 'batch_rows')::integer WHERE step_id = v_id;
            PERFORM pgrollout.step_ended(p_run, p_step, 'failed', v_error, v_cursor.rows_changed);
            COMMIT;
            RAISE EXCEPTION '%', v_error USING HINT = 'Correct that row or the migration; the next run goes on with it.';
        ELSIF v_blocked IS NOT NULL THEN
            IF clock_timestamp() > v_first_failure + make_interval(secs => (v_settings ->> 'give_up_s')::double precision) THEN
                PERFORM pgrollout.step_ended(p_run, p_step, 'failed', 'blocked by ' || v_blocked, v_cursor.rows_changed);
                COMMIT;
                RAISE EXCEPTION 'gave up after % s; blocked by %', v_settings ->> 'give_up_s', v_blocked
                    USING HINT = 'Everything committed stays; start the same command again.';
            END IF;
            PERFORM pgrollout.note_waiting(p_run, p_step, v_blocked);
            CALL pgrollout.nap(0.2 + random() * 0.3);
        END IF;
        COMMIT;
    END LOOP;
    UPDATE pgrollout.cursor SET rows_left = v_left, updated_at = clock_timestamp() WHERE step_id = v_id;
    PERFORM pgrollout.step_ended(p_run, p_step, 'done',
        CASE WHEN v_left > 0 THEN format('%s rows came or changed since and are left as they are', v_left) END, v_cursor.rows_changed);
    COMMIT;
END
$$;

-- Puts back what a backfill changed, newest change first, where the row still holds what the backfill wrote: column by
-- column, so that a value of the application stays. A batch's history rows go in the transaction of the batch, so what
-- is left of them is the cursor. The step's own SQL (p_step ->> 'sql') runs once a batch and sees the rows put back as
-- restored(key, old, new).
CREATE OR REPLACE PROCEDURE pgrollout.restore(p_run bigint, p_step jsonb) LANGUAGE plpgsql AS $$
DECLARE
    v_settings jsonb := current_setting('pgrollout.settings')::jsonb;
    v_spec jsonb := p_step -> 'backfill';
    v_filled text := p_step ->> 'restores';
    v_batch integer := (v_settings ->> 'batch_rows')::integer;
    v_sql text;
    v_visited bigint;
    v_restored bigint;
    v_total bigint := 0;
    v_kept bigint := 0;
    v_begun timestamptz;
    v_first_failure timestamptz;
    v_blocked text;
BEGIN
    PERFORM pgrollout.step_started(p_run, p_step);
    UPDATE pgrollout.step SET state = 'restoring' WHERE step_id = v_filled;
    COMMIT;
    v_sql := format($sql$
        WITH taken AS (
            DELETE FROM pgrollout.row_change AS h
            WHERE h.step_id = %1$L AND h.change_id IN (
                SELECT n.change_id FROM pgrollout.row_change AS n WHERE n.step_id = %1$L ORDER BY n.change_id DESC LIMIT $1)
            RETURNING h.key, h.old, h.new
        ), restored AS (
            UPDATE %2$s AS t SET %3$s FROM taken WHERE %4$s AND (%5$s)
            RETURNING taken.key, taken.old, taken.new
        ), besides AS (%6$s)
        SELECT (SELECT count(*) FROM taken), (SELECT count(*) FROM restored)$sql$,
        v_filled,
        to_regclass(v_spec ->> 'table'),
        (SELECT string_agg(format('%1$I = CASE WHEN coalesce(to_jsonb(t.%1$I), ''null'') = taken.new -> %1$L '
                                  'THEN (jsonb_populate_record(NULL::%2$s, taken.old)).%1$I ELSE t.%1$I END', c, v_spec ->> 'table'), ', ')
         FROM jsonb_array_elements_text(v_spec -> 'columns') AS c),
        (SELECT string_agg(format('t.%1$I = (jsonb_populate_record(NULL::%2$s, taken.key)).%1$I', k, v_spec ->> 'table'), ' AND ')
         FROM jsonb_array_elements_text(v_spec -> 'key') AS k),
        (SELECT string_agg(format('coalesce(to_jsonb(t.%1$I), ''null'') = taken.new -> %1$L', c), ' OR ')
         FROM jsonb_array_elements_text(v_spec -> 'columns') AS c),
        p_step ->> 'sql' || CASE WHEN p_step ->> 'sql' ~* '^\s*select' THEN '' ELSE ' RETURNING 1' END);
    LOOP
        PERFORM pgrollout.check_run(p_run);
        v_begun := clock_timestamp();
        v_blocked := NULL;
        BEGIN
            PERFORM set_config('lock_timeout', (v_settings ->> 'lock_timeout_max_ms') || 'ms', true);
            EXECUTE v_sql INTO v_visited, v_restored USING v_batch;
            UPDATE pgrollout.run SET waiting_for = NULL WHERE run_id = p_run AND waiting_for IS NOT NULL;
            v_first_failure := NULL;
        EXCEPTION WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
            v_blocked := format('rows of %s that another transaction holds (%s)', v_spec ->> 'table', SQLERRM);
            v_first_failure := coalesce(v_first_failure, clock_timestamp());
        END;
        IF v_blocked IS NULL THEN
            v_total := v_total + v_restored;
            v_kept := v_kept + v_visited - v_restored;
            UPDATE pgrollout.step SET rows = v_total WHERE step_id = p_step ->> 'id';
        END IF;
        COMMIT;
        EXIT WHEN v_blocked IS NULL AND v_visited = 0;
        IF v_blocked IS NULL THEN
            v_batch := pgrollout.next_batch_rows(v_batch, extract(epoch FROM clock_timestamp() - v_begun) * 1000,
                (v_settings ->> 'batch_target_ms')::double precision, (v_settings ->> 'batch_max_rows')::integer);
        ELSIF clock_timestamp() > v_first_failure + make_interval(secs => (v_settings ->> 'give_up_s')::double precision) THEN
            PERFORM pgrollout.step_ended(p_run, p_step, 'failed', 'blocked by ' || v_blocked, v_total);
            COMMIT;
            RAISE EXCEPTION 'gave up after % s; blocked by %', v_settings ->> 'give_up_s', v_blocked
                USING HINT = 'Everything committed stays; start the same command again.';
        ELSE
            PERFORM pgrollout.note_waiting(p_run, p_step, v_blocked);
            CALL pgrollout.nap(0.2 + random() * 0.3);
        END IF;
    END LOOP;
    DELETE FROM pgrollout.cursor WHERE step_id = v_filled;
    PERFORM pgrollout.step_ended(p_run, p_step, 'done',
        CASE WHEN v_kept > 0 THEN format('%s rows keep what the application wrote or are gone', v_kept) END, v_total);
    COMMIT;
END
$$;
