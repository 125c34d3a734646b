"""`--check --diff` only reads: it waits for nobody but ACCESS EXCLUSIVE, writes nothing and says what it would do."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgrollout.rollout.load import load_rollout
from tests.support.pictures import differences, picture
from tests.support.plans import plan_of, steps_of_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.server import Server
    from tests.conftest import Database, Playbook, Run

ROOT = Path(__file__).resolve().parents[2]
CHECK = ("migrate.yml", "--check", "--diff")


@contextlib.contextmanager
def everything_locked(database: Database) -> Iterator[None]:
    """EXCLUSIVE on every user table: it excludes every lock but ACCESS SHARE."""
    tables = database.query(
        "SELECT c.oid::regclass::text FROM pg_class AS c WHERE c.relkind = 'r' "
        "AND c.relnamespace::regnamespace::text IN ('public', 'pgrollout')"
    )
    assert len(tables) >= 8
    with contextlib.closing(database.connect(autocommit=False, application_name="everything locked")) as holder:
        holder.cursor().execute(f"LOCK TABLE {', '.join(name for (name,) in tables)} IN EXCLUSIVE MODE")
        yield


def half_migrated(database: Database) -> None:
    """Phase 1, and the first changes of phase 2, as a run would leave them that was killed."""
    plan = plan_of(database, load_rollout(str(ROOT / "sql")))
    for step in [step for step in steps_of_plan(plan) if step["phase"] in ("phase1", "phase2")][:25]:
        database.execute(step["sql"])


def sessions(lines: list[str]) -> list[list[str]]:
    """The first word of each statement that a server's log has, session by session."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if match := re.search(r"\[(\d+)\].* statement: +(\w+)", line):
            found.setdefault(match[1], []).append(match[2].upper())
    return list(found.values())


def only_reads(database: Database, server: Server, playbook: Playbook) -> Run:
    """A plan while everything is locked, and what the server heard: reads, and the facts query, rolled back."""
    with contextlib.closing(server.connect()) as superuser, superuser.cursor() as cursor:
        cursor.execute(f"ALTER DATABASE \"{database.name}\" SET log_statement = 'all'")
    before, size = picture(database), server.log.stat().st_size
    with everything_locked(database):
        run = playbook(*CHECK, database=database, timeout=120)
    with server.log.open(errors="replace") as log:
        log.seek(size)
        heard = sessions([line for line in log if f"@{database.name} pgrollout" in line])
    assert sum("DO" in words for words in heard) == 1, "the facts query was not heard, or twice"
    for words in heard:
        assert set(words) <= {"BEGIN", "SELECT", "SET", "SHOW", "DO", "COMMIT", "ROLLBACK"}
        assert ("COMMIT" in words) <= (set(words) <= {"BEGIN", "SELECT", "SHOW", "COMMIT"}), words
    assert differences(before, picture(database)) == []
    assert run.changed == 0
    return run


@pytest.mark.parametrize("state", ["fresh", "half migrated"])
def test_the_plan_only_reads(empty_database: Database, server: Server, playbook: Playbook, state: str) -> None:
    if state == "half migrated":
        half_migrated(empty_database)
    said = only_reads(empty_database, server, playbook).stdout
    assert "in the way now: pid" in said
    assert "application 'everything locked'" in said
    first = "phase1: 16 to do (16 concurrent builds or drops)" if state == "fresh" else "phase1: 16 done"
    assert first in said
    assert re.search(r"phase3: 44 to do \(.* backfills.*\); strongest lock ACCESS EXCLUSIVE", said)


@pytest.mark.ci
def test_the_plan_of_what_is_migrated_only_reads(migrated: Database, server: Server, playbook: Playbook) -> None:
    said = only_reads(migrated, server, playbook).stdout
    assert "in the way now" not in said
    assert re.findall(r"phase\d: \d+ done(?:, \d+ off)?\b", said) != []
    assert "nothing to do; every step is satisfied" in said
