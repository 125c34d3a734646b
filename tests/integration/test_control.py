"""status.yml -e control=… steers the open run from another terminal, or says in one sentence why it cannot."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.ledger import InBackground, carry_out, claim, finish, install, steps_of
from tests.support.runs import assert_refused, words
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Database, Playbook, Run


def steer(playbook: Playbook, database: Database, **given: str) -> Run:
    return playbook("status.yml", "-e", json.dumps(given), database=database, check=False)


def test_a_backfill_is_paused_and_resumed_by_playbook(
    empty_database: Database, playbook: Playbook, tmp_path: Path
) -> None:
    install(empty_database)
    run = claim(empty_database, "ann")
    empty_database.execute(
        "CREATE TABLE item (id integer PRIMARY KEY, note text); INSERT INTO item SELECT generate_series(1, 100);"
        # it stands back as long as this is not empty
        "CREATE TABLE busy (job text); INSERT INTO busy VALUES ('billing')"
    )
    steps = steps_of(tmp_path, "-- Step: fill\n-- Backfill: by id\nUPDATE item SET note = 'x' WHERE note IS NULL;")
    work = InBackground(carry_out, empty_database, run, steps, throttle_query="SELECT job FROM busy")
    waits = "SELECT coalesce(waiting_for, '') FROM pgrollout.run WHERE ended_at IS NULL"
    wait_until(lambda: empty_database.value(waits) == "paused: billing")
    told = words(steer(playbook, empty_database, control="pause", why="50 % of the disks, it's full"))
    assert f"asked to pause: run {run} (migrate) by ann on " in told
    wait_until(lambda: empty_database.value(waits).endswith(" UTC: 50 % of the disks, it's full"))
    empty_database.execute("DELETE FROM busy")
    told = words(steer(playbook, empty_database, control="resume", why="back"))
    assert f"asked to resume: run {run} (migrate) by ann on " in told
    work.result()
    assert empty_database.value("SELECT count(*) FROM item WHERE note IS NULL") == 0


@pytest.mark.ci
def test_orders_that_nobody_can_take(empty_database: Database, playbook: Playbook) -> None:
    expected = "expected is -e control=pause, resume or stop, and -e why='<reason>'"
    nothing = "Nothing was changed."
    assert_refused(steer(playbook, empty_database, control="halt", why="x"), "-e control=halt -e why=…:", expected)
    assert_refused(steer(playbook, empty_database, control="stop"), "-e control=stop without -e why=…:", expected)
    run = steer(playbook, empty_database, control="stop", why="x")
    assert_refused(run, "no ledger: nothing was ever run here, so there is nothing to stop.", nothing)
    install(empty_database)
    run = steer(playbook, empty_database, control="pause", why="x")
    assert_refused(run, "no run is open on this database, so there is nothing to pause.", nothing)
    finish(empty_database, claim(empty_database))
    empty_database.execute("DROP FUNCTION pgrollout.steer")
    run = steer(playbook, empty_database, control="pause", why="x")
    assert_refused(run, "the ledger here is of an older version, which takes no orders;", nothing)
