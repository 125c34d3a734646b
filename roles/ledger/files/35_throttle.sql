-- When a backfill has to stand back, and why: what an operator asked for, and what the server cannot take any more.

-- Steers the open run from another terminal; says to whom it was said.
CREATE OR REPLACE FUNCTION pgrollout.steer(p_request text, p_who text, p_why text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_open bigint;
BEGIN
    IF p_request NOT IN ('pause', 'resume', 'stop') OR p_why = '' THEN
        RAISE EXCEPTION 'expected pause, resume or stop with a reason, found %, reason %', quote_literal(p_request), quote_literal(p_why);
    END IF;
    -- Locked: the order is for this run, which must not end, and another begin, before it is written.
    SELECT run_id INTO v_open FROM pgrollout.run WHERE ended_at IS NULL FOR SHARE;
    IF v_open IS NULL THEN
        RAISE EXCEPTION 'no run is open on this database, so there is nothing to %', p_request;
    END IF;
    UPDATE pgrollout.control
    SET request = CASE p_request WHEN 'resume' THEN 'run' ELSE p_request END, who = p_who, why = p_why, at = clock_timestamp();
    INSERT INTO pgrollout.event (run_id, what, detail) VALUES (v_open, p_request, format('%s: %s', p_who, p_why));
    RETURN pgrollout.describe_run(v_open);
END
$$;

-- Whether a value has passed a limit (0: none). One that has holds the work until half of it is reached, or it would
-- start and stop all the time; p_held are the limits that hold it now.
CREATE OR REPLACE FUNCTION pgrollout.passed(p_settings jsonb, p_limit text, p_value numeric, p_held text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT l.top > 0 AND p_value > l.top * CASE WHEN p_limit = ANY (p_held) THEN 0.5 ELSE 1 END
    FROM (SELECT (p_settings ->> p_limit)::numeric AS top) AS l
$$;

-- Each limit that holds a backfill of p_table back, with its reason in words; no row where it may go on. What cannot be
-- read counts as passed. p_settings: {throttle_lag_s, throttle_lag_bytes, throttle_slot_bytes, throttle_archive_files,
-- throttle_dead_ratio, throttle_active_backends, throttle_query}.
CREATE OR REPLACE FUNCTION pgrollout.throttle(p_table regclass, p_settings jsonb, p_held text[])
RETURNS TABLE (held_by text, reason text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_lsn pg_lsn := pg_current_wal_lsn();
    -- Without it the statistics of other users' sessions read NULL.
    v_reads boolean := pg_has_role(current_user, 'pg_read_all_stats', 'USAGE');
    v_grant text := format('; GRANT pg_monitor TO %I', current_user);
    v_dead numeric;
    v_live numeric;
BEGIN
    IF (p_settings ->> 'throttle_lag_bytes')::numeric > 0 OR (p_settings ->> 'throttle_lag_s')::numeric > 0 THEN
        IF NOT v_reads AND EXISTS (SELECT FROM pg_stat_replication) THEN
            RETURN QUERY SELECT 'throttle_lag_bytes', 'how far the standbys are cannot be read' || v_grant;
        END IF;
        RETURN QUERY
        SELECT l.held_by, format('standby %s is %s behind', s.name, l.behind)
        FROM (SELECT coalesce(nullif(r.application_name, ''), r.pid::text) AS name,
                     pg_wal_lsn_diff(v_lsn, r.replay_lsn) AS bytes, extract(epoch FROM r.replay_lag)::numeric AS seconds
              FROM pg_stat_replication AS r WHERE r.state <> 'backup') AS s
        -- replay_lag stands still when replay does, and when there is nothing to replay.
        CROSS JOIN LATERAL (VALUES ('throttle_lag_bytes', s.bytes, pg_size_pretty(s.bytes)),
                                   ('throttle_lag_s', CASE WHEN s.bytes > 0 THEN s.seconds END, round(s.seconds, 1) || ' s')
                           ) AS l (held_by, value, behind)
        WHERE pgrollout.passed(p_settings, l.held_by, l.value, p_held) ORDER BY s.name;
    END IF;

    RETURN QUERY
    SELECT 'throttle_slot_bytes', format('replication slot %s%s keeps %s of WAL', s.slot_name,
                                         CASE WHEN NOT s.active THEN ', which nobody reads,' END, pg_size_pretty(s.bytes))
    FROM (SELECT *, pg_wal_lsn_diff(v_lsn, restart_lsn) AS bytes FROM pg_replication_slots) AS s
    WHERE pgrollout.passed(p_settings, 'throttle_slot_bytes', s.bytes, p_held) ORDER BY s.slot_name;

    IF (p_settings ->> 'throttle_archive_files')::numeric > 0 AND current_setting('archive_mode') <> 'off' THEN
        IF has_function_privilege('pg_ls_archive_statusdir()', 'EXECUTE') THEN
            RETURN QUERY
            SELECT 'throttle_archive_files', format('%s WAL files wait to be archived', f.waiting)
            FROM (SELECT count(*) AS waiting FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') AS f
            WHERE pgrollout.passed(p_settings, 'throttle_archive_files', f.waiting, p_held);
        ELSE
            RETURN QUERY SELECT 'throttle_archive_files', 'what waits for the archive cannot be read' || v_grant;
        END IF;
    END IF;

    -- Statistics may be empty (after a crash) and pg_class old: the larger one counts.
    SELECT sum(pg_stat_get_dead_tuples(c.oid)), greatest(sum(pg_stat_get_live_tuples(c.oid)), sum(c.reltuples::numeric), 1)
    INTO v_dead, v_live FROM pgrollout.stored(p_table) AS r JOIN pg_class AS c ON c.oid = r;
    -- The first megabytes' worth of dead rows bloats nothing.
    IF v_dead > 100000 AND pgrollout.passed(p_settings, 'throttle_dead_ratio', v_dead / v_live, p_held) THEN
        RETURN QUERY SELECT 'throttle_dead_ratio', format('%s has %s dead rows that vacuum has not removed%s%s', p_table, v_dead,
            CASE WHEN EXISTS (SELECT FROM pgrollout.stored(p_table) AS r JOIN pg_class AS c ON c.oid = r
                              WHERE 'autovacuum_enabled=false' = ANY (c.reloptions) OR current_setting('autovacuum') = 'off')
                 THEN format('; autovacuum is off: VACUUM %s', p_table) END,
            (SELECT format('; the oldest transaction is pid %s (user %s, application %L), open for %s', a.pid, a.usename,
                           a.application_name, date_trunc('second', clock_timestamp() - a.xact_start))
             FROM pg_stat_activity AS a
             WHERE a.pid <> pg_backend_pid() AND a.backend_type <> 'autovacuum worker' AND coalesce(a.backend_xmin, a.backend_xid) IS NOT NULL
               AND coalesce(a.datname, current_database()) = current_database()
             ORDER BY greatest(age(a.backend_xmin), age(a.backend_xid)) DESC LIMIT 1));
    END IF;

    IF (p_settings ->> 'throttle_active_backends')::numeric > 0 AND NOT v_reads THEN
        RETURN QUERY SELECT 'throttle_active_backends', 'how many sessions are active cannot be read' || v_grant;
    END IF;
    RETURN QUERY
    SELECT 'throttle_active_backends', format('%s sessions are active', s.active)
    FROM (SELECT count(*) AS active FROM pg_stat_activity
          WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()) AS s
    WHERE pgrollout.passed(p_settings, 'throttle_active_backends', s.active, p_held);

    held_by := 'throttle_query';
    BEGIN
        IF p_settings ->> 'throttle_query' <> '' THEN
            EXECUTE p_settings ->> 'throttle_query' INTO reason;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        reason := 'apply_throttle_query fails: ' || SQLERRM;
    END;
    IF reason <> '' THEN
        RETURN NEXT;
    END IF;
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

-- Holds a step that changes rows of p_table while throttle() has a reason, and gives up on it after throttle_give_up_s,
-- in which an operator's own pause does not count. p_rows: what the step has changed so far.
CREATE OR REPLACE PROCEDURE pgrollout.await_clearance(p_run bigint, p_step jsonb, p_table regclass, p_rows bigint) LANGUAGE plpgsql AS $$
DECLARE
    v_settings jsonb := current_setting('pgrollout.settings')::jsonb;
    v_held text[] := '{}';
    v_holds text[];
    v_reason text;
    v_asked timestamptz;
    v_since timestamptz;
BEGIN
    LOOP
        v_asked := clock_timestamp();
        CALL pgrollout.await_resume(p_run, p_step);
        v_since := v_since + (clock_timestamp() - v_asked);
        SELECT coalesce(array_agg(DISTINCT t.held_by), '{}'), string_agg(t.reason, '; ' ORDER BY t.held_by, t.reason) INTO v_holds, v_reason
        FROM pgrollout.throttle(p_table, v_settings, v_held) AS t;
        EXIT WHEN v_holds = '{}';
        v_since := coalesce(v_since, clock_timestamp());
        IF clock_timestamp() > v_since + make_interval(secs => (v_settings ->> 'throttle_give_up_s')::double precision) THEN
            CALL pgrollout.fail_step(p_run, p_step, format('stood back for %s s; %s', v_settings ->> 'throttle_give_up_s', v_reason),
                'Everything committed stays; start the same command again.', p_rows);
        END IF;
        -- The words change with every look (so many bytes behind), which limits hold does not: one event for those.
        PERFORM pgrollout.set_waiting(p_run, 'paused: ' || v_reason);
        INSERT INTO pgrollout.event (run_id, step_id, what, detail)
        SELECT p_run, p_step ->> 'id', 'waiting', 'paused: ' || v_reason WHERE v_holds <> v_held;
        v_held := v_holds;
        CALL pgrollout.nap(0.5);
    END LOOP;
    IF v_held <> '{}' THEN
        UPDATE pgrollout.run SET waiting_for = NULL WHERE run_id = p_run;
        INSERT INTO pgrollout.event (run_id, step_id, what, detail) VALUES (p_run, p_step ->> 'id', 'resumed', 'no reason to stand back any more');
        COMMIT;
    END IF;
END
$$;

-- How long to rest after a batch that took p_ms: for each session that is at work right now a part of it, so that on few
-- cores the application keeps most of them and on an idle server nothing is lost. One that waits for a lock or its client
-- needs no core; of those whose activity this role may not see nothing is known.
CREATE OR REPLACE FUNCTION pgrollout.rest_ms(p_settings jsonb, p_ms double precision) RETURNS double precision LANGUAGE plpgsql AS $$
BEGIN
    RETURN p_ms * least((p_settings ->> 'rest_max')::double precision, (p_settings ->> 'rest_per_session')::double precision * (
        SELECT count(*) FROM pg_stat_activity AS a
        WHERE a.pid <> pg_backend_pid() AND a.state = 'active' AND a.backend_type = 'client backend'
          AND a.application_name NOT LIKE 'pgrollout%' AND coalesce(a.wait_event_type, '') NOT IN ('Lock', 'Client', 'Timeout', 'Activity')));
END
$$;
