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
    FROM pgrollout.step AS t WHERE t.run_id = p.run_id AND t.phase = p.phase
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
     WHERE p.run_id = p_run GROUP BY p.run_id, p.phase, p.direction ORDER BY min(p.started_at))
$$;
