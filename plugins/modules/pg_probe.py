#!/usr/bin/python
# Copyright: contributors of this project
# GNU General Public License v3.0 or later (see LICENSE)
"""Start a small process that does what the application does, and keeps in the ledger how long that took.

It needs nothing on the host but Python and psycopg2. The process is a fork of the module: what it knows, passwords
included, it has in memory, not in its arguments, its environment or a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule

try:
    import psycopg2
    from psycopg2 import sql
    from psycopg2.extensions import TRANSACTION_STATUS_IDLE
except ImportError:
    psycopg2 = None

if TYPE_CHECKING:
    from plugins.module_utils.pg_session import OPTIONS, Refused, libpq, where
else:
    from ansible.module_utils.pg_session import OPTIONS, Refused, libpq, where

DOCUMENTATION = r"""
module: pg_probe
short_description: Measure what a migration does to its application, while it runs
description:
  - Starts a process that reads a row by key and writes nothing (C(UPDATE … WHERE false), which takes the lock that the
    application's writes take) in turn on each table, on a fixed schedule and with a connection a table, and waits as
    long as the application would. A wait counts from the time at which the operation was due.
  - The process writes to C(pgrollout.probe_sample) once a second and ends with its run, at the latest after
    O(max_seconds). It survives a restart of the server.
  - It never stands in the way. An operation is one autocommitted message, and while it waits for a lock it holds
    neither a lock nor a snapshot.
options:
  run:
    description: Number of the open run in the ledger.
    type: int
    required: true
  tables:
    description:
      - Tables, as schema.name, in double quotes what SQL wants in them. One that does not exist is left out without a
        word, one of another kind with.
    type: list
    elements: str
    default: []
  writes:
    description: Those of the tables in which the write really updates a row to itself; its triggers fire.
    type: list
    elements: str
    default: []
  measure:
    description: Whether anything is measured; without it the process only watches over the run's concurrent builds.
    type: bool
    default: true
  instead:
    description: Who measures where this does not.
    type: str
    default: ""
  build_max_wait_s:
    description: A concurrent build that waits longer than this for others is cancelled.
    type: int
    default: 1800
  interval_ms:
    description: Time from one operation on a table to the next.
    type: int
    default: 100
  warn_ms:
    description: A wait longer than this is a warning in the report.
    type: int
    default: 1000
  alert_ms:
    description: A wait longer than this is an alert in the report.
    type: int
    default: 30000
  abort_ms:
    description: A wait longer than this asks the run to stop; 0 never does.
    type: int
    default: 0
  limit:
    description: What the playbook was limited to, for the command that such a stop names.
    type: str
    default: all
  max_tables:
    description: How many tables are looked at, each with a connection; the first ones of the list.
    type: int
    default: 20
  max_seconds:
    description: After how long the process ends whatever its run does.
    type: int
    default: 43200
  keep_days:
    description: Samples of runs that ended longer ago are removed.
    type: int
    default: 30
  controller_pid:
    description: Process of the playbook where it runs on this host; the probe ends soon after it and its sessions.
    type: int
  login_host:
    description: Server, or the folder of its socket.
    type: str
  login_port:
    description: Port.
    type: int
    default: 5432
  login_user:
    description: Role.
    type: str
    default: postgres
  login_password:
    description: Password.
    type: str
  login_db:
    description: The database.
    type: str
    required: true
  passfile:
    description: libpq password file.
    type: path
  ssl_mode:
    description: libpq sslmode.
    type: str
    default: prefer
  ca_cert:
    description: Root certificate that the server's certificate is checked against.
    type: path
  ssl_cert:
    description: Client certificate.
    type: path
  ssl_key:
    description: Key of the client certificate.
    type: path
  connect_params:
    description: Further settings of libpq, such as keepalives_idle.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Start the downtime probe
  pg_probe:
    run: 12
    tables: [public.orders]
    login_db: shop
"""

RETURN = r"""
pid:
  description: Process id of the probe.
  returned: success
  type: int
tables:
  description: The tables that it looks at.
  returned: success
  type: list
  elements: str
left_out:
  description: A sentence for each table that it does not look at.
  returned: success
  type: list
  elements: str
"""

LOOK_S = 0.25  # how often the main thread looks at the others
BEAT_S = 1.0  # how often it writes to the ledger
NAMED_S = 0.5  # a wait as long as this is worth asking who it is for
UNREACHABLE_S = 900  # without the ledger nobody can say that the run is over
COMMIT = "commit"  # what the probe's own table is called in the samples

# A session like the application's, but for limits of the migration role that would cut a wait short; and one that the
# server ends itself, within a second, when the probe has died while it waited.
SESSION = """
SELECT set_config(s.name, w.value, false)
FROM (VALUES ('lock_timeout', '0'), ('statement_timeout', '0'), ('transaction_timeout', '0'),
             ('idle_session_timeout', '0'), ('idle_in_transaction_session_timeout', '10s'),
             ('client_connection_check_interval', '1s')) AS w (name, value)
JOIN pg_settings AS s USING (name)
"""

# The ledger's own session waits for nothing and for nobody.
LEDGER_SESSION = "SET statement_timeout = '10s'; SET lock_timeout = '5s'; SET synchronous_commit = off"

# The tables of a list that exist, in its order: [name, why it cannot be looked at or NULL].
TABLES = """
SELECT t.name, CASE WHEN c.relkind = 'p' THEN 'is partitioned'
                    WHEN NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'UPDATE'))
                        THEN format('role %%s may not SELECT and UPDATE it', current_user) END
FROM unnest(%s::text[]) WITH ORDINALITY AS t (name, place)
JOIN pg_namespace AS n ON n.nspname = (parse_ident(t.name))[1]
JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = (parse_ident(t.name))[2]
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname <> 'pgrollout'
ORDER BY t.place
"""

# A table: [its schema, its name, key columns as {name, type}, a column that may be set to itself, whether an UPDATE of
# no row is without consequence]. Triggers for each statement and rules act even then.
TABLE = """
SELECT n.nspname, c.relname,
       coalesce((
           SELECT jsonb_agg(jsonb_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod))
                            ORDER BY k.place)
           FROM pg_index AS i CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
           JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
           WHERE i.indrelid = c.oid AND i.indisprimary), '[]'),
       (SELECT a.attname FROM pg_attribute AS a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
          AND a.attidentity <> 'a'
        ORDER BY EXISTS (SELECT FROM pg_index AS i
                         WHERE i.indrelid = c.oid AND a.attnum = ANY (i.indkey::smallint[])), a.attnum
        LIMIT 1),
       NOT EXISTS (SELECT FROM pg_trigger AS g
                   WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgtype & 1 = 0 AND g.tgtype & 16 <> 0)
       AND NOT EXISTS (SELECT FROM pg_rewrite AS r WHERE r.ev_class = c.oid)
FROM parse_ident(%s) AS p (parts)
JOIN pg_namespace AS n ON n.nspname = p.parts[1] JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.parts[2]
"""


class Gone(Exception):  # noqa: N818
    """The table is not there any more: dropped, or renamed."""


# ------------------------------------------------------------------------------------------------------------ schedule


def answered(begin: float, interval: float, oldest: int, ended: float) -> tuple[list[tuple[float, float]], int]:
    """([(due, wait)], the next number) of operations from number `oldest` on that were due until `ended`; in seconds.

    An application would have sent those behind the one that hung; so each has waited, from its own due time on.
    """
    following = max(oldest, math.floor((ended - begin) / interval + 1e-9)) + 1
    dues = [begin + number * interval for number in range(oldest, following)]
    return [(due, max(0.0, ended - due)) for due in dues], following


class Seconds:
    """Waits and errors by the second in which they were due. One thread adds, another takes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits: dict[int, list[float]] = {}
        self._errors: dict[int, int] = {}

    def add(self, waits: Iterable[tuple[float, float]]) -> None:
        """`waits`: (due in seconds since 1970, wait in seconds)."""
        with self._lock:
            for due, wait in waits:
                self._waits.setdefault(math.floor(due), []).append(round(wait * 1000, 3))

    def failed(self, at: float) -> None:
        with self._lock:
            self._errors[math.floor(at)] = self._errors.get(math.floor(at), 0) + 1

    def take(self, until: float) -> list[dict[str, Any]]:
        """[{second, waits_ms, errors}] of the seconds that are over at `until`; they are here no more."""
        with self._lock:
            over = sorted(second for second in {*self._waits, *self._errors} if second + 1 <= until)
            return [
                {"second": each, "waits_ms": self._waits.pop(each, []), "errors": self._errors.pop(each, 0)}
                for each in over
            ]


# ---------------------------------------------------------------------------------------------------------- operations


def connect(settings: dict[str, Any], first: str) -> Any:
    """An autocommit session that has executed `first`."""
    session = psycopg2.connect(**settings)
    session.autocommit = True
    rows(session, first)
    return session


def rows(session: Any, query: Any, *args: Any) -> list[tuple[Any, ...]]:
    with session.cursor() as cursor:
        cursor.execute(query, args or None)
        return list(cursor.fetchall()) if cursor.description else []


def locked(session: Any, table: Any, mode: str, operation: Any) -> str:
    """One message that takes the table's lock in `mode`, then does `operation`.

    Before a session waits for a lock it looks the table up, and where its cache has no answer (after any DDL) it takes
    a snapshot for that, lasting as long as the wait: every concurrent index build would wait for it. So the look-up
    has a transaction of its own; LOCK itself needs no snapshot.
    """
    name = sql.Literal(table.as_string(session))
    look_up = sql.SQL("BEGIN; SELECT has_table_privilege(to_regclass({}), 'SELECT'); COMMIT; ").format(name)
    lock = sql.SQL(f"LOCK TABLE ONLY {{}} IN {mode} MODE; ").format(table)
    return str((look_up + lock + operation).as_string(session))


def operations(session: Any, name: str, really: bool) -> list[str]:
    """What is done to a table, in turn: a read by key, a write. `really`: the write updates the row to itself."""
    found = rows(session, TABLE, name)
    if not found:
        raise Gone
    schema, relation, key, column, harmless = found[0]
    table = sql.Identifier(schema, relation)
    conditions = [condition(key, values) for values in sample(session, table, key)] if key else []
    # Without a key or a row the first place of the table is read, whether something is there or not.
    reads = conditions or [sql.SQL("ctid = '(0,1)'")]
    writes = conditions if really and conditions else [sql.SQL("false")]
    update = sql.SQL("UPDATE ONLY {0} SET {1} = {1} WHERE ").format(table, sql.Identifier(column or ""))
    lock_alone = sql.SQL("SELECT")
    writes = [update + each if column and (harmless or really) else lock_alone for each in writes]
    reads = [sql.SQL("SELECT ctid FROM ONLY {} WHERE ").format(table) + each for each in reads]
    return [
        text
        for read, write in zip(reads, itertools.cycle(writes))
        for text in (locked(session, table, "ACCESS SHARE", read), locked(session, table, "ROW EXCLUSIVE", write))
    ]


def sample(session: Any, table: Any, key: list[dict[str, str]]) -> list[tuple[str, ...]]:
    """Up to five keys as text, the same each time: the first three and the last two."""
    columns = [sql.Identifier(column["name"]) for column in key]
    texts = sql.SQL(", ").join(sql.SQL("{}::text").format(column) for column in columns)
    ends = []
    for direction, limit in (("ASC", 3), ("DESC", 2)):
        order = sql.SQL(", ").join(sql.SQL(f"{{}} {direction}").format(column) for column in columns)
        ends.append(sql.SQL(f"(SELECT {{}} FROM ONLY {{}} ORDER BY {{}} LIMIT {limit})").format(texts, table, order))
    return sorted(set(rows(session, locked(session, table, "ACCESS SHARE", sql.SQL(" UNION ALL ").join(ends)))))


def condition(key: list[dict[str, str]], values: tuple[str, ...]) -> Any:
    """<column> = '<value>'::<type> AND …; the type is PostgreSQL's own text."""
    pairs = [
        sql.SQL("{} = {}::").format(sql.Identifier(column["name"]), sql.Literal(value)) + sql.SQL(column["type"])
        for column, value in zip(key, values)  # noqa: B905  (a target's Python may be older than 3.10)
    ]
    return sql.SQL(" AND ").join(pairs)


class Prober(threading.Thread):
    """One connection that does the operations of one table, on schedule from `begin` on, until `enough`.

    begin, interval: monotonic seconds.  to_wall: what is added to them for the server's seconds since 1970.
    """

    def __init__(self, name: str, settings: dict[str, Any], plan: Callable[[Any], list[str]], interval: float) -> None:
        super().__init__(name=name, daemon=True)
        self.enough = threading.Event()
        self.begin = self.to_wall = 0.0
        self.gone = False
        self.waiting_since: float | None = None  # due time of the operation that is not answered yet
        self.longest = 0.0  # wait, in seconds, since somebody last looked
        self.samples = Seconds()
        self._settings, self._plan, self._interval = settings, plan, interval
        self._oldest = 0  # number of the first operation that is not answered
        self._operations: list[str] = []
        self._connect()

    def _connect(self) -> None:
        self._session = connect(self._settings, SESSION)
        self._cursor = self._session.cursor()
        self.pid = self._session.info.backend_pid

    def run(self) -> None:
        done, next_try = 0, self.begin
        while not self.enough.wait(max(0.0, next_try - time.monotonic())):
            self.waiting_since = self.begin + self._oldest * self._interval
            try:
                self._operate(done)
            except Gone:
                self.gone, self.waiting_since = True, None
                break
            except psycopg2.Error:
                self._forgive()
                next_try = time.monotonic() + self._interval
            else:
                done += 1
                self._answered(time.monotonic())
                next_try = self.begin + self._oldest * self._interval

    def _operate(self, number: int) -> None:
        if self._session is None:
            self._connect()
        if not self._operations:
            self._operations = self._plan(self._session)
        try:
            self._cursor.execute(self._operations[number % len(self._operations)])
        except psycopg2.ProgrammingError:  # a column of it is gone, or all of it: then this was no error
            self._operations = self._plan(self._session)
            raise

    def _answered(self, ended: float) -> None:
        waits, following = answered(self.begin, self._interval, self._oldest, ended)
        self.longest = max(self.longest, waits[0][1])
        self.samples.add((due + self.to_wall, wait) for due, wait in waits)
        self._oldest, self.waiting_since = following, None

    def _forgive(self) -> None:
        """Count the error; a session that is of no use any more is given up."""
        self.samples.failed(time.monotonic() + self.to_wall)
        if self._session and (self._session.closed or self._session.info.transaction_status != TRANSACTION_STATUS_IDLE):
            with contextlib.suppress(psycopg2.Error):
                self._session.close()
            self._session = None

    def take(self, last: bool) -> list[dict[str, Any]]:
        """The samples of the seconds in which all that was due is answered; all others too, when they are last."""
        settled = math.inf if last or self.gone else self.begin + self._oldest * self._interval + self.to_wall
        return [{"table": self.name, **each} for each in self.samples.take(settled)]

    def close(self) -> None:
        """End it. What is not answered now has waited until now."""
        self.enough.set()
        self.join(0.5)
        if self.waiting_since is not None:
            self._answered(time.monotonic())


# ------------------------------------------------------------------------------------------------------------- the run


class Probe:
    """The whole process: a thread a table, and the ledger."""

    def __init__(self, params: dict[str, Any]) -> None:
        self._params = params
        self._run = params["run"]
        self._settings = settings(params)
        self._ledger: Any = connect(self._settings, LEDGER_SESSION)
        self._ledger_seen = time.monotonic()
        self._controller = identity(params["controller_pid"])
        self._unsent: list[dict[str, Any]] = []
        self._named: set[tuple[str, float]] = set()
        self._lost: set[str] = set()
        self._aborted = False
        self._stopped = threading.Event()
        found = rows(self._ledger, TABLES, params["tables"]) if params["tables"] and params["measure"] else []
        self.tables, self.left_out = choose(found, params["max_tables"])
        interval = params["interval_ms"] / 1000
        self._probers = [Prober(name, self._settings, plan, interval) for name, plan in self._plans().items()]
        self._register()
        # From the monotonic clock to the server's, in which the ledger tells when its phases began and ended.
        before = time.monotonic()
        ((now,),) = rows(self._ledger, "SELECT extract(epoch FROM clock_timestamp())::double precision")
        self._begun = time.monotonic()
        for place, prober in enumerate(self._probers):
            prober.to_wall = now - (before + self._begun) / 2
            prober.begin = self._begun + interval * place / len(self._probers)  # not all at once

    def _plans(self) -> dict[str, Callable[[Any], list[str]]]:
        if not self._params["measure"]:
            return {}
        commit = f"UPDATE pgrollout.probe_commit SET at = clock_timestamp() WHERE run_id = {self._run:d}"
        plans: dict[str, Callable[[Any], list[str]]] = {COMMIT: lambda _: [commit]}
        for name in self.tables:
            plans[name] = functools.partial(operations, name=name, really=name in self._params["writes"])
        return plans

    def _register(self) -> None:
        about = {key: self._params[key] for key in ("interval_ms", "warn_ms", "alert_ms", "keep_days")}
        about.update(host=socket.gethostname(), pid=os.getpid(), tables=self.tables, left_out=self.left_out)
        about.update(measures=self._params["measure"], instead=self._params["instead"])
        ((begun,),) = rows(self._ledger, "SELECT pgrollout.probe_begin(%s, %s)", self._run, json.dumps(about))
        if not begun:
            raise Refused(
                f"Run {self._run} is not open, or has a probe already; a probe is started once for an open run."
            )

    def stop(self, *_: object) -> None:
        self._stopped.set()

    def work(self) -> None:
        """Measure until there is a reason to end; returns when all is written, or cannot be."""
        for prober in self._probers:
            prober.start()
        try:
            reason = self._measure()
        except Exception as error:  # nobody else would ever hear of it
            reason = f"it failed: {error!r}"
        for prober in self._probers:
            prober.close()
        self._collect(last=True)
        if self._tell("SELECT pgrollout.probe_beat(%s, %s, false)", self._run, json.dumps(self._unsent)) is not None:
            self._tell("SELECT pgrollout.probe_end(%s, %s)", self._run, reason)

    def _measure(self) -> str:
        """Why it ends, when it does."""
        next_beat, reason = self._begun + BEAT_S, ""
        while not reason:
            if self._stopped.wait(LOOK_S):
                reason = "it was sent a signal"
            elif time.monotonic() - self._begun > self._params["max_seconds"]:
                reason = f"it has run for {self._params['max_seconds']} s, the longest it may"
            elif time.monotonic() > next_beat:
                next_beat = time.monotonic() + BEAT_S
                reason = self._beat()
            self._look()
        return reason

    def _collect(self, last: bool = False) -> None:
        for prober in self._probers:
            self._unsent += prober.take(last)
            if prober.gone and prober.name not in self._lost:
                self._lost.add(prober.name)
                self._tell("SELECT pgrollout.probe_lost(%s, %s)", self._run, prober.name)

    def _beat(self) -> str:
        """Write what there is; why the probe has to end, '' where it goes on."""
        self._collect()
        alone = bool(self._controller) and identity(self._params["controller_pid"]) != self._controller
        self._tell("SELECT pgrollout.watch(%s, %s)", self._run, self._params["build_max_wait_s"])
        answer = self._tell("SELECT pgrollout.probe_beat(%s, %s, %s)", self._run, json.dumps(self._unsent), alone)
        if answer is None:
            silent = time.monotonic() - self._ledger_seen > UNREACHABLE_S
            return "the ledger cannot be reached" if silent or alone else ""
        self._unsent = []
        return str(answer)

    def _look(self) -> None:
        """Name whom a long wait is for, while it can be seen; ask the run to stop where a wait is too long."""
        for prober in self._probers:
            since, longest, behind = prober.waiting_since, prober.longest, ""
            prober.longest = 0.0
            waiting = time.monotonic() - since if since else 0.0
            if since and waiting > NAMED_S and (prober.name, since) not in self._named:
                self._named.add((prober.name, since))
                known = (self._run, prober.name, prober.pid, round(waiting * 1000))
                behind = self._tell("SELECT pgrollout.probe_stalled(%s, %s, %s, %s)", *known) or ""
            if 0 < self._params["abort_ms"] < max(waiting, longest) * 1000 and not self._aborted:
                self._abort(prober.name, max(waiting, longest) * 1000, behind)

    def _abort(self, table: str, waited_ms: float, behind: str) -> None:
        why = f"an operation on {table} has waited for {waited_ms:.0f} ms, probe_abort_ms is {self._params['abort_ms']}"
        why += f"; it waits behind {behind}" if behind else ""
        told = self._tell("SELECT pgrollout.probe_abort(%s, %s, %s)", self._run, why, self._params["limit"])
        self._aborted = told is not None

    def _tell(self, query: str, *args: Any) -> Any:
        """The ledger's answer ('' where it has none), or None where it cannot be reached; the next call tries again."""
        try:
            self._ledger = self._ledger or connect(self._settings, LEDGER_SESSION)
            answer = rows(self._ledger, query, *args)
        except psycopg2.Error:
            with contextlib.suppress(psycopg2.Error, AttributeError):
                self._ledger.close()
            self._ledger = None
            return None
        self._ledger_seen = time.monotonic()
        return answer[0][0] or "" if answer else ""


def settings(params: dict[str, Any]) -> dict[str, Any]:
    """Of libpq; what the inventory adds to them (connect_params) goes before what every module asks for."""
    more = {name: value for name, value in params["connect_params"].items() if value not in (None, "")}
    return {**libpq(params, f"pgrollout-probe/{params['run']}"), **more}


def choose(found: list[tuple[str, str | None]], most: int) -> tuple[list[str], list[str]]:
    """(the tables to look at, a sentence for each of the others)."""
    fit = [name for name, fault in found if not fault]
    left_out = [f"{name} {fault}" for name, fault in found if fault]
    return fit[:most], left_out + [f"{name} is one too many for probe_max_tables ({most})" for name in fit[most:]]


def identity(pid: int | None) -> str | None:
    """What tells a living process from a later one of the same number; None where there is none."""
    if not pid:
        return None
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]  # its start, in clock ticks since the machine's
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


# ------------------------------------------------------------------------------------------------------------- process


def detached(params: dict[str, Any]) -> dict[str, Any]:
    """Fork the probe into a session of its own; what it says once it has begun, or a Refused."""
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                become_probe(params, say)
        finally:
            os._exit(0)
    os.close(say)
    os.waitpid(child, 0)
    with os.fdopen(hear) as answer:
        said = json.loads(answer.read() or '{"failed": "The probe ended before it had begun."}')
    if "failed" in said:
        raise Refused(said["failed"])
    return dict(said)


def become_probe(params: dict[str, Any], say: int) -> None:
    """The detached process: tells through `say` how it begins, then measures."""
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.closerange(3, say)
    os.closerange(say + 1, 4096)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(15, b"pgrollout-probe")  # its name in ps and top (Linux)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    probe = None
    try:
        probe = Probe(params)
        answer = {"pid": os.getpid(), "tables": probe.tables, "left_out": probe.left_out}
    except Refused as error:
        answer = {"failed": str(error)}
    except psycopg2.Error as error:
        answer = {
            "failed": f"The downtime probe cannot work at {where(params)}: "
            f"{str(error).strip()} It needs a connection a table and two more; -e probe_enabled=false goes without it."
        }
    except Exception as error:  # nobody else would ever hear of it
        answer = {"failed": f"The downtime probe failed before it had begun: {error!r}"}
    with os.fdopen(say, "w") as out:
        json.dump(answer, out)
    if probe:
        signal.signal(signal.SIGTERM, probe.stop)
        probe.work()


def main() -> None:
    number = {"type": "int"}
    names = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "run": {"type": "int", "required": True},
            "measure": {"type": "bool", "default": True},
            "instead": {"type": "str", "default": ""},
            "build_max_wait_s": {"type": "int", "default": 1800},
            "tables": names,
            "writes": names,
            "interval_ms": {"type": "int", "default": 100},
            "warn_ms": {"type": "int", "default": 1000},
            "alert_ms": {"type": "int", "default": 30000},
            "abort_ms": {"type": "int", "default": 0},
            "limit": {"type": "str", "default": "all"},
            "max_tables": {"type": "int", "default": 20},
            "max_seconds": {"type": "int", "default": 43200},
            "keep_days": {"type": "int", "default": 30},
            "controller_pid": number,
            **OPTIONS,
            "connect_params": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    if psycopg2 is None:
        module.fail_json(
            msg=f"psycopg2 is not installed for {sys.executable} on this host; install it (python3-psycopg2)."
        )
    if not 10 <= module.params["interval_ms"] <= 100:
        module.fail_json(
            msg=f"interval_ms is {module.params['interval_ms']}; expected 10 to 100: at least ten operations a second."
        )
    if module.check_mode:
        module.exit_json(changed=True, pid=0, tables=[], left_out=[])
    try:
        module.exit_json(changed=True, **detached(module.params))
    except Refused as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
