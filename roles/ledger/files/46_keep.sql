-- What a rollback's DROP COLUMN or DROP TABLE would lose: kept before it, given back when the object is made again.
--
-- A table moves into this schema as it is. Of columns the rows that hold something else than the default are written
-- down: a trigger follows what the application writes from now on, a walk along the key adds what stood there before,
-- then the columns go, then the trigger. So nothing that is written between saving and dropping is missing. Values are
-- rows of row_change, step 'keep <kept_id>': old is what the application wrote, new what a fresh column holds there.

-- One entry for each row of such a step: what comes later takes the place of what was written down before.
CREATE UNIQUE INDEX IF NOT EXISTS row_change_kept ON pgrollout.row_change (step_id, key) WHERE step_id LIKE 'keep %';

-- The columns of a table's unique keys by which each row can be found, the primary key first.
CREATE OR REPLACE FUNCTION pgrollout.row_keys(p_table regclass) RETURNS SETOF text[] LANGUAGE sql STABLE AS $$
    SELECT array_agg(a.attname::text ORDER BY k.place)
    FROM pg_index AS i
    CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (number, place)
    LEFT JOIN pg_attribute AS a ON a.attrelid = p_table AND a.attnum = k.number AND a.attnotnull
    WHERE i.indrelid = p_table AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND k.place <= i.indnkeyatts
    GROUP BY i.indexrelid, i.indisprimary HAVING count(a.attname) = count(*) ORDER BY i.indisprimary DESC, i.indexrelid
$$;

-- What a column holds in a row to which nobody has given a value: its default where that is a constant, else null.
CREATE OR REPLACE FUNCTION pgrollout.fresh_value(p_table regclass, p_column text) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_default text := (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attribute AS a
                       JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                       WHERE a.attrelid = p_table AND a.attname = p_column);
    v_value jsonb;
BEGIN
    -- Without its literals and types it calls nothing: no parenthesis behind a word, no function that goes without one.
    IF regexp_replace(regexp_replace(v_default, '''([^'']|'''')*''', '', 'g'), '::[\w ".]+\([\d, -]+\)', '', 'g')
       !~* '[\w"] *\(|\m(current_|local|session_)\w+|\muser\M' THEN
        EXECUTE format('SELECT to_jsonb(%s)', v_default) INTO v_value;
    END IF;
    RETURN coalesce(v_value, 'null');
END
$$;

-- Those of a row's values (both as JSON objects) that are not the fresh ones.
CREATE OR REPLACE FUNCTION pgrollout.written_values(p_row jsonb, p_fresh jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(jsonb_object_agg(f.key, p_row -> f.key), '{}') FROM jsonb_each(p_fresh) AS f WHERE p_row -> f.key <> f.value
$$;

-- Follows the writers of a table whose columns are being kept; with the rights of its owner, whatever the writer's are.
CREATE OR REPLACE FUNCTION pgrollout.capture() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_kept pgrollout.kept;
    v_step text := 'keep ' || TG_ARGV[0];
    v_row jsonb;
    v_was jsonb;
    v_is jsonb;
    v_there text[];
    v_values jsonb;
BEGIN
    SELECT * INTO v_kept FROM pgrollout.kept AS k WHERE k.kept_id = TG_ARGV[0]::bigint;
    IF TG_OP <> 'INSERT' THEN
        v_was := (SELECT jsonb_object_agg(c, to_jsonb(OLD) -> c) FROM unnest(v_kept.key) AS c);
    END IF;
    IF TG_OP = 'DELETE' THEN
        DELETE FROM pgrollout.row_change AS h WHERE h.step_id = v_step AND h.key = v_was;
        RETURN NULL;
    END IF;
    v_row := to_jsonb(NEW);
    v_is := (SELECT jsonb_object_agg(c, v_row -> c) FROM unnest(v_kept.key) AS c);
    IF v_was <> v_is THEN
        UPDATE pgrollout.row_change AS h SET key = v_is WHERE h.step_id = v_step AND h.key = v_was;
    END IF;
    -- A column that is dropped by now keeps what was written down of it.
    v_there := ARRAY(SELECT c FROM unnest(v_kept.columns) AS c WHERE v_row ? c);
    v_values := pgrollout.written_values(v_row, v_kept.fresh - ARRAY(SELECT unnest(v_kept.columns) EXCEPT SELECT unnest(v_there)));
    IF v_values = '{}' AND current_setting('transaction_isolation') = 'read committed' THEN
        UPDATE pgrollout.row_change AS h SET old = h.old - v_there, new = h.new - v_there WHERE h.step_id = v_step AND h.key = v_is;
        RETURN NULL;
    END IF;
    -- A transaction of a stricter isolation may not see the entry that it has to change; then this fails as it must.
    INSERT INTO pgrollout.row_change AS h (step_id, key, old, new)
    VALUES (v_step, v_is, v_values, (SELECT coalesce(jsonb_object_agg(f, v_kept.fresh -> f), '{}') FROM jsonb_object_keys(v_values) AS f))
    ON CONFLICT (step_id, key) WHERE step_id LIKE 'keep %'
    DO UPDATE SET old = (h.old - v_there) || excluded.old, new = (h.new - v_there) || excluded.new;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION pgrollout.open_run() RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT r.run_id FROM pgrollout.run AS r WHERE r.ended_at IS NULL
$$;

-- Begins to keep columns of a table: from now on what the application writes there is written down too.
CREATE OR REPLACE FUNCTION pgrollout.keep_columns(p_table text, p_columns text[]) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_table regclass := p_table::regclass;
    v_columns text[] := ARRAY(SELECT a.attname FROM pg_attribute AS a  -- what is generated comes again by itself
                              WHERE a.attrelid = v_table AND a.attname = ANY (p_columns) AND a.attgenerated = '' AND NOT a.attisdropped);
    v_key text[] := (SELECT k FROM pgrollout.row_keys(v_table) AS k WHERE NOT k && p_columns LIMIT 1);
    v_id bigint;
BEGIN
    IF v_key IS NULL THEN
        RAISE EXCEPTION 'what is in columns of % cannot be kept: no unique index on other columns, all NOT NULL, tells its rows apart', v_table
            USING HINT = 'Copy what you need elsewhere and say -e rollback_keep=false.';
    END IF;
    INSERT INTO pgrollout.kept (run_id, relation, columns, key, fresh)
    VALUES (pgrollout.open_run(), p_table, v_columns, v_key,
            (SELECT coalesce(jsonb_object_agg(c, pgrollout.fresh_value(v_table, c)), '{}') FROM unnest(v_columns) AS c))
    RETURNING kept_id INTO v_id;
    EXECUTE format('CREATE TRIGGER pgrollout_keep AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION pgrollout.capture(%L)',
        v_table, v_id);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER pgrollout_keep', v_table);
    RETURN v_id;
END
$$;

-- The walk over a table that is being kept, as a backfill's spec; NULL where none is.
CREATE OR REPLACE FUNCTION pgrollout.keep_spec(p_table text) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('table', k.relation, 'alias', 't', 'key', to_jsonb(k.key), 'columns', to_jsonb(k.columns), 'new_rows', '',
        'kept', k.kept_id,
        'where', coalesce((SELECT string_agg(format('coalesce(to_jsonb(t.%I), ''null'') <> %L::jsonb', f.key, f.value), ' OR ')
                           FROM jsonb_each(k.fresh) AS f), 'false'))
    FROM pgrollout.kept AS k WHERE k.relation = p_table AND k.state = 'capturing'
$$;

-- A batch of that walk as SQL. Rows are locked so that no writer changes them before what is written down of them is
-- there for its trigger to see.
CREATE OR REPLACE FUNCTION pgrollout.keep_batch_sql(p_spec jsonb, p_range text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format($sql$
        WITH pgrollout_locked AS MATERIALIZED (
            SELECT %1$s AS key, %2$s AS found FROM %3$s AS t WHERE %4$s AND (%5$s) ORDER BY %6$s FOR SHARE OF t
        ), pgrollout_written AS (
            INSERT INTO pgrollout.row_change AS h (step_id, key, old, new)
            SELECT 'keep ' || k.kept_id, l.key, v.old, (SELECT jsonb_object_agg(f, k.fresh -> f) FROM jsonb_object_keys(v.old) AS f)
            FROM pgrollout_locked AS l, pgrollout.kept AS k, pgrollout.written_values(l.found, k.fresh) AS v (old)
            WHERE k.kept_id = %7$s
            ON CONFLICT (step_id, key) WHERE step_id LIKE 'keep %%' DO NOTHING
            RETURNING pg_column_size(h.key) + pg_column_size(h.old) + pg_column_size(h.new) AS bytes
        ), pgrollout_counted AS (
            UPDATE pgrollout.kept AS k SET bytes = k.bytes + (SELECT coalesce(sum(w.bytes), 0) FROM pgrollout_written AS w)
            WHERE k.kept_id = %7$s AND EXISTS (SELECT FROM pgrollout_written)
        )
        SELECT count(*), 0 FROM pgrollout_written$sql$,
        pgrollout.json_object_sql(p_spec -> 'key', 't'), pgrollout.json_object_sql(p_spec -> 'columns', 't'), to_regclass(p_spec ->> 'table'),
        p_range, p_spec ->> 'where', pgrollout.key_sql(p_spec, 't'), (p_spec ->> 'kept')::bigint)
$$;

-- Refuses to go on where what is kept takes more than keep_max_mb.
CREATE OR REPLACE FUNCTION pgrollout.check_kept(p_kept bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_max bigint := (current_setting('pgrollout.settings')::jsonb ->> 'keep_max_mb')::bigint;
    v_kept pgrollout.kept;
BEGIN
    SELECT * INTO v_kept FROM pgrollout.kept AS k WHERE k.kept_id = p_kept;
    IF v_kept.bytes > v_max * 1048576 THEN
        RAISE EXCEPTION 'what is kept of % takes more than rollback_keep_max_mb (%)', v_kept.relation, v_max
            USING ERRCODE = 'configuration_limit_exceeded',
                  HINT = 'Nothing is dropped yet. Raise the limit where the disk has room, or say -e rollback_keep=false to drop it all.';
    END IF;
END
$$;

-- Ends it, under a lock that no writer passes: the columns are gone, or came back.
CREATE OR REPLACE FUNCTION pgrollout.end_keep(p_table text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_kept bigint;
BEGIN
    EXECUTE format('DROP TRIGGER IF EXISTS pgrollout_keep ON %s', p_table::regclass);
    FOR v_kept IN SELECT k.kept_id FROM pgrollout.kept AS k WHERE k.relation = p_table AND k.state = 'capturing' LOOP
        DELETE FROM pgrollout.row_change AS h WHERE h.step_id = 'keep ' || v_kept AND h.old = '{}';
        UPDATE pgrollout.kept AS k SET state = 'kept', ended_at = clock_timestamp(),
            rows = (SELECT count(*) FROM pgrollout.row_change AS h WHERE h.step_id = 'keep ' || v_kept)
        WHERE k.kept_id = v_kept;
    END LOOP;
END
$$;

-- Takes a table away as p_drop would, which the server is asked first, and keeps it here where it has rows.
CREATE OR REPLACE FUNCTION pgrollout.keep_table(p_table text, p_drop text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_table regclass := p_table::regclass;
    v_found boolean;
    v_rows bigint;
    v_class pg_class;
    v_id bigint;
    v_place text;
    v_alter text;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM %s)', v_table) INTO v_found;
    IF NOT v_found THEN
        EXECUTE p_drop;
        RETURN;
    END IF;
    BEGIN
        EXECUTE p_drop;  -- refused, with the server's own words, where something depends on it
        RAISE EXCEPTION USING ERRCODE = 'PGR02';
    EXCEPTION WHEN SQLSTATE 'PGR02' THEN
        NULL;
    END;
    SELECT * INTO v_class FROM pg_class AS c WHERE c.oid = v_table;
    INSERT INTO pgrollout.kept (run_id, relation) VALUES (pgrollout.open_run(), p_table) RETURNING kept_id INTO v_id;
    v_place := left(format('kept_%s_%s', v_id, v_class.relname), 63);
    -- Partitions, heirs, policies, publications and columns that are computed when read would stay behind or come along: a
    -- plain copy has none of them.
    IF v_class.relkind <> 'r' OR v_class.relhassubclass OR v_class.relhasrules OR v_class.relrowsecurity OR v_class.relispartition
       OR EXISTS (SELECT FROM pg_inherits AS h WHERE h.inhrelid = v_table)
       OR EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = v_table AND a.attgenerated = 'v')
       OR EXISTS (SELECT FROM pg_publication_rel AS p WHERE p.prrelid = v_table) THEN
        UPDATE pgrollout.kept AS k SET bytes = (SELECT sum(pg_table_size(r)) FROM pgrollout.stored(v_table) AS r) WHERE k.kept_id = v_id;
        PERFORM pgrollout.check_kept(v_id);
        EXECUTE format('CREATE TABLE pgrollout.%I AS SELECT * FROM %s', v_place, v_table);
        EXECUTE p_drop;
    ELSE
        -- What the application's own objects hang on goes, as with the drop; the rows stay where they are.
        FOR v_alter IN
            SELECT format('DROP TRIGGER %I ON %s', t.tgname, v_table) FROM pg_trigger AS t WHERE t.tgrelid = v_table AND NOT t.tgisinternal
            UNION ALL
            SELECT * FROM (SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', v_table, k.conname) FROM pg_constraint AS k
                           WHERE k.conrelid = v_table AND k.contype <> 'n' ORDER BY k.contype = 'p') AS constraints
        LOOP
            EXECUTE v_alter;
        END LOOP;
        FOR v_alter IN SELECT format('DROP INDEX %s', i.indexrelid::regclass) FROM pg_index AS i WHERE i.indrelid = v_table LOOP
            EXECUTE v_alter;
        END LOOP;
        FOR v_alter IN
            SELECT format('ALTER TABLE %s ALTER COLUMN %I %s', v_table, a.attname,
                       CASE WHEN a.attidentity <> '' THEN 'DROP IDENTITY' WHEN a.attgenerated <> '' THEN 'DROP EXPRESSION' ELSE 'DROP DEFAULT' END)
            FROM pg_attribute AS a WHERE a.attrelid = v_table AND a.attnum > 0 AND NOT a.attisdropped
              AND (a.attidentity <> '' OR a.atthasdef)
        LOOP
            EXECUTE v_alter;
        END LOOP;
        FOR v_alter IN  -- sequences that it owns would come along
            SELECT format('DROP SEQUENCE %s', d.objid::regclass) FROM pg_depend AS d JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
            WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = v_table AND d.deptype = 'a'
            UNION ALL
            SELECT format('DROP STATISTICS %I.%I', n.nspname, x.stxname) FROM pg_statistic_ext AS x
            JOIN pg_namespace AS n ON n.oid = x.stxnamespace WHERE x.stxrelid = v_table
            UNION ALL
            -- A type of the rollout's own goes with the rollback; its values stay as text.
            SELECT format('ALTER TABLE %s ALTER COLUMN %I TYPE text USING %2$I::text', v_table, a.attname)
            FROM pg_attribute AS a JOIN pg_type AS y ON y.oid = a.atttypid LEFT JOIN pg_type AS e ON e.oid = y.typelem AND y.typcategory = 'A'
            WHERE a.attrelid = v_table AND a.attnum > 0 AND NOT a.attisdropped
              AND coalesce(e.typnamespace, y.typnamespace) <> 'pg_catalog'::regnamespace
              AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = coalesce(e.oid, y.oid) AND d.classid = 'pg_type'::regclass AND d.deptype = 'e')
        LOOP
            EXECUTE v_alter;
        END LOOP;
        EXECUTE format('ALTER TABLE %s RENAME TO %I', v_table, v_place);
        EXECUTE format('ALTER TABLE %s SET SCHEMA pgrollout', v_table);
    END IF;
    IF pg_relation_size(format('pgrollout.%I', v_place)::regclass) < 16777216 THEN  -- counted in no time
        EXECUTE format('SELECT count(*) FROM pgrollout.%I', v_place) INTO v_rows;
    END IF;
    EXECUTE format('COMMENT ON TABLE pgrollout.%I IS %L', v_place, format('Kept from %s by run %s', p_table, pgrollout.open_run()));
    UPDATE pgrollout.kept AS k SET state = 'kept', ended_at = clock_timestamp(), place = format('pgrollout.%I', v_place),
        bytes = pg_table_size(format('pgrollout.%I', v_place)::regclass),
        rows = coalesce(v_rows, pgrollout.estimated_rows(format('pgrollout.%I', v_place)::regclass))
    WHERE k.kept_id = v_id;
END
$$;

-- One of the entries for people.
CREATE OR REPLACE FUNCTION pgrollout.kept_line(p_kept pgrollout.kept) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format('%s%s rows of %s from the rollback of run %s, %s%s; SELECT pgrollout.forget_kept(%s) forgets them',
        CASE WHEN p_kept.place IS NULL OR p_kept.state = 'given back' THEN '' ELSE 'about ' END, p_kept.rows,
        p_kept.relation || coalesce(' (' || array_to_string(p_kept.columns, ', ') || ')', ''), p_kept.run_id, pg_size_pretty(p_kept.bytes),
        coalesce(', in ' || p_kept.place, '')
            || CASE p_kept.state WHEN 'kept' THEN '; applied again, the migration gives them back' ELSE '; they could not be given back' END,
        p_kept.kept_id)
$$;

-- For the operator: what is kept and not wanted any more.
CREATE OR REPLACE FUNCTION pgrollout.forget_kept(p_kept bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_kept pgrollout.kept;
BEGIN
    SELECT * INTO v_kept FROM pgrollout.kept AS k WHERE k.kept_id = p_kept;
    IF v_kept.state IS NULL OR v_kept.state = 'capturing' THEN
        RAISE EXCEPTION 'nothing is kept under the number %', p_kept USING HINT = CASE
            WHEN v_kept.state IS NULL THEN 'status.yml tells the numbers.' ELSE 'A rollback is at it; start that again first.' END;
    END IF;
    IF to_regclass(v_kept.place) IS NOT NULL THEN
        EXECUTE format('DROP TABLE %s', v_kept.place);
    END IF;
    DELETE FROM pgrollout.row_change AS h WHERE h.step_id IN ('keep ' || p_kept, 'keep ' || p_kept || ' (refused)');
    UPDATE pgrollout.kept AS k SET state = 'forgotten', rows = 0 WHERE k.kept_id = p_kept;
END
$$;

-- Puts the rows of a kept table back, batch by batch, into the one that was made again. A row whose key is there by now
-- gives way; one that the table refuses (the row that it refers to is gone) stays where it is kept.
CREATE OR REPLACE PROCEDURE pgrollout.give_table_back(p_run bigint, p_step jsonb) LANGUAGE plpgsql AS $$
DECLARE
    v_settings jsonb := current_setting('pgrollout.settings')::jsonb;
    v_kept pgrollout.kept := (SELECT k FROM pgrollout.kept AS k WHERE k.kept_id = (p_step ->> 'gives_back')::bigint);
    v_table regclass := v_kept.relation::regclass;
    v_batch integer := (v_settings ->> 'batch_rows')::integer;
    v_give_up timestamptz;
    v_sql text;
    v_place tid := '(0,0)';
    v_next tid;
    v_taken bigint;
    v_given bigint;
    v_total bigint := 0;
    v_there bigint := 0;
    v_refused bigint := 0;
    v_why text;
    v_begun timestamptz;
    v_looked timestamptz := '-infinity';
    v_ms double precision;
    v_trouble text;
BEGIN
    PERFORM pgrollout.step_started(p_run, p_step);
    COMMIT;
    SELECT format($sql$
        WITH picked AS MATERIALIZED (SELECT k.ctid FROM %1$s AS k WHERE k.ctid > $1 LIMIT $2),
             taken AS (DELETE FROM %1$s AS k WHERE k.ctid = ANY (ARRAY(SELECT p.ctid FROM picked AS p)) RETURNING k.*),
             given AS (INSERT INTO %2$s (%3$s) OVERRIDING SYSTEM VALUE SELECT %4$s FROM taken ON CONFLICT DO NOTHING RETURNING 1)
        SELECT (SELECT max(p.ctid) FROM picked AS p), (SELECT count(*) FROM taken), (SELECT count(*) FROM given)$sql$,
        v_kept.place, v_table, string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum),
        string_agg(format('taken.%I%s', a.attname, CASE WHEN was.atttypid <> a.atttypid THEN '::' || format_type(a.atttypid, a.atttypmod) ELSE '' END),
                   ', ' ORDER BY a.attnum))
      INTO v_sql
    FROM pg_attribute AS a
    JOIN pg_attribute AS was ON was.attrelid = v_kept.place::regclass AND was.attname = a.attname AND was.attnum > 0
    WHERE a.attrelid = v_table AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '';
    LOOP
        PERFORM pgrollout.check_run(p_run);
        IF clock_timestamp() > v_looked + interval '1 second' THEN
            CALL pgrollout.await_clearance(p_run, p_step, v_table, v_total);
            v_looked := clock_timestamp();
        END IF;
        v_begun := clock_timestamp();
        v_trouble := NULL;
        BEGIN
            PERFORM set_config('lock_timeout', (v_settings ->> 'lock_timeout_max_ms') || 'ms', true),
                    -- By place, which sorts nothing: a scan of a range of places, from its begin.
                    set_config('enable_seqscan', 'off', true), set_config('synchronize_seqscans', 'off', true);
            EXECUTE v_sql INTO v_next, v_taken, v_given USING v_place, v_batch;
            v_give_up := NULL;
        EXCEPTION
            WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
                v_trouble := 'locked';
                v_give_up := coalesce(v_give_up, clock_timestamp() + make_interval(secs => (v_settings ->> 'give_up_s')::double precision));
            WHEN integrity_constraint_violation THEN
                v_trouble := SQLERRM;
        END;
        IF v_trouble IS NULL THEN
            v_place := coalesce(v_next, v_place);
            v_total := v_total + v_given;
            v_there := v_there + v_taken - v_given;
            UPDATE pgrollout.step SET rows = v_total WHERE step_id = p_step ->> 'id';
        END IF;
        COMMIT;
        EXIT WHEN v_trouble IS NULL AND v_next IS NULL;
        IF v_trouble IS NULL THEN
            v_ms := extract(epoch FROM clock_timestamp() - v_begun) * 1000;
            v_batch := pgrollout.next_batch_rows(v_batch, v_ms, (v_settings ->> 'batch_target_ms')::double precision, (v_settings ->> 'batch_max_rows')::integer);
            CALL pgrollout.nap(pgrollout.rest_ms(v_settings, v_ms) / 1000);
        ELSIF v_trouble = 'locked' THEN
            v_trouble := format('another transaction, which has locked rows of %s or those that it refers to', v_kept.relation);
            IF clock_timestamp() > v_give_up THEN
                CALL pgrollout.fail_step(p_run, p_step, format('gave up after %s s; blocked by %s', v_settings ->> 'give_up_s', v_trouble),
                    'Everything committed stays; start the same command again.', v_total);
            END IF;
            PERFORM pgrollout.note_waiting(p_run, p_step, v_trouble);
            CALL pgrollout.nap(0.2 + random() * 0.3);
        ELSIF v_batch > 1 THEN
            v_batch := v_batch / 2;
        ELSE  -- the row that is refused is alone: it stays
            EXECUTE format('SELECT min(k.ctid) FROM %s AS k WHERE k.ctid > $1', v_kept.place) INTO v_place USING v_place;
            v_refused := v_refused + 1;
            v_why := coalesce(v_why, v_trouble);
        END IF;
    END LOOP;
    -- Numbers that the table hands out itself go on behind those that came back.
    FOR v_sql IN
        SELECT format('SELECT setval(%L, m) FROM (SELECT max(%I) AS m FROM %s) AS found, %s AS s WHERE m > s.last_value',
                      s.name, a.attname, v_table, s.name)
        FROM pg_attribute AS a, pg_get_serial_sequence(v_kept.relation, a.attname) AS s (name)
        WHERE a.attrelid = v_table AND a.attnum > 0 AND NOT a.attisdropped AND s.name IS NOT NULL
    LOOP
        EXECUTE v_sql;
    END LOOP;
    IF v_refused = 0 THEN
        EXECUTE format('DROP TABLE %s', v_kept.place);
    END IF;
    UPDATE pgrollout.kept AS k SET state = 'given back', rows = v_refused WHERE k.kept_id = v_kept.kept_id;
    PERFORM pgrollout.step_ended(p_run, p_step, 'done', nullif(concat_ws('; ',
        CASE WHEN v_there > 0 THEN format('%s rows were there by now', v_there) END,
        CASE WHEN v_refused > 0 THEN format('%s rows stay in %s, first: %s', v_refused, v_kept.place, v_why) END), ''), v_total);
    COMMIT;
END
$$;
