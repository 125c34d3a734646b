-- Runs one statement of transactional DDL so that nobody queues behind it for long.

-- The step that the session carries out, as the controller set it; named in the call so that an error names it.
CREATE OR REPLACE FUNCTION pgrollout.this_step(p_id text) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT s FROM (SELECT current_setting('pgrollout.step')::jsonb AS s) AS setting WHERE s ->> 'id' = p_id
$$;

CREATE OR REPLACE FUNCTION pgrollout.step_started(p_run bigint, p_step jsonb) RETURNS void LANGUAGE sql AS $$
    SELECT set_config('application_name', pgrollout.session_name(p_run, p_step ->> 'id'), false);
    INSERT INTO pgrollout.step (step_id, migration, phase, kind, statement, state, run_id, accepted)
    VALUES (p_step ->> 'id', p_step ->> 'migration', p_step ->> 'phase', p_step ->> 'kind', p_step ->> 'sql', 'started', p_run,
            coalesce(p_step -> 'accepted', '[]'))
    ON CONFLICT (step_id) DO UPDATE
    SET statement = excluded.statement, kind = excluded.kind, state = 'started', run_id = p_run, accepted = excluded.accepted,
        started_at = clock_timestamp(), ended_at = NULL, message = NULL, attempts = 0, lock_wait_ms = NULL,
        lock_hold_ms = NULL, rows = 0;
    INSERT INTO pgrollout.event (run_id, step_id, what, detail)
    SELECT p_run, p_step ->> 'id', 'leftover', p_step ->> 'leftover' WHERE p_step ->> 'leftover' <> '';
    UPDATE pgrollout.run SET step = p_step ->> 'id', waiting_for = NULL WHERE run_id = p_run;
$$;

-- Writes the end of a step; a rollback step also marks what it undoes. Called in the transaction of the work itself.
CREATE OR REPLACE FUNCTION pgrollout.step_ended(p_run bigint, p_step jsonb, p_state text, p_message text, p_rows bigint)
RETURNS void LANGUAGE sql AS $$
    UPDATE pgrollout.step SET state = p_state, ended_at = clock_timestamp(), message = p_message, rows = p_rows
    WHERE step_id = p_step ->> 'id';
    UPDATE pgrollout.step SET state = 'rolled_back', ended_at = clock_timestamp()
    WHERE p_state = 'done' AND step_id IN (SELECT jsonb_array_elements_text(coalesce(p_step -> 'undoes', '[]')));
$$;

CREATE OR REPLACE FUNCTION pgrollout.conflicts(p_held text, p_wanted text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    -- The table of conflicting lock modes, "Explicit Locking" in PostgreSQL's documentation.
    SELECT CASE p_wanted
        WHEN 'ACCESS EXCLUSIVE' THEN true
        WHEN 'SHARE ROW EXCLUSIVE' THEN p_held NOT IN ('AccessShareLock', 'RowShareLock')
        WHEN 'SHARE' THEN p_held NOT IN ('AccessShareLock', 'RowShareLock', 'ShareLock')
        WHEN 'SHARE UPDATE EXCLUSIVE' THEN p_held NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
        ELSE p_held IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    END
$$;

-- Who holds a lock that conflicts with p_locks ([{relation, mode}]) in a transaction older than p_age; NULL if nobody.
CREATE OR REPLACE FUNCTION pgrollout.blockers(p_locks jsonb, p_age interval) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(DISTINCT CASE
               WHEN x.gid IS NOT NULL THEN format('prepared transaction %L of %s, prepared %s ago, holds %s on %s', x.gid,
                   x.owner, date_trunc('second', clock_timestamp() - x.prepared), l.mode, k.relation)
               ELSE format('pid %s (user %s, application %L, %s, transaction open for %s) holds %s on %s; its query: %s',
                   l.pid, coalesce(a.usename, '?'), coalesce(a.application_name, '?'), coalesce(a.state, '?'),
                   coalesce(date_trunc('second', clock_timestamp() - a.xact_start)::text, '?'), l.mode, k.relation,
                   left(regexp_replace(coalesce(a.query, '?'), '\s+', ' ', 'g'), 120))
           END, ' | ')
    FROM jsonb_to_recordset(p_locks) AS k (relation text, mode text)
    JOIN pg_locks AS l ON l.relation = to_regclass(k.relation) AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
        AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
    -- Until the server is restarted its locks carry the virtual id of the session that prepared it; its own id is locked too.
    LEFT JOIN pg_prepared_xacts AS x ON l.pid IS NULL AND x.transaction IN (
        SELECT t.transactionid FROM pg_locks AS t
        WHERE t.locktype = 'transactionid' AND t.pid IS NULL AND t.virtualtransaction = l.virtualtransaction)
    WHERE pgrollout.conflicts(l.mode, k.mode)
      AND (l.pid IS NULL OR a.xact_start < clock_timestamp() - p_age)
      -- An ordinary autovacuum gives way to the lock that we ask for; one against wraparound does not.
      AND (a.backend_type IS DISTINCT FROM 'autovacuum worker' OR a.query LIKE '%(to prevent wraparound)%')
$$;

-- What FINALIZE of a half detached partition waits for besides: snapshots of its database that may still see it as a part.
CREATE OR REPLACE FUNCTION pgrollout.old_snapshots(p_step jsonb, p_age interval) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(format('pid %s (user %s, application %L, %s, transaction open for %s) has an old snapshot; its query: %s', a.pid,
               a.usename, a.application_name, a.state, date_trunc('second', clock_timestamp() - a.xact_start),
               left(regexp_replace(a.query, '\s+', ' ', 'g'), 120)), ' | ')
    FROM pg_stat_activity AS a
    WHERE p_step ->> 'kind' = 'DETACH PARTITION FINALIZE' AND a.datname = current_database() AND a.backend_xmin IS NOT NULL
      AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend' AND a.xact_start < clock_timestamp() - p_age
$$;

-- What the run waits for, and since when, for status(). True where it waited for something else or for nothing.
CREATE OR REPLACE FUNCTION pgrollout.set_waiting(p_run bigint, p_for text) RETURNS boolean LANGUAGE sql AS $$
    WITH was AS (SELECT r.waiting_for FROM pgrollout.run AS r WHERE r.run_id = p_run), now AS (
        UPDATE pgrollout.run
        SET waiting_for = p_for, waiting_since = CASE WHEN waiting_for IS NULL THEN clock_timestamp() ELSE waiting_since END
        WHERE run_id = p_run)
    SELECT waiting_for IS DISTINCT FROM p_for FROM was
$$;

-- The same, and an event each time that it is something else.
CREATE OR REPLACE FUNCTION pgrollout.note_waiting(p_run bigint, p_step jsonb, p_for text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO pgrollout.event (run_id, step_id, what, detail)
    SELECT p_run, p_step ->> 'id', 'waiting', p_for WHERE pgrollout.set_waiting(p_run, p_for)
$$;

-- Takes the step's locks: first SHARE UPDATE EXCLUSIVE, for which no reader or writer waits and an autovacuum gives
-- way; then the statement's own mode, asked for so shortly that those who queue behind it do not notice.
CREATE OR REPLACE FUNCTION pgrollout.take_locks(p_locks jsonb, p_lock_timeout_ms integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_lock record;
BEGIN
    PERFORM set_config('lock_timeout', ((SELECT setting::integer FROM pg_settings WHERE name = 'deadlock_timeout') + 500) || 'ms', true);
    FOR v_lock IN
        SELECT c.oid::regclass AS relation
        FROM jsonb_array_elements(p_locks) WITH ORDINALITY AS k (lock, place)
        JOIN pg_class AS c ON c.oid = to_regclass(k.lock ->> 'relation') AND c.relkind IN ('r', 'p')
        WHERE k.lock ->> 'mode' NOT IN ('ACCESS SHARE', 'ROW SHARE', 'ROW EXCLUSIVE') ORDER BY k.place
    LOOP
        EXECUTE format('LOCK TABLE ONLY %s IN SHARE UPDATE EXCLUSIVE MODE', v_lock.relation);
    END LOOP;
    PERFORM set_config('lock_timeout', p_lock_timeout_ms || 'ms', true);
    FOR v_lock IN
        SELECT c.oid::regclass AS relation, k.lock ->> 'mode' AS mode
        FROM jsonb_array_elements(p_locks) WITH ORDINALITY AS k (lock, place)
        JOIN pg_class AS c ON c.oid = to_regclass(k.lock ->> 'relation') AND c.relkind IN ('r', 'p')
        WHERE k.lock ->> 'mode' IN ('SHARE', 'SHARE ROW EXCLUSIVE', 'ACCESS EXCLUSIVE') ORDER BY k.place
    LOOP
        EXECUTE format('LOCK TABLE %s IN %s MODE', v_lock.relation, v_lock.mode);
    END LOOP;
END
$$;

-- Runs p_step ->> 'sql' in one transaction with its ledger row. The session's setting pgrollout.settings: {lock_timeout_ms, lock_timeout_max_ms,
-- give_up_s, blocker_age_ms}. Retries a lock that is not to be had until give_up_s, then names who has it.
CREATE OR REPLACE PROCEDURE pgrollout.run_ddl(p_run bigint, p_step jsonb) LANGUAGE plpgsql AS $$
DECLARE
    v_settings jsonb := current_setting('pgrollout.settings')::jsonb;
    v_give_up timestamptz := clock_timestamp() + make_interval(secs => (v_settings ->> 'give_up_s')::double precision);
    v_lock_ms integer := (v_settings ->> 'lock_timeout_ms')::integer;
    v_age interval := make_interval(secs => (v_settings ->> 'blocker_age_ms')::double precision / 1000);
    v_strong boolean := EXISTS (SELECT FROM jsonb_array_elements(p_step -> 'locks') AS l
                                WHERE l ->> 'mode' IN ('SHARE', 'SHARE ROW EXCLUSIVE', 'ACCESS EXCLUSIVE'));
    v_attempts integer := 0;
    v_blocker text;
    v_state text;
    v_error text;
    v_sqlstate text;
    v_rows bigint;
    v_asked timestamptz;
    v_got timestamptz;
BEGIN
    PERFORM pgrollout.step_started(p_run, p_step);
    COMMIT;
    LOOP
        v_asked := clock_timestamp();
        CALL pgrollout.await_resume(p_run, p_step);
        v_give_up := v_give_up + (clock_timestamp() - v_asked);
        v_blocker := coalesce(pgrollout.blockers(p_step -> 'locks', v_age), pgrollout.old_snapshots(p_step, v_age));
        IF v_blocker IS NULL THEN
            v_attempts := v_attempts + 1;
            v_state := 'locked out';
            BEGIN
                v_asked := clock_timestamp();
                PERFORM pgrollout.take_locks(p_step -> 'locks', v_lock_ms);
                v_got := clock_timestamp();
                EXECUTE p_step ->> 'sql';
                GET DIAGNOSTICS v_rows = ROW_COUNT;
                PERFORM pgrollout.step_ended(p_run, p_step, 'done', NULL, v_rows);
                v_state := 'done';
            EXCEPTION
                WHEN lock_not_available OR deadlock_detected THEN
                    v_blocker := coalesce(pgrollout.blockers(p_step -> 'locks', interval '0'), pgrollout.old_snapshots(p_step, interval '0'));
                WHEN OTHERS THEN
                    v_state := 'failed';
                    v_error := SQLERRM;
                    v_sqlstate := SQLSTATE;
            END;
            COMMIT;
            IF v_state = 'done' THEN
                -- Of interest where the application queues behind the lock: SHARE and stronger.
                UPDATE pgrollout.step
                SET attempts = v_attempts,
                    lock_wait_ms = CASE WHEN v_strong THEN round((extract(epoch FROM v_got - v_asked) * 1000)::numeric, 1) END,
                    lock_hold_ms = CASE WHEN v_strong THEN round((extract(epoch FROM clock_timestamp() - v_got) * 1000)::numeric, 1) END
                WHERE step_id = p_step ->> 'id';
                UPDATE pgrollout.run SET waiting_for = NULL WHERE run_id = p_run AND waiting_for IS NOT NULL;
                RETURN;
            ELSIF v_state = 'failed' THEN
                PERFORM pgrollout.step_ended(p_run, p_step, 'failed', v_error, 0);
                COMMIT;
                RAISE EXCEPTION '%', v_error USING ERRCODE = v_sqlstate;
            END IF;
            -- Ten failures at one timeout: the table is busy, so ask a little longer, up to the environment's limit.
            IF v_attempts % 10 = 0 THEN
                v_lock_ms := least(v_lock_ms * 2, (v_settings ->> 'lock_timeout_max_ms')::integer);
            END IF;
        END IF;
        v_blocker := coalesce(v_blocker, format('a lock that was not to be had within %s ms; its holder is gone now', v_lock_ms));
        IF clock_timestamp() > v_give_up THEN
            PERFORM pgrollout.step_ended(p_run, p_step, 'failed', 'blocked by ' || v_blocker, 0);
            UPDATE pgrollout.step SET attempts = v_attempts WHERE step_id = p_step ->> 'id';
            COMMIT;
            RAISE EXCEPTION 'gave up after % s and % attempts, nothing changed; blocked by %',
                v_settings ->> 'give_up_s', v_attempts, v_blocker
                USING ERRCODE = 'lock_not_available', HINT = 'End that transaction or wait for it, then start the same command again.';
        END IF;
        PERFORM pgrollout.note_waiting(p_run, p_step, v_blocker);
        -- Ten times as long off the queue as in it, with jitter, so that waiting stays under a tenth of the time.
        CALL pgrollout.nap(v_lock_ms / 1000.0 * 10 * (0.75 + random() / 2));
    END LOOP;
END
$$;

-- Waits until nobody has held a conflicting lock for longer than blocker_age_ms; names who does, and gives up on them
-- after give_up_s.
CREATE OR REPLACE PROCEDURE pgrollout.await_locks(p_run bigint, p_step jsonb, p_locks jsonb) LANGUAGE plpgsql AS $$
DECLARE
    v_settings jsonb := current_setting('pgrollout.settings')::jsonb;
    v_give_up timestamptz := clock_timestamp() + make_interval(secs => (v_settings ->> 'give_up_s')::double precision);
    v_age interval := make_interval(secs => (v_settings ->> 'blocker_age_ms')::double precision / 1000);
    v_blocker text;
BEGIN
    LOOP
        PERFORM pgrollout.check_run(p_run);
        v_blocker := pgrollout.blockers(p_locks, v_age);
        EXIT WHEN v_blocker IS NULL;
        IF clock_timestamp() > v_give_up THEN
            PERFORM pgrollout.step_ended(p_run, p_step, 'failed', 'blocked by ' || v_blocker, 0);
            COMMIT;
            RAISE EXCEPTION 'gave up after % s, nothing changed; blocked by %', v_settings ->> 'give_up_s', v_blocker
                USING ERRCODE = 'lock_not_available', HINT = 'End that transaction or wait for it, then start the same command again.';
        END IF;
        PERFORM pgrollout.note_waiting(p_run, p_step, v_blocker);
        CALL pgrollout.nap(0.5);
    END LOOP;
    UPDATE pgrollout.run SET waiting_for = NULL WHERE run_id = p_run;
END
$$;

-- A top-level statement (a concurrent build or drop) cannot share a transaction with its ledger row: one before, one after.
-- A concurrent drop first marks its index invalid and then waits for every transaction that uses the table; so those are
-- waited for before it starts, readers included, while the index is still good.
-- A concurrent DETACH asks for ACCESS EXCLUSIVE on the partition at its end, without a timeout that would leave it half
-- detached; so whoever uses the partition is waited for before it starts too.
CREATE OR REPLACE PROCEDURE pgrollout.begin_step(p_run bigint, p_step jsonb) LANGUAGE plpgsql AS $$
DECLARE
    v_every_lock jsonb;
BEGIN
    PERFORM pgrollout.step_started(p_run, p_step);
    COMMIT;
    CALL pgrollout.await_resume(p_run, p_step);
    IF p_step ->> 'kind' LIKE 'DROP INDEX%' OR p_step ->> 'kind' LIKE 'DETACH PARTITION%' THEN
        SELECT jsonb_agg(l || '{"mode": "ACCESS EXCLUSIVE"}') INTO v_every_lock FROM jsonb_array_elements(p_step -> 'locks') AS l;
        CALL pgrollout.await_locks(p_run, p_step, v_every_lock);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION pgrollout.end_step(p_run bigint, p_step jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    -- In the schema of its table; what a drop has removed is not looked for.
    v_index regclass := CASE WHEN p_step ->> 'kind' LIKE 'CREATE INDEX%' THEN
        to_regclass(format('%I.%I', (parse_ident(p_step -> 'object' ->> 'table'))[1], p_step -> 'object' ->> 'name')) END;
BEGIN
    IF p_step ->> 'kind' LIKE 'CREATE INDEX%'
       AND NOT coalesce((SELECT i.indisvalid FROM pg_index AS i WHERE i.indexrelid = v_index), false) THEN
        RAISE EXCEPTION 'index % is not valid after its build', p_step -> 'object' ->> 'name'
            USING HINT = 'Start the same command again; it replaces the invalid index.';
    END IF;
    UPDATE pgrollout.run SET waiting_for = NULL WHERE run_id = p_run AND waiting_for IS NOT NULL;
    PERFORM pgrollout.step_ended(p_run, p_step, 'done', NULL,
        coalesce((SELECT c.reltuples::bigint FROM pg_class AS c WHERE c.oid = v_index), 0));
END
$$;

-- What an operator took away in an emergency stays away until `-e reapply=<step>`, also if it was not yet there.
CREATE OR REPLACE FUNCTION pgrollout.hold(p_steps jsonb, p_message text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO pgrollout.step (step_id, migration, phase, kind, statement, state, ended_at, message)
    SELECT s.id, s.migration, s.phase, s.kind, s.sql, 'held', clock_timestamp(), p_message
    FROM jsonb_to_recordset(p_steps) AS s (id text, migration text, phase text, kind text, sql text)
    ON CONFLICT (step_id) DO UPDATE SET state = 'held', ended_at = clock_timestamp(), message = p_message
$$;
