-- What the queries of gates did, and what their gates said of it: before the first phase, and after each.
CREATE TABLE IF NOT EXISTS pgrollout.gate (
    run_id bigint NOT NULL REFERENCES pgrollout.run,
    -- 'baseline', 'after phase1', 'after the rollback of phase1', 'again' (one that failed, at the start of the next run)
    moment text NOT NULL,
    gate_id text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- As measure.sql of the gates describes it.
    measured jsonb NOT NULL,
    verdicts jsonb NOT NULL DEFAULT '[]',
    PRIMARY KEY (run_id, moment, gate_id)
);

CREATE OR REPLACE FUNCTION pgrollout.keep_gates(p_run bigint, p_moment text, p_measured jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO pgrollout.gate (run_id, moment, gate_id, measured)
    SELECT p_run, p_moment, m.key, m.value FROM jsonb_each(p_measured) AS m
    ON CONFLICT (run_id, moment, gate_id) DO UPDATE SET measured = excluded.measured, verdicts = '[]', at = clock_timestamp()
$$;

-- p_phase: taken back by this very run where a gate failed; '' takes nothing back.
CREATE OR REPLACE FUNCTION pgrollout.judge_gates(p_run bigint, p_moment text, p_verdicts jsonb, p_failures jsonb, p_phase text) RETURNS void
LANGUAGE sql AS $$
    UPDATE pgrollout.gate AS g SET verdicts = v.value FROM jsonb_each(p_verdicts) AS v
    WHERE g.run_id = p_run AND g.moment = p_moment AND g.gate_id = v.key;
    INSERT INTO pgrollout.event (run_id, what, detail)
    SELECT p_run, 'gate', f.sentence FROM jsonb_array_elements_text(p_failures) AS f (sentence) WHERE p_phase <> '';
$$;

-- What was measured of each gate before the first phase, {gate: measured}: the last time that it was.
CREATE OR REPLACE FUNCTION pgrollout.gate_baseline() RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT coalesce(jsonb_object_agg(b.gate_id, b.measured), '{}')
    FROM (SELECT DISTINCT ON (g.gate_id) g.gate_id, g.measured FROM pgrollout.gate AS g
          WHERE g.moment = 'baseline' ORDER BY g.gate_id, g.run_id DESC) AS b
$$;

-- What each gate said last, the worst first of what it said.
CREATE OR REPLACE VIEW pgrollout.gate_status AS
SELECT DISTINCT ON (g.gate_id) g.gate_id, g.run_id, g.moment, g.at, coalesce(v.status, 'inconclusive') AS status, v.reason
FROM pgrollout.gate AS g
LEFT JOIN LATERAL (
    SELECT e ->> 'status' AS status, format('%s: %s', e ->> 'gate', e ->> 'reason') AS reason
    FROM jsonb_array_elements(g.verdicts) AS e
    ORDER BY array_position(ARRAY['fail', 'warn', 'inconclusive', 'waived', 'pass'], e ->> 'status') LIMIT 1) AS v ON true
WHERE g.moment <> 'baseline'
ORDER BY g.gate_id, g.at DESC;

-- One line about all gates, then one for each that fails or warns.
CREATE OR REPLACE FUNCTION pgrollout.gate_lines() RETURNS TABLE (line text) LANGUAGE sql STABLE AS $$
    SELECT format('gates: %s queries, last measured %s at %s UTC: %s', sum(c.count), (SELECT moment FROM pgrollout.gate_status ORDER BY at DESC LIMIT 1),
                  to_char(max(c.at) AT TIME ZONE 'utc', 'YYYY-MM-DD HH24:MI:SS'), string_agg(format('%s %s', c.count, c.status), ', ' ORDER BY c.status))
    FROM (SELECT status, count(*), max(at) AS at FROM pgrollout.gate_status GROUP BY status) AS c HAVING count(*) > 0
    UNION ALL
    (SELECT format('gate %s: %s: %s (%s)', s.status, s.gate_id, s.reason, s.moment) FROM pgrollout.gate_status AS s
     WHERE s.status IN ('fail', 'warn') ORDER BY s.status, s.gate_id)
$$;

-- How much the indexes of the rollout ([{table, name}]) are used: by the queries of gates when they were last measured,
-- and by anybody since the server counts. A partitioned index is its partitions. `writes` of its table had to be
-- entered in it, or tested by its WHERE: those that changed a row without touching an index (HOT) are left out.
CREATE OR REPLACE FUNCTION pgrollout.index_usage(p_indexes jsonb)
RETURNS TABLE (table_name text, index_name text, bytes bigint, scans bigint, writes bigint, partial boolean, in_gates boolean) LANGUAGE sql STABLE AS $$
    WITH asked AS (
        SELECT i."table", i.name, x.indexrelid, x.indpred IS NOT NULL AS partial
        FROM jsonb_to_recordset(p_indexes) AS i ("table" text, name text)
        JOIN pg_index AS x ON x.indrelid = to_regclass(i."table") JOIN pg_class AS c ON c.oid = x.indexrelid AND c.relname = i.name
    ), planned AS (
        SELECT DISTINCT p.name #>> '{}' AS name
        FROM pgrollout.gate AS g JOIN pgrollout.gate_status AS l USING (gate_id, run_id, moment),
             jsonb_path_query(g.measured -> 'cases', '$.**."Index Name"') AS p (name)
    )
    SELECT a."table", a.name, sum(pg_relation_size(s.indexrelid))::bigint, sum(s.idx_scan)::bigint,
           sum(t.n_tup_ins + t.n_tup_upd - t.n_tup_hot_upd)::bigint, a.partial,
           bool_or(c.relname IN (SELECT p.name FROM planned AS p))
    FROM asked AS a
    CROSS JOIN LATERAL (SELECT a.indexrelid WHERE NOT EXISTS (SELECT FROM pg_partition_tree(a.indexrelid))
                        UNION ALL SELECT p.relid FROM pg_partition_tree(a.indexrelid) AS p WHERE p.isleaf) AS leaf (oid)
    JOIN pg_stat_user_indexes AS s ON s.indexrelid = leaf.oid
    JOIN pg_stat_user_tables AS t ON t.relid = s.relid
    JOIN pg_class AS c ON c.oid = leaf.oid
    GROUP BY a."table", a.name, a.partial
$$;

-- Whether the indexes of the rollout earn their place: for the report of a run those that serve no query with a gate, for
-- the status (p_used) also how many anybody uses, and those that nobody does. The roadmap looks closer under 70 %.
CREATE OR REPLACE FUNCTION pgrollout.index_lines(p_indexes jsonb, p_used boolean) RETURNS TABLE (line text) LANGUAGE sql STABLE AS $$
    WITH usage AS MATERIALIZED (
        SELECT u.*, row_number() OVER (PARTITION BY u.in_gates AND (u.scans > 0 OR NOT p_used) ORDER BY u.bytes DESC, u.index_name) AS place,
               u.in_gates AND (u.scans > 0 OR NOT p_used) AS earned
        FROM pgrollout.index_usage(p_indexes) AS u
    )
    SELECT format('indexes: %s of this rollout, %s; %s serve a query that has a gate', count(*), pg_size_pretty(sum(u.bytes)),
                  count(*) FILTER (WHERE u.in_gates))
           || CASE WHEN p_used THEN format('; %s %% were scanned since %s%s', round(100.0 * count(*) FILTER (WHERE u.scans > 0) / count(*)),
                  coalesce((SELECT to_char(d.stats_reset AT TIME ZONE 'utc', 'YYYY-MM-DD HH24:MI "UTC"') FROM pg_stat_database AS d
                            WHERE d.datname = current_database()), 'the server began to count'),
                  CASE WHEN count(*) FILTER (WHERE u.scans > 0) < 0.7 * count(*) THEN ': under 70 %, look into it' ELSE '' END) ELSE '' END
    FROM usage AS u HAVING count(*) > 0
    UNION ALL
    (SELECT format('index %s on %s: %s; %s%s; %s writes of its table had to %s', u.index_name, u.table_name, pg_size_pretty(u.bytes),
                   CASE WHEN u.in_gates THEN 'a gate''s query uses it' ELSE 'no gate''s query uses it' END,
                   CASE WHEN NOT p_used THEN '' WHEN u.scans > 0 THEN format('; scanned %s times', u.scans) ELSE '; never scanned' END,
                   to_char(u.writes, 'FM999,999,999,999,990'), CASE WHEN u.partial THEN 'test its WHERE' ELSE 'be entered in it' END)
     FROM usage AS u WHERE NOT u.earned AND u.place <= 10 ORDER BY u.place)
    UNION ALL
    SELECT format('and %s smaller indexes like these, %s', count(*), pg_size_pretty(sum(u.bytes)))
    FROM usage AS u WHERE NOT u.earned AND u.place > 10 HAVING count(*) > 0
$$;
