"""What a rollout costs beside the time in which the server works for it; on one database and on more."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple

import yaml

from bench.lab import Lab
from bench.report import number, reach, spread, table
from bench.tools import Outcome
from tests.conftest import Database, Started

HOSTS = (1, 2, 4)
# %m [%p] %q%u@%d %a of demo/server.py, then what log_min_duration_statement says.
LINE = re.compile(r"(\S+ \S+) UTC \[\d+\] rollout@(\S+) (.*?) ?LOG:  duration: ([\d.]+) ms")


class Statement(NamedTuple):
    database: str
    began: float  # seconds since 1970
    ended: float


def read_log(lines: Iterable[str]) -> list[Statement]:
    """Statements of the migration role, without those of the probe, which measures beside the work."""
    found = []
    for line in lines:
        if (match := LINE.match(line)) and not match[3].startswith("pgrollout-probe"):
            ended = datetime.fromisoformat(match[1] + "+00:00").timestamp()
            found.append(Statement(match[2], ended - float(match[4]) / 1000, ended))
    return found


def busy(statements: Sequence[Statement]) -> float:
    """Seconds in which at least one of them ran: what runs beside another counts once."""
    total, until = 0.0, 0.0
    for statement in sorted(statements, key=lambda each: each.began):
        total += max(0.0, statement.ended - max(statement.began, until))
        until = max(until, statement.ended)
    return total


@dataclass(frozen=True)
class Spent:
    seconds: float
    server: float
    steps: int

    @property
    def overhead(self) -> float:
        return self.seconds - self.server


def inventory(folder: Path, databases: Sequence[Database]) -> Path:
    """As inventories/local, a host a database."""
    hosts = {
        f"db{number}": {"ansible_connection": "local", "postgresql_db": database.name}
        for number, database in enumerate(databases, 1)
    }
    path = folder / "hosts.yml"
    path.write_text(yaml.safe_dump({"local": {"hosts": hosts}}))
    return path


def _start(lab: Lab, databases: Sequence[Database], folder: Path) -> Started:
    """One ansible-playbook over all of them, in the place of inventories/local's own host."""
    shared = {name: value for name, value in databases[0].variables().items() if name != "postgresql_db"}
    given = shared | {"backup_dir": str(folder / "backups")}
    where = ("-i", str(inventory(folder, databases)), "-l", "local:!demo")
    return lab.playbook().start("migrate.yml", *where, variables=given)


def once(lab: Lab, template: str, hosts: int) -> Spent:
    with ExitStack() as stack:
        databases = [stack.enter_context(lab.database(template)) for _ in range(hosts)]
        for database in databases:
            lab.administer("ALTER DATABASE {} SET log_min_duration_statement = 0", database.name)
        folder = lab.scratch("overhead")
        read_from = lab.server.log.stat().st_size
        began = time.monotonic()
        outcome = Outcome.of(_start(lab, databases, folder))
        seconds = time.monotonic() - began
        if not outcome.ok:
            raise ValueError(f"the rollout on {hosts} databases failed: {outcome.said}")
        with lab.server.log.open(errors="replace") as log:
            log.seek(read_from)
            names = {database.name for database in databases}
            statements = [each for each in read_log(log) if each.database in names]
        steps = sum(database.value("SELECT count(*) FROM pgrollout.step") for database in databases)
        return Spent(seconds, busy(statements), steps)


def run(lab: Lab, scale: float, runs: int, only: Iterable[str] = ()) -> Iterator[str]:
    """The tables as Markdown, anew after each measurement."""
    template = lab.template("bench_stall", scale=str(scale))
    counts = [hosts for hosts in HOSTS if not only or str(hosts) in only]
    found: dict[int, list[Spent]] = {hosts: [] for hosts in counts}
    for turn in range(runs):
        for hosts, spent in found.items():
            spent.append(once(lab, template, hosts))
            print(f"overhead {turn + 1}/{runs} {hosts} hosts: {spent[-1]}", flush=True)
            yield _tables(found, scale)


def _tables(found: dict[int, list[Spent]], scale: float) -> str:
    body = table(
        ("databases", "runs", "took, s", "server at work, s", "overhead, s", "steps", "overhead a step, s"),
        [
            [
                str(hosts),
                str(len(spent)),
                spread(each.seconds for each in spent),
                spread(each.server for each in spent),
                spread(each.overhead for each in spent),
                str(spent[0].steps),
                spread(each.overhead / each.steps for each in spent),
            ]
            for hosts, spent in found.items()
            if spent
        ],
    )
    return f"{round(300_000 * scale):,} tasks a database.\n\n{body}\n\n{_reach(found)}"


def _reach(found: dict[int, list[Spent]]) -> str:
    lines: list[tuple[str, str, str, bool | None, str]] = []
    one = found.get(1)
    if one:
        whole = median(each.overhead for each in one)
        step = median(each.overhead / each.steps for each in one)
        lines += [
            ("overhead of the whole rollout, one host", "under 30 s", f"{number(whole)} s", whole < 30, "see above"),
            ("overhead a step", "at most 0.5 s", f"{number(step)} s", step <= 0.5, ""),
        ]
    if one and found.get(4):
        times = median(each.overhead for each in found[4]) / median(each.overhead for each in one)
        cause = "" if times < 1.5 else "`serial: 1`: one database after the other, until fleets come"
        lines.append(("overhead on four against one", "under x 1.5", f"x {number(times)}", times < 1.5, cause))
    return reach(lines)
