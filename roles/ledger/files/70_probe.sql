-- What the downtime probe measured: how long the application would have waited, table by table and second by second.
-- The probe itself is plugins/modules/pg_probe.py.

-- The probe of a run: what it looks at and how it ended. A row without started_at: it was switched off for that run.
CREATE TABLE IF NOT EXISTS pgrollout.probe (
    run_id bigint PRIMARY KEY REFERENCES pgrollout.run,
    host text,
    pid integer,
    tables text[] NOT NULL DEFAULT '{}',
    -- Sentences: which tables are not looked at, and why.
    left_out text[] NOT NULL DEFAULT '{}',
    interval_ms integer,
    warn_ms integer NOT NULL DEFAULT 1000,
    alert_ms integer NOT NULL DEFAULT 30000,
    -- Who measures in its place.
    instead text,
    started_at timestamptz,
    asked_to_end boolean NOT NULL DEFAULT false,
    ended_at timestamptz,
    reason text
);

-- One row a second and table. An operation counts in the second in which it was due, however late it was answered, so
-- its wait holds the time in which the probe could not even ask. Kept one by one: percentiles of percentiles are none.
CREATE TABLE IF NOT EXISTS pgrollout.probe_sample (
    run_id bigint NOT NULL REFERENCES pgrollout.run,
    table_name text NOT NULL,
    second timestamptz NOT NULL,
    waits_ms real[] NOT NULL,
    errors integer NOT NULL,
    PRIMARY KEY (run_id, table_name, second)
);

-- The probe's own table: an update of its row is a commit and nothing else. Room on the page keeps the updates HOT.
CREATE TABLE IF NOT EXISTS pgrollout.probe_commit (
    run_id bigint PRIMARY KEY REFERENCES pgrollout.run,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 10);

CREATE OR REPLACE FUNCTION pgrollout.clock(p_at timestamptz) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT to_char(p_at AT TIME ZONE 'utc', 'HH24:MI:SS') || ' UTC'
$$;

CREATE OR REPLACE FUNCTION pgrollout.ms(p_ms real) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(CASE WHEN p_ms < 10 THEN round(p_ms::numeric, 1) ELSE round(p_ms::numeric) END::text, '-')
$$;

-- Registers a probe. False where the run has one already, or is over.
CREATE OR REPLACE FUNCTION pgrollout.probe_begin(p_run bigint, p_probe jsonb) RETURNS boolean LANGUAGE sql AS $$
    DELETE FROM pgrollout.probe_sample AS s USING pgrollout.run AS r
    WHERE r.run_id = s.run_id AND r.ended_at < clock_timestamp() - make_interval(days => (p_probe ->> 'keep_days')::integer);
    DELETE FROM pgrollout.probe_commit AS c USING pgrollout.run AS r WHERE r.run_id = c.run_id AND r.ended_at IS NOT NULL;
    INSERT INTO pgrollout.probe_commit (run_id) SELECT r.run_id FROM pgrollout.run AS r
    WHERE r.run_id = p_run AND r.ended_at IS NULL ON CONFLICT DO NOTHING;
    WITH begun AS (
        INSERT INTO pgrollout.probe (run_id, host, pid, tables, left_out, interval_ms, warn_ms, alert_ms, started_at)
        SELECT r.run_id, p.host, p.pid, p.tables, p.left_out, p.interval_ms, p.warn_ms, p.alert_ms, clock_timestamp()
        FROM jsonb_to_record(p_probe) AS p (host text, pid integer, tables text[], left_out text[], interval_ms integer,
                                            warn_ms integer, alert_ms integer)
        JOIN pgrollout.run AS r ON r.run_id = p_run AND r.ended_at IS NULL
        ON CONFLICT DO NOTHING RETURNING 1)
    SELECT EXISTS (SELECT FROM begun)
$$;

-- Keeps samples ([{table, second, waits_ms, errors}]) and says why the probe has to end, '' where it goes on. Samples
-- that come again, because the answer to the first call was lost, change nothing. p_alone: the controller is gone.
CREATE OR REPLACE FUNCTION pgrollout.probe_beat(p_run bigint, p_samples jsonb, p_alone boolean) RETURNS text LANGUAGE sql AS $$
    INSERT INTO pgrollout.probe_sample (run_id, table_name, second, waits_ms, errors)
    SELECT p_run, s."table", to_timestamp(s.second), s.waits_ms, s.errors
    FROM jsonb_to_recordset(p_samples) AS s ("table" text, second bigint, waits_ms real[], errors integer)
    ON CONFLICT DO NOTHING;
    SELECT coalesce((
        SELECT CASE WHEN r.ended_at IS NOT NULL THEN format('run %s is over (%s)', p_run, r.status)
                    WHEN p.asked_to_end THEN 'the work is done'
                    -- A session that outlived its playbook is measured as long as it works.
                    WHEN p_alone AND NOT EXISTS (SELECT FROM pgrollout.lock_holder())
                        THEN format('the controller of run %s is gone and no session works for it', p_run)
                    ELSE '' END
        FROM pgrollout.probe AS p JOIN pgrollout.run AS r USING (run_id) WHERE p.run_id = p_run),
        format('run %s is not in the ledger', p_run))
$$;

CREATE OR REPLACE FUNCTION pgrollout.probe_end(p_run bigint, p_reason text) RETURNS void LANGUAGE sql AS $$
    UPDATE pgrollout.probe SET ended_at = clock_timestamp(), reason = p_reason WHERE run_id = p_run AND ended_at IS NULL;
$$;

-- A table that was dropped or renamed while the probe looked at it.
CREATE OR REPLACE FUNCTION pgrollout.probe_lost(p_run bigint, p_table text) RETURNS void LANGUAGE sql AS $$
    UPDATE pgrollout.probe
    SET left_out = left_out || format('%s since %s, when it was dropped or renamed', p_table, pgrollout.clock(clock_timestamp()))
    WHERE run_id = p_run
$$;

-- Notes for whom the probe's session p_pid waits now, while it can still be seen; returns it, '' where nobody is.
CREATE OR REPLACE FUNCTION pgrollout.probe_stalled(p_run bigint, p_table text, p_pid integer, p_waited_ms bigint) RETURNS text
LANGUAGE sql AS $$
    WITH blocker AS (
        SELECT string_agg(coalesce(format('pid %s (user %s, application %L, %s): %s', a.pid, a.usename, a.application_name,
                                          a.state, left(regexp_replace(a.query, '\s+', ' ', 'g'), 120)),
                                   format('pid %s', b.pid)), ' | ') AS names
        FROM (SELECT DISTINCT unnest(pg_blocking_pids(p_pid)) AS pid) AS b LEFT JOIN pg_stat_activity AS a ON a.pid = b.pid
    ), noted AS (
        INSERT INTO pgrollout.event (run_id, what, detail)
        SELECT p_run, 'stall', format('%s: has waited for %s ms behind %s', p_table, p_waited_ms,
                                      coalesce(names, 'no lock; the server is slow or away'))
        FROM blocker
    )
    SELECT coalesce(names, '') FROM blocker
$$;

-- Asks the run to stop, as an operator would; it does so at its next batch or attempt.
CREATE OR REPLACE FUNCTION pgrollout.probe_abort(p_run bigint, p_why text, p_limit text) RETURNS void LANGUAGE sql AS $$
    WITH advice AS (
        SELECT p_why || coalesce((
            SELECT format('; to take %s back: ansible-playbook rollback.yml -l %s --tags %s', f.phase, p_limit, f.phase)
            FROM pgrollout.phase_run AS f
            WHERE f.run_id = p_run AND f.direction = 'apply' ORDER BY f.started_at DESC LIMIT 1), '') AS why
    ), asked AS (
        UPDATE pgrollout.control SET request = 'stop', who = 'the downtime probe', why = a.why, at = clock_timestamp()
        FROM advice AS a
        WHERE EXISTS (SELECT FROM pgrollout.run WHERE run_id = p_run AND ended_at IS NULL) RETURNING 1)
    INSERT INTO pgrollout.event (run_id, what, detail) SELECT p_run, 'abort', a.why FROM advice AS a, asked
$$;

-- For a run whose downtime somebody else measures, or nobody.
CREATE OR REPLACE FUNCTION pgrollout.probe_off(p_run bigint, p_instead text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO pgrollout.probe (run_id, instead) VALUES (p_run, nullif(p_instead, '')) ON CONFLICT DO NOTHING
$$;

CREATE OR REPLACE FUNCTION pgrollout.probe_ask_to_end(p_run bigint) RETURNS void LANGUAGE sql AS $$
    UPDATE pgrollout.probe SET asked_to_end = true WHERE run_id = p_run AND started_at IS NOT NULL AND ended_at IS NULL
$$;

-- Waits until the probe has written its last samples; one that was killed is not waited for any longer than that.
CREATE OR REPLACE PROCEDURE pgrollout.probe_await_end(p_run bigint, p_seconds double precision) LANGUAGE plpgsql AS $$
DECLARE
    v_until timestamptz := clock_timestamp() + make_interval(secs => p_seconds);
BEGIN
    WHILE EXISTS (SELECT FROM pgrollout.probe WHERE run_id = p_run AND started_at IS NOT NULL AND ended_at IS NULL)
          AND clock_timestamp() < v_until LOOP
        CALL pgrollout.nap(0.1);
    END LOOP;
END
$$;

-- The time before, during and after each phase. What lies between two phases is after the one and before the other.
CREATE OR REPLACE VIEW pgrollout.probe_window AS
WITH phases AS (
    SELECT p.run_id, p.phase, p.direction, p.started_at, coalesce(p.ended_at, 'infinity') AS ended_at,
           lag(p.ended_at, 1, '-infinity') OVER run AS previous, lead(p.started_at, 1, 'infinity') OVER run AS next
    FROM pgrollout.phase_run AS p WINDOW run AS (PARTITION BY p.run_id ORDER BY p.started_at)
)
SELECT p.run_id, p.phase, p.direction, p.started_at, m.moment, m.since, m.until
FROM phases AS p
-- A second counts as during the phase when any of it is: better laid to us than not.
CROSS JOIN LATERAL (VALUES
    ('before', p.previous, p.started_at - interval '1 second'),
    ('during', p.started_at - interval '1 second', p.ended_at),
    ('after', p.ended_at, p.next - interval '1 second')) AS m (moment, since, until);

-- By phase, moment and table, and for all tables of the application together; times in milliseconds.
CREATE OR REPLACE VIEW pgrollout.probe_phase AS
SELECT w.run_id, w.phase, w.direction, w.moment, coalesce(o.table_name, 'all tables') AS table_name, o.operations, o.errors,
       o.p50_ms, o.p99_ms, o.longest_ms, o.longest_at, o.longest_table, w.started_at
FROM pgrollout.probe_window AS w
CROSS JOIN LATERAL (
    SELECT s.table_name, count(l.ms) AS operations, coalesce(sum(s.errors) FILTER (WHERE coalesce(l.place, 1) = 1), 0) AS errors,
           percentile_disc(0.5) WITHIN GROUP (ORDER BY l.ms) AS p50_ms,
           percentile_disc(0.99) WITHIN GROUP (ORDER BY l.ms) AS p99_ms,
           max(l.ms) AS longest_ms,
           (array_agg(s.second ORDER BY l.ms DESC NULLS LAST))[1] AS longest_at,
           (array_agg(s.table_name ORDER BY l.ms DESC NULLS LAST))[1] AS longest_table
    FROM (SELECT *, table_name = 'commit' AS is_commit FROM pgrollout.probe_sample
          WHERE run_id = w.run_id AND second >= w.since AND second < w.until) AS s
    LEFT JOIN LATERAL unnest(s.waits_ms) WITH ORDINALITY AS l (ms, place) ON true
    GROUP BY GROUPING SETS ((s.table_name), (s.is_commit))
    HAVING grouping(s.table_name) = 0 OR NOT s.is_commit
) AS o;

-- What a run did to its application, for people; nothing where the run had no probe.
CREATE OR REPLACE FUNCTION pgrollout.probe_lines(p_run bigint) RETURNS TABLE (line text) LANGUAGE sql STABLE AS $$
    WITH probe AS (
        SELECT p.*, (SELECT max(s.second) FROM pgrollout.probe_sample AS s WHERE s.run_id = p_run) AS last_second
        FROM pgrollout.probe AS p WHERE p.run_id = p_run
    ), measured AS MATERIALIZED (
        SELECT *, phase || CASE direction WHEN 'rollback' THEN ' (rollback)' ELSE '' END AS label
        FROM pgrollout.probe_phase WHERE run_id = p_run
    ), sorted AS (
        SELECT 1 AS place, NULL::timestamptz AS at, CASE
            WHEN p.started_at IS NULL AND p.instead IS NULL
                THEN 'downtime: NOT measured (probe_enabled is false, and probe_instead names nothing)'
            WHEN p.started_at IS NULL THEN format('downtime: measured by %s, not by this run (probe_enabled is false)', p.instead)
            ELSE format('downtime probe: %s table%s and the commit, each %s times a second, %s to %s', cardinality(p.tables),
                        CASE WHEN cardinality(p.tables) <> 1 THEN 's' END, round(1000.0 / p.interval_ms), pgrollout.clock(p.started_at),
                        pgrollout.clock(coalesce(p.ended_at, p.last_second, p.started_at))) END AS line
        FROM probe AS p
        UNION ALL
        SELECT 2, NULL, format('downtime probe: not looked at: %s', o.sentence) FROM probe AS p, unnest(p.left_out) AS o (sentence)
        UNION ALL
        SELECT 3, NULL, format('WARNING: the downtime probe was heard of last at %s; what came then is not measured',
                               pgrollout.clock(coalesce(p.last_second, p.started_at)))
        FROM probe AS p WHERE p.started_at IS NOT NULL AND p.ended_at IS NULL
        UNION ALL
        SELECT 4, d.started_at,
               format('%s: longest stall %s ms (%s at %s; before %s, after %s); %s errors in %s operations; p50/p99 %s/%s ms '
                      '(before %s/%s, after %s/%s); commit p99 %s ms', d.label, pgrollout.ms(d.longest_ms), d.longest_table,
                      pgrollout.clock(d.longest_at), pgrollout.ms(b.longest_ms), pgrollout.ms(a.longest_ms), d.errors,
                      d.operations, pgrollout.ms(d.p50_ms), pgrollout.ms(d.p99_ms), pgrollout.ms(b.p50_ms),
                      pgrollout.ms(b.p99_ms), pgrollout.ms(a.p50_ms), pgrollout.ms(a.p99_ms), pgrollout.ms(c.p99_ms))
        FROM measured AS d
        LEFT JOIN measured AS b ON (b.label, b.table_name, b.moment) = (d.label, d.table_name, 'before')
        LEFT JOIN measured AS a ON (a.label, a.table_name, a.moment) = (d.label, d.table_name, 'after')
        LEFT JOIN measured AS c ON (c.label, c.table_name, c.moment) = (d.label, 'commit', 'during')
        WHERE d.moment = 'during' AND d.table_name = 'all tables'
        UNION ALL
        -- Between two phases a stall is seen twice, as after the one and before the other; it is told once.
        SELECT DISTINCT ON (m.table_name, m.longest_at) 5, m.longest_at,
               format('%s: %s stood still for %s s at %s, %s %s%s',
                      CASE WHEN m.longest_ms > p.alert_ms THEN 'ALERT' ELSE 'WARNING' END, m.table_name,
                      round((m.longest_ms / 1000)::numeric, 1), pgrollout.clock(m.longest_at), m.moment, m.label,
                      coalesce((SELECT '; ' || e.detail FROM pgrollout.event AS e
                                WHERE e.run_id = p_run AND e.what = 'stall' AND starts_with(e.detail, m.table_name || ':')
                                  AND e.at BETWEEN m.longest_at AND m.longest_at + make_interval(secs => 1 + m.longest_ms / 1000)
                                ORDER BY e.event_id LIMIT 1), ''))
        FROM measured AS m, probe AS p WHERE m.longest_ms > p.warn_ms AND m.table_name <> 'all tables'
        UNION ALL
        SELECT 6, m.started_at, format('WARNING: %s of %s operations failed (%s %%) during %s, over the 0.1 %% allowed', m.errors,
                                       m.operations, round(100.0 * m.errors / greatest(m.operations, 1), 2), m.label)
        FROM measured AS m WHERE m.moment = 'during' AND m.table_name = 'all tables' AND m.errors > m.operations / 1000.0
        UNION ALL
        SELECT 7, e.at, 'ALERT: the downtime probe asked the run to stop: ' || e.detail
        FROM pgrollout.event AS e WHERE e.run_id = p_run AND e.what = 'abort'
    )
    SELECT s.line FROM sorted AS s ORDER BY s.place, s.at, s.line
$$;
