"""The application that works on the database while it is being migrated, and the witness of what it wrote.

    app = Application(database.dsn("hive_app"), journal_dir=tmp_path, seed=7)
    app.start()
    ...                                       # migrate, kill, roll back
    app.stop()
    assert app.report()["errors"] == []
    assert app.verify(database.connect()) == []

It knows only the columns that stood there before the rollout. Every write is journalled outside the database: what is
meant before it begins, that it is committed after COMMIT has returned. A row is written by one thread only, so the
journal alone tells what each row must hold. As a process: `python -m tests.support.application --host … --seconds 60`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
from psycopg2 import sql

KANBAN_STATES = ("backlog", "ready", "in_progress", "review", "done", "blocked", "cancelled")
PROJECT_STATES = ("planning", "active", "on_hold", "completed", "archived")
AGENT_STATES = ("idle", "busy", "sleeping", "error", "offline")
ALPHABET = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
STATEMENT_TIMEOUT_S = 120  # a wait that long is an error, and nothing here may hang for ever
SAMPLES, SAMPLE_ROWS = (
    8,
    50,
)  # rows of the baseline that one thread works on: so many stretches of the key, so long each

Values = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """What the application knows of a table: columns beside the key, and how it draws the values it writes."""

    name: str
    prefix: str
    label: str
    weight: int
    update: Mapping[str, tuple[Any, ...]]
    insert: Mapping[str, tuple[Any, ...]]
    parents: Mapping[str, str] = field(default_factory=dict)
    touched: bool = False  # has updated_at, which the application sets

    @property
    def columns(self) -> list[str]:
        written = dict.fromkeys([self.label, *self.update, *self.insert, *self.parents])
        return ["id", "short_id", *written, *(["updated_at"] if self.touched else [])]


TABLES = (
    Table(
        name="project_management_projects",
        prefix="PRJ",
        label="name",
        weight=2,
        update={"status": PROJECT_STATES},
        insert={"status": PROJECT_STATES},
        touched=True,
    ),
    Table(
        name="project_management_epics",
        prefix="EPC",
        label="name",
        weight=2,
        update={"kanban_state": KANBAN_STATES},
        insert={"status": ("planning", "active"), "kanban_state": KANBAN_STATES},
        parents={"project_id": "project_management_projects"},
    ),
    Table(
        name="project_management_prds",
        prefix="PRD",
        label="title",
        weight=2,
        update={"status": ("draft", "approved"), "kanban_state": KANBAN_STATES},
        insert={"status": ("draft",), "kanban_state": KANBAN_STATES},
        parents={"epic_id": "project_management_epics"},
    ),
    Table(
        name="project_management_tasks",
        prefix="TSK",
        label="title",
        weight=6,
        update={"kanban_state": KANBAN_STATES, "priority": tuple(range(1, 11))},
        insert={"description": ("", "Grüße, 世界"), "kanban_state": KANBAN_STATES, "priority": tuple(range(1, 11))},
        parents={"project_id": "project_management_projects", "prd_id": "project_management_prds"},
        touched=True,
    ),
    Table(
        name="agents",
        prefix="AGT",
        label="name",
        weight=1,
        update={"status": AGENT_STATES},
        insert={"agent_type": ("backend", "meta_agent"), "status": AGENT_STATES},
    ),
)


# ---- the journal: one file a thread, a line before and a line after each write


class Journal:
    """Append-only; each line is one write(2), so that what was said before a kill -9 has been said."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(self, **line: Any) -> None:
        os.write(self._handle, (json.dumps(line, ensure_ascii=False) + "\n").encode())

    def close(self) -> None:
        os.close(self._handle)


@dataclass
class Row:
    """What the journals say of one row. A column that is not in `allowed` may hold anything."""

    inserted: str = "before"  # before (the baseline's), committed, doubtful, failed
    written: bool = False  # a committed write has been seen
    allowed: dict[str, list[Any]] = field(default_factory=dict)

    def write(self, values: Mapping[str, Any], outcome: str) -> None:
        if outcome == "committed":
            self.written = True
            self.allowed |= {column: [value] for column, value in values.items()}
        elif outcome == "doubtful":
            for column, value in values.items():
                if column in self.allowed:  # else its present value is unknown anyway
                    self.allowed[column] = [*self.allowed[column], value]


def read_journals(folder: Path) -> dict[tuple[str, str], Row]:
    """Rows by table and id. A write without an outcome (its process was killed) is doubtful."""
    rows: dict[tuple[str, str], Row] = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = list(_lines(path))
        outcomes = {line["n"]: line["outcome"] for line in lines if "outcome" in line}
        for line in lines:
            if "outcome" in line:
                continue
            row = rows.setdefault((line["table"], line["id"]), Row())
            outcome = outcomes.get(line["n"], "doubtful")
            if line["op"] == "insert":
                row.inserted = outcome
                row.allowed = {column: [value] for column, value in line["values"].items()}
                row.written = outcome == "committed"
            else:
                row.write(line["values"], outcome)
    return rows


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text(encoding="utf-8").split("\n"):
        with contextlib.suppress(json.JSONDecodeError):  # only the last line of a killed process can be cut
            yield json.loads(text)


# ---- verification


def verify(journal_dir: Path | str, connection: Any) -> list[str]:
    """Discrepancies between journals and database, each a sentence; [] when every acknowledged write is there."""
    folder, found = Path(journal_dir), list[str]()
    journalled = read_journals(folder)
    labels = sorted({f"journal {path.stem.rpartition('-')[0]}-%" for path in folder.glob("*.jsonl")})
    with connection.cursor() as cursor:
        # a row that stands there twice may be missing from the primary key's index: read the table itself
        cursor.execute("SET TimeZone = 'UTC'; SET enable_indexscan = off; SET enable_bitmapscan = off")
        for table in TABLES:
            rows = {key: row for (name, key), row in journalled.items() if name == table.name}
            found += _verify_table(cursor, table, rows, labels)
        cursor.execute("RESET TimeZone; RESET enable_indexscan; RESET enable_bitmapscan")
    return found


def _verify_table(cursor: Any, table: Table, rows: Mapping[str, Row], labels: list[str]) -> list[str]:
    columns = [column for column in table.columns if column != "id"]
    chosen = sql.SQL(", ").join(map(sql.Identifier, columns))
    cursor.execute(
        sql.SQL("SELECT id::text, {} FROM {} WHERE id::text = ANY(%s) OR {} LIKE ANY(%s)").format(
            chosen, sql.Identifier("public", table.name), sql.Identifier(table.label)
        ),
        (list(rows), labels),
    )
    present: dict[str, list[Values]] = {}
    for key, *values in cursor.fetchall():
        present.setdefault(key, []).append({c: _plain(v) for c, v in zip(columns, values, strict=True)})

    found = []
    for key, row in rows.items():
        found += [f"{table.name} {key}: {fault}" for fault in _faults(row, present.get(key, []))]
    times = Counter(row[table.label] for twins in present.values() for row in twins)
    for key, twins in present.items():
        label = twins[0][table.label]
        if key not in rows:
            found.append(f"{table.name} {key}: a row {label!r} that nobody wrote")
        if times[label] > len(twins) and str(label).startswith("journal "):
            found.append(f"{table.name} {key}: {label!r} was written once and is there {times[label]} times")
    return found


def _faults(row: Row, present: list[Values]) -> Iterator[str]:
    if len(present) > 1:
        yield f"is there {len(present)} times"
    elif not present and (row.written or row.inserted == "before"):
        yield "is gone"
    elif present and row.inserted == "failed":
        yield "is there, although its insert failed"
    for column, allowed in row.allowed.items():
        if column == "short_id" and allowed == [None]:
            continue  # the database may have drawn one
        for found in present:
            if found[column] not in allowed:
                yield f"{column} is {found[column]!r}, written was {' or '.join(map(repr, allowed))}"


def _plain(value: Any) -> Any:
    """As the journal has it: text, numbers, None; a time is UTC without its zone."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat()
    return str(value) if isinstance(value, uuid.UUID) else value


# ---- the application


@dataclass
class Tally:
    """What one thread has seen. Latencies in seconds, from the statement's start to the return of COMMIT."""

    latencies: list[float] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    errors: list[dict[str, Any]] = field(default_factory=list)
    longest: dict[str, Any] = field(default_factory=dict)
    disconnections: int = 0
    in_doubt: int = 0


class Worker(threading.Thread):
    """One thread with one connection, its own rows, its own random numbers and its own journal."""

    def __init__(self, application: Application, number: int) -> None:
        super().__init__(name=f"application {number}", daemon=True)
        self._app = application
        self._number = number
        self._random = random.Random(f"{application.seed} {number}")
        self._journal: Journal | None = None
        self._rows: dict[str, list[str]] = {}
        self._codes: dict[str, list[str]] = {}
        self._parents: dict[str, list[str]] = {}
        self._fresh = random.Random(
            f"{application.seed} {number} {application.name}"
        )  # keys and codes never used before
        self._writes = 0
        self._open = 0  # number of the write that has been announced and has no outcome yet
        self._row = ("", "", "")
        self._committing = False
        self.connection: Any = None
        self.ready = threading.Event()
        self.tally = Tally()

    def run(self) -> None:
        self._journal = Journal(self._app.journal_dir / f"{self._app.name}-{self._number}.jsonl")
        try:
            if self._connect():
                self._sample()
                self.ready.set()
                self._app.go.wait()
                self._work()
        except Exception as error:  # a thread that dies silently would look like one that saw no error
            self._error("the application itself", error, 0.0)
        finally:
            self.ready.set()
            self._journal.close()
            if self.connection is not None:
                self.connection.close()

    def _connect(self) -> bool:
        """True when connected. Without survive_restart one attempt; with it, attempts until told to stop."""
        while not self._app.stopping.is_set():
            try:
                self.connection = self._app.connect(f"hive_app/{self._number}")
                return True
            except psycopg2.OperationalError as error:
                if not self._app.survive_restart:
                    self._error("connect", error, 0.0)
                    return False
                self._app.stopping.wait(0.1)
        return False

    def _sample(self) -> None:
        """Choose the rows to work on: stretches of the key, of which this thread owns its share by hash."""
        with self.connection.cursor() as cursor:
            for table in TABLES:
                self._rows[table.name], self._codes[table.name] = [], []
                for _ in range(SAMPLES):
                    cursor.execute(
                        f"SELECT id::text, short_id FROM {table.name} WHERE id >= %s::uuid"
                        " AND mod(hashtext(id::text)::bigint + 2147483648, %s) = %s ORDER BY id LIMIT %s",
                        (
                            str(uuid.UUID(int=self._random.getrandbits(128))),
                            self._app.threads,
                            self._number,
                            SAMPLE_ROWS,
                        ),
                    )
                    for key, code in cursor.fetchall():
                        self._rows[table.name].append(key)
                        self._codes[table.name] += [code] if code else []
                self._rows[table.name] = sorted(set(self._rows[table.name]))
                self._parents[table.name] = list(self._rows[table.name])
            self.connection.commit()

    def _work(self) -> None:
        """A fixed schedule; slots that pass during a wait are not made up for."""
        period = self._app.threads / self._app.rate
        due = time.monotonic() + self._random.random() * period
        weights = [table.weight for table in TABLES]
        while not self._app.stopping.wait(max(0.0, due - time.monotonic())):
            due = max(due + period, time.monotonic())
            (table,) = self._random.choices(TABLES, weights)
            (action,) = self._random.choices(
                (self._read_by_key, self._read_by_code, self._update, self._insert), (35, 15, 35, 15)
            )
            if not self._transaction(table, action):
                return

    def _transaction(self, table: Table, action: Callable[[Any, Table], str]) -> bool:
        """One transaction, timed. False when the thread cannot go on."""
        began, self._committing, self._open = time.monotonic(), False, 0
        what = f"{action.__name__.strip('_')} {table.name}"
        try:
            with self.connection.cursor() as cursor:
                done = action(cursor, table)
            self._committing = True
            self.connection.commit()
        except psycopg2.Error as error:
            return self._failed(what, error, time.monotonic() - began)
        if self._open:
            self._say_outcome("committed")
        elapsed = time.monotonic() - began
        self.tally.latencies.append(elapsed)
        self.tally.done[done] += 1
        if elapsed > self.tally.longest.get("seconds", 0.0):
            self.tally.longest = {"seconds": elapsed, "what": what, "at": _now()}
        return True

    def _failed(self, what: str, error: psycopg2.Error, elapsed: float) -> bool:
        """Only a COMMIT that got no answer leaves a doubt; whatever broke before it has been rolled back."""
        lost = bool(self.connection.closed) or (error.pgcode or "").startswith(("08", "57P"))
        doubtful = lost and self._committing
        if self._open:
            self._say_outcome("doubtful" if doubtful else "failed")
            self.tally.in_doubt += doubtful
        if not lost:
            self._error(what, error, elapsed)
            self.connection.rollback()
            return True
        if not self._app.survive_restart:
            self._error(what, error, elapsed)
            return False
        self.tally.disconnections += 1
        with contextlib.suppress(psycopg2.Error):
            self.connection.close()
        return self._connect()

    def _error(self, what: str, error: Exception, elapsed: float) -> None:
        self.tally.errors.append(
            {
                "at": _now(),
                "what": what,
                "sqlstate": getattr(error, "pgcode", None),
                "message": str(error).strip() or type(error).__name__,
                "seconds": round(elapsed, 3),
            }
        )

    # ---- the four kinds of transaction; each returns what it counts as

    def _read_by_key(self, cursor: Any, table: Table) -> str:
        if self._rows[table.name]:
            key = self._random.choice(self._rows[table.name])
            cursor.execute(f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE id = %s::uuid", (key,))
            if len(cursor.fetchall()) != 1:
                raise psycopg2.DataError(f"{table.name} {key} was not read exactly once")
        return "reads"

    def _read_by_code(self, cursor: Any, table: Table) -> str:
        code = self._random.choice(self._codes[table.name] or [f"{table.prefix}-NONE"])
        cursor.execute(f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE short_id = %s", (code,))
        cursor.fetchall()
        return "reads"

    def _update(self, cursor: Any, table: Table) -> str:
        if not self._rows[table.name]:
            return "reads"
        key = self._random.choice(self._rows[table.name])
        column = self._random.choice(sorted(table.update))
        values: Values = {column: self._random.choice(table.update[column])}
        if table.touched:
            values["updated_at"] = _now()
        self._say_intent("update", table, key, values)
        assignments = ", ".join(f"{name} = %s" for name in values)
        cursor.execute(f"UPDATE {table.name} SET {assignments} WHERE id = %s::uuid", (*values.values(), key))
        if cursor.rowcount != 1:
            raise psycopg2.DataError(f"{table.name} {key}: {cursor.rowcount} rows updated")
        return "updates"

    def _insert(self, cursor: Any, table: Table) -> str:
        key = str(uuid.UUID(int=self._fresh.getrandbits(128), version=4))
        if not all(self._parents[parent] for parent in table.parents.values()):
            return "reads"  # nothing to hang it on: an empty database
        label = f"journal {self._app.name}-{self._number}-{self._writes + 1}"
        values: Values = {table.label: label}
        values |= {column: self._random.choice(choices) for column, choices in table.insert.items()}
        for column, parent in table.parents.items():
            values[column] = self._random.choice(self._parents[parent])
        way = self._random.choice(("without", "null", "given"))
        if way != "without":
            values["short_id"] = self._code(table) if way == "given" else None
        if table.touched:
            values["updated_at"] = _now()
        self._say_intent("insert", table, key, values)
        names, marks = ", ".join(["id", *values]), ", ".join(["%s::uuid", *["%s"] * len(values)])
        cursor.execute(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", (key, *values.values()))
        self._rows[table.name].append(key)  # taken back by the outcome unless it was committed
        return "inserts"

    def _code(self, table: Table) -> str:
        """Ten symbols, thread and counter among them: never drawn twice, nor by a backfill, whose codes are shorter."""
        number, symbols = (self._writes + 1) * self._app.threads + self._number, ""
        for _ in range(5):
            number, digit = divmod(number, len(ALPHABET))
            symbols = ALPHABET[digit] + symbols
        return f"{table.prefix}-{''.join(self._fresh.choices(ALPHABET, k=5))}{symbols}"

    # ---- journal

    def _say_intent(self, op: str, table: Table, key: str, values: Values) -> None:
        assert self._journal is not None
        self._writes += 1
        self._open, self._row = self._writes, (table.name, key, op)
        self._journal.say(n=self._open, op=op, table=table.name, id=key, values=values)

    def _say_outcome(self, outcome: str) -> None:
        """A doubtful row is left alone from now on: its transaction may yet end, after a later one of ours."""
        assert self._journal is not None
        self._journal.say(n=self._open, outcome=outcome)
        table, key, op = self._row
        if outcome == "doubtful" or (outcome == "failed" and op == "insert"):
            self._rows[table] = [row for row in self._rows[table] if row != key]


class Application:
    """N threads, each with a connection of its own, `rate` transactions a second in all."""

    def __init__(
        self,
        connection: Mapping[str, Any],
        threads: int = 4,
        rate: float = 80.0,
        journal_dir: Path | str = ".",
        seed: int = 0,
        survive_restart: bool = False,
    ) -> None:
        self._connection = dict(connection)
        self.threads, self.rate, self.seed, self.survive_restart = threads, rate, seed, survive_restart
        self.journal_dir = Path(journal_dir)
        self.journal_dir.mkdir(parents=True, exist_ok=True)
        self.name = f"{time.time_ns():016x}"  # in order of time: one application after the other may use the folder
        self.go, self.stopping = threading.Event(), threading.Event()
        self._workers = [Worker(self, number) for number in range(threads)]
        self._began = self._ended = 0.0

    def connect(self, application_name: str) -> Any:
        limits = f"-c statement_timeout={STATEMENT_TIMEOUT_S * 1000} -c TimeZone=UTC"
        extra = {"application_name": application_name, "connect_timeout": 10, "options": limits}
        return psycopg2.connect(**(self._connection | extra))

    def start(self) -> Application:
        """Returns when every thread is at work (or has failed, which report() tells)."""
        for worker in self._workers:
            worker.start()
        for worker in self._workers:
            worker.ready.wait(STATEMENT_TIMEOUT_S)
        self._began = time.monotonic()
        self.go.set()
        return self

    def stop(self, patience: float = 30.0) -> None:
        """End after the transactions under way; one that takes over `patience` seconds is cancelled: an error."""
        self.stopping.set()
        end = time.monotonic() + patience
        for worker in self._workers:
            worker.join(max(0.0, end - time.monotonic()))
            if worker.is_alive():
                with contextlib.suppress(psycopg2.Error):
                    worker.connection.cancel()
                worker.join(10)
                if worker.is_alive():
                    raise TimeoutError(f"{worker.name} does not end")
        self._ended = self._ended or time.monotonic()

    def report(self) -> dict[str, Any]:
        """transactions, reads, updates, inserts, errors (a list), disconnections, in_doubt, rate and waits."""
        tallies = [worker.tally for worker in self._workers]
        latencies = sorted(latency for tally in tallies for latency in tally.latencies)
        seconds = (self._ended or time.monotonic()) - self._began
        longest = max((tally.longest for tally in tallies), key=lambda each: each.get("seconds", 0.0))
        done = sum((tally.done for tally in tallies), Counter[str]())
        return {
            "transactions": len(latencies),
            **{kind: done[kind] for kind in ("reads", "updates", "inserts")},
            "errors": [error for tally in tallies for error in tally.errors],
            "disconnections": sum(tally.disconnections for tally in tallies),
            "in_doubt": sum(tally.in_doubt for tally in tallies),
            "seconds": round(seconds, 1),
            "rate": round(len(latencies) / seconds, 1) if seconds > 0 else 0.0,
            "p99_ms": round(percentile(latencies, 0.99) * 1000, 1),
            "longest_wait_ms": round(longest.get("seconds", 0.0) * 1000, 1),
            "longest_wait": {name: longest[name] for name in ("what", "at") if name in longest},
        }

    def verify(self, connection: Any) -> list[str]:
        return verify(self.journal_dir, connection)


def percentile(ordered: list[float], share: float) -> float:
    """The smallest value that at least `share` of the ordered values do not exceed; 0 for none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def _now() -> str:
    """UTC, without its zone, as _plain gives it back."""
    return datetime.now(UTC).replace(tzinfo=None).isoformat()


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--database", default="agent_hive")
    parser.add_argument("--user", default="hive_app")
    parser.add_argument("--passfile", help="libpq password file")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--rate", type=float, default=80.0, help="transactions a second, all threads together")
    parser.add_argument("--seconds", type=float, default=600.0, help="end by itself after so long")
    parser.add_argument("--journal-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--survive-restart", action="store_true", help="reconnect when the server has gone")
    given = parser.parse_args(None if arguments is None else list(arguments))
    dsn = {"host": given.host, "port": given.port, "dbname": given.database, "user": given.user}
    if given.passfile:
        dsn["passfile"] = given.passfile
    app = Application(dsn, given.threads, given.rate, given.journal_dir, given.seed, given.survive_restart)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: app.stopping.set())
    app.start()
    app.stopping.wait(given.seconds)
    app.stop()
    report = app.report()
    print(json.dumps(report, indent=2, ensure_ascii=False))
    return 1 if report["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
