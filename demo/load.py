"""Creates a database with the baseline schema and data: deterministic by scale and seed, all or nothing.

python -m demo.load [--folder .demo] [--scale 1] [--seed 42] [--database agent_hive]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import sql

from demo.server import MIGRATION_ROLE, Server, ThrowawayError

BASELINE = Path(__file__).resolve().parent.parent / "sql" / "baseline"
DATABASE = "agent_hive"
SEED = "42"

TABLES = "SELECT tablename FROM pg_catalog.pg_tables WHERE schemaname = 'public' ORDER BY tablename"


@dataclass(frozen=True)
class Loaded:
    """What is in the database: rows of each table, seconds the load took (0 when it was there already), its label."""

    rows: dict[str, int]
    seconds: float
    label: str
    fresh: bool


def create_database(server: Server, name: str) -> bool:
    """Create `name`, owned by the migration role. True when it was created, False when it was there."""
    connection = server.connect()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT FROM pg_database WHERE datname = %s", (name,))
            if cursor.rowcount:
                return False
            statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0")
            cursor.execute(statement.format(sql.Identifier(name), sql.Identifier(MIGRATION_ROLE)))
            return True
    finally:
        connection.close()


def load(
    server: Server,
    name: str = DATABASE,
    scale: str = "1",
    seed: str = SEED,
    data: bool = True,
    baseline: Path = BASELINE,
) -> Loaded:
    """Create and fill database `name`; schema only with `data=False`.

    Schema, data and label are one transaction, so a load that was killed leaves an empty database that the next one
    fills. The label is the comment on the database: a clone made with CREATE DATABASE … TEMPLATE does not inherit it.
    """
    files = [baseline / "schema.sql", *([baseline / "data.sql"] if data else [])]
    for file in files:
        if not file.is_file():
            raise ThrowawayError(f"{file} is missing: the checkout is not complete.")
    create_database(server, name)
    connection = server.connect(name, user=MIGRATION_ROLE)
    try:
        with connection.cursor() as cursor:
            label = _label(cursor)
            if label:
                return Loaded(_rows(cursor), 0.0, label, fresh=False)
            label = f"baseline at scale {scale}, seed {seed}" if data else "baseline schema"
            started = time.monotonic()
            connection.autocommit = False
            cursor.execute("SELECT set_config('baseline.scale', %s, false)", (scale,))
            cursor.execute("SELECT set_config('baseline.seed', %s, false)", (seed,))
            for file in files:
                _execute_file(cursor, file)
            cursor.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(label)))
            connection.commit()
            connection.autocommit = True
            cursor.execute("RESET ALL")
            cursor.execute("VACUUM")  # now, so that autovacuum does not come in the middle of what follows
            return Loaded(_rows(cursor), time.monotonic() - started, label, fresh=True)
    finally:
        connection.close()


def _label(cursor: Any) -> str | None:
    cursor.execute("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()")
    found: str | None = cursor.fetchone()[0]
    return found


def _rows(cursor: Any) -> dict[str, int]:
    cursor.execute(TABLES)
    rows = {}
    for (table,) in cursor.fetchall():
        cursor.execute(sql.SQL("SELECT count(*) FROM public.{}").format(sql.Identifier(table)))
        rows[table] = cursor.fetchone()[0]
    return rows


def _execute_file(cursor: Any, file: Path) -> None:
    text = file.read_text()
    try:
        cursor.execute(text)
    except psycopg2.Error as error:
        position = error.diag.statement_position
        line = text.count("\n", 0, int(position) - 1) + 1 if position else "?"
        raise ThrowawayError(f"{file}, line {line}: {error.diag.message_primary or error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo.load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default=".demo", type=Path)
    parser.add_argument("--scale", default="1", help="1 is 300,000 tasks, 10 is the growth plan")
    parser.add_argument("--seed", default=SEED)
    parser.add_argument("--database", default=DATABASE)
    args = parser.parse_args(argv)
    try:
        loaded = load(Server(args.folder), args.database, args.scale, args.seed)
    except (ThrowawayError, psycopg2.Error) as error:
        print(str(error).strip(), file=sys.stderr)
        return 1
    for table, rows in loaded.rows.items():
        print(f"{table:<32}{rows:>12,}")
    took = f"loaded in {loaded.seconds:.1f} s" if loaded.fresh else "there already, left as it is"
    print(f"{args.database}: {loaded.label}, {sum(loaded.rows.values()):,} rows, {took}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
