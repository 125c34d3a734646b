"""What the demo's rollout did, in ten seconds of reading: from the ledger of the demo's database.

python -m demo.summary [--folder .demo]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg2

from demo.load import DATABASE
from demo.server import MIGRATION_ROLE, Server, ThrowawayError

# The latest way forward of each phase that was not rolled back since, with its steps as they stand.
PHASES = """
SELECT p.phase, count(DISTINCT s.migration), count(*), coalesce(sum(s.rows) FILTER (WHERE s.kind = 'BACKFILL'), 0),
       extract(epoch FROM max(p.ended_at) - min(p.started_at)), coalesce(max(s.lock_hold_ms), 0)
FROM pgrollout.phase_run AS p
JOIN pgrollout.step AS s ON s.phase = p.phase AND s.run_id = p.run_id AND s.state = 'done'
WHERE p.direction = 'apply' AND p.status = 'completed'
GROUP BY p.phase ORDER BY p.phase
"""
RUNS = """
SELECT r.run_id, r.kind, r.status, extract(epoch FROM r.ended_at - r.started_at)
FROM pgrollout.run AS r ORDER BY r.run_id
"""
BACKUP = """
SELECT b.evidence ->> 'bytes', b.evidence ->> 'rows', b.evidence ->> 'restore_seconds' FROM pgrollout.backup AS b
ORDER BY b.backup_id DESC LIMIT 1
"""
# What the last run found that it left as it was.
INTEGRITY = """
SELECT 'data integrity: ' || e.detail FROM pgrollout.event AS e
WHERE e.what = 'integrity' AND e.run_id = (SELECT max(run_id) FROM pgrollout.run) ORDER BY e.event_id
"""
GATES = "SELECT line FROM pgrollout.gate_lines()"
NEXT = """Try next:
  ansible-playbook status.yml   -l local                        where it stands
  ansible-playbook migrate.yml  -l local                        again: changed=0
  ansible-playbook validate.yml -l local --tags phase3          every object and every check of a phase
  ansible-playbook rollback.yml -l local --tags immediate       the features off, at once
  ansible-playbook rollback.yml -l local --tags full -e rollback_confirm=local     all the way back, with proof
  (first: source .venv/bin/activate)"""


def lines(connection: Any) -> list[str]:
    """The summary of one database, ready to print."""
    phases, runs, backups = (_rows(connection, query) for query in (PHASES, RUNS, BACKUP))
    text = ["", f"{'phase':8} {'migrations':>10} {'steps':>6} {'rows changed':>13} {'time':>8} {'longest lock':>13}"]
    for name, migrations, steps, rows, seconds, lock_ms in phases:
        text.append(f"{name:8} {migrations:>10} {steps:>6} {int(rows):>13,} {seconds:>6.1f} s {lock_ms:>10.1f} ms")
    text.append("")
    text += [f"run {run_id}: {kind} {status} in {seconds or 0:.0f} s" for run_id, kind, status, seconds in runs]
    for size, rows, seconds in backups:
        megabytes = int(size) / 1024**2
        text.append(f"backup: {megabytes:.0f} MB, {int(rows):,} rows, restored and compared in {float(seconds):.0f} s")
    text.append("validated: every object by name, definition and validity, and every check of each validate.sql")
    text += [line for query in (INTEGRITY, GATES) for (line,) in _rows(connection, query)]
    return [*text, "", NEXT]


def _rows(connection: Any, query: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo.summary", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default=Path(".demo"), type=Path)
    args = parser.parse_args(argv)
    try:
        with contextlib.closing(Server(args.folder).connect(DATABASE, MIGRATION_ROLE)) as connection:
            print("\n".join(lines(connection)))
    except (ThrowawayError, psycopg2.Error) as error:
        print(str(error).strip(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
