"""How long an application waits while the whole rollout is applied beneath it, by what applies it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bench.application import Application, Measured, Reader, Witness, measured
from bench.lab import Lab
from bench.report import number, reach, spread, table
from bench.roadmap import units
from bench.tools import TOOLS, Outcome, Start, absent, ours
from demo.load import SEED
from tests.conftest import Database

RATE = 200  # operations a second: a third of what two shared cores can do beside a build
BEFORE_S = 10
OURS = "ours"

READ = "SELECT title, kanban_state, priority FROM project_management_tasks WHERE id = md5('{seed}/task/' || :i)::uuid;"
WRITE = "UPDATE {table} SET {column} = {column} WHERE id = md5('{seed}/{kind}/' || :i)::uuid;"
# (kind of key, table, column that is written, rows at scale 1, how many of the operations)
WRITES = (
    ("task", "project_management_tasks", "kanban_state", 300_000, 4),
    ("project", "project_management_projects", "status", 1_000, 1),
    ("epic", "project_management_epics", "kanban_state", 10_000, 1),
    ("prd", "project_management_prds", "kanban_state", 30_000, 1),
    ("agent", "agents", "status", 500, 1),
)


def scripts() -> list[str]:
    """Eight reads of a task by its key, and as many writes, half of them of tasks."""
    drawn = "\\set i random(0, :{kind}s - 1)\n"
    reads = [drawn.format(kind="task") + READ.format(seed=SEED)] * 8
    writes = [
        drawn.format(kind=kind) + WRITE.format(seed=SEED, table=name, column=column, kind=kind)
        for kind, name, column, _, times in WRITES
        for _ in range(times)
    ]
    return reads + writes


def rows(scale: float) -> dict[str, int]:
    """How many of each kind there are: {tasks: 300000, …}."""
    return {f"{kind}s": max(4, round(at_one * scale)) for kind, _, _, at_one, _ in WRITES}


@dataclass(frozen=True)
class Stalled:
    """One rollout: what the application felt, for whom it waited (ms), and what the tool said."""

    measured: Measured
    waits: dict[str, float]
    behind: str  # what the longest wait for the migration was behind
    readers: int
    outcome: Outcome
    lock_timeout_ms: float = 0.0


def once(lab: Lab, template: str, tool: str, scale: float) -> Stalled:
    with lab.database(template) as database:
        folder = lab.scratch(tool)
        start: Start = ours(lab, database, folder) if tool == OURS else TOOLS[tool](lab, database, folder, units())
        outcomes: list[Outcome] = []
        application = Application(lab, database, scripts(), RATE, rows(scale))
        with Witness(database) as witness, Reader(database) as reader:
            felt = measured(application, lambda: outcomes.append(Outcome.of(start())), BEFORE_S)
        timeout = _lock_timeout(database) if tool == OURS else 0.0
        return Stalled(felt, witness.longest, witness.behind, reader.came, outcomes[0], timeout)


def _lock_timeout(database: Database) -> float:
    """The longest lock timeout that was in force: 50 ms, doubled after every ten failures up to 500 ms."""
    attempts = database.value("SELECT coalesce(max(attempts), 0) FROM pgrollout.step")
    return float(min(500, 50 * 2 ** (max(attempts - 1, 0) // 10)))


def run(lab: Lab, scale: float, runs: int, only: Iterable[str] = ()) -> Iterator[str]:
    """The tables as Markdown, anew after each measurement."""
    template = lab.template("bench_stall", scale=str(scale))
    tools = [tool for tool in (OURS, *TOOLS) if not only or tool in only]
    missing = {tool: absent(tool) for tool in tools if absent(tool)}
    found: dict[str, list[Stalled]] = {tool: [] for tool in tools if tool not in missing}
    for turn in range(runs):
        for tool, stalls in found.items():
            stalls.append(once(lab, template, tool, scale))
            last = stalls[-1]
            took = f"{last.measured.seconds:.0f} s"
            print(f"stall {turn + 1}/{runs} {tool}: {took}, {last.waits}, {last.behind}, {last.outcome}", flush=True)
            yield _tables(found, missing, scale)


def _tables(found: dict[str, list[Stalled]], missing: dict[str, str], scale: float) -> str:
    body = table(
        ("applied by", "runs", "took, s", "longest answer, ms", "longest lock wait for the migration, ms", "p99, ms",
         "p99 before, ms", "answered within 100 ms, % of before", "failed", "that lock wait was behind", "outcome"),
        [_row(tool, stalls) for tool, stalls in found.items() if stalls]
        + [[tool, "0", *["-"] * 8, why] for tool, why in missing.items()],
    )  # fmt: skip
    readers = sum(stalled.readers for stalls in found.values() for stalled in stalls)
    words = (
        f"{rows(scale)['tasks']:,} tasks, 4 clients, {RATE} operations a second (half reads, half updates), a reader "
        f"that stays 5 s once in 15 s ({readers} came). Columns with three figures: min / median / max over the runs."
    )
    return f"{words}\n\n{body}\n\n{_reach(found)}"


def _row(tool: str, stalls: list[Stalled]) -> list[str]:
    of = [stalled.measured for stalled in stalls]
    return [
        tool,
        str(len(stalls)),
        spread(m.seconds for m in of),
        spread(m.during.longest_ms for m in of),
        spread(s.waits.get("migration", 0.0) for s in stalls),
        spread(m.during.p99_ms for m in of),
        spread(m.before.p99_ms for m in of),
        spread(100 * m.during.in_time / max(m.before.in_time, 1e-9) for m in of),
        str(sum(m.during.failed for m in of)),
        max(stalls, key=lambda s: s.waits.get("migration", 0.0)).behind,
        "; ".join(dict.fromkeys("applied" if s.outcome.ok else f"failed: {s.outcome.said}" for s in stalls)),
    ]


def _reach(found: dict[str, list[Stalled]]) -> str:
    stalls = found.get(OURS, [])
    if not stalls:
        return reach([("longest application wait laid to us", "under 100 ms + lock_timeout", "-", None, "")])
    worst = max(stalls, key=lambda s: s.waits.get("migration", 0.0) - s.lock_timeout_ms)
    wait, allowed = worst.waits.get("migration", 0.0), 100 + worst.lock_timeout_ms
    return reach(
        [
            (
                "longest application wait laid to us",
                f"under 100 ms + the lock_timeout in force ({number(worst.lock_timeout_ms)} ms)",
                f"{number(wait)} ms",
                wait < allowed,
                "" if wait < allowed else f"behind {worst.behind}",
            )
        ]
    )
