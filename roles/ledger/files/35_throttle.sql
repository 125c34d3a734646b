-- When a backfill has to stand back, and why: what an operator asked for, and what the server cannot take any more.

-- Steers the open run from another terminal; says to whom it was said.
CREATE OR REPLACE FUNCTION pgrollout.steer(p_request text, p_who text, p_why text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_open bigint := (SELECT run_id FROM pgrollout.run WHERE ended_at IS NULL);
BEGIN
    IF v_open IS NULL THEN
        RAISE EXCEPTION 'no run is open on this database, so there is nothing to %', p_request;
    END IF;
    UPDATE pgrollout.control
    SET request = CASE p_request WHEN 'resume' THEN 'run' ELSE p_request END, who = p_who, why = p_why, at = clock_timestamp();
    INSERT INTO pgrollout.event (run_id, what, detail) VALUES (v_open, p_request, format('%s: %s', p_who, p_why));
    RETURN pgrollout.describe_run(v_open);
END
$$;

-- The limit that counts: one that is passed holds the work until half of it is reached, or it would start and stop all
-- the time.
CREATE OR REPLACE FUNCTION pgrollout.over(p_value numeric, p_limit numeric, p_paused boolean) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT p_limit > 0 AND p_value > p_limit * CASE WHEN p_paused THEN 0.5 ELSE 1 END
$$;

-- Why a backfill of p_table has to stand back now, NULL where it may go on. A limit of 0 is none. What cannot be read
-- counts as passed. p_settings: {throttle_lag_s, throttle_lag_bytes, throttle_slot_bytes, throttle_archive_files,
-- throttle_dead_ratio, throttle_active_backends, throttle_query}.
CREATE OR REPLACE FUNCTION pgrollout.throttle(p_table regclass, p_settings jsonb, p_paused boolean) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_lsn pg_lsn := pg_current_wal_lsn();
    v_grant text := format('; GRANT pg_monitor TO %I', current_user);
    v_standby record;
    v_slot record;
    v_number numeric;
    v_reason text;
BEGIN
    FOR v_standby IN
        SELECT coalesce(nullif(r.application_name, ''), r.pid::text) AS name, r.replay_lsn, pg_wal_lsn_diff(v_lsn, r.replay_lsn) AS bytes,
               coalesce(extract(epoch FROM r.replay_lag), 0) AS seconds, r.state
        FROM pg_stat_replication AS r WHERE r.state IS DISTINCT FROM 'backup' ORDER BY r.pid
    LOOP
        IF v_standby.state IS NULL AND NOT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') THEN
            RETURN 'how far the standbys are cannot be read' || v_grant;
        -- replay_lag stands still when replay does; the bytes go on.
        ELSIF pgrollout.over(v_standby.bytes, (p_settings ->> 'throttle_lag_bytes')::numeric, p_paused) THEN
            RETURN format('standby %s is %s behind', v_standby.name, pg_size_pretty(v_standby.bytes));
        ELSIF v_standby.bytes > 0 AND pgrollout.over(v_standby.seconds, (p_settings ->> 'throttle_lag_s')::numeric, p_paused) THEN
            RETURN format('standby %s is %s s behind', v_standby.name, round(v_standby.seconds, 1));
        END IF;
    END LOOP;
    FOR v_slot IN SELECT s.slot_name, s.active, pg_wal_lsn_diff(v_lsn, s.restart_lsn) AS bytes FROM pg_replication_slots AS s ORDER BY 1 LOOP
        IF pgrollout.over(v_slot.bytes, (p_settings ->> 'throttle_slot_bytes')::numeric, p_paused) THEN
            RETURN format('replication slot %s%s keeps %s of WAL', v_slot.slot_name,
                          CASE WHEN NOT v_slot.active THEN ', which nobody reads,' END, pg_size_pretty(v_slot.bytes));
        END IF;
    END LOOP;
    IF (p_settings ->> 'throttle_archive_files')::numeric > 0 AND current_setting('archive_mode') <> 'off' THEN
        IF NOT has_function_privilege('pg_ls_archive_statusdir()', 'EXECUTE') THEN
            RETURN 'what waits for the archive cannot be read' || v_grant;
        END IF;
        SELECT count(*) INTO v_number FROM pg_ls_archive_statusdir() AS f WHERE f.name LIKE '%.ready';
        IF pgrollout.over(v_number, (p_settings ->> 'throttle_archive_files')::numeric, p_paused) THEN
            RETURN format('%s WAL files wait to be archived', v_number);
        END IF;
    END IF;
    -- The first megabytes' worth of dead rows bloats nothing.
    v_number := pg_stat_get_dead_tuples(p_table);
    IF v_number > 100000 AND pgrollout.over(v_number, (p_settings ->> 'throttle_dead_ratio')::numeric * pg_stat_get_live_tuples(p_table), p_paused) THEN
        RETURN format('%s has %s dead rows that vacuum has not removed%s', p_table, v_number, (
            SELECT format('; the oldest transaction is pid %s (user %s, application %L), open for %s', a.pid, a.usename,
                          a.application_name, date_trunc('second', clock_timestamp() - a.xact_start))
            FROM pg_stat_activity AS a WHERE a.backend_xmin IS NOT NULL AND a.pid <> pg_backend_pid() ORDER BY age(a.backend_xmin) DESC LIMIT 1));
    END IF;
    SELECT count(*) INTO v_number FROM pg_stat_activity AS a
    WHERE a.state = 'active' AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid();
    IF pgrollout.over(v_number, (p_settings ->> 'throttle_active_backends')::numeric, p_paused) THEN
        RETURN format('%s sessions are active', v_number);
    END IF;
    IF p_settings ->> 'throttle_query' <> '' THEN
        BEGIN
            EXECUTE p_settings ->> 'throttle_query' INTO v_reason;
        EXCEPTION WHEN OTHERS THEN
            v_reason := 'apply_throttle_query fails: ' || SQLERRM;
        END;
    END IF;
    RETURN v_reason;
END
$$;

-- Holds the step while an operator says so; that may take as long as it takes.
CREATE OR REPLACE PROCEDURE pgrollout.await_resume(p_run bigint, p_step jsonb) LANGUAGE plpgsql AS $$
DECLARE
    v_reason text;
    v_held boolean := false;
BEGIN
    LOOP
        PERFORM pgrollout.check_run(p_run);
        SELECT format('paused by %s at %s UTC: %s', c.who, to_char(c.at AT TIME ZONE 'utc', 'HH24:MI:SS'), c.why)
        INTO v_reason FROM pgrollout.control AS c WHERE c.request = 'pause';
        EXIT WHEN v_reason IS NULL;
        v_held := true;
        PERFORM pgrollout.note_waiting(p_run, p_step, v_reason);
        CALL pgrollout.nap(0.3);
    END LOOP;
    IF v_held THEN
        UPDATE pgrollout.run SET waiting_for = NULL WHERE run_id = p_run;
        COMMIT;
    END IF;
END
$$;

-- Holds a backfill while throttle() has a reason, and gives up on it after throttle_give_up_s.
CREATE OR REPLACE PROCEDURE pgrollout.await_clearance(p_run bigint, p_step jsonb, p_table text) LANGUAGE plpgsql AS $$
DECLARE
    v_settings jsonb := current_setting('pgrollout.settings')::jsonb;
    v_give_up timestamptz := clock_timestamp() + make_interval(secs => (v_settings ->> 'throttle_give_up_s')::double precision);
    v_reason text;
    v_paused boolean := false;
BEGIN
    LOOP
        CALL pgrollout.await_resume(p_run, p_step);
        v_reason := pgrollout.throttle(to_regclass(p_table), v_settings, v_paused);
        EXIT WHEN v_reason IS NULL;
        IF clock_timestamp() > v_give_up THEN
            CALL pgrollout.fail_step(p_run, p_step, format('stood back for %s s; %s', v_settings ->> 'throttle_give_up_s', v_reason),
                'Everything committed stays; start the same command again.', 0);
        END IF;
        v_paused := true;
        PERFORM pgrollout.note_waiting(p_run, p_step, 'paused: ' || v_reason);
        CALL pgrollout.nap(0.5);
    END LOOP;
    IF v_paused THEN
        UPDATE pgrollout.run SET waiting_for = NULL WHERE run_id = p_run;
        INSERT INTO pgrollout.event (run_id, step_id, what, detail) VALUES (p_run, p_step ->> 'id', 'resumed', 'no reason to stand back any more');
        COMMIT;
    END IF;
END
$$;
