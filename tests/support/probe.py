"""The downtime probe without Ansible around it: the module is started as Ansible does, its parameters on stdin."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.conftest import Database

ROOT = Path(__file__).resolve().parents[2]


def call(database: Database, run: int, *tables: str, **changes: Any) -> dict[str, Any]:
    """What the module answers; `changes` are further parameters."""
    params = {
        "run": run,
        "tables": tables,
        "login_host": database.host,
        "login_port": database.port,
        "login_user": "rollout",
        "login_db": database.name,
        "connect_params": {"passfile": database.passfile, "connect_timeout": 5},
    }
    given = json.dumps({"ANSIBLE_MODULE_ARGS": params | changes})
    main = "from tests.support.modules import load_module; load_module('pg_probe').main()"
    done = subprocess.run(
        [sys.executable, "-c", main], input=given, capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def lives(pid: int) -> bool:
    """Whether it is a running process: one that nobody has waited for yet is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@dataclass
class Probe:
    database: Database
    run: int
    pid: int
    left_out: list[str]

    def ask(self, what: str) -> Any:
        """The first row's one value of a query on this run's samples and events, None where there is no row."""
        found = self.database.query(what.replace("RUN", str(self.run)))
        return found[0][0] if found else None

    def longest(self, table: str) -> float:
        """The longest wait in seconds."""
        found = self.ask(
            "SELECT max(w) FROM pgrollout.probe_sample, unnest(waits_ms) AS w"
            f" WHERE run_id = RUN AND table_name = '{table}'"
        )
        return float(found or 0) / 1000

    def errors(self, table: str) -> int:
        return int(
            self.ask(
                "SELECT coalesce(sum(errors), 0) FROM pgrollout.probe_sample"
                f" WHERE run_id = RUN AND table_name = '{table}'"
            )
        )

    def stalled(self, table: str) -> str:
        """Wait until the probe has named whom `table` waits for."""
        said = f"SELECT detail FROM pgrollout.event WHERE run_id = RUN AND what = 'stall' AND detail LIKE '{table}:%'"
        return str(wait_until(lambda: self.ask(said), what=f"a stall of {table}"))

    def sampled(self, more: int = 1) -> None:
        """Wait for so many further samples of its own table: all is measured that was before."""
        count = "SELECT count(*) FROM pgrollout.probe_sample WHERE run_id = RUN AND table_name = 'commit'"
        until = self.ask(count) + more
        wait_until(lambda: self.ask(count) >= until, what=f"{more} more samples")

    def ended(self) -> str:
        """Wait until the process is gone; why it says it ended."""
        wait_until(lambda: not lives(self.pid), 30, "the end of the probe")
        return str(self.ask("SELECT reason FROM pgrollout.probe WHERE run_id = RUN"))


@contextlib.contextmanager
def probing(database: Database, run: int, *tables: str, **changes: Any) -> Iterator[Probe]:
    """A probe that is at work, and is ended by force where it has not ended when the block is left."""
    answer = call(database, run, *tables, **changes)
    assert "pid" in answer, answer
    probe = Probe(database, run, answer["pid"], answer["left_out"])
    try:
        if changes.get("measure", True):
            probe.sampled()
        yield probe
    finally:
        if lives(probe.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(probe.pid, signal.SIGKILL)
