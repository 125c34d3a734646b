-- The ledger as the roadmap's monitoring query reads it: one row a phase and run.
CREATE OR REPLACE VIEW pgrollout.migration_log AS
SELECT CASE p.direction WHEN 'apply' THEN p.phase ELSE p.phase || ' (rollback)' END AS phase,
       p.started_at AS start_time,
       p.ended_at AS end_time,
       p.status,
       coalesce(s.rows, 0) AS records_processed,
       coalesce(s.failed, 0) AS errors_encountered,
       p.run_id
FROM pgrollout.phase_run AS p
LEFT JOIN LATERAL (
    SELECT sum(t.rows) FILTER (WHERE t.kind IN ('BACKFILL', 'restore', 'UPDATE', 'INSERT', 'DELETE')) AS rows,
           count(*) FILTER (WHERE t.state = 'failed') AS failed
    FROM pgrollout.step AS t WHERE t.run_id = p.run_id AND t.phase = p.phase AND (t.step_id LIKE '% (rollback)') = (p.direction = 'rollback')
) AS s ON true;

-- The roadmap's query names the view without a schema. A relation of that name that is not ours is left alone.
DO $$
BEGIN
    IF to_regclass('public.migration_log') IS NULL AND has_schema_privilege('public', 'CREATE') THEN
        CREATE VIEW public.migration_log AS
        SELECT phase, start_time, end_time, status, records_processed, errors_encountered FROM pgrollout.migration_log;
        COMMENT ON VIEW public.migration_log IS 'The ledger of the phased migrations (schema pgrollout)';
    END IF;
END
$$;

-- How far each backfill is, how fast it works and how long it has still to work at that pace. Time that it waits or
-- vacuums comes on top.
CREATE OR REPLACE VIEW pgrollout.backfill_progress AS
SELECT c.step_id, c.rows_visited, c.rows_estimated, c.rows_changed, c.batch_rows, c.batches, c.pass, c.finished, p.rows_per_s,
       CASE WHEN NOT c.finished
            THEN make_interval(secs => ceil(greatest(c.rows_estimated - c.rows_visited, 0) / nullif(p.rows_per_s, 0))::double precision) END AS time_left,
       c.updated_at
FROM pgrollout.cursor AS c
CROSS JOIN LATERAL (SELECT round(c.rows_visited / nullif(c.worked_ms, 0) * 1000)::numeric AS rows_per_s) AS p;

-- A run for people: one line about the run, then one a phase.
CREATE OR REPLACE FUNCTION pgrollout.report(p_run bigint) RETURNS TABLE (line text) LANGUAGE sql STABLE AS $$
    SELECT format('run %s (%s) by %s on %s, git %s: %s in %s s', r.run_id, r.kind, r.operator, r.host, r.git_revision, r.status,
                  round(extract(epoch FROM coalesce(r.ended_at, clock_timestamp()) - r.started_at), 1))
    FROM pgrollout.run AS r WHERE r.run_id = p_run
    UNION ALL
    (SELECT format('%s: %s in %s s; %s steps, %s rows changed, longest lock wait %s ms, longest lock hold %s ms', p.phase || CASE p.direction WHEN 'rollback' THEN ' (rollback)' ELSE '' END,
                   p.status, round(extract(epoch FROM coalesce(p.ended_at, clock_timestamp()) - p.started_at), 1),
                   count(s.step_id), coalesce(sum(s.rows) FILTER (WHERE s.kind IN ('BACKFILL', 'restore')), 0),
                   coalesce(max(s.lock_wait_ms), 0), coalesce(max(s.lock_hold_ms), 0))
     FROM pgrollout.phase_run AS p
     LEFT JOIN pgrollout.step AS s ON s.run_id = p_run AND s.phase = p.phase
         AND (s.step_id LIKE '% (rollback)') = (p.direction = 'rollback')
     WHERE p.run_id = p_run GROUP BY p.run_id, p.phase, p.direction ORDER BY min(p.started_at))
    UNION ALL
    (SELECT format('%s: %s: %s', CASE s.state WHEN 'failed' THEN 'failed' ELSE 'not done' END, s.step_id, coalesce(s.message, 'cut off'))
     FROM pgrollout.step AS s WHERE s.run_id = p_run AND s.state IN ('started', 'failed') ORDER BY s.started_at)
    UNION ALL
    (SELECT format('accepted: %s: %s because %s', s.step_id, a.hazard, a.reason)
     FROM pgrollout.step AS s, jsonb_to_recordset(s.accepted) AS a (hazard text, reason text)
     WHERE s.run_id = p_run ORDER BY s.started_at)
    UNION ALL
    (SELECT format('leftover: %s: %s', e.step_id, e.detail)
     FROM pgrollout.event AS e WHERE e.run_id = p_run AND e.what = 'leftover' ORDER BY e.event_id)
    UNION ALL
    (SELECT format('proof of the rollback of %s: %s; %s of %s tables hold what they held before it; fingerprint %s', p.phase,
                   CASE jsonb_array_length(jsonb_path_query_array(p.catalog, '$[*] ? (@.counts == true)'))
                   WHEN 0 THEN 'the catalog is what it was' ELSE 'the catalog is NOT what it was' END,
                   jsonb_array_length(jsonb_path_query_array(p.contents, '$[*] ? (@.equal == true)')), jsonb_array_length(p.contents), left(p.fingerprint, 12))
     FROM pgrollout.proof AS p WHERE p.run_id = p_run ORDER BY p.at)
    UNION ALL
    (SELECT 'data integrity: ' || e.detail
     FROM pgrollout.event AS e WHERE e.run_id = p_run AND e.what = 'integrity' ORDER BY e.event_id)
    UNION ALL
    SELECT 'kept: ' || pgrollout.kept_line(k) FROM pgrollout.kept AS k WHERE k.run_id = p_run AND k.state <> 'capturing' AND k.rows > 0
    UNION ALL
    (SELECT format('given back: %s: %s rows%s', s.step_id, s.rows, coalesce('; ' || s.message, ''))
     FROM pgrollout.step AS s WHERE s.run_id = p_run AND s.kind = 'GIVE BACK' AND s.state = 'done' ORDER BY s.started_at)
    UNION ALL
    (SELECT format('before %s: restore point %s at %s', p.phase, p.restore_point, p.restore_lsn)
     FROM pgrollout.phase_run AS p WHERE p.run_id = p_run AND p.restore_point IS NOT NULL ORDER BY p.started_at)
    UNION ALL
    SELECT 'no restore point: WAL is archived, but ' || max(e.detail)
    FROM pgrollout.event AS e WHERE e.run_id = p_run AND e.what = 'no restore point' HAVING count(*) > 0
$$;

-- How long a run took from its claim to its end, against a limit.
CREATE OR REPLACE FUNCTION pgrollout.time_line(p_run bigint, p_limit_minutes numeric) RETURNS TABLE (line text) LANGUAGE sql STABLE AS $$
    SELECT format('time: %s s of the %s min allowed%s', round(t.seconds, 1), p_limit_minutes, CASE WHEN t.seconds > 60 * p_limit_minutes THEN ': OVER the limit' ELSE '' END)
    FROM pgrollout.run AS r, LATERAL (SELECT extract(epoch FROM coalesce(r.ended_at, clock_timestamp()) - r.started_at)::numeric AS seconds) AS t
    WHERE r.run_id = p_run AND p_limit_minutes > 0
$$;

-- What runs now, what it waits for, how far its backfill is, what it was asked; one line each.
CREATE OR REPLACE FUNCTION pgrollout.status() RETURNS TABLE (line text) LANGUAGE sql STABLE AS $$
    SELECT 'open: ' || pgrollout.describe_run(r.run_id) || coalesce(format('; waits since %s UTC for %s', to_char(r.waiting_since AT TIME ZONE 'utc', 'HH24:MI:SS'), r.waiting_for), '')
    FROM pgrollout.run AS r WHERE r.ended_at IS NULL
    UNION ALL
    SELECT format('last: run %s (%s) by %s on %s: %s at %s UTC%s', r.run_id, r.kind, r.operator, r.host, r.status,
                  to_char(r.ended_at AT TIME ZONE 'utc', 'YYYY-MM-DD HH24:MI:SS'), coalesce('; ' || nullif(r.message, ''), ''))
    FROM (SELECT * FROM pgrollout.run WHERE ended_at IS NOT NULL ORDER BY run_id DESC LIMIT 1) AS r
    UNION ALL
    SELECT format('working: pid %s (%s) since %s: %s', h.pid, h.application_name, date_trunc('second', h.since), h.query)
    FROM pgrollout.lock_holder() AS h
    UNION ALL
    SELECT format('backfill: %s: %s of about %s rows visited, %s changed, %s rows a batch, %s rows/s, about %s of work left', b.step_id,
                  b.rows_visited, b.rows_estimated, b.rows_changed, b.batch_rows, coalesce(b.rows_per_s::text, '?'),
                  coalesce(b.time_left::text, '?'))
    FROM pgrollout.backfill_progress AS b WHERE NOT b.finished
    UNION ALL
    SELECT format('asked to %s by %s at %s UTC: %s', c.request, c.who, to_char(c.at AT TIME ZONE 'utc', 'HH24:MI:SS'), c.why)
    FROM pgrollout.control AS c WHERE c.request <> 'run'
    UNION ALL
    SELECT format('backup: %s, %s old, %s', b.evidence ->> 'path', date_trunc('second', clock_timestamp() - b.recorded_at),
                  CASE WHEN (b.evidence ->> 'verified')::boolean THEN 'verified by a restore' ELSE 'NOT verified' END)
    FROM (SELECT * FROM pgrollout.backup ORDER BY backup_id DESC LIMIT 1) AS b
    UNION ALL
    SELECT 'kept: ' || pgrollout.kept_line(k) FROM pgrollout.kept AS k WHERE k.state <> 'capturing' AND k.rows > 0
    UNION ALL
    SELECT g.line FROM pgrollout.gate_lines() AS g
$$;
