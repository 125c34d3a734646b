-- Puts back what a backfill changed, newest change first, where the row still holds what the backfill wrote: column by
-- column, so that a value of the application stays. A batch's history rows go in the transaction of the batch, so what
-- is left of them is the cursor. The step's own SQL (p_step ->> 'sql') runs once a batch and sees the rows put back as
-- restored(key, old, new). One call puts back p_share of the changes that are left; with 1 the step is done.
CREATE OR REPLACE PROCEDURE pgrollout.restore(p_run bigint, p_step jsonb, p_share double precision) LANGUAGE plpgsql AS $$
DECLARE
    v_settings jsonb := current_setting('pgrollout.settings')::jsonb;
    v_spec jsonb := p_step -> 'backfill';
    v_filled text := p_step ->> 'restores';
    v_table regclass := to_regclass(v_spec ->> 'table');
    -- The type of its rows, qualified: a table may bear the name of a type of the system.
    v_row text := (SELECT format('%I.%I', n.nspname, y.typname) FROM pg_class AS c JOIN pg_type AS y ON y.oid = c.reltype
                   JOIN pg_namespace AS n ON n.oid = y.typnamespace WHERE c.oid = v_table);
    v_batch integer := (v_settings ->> 'batch_rows')::integer;
    v_sql text;
    v_share bigint;  -- how many changes this call takes
    v_visited bigint;
    v_restored bigint;
    v_taken bigint := 0;
    v_total bigint;
    v_kept bigint;
    v_begun timestamptz;
    v_ms double precision;
    v_looked timestamptz := '-infinity';
    v_first_failure timestamptz;
    v_blocked text;
    v_refused bigint := 0;  -- kept values that the table does not take any more
    v_why text;
BEGIN
    IF NOT EXISTS (SELECT FROM pgrollout.step WHERE step_id = p_step ->> 'id' AND run_id = p_run AND state = 'started') THEN
        PERFORM pgrollout.step_started(p_run, p_step), set_config('pgrollout.kept', '0', false);
        UPDATE pgrollout.step SET state = 'restoring' WHERE step_id = v_filled;
    END IF;
    COMMIT;
    SELECT rows, coalesce(nullif(current_setting('pgrollout.kept', true), ''), '0')::bigint INTO v_total, v_kept FROM pgrollout.step WHERE step_id = p_step ->> 'id';
    SELECT CASE WHEN p_share < 1 THEN ceil(count(*) * p_share) END INTO v_share FROM pgrollout.row_change WHERE step_id = v_filled;
    v_sql := format($sql$
        WITH taken AS (
            DELETE FROM pgrollout.row_change AS h
            WHERE h.step_id = %1$L AND h.change_id IN (
                SELECT n.change_id FROM pgrollout.row_change AS n WHERE n.step_id = %1$L ORDER BY n.change_id DESC LIMIT $1)
            RETURNING h.change_id, h.key, h.old, h.new
        ), newest AS (
            -- A row that a second pass changed again: what it was before that change did not hold what the first wrote.
            SELECT DISTINCT ON (t.key) t.key, t.old, t.new FROM taken AS t ORDER BY t.key, t.change_id DESC
        ), restored AS (
            UPDATE %2$s AS t SET %3$s FROM newest WHERE %4$s AND (%5$s)
            RETURNING newest.key, newest.old, newest.new
        ), besides AS (%6$s)
        SELECT (SELECT count(*) FROM taken), (SELECT count(*) FROM restored)$sql$,
        v_filled,
        v_table,
        (SELECT string_agg(format('%1$I = CASE WHEN coalesce(to_jsonb(t.%1$I), ''null'') = newest.new -> %1$L '
                                  'THEN (jsonb_populate_record(NULL::%2$s, newest.old)).%1$I ELSE t.%1$I END', c, v_row), ', ')
         FROM jsonb_array_elements_text(v_spec -> 'columns') AS c),
        (SELECT string_agg(format('t.%1$I = (jsonb_populate_record(NULL::%2$s, newest.key)).%1$I', k, v_row), ' AND ')
         FROM jsonb_array_elements_text(v_spec -> 'key') AS k),
        (SELECT string_agg(format('coalesce(to_jsonb(t.%1$I), ''null'') = newest.new -> %1$L', c), ' OR ')
         FROM jsonb_array_elements_text(v_spec -> 'columns') AS c),
        p_step ->> 'sql' || CASE WHEN p_step ->> 'sql' ~* '^\s*select' THEN '' ELSE ' RETURNING 1' END);
    LOOP
        PERFORM pgrollout.check_run(p_run);
        IF clock_timestamp() > v_looked + interval '1 second' THEN
            v_begun := clock_timestamp();
            CALL pgrollout.await_clearance(p_run, p_step, v_table, v_total);
            v_looked := clock_timestamp();
            v_first_failure := v_first_failure + (v_looked - v_begun);
        END IF;
        v_begun := clock_timestamp();
        v_blocked := NULL;
        BEGIN
            PERFORM set_config('lock_timeout', (v_settings ->> 'lock_timeout_max_ms') || 'ms', true),
                    set_config('synchronous_commit', 'off', true),
                    -- Old statistics must not make each batch read the whole table.
                    set_config('enable_seqscan', 'off', true);
            EXECUTE v_sql INTO v_visited, v_restored USING v_batch;
            UPDATE pgrollout.run SET waiting_for = NULL WHERE run_id = p_run AND waiting_for IS NOT NULL;
            v_first_failure := NULL;
        EXCEPTION WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
            v_blocked := format('rows of %s that another transaction holds (%s)', v_spec ->> 'table', SQLERRM);
            v_first_failure := coalesce(v_first_failure, clock_timestamp());
        WHEN integrity_constraint_violation THEN
            IF NOT p_step ? 'gives_back' THEN
                RAISE;
            ELSIF v_batch = 1 THEN
                UPDATE pgrollout.row_change SET step_id = v_filled || ' (refused)'
                WHERE change_id = (SELECT max(change_id) FROM pgrollout.row_change WHERE step_id = v_filled);
                v_refused := v_refused + 1;
                v_why := coalesce(v_why, SQLERRM);
            END IF;
            v_batch := greatest(1, v_batch / 2);
            v_visited := NULL;
        END;
        CONTINUE WHEN v_visited IS NULL AND v_blocked IS NULL;
        IF v_blocked IS NULL THEN
            v_total := v_total + v_restored;
            v_taken := v_taken + v_visited;
            v_kept := v_kept + v_visited - v_restored;
            UPDATE pgrollout.step SET rows = v_total WHERE step_id = p_step ->> 'id';
        END IF;
        COMMIT;
        EXIT WHEN v_blocked IS NULL AND v_visited = 0;
        IF v_taken >= v_share THEN
            PERFORM set_config('pgrollout.kept', v_kept::text, false);
            RETURN;
        END IF;
        IF v_blocked IS NULL THEN
            v_ms := extract(epoch FROM clock_timestamp() - v_begun) * 1000;
            v_batch := pgrollout.next_batch_rows(v_batch, v_ms, (v_settings ->> 'batch_target_ms')::double precision,
                (v_settings ->> 'batch_max_rows')::integer);
            CALL pgrollout.nap(pgrollout.rest_ms(v_settings, v_ms) / 1000);
        ELSIF clock_timestamp() > v_first_failure + make_interval(secs => (v_settings ->> 'give_up_s')::double precision) THEN
            CALL pgrollout.fail_step(p_run, p_step, format('gave up after %s s; blocked by %s', v_settings ->> 'give_up_s', v_blocked),
                'Everything committed stays; start the same command again.', v_total);
        ELSE
            PERFORM pgrollout.note_waiting(p_run, p_step, v_blocked);
            CALL pgrollout.nap(0.2 + random() * 0.3);
        END IF;
    END LOOP;
    DELETE FROM pgrollout.cursor WHERE step_id = v_filled;
    PERFORM pgrollout.step_ended(p_run, p_step, 'done',
        nullif(concat_ws('; ', CASE WHEN v_kept > 0 THEN format('%s rows keep what the application wrote or are gone', v_kept) END,
            CASE WHEN v_refused > 0 THEN format('%s rows could not be given back and stay in the ledger, first: %s', v_refused, v_why) END), ''),
        v_total);
    UPDATE pgrollout.kept SET state = 'given back', rows = v_refused WHERE kept_id = (p_step ->> 'gives_back')::bigint;
    COMMIT;
END
$$;
