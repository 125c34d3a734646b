"""Filling a column of every row: one UPDATE, a loop of fixed batches, and the engine, with the same writes.

Each row gets a drawn code and an entry in a registry, by a trigger as in the rollout, and its former value is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median

from bench.application import Application, Measured, measured
from bench.lab import Lab
from bench.report import number, reach, spread, table
from tests.conftest import Database
from tests.support.ledger import carry_out, claim, finish, install, steps_of

ROWS = 300_000
BATCH = 5_000
RATE = 400  # operations a second, where latency is measured
BEFORE_S = 5
FLAT_OUT = ("uuid",)  # keys over which the application's throughput is measured too: the rollout's
KEYS = {"bigint": "bigint", "uuid": "uuid"}
VALUES = {"bigint": "i", "uuid": "md5('task/' || i)::uuid"}

SCHEMA = """
CREATE TABLE task (
    id {key} PRIMARY KEY, short_id varchar(20), title text NOT NULL, description text, state text NOT NULL,
    priority integer NOT NULL, updated_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO task (id, title, description, state, priority)
SELECT {value}, 'task ' || i, repeat('what is to do ', i % 20),
       (ARRAY['backlog', 'ready', 'in_progress', 'review', 'done'])[1 + i % 5], i % 10
FROM generate_series(1, {rows}) AS i;
CREATE INDEX task_short_id ON task (short_id) WHERE short_id IS NOT NULL;
CREATE INDEX task_state ON task (state, priority);
CREATE TABLE code_registry (short_id varchar(20) PRIMARY KEY, entity_id text NOT NULL);
CREATE FUNCTION give_code() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    LOOP
        INSERT INTO code_registry (short_id, entity_id)
        VALUES (coalesce(NEW.short_id, 'TSK-' || upper(left(md5(random()::text), 10))), NEW.id::text)
        ON CONFLICT DO NOTHING RETURNING short_id INTO NEW.short_id;
        EXIT WHEN FOUND;
    END LOOP;
    RETURN NEW;
END
$$;
CREATE TRIGGER give_code BEFORE INSERT OR UPDATE OF short_id ON task FOR EACH ROW EXECUTE FUNCTION give_code();
"""

# The former value needs no second look at the row, since the author knows that it is NULL.
WRITES = """
WITH changed AS (
    UPDATE task AS t SET short_id = t.short_id WHERE {rows} RETURNING t.id, t.short_id
)
INSERT INTO pgrollout.row_change (step_id, key, old, new)
SELECT 'bench', jsonb_build_object('id', id), '{{"short_id": null}}', jsonb_build_object('short_id', short_id)
FROM changed
"""
LOOP = """
CREATE PROCEDURE fixed_batches() LANGUAGE plpgsql AS $$
DECLARE
    v_from {key} := {first};
    v_to {key};
BEGIN
    LOOP
        SELECT id INTO v_to FROM (SELECT id FROM task WHERE id > v_from ORDER BY id LIMIT {batch}) AS b
        ORDER BY id DESC LIMIT 1;
        EXIT WHEN v_to IS NULL;
        {writes};
        COMMIT;
        v_from := v_to;
    END LOOP;
END
$$
"""
FIRST = {"bigint": "0", "uuid": "'00000000-0000-0000-0000-000000000000'"}
STEP = """
-- Step: codes
-- Backfill: by id
-- New rows: trigger give_code
UPDATE task AS t SET short_id = t.short_id WHERE t.short_id IS NULL;
"""


def one_update(_lab: Lab, database: Database, _key: str) -> None:
    database.execute(WRITES.format(rows="t.short_id IS NULL"))


def fixed_loop(_lab: Lab, database: Database, key: str) -> None:
    writes = WRITES.format(rows="t.id > v_from AND t.id <= v_to AND t.short_id IS NULL")
    database.execute(LOOP.format(key=key, first=FIRST[key], batch=BATCH, writes=writes))
    database.execute("CALL fixed_batches()")


def engine(lab: Lab, database: Database, _key: str) -> None:
    """The steps as roles/apply carries them out, vacuum between parts included."""
    size = database.value("SELECT pg_table_size('task')")
    run_id = claim(database)
    carry_out(database, run_id, [step | {"bytes": size} for step in steps_of(lab.scratch("rollout"), STEP)])
    finish(database, run_id)


WAYS: dict[str, Callable[[Lab, Database, str], None]] = {
    "one UPDATE": one_update,
    f"loop of {BATCH:,}": fixed_loop,
    "ours": engine,
}

# An update of one row that touches no index, at a fixed rate; and the same as often as it goes.
APPLICATION = "\\set i random(1, :rows)\nUPDATE task SET updated_at = now() WHERE id = {};"
VALUE = {"bigint": ":i", "uuid": "md5('task/' || :i)::uuid"}


@dataclass
class Found:
    """Of one way and key, a value a run."""

    rows_per_s: list[float] = field(default_factory=list)
    table_growth: list[float] = field(default_factory=list)
    index_growth: list[float] = field(default_factory=list)
    at_rate: list[Measured] = field(default_factory=list)
    flat_out: list[Measured] = field(default_factory=list)


def prepare(key: str, rows: int) -> Callable[[Database], None]:
    def made(database: Database) -> None:
        install(database)
        database.execute(SCHEMA.format(key=key, value=VALUES[key], rows=rows))
        database.execute("VACUUM (ANALYZE) task")

    return made


def sizes(database: Database) -> tuple[int, int]:
    ((heap, indexes),) = database.query("SELECT pg_relation_size('task'), pg_indexes_size('task')")
    return int(heap), int(indexes)


def idle(lab: Lab, template: str, way: str, key: str, rows: int, found: Found) -> None:
    with lab.database(template) as database:
        heap, indexes = sizes(database)
        began = time.monotonic()
        WAYS[way](lab, database, key)
        found.rows_per_s.append(rows / (time.monotonic() - began))
        left = database.value("SELECT count(*) FROM task WHERE short_id IS NULL")
        kept = database.value("SELECT count(*) FROM pgrollout.row_change")
        if (left, kept) != (0, rows):
            raise ValueError(f"{way} over {key} left {left} rows and kept {kept} of {rows}: the bench is wrong.")
        after = sizes(database)
        found.table_growth.append(after[0] / heap)
        found.index_growth.append(after[1] / indexes)


def loaded(lab: Lab, template: str, way: str, key: str, rows: int, rate: float | None) -> Measured:
    with lab.database(template) as database:
        application = Application(lab, database, [APPLICATION.format(VALUE[key])], rate, {"rows": rows})
        return measured(application, lambda: WAYS[way](lab, database, key), BEFORE_S)


def run(lab: Lab, scale: float, runs: int, only: Iterable[str] = ()) -> Iterator[str]:
    """The tables as Markdown, anew after each turn."""
    rows = round(ROWS * scale)
    keys = [key for key in KEYS if not set(only) & set(KEYS) or key in only]
    templates = {key: lab.template(f"bench_{key}", prepare(key, rows)) for key in keys}
    found = {(key, way): Found() for key in keys for way in WAYS}
    for turn in range(runs):
        for (key, way), result in found.items():
            idle(lab, templates[key], way, key, rows, result)
            result.at_rate.append(loaded(lab, templates[key], way, key, rows, RATE))
            if key in FLAT_OUT:
                result.flat_out.append(loaded(lab, templates[key], way, key, rows, None))
            print(f"backfill {turn + 1}/{runs} {key} {way}: {result.rows_per_s[-1]:,.0f} rows/s", flush=True)
        yield _tables(found, rows, turn + 1)


def _tables(found: dict[tuple[str, str], Found], rows: int, runs: int) -> str:
    body = table(
        ("key", "way", "rows/s on an idle server", "of one UPDATE", "table after", "indexes after",
         f"application at {RATE}/s: p99, ms", "its longest answer, ms", "rows/s beside it",
         "flat-out application: throughput, % of before", "rows/s beside it"),
        [_row(key, way, found, rows) for key, way in found],
    )  # fmt: skip
    words = (
        f"{rows:,} rows, {runs} runs of each, min / median / max. Growth is size after over size before. "
        "The application is 4 clients that update one row each; flat out is as often as they can, all cores busy."
    )
    return f"{words}\n\n{body}\n\n{_reach(found)}"


def _row(key: str, way: str, found: dict[tuple[str, str], Found], rows: int) -> list[str]:
    result = found[key, way]
    base = median(found[key, "one UPDATE"].rows_per_s)
    return [
        key,
        way,
        spread(result.rows_per_s),
        f"{100 * median(result.rows_per_s) / base:.0f} %",
        "x " + spread(result.table_growth),
        "x " + spread(result.index_growth),
        spread(m.during.p99_ms for m in result.at_rate),
        spread(m.during.longest_ms for m in result.at_rate),
        spread(rows / m.seconds for m in result.at_rate),
        spread(100 * throughput(m) for m in result.flat_out),
        spread(rows / m.seconds for m in result.flat_out),
    ]


def throughput(found: Measured) -> float:
    """Operations a second during the work over those before it."""
    return found.during.per_second / max(found.before.per_second, 1e-9)


def _reach(found: dict[tuple[str, str], Found]) -> str:
    lines: list[tuple[str, str, str, bool | None, str]] = []
    for key in dict.fromkeys(key for key, _ in found):
        ours, base = found[key, "ours"], found[key, "one UPDATE"]
        speed = median(ours.rows_per_s) / median(base.rows_per_s)
        growth = median(ours.table_growth)
        lines += [
            (f"rows/s of one UPDATE, idle ({key})", "at least 90 %", f"{100 * speed:.0f} %", speed >= 0.9, ""),
            (f"table after every row was changed ({key})", "at most x 1.4", f"x {number(growth)}", growth <= 1.4, ""),
        ]
        if ours.flat_out:
            part = median(throughput(m) for m in ours.flat_out)
            other = median(throughput(m) for m in base.flat_out)
            cause = f"one UPDATE leaves it {100 * other:.0f} %; {os.cpu_count()} cores that were busy are shared"
            what = f"application's throughput, flat out ({key})"
            lines.append((what, "at least 85 %", f"{100 * part:.0f} %", part >= 0.85, cause if part < 0.85 else ""))
    return reach(lines)
