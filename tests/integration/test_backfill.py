"""Backfills over keys and tables of every kind: each row once, by the key's index, or a refusal before it begins."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from demo.server import MIGRATION_ROLE, Server
from tests.conftest import Database
from tests.support.ledger import InBackground, carry_out, claim, finish, install, steps_of, transaction
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 700
COUNT = "-- Step: {table}\n-- Backfill: by {key}\nUPDATE {table} AS t SET visits = t.visits + 1{where};\n"
SMALL = {"batch_rows": 100, "batch_max_rows": 100}


@pytest.fixture
def ledger(empty_database: Database) -> Database:
    install(empty_database)
    return empty_database


@pytest.fixture
def run(ledger: Database) -> int:
    return claim(ledger)


def count_steps(folder: Path, table: str, key: str = "id", where: str = "") -> list[dict[str, Any]]:
    """A backfill that counts in each row how often it was changed."""
    return steps_of(folder, COUNT.format(table=table, key=key, where=where))


def item(database: Database, rows: int = ROWS, rest: str = "") -> None:
    """A table item(id, visits) of that many rows."""
    database.execute(
        f"CREATE TABLE item (id bigint PRIMARY KEY, visits integer NOT NULL DEFAULT 0{rest});"
        f"INSERT INTO item (id) SELECT generate_series(1, {rows})"
    )


def visits(database: Database, table: str = "item") -> dict[int, int]:
    """{how often changed: rows}."""
    return dict(database.query(f"SELECT visits, count(*) FROM {table} GROUP BY 1"))


# ---- keys

# Type and values (of g, 1 to ROWS) of the key's columns.
KEYS = {
    "bigint": [("bigint", "g * 7 - 1000")],
    "uuid": [("uuid", "md5(g::text)::uuid")],
    "text": [("text", r"(ARRAY['é', 'Z', 'a', '_', '''', '\\', 'Ö', ' ', '(', ')'])[g % 10 + 1] || md5(g::text)")],
    "text_c": [('text COLLATE "C"', r"(ARRAY['é', 'Z', 'a', '_', '''', '\\'])[g % 6 + 1] || g")],
    "text_icu": [('text COLLATE "und-x-icu"', "(ARRAY['é', 'Z', 'a', '_', 'z', 'A'])[g % 6 + 1] || g")],
    "domain": [("code", "(ARRAY['b', 'A', 'a'])[g % 3 + 1] || g")],
    "varchar": [("varchar(40)", "md5(g::text)")],
    "bpchar": [("char(10)", "g::text")],
    "numeric": [("numeric", "CASE g WHEN 1 THEN 'NaN' WHEN 2 THEN '-Infinity' ELSE g / 7.0 END::numeric")],
    "double": [("double precision", "CASE g WHEN 1 THEN 'NaN' WHEN 2 THEN '-Infinity' ELSE sqrt(g) * 1e-300 END")],
    "real": [("real", "(1 / g::real)::real")],
    "timestamptz": [("timestamptz", "'2024-03-31 00:59:59.5Z'::timestamptz + g * '3.000001 s'::interval")],
    "timestamp": [
        ("timestamp", "CASE WHEN g > 1 THEN timestamp '0001-01-01 BC' + g * interval '1 d' ELSE '-infinity' END")
    ],
    "date": [("date", "date '2024-01-01' + g")],
    "interval": [("interval", "g * '-1 day 00:00:01.000001'::interval")],
    "bytea": [("bytea", "decode(md5(g::text), 'hex')")],
    "inet": [("inet", "'10.0.0.0'::inet + g")],
    "time_uuid": [
        ("timestamptz", "'2024-01-01Z'::timestamptz + g / 10 * '1 us'::interval"),
        ("uuid", "md5(g::text)::uuid"),
    ],
    "mixed": [
        ("boolean", "g % 2 = 0"),
        ("mood", "(enum_range(NULL::mood))[g % 2 + 1]"),
        ('"char"', "'x'::\"char\""),
        ("integer", "g"),
    ],
}


def test_keys_of_every_type(ledger: Database, run: int, tmp_path: Path) -> None:
    """A position goes through JSON and back to the very value, whatever the role's settings make of it as text."""
    ledger.execute(
        f"""
        ALTER DATABASE {ledger.name} SET datestyle = 'SQL, DMY';
        ALTER DATABASE {ledger.name} SET timezone = 'America/St_Johns';
        ALTER DATABASE {ledger.name} SET intervalstyle = 'sql_standard';
        ALTER DATABASE {ledger.name} SET bytea_output = 'escape';
        ALTER DATABASE {ledger.name} SET extra_float_digits = -15;
        CREATE TYPE mood AS ENUM ('well', 'bad');
        CREATE DOMAIN code AS text COLLATE "C" CHECK (VALUE <> '')
        """
    )
    icu = ledger.value("SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu'")
    keys = {name: columns for name, columns in KEYS.items() if icu or "icu" not in name}
    for name, columns in keys.items():
        names = [f"k{n}" for n in range(len(columns))]
        ledger.execute(
            f"CREATE TABLE {name} ({', '.join(f'{n} {kind}' for n, (kind, _) in zip(names, columns, strict=True))},"
            f"visits integer NOT NULL DEFAULT 0, PRIMARY KEY ({', '.join(names)}));"
            f"INSERT INTO {name} SELECT {', '.join(values for _, values in columns)}"
            f" FROM generate_series(1, {ROWS}) AS g"
        )
    sql = "".join(
        COUNT.format(table=name, key=", ".join(f"k{n}" for n in range(len(columns))), where="")
        for name, columns in keys.items()
    )
    carry_out(ledger, run, steps_of(tmp_path, sql), **SMALL)
    assert {name: visits(ledger, name) for name in keys} == {name: {1: ROWS} for name in keys}
    batches = dict(ledger.query("SELECT split_part(step_id, '/', 2), batches FROM pgrollout.cursor"))
    assert batches == dict.fromkeys(keys, ROWS // 100 + 1)  # and one that finds the end
    # and back, by the keys that the history kept
    for step in steps_of(tmp_path, sql):
        restore = {"id": f"{step['id']} (rollback)", "restores": step["id"], "backfill": step["backfill"]}
        restore |= {key: step[key] for key in ("migration", "phase")} | {"mode": "restore", "kind": "restore"}
        carry_out(ledger, run, [step | restore | {"sql": "SELECT 1"}], **SMALL)
    assert {name: visits(ledger, name) for name in keys} == {name: {0: ROWS} for name in keys}


PRIMARY = "ALTER TABLE item ADD PRIMARY KEY"
NO_KEY = r"a backfill cannot go through item by {}: no valid unique index without a WHERE has exactly these columns"
HEIRS = "item is neither a table without heirs nor a partitioned one"
REFUSED = {
    "no index": ("", "id", NO_KEY.format("id")),
    "not unique": ("CREATE INDEX ON item (id)", "id", NO_KEY.format("id")),
    "may be NULL": ("CREATE UNIQUE INDEX ON item (id)", "id", NO_KEY.format("id")),
    "partial": (
        "ALTER TABLE item ALTER id SET NOT NULL; CREATE UNIQUE INDEX ON item (id) WHERE id > 0",
        "id",
        NO_KEY.format("id"),
    ),
    "an expression": ("CREATE UNIQUE INDEX ON item ((id + 1))", "id", NO_KEY.format("id")),
    "included only": (f"{PRIMARY} (b) INCLUDE (id)", "id", NO_KEY.format("id")),
    "another order": (f"{PRIMARY} (b, id)", "id, b", NO_KEY.format("id, b") + r"(.|\n)*It has one on: b, id"),
    "another column": (f"{PRIMARY} (id)", "ident", "table item has no column ident, which this backfill names"),
    "what it sets": (f"{PRIMARY} (visits)", "visits", "this backfill of item sets visits, by which it goes"),
    "an array": (f"{PRIMARY} (list)", "list", r"cannot go through item by a key of type integer\[\]"),
    "JSON": (f"{PRIMARY} (doc)", "doc", "cannot go through item by a key of type jsonb"),
    "heirs": (f"{PRIMARY} (id); CREATE TABLE heir () INHERITS (item)", "id", HEIRS),
    "a view": ("ALTER TABLE item RENAME TO kept; CREATE VIEW item AS SELECT * FROM kept", "id", HEIRS),
    "no table": ("DROP TABLE item", "id", "table public.item does not exist"),
}


@pytest.mark.parametrize(("before", "key", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_key_that_does_not_lead_to_each_row_once_is_refused(
    ledger: Database, run: int, tmp_path: Path, before: str, key: str, sentence: str
) -> None:
    ledger.execute(
        "CREATE TABLE item (id integer, b integer, list integer[], doc jsonb, visits integer DEFAULT 0);"
        "INSERT INTO item SELECT g, g, ARRAY[g], to_jsonb(g), g FROM generate_series(1, 10) AS g;" + before
    )
    with pytest.raises(psycopg2.errors.RaiseException, match=sentence):
        carry_out(ledger, run, count_steps(tmp_path, "item", key))
    assert ledger.query("SELECT FROM pgrollout.step") == []
    assert ledger.value("SELECT count(*) FROM pgrollout.cursor") == 0


# ---- tables


@pytest.mark.parametrize("bounds", ["RANGE (id)", "HASH (id)"])
def test_a_partitioned_table(ledger: Database, run: int, tmp_path: Path, bounds: str) -> None:
    parts = {
        "RANGE (id)": ["FROM (MINVALUE) TO (100)", "FROM (100) TO (450)", "FROM (450) TO (MAXVALUE)"],
        "HASH (id)": [f"WITH (MODULUS 3, REMAINDER {n})" for n in range(3)],
    }[bounds]
    ledger.execute(
        f"CREATE TABLE item (id bigint PRIMARY KEY, visits integer NOT NULL DEFAULT 0) PARTITION BY {bounds};"
        + "".join(f"CREATE TABLE item_{n} PARTITION OF item FOR VALUES {part};" for n, part in enumerate(parts))
        + f"INSERT INTO item SELECT generate_series(1, {ROWS})"
    )
    # larger than a table that is done in one part: with VACUUM in between
    carry_out(ledger, run, [step | {"bytes": 2**30} for step in count_steps(tmp_path, "item")], **SMALL)
    assert visits(ledger) == {1: ROWS}
    vacuums = "SELECT sum(vacuum_count) >= 9 FROM pg_stat_user_tables WHERE relname LIKE 'item_%'"
    wait_until(lambda: ledger.value(vacuums), what="vacuum of each part")
    assert ledger.value("SELECT rows_estimated FROM pgrollout.cursor") > 0


def test_names_that_need_quotes(ledger: Database, run: int, tmp_path: Path) -> None:
    table = '"My Schema"."Item.of (things)"'
    ledger.execute(
        f'CREATE SCHEMA "My Schema"; CREATE TABLE {table} ("The Id" text PRIMARY KEY, "Visit\'s" integer DEFAULT 0);'
        f"INSERT INTO {table} SELECT 'x' || g FROM generate_series(1, {ROWS}) AS g"
    )
    sql = f'-- Backfill: by "The Id"\nUPDATE {table} AS "a.T+" SET "Visit\'s" = "a.T+"."Visit\'s" + 1;'
    (step,) = steps_of(tmp_path, sql)
    step |= {"bytes": 2**30}  # in parts
    carry_out(ledger, run, [step], **SMALL)
    assert dict(ledger.query(f'SELECT "Visit\'s", count(*) FROM {table} GROUP BY 1')) == {1: ROWS}
    restore = {"id": "back", "restores": step["id"], "mode": "restore", "kind": "restore", "sql": "SELECT 1"}
    carry_out(ledger, run, [step | restore], **SMALL)
    assert dict(ledger.query(f'SELECT "Visit\'s", count(*) FROM {table} GROUP BY 1')) == {0: ROWS}


BIG = 30_000
MISLEADING = {
    "analysed when it was empty": [
        "TRUNCATE item",
        "ANALYZE item",
        f"INSERT INTO item (id) SELECT generate_series(1, {BIG})",
    ],
    "analysed with ten rows": [
        "DELETE FROM item WHERE id > 10",
        "VACUUM ANALYZE item",
        f"INSERT INTO item (id) SELECT generate_series(11, {BIG})",
    ],
    "an index that serves the WHERE": ["CREATE INDEX ON item (note)", "ANALYZE item"],
    "a partial index that serves the WHERE": ["CREATE INDEX ON item (visits) WHERE note IS NULL", "ANALYZE item"],
    "a flag before the key": ["CREATE INDEX ON item (open, id) WHERE open", "ANALYZE item"],
    "analysed when ten rows met the WHERE": [
        "UPDATE item SET note = 'x', open = false WHERE id > 10",
        "CREATE INDEX ON item (note)",
        "CREATE INDEX ON item (open)",
        "VACUUM ANALYZE item",
        "UPDATE item SET note = NULL, open = true",
    ],
    "never analysed": [],
}


@pytest.mark.parametrize("misled", MISLEADING.values(), ids=MISLEADING)
@pytest.mark.parametrize("where", [" WHERE t.note IS NULL", " WHERE t.open"])
def test_a_batch_reads_its_rows_and_not_the_table(
    ledger: Database, run: int, tmp_path: Path, misled: list[str], where: str
) -> None:
    """Its 60 batches read each row some times over, however wrong the statistics are; by another way 60 times."""
    item(ledger, BIG, ", note text, open boolean DEFAULT true")
    ledger.execute("ALTER TABLE item SET (autovacuum_enabled = false)")
    for statement in misled:
        ledger.execute(statement)
    with contextlib.closing(ledger.server.connect(ledger.name)) as connection:
        connection.cursor().execute("SELECT pg_stat_reset()")
    carry_out(ledger, run, count_steps(tmp_path, "item", where=where), batch_rows=500, batch_max_rows=500)
    assert visits(ledger) == {1: BIG}
    counted = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'item' AND n_tup_upd = %s"
    ((read,),) = wait_until(lambda: ledger.query(counted, BIG))  # statistics come a little later
    print(f"{read / BIG:.1f} times")
    assert BIG <= read < 9 * BIG


def test_a_sub_select_over_the_whole_table_is_refused(ledger: Database, run: int, tmp_path: Path) -> None:
    item(ledger, 5000)  # some pages: a table of one or two may be read as a whole
    steps = count_steps(tmp_path, "item", where=" WHERE t.visits < (SELECT avg(i.visits) + 1 FROM item AS i)")
    with pytest.raises(psycopg2.errors.RaiseException, match="each batch of this backfill would read all of public"):
        carry_out(ledger, run, steps)
    assert visits(ledger) == {0: 5000}


def test_an_empty_table_and_one_of_a_row(ledger: Database, run: int, tmp_path: Path) -> None:
    """Their plans read the whole index, and may."""
    for rows in (0, 1):
        ledger.execute("DROP TABLE IF EXISTS item")
        item(ledger, rows)
        ledger.execute("ANALYZE item; DELETE FROM pgrollout.cursor; DELETE FROM pgrollout.step")
        carry_out(ledger, run, count_steps(tmp_path / str(rows), "item"), **SMALL)
        assert visits(ledger) == ({1: 1} if rows else {})


def test_a_correlated_sub_select_and_tables_named_as_ours(ledger: Database, run: int, tmp_path: Path) -> None:
    item(ledger)
    ledger.execute(
        "CREATE TABLE changed (id bigint PRIMARY KEY); INSERT INTO changed SELECT generate_series(2, 700, 2);"
        "CREATE TABLE locked (by integer); INSERT INTO locked VALUES (5)"
    )
    sql = (
        "-- Step: fill\n-- Backfill: by id\nUPDATE item SET visits = item.visits + (SELECT l.by FROM locked AS l) "
        "WHERE EXISTS (SELECT FROM changed AS t WHERE t.id = item.id);"
    )
    carry_out(ledger, run, steps_of(tmp_path, sql), **SMALL)
    assert visits(ledger) == {0: 350, 5: 350}
    assert ledger.value("SELECT rows_changed FROM pgrollout.cursor") == 350


def test_rows_that_a_policy_hides_are_an_error(ledger: Database, run: int, tmp_path: Path) -> None:
    item(ledger)
    ledger.execute(
        "ALTER TABLE item ENABLE ROW LEVEL SECURITY; ALTER TABLE item FORCE ROW LEVEL SECURITY;"
        "CREATE POLICY few ON item USING (id < 10)"
    )
    with pytest.raises(psycopg2.Error, match="row-level security policy"):
        carry_out(ledger, run, count_steps(tmp_path, "item"))


# ---- triggers

TRIGGER = """
CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} END $$;
CREATE TRIGGER act BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION act();
"""


def test_rows_that_a_trigger_keeps_as_they_are(ledger: Database, run: int, tmp_path: Path) -> None:
    item(ledger)
    ledger.execute(TRIGGER.format("RETURN CASE WHEN new.id % 10 <> 0 THEN new END;"))
    carry_out(ledger, run, count_steps(tmp_path, "item"), **SMALL)
    assert visits(ledger) == {0: 70, 1: 630}
    assert ledger.query("SELECT rows_changed, rows_visited >= 700, finished FROM pgrollout.cursor") == [
        (630, True, True)
    ]
    assert ledger.value("SELECT count(*) FROM pgrollout.row_change") == 630


def test_a_trigger_that_moves_rows_on_is_told_by_row(ledger: Database, run: int, tmp_path: Path) -> None:
    item(ledger)
    ledger.execute(TRIGGER.format("IF new.id = 333 THEN new.id := 10333; END IF; RETURN new;"))
    with pytest.raises(
        psycopg2.Error, match=r"the row of public.item with key \[333\] fails: a trigger gives it another key, so that"
    ):
        carry_out(ledger, run, count_steps(tmp_path, "item"), **SMALL)
    assert visits(ledger) == {0: 368, 1: 332}


# ---- new rows


def test_new_rows_that_come_faster_than_batches_do_not_keep_it_going(
    ledger: Database, run: int, tmp_path: Path
) -> None:
    """A trigger on the backfill's own updates adds a row behind the last: it would never come to an end."""
    item(ledger)
    ledger.execute(
        "CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO item (id) SELECT max(id) + 1 FROM item; RETURN NULL; END $$;"
        "CREATE TRIGGER more AFTER UPDATE ON item FOR EACH ROW EXECUTE FUNCTION more()"
    )
    carry_out(ledger, run, count_steps(tmp_path, "item", where=" WHERE t.visits = 0"), **SMALL)
    assert visits(ledger) == {0: ROWS, 1: ROWS}
    assert ledger.query("SELECT rows_left FROM pgrollout.cursor") == [(ROWS,)]
    message = f"{ROWS} rows meet its WHERE now and are left as they are"
    assert ledger.query("SELECT state, rows, message FROM pgrollout.step") == [("done", ROWS, message)]


FILL = "-- Step: fill\n-- Backfill: by id\n-- New rows: {}\nUPDATE item AS t SET note = {} WHERE t.note IS NULL;"


def test_new_rows_that_their_trigger_fills(ledger: Database, run: int, tmp_path: Path) -> None:
    item(ledger, rest=", note text")
    ledger.execute(
        "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN new.note := coalesce(new.note, 'by trigger'); RETURN new; END $$;"
        "CREATE TRIGGER fill BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION fill()"
    )
    with transaction(ledger, "SELECT FROM item WHERE id = 333 FOR UPDATE") as blocker:
        work = InBackground(
            carry_out, ledger, run, steps_of(tmp_path, FILL.format("trigger fill", "'filled'")), **SMALL
        )
        wait_until(lambda: ledger.value("SELECT (SELECT position FROM pgrollout.cursor)") == [300])
        # one behind the cursor that the application empties again, and two new ones
        ledger.execute("UPDATE item SET note = NULL WHERE id = 5; INSERT INTO item (id) VALUES (0), (1000)")
        blocker.commit()
    work.result()
    assert ledger.query("SELECT note, count(*) FROM item GROUP BY 1 ORDER BY 1") == [
        ("by trigger", 2),
        ("filled", ROWS),
    ]
    assert ledger.query("SELECT pass, rows_changed, rows_left FROM pgrollout.cursor") == [(2, ROWS + 1, 0)]


def test_a_declared_trigger_that_is_not_there(ledger: Database, run: int, tmp_path: Path) -> None:
    """Each of the passes finds a row that came meanwhile; the third one gives up, the next run begins anew."""
    item(ledger, rest=", note text")
    ledger.execute(
        "CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO item (id) SELECT min(id) - 1 FROM item; RETURN NULL; END $$;"
        "CREATE TRIGGER more AFTER UPDATE ON item EXECUTE FUNCTION more()"
    )
    steps = steps_of(tmp_path, FILL.format("trigger fill", "'filled'"))
    with pytest.raises(psycopg2.Error, match=r"1 rows of public.item still need this backfill after 3 passes") as error:
        carry_out(ledger, run, steps)
    assert error.value.diag.message_hint == "Is the trigger in place that fills new rows (trigger fill)?"
    assert ledger.value("SELECT state FROM pgrollout.step") == "failed"
    ledger.execute("DROP TRIGGER more ON item")
    carry_out(ledger, run, steps)
    assert ledger.value("SELECT count(*) FROM item WHERE note IS NULL") == 0


def test_a_where_that_does_not_tell_done_from_to_do(ledger: Database, run: int, tmp_path: Path) -> None:
    """A second pass would change every row again; so the first change that shows it ends the backfill."""
    item(ledger, rest=", note text")
    with pytest.raises(psycopg2.Error, match=r"with key \[1\] fails: it still meets the WHERE after its change"):
        carry_out(ledger, run, steps_of(tmp_path, FILL.format("trigger fill", "NULL")))
    every = "-- Step: every\n-- Backfill: by id\n-- New rows: trigger fill\nUPDATE item AS t SET note = 'x';"
    with pytest.raises(
        psycopg2.Error, match="the backfill of item needs a WHERE that tells which rows want their value"
    ):
        carry_out(ledger, run, steps_of(tmp_path / "every", every))


# ---- others at work


def test_each_row_once_while_others_write(ledger: Database, run: int, tmp_path: Path) -> None:
    """Inserts, updates and deletes all over the table; every row of the beginning that is still there counted once."""
    item(ledger, 20_000, ", touched integer NOT NULL DEFAULT 0, old boolean NOT NULL DEFAULT true")
    ledger.execute("ALTER TABLE item ALTER old SET DEFAULT false; GRANT ALL ON item TO hive_app")
    over = threading.Event()
    seeds = [random.randrange(2**32) for _ in range(2)]
    print(f"seeds {seeds}")

    def write(seed: int) -> None:
        chance = random.Random(seed)
        with contextlib.closing(ledger.connect("hive_app")) as connection, connection.cursor() as cursor:
            while not over.is_set():
                cursor.execute("UPDATE item SET touched = touched + 1 WHERE id = %s", (chance.randrange(20_000),))
                cursor.execute("DELETE FROM item WHERE id = %s", (chance.randrange(20_000),))
                cursor.execute(
                    "INSERT INTO item (id) SELECT max(id) + %s FROM item ON CONFLICT DO NOTHING", (seed % 2 + 1,)
                )

    writers = [InBackground(write, seed) for seed in seeds]
    try:
        carry_out(ledger, run, count_steps(tmp_path, "item"), **SMALL)
    finally:
        over.set()
        for writer in writers:
            writer.result()
    assert dict(ledger.query("SELECT visits, count(*) FROM item WHERE old GROUP BY 1")).keys() == {1}
    assert set(visits(ledger)) <= {0, 1}
    counted, keys = ledger.query("SELECT count(*), count(DISTINCT key) FROM pgrollout.row_change")[0]
    assert counted == keys == ledger.value("SELECT rows_changed FROM pgrollout.cursor")
    assert ledger.value("SELECT count(*) FROM item WHERE touched > 0") > 0


def test_nobody_who_refers_to_a_row_is_waited_for_or_waits(ledger: Database, run: int, tmp_path: Path) -> None:
    """A new row with a foreign key locks the row it points to FOR KEY SHARE, which a change of no key lets pass."""
    item(ledger)
    ledger.execute("CREATE TABLE part (item_id bigint REFERENCES item)")
    steps = count_steps(tmp_path, "item")
    with (
        transaction(ledger, "INSERT INTO part VALUES (500)"),
        contextlib.closing(ledger.connect()) as connection,
        connection.cursor() as cursor,
    ):
        carry_out(ledger, run, steps, give_up_s=0)
        cursor.execute("SET lock_timeout = '10s'")
        batch = ledger.value("SELECT pgrollout.batch_sql('b', %s, '(0)', '(1000)')", json.dumps(steps[0]["backfill"]))
        with transaction(ledger, batch):
            cursor.execute("INSERT INTO part VALUES (501)")
    assert visits(ledger) == {1: ROWS}
    assert ledger.value("SELECT count(*) FROM pgrollout.event WHERE what = 'waiting'") == 0


def test_ddl_half_way_is_taken_up_by_the_next_batch(ledger: Database, run: int, tmp_path: Path) -> None:
    item(ledger, rest=", spare integer")
    with transaction(ledger, "SELECT FROM item WHERE id = 333 FOR UPDATE") as blocker:
        work = InBackground(carry_out, ledger, run, count_steps(tmp_path, "item"), **SMALL)
        wait_until(lambda: ledger.value("SELECT (SELECT position FROM pgrollout.cursor)") == [300])
        blocker.commit()
        blocker.cursor().execute("ALTER TABLE item DROP COLUMN spare, ADD COLUMN more text DEFAULT 'x'")
        blocker.commit()
    work.result()
    assert visits(ledger) == {1: ROWS}


@pytest.fixture
def own_server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="pgrollout-") as folder:
        made = Server(folder)
        try:
            made.start()
            yield made
        finally:
            made.stop("immediate")


def test_a_server_that_crashes_takes_back_batches_with_their_cursor(own_server: Server, tmp_path: Path) -> None:
    """Batches do not wait for the disk; what a crash loses of them is done again, once."""
    with contextlib.closing(own_server.connect()) as connection:
        connection.cursor().execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
        connection.cursor().execute(f"CREATE DATABASE crashing OWNER {MIGRATION_ROLE}")
    own_server.restart()
    database = Database("crashing", own_server)
    install(database)
    item(database, 20_000)
    steps, run, lost = count_steps(tmp_path, "item"), claim(database), []
    changed = "SELECT coalesce(sum(rows_changed), 0) FROM pgrollout.cursor"
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name ~ '^pgrollout'"
    for row in (2001, 4001, 6001):
        # stopped before the first row of a batch, in which it waits: nothing is written after the last batch's commit
        with transaction(database, f"SELECT FROM item WHERE id = {row} FOR UPDATE"):
            work = InBackground(carry_out, database, run, steps, **SMALL, lock_timeout_max_ms=60_000)
            wait_until(lambda: database.value(waits))
            seen = database.value(changed)
            own_server.stop("immediate")
        with pytest.raises(psycopg2.OperationalError):
            work.result()
        own_server.start()
        lost.append(seen - database.value(changed))
        assert visits(database).get(1, 0) == database.value(changed)
    print(f"lost and done again: {lost} rows")
    carry_out(database, run, steps)
    assert max(lost) > 0
    assert visits(database) == {1: 20_000}
    assert database.query("SELECT count(*), count(DISTINCT key) FROM pgrollout.row_change") == [(20_000, 20_000)]


# ---- bloat and progress


@pytest.mark.parametrize("key", ["bigint", pytest.param("uuid", marks=pytest.mark.ci)])
def test_the_table_grows_by_a_part_and_not_to_twice_its_size(
    ledger: Database, run: int, tmp_path: Path, key: str
) -> None:
    """There and back, with VACUUM between the parts; in one part it would be twice its size."""
    rows = 120_000
    for table in ("item", "other"):
        ledger.execute(
            f"CREATE TABLE {table} (id {key} PRIMARY KEY, visits integer NOT NULL DEFAULT 0, rest text NOT NULL)"
            " WITH (autovacuum_enabled = false);"
            f"INSERT INTO {table} SELECT {'g' if key == 'bigint' else 'md5(g::text)::uuid'}, 0, repeat('x', 80)"
            f" FROM generate_series(1, {rows}) AS g"
        )
        ledger.execute(f"VACUUM ANALYZE {table}")
    sizes = "SELECT pg_relation_size('item'), pg_relation_size('other')"
    ((item_before, other_before),) = ledger.query(sizes)
    steps = steps_of(tmp_path, "".join(COUNT.format(table=t, key="id", where="") for t in ("item", "other")))
    carry_out(ledger, run, [steps[0] | {"bytes": item_before}, steps[1] | {"bytes": 0}])
    ((item_after, other_after),) = ledger.query(sizes)
    print(f"with vacuum {item_after / item_before:.2f}, without {other_after / other_before:.2f}")
    assert item_after <= 1.4 * item_before
    if key == "bigint":  # random keys leave room on every page, which the next batches find
        assert other_after > 1.8 * other_before
    assert visits(ledger) == visits(ledger, "other") == {1: rows}

    ledger.execute("UPDATE item SET visits = 5 WHERE rest LIKE 'x%' AND id IN (SELECT id FROM item LIMIT 10)")
    done = steps[0] | {"rollback": True, "mode": "restore", "restores": steps[0]["id"], "undoes": [steps[0]["id"]]}
    carry_out(ledger, run, [done | {"sql": "SELECT FROM restored", "bytes": item_before}])
    item_back = ledger.value("SELECT pg_relation_size('item')")
    print(f"and back with vacuum {item_back / item_before:.2f}")
    assert item_back <= 1.4 * item_before
    assert visits(ledger) == {0: rows - 10, 5: 10}
    assert ledger.value("SELECT count(*) FROM pgrollout.row_change") == rows  # of the other table
    said = "SELECT rows, message FROM pgrollout.step WHERE step_id = %s"
    assert ledger.query(said, steps[0]["id"] + " (rollback)") == [
        (rows - 10, "10 rows keep what the application wrote or are gone")
    ]


def test_who_may_not_vacuum_the_table_fills_it_all_the_same(ledger: Database, run: int, tmp_path: Path) -> None:
    item(ledger)
    with contextlib.closing(ledger.server.connect(ledger.name)) as connection:
        connection.cursor().execute(f"ALTER TABLE item OWNER TO postgres; GRANT ALL ON item TO {MIGRATION_ROLE}")
    carry_out(ledger, run, [step | {"bytes": 2**30} for step in count_steps(tmp_path, "item")], **SMALL)
    assert visits(ledger) == {1: ROWS}


def test_a_vacuum_lock_that_somebody_holds_is_not_waited_for(ledger: Database, run: int, tmp_path: Path) -> None:
    """As an autovacuum against wraparound holds it, for as long as it takes."""
    item(ledger)
    with transaction(ledger, "LOCK TABLE item IN SHARE UPDATE EXCLUSIVE MODE"):
        carry_out(ledger, run, [step | {"bytes": 2**30} for step in count_steps(tmp_path, "item")], **SMALL)
    assert visits(ledger) == {1: ROWS}


def test_how_far_it_is_how_fast_and_how_long_still(ledger: Database, run: int, tmp_path: Path) -> None:
    item(ledger)
    ledger.execute("ANALYZE item")
    progress = "SELECT rows_visited, rows_estimated, rows_per_s, time_left FROM pgrollout.backfill_progress"
    with transaction(ledger, "SELECT FROM item WHERE id = 333 FOR UPDATE") as blocker:
        work = InBackground(carry_out, ledger, run, count_steps(tmp_path, "item"), **SMALL)
        wait_until(lambda: ledger.value("SELECT (SELECT position FROM pgrollout.cursor)") == [300])
        wait_until(lambda: ledger.value("SELECT waiting_for FROM pgrollout.run WHERE ended_at IS NULL"))
        first = ledger.query(progress)[0]
        visited, estimated, rate, left = first
        assert (visited, estimated) == (300, ROWS)
        assert left.total_seconds() - 1 <= 400 / float(rate) <= left.total_seconds()
        # neither the wait nor a night between two runs makes it slower
        assert ledger.query(progress)[0] == first
        status = [
            line for (line,) in ledger.query("SELECT line FROM pgrollout.status()") if line.startswith("backfill")
        ]
        assert status == [
            f"backfill: 001_test/item: 300 of about 700 rows visited, 300 changed, 100 rows a batch, {rate} rows/s, "
            f"about {left} of work left".replace("about 0:", "about 00:")
        ]
        blocker.commit()
    work.result()
    assert ledger.query("SELECT finished, time_left FROM pgrollout.backfill_progress") == [(True, None)]


# ---- orders from another terminal


def order(database: Database, word: str, who: str = "ben", why: str = "lunch") -> str:
    return str(database.value("SELECT pgrollout.steer(%s, %s, %s)", word, who, why))


def waiting_for(database: Database) -> str:
    return database.value("SELECT waiting_for FROM pgrollout.run WHERE ended_at IS NULL") or ""


ADD = "-- Step: add\nALTER TABLE item ADD COLUMN mood text;"
KINDS = ["backfill", "ddl", "restore"]


def work_of(ledger: Database, folder: Path, kind: str, run: int) -> list[dict[str, Any]]:
    """Steps of each kind that row 333, or the table, keeps waiting."""
    if kind == "ddl":
        return steps_of(folder / "ddl", ADD)
    steps = count_steps(folder, "item")
    if kind == "backfill":
        return steps
    carry_out(ledger, run, steps, **SMALL)
    restore = {"id": "back", "restores": steps[0]["id"], "mode": "restore", "kind": "restore", "sql": "SELECT 1"}
    return [steps[0] | restore]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", ["pause", "stop"])
def test_an_order_to_whatever_is_at_work(ledger: Database, run: int, tmp_path: Path, kind: str, word: str) -> None:
    item(ledger)
    steps = work_of(ledger, tmp_path, kind, run)
    with transaction(ledger, "SELECT FROM item WHERE id = 333 FOR UPDATE") as blocker:
        work = InBackground(carry_out, ledger, run, steps, **SMALL)
        wait_until(lambda: waiting_for(ledger) or not work.is_alive())
        assert order(ledger, word).startswith(f"run {run} (migrate) by ann on ")
        if word == "stop":
            with pytest.raises(psycopg2.Error, match=r"stopped by ben at \d\d:\d\d:\d\d UTC: lunch"):
                work.result()
        else:
            wait_until(lambda: waiting_for(ledger).startswith("paused by ben at "))
            assert waiting_for(ledger).endswith(" UTC: lunch")
            blocker.commit()
            assert any(": lunch" in line for (line,) in ledger.query("SELECT line FROM pgrollout.status()"))
            looked = ledger.value("SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
            wait_until(lambda: ledger.value("SELECT clock_timestamp() > %s::timestamptz + interval '1.5 s'", looked))
            assert work.is_alive()
            assert "mood" not in str(ledger.query("SELECT attname FROM pg_attribute WHERE attrelid = 'item'::regclass"))
            order(ledger, "resume", "eve", "back")
            work.result()
    events = [
        ("pause" if word == "pause" else "stop", "ben: lunch"),
        *([("resume", "eve: back")] if word == "pause" else []),
    ]
    assert ledger.query("SELECT what, detail FROM pgrollout.event WHERE step_id IS NULL ORDER BY event_id") == events
    if word == "stop":
        finish(ledger, run, "failed")
        carry_out(ledger, claim(ledger), steps, **SMALL)
    done = {"backfill": {1: ROWS}, "ddl": {0: ROWS}, "restore": {0: ROWS}}[kind]
    assert visits(ledger) == done


def test_a_pause_ends_with_its_run(ledger: Database, run: int, tmp_path: Path) -> None:
    item(ledger)
    order(ledger, "pause")
    finish(ledger, run, "failed")
    carry_out(ledger, claim(ledger), count_steps(tmp_path, "item"))
    assert visits(ledger) == {1: ROWS}


@pytest.mark.parametrize(
    ("word", "why", "sentence"),
    [
        ("halt", "x", "expected pause, resume or stop with a reason, found 'halt', reason 'x'"),
        ("stop", "", "expected pause, resume or stop with a reason, found 'stop', reason ''"),
    ],
)
def test_what_is_no_order(ledger: Database, run: int, word: str, why: str, sentence: str) -> None:
    with pytest.raises(psycopg2.Error) as error:
        order(ledger, word, why=why)
    assert error.value.diag.message_primary == sentence
    assert run == ledger.value("SELECT run_id FROM pgrollout.run WHERE ended_at IS NULL")


def test_an_order_to_nobody(ledger: Database, run: int) -> None:
    finish(ledger, run)
    with pytest.raises(psycopg2.Error, match="no run is open on this database, so there is nothing to pause"):
        order(ledger, "pause")
