-- What the queries of gates did, and what their gates said of it: before the first phase, and after each.
CREATE TABLE IF NOT EXISTS pgrollout.gate (
    run_id bigint NOT NULL REFERENCES pgrollout.run,
    -- 'baseline', 'after phase1', 'after the rollback of phase1'
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

CREATE OR REPLACE FUNCTION pgrollout.judge_gates(p_run bigint, p_moment text, p_verdicts jsonb) RETURNS void LANGUAGE sql AS $$
    UPDATE pgrollout.gate AS g SET verdicts = v.value FROM jsonb_each(p_verdicts) AS v
    WHERE g.run_id = p_run AND g.moment = p_moment AND g.gate_id = v.key
$$;

-- What was measured of each gate before the first phase, {gate: measured}: the last time that it was.
CREATE OR REPLACE FUNCTION pgrollout.gate_baseline() RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT coalesce(jsonb_object_agg(b.gate_id, b.measured), '{}')
    FROM (SELECT DISTINCT ON (g.gate_id) g.gate_id, g.measured FROM pgrollout.gate AS g
          WHERE g.moment = 'baseline' ORDER BY g.gate_id, g.run_id DESC) AS b
$$;
