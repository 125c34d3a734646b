-- The claim on a run, and the lock of the session that works for it.
--
-- Each call of the playbook is a new session, so the claim is a row (pgrollout.run) and the lock is taken anew by every
-- working session. A session that outlives its killed playbook keeps the lock: that is how the next run finds it.

CREATE OR REPLACE FUNCTION pgrollout.lock_holder()
RETURNS TABLE (pid integer, application_name text, state text, query text, since timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT l.pid, a.application_name, a.state, left(a.query, 200), a.backend_start
    FROM pg_locks AS l
    LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted
      AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
      AND l.classid = (hashtext('pgrollout')::bigint & 4294967295)::oid AND l.objid = 1 AND l.objsubid = 2
$$;

CREATE OR REPLACE FUNCTION pgrollout.describe_run(p_run bigint) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format('run %s (%s) by %s on %s, started %s UTC, at step %s', r.run_id, r.kind, r.operator, r.host,
                  to_char(r.started_at AT TIME ZONE 'utc', 'YYYY-MM-DD HH24:MI:SS'), r.step)
    FROM pgrollout.run AS r WHERE r.run_id = p_run
$$;

-- Opens a run, or says who has one open. p_replaces is the open run that may be closed: the operator named it, or the
-- controller has seen that its process is dead.
CREATE OR REPLACE FUNCTION pgrollout.claim(p_claim jsonb, p_replaces bigint, p_reason text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_open bigint;
    v_new bigint;
BEGIN
    -- Claims come one after the other, so that a refused one is refused before it has used up a number.
    PERFORM pg_advisory_xact_lock(hashtext('pgrollout'), 3);
    IF p_replaces IS NOT NULL THEN
        UPDATE pgrollout.run SET ended_at = clock_timestamp(), status = 'taken over', message = p_reason
        WHERE run_id = p_replaces AND ended_at IS NULL;
        UPDATE pgrollout.phase_run SET ended_at = clock_timestamp(), status = 'taken over'
        WHERE run_id = p_replaces AND ended_at IS NULL;
    END IF;
    SELECT run_id INTO v_open FROM pgrollout.run WHERE ended_at IS NULL;
    IF FOUND THEN
        RAISE EXCEPTION 'another run holds this database: %', pgrollout.describe_run(v_open)
            USING HINT = format('Wait for it. If its controller is gone for good: -e take_over=%s', v_open);
    END IF;
    INSERT INTO pgrollout.run (kind, operator, host, pid, pid_started, phases, git_revision, search_path, took_over)
    SELECT c.kind, c.operator, c.host, c.pid, c.started, c.phases, c.git_revision, c.search_path, p_replaces
    FROM jsonb_to_record(p_claim) AS c (kind text, operator text, host text, pid integer, started double precision,
                                        phases text[], git_revision text, search_path text)
    RETURNING run_id INTO v_new;
    IF p_replaces IS NOT NULL THEN
        UPDATE pgrollout.run SET message = format('%s; taken over by run %s (%s on %s)', p_reason, v_new,
                                                  p_claim ->> 'operator', p_claim ->> 'host')
        WHERE run_id = p_replaces AND status = 'taken over';
        INSERT INTO pgrollout.event (run_id, what, detail)
        VALUES (v_new, 'take over', format('run %s: %s', p_replaces, p_reason));
    END IF;
    UPDATE pgrollout.control SET request = 'run', who = p_claim ->> 'operator', why = 'new run', at = clock_timestamp();
    RETURN v_new;
END
$$;

-- Raises unless p_run is still the open run and nobody asked for a stop.
CREATE OR REPLACE FUNCTION pgrollout.check_run(p_run bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_run pgrollout.run;
    v_control pgrollout.control;
BEGIN
    SELECT * INTO v_run FROM pgrollout.run WHERE run_id = p_run;
    IF v_run.run_id IS NULL THEN
        RAISE EXCEPTION 'run % is not in the ledger of this database', p_run;
    ELSIF v_run.ended_at IS NOT NULL THEN
        RAISE EXCEPTION 'run % is over (%): %', p_run, v_run.status, coalesce(v_run.message, 'no reason recorded')
            USING HINT = CASE v_run.status WHEN 'taken over' THEN 'The other run goes on from here.'
                                           ELSE 'Start a new run; it goes on where this one stopped.' END;
    END IF;
    SELECT * INTO v_control FROM pgrollout.control;
    IF v_control.request = 'stop' AND v_control.at > v_run.started_at THEN
        RAISE EXCEPTION 'stopped by % at % UTC: %', v_control.who,
            to_char(v_control.at AT TIME ZONE 'utc', 'HH24:MI:SS'), v_control.why
            USING HINT = 'Everything committed stays; the next run goes on from here.';
    END IF;
END
$$;

-- Sleeps without holding a snapshot for longer than 100 ms: a concurrent build waits for every older snapshot.
CREATE OR REPLACE PROCEDURE pgrollout.nap(p_seconds double precision) LANGUAGE plpgsql AS $$
DECLARE
    v_until timestamptz := clock_timestamp() + make_interval(secs => p_seconds);
BEGIN
    COMMIT;
    WHILE clock_timestamp() < v_until LOOP
        PERFORM pg_sleep(least(0.1, extract(epoch FROM v_until - clock_timestamp())));
        COMMIT;
    END LOOP;
END
$$;

-- What a session is called that works at p_step of p_run. The server would spell other letters than these otherwise.
CREATE OR REPLACE FUNCTION pgrollout.session_name(p_run bigint, p_step text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT left(regexp_replace(format('pgrollout/%s/%s', p_run, p_step), '[^ -~]', '?', 'g'), 63)
$$;

-- First statement of every working session: take the run lock, check the claim, pin the session's settings.
-- The lock is tried, never waited for: a blocked pg_advisory_lock deadlocks with a concurrent build. The previous
-- task's session may need some milliseconds to end, hence a second of trying.
CREATE OR REPLACE PROCEDURE pgrollout.enter(p_run bigint, p_step text) LANGUAGE plpgsql AS $$
DECLARE
    v_until timestamptz := clock_timestamp() + interval '1 second';
    v_holder text;
    v_search_path text;
BEGIN
    WHILE NOT pg_try_advisory_lock(hashtext('pgrollout'), 1) LOOP
        IF clock_timestamp() > v_until THEN
            SELECT format('pid %s (%s) since %s: %s', h.pid, h.application_name, h.since, h.query) INTO v_holder
            FROM pgrollout.lock_holder() AS h;
            RAISE EXCEPTION 'another session works on this database for a run: %', coalesce(v_holder, 'it has just ended')
                USING HINT = 'Wait for it to end, then start again.';
        END IF;
        CALL pgrollout.nap(0.05);
    END LOOP;
    PERFORM pgrollout.check_run(p_run);
    UPDATE pgrollout.run SET step = p_step, waiting_for = NULL WHERE run_id = p_run RETURNING search_path INTO v_search_path;
    COMMIT;
    PERFORM set_config('application_name', pgrollout.session_name(p_run, p_step), false),
            set_config('search_path', quote_ident(v_search_path), false),
            set_config('lock_timeout', '0', false),
            set_config('default_transaction_isolation', 'read committed', false),
            -- A row that a policy hides would be passed over in silence; so it is an error.
            set_config('row_security', 'off', false),
            -- A number kept as text comes back as it was.
            set_config('extra_float_digits', '1', false),
            set_config('intervalstyle', 'postgres', false),
            -- A method that a batch forbids the planner costs so much on paper that each batch would be compiled.
            set_config('jit', 'off', false),
            set_config('idle_in_transaction_session_timeout', '60s', false),
            -- A missing synchronous standby would keep a lock until somebody cancels.
            set_config('synchronous_commit', 'local', false),
            set_config('client_connection_check_interval', '1s', false);
    -- The second one came with version 17; either would end a long build.
    PERFORM set_config(s.name, '0', false) FROM pg_settings AS s WHERE s.name IN ('statement_timeout', 'transaction_timeout');
END
$$;

CREATE OR REPLACE FUNCTION pgrollout.finish_run(p_run bigint, p_status text, p_message text) RETURNS void
LANGUAGE sql AS $$
    UPDATE pgrollout.phase_run SET ended_at = clock_timestamp(), status = p_status
    WHERE run_id = p_run AND ended_at IS NULL;
    UPDATE pgrollout.run SET ended_at = clock_timestamp(), status = p_status, message = p_message, waiting_for = NULL
    WHERE run_id = p_run AND ended_at IS NULL;
$$;

-- Where WAL is archived, a name for the moment before a phase: what a recovery of all that stood there can stop at.
CREATE OR REPLACE FUNCTION pgrollout.mark_restore_point(p_run bigint, p_phase text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_name text := left(format('pgrollout_%s_%s', p_run, p_phase), 63);
BEGIN
    IF current_setting('archive_mode') = 'off' OR pg_is_in_recovery() THEN
        RETURN;
    END IF;
    IF NOT has_function_privilege('pg_catalog.pg_create_restore_point(text)', 'EXECUTE') THEN
        INSERT INTO pgrollout.event (run_id, what, detail) VALUES (p_run, 'no restore point',
            format('GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO %I, in this database, would give one', current_user));
        RETURN;
    END IF;
    UPDATE pgrollout.phase_run SET restore_point = v_name, restore_lsn = pg_create_restore_point(v_name)
    WHERE run_id = p_run AND phase = p_phase AND direction = 'apply' AND restore_point IS NULL;
END
$$;

CREATE OR REPLACE FUNCTION pgrollout.begin_phase(p_run bigint, p_phase text, p_direction text) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO pgrollout.phase_run (run_id, phase, direction) VALUES (p_run, p_phase, p_direction)
    ON CONFLICT DO NOTHING;
    SELECT pgrollout.mark_restore_point(p_run, p_phase) WHERE p_direction = 'apply';
$$;

-- Which phases a failed run takes back by itself, the last one first, and why; no row where it only stops. What somebody
-- stopped or took over is left to them.
CREATE OR REPLACE FUNCTION pgrollout.to_take_back(p_run bigint, p_on_failure text) RETURNS TABLE (phase text, why text) LANGUAGE sql STABLE AS $$
    WITH opened AS (
        SELECT f.phase, row_number() OVER (ORDER BY f.started_at DESC) AS place
        FROM pgrollout.phase_run AS f WHERE f.run_id = p_run AND f.direction = 'apply'
    ), reason AS (
        SELECT CASE WHEN EXISTS (SELECT FROM pgrollout.event AS e WHERE e.run_id = p_run AND e.what = 'abort')
                    THEN 'the application waited for longer than probe_abort_ms allows'
                    WHEN EXISTS (SELECT FROM pgrollout.event AS e WHERE e.run_id = p_run AND e.what = 'gate')
                    THEN 'a query failed its gate after it'
                    WHEN p_on_failure <> 'stop' AND r.status = 'failed'
                         AND NOT EXISTS (SELECT FROM pgrollout.run AS later WHERE later.took_over = r.run_id)
                         AND NOT EXISTS (SELECT FROM pgrollout.control AS c WHERE c.request = 'stop' AND c.at > r.started_at)
                    THEN format('it failed, and apply_on_failure is %s', p_on_failure) END AS why
        FROM pgrollout.run AS r WHERE r.run_id = p_run
    )
    SELECT o.phase, r.why FROM opened AS o, reason AS r
    WHERE r.why IS NOT NULL AND (o.place = 1 OR r.why LIKE '%rollback_all') ORDER BY o.place
$$;

-- All steps of a migration that were to do are done.
CREATE OR REPLACE FUNCTION pgrollout.record_migration(p_run bigint, p_name text, p_phase text, p_checksum text) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO pgrollout.migration (migration, phase, checksum, run_id) VALUES (p_name, p_phase, p_checksum, p_run)
    ON CONFLICT (migration) DO UPDATE
    SET checksum = excluded.checksum, applied_at = clock_timestamp(), run_id = excluded.run_id
$$;

CREATE OR REPLACE FUNCTION pgrollout.end_phase(p_run bigint, p_phase text, p_direction text) RETURNS void
LANGUAGE sql AS $$
    UPDATE pgrollout.phase_run SET ended_at = clock_timestamp(), status = 'completed'
    WHERE run_id = p_run AND phase = p_phase AND direction = p_direction
$$;

-- Steps that were made and not taken back. A step of the way back stays done; it is no step of a phase.
CREATE OR REPLACE FUNCTION pgrollout.standing_step() RETURNS SETOF pgrollout.step LANGUAGE sql STABLE AS $$
    SELECT * FROM pgrollout.step WHERE state NOT IN ('rolled_back', 'held') AND step_id NOT LIKE '% (rollback)'
$$;

CREATE OR REPLACE FUNCTION pgrollout.stands_before_rollout() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT NOT EXISTS (SELECT FROM pgrollout.standing_step())
$$;

-- After the rollback of a phase: none of its steps counts as made any more, and its files may change again. What an
-- operator took away stays held.
CREATE OR REPLACE FUNCTION pgrollout.end_rollback(p_run bigint, p_phase text) RETURNS void LANGUAGE sql AS $$
    UPDATE pgrollout.step SET state = 'rolled_back', ended_at = clock_timestamp()
    WHERE step_id IN (SELECT s.step_id FROM pgrollout.standing_step() AS s WHERE s.phase = p_phase);
    DELETE FROM pgrollout.cursor WHERE step_id IN (SELECT step_id FROM pgrollout.step WHERE phase = p_phase);
    DELETE FROM pgrollout.migration WHERE phase = p_phase;
    SELECT pgrollout.end_phase(p_run, p_phase, 'rollback');
$$;
