"""What the proof of a rollback counts as a difference."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.ledger import carry_out, claim, finish, install, steps_of
from tests.support.pictures import index_valid
from tests.support.runs import assert_refused, words

if TYPE_CHECKING:
    from demo.server import Server
    from tests.conftest import Database
    from tests.support.walks import Walkers

INDEX = "idx_epic_short_id"
BUILD = f"CREATE INDEX CONCURRENTLY {INDEX} ON project_management_epics (short_id) WHERE short_id IS NOT NULL;"


def invalid_index(server: Server, database: Database) -> None:
    """As a build that was cut off before the rollout has left it."""
    database.execute(BUILD.replace(" CONCURRENTLY", ""))
    with contextlib.closing(server.connect(database.name)) as superuser, superuser.cursor() as cursor:
        cursor.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{INDEX}'::regclass")


@pytest.mark.parametrize("who", ["the rollout", "somebody else"])
def test_an_index_that_was_invalid_is_missed_unless_the_rollout_built_it_anew(
    server: Server, empty_database: Database, tmp_path: Path, who: str
) -> None:
    database = empty_database
    invalid_index(server, database)
    install(database)
    run = claim(database)
    database.execute("SELECT pgrollout.take_snapshot(%s, 'phase1', 0)", run)
    if who == "the rollout":
        carry_out(database, run, [step | {"state": "rebuild"} for step in steps_of(tmp_path, BUILD)])
        assert index_valid(database, INDEX) is True
    database.execute(f"DROP INDEX {INDEX}")
    database.execute("SELECT pgrollout.end_rollback(%s, 'phase1')", run)
    found = database.query("SELECT object, found, counts FROM pgrollout.catalog_differences('phase1')")
    assert found == [(f"index public.{INDEX}", None, who == "somebody else")]


@pytest.mark.parametrize("state", ["held", "done"])
def test_an_index_that_was_dropped_by_name_is_not_missed_by_the_phases_after_it(
    empty_database: Database, tmp_path: Path, state: str
) -> None:
    database = empty_database
    install(database)
    run = claim(database)
    carry_out(database, run, steps_of(tmp_path, BUILD))
    database.execute("SELECT pgrollout.take_snapshot(%s, 'phase4', 0)", run)
    database.execute(f"DROP INDEX {INDEX}; UPDATE pgrollout.step SET state = '{state}'")
    found = database.query("SELECT object, found, counts FROM pgrollout.catalog_differences('phase4')")
    assert found == [(f"index public.{INDEX}", None, state == "done")]


def test_what_stands_before_a_phase_is_noted_anew_after_its_rollback(empty_database: Database, tmp_path: Path) -> None:
    database = empty_database
    database.execute("CREATE TABLE item (id int)")
    install(database)
    noted = "SELECT run_id FROM pgrollout.snapshot WHERE phase = 'phase1'"
    step = steps_of(tmp_path, "CREATE INDEX CONCURRENTLY i ON item (id);")[0]
    undo = {"id": "001_test/i", "rollback": True, "undoes": ["001_test/i"], "kind": "DROP INDEX CONCURRENTLY"}
    first = claim(database)
    for _ in range(2):  # once more by a run that goes on: what the phase has made half is no "before"
        database.execute("SELECT pgrollout.take_snapshot(%s, 'phase1', 0)", first)
        carry_out(database, first, [step] if database.value("SELECT to_regclass('i') IS NULL") else [])
    finish(database, first, "failed")
    second = claim(database)
    database.execute("SELECT pgrollout.take_snapshot(%s, 'phase1', 0)", second)
    assert database.value(noted) == first
    carry_out(database, second, [step | undo | {"sql": "DROP INDEX CONCURRENTLY i"}])
    database.execute("SELECT pgrollout.end_rollback(%s, 'phase1')", second)
    finish(database, second)
    database.execute("CREATE TABLE others (id int)")
    third = claim(database)
    database.execute("SELECT pgrollout.take_snapshot(%s, 'phase1', 0)", third)
    assert database.value(noted) == third
    assert database.query("SELECT object FROM pgrollout.catalog_differences('phase1')") == []


@pytest.mark.ci
def test_a_rollback_tells_of_an_index_that_was_invalid_before(server: Server, walkers: Walkers) -> None:
    walk = walkers("invalid", empty=True)
    invalid_index(server, walk.database)
    walk("migrate", "--tags", "phase1")
    assert index_valid(walk.database, INDEX) is True
    said = words(walk("rollback", "--tags", "phase1"))
    assert index_valid(walk.database, INDEX) is None
    assert f"but for what was dropped by name since, or was INVALID then: index public.{INDEX}." in said


@pytest.mark.ci
def test_a_rollback_fails_where_somebody_else_changed_the_catalog(server: Server, walkers: Walkers) -> None:
    walk = walkers("changed", empty=True)
    invalid_index(server, walk.database)
    walk("migrate", "--tags", "phase1")
    walk.database.execute("CREATE INDEX a_strangers ON agents (status)")
    run = walk("rollback", "--tags", "phase1", check=False)
    before = "phase1 is rolled back, but the catalog is not what it was before: index public.a_strangers: found ["
    assert_refused(run, before)
    assert f"index public.{INDEX}: found" not in words(run)
