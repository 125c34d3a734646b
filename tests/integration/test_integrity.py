"""Whether the rows of before a run still stand: what the rollout filled and what the application wrote told apart."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.ledger import carry_out, claim, install, steps_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Database

ROWS = 500
SQL = """
-- Step: {table}
-- Backfill: by id
UPDATE {table} AS t SET code = 'C' || t.id, seen = '{{"a": [1, null]}}' WHERE t.code IS NULL;
"""
COLUMNS = "id bigint, code text, seen jsonb, at timestamptz DEFAULT now(), cost numeric(9,2) DEFAULT 1.50"


@pytest.fixture
def ledger(empty_database: Database) -> Database:
    install(empty_database)
    empty_database.execute(
        f"CREATE TABLE item ({COLUMNS}, PRIMARY KEY (id)); CREATE TABLE other (id int PRIMARY KEY, word text);"
        f"CREATE TABLE part ({COLUMNS}, PRIMARY KEY (id)) PARTITION BY RANGE (id);"
        "CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (100) TO (1000);"
        "INSERT INTO item (id, code) SELECT g, CASE WHEN g % 5 = 0 THEN 'given' END "
        f"FROM generate_series(1, {ROWS}) AS g; INSERT INTO part (id) SELECT generate_series(1, {ROWS});"
        "INSERT INTO other SELECT g, 'w' FROM generate_series(1, 9) AS g"
    )
    counted(empty_database, "other", "inserted", 9)
    counted(empty_database, "item", "inserted", ROWS)
    return empty_database


def counted(database: Database, table: str, what: str, count: int) -> None:
    """Wait until the server has counted that many; sessions tell it some time after they wrote."""
    column = {"inserted": "n_tup_ins", "updated": "n_tup_upd", "deleted": "n_tup_del"}[what]
    told = f"SELECT {column} FROM pg_stat_user_tables WHERE relid = '{table}'::regclass"
    wait_until(lambda: database.value(told) >= count, 30, f"{count} {what} in {table}")


def begin(database: Database) -> int:
    run = claim(database)
    database.execute(f"SELECT pgrollout.begin_phase({run}, 'phase1', 'apply')")
    database.execute(f"SELECT pgrollout.take_snapshot({run}, 'phase1', 10000000)")
    return run


def fill(database: Database, run: int, folder: Path, *tables: str) -> list[dict[str, Any]]:
    """Carry the backfill out; what the filter rollout_fills says of it."""
    steps = steps_of(folder, "".join(SQL.format(table=table) for table in tables))
    carry_out(database, run, steps)
    return [
        {"id": step["id"], "phase": "phase1"} | {name: step["backfill"][name] for name in ("table", "columns")}
        for step in steps
    ]


def compared(database: Database, fills: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    return {
        name: tuple(rest)
        for name, *rest in database.query(
            "SELECT table_name, state, filled, rows_before, rows_now, inserted, updated, deleted "
            "FROM pgrollout.integrity('phase1', %s::jsonb)",
            json.dumps(fills),
        )
    }


def told(database: Database, run: int, fills: list[dict[str, Any]]) -> list[str]:
    database.execute("SELECT pgrollout.keep_integrity(%s, %s::jsonb)", run, json.dumps(fills))
    found = database.query("SELECT line FROM pgrollout.report(%s) WHERE line LIKE 'data integrity: %%'", run)
    return [line.removeprefix("data integrity: ") for (line,) in found]


def mine(lines: list[str]) -> list[str]:
    """Without the tables of the baseline."""
    return [line for line in lines if " tables hold " in line or line.split(" ")[0] in ("item", "other", "part_1")]


def test_what_the_rollout_filled_is_no_loss(ledger: Database, tmp_path: Path) -> None:
    run = begin(ledger)
    fills = fill(ledger, run, tmp_path, "item", "part")
    found = compared(ledger, fills)
    assert found["item"][:4] == ("equal", ROWS * 4 // 5, ROWS, ROWS)
    assert found["part_1"][:4] == ("equal", 99, 99, 99)
    assert found["part_2"][:4] == ("equal", ROWS - 99, ROWS - 99, ROWS - 99)
    tables = len(found)
    assert told(ledger, run, fills) == [
        f"{tables} of {tables} tables hold every row as it was before phase1 (100 %), "
        f"but for {ROWS * 4 // 5 + ROWS} rows that the rollout filled"
    ]


def test_without_the_history_the_filled_table_would_differ(ledger: Database, tmp_path: Path) -> None:
    run = begin(ledger)
    fills = fill(ledger, run, tmp_path, "item")
    assert compared(ledger, fills)["item"][0] == "equal"
    assert compared(ledger, [])["item"][0] == "written"
    ledger.execute("DELETE FROM pgrollout.row_change WHERE key = '{\"id\": 1}'")
    assert compared(ledger, fills)["item"][0] == "written"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE item SET code = 'mine' WHERE id = 1",  # filled, and then the application's
        "UPDATE item SET cost = 2 WHERE id = 5",
        "UPDATE item SET at = at + interval '1 us' WHERE id = 1",
        "DELETE FROM item WHERE id = 7",
        "DELETE FROM item WHERE id = 7; INSERT INTO item (id) VALUES (0)",
        "DELETE FROM item WHERE id = 5; INSERT INTO item (id, code) VALUES (5, 'given')",
        "DELETE FROM item WHERE id = 7; INSERT INTO item (id, code) VALUES (7, 'C7')",
    ],
)
def test_a_single_row_that_somebody_wrote_is_seen(ledger: Database, tmp_path: Path, statement: str) -> None:
    run = begin(ledger)
    fills = fill(ledger, run, tmp_path, "item")
    ledger.execute(statement)
    assert compared(ledger, fills)["item"][0] == "written"
    assert compared(ledger, fills)["other"][0] == "equal"


def test_a_table_that_was_only_added_to_holds_every_row_it_held(ledger: Database, tmp_path: Path) -> None:
    run = begin(ledger)
    ledger.execute("INSERT INTO item (id, code) VALUES (600, 'early')")  # the backfill's rows come after it
    fills = fill(ledger, run, tmp_path, "item")
    ledger.execute("INSERT INTO item (id, code) SELECT g, 'late' FROM generate_series(601, 620) AS g")
    assert compared(ledger, fills)["item"][:4] == ("added to", ROWS * 4 // 5, ROWS, ROWS + 21)
    lines = told(ledger, run, fills)
    assert lines[0].startswith(f"{len(compared(ledger, fills))} of ")
    assert mine(lines)[1:] == [f"item was added to: each of the {ROWS} rows is as it was, 21 are new"]


def test_rows_of_a_transaction_that_was_open_at_the_snapshot_are_new(ledger: Database) -> None:
    with contextlib.closing(ledger.connect(autocommit=False)) as session, session.cursor() as cursor:
        cursor.execute("INSERT INTO item (id) VALUES (0)")
        ledger.execute("INSERT INTO item (id) VALUES (-1)")  # a later transaction that was seen
        begin(ledger)
        session.commit()
    assert compared(ledger, [])["item"][:4] == ("added to", 0, ROWS + 1, ROWS + 2)


def test_of_a_snapshot_without_transactions_only_equal_tables_are_known(ledger: Database) -> None:
    begin(ledger)
    ledger.execute("UPDATE pgrollout.snapshot SET visible = NULL; INSERT INTO item (id) VALUES (0)")
    found = compared(ledger, [])
    assert (found["item"][0], found["other"][0]) == ("written", "equal")


def test_what_the_application_wrote_is_told_with_counts(ledger: Database, tmp_path: Path) -> None:
    run = begin(ledger)
    fills = fill(ledger, run, tmp_path, "item")
    ledger.execute("INSERT INTO other SELECT g, 'new' FROM generate_series(10, 30) AS g")
    ledger.execute("DELETE FROM other WHERE id < 3")
    ledger.execute("UPDATE item SET cost = 2 WHERE id <= 10")
    for table, what, count in (("other", "deleted", 2), ("other", "inserted", 30), ("item", "updated", 410)):
        counted(ledger, table, what, count)
    assert mine(told(ledger, run, fills))[1:] == [
        "item was written meanwhile: 500 rows then, 500 now; "
        "the server counts 0 added, 0 removed, 410 changed (400 of them by the rollout)",
        "other was written meanwhile: 9 rows then, 28 now; "
        "the server counts 21 added, 2 removed, 0 changed (0 of them by the rollout)",
    ]


def test_what_cannot_be_compared_says_why(ledger: Database) -> None:
    run = begin(ledger)
    ledger.execute("ALTER TABLE item DROP COLUMN seen; DROP TABLE other; DROP TABLE part_1")
    assert mine(told(ledger, run, []))[1:] == [
        "item was not compared: it has no longer seen",
        "other was not compared: it is gone",
        "part_1 was not compared: it is gone",
    ]
