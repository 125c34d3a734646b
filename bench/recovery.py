"""A concurrent build whose session and client are killed before its end; then the same command again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.lab import Lab
from bench.report import reach, table
from bench.roadmap import Unit
from bench.tools import TOOLS, Outcome, Start, absent, ours
from tests.conftest import Database
from tests.support.rollouts import write_rollout
from tests.support.waiting import wait_until

INDEX = "idx_task_priority_status"
BUILD = "CREATE INDEX CONCURRENTLY {}{} ON project_management_tasks (priority, kanban_state, created_at DESC)"
# For the tools with and without the words that the roadmap has and that hide a leftover.
SPELLINGS = {"CREATE INDEX CONCURRENTLY": "", "… IF NOT EXISTS": "IF NOT EXISTS "}

BUILDER = """
SELECT pid FROM pg_stat_progress_create_index
WHERE datname = current_database() AND phase = 'waiting for old snapshots'
"""
VALID = "SELECT coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)), false)"
EXISTS = "SELECT to_regclass(%s) IS NOT NULL"


@dataclass(frozen=True)
class Recovered:
    left: str  # what the kill left: nothing, INVALID
    again: Outcome
    valid: bool


@contextlib.contextmanager
def old_snapshot(database: Database) -> Iterator[None]:
    """A transaction that every concurrent build waits for at its end, so that the kill comes at the same place."""
    with contextlib.closing(database.connect(autocommit=False)) as connection, connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT FROM agents LIMIT 1")
        yield


def once(lab: Lab, template: str, make: Callable[[Database, Path], Start]) -> Recovered:
    with lab.database(template) as database:
        start = make(database, lab.scratch("recovery"))
        with old_snapshot(database):
            first = start()
            ((pid,),) = wait_until(lambda: database.query(BUILDER), 300, "the build's last phase")
            # The client first: it would clear up after itself if it saw its session end.
            first.kill()
            database.execute("SELECT pg_terminate_backend(%s)", pid)
            wait_until(lambda: not database.query(BUILDER), what="the end of the killed build")
        left = "nothing" if not database.value(EXISTS, INDEX) else "a valid index"
        if left != "nothing" and not database.value(VALID, INDEX):
            left = "an INVALID index"
        again = Outcome.of(start())
        return Recovered(left, again, bool(database.value(VALID, INDEX)))


def _ours(lab: Lab) -> Callable[[Database, Path], Start]:
    def make(database: Database, folder: Path) -> Start:
        apply = BUILD.format("", INDEX) + ";\n"
        files = {
            "phase1/001_build/apply.sql": apply,
            "phase1/001_build/rollback.sql": f"DROP INDEX CONCURRENTLY {INDEX};\n",
        }
        rollout = write_rollout(folder / "rollout", files)
        return ours(lab, database, folder, rollout_dir=str(rollout))

    return make


def _tool(lab: Lab, tool: str, spelling: str) -> Callable[[Database, Path], Start]:
    unit = Unit("build", (BUILD.format(SPELLINGS[spelling], INDEX),), transactional=False)
    return lambda database, folder: TOOLS[tool](lab, database, folder, [unit])


def run(lab: Lab, scale: float, runs: int, only: Iterable[str] = ()) -> Iterator[str]:
    """The tables as Markdown, anew after each measurement."""
    template = lab.template("bench_stall", scale=str(scale))
    ways = {("ours", "CREATE INDEX CONCURRENTLY"): _ours(lab)}
    tools = [tool for tool in TOOLS if not only or tool in only]
    ways |= {(tool, how): _tool(lab, tool, how) for tool in tools if not absent(tool) for how in SPELLINGS}
    found: dict[tuple[str, str], list[Recovered]] = {way: [] for way in ways}
    for turn in range(runs):
        for way, make in ways.items():
            found[way].append(once(lab, template, make))
            print(f"recovery {turn + 1}/{runs} {' '.join(way)}: {found[way][-1]}", flush=True)
            yield _tables(found, scale)


def _tables(found: dict[tuple[str, str], list[Recovered]], scale: float) -> str:
    lines = [[*way, *_row(results)] for way, results in found.items() if results]
    lines += [[tool, "", "", why, ""] for tool in TOOLS if (why := absent(tool))]
    body = table(("applied by", "statement", "the kill left", "the same command again", "index in the end"), lines)
    built = [result.valid for result in found["ours", "CREATE INDEX CONCURRENTLY"]]
    said = f"{sum(built)} of {len(built)} times"
    return f"{round(300_000 * scale):,} tasks, {len(built)} runs each.\n\n{body}\n\n" + reach(
        [("a killed build is built by the same command again", "always", said, all(built), "")]
    )


def _row(results: list[Recovered]) -> list[str]:
    def each(values: Iterable[str]) -> str:
        return "; ".join(dict.fromkeys(values))

    return [
        each(result.left for result in results),
        each("succeeds" if result.again.ok else f"fails: {result.again.said}" for result in results),
        each("valid" if result.valid else "INVALID" for result in results),
    ]
