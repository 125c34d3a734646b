"""What a rollback takes away is kept and comes back: columns, whole tables, and what is written while they go."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.errors
import pytest

from pgrollout.migration.plan import plan_apply, plan_rollback
from tests.support.ledger import InBackground, carry_out, claim, finish, install, transaction
from tests.support.plans import facts_of, steps_of_plan
from tests.support.rollouts import rollout_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.conftest import Database

ROWS = 3000
COLUMNS = """\
ALTER TABLE item ADD COLUMN a int DEFAULT 5;
ALTER TABLE item ADD COLUMN b jsonb DEFAULT '[]';
ALTER TABLE item ADD COLUMN c text;
"""
COLUMNS_BACK = "ALTER TABLE item DROP COLUMN c; ALTER TABLE item DROP COLUMN b; ALTER TABLE item DROP COLUMN a;\n"
TABLES = """\
CREATE TYPE mood AS ENUM ('calm', 'busy');
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.at := now(); RETURN NEW; END $$;
CREATE TABLE visit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    number serial,
    item_id int NOT NULL REFERENCES item (id),
    mood mood NOT NULL DEFAULT 'calm',
    moods mood[] NOT NULL DEFAULT '{}',
    length int NOT NULL CHECK (length > 0),
    twice int GENERATED ALWAYS AS (length * 2) STORED,
    at timestamptz
);
CREATE TRIGGER stamp BEFORE UPDATE ON visit FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE INDEX CONCURRENTLY visit_item ON visit (item_id);
CREATE TABLE stop (visit_id bigint NOT NULL REFERENCES visit (id), place int NOT NULL, PRIMARY KEY (visit_id, place));
"""
TABLES_BACK = """\
DROP TABLE stop;
DROP TABLE visit;
DROP FUNCTION stamp();
DROP TYPE mood;
"""


@dataclass
class Way:
    """A rollout of one migration there and back, on the engine alone."""

    database: Database
    rollout: dict[str, Any]

    def apply(self, **options: Any) -> dict[str, Any]:
        return self._go(plan_apply(self.rollout, facts_of(self.database, self.rollout), [], {}, [], [], **options))

    def back(self, keep: bool = True, only: int | None = None, **changes: Any) -> dict[str, Any]:
        """`only`: so many of the steps."""
        plan = plan_rollback(self.rollout, facts_of(self.database, self.rollout), ["phase1"], keep)
        return self._go(plan, only, **changes)

    def _go(self, plan: dict[str, Any], only: int | None = None, **changes: Any) -> dict[str, Any]:
        assert plan["stoppers"] == []
        run = claim(self.database)
        try:
            to_do = [step for step in steps_of_plan(plan) if step["state"] == "pending"]
            carry_out(self.database, run, to_do[:only], **changes)
        finally:
            finish(self.database, run)
        return plan

    def kept(self) -> list[tuple[Any, ...]]:
        found = self.database.query("SELECT relation, columns, rows, state FROM pgrollout.kept ORDER BY kept_id")
        return [(name, sorted(columns) if columns else None, *rest) for name, columns, *rest in found]

    def message(self, step: str) -> str:
        return str(self.database.value("SELECT message FROM pgrollout.step WHERE step_id LIKE %s", f"%{step}%"))


@pytest.fixture
def ledger(empty_database: Database) -> Database:
    install(empty_database)
    empty_database.execute(
        "CREATE TABLE item (id int PRIMARY KEY, name text);"
        f"INSERT INTO item SELECT g, 'n' || g FROM generate_series(1, {ROWS}) AS g"
    )
    return empty_database


@pytest.fixture
def columns(ledger: Database, tmp_path: Path) -> Way:
    return _way(ledger, tmp_path, COLUMNS, COLUMNS_BACK)


@pytest.fixture
def tables(ledger: Database, tmp_path: Path) -> Way:
    return _way(ledger, tmp_path, TABLES, TABLES_BACK)


def _way(database: Database, folder: Path, there: str, back: str) -> Way:
    files = {"phase1/001_test/apply.sql": there, "phase1/001_test/rollback.sql": back}
    way = Way(database, rollout_of(folder, files))
    way.apply()
    return way


def triggers(database: Database) -> int:
    return int(database.value("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'pgrollout%%'"))


# ---- columns


WRITTEN = """
UPDATE item SET a = id WHERE id BETWEEN 1 AND 1000;
UPDATE item SET b = '{"x": [1, null]}' WHERE id BETWEEN 900 AND 1100;
UPDATE item SET a = NULL, c = 'it''s' WHERE id = 2000
"""


def test_what_was_written_into_columns_comes_back(columns: Way) -> None:
    database = columns.database
    database.execute(WRITTEN)
    before = database.query("SELECT * FROM item ORDER BY id")
    columns.back()
    assert database.query("SELECT * FROM item WHERE id = 2000") == [(2000, "n2000")]
    assert triggers(database) == 0
    # 5 is the default of a: row 5 holds nothing of its own
    assert columns.kept() == [("public.item", ["a", "b", "c"], 1100, "kept")]
    columns.apply()
    assert database.query("SELECT * FROM item ORDER BY id") == before
    assert columns.kept() == [("public.item", ["a", "b", "c"], 0, "given back")]
    assert database.value("SELECT count(*) FROM pgrollout.row_change") == 0
    assert [step for step in steps_of_plan(columns.apply()) if step["state"] == "pending"] == []


def test_a_row_that_has_a_value_by_now_keeps_it(columns: Way) -> None:
    database = columns.database
    database.execute(WRITTEN)
    columns.back()
    columns.apply(restore_kept=False)
    assert database.query("SELECT a, b, c FROM item WHERE id = 950") == [(5, [], None)]
    database.execute("UPDATE item SET a = 77 WHERE id = 950; DELETE FROM item WHERE id = 951")
    plan = columns.apply()
    (step,) = [step for step in steps_of_plan(plan) if step["state"] == "pending"]
    assert step["reason"].startswith(
        "1,100 rows of item (columns a, b, c), kept by run 2; -e restore_kept=false leaves"
    )
    assert database.query("SELECT a, b FROM item WHERE id = 950") == [(77, {"x": [1, None]})]
    assert columns.message("give_back") == "1 rows keep what the application wrote or are gone"


def test_the_second_rollback_keeps_anew(columns: Way) -> None:
    database = columns.database
    for value in (10, 20):
        database.execute(f"UPDATE item SET a = {value} WHERE id <= 100")
        columns.back()
        columns.apply()
        assert database.query("SELECT a, count(*) FROM item GROUP BY 1 ORDER BY 1") == [(5, ROWS - 100), (value, 100)]
    assert [state for *_, state in columns.kept()] == ["given back", "given back"]


def test_what_was_left_in_favour_of_a_later_one_does_not_come_back_by_itself(columns: Way) -> None:
    database = columns.database
    database.execute("UPDATE item SET a = 10 WHERE id <= 100")
    columns.back()
    columns.apply(restore_kept=False)
    database.execute("UPDATE item SET a = 20 WHERE id > 2900")
    columns.back()
    columns.apply()
    expected = [(5, ROWS - 100), (20, 100)]
    assert database.query("SELECT a, count(*) FROM item GROUP BY 1 ORDER BY 1") == expected
    assert [step for step in steps_of_plan(columns.apply()) if step["state"] == "pending"] == []
    assert [(rows, state) for *_, rows, state in columns.kept()] == [(100, "kept"), (0, "given back")]
    database.execute("SELECT pgrollout.forget_kept(1)")
    assert [(rows, state) for *_, rows, state in columns.kept()] == [(0, "forgotten"), (0, "given back")]
    assert database.value("SELECT count(*) FROM pgrollout.row_change") == 0
    with pytest.raises(psycopg2.Error, match="nothing is kept under the number 9"):
        database.execute("SELECT pgrollout.forget_kept(9)")


@dataclass
class Writer(threading.Thread):
    """An application that writes its columns as long as they are there, and remembers what it has committed."""

    database: Database
    wrote: dict[int, dict[str, Any]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.enough = threading.Event()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        chance, new = random.Random(7), itertools.count(ROWS + 1)
        connection = self.database.connect(application_name="hive-web")
        with connection.cursor() as cursor:
            while not self.enough.is_set():
                column = chance.choice("abc")
                value = {"a": chance.choice((5, chance.randrange(99))), "b": chance.choice(("[]", "[1]")), "c": None}
                value["c"] = chance.choice((None, f"w{self.count}"))
                key = next(new) if chance.random() < 0.1 else chance.randrange(1, ROWS + 1)
                try:
                    if key > ROWS:
                        cursor.execute("INSERT INTO item (id, name) VALUES (%s, 'new')", (key,))
                        self.wrote[key] = {}
                    elif chance.random() < 0.05:
                        cursor.execute("DELETE FROM item WHERE id = %s", (key,))
                        self.wrote[key] = {"deleted": True}
                        continue
                    if column not in self.gone:
                        cursor.execute(f"UPDATE item SET {column} = %s WHERE id = %s", (value[column], key))
                        if cursor.rowcount:
                            self.wrote.setdefault(key, {})[column] = value[column]
                    self.count += 1
                except psycopg2.errors.UndefinedColumn:
                    self.gone.add(column)
                except psycopg2.Error as error:
                    self.errors.append(str(error))
        connection.close()


@pytest.fixture
def writer(columns: Way) -> Iterator[Writer]:
    found = Writer(columns.database)
    found.start()
    wait_until(lambda: found.count > 300, 30, "writes")
    yield found
    found.enough.set()
    found.join(10)


def test_what_is_written_while_the_columns_go_is_kept(columns: Way, writer: Writer) -> None:
    before = writer.count
    # the walk rests between its batches, so that most of the writes fall into it
    columns.back(batch_rows=20, batch_max_rows=20, rest_per_session=2)
    during = writer.count - before
    wait_until(lambda: writer.gone == {"a", "b", "c"}, 30, "the writer to see that its columns are gone")
    writer.enough.set()
    writer.join(10)
    assert writer.errors == []
    assert during > 300
    columns.apply()
    found = {
        key: dict(zip("abc", values, strict=True))
        for key, *values in columns.database.query("SELECT id, a, b::text, c FROM item")
    }
    for key, wrote in writer.wrote.items():
        assert (key in found) == (not wrote.get("deleted")), key
        fresh = {"a": 5, "b": "[]", "c": None}
        assert wrote.get("deleted") or found[key] == fresh | wrote, key


def test_a_value_that_is_being_taken_back_is_not_kept(columns: Way) -> None:
    """The walk waits for a row that somebody has changed and not committed: it would write the former value down."""
    database = columns.database
    database.execute("UPDATE item SET a = 10 WHERE id = 1")
    columns.back(only=1)
    with transaction(database, "UPDATE item SET a = 5 WHERE id = 1") as session:
        going = InBackground(columns.back)
        there = (
            "SELECT EXISTS (SELECT FROM pgrollout.run WHERE ended_at IS NULL AND "
            "(waiting_for LIKE 'rows of public.item that another%' OR step LIKE '%item.c%'))"
        )
        wait_until(lambda: database.value(there), 30, "the walk to wait")
        session.commit()
    going.result()
    assert columns.kept() == [("public.item", ["a", "b", "c"], 0, "kept")]


def test_a_rollback_that_was_broken_off_goes_on_or_is_taken_back(columns: Way) -> None:
    database = columns.database
    database.execute(WRITTEN)
    before = database.query("SELECT * FROM item ORDER BY id")
    columns.back(only=3)  # keeps, walks, drops c
    assert columns.kept() == [("public.item", ["a", "b", "c"], 0, "capturing")]
    database.execute("UPDATE item SET a = 1234 WHERE id = 2999")
    columns.apply()
    expected = [(key, name, 1234 if key == 2999 else a, b, c) for key, name, a, b, c in before]
    assert database.query("SELECT * FROM item ORDER BY id") == expected
    assert triggers(database) == 0
    columns.back(only=3)
    install(database)  # another version of the engine goes on
    columns.back()
    columns.apply()
    assert database.query("SELECT * FROM item ORDER BY id") == expected
    assert [state for *_, state in columns.kept()] == ["given back", "given back"]


def test_rows_that_nothing_tells_apart_are_not_dropped_without_a_word(ledger: Database, tmp_path: Path) -> None:
    ledger.execute("CREATE TABLE log (word text); INSERT INTO log VALUES ('x')")
    back = "ALTER TABLE log DROP COLUMN a;"
    way = _way(ledger, tmp_path, "ALTER TABLE log ADD COLUMN a int;", back)
    with pytest.raises(psycopg2.Error, match="what is in columns of log cannot be kept: no unique index"):
        way.back()
    assert ledger.query("SELECT a FROM log") == [(None,)]
    way.back(keep=False)
    assert ledger.query("SELECT * FROM log") == [("x",)]


def test_more_than_may_be_kept_is_not_dropped(columns: Way) -> None:
    columns.database.execute("UPDATE item SET c = repeat(md5(id::text), 50)")
    with pytest.raises(psycopg2.Error, match=r"what is kept of public.item takes more than rollback_keep_max_mb \(0\)"):
        columns.back(keep_max_mb=0)
    assert columns.database.value("SELECT count(c) FROM item") == ROWS
    columns.back()
    assert columns.kept() == [("public.item", ["a", "b", "c"], ROWS, "kept")]


@pytest.mark.parametrize(
    ("default", "value"),
    [
        ("'idle'::varchar(20)", "idle"),
        ("100::numeric(5,2)", 100.0),
        ("ARRAY[]::uuid[]", []),
        ("'f(x)'", "f(x)"),
        ("-1", -1),
        ("now()", None),
        ("CURRENT_DATE", None),
        ("gen_random_uuid()", None),
        ("upper('x')", None),
    ],
)
def test_the_value_of_a_row_that_nobody_has_written(ledger: Database, default: str, value: Any) -> None:
    kind = ledger.value(f"SELECT pg_typeof({default})::text")
    ledger.execute(f"ALTER TABLE item ADD COLUMN x {kind if kind != 'unknown' else 'text'} DEFAULT {default}")
    assert ledger.value("SELECT pgrollout.fresh_value('item', 'x')") == value


# ---- tables


def test_a_table_comes_back_with_its_rows_and_goes_on_counting(tables: Way) -> None:
    database = tables.database
    database.execute(
        "INSERT INTO visit (item_id, mood, moods, length) "
        "SELECT g, 'busy', '{calm,busy}', g FROM generate_series(1, 500) AS g;"
        "INSERT INTO stop SELECT g, 1 FROM generate_series(1, 500) AS g; DELETE FROM item WHERE id = 501"
    )
    before = database.query("SELECT * FROM visit ORDER BY id"), database.query("SELECT * FROM stop ORDER BY 1")
    tables.back()
    assert database.value("SELECT to_regclass('visit') IS NULL AND to_regtype('mood') IS NULL")
    assert [(name, state) for name, _, _, state in tables.kept()] == [("public.stop", "kept"), ("public.visit", "kept")]
    assert database.value("SELECT count(*) FROM pg_constraint WHERE confrelid = 'item'::regclass") == 0
    database.execute("DELETE FROM item WHERE id = 400")
    tables.apply()
    gone = [key for key, _, item, *_ in before[0] if item == 400]
    assert database.query("SELECT * FROM visit ORDER BY id") == [row for row in before[0] if row[0] not in gone]
    assert database.query("SELECT * FROM stop ORDER BY 1") == [row for row in before[1] if row[0] not in gone]
    assert "1 rows stay in pgrollout.kept_" in tables.message("give_back_visit")
    assert 'violates foreign key constraint "visit_item_id_fkey"' in tables.message("give_back_visit")
    database.execute("INSERT INTO visit (item_id, length) VALUES (1, 1)")
    assert database.query("SELECT max(id), max(number) FROM visit") == [(501, 501)]
    assert [(name, rows, state) for name, _, rows, state in tables.kept()] == [
        ("public.stop", 1, "given back"),
        ("public.visit", 1, "given back"),
    ]
    assert [step for step in steps_of_plan(tables.apply()) if step["state"] == "pending"] == []


def test_an_empty_table_is_dropped(tables: Way) -> None:
    tables.back()
    assert tables.kept() == []
    assert tables.database.value("SELECT to_regclass('visit') IS NULL")


def test_a_partitioned_table_is_kept_as_a_copy(ledger: Database, tmp_path: Path) -> None:
    there = "CREATE TABLE part (id int PRIMARY KEY, word text) PARTITION BY RANGE (id);\n"
    way = _way(ledger, tmp_path, f"{there}CREATE TABLE part_1 PARTITION OF part DEFAULT;", "DROP TABLE part;")
    ledger.execute("INSERT INTO part SELECT g, 'w' || g FROM generate_series(1, 300) AS g")
    before = ledger.query("SELECT * FROM part ORDER BY id")
    with pytest.raises(psycopg2.Error, match=r"what is kept of public.part takes more than rollback_keep_max_mb \(0\)"):
        way.back(keep_max_mb=0)
    way.back()
    assert ledger.value("SELECT to_regclass('part_1') IS NULL")
    assert [(name, state) for name, _, _, state in way.kept()] == [("public.part", "kept")]
    way.apply()
    assert ledger.query("SELECT * FROM part ORDER BY id") == before


def test_what_the_server_would_not_drop_is_not_kept_either(tables: Way) -> None:
    database = tables.database
    database.execute("INSERT INTO visit (item_id, length) VALUES (1, 1); CREATE VIEW seen AS SELECT id FROM visit")
    with pytest.raises(psycopg2.Error, match="cannot drop table visit because other objects depend on it"):
        tables.back()
    assert database.value("SELECT count(*) FROM visit") == 1
    assert tables.kept() == []
