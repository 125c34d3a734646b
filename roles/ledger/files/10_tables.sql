-- The ledger: who did what, when, how long, to how many rows. The catalog says what is done; this says how it came to be.

CREATE SCHEMA IF NOT EXISTS pgrollout;
COMMENT ON SCHEMA pgrollout IS 'Ledger and runner of the phased migrations';

-- One row a run. run_id grows with each claim and is the fencing token: only the open run of the highest number works.
CREATE TABLE IF NOT EXISTS pgrollout.run (
    run_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    operator text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    -- Start of the controller's process in seconds since 1970: a reused pid is not the same process.
    pid_started double precision NOT NULL,
    phases text[] NOT NULL,
    git_revision text NOT NULL,
    search_path text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    status text NOT NULL DEFAULT 'running',
    step text NOT NULL DEFAULT 'start',
    waiting_for text,
    -- Means something while waiting_for does.
    waiting_since timestamptz,
    message text,
    took_over bigint REFERENCES pgrollout.run
);
-- The claim itself: at most one open run, whatever races for it.
CREATE UNIQUE INDEX IF NOT EXISTS run_open ON pgrollout.run ((true)) WHERE ended_at IS NULL;

CREATE TABLE IF NOT EXISTS pgrollout.phase_run (
    run_id bigint NOT NULL REFERENCES pgrollout.run,
    phase text NOT NULL,
    direction text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    status text NOT NULL DEFAULT 'running',
    PRIMARY KEY (run_id, phase, direction)
);

ALTER TABLE pgrollout.phase_run ADD COLUMN IF NOT EXISTS restore_point text, ADD COLUMN IF NOT EXISTS restore_lsn pg_lsn;

-- A migration that is applied as a whole, with the checksum of the file it was applied from.
CREATE TABLE IF NOT EXISTS pgrollout.migration (
    migration text PRIMARY KEY,
    phase text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    run_id bigint NOT NULL REFERENCES pgrollout.run
);

-- The latest state of each step: started, done, failed, held (an operator took it away), restoring, rolled_back.
CREATE TABLE IF NOT EXISTS pgrollout.step (
    step_id text PRIMARY KEY,
    migration text NOT NULL,
    phase text NOT NULL,
    kind text NOT NULL,
    statement text NOT NULL,
    state text NOT NULL,
    run_id bigint REFERENCES pgrollout.run,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    rows bigint NOT NULL DEFAULT 0,
    attempts integer NOT NULL DEFAULT 0,
    lock_wait_ms double precision,
    lock_hold_ms double precision,
    message text,
    -- [{hazard, reason}]: what the author let through with `-- Accept: <hazard> because <reason>`.
    accepted jsonb NOT NULL DEFAULT '[]'
);

-- Progress of a data step; written in the transaction of its batch.
CREATE TABLE IF NOT EXISTS pgrollout.cursor (
    step_id text PRIMARY KEY,
    position jsonb,
    -- The row with which the pass ends.
    last jsonb,
    rows_visited bigint NOT NULL DEFAULT 0,
    rows_changed bigint NOT NULL DEFAULT 0,
    rows_estimated bigint NOT NULL DEFAULT 0,
    rows_left bigint,
    batch_rows integer NOT NULL,
    batches bigint NOT NULL DEFAULT 0,
    -- Time spent in batches and in the rests between them; waiting, vacuum and the nights between two runs are no part of it.
    worked_ms double precision NOT NULL DEFAULT 0,
    pass integer NOT NULL DEFAULT 1,
    finished boolean NOT NULL DEFAULT false,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE pgrollout.cursor ADD COLUMN IF NOT EXISTS last jsonb, ADD COLUMN IF NOT EXISTS worked_ms double precision NOT NULL DEFAULT 0;

-- What a data step changed, row by row, so that it can be put back; written in the transaction of its batch.
CREATE TABLE IF NOT EXISTS pgrollout.row_change (
    change_id bigint GENERATED ALWAYS AS IDENTITY,
    step_id text NOT NULL,
    key jsonb NOT NULL,
    old jsonb NOT NULL,
    new jsonb NOT NULL,
    PRIMARY KEY (step_id, change_id)
);

-- What a rollback took away and did not lose: a table (place: where it is now), or columns of one (their values are in
-- row_change). state: capturing (the application's writes are followed), kept, given back (rows: what the table refused),
-- forgotten.
CREATE TABLE IF NOT EXISTS pgrollout.kept (
    kept_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id bigint NOT NULL REFERENCES pgrollout.run,
    relation text NOT NULL,
    columns text[],
    key text[],
    -- {column: what a row holds there to which nobody has given a value}
    fresh jsonb,
    place text,
    -- The walk over what stood there before the capture is through.
    copied boolean NOT NULL DEFAULT false,
    rows bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    state text NOT NULL DEFAULT 'capturing',
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz
);

-- What happened on the way: waits and for whom, retries, takeovers, failures.
CREATE TABLE IF NOT EXISTS pgrollout.event (
    event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id bigint REFERENCES pgrollout.run,
    step_id text,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    what text NOT NULL,
    detail text NOT NULL
);

-- Catalog fingerprint and content digests from before a phase was first applied: what its rollback must come back to;
-- and the server's statistics, to compare a later day with.
CREATE TABLE IF NOT EXISTS pgrollout.snapshot (
    phase text PRIMARY KEY,
    run_id bigint NOT NULL REFERENCES pgrollout.run,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    fingerprint jsonb NOT NULL,
    digests jsonb NOT NULL,
    statistics jsonb NOT NULL
);
-- Which transactions the digests saw; unknown of what an older ledger took.
ALTER TABLE pgrollout.snapshot ADD COLUMN IF NOT EXISTS visible pg_snapshot;

-- What a rollback came back to: how the catalog (fingerprint: its SHA-256) and the contents differ from the snapshot.
CREATE TABLE IF NOT EXISTS pgrollout.proof (
    run_id bigint NOT NULL REFERENCES pgrollout.run,
    phase text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    fingerprint text NOT NULL,
    catalog jsonb NOT NULL,
    contents jsonb NOT NULL,
    PRIMARY KEY (run_id, phase)
);

CREATE TABLE IF NOT EXISTS pgrollout.backup (
    backup_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- NULL: made by backup.yml, outside a run.
    run_id bigint REFERENCES pgrollout.run,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    evidence jsonb NOT NULL
);

-- Orders to the open run from another terminal; one row.
CREATE TABLE IF NOT EXISTS pgrollout.control (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    request text NOT NULL DEFAULT 'run' CHECK (request IN ('run', 'pause', 'stop')),
    who text NOT NULL DEFAULT '',
    why text NOT NULL DEFAULT '',
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO pgrollout.control DEFAULT VALUES ON CONFLICT DO NOTHING;
