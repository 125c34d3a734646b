-- Watches a concurrent build or drop from a second session. It has no lock timeout (one would leave an INVALID index), so
-- what it waits for has to be seen from outside, and a build that waits too long is cancelled from outside.

-- The sessions that p_pid waits for, with what their owner needs to know; NULL where it waits for nobody.
CREATE OR REPLACE FUNCTION pgrollout.waits_for(p_pid integer) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT string_agg(CASE WHEN b.pid = 0 THEN (
                   SELECT string_agg(format('prepared transaction %L of %s', x.gid, x.owner), ', ') FROM pg_prepared_xacts AS x
                   WHERE x.database = current_database())
               ELSE format('pid %s (user %s, application %L, %s, transaction open for %s): %s', b.pid, coalesce(a.usename, '?'),
                   coalesce(a.application_name, '?'), coalesce(a.state, '?'),
                   coalesce(date_trunc('second', clock_timestamp() - a.xact_start)::text, '?'),
                   left(regexp_replace(coalesce(a.query, '?'), '\s+', ' ', 'g'), 120)) END, ' | ')
    FROM (SELECT DISTINCT unnest(pg_blocking_pids(p_pid)) AS pid) AS b LEFT JOIN pg_stat_activity AS a ON a.pid = b.pid
$$;

-- Looks at the session of p_run once: notes what its concurrent step waits for, and cancels a build that has waited for
-- p_max_wait_s, or that an operator has asked to stop. A drop is never cancelled: its index is invalid by then.
CREATE OR REPLACE FUNCTION pgrollout.watch(p_run bigint, p_max_wait_s integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_run pgrollout.run;
    v_step pgrollout.step;
    v_pid integer;
    v_waits_for text;
    v_why text;
BEGIN
    SELECT * INTO v_run FROM pgrollout.run WHERE run_id = p_run AND ended_at IS NULL;
    SELECT * INTO v_step FROM pgrollout.step WHERE step_id = v_run.step AND run_id = p_run AND state = 'started' AND kind LIKE '%CONCURRENTLY';
    SELECT h.pid INTO v_pid FROM pgrollout.lock_holder() AS h JOIN pg_stat_activity AS a USING (pid)
    WHERE h.application_name = pgrollout.session_name(p_run, v_step.step_id) AND a.state = 'active'
      AND a.query !~* '^\s*(SELECT|CALL)';
    IF v_pid IS NULL THEN
        RETURN;
    END IF;
    v_waits_for := pgrollout.waits_for(v_pid);
    IF v_waits_for IS NOT NULL THEN
        PERFORM pgrollout.note_waiting(p_run, jsonb_build_object('id', v_step.step_id), v_waits_for);
        SELECT * INTO v_run FROM pgrollout.run WHERE run_id = p_run;
    ELSIF v_run.waiting_for IS NOT NULL THEN
        UPDATE pgrollout.run SET waiting_for = NULL WHERE run_id = p_run;
        v_run.waiting_for := NULL;
    END IF;
    IF v_step.kind NOT LIKE 'CREATE%' THEN
        RETURN;
    ELSIF v_run.waiting_for IS NOT NULL AND v_run.waiting_since < clock_timestamp() - make_interval(secs => p_max_wait_s) THEN
        v_why := format('the build has waited for more than %s s for %s', p_max_wait_s, v_run.waiting_for);
    ELSE
        SELECT format('stopped by %s at %s UTC: %s', c.who, to_char(c.at AT TIME ZONE 'utc', 'HH24:MI:SS'), c.why) INTO v_why
        FROM pgrollout.control AS c WHERE c.request = 'stop' AND c.at > v_run.started_at;
    END IF;
    IF v_why IS NOT NULL AND pg_cancel_backend(v_pid) THEN
        INSERT INTO pgrollout.event (run_id, step_id, what, detail) VALUES (p_run, v_step.step_id, 'cancelled', v_why);
    END IF;
END
$$;

-- Why the watcher cancelled a step of p_run; NULL where it did not.
CREATE OR REPLACE FUNCTION pgrollout.cancelled(p_run bigint, p_step text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT e.detail FROM pgrollout.event AS e
    WHERE e.run_id = p_run AND e.step_id = p_step AND e.what = 'cancelled' ORDER BY e.event_id DESC LIMIT 1
$$;
