"""The ways back that are not a phase: features off at once, named indexes away, and what a re-run leaves alone."""

from __future__ import annotations

import contextlib
import getpass
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.ledger import ledger_rows
from tests.support.pictures import differences, index_valid, picture
from tests.support.runs import words
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.conftest import Database, Run
    from tests.support.walks import Walker, Walkers

FLAGS = ("feature.multi_project_enabled", "feature.short_id_enabled")
OFF, ON = [(flag, "false") for flag in FLAGS], [(flag, "true") for flag in FLAGS]
REAPPLY = ",".join(f"010_feature_enablement/{flag}" for flag in reversed(FLAGS))
OPERATOR = os.environ.get("SUDO_USER") or getpass.getuser()
INDEX = "idx_task_project_id"


def flags(database: Database) -> list[tuple[str, str]]:
    """As the application reads them."""
    return database.query("SELECT key, value FROM system_config ORDER BY key", user="hive_app")


def test_immediate_where_nothing_was_ever_run(walkers: Walkers) -> None:
    walk = walkers("untouched", empty=True)
    before = picture(walk.database)
    assert walk("rollback", "--check", "--tags", "immediate").changed == 0
    assert differences(before, picture(walk.database)) == []

    run = walk("rollback", "--tags", "immediate")
    assert flags(walk.database) == OFF
    assert "the features are off" in run.output
    # It is held although nothing was ever run: no later run switches the features on.
    assert walk.database.value("SELECT count(*) FROM pgrollout.step WHERE state = 'held'") == 2
    assert walk.backups_made() == []


# ---- in the middle of a run


@dataclass
class Stopped:
    """A migration that waited in its backfill when the features were switched off."""

    walk: Walker
    immediate: Run
    migrate: Run
    flags: list[tuple[str, str]]
    runs: list[tuple[int, str, str]]
    holder: list[tuple[int]]


@pytest.fixture(scope="module")
def stopped(walkers: Walkers) -> Stopped:
    walk = walkers("stopped")
    database = walk.database
    walk("migrate", "--tags", "phase1,phase2")
    waiting = "SELECT waiting_for FROM pgrollout.run WHERE ended_at IS NULL AND step LIKE '%/backfill_tasks'"
    with contextlib.closing(database.connect(autocommit=False)) as holder, holder.cursor() as cursor:
        # a row that the backfill wants is locked, so that the run stands in the middle of it
        cursor.execute("SELECT id FROM project_management_tasks WHERE short_id IS NULL ORDER BY id LIMIT 1 FOR UPDATE")
        started = walk.start("migrate")
        wait_until(lambda: "transaction holds" in str(database.query(waiting)), 120, "the backfill waits")
        worker = database.query("SELECT pid FROM pgrollout.lock_holder()")
        immediate = walk("rollback", "--tags", "immediate")
        seen = flags(database)
        migrate = started.wait(60)  # it ends although the row is still locked
    return Stopped(
        walk, immediate, migrate, seen, database.query("SELECT run_id, kind, status FROM pgrollout.run"), worker
    )


@pytest.mark.ci
def test_immediate_during_a_run(stopped: Stopped) -> None:
    assert stopped.flags == OFF
    assert len(stopped.holder) == 1  # the run lock was held: immediate did not ask for it
    assert [kind for _, kind, _ in stopped.runs] == ["migrate", "migrate"]  # nor did it claim a run
    said = words(stopped.migrate)
    assert stopped.migrate.rc != 0
    assert f"006_short_id_backfill/backfill_tasks: stopped by {OPERATOR} at " in said
    assert "rollback.yml --tags immediate. Everything committed stays; the next run goes on from here." in said
    assert stopped.runs[-1][2] == "failed"
    assert "To bring them back: migrate.yml -e reapply=" in stopped.immediate.output


@pytest.mark.ci
def test_what_immediate_took_away_stays_away_until_told(stopped: Stopped) -> None:
    walk, database = stopped.walk, stopped.walk.database
    run = walk("migrate")
    assert flags(database) == OFF
    assert f"HELD      {REAPPLY.split(',')[0]}" in run.output
    assert f"taken away by {OPERATOR}" in run.output
    assert "phase4: completed" in run.output

    walk("migrate", reapply=REAPPLY)
    assert flags(database) == ON

    run = walk("rollback", "--tags", "immediate")  # with the features on
    assert flags(database) == OFF
    rows = ledger_rows(database)
    assert walk("migrate").changed == 0
    assert (ledger_rows(database), flags(database)) == (rows, OFF)


@pytest.mark.ci
def test_what_is_held_is_shown_and_brought_back_by_its_name_only(stopped: Stopped) -> None:
    walk = stopped.walk
    run = walk("status")
    assert run.changed == 0
    assert [f"held: 010_feature_enablement/{flag}" in run.output for flag in FLAGS] == [True, True]
    said = walk.refused("migrate", reapply="010_feature_enablement/feature.short_ids")
    assert "-e reapply=010_feature_enablement/feature.short_ids: no step of that name is held." in said


# ---- named indexes


@pytest.mark.ci
def test_partial_takes_named_indexes_and_they_stay_away(stopped: Stopped) -> None:
    walk, database = stopped.walk, stopped.walk.database
    walk("rollback", "--tags", "partial", rollback_indexes=f"{INDEX}, idx_task_prd_id")
    assert [index_valid(database, name) for name in (INDEX, "idx_task_prd_id", "idx_prd_epic_id")] == [None, None, True]
    run = walk("migrate", "--tags", "phase1")
    assert (run.changed, index_valid(database, INDEX)) == (0, None)
    walk("migrate", "--tags", "phase1", reapply=f"001_add_short_id_indexes/{INDEX}")
    assert [index_valid(database, name) for name in (INDEX, "idx_task_prd_id")] == [True, None]


@pytest.mark.ci
def test_partial_takes_only_what_this_rollout_made(stopped: Stopped) -> None:
    walk, database = stopped.walk, stopped.walk.database
    assert "--tags partial needs -e rollback_indexes=" in walk.refused("rollback", "--tags", "partial")
    said = walk.refused("rollback", "--tags", "partial", rollback_indexes=f"{INDEX},agents_pkey")
    assert "agents_pkey: no index that the ledger says this rollout made" in said
    planned = walk("rollback", "--check", "--tags", "partial", rollback_indexes=INDEX)
    assert (planned.changed, index_valid(database, INDEX)) == (0, True)


# ---- said wrongly, or not at all


@pytest.mark.ci
def test_a_rollback_that_is_not_clear_changes_nothing(stopped: Stopped) -> None:
    walk, database = stopped.walk, stopped.walk.database
    before, rows = picture(database), ledger_rows(database)
    run = walk("rollback")
    assert run.changed == 0
    assert "nothing done. Choose with --tags: immediate" in run.output
    assert "DROP COLUMN" in run.output  # it shows what could be rolled back
    assert differences(before, picture(database)) == []

    said = walk.refused("rollback", "--tags", "phase2,phase3,phase4", rollback_confirm="prod")
    assert "DROP TABLE table agent_tmux_sessions (0 rows)" in said
    assert "DROP COLUMN column agents.current_project_id (50 rows)" in said
    assert "Nothing was changed. If that is meant, say -e rollback_confirm=local." in said
    assert ledger_rows(database) == rows


@pytest.mark.ci
def test_a_tag_that_is_misspelt_is_refused(stopped: Stopped) -> None:
    said = stopped.walk.refused("rollback", "--tags", "imediate")
    assert "unknown tag 'imediate'; did you mean 'immediate'?" in said
