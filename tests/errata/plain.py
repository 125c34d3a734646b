"""Runs migration files without the engine: statement by statement, in autocommit, a backfill as one UPDATE.

What it shares with the engine is the meaning of the annotations, so that these tests look at the SQL alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pglast
from pglast.stream import RawStream

SQL = Path(__file__).parents[2] / "sql"
ANNOTATIONS = ("Step", "Backfill", "New rows", "Done when", "Restore", "Check", "Refuses")


@dataclass(frozen=True)
class Statement:
    """One statement of a migration file, its text and the annotations above it."""

    text: str
    notes: dict[str, str]


def statements(path: str) -> Iterator[Statement]:
    """The statements of a file under ``sql/``, in order."""
    sql = (SQL / path).read_text(encoding="utf-8")
    for part in pglast.split(sql, only_slices=True):
        notes: dict[str, str] = {}
        for line in reversed(sql[: part.start].splitlines()):
            if not line.startswith("--"):
                break
            found = re.match(rf"-- ({'|'.join(ANNOTATIONS)}): (.*)", line)
            if found:
                notes[found[1]] = found[2]
        yield Statement(sql[part], notes)


def migrations(phase: str = "phase*") -> list[str]:
    """The migrations' folders, such as ``phase1/001_add_short_id_indexes``, in order."""
    return sorted(str(path.parent.relative_to(SQL)) for path in SQL.glob(f"{phase}/*/apply.sql"))


def apply(connection: Any, *folders: str) -> None:
    """Runs ``apply.sql`` of the folders; what a backfill changes is recorded for :func:`roll_back`."""
    for folder in folders:
        for statement in statements(f"{folder}/apply.sql"):
            if "Backfill" in statement.notes:
                _backfill(connection, statement)
            else:
                connection.cursor().execute(statement.text)


def roll_back(connection: Any, *folders: str) -> None:
    """Runs ``rollback.sql`` of the folders, last folder first."""
    for folder in reversed(folders):
        updates = {s.notes["Step"]: s for s in statements(f"{folder}/apply.sql") if "Backfill" in s.notes}
        for statement in statements(f"{folder}/rollback.sql"):
            if "Restore" in statement.notes:
                _restore(connection, updates[statement.notes["Restore"]], statement)
            else:
                connection.cursor().execute(statement.text)


def violations(connection: Any, path: str) -> dict[str, list[tuple[str, str, str]]]:
    """Runs a file's checks: title to (object, found, expected) of each violation; only titles with violations."""
    result = {}
    for statement in statements(path):
        if "Check" in statement.notes:
            cursor = connection.cursor()
            cursor.execute(statement.text)
            result[statement.notes["Check"]] = cursor.fetchall()
    return {title: rows for title, rows in result.items() if rows}


def _parts(update: Statement) -> tuple[str, list[str], str]:
    """Table, columns set and WHERE of an ``UPDATE table AS t``."""
    tree: Any = pglast.parse_sql(update.text)[0].stmt
    return tree.relation.relname, [target.name for target in tree.targetList], RawStream()(tree.whereClause)


def _values(columns: list[str]) -> str:
    return "jsonb_build_object(" + ", ".join(f"'{column}', t.{column}" for column in columns) + ")"


def _backfill(connection: Any, update: Statement) -> None:
    table, columns, where = _parts(update)
    step = update.notes["Step"]
    run(connection, "CREATE TABLE IF NOT EXISTS plain_record (step text, key jsonb, old jsonb, new jsonb)")
    run(
        connection,
        f"INSERT INTO plain_record SELECT '{step}', jsonb_build_object('id', t.id), {_values(columns)}"
        f" FROM {table} t WHERE {where}",
    )
    run(connection, update.text)
    run(
        connection,
        f"UPDATE plain_record SET new = {_values(columns)} FROM {table} t"
        f" WHERE step = '{step}' AND t.id = (key ->> 'id')::uuid",
    )


def _restore(connection: Any, update: Statement, statement: Statement) -> None:
    table, columns, _ = _parts(update)
    step = update.notes["Step"]
    setters = ", ".join(f"{c} = (jsonb_populate_record(NULL::{table}, r.old)).{c}" for c in columns)
    run(connection, "CREATE TEMPORARY TABLE restored (key jsonb, old jsonb, new jsonb)")
    run(
        connection,
        f"WITH done AS (UPDATE {table} t SET {setters} FROM plain_record r WHERE r.step = '{step}'"
        f" AND t.id = (r.key ->> 'id')::uuid AND {_values(columns)} = r.new RETURNING r.key, r.old, r.new)"
        " INSERT INTO restored SELECT * FROM done",
    )
    run(connection, statement.text)
    run(connection, "DROP TABLE restored")
    run(connection, "DELETE FROM plain_record WHERE step = %s", step)


def rows(connection: Any, query: str, *args: Any) -> list[tuple[Any, ...]]:
    """The rows of one query."""
    cursor = connection.cursor()
    cursor.execute(query, args or None)
    return list(cursor.fetchall())


def value(connection: Any, query: str, *args: Any) -> Any:
    """The one value of a query."""
    ((result,),) = rows(connection, query, *args)
    return result


def run(connection: Any, statement: str, *args: Any) -> int:
    """Runs one statement; rows it touched."""
    cursor = connection.cursor()
    cursor.execute(statement, args or None)
    return int(cursor.rowcount)


def messages(connection: Any, statement: str) -> list[str]:
    """What the server says, from DEBUG1 up, while it runs a statement."""
    run(connection, "SET client_min_messages = debug1")
    del connection.notices[:]
    run(connection, statement)
    run(connection, "RESET client_min_messages")
    return list(connection.notices)


def locks(connection: Any, *statements: str) -> set[tuple[str, str]]:
    """Relation and mode of each lock that the statements hold, in a transaction that is rolled back."""
    run(connection, "BEGIN")
    for statement in statements:
        run(connection, statement)
    held = rows(
        connection,
        "SELECT relation::regclass::text, mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation'",
    )
    run(connection, "ROLLBACK")
    return set(held)


def header(folder: str) -> dict[str, str]:
    """The header of a migration's ``apply.sql``."""
    block = (SQL / folder / "apply.sql").read_text(encoding="utf-8").split("\n\n")[0]
    return dict(re.findall(r"^-- ([A-Z][A-Za-z ]+): (.+)$", block, re.MULTILINE))
