"""The throwaway server of a bench, and databases cloned from templates that are prepared once."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from psycopg2 import sql

from demo.load import load
from demo.server import MIGRATION_ROLE, Server, ThrowawayError
from tests.conftest import Database, Playbook


@dataclass
class Lab:
    """`database(template)` gives a fresh clone; with `made` the template is prepared by it where it is missing."""

    server: Server
    folder: Path
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def program(self, name: str) -> str:
        """Path of one of PostgreSQL's client programs."""
        path = Path(self.server.connection["client_bin_dir"]) / name
        if not path.exists():
            raise ThrowawayError(f"{path} is missing: set PGROLLOUT_PG_BIN to a PostgreSQL that has {name}.")
        return str(path)

    def administer(self, statement: str, *names: str) -> None:
        with contextlib.closing(self.server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def template(self, name: str, made: Callable[[Database], None] | None = None, scale: str = "1") -> str:
        """A database to clone: the baseline at `scale`, or the baseline's empty schema and what `made` puts into it."""
        load(self.server, name, scale, data=made is None)
        found = Database(name, self.server)
        if made and not found.value("SELECT to_regclass('public.bench_made') IS NOT NULL"):
            made(found)
            found.execute("CREATE TABLE public.bench_made ()")
        return name

    @contextlib.contextmanager
    def database(self, template: str) -> Iterator[Database]:
        """A clone, checkpointed so that each run begins alike; dropped afterwards, sessions in it included."""
        name = f"{template}_{next(self._numbers)}"
        self.administer("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
        statement = "CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY file_copy"
        self.administer(statement, name, MIGRATION_ROLE, template)
        self.administer("CHECKPOINT")
        try:
            yield Database(name, self.server)
        finally:
            self.administer("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def playbook(self) -> Playbook:
        home = self.folder / "ansible"
        home.mkdir(parents=True, exist_ok=True)
        return Playbook(home)

    def scratch(self, name: str) -> Path:
        """A new folder of the bench's own."""
        path = self.folder / f"{name}_{next(self._numbers)}"
        path.mkdir(parents=True, exist_ok=True)
        return path
