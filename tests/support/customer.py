"""A small application beside a run: how often it came through, and how long it stood in a queue because of the run.

with Customer(database, "item") as customer:
    …
customer.served, customer.errors, customer.behind_us_ms
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import Counter
from typing import TYPE_CHECKING

import psycopg2

from tests.support.waiting import POLL_S

if TYPE_CHECKING:
    from tests.conftest import Database

NAME = "customer"
# The server's own clock and its own word for who is waited for: a busy machine does not count as our doing.
BEHIND_US = f"""
SELECT l.locktype = 'relation', extract(epoch FROM clock_timestamp() - l.waitstart)::float * 1000, w.application_name
FROM pg_locks AS l
JOIN pg_stat_activity AS a USING (pid)
JOIN pg_stat_activity AS w ON w.pid = ANY (pg_blocking_pids(l.pid)) AND w.application_name LIKE 'pgrollout/%'
WHERE NOT l.granted AND l.waitstart IS NOT NULL AND a.datname = current_database() AND a.application_name = '{NAME}'
"""


class Customer:
    """Reads and updates the first row of each table in turn, a transaction each, until the block is left."""

    def __init__(self, database: Database, *tables: str) -> None:
        self._database = database
        self._tables = tables
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=call, daemon=True) for call in (self._work, self._look)]
        self.served = 0
        self.errors: Counter[str] = Counter()  # by SQLSTATE
        # The longest waits for a session of the run (its name is pgrollout/<run>/<step>): for a table, which the lock
        # timeout bounds, and for a row, which a backfill's batch has.
        self.behind_us_ms, self.behind = 0.0, ""
        self.row_wait: tuple[float, str] = (0.0, "")

    def __enter__(self) -> Customer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(30)

    def _work(self) -> None:
        connection = self._database.connect(application_name=NAME)
        with contextlib.closing(connection), connection.cursor() as cursor:
            for table in itertools.cycle(self._tables):
                first = f"(SELECT ctid FROM {table} LIMIT 1)"
                for statement in (f"SELECT * FROM {table} LIMIT 1", f"UPDATE {table} SET id = id WHERE ctid = {first}"):
                    try:
                        cursor.execute(statement)
                        self.served += 1
                    except psycopg2.Error as error:
                        self.errors[error.pgcode or "lost"] += 1
                if self._enough.wait(0.005):
                    return

    def _look(self) -> None:
        with contextlib.closing(self._database.connect()) as connection, connection.cursor() as cursor:
            while not self._enough.wait(POLL_S / 4):
                cursor.execute(BEHIND_US)
                for of_table, *found in cursor.fetchall():
                    if of_table:
                        self.behind_us_ms, self.behind = max((self.behind_us_ms, self.behind), tuple(found))
                    else:
                        self.row_wait = max(self.row_wait, tuple(found))
