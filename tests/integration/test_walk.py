"""The rollout forward and back on 30,000 tasks: to the last byte on a quiet database, and under an application."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.application import ALPHABET, TABLES, Application, verify
from tests.support.ledger import ledger_rows
from tests.support.pictures import differences, picture
from tests.support.walks import Walker

if TYPE_CHECKING:
    from tests.conftest import Database, Databases, Playbook
    from tests.support.walks import Walkers

PHASES = ("phase1", "phase2", "phase3", "phase4")
Capture = pytest.CaptureFixture[str]


def show(walk: Walker, capsys: Capture) -> None:
    with capsys.disabled():
        print("", *(f"  {seconds:6.1f} s  {label}" for label, seconds in walk.seconds.items()), sep="\n")


# ---- on a quiet database


@pytest.mark.ci
def test_each_phase_forward_and_back_to_the_same_bytes(walkers: Walkers, capsys: Capture) -> None:
    walk = walkers("quiet")
    database = walk.database
    before = {"phase1": picture(database)}

    # a database that knows nothing of the rollout: a plan leaves nothing behind, and phase 3 says what it wants first
    planned = walk("migrate", "--check", "--diff")
    assert planned.changed == 0
    assert "+ CREATE INDEX CONCURRENTLY idx_project_short_id" in planned.output
    assert "phase3 needs phase1 and phase2 applied first" in walk.refused("migrate", "--tags", "phase3")
    assert differences(before["phase1"], picture(database)) == []
    assert database.value("SELECT to_regnamespace('pgrollout')") is None
    assert walk.backups_made() == []

    for phase, following in itertools.zip_longest(PHASES, PHASES[1:], fillvalue="end"):
        assert walk("migrate", "--tags", phase).changed > 0
        before[following] = picture(database)
        assert differences(before[phase], before[following])
        if phase == "phase2":
            rows = ledger_rows(database)
            planned = walk("migrate", "--check")
            assert planned.changed == 0
            assert "phase2: Schema enhancement [applied; 0 of" in planned.output
            assert (differences(before["phase3"], picture(database)), ledger_rows(database)) == ([], rows)

    # all is done: nothing that runs now changes anything, makes a backup or writes into the ledger
    rows, backups = ledger_rows(database), walk.backups_made()
    for name, *args in (["migrate"], ["migrate", "--check", "--diff"], ["validate"], ["status"]):
        run = walk(name, *args)
        assert run.changed == 0, run.output
        assert differences(before["end"], picture(database)) == []
        assert ledger_rows(database) == rows
        assert walk.backups_made() == backups
    assert "phase4: applied, 0 of" in run.output

    # back, each phase alone, last one first
    assert "phase1 cannot be rolled back while phase2 and phase3 and phase4 are applied" in walk.refused(
        "rollback", "--tags", "phase1"
    )
    for phase in reversed(PHASES):
        if phase == "phase2":
            said = walk.refused("rollback", "--tags", phase)
            assert "DROP COLUMN column agents.project_assignments (50 rows)" in said
            assert "-e rollback_confirm=local" in said
        run = walk("rollback", "--tags", phase, rollback_confirm="local", rollback_expect_equal_content=True)
        assert run.changed > 0
        assert f"{phase}: the catalog is what it was before the phase." in run.output
        assert differences(before[phase], picture(database)) == []

    rows = ledger_rows(database)
    assert walk("rollback", "--tags", "full", rollback_confirm="local").changed == 0
    assert ledger_rows(database) == rows
    assert database.query("SELECT * FROM pgrollout.row_change LIMIT 1") == []

    # forward again is the same again
    walk("migrate")
    assert differences({"catalog": before["end"]["catalog"]}, {"catalog": picture(database)["catalog"]}) == []
    show(walk, capsys)


@pytest.mark.full
def test_all_phases_back_at_once_to_the_same_bytes(walkers: Walkers, capsys: Capture) -> None:
    walk = walkers("at_once")
    before = picture(walk.database)
    walk("migrate")
    walk("rollback", "--tags", "full", rollback_confirm="local", rollback_expect_equal_content=True)
    assert differences(before, picture(walk.database)) == []
    show(walk, capsys)


# ---- under an application


@dataclass
class UnderLoad:
    """What was there before, what the application saw, and where it wrote it down."""

    walk: Walker
    codes: dict[str, dict[str, str]]
    report: dict[str, Any]
    journals: Path


def codes(database: Database) -> dict[str, dict[str, str]]:
    """Short IDs that are there, by table and key."""
    found = partial(database.query, user="hive_app")
    return {t.name: dict(found(f"SELECT id::text, short_id FROM {t.name} WHERE short_id IS NOT NULL")) for t in TABLES}


@pytest.fixture(scope="module")
def under_load(walkers: Walkers, tmp_path_factory: pytest.TempPathFactory) -> UnderLoad:
    """Forward, all the way back and forward again while an application reads, updates and inserts."""
    walk = walkers("load")
    present, journals = codes(walk.database), tmp_path_factory.mktemp("journals")
    app = Application(walk.database.dsn("hive_app"), threads=4, rate=80, journal_dir=journals, seed=2)
    app.start()
    try:
        walk("migrate")
        walk("rollback", "--tags", "full", rollback_confirm="local")
        walk("migrate")
    finally:
        app.stop()
    return UnderLoad(walk, present, app.report(), journals)


def test_an_application_works_on_through_all_of_it(under_load: UnderLoad, capsys: Capture) -> None:
    report = under_load.report
    assert report["errors"] == []
    assert report["rate"] >= 50
    assert min(report["reads"], report["updates"], report["inserts"]) > 100
    with contextlib.closing(under_load.walk.database.connect()) as connection:
        assert verify(under_load.journals, connection) == []
    with capsys.disabled():
        what = report["longest_wait"]
        print(
            f"\n  {report['transactions']} transactions, {report['rate']} a second; longest wait "
            f"{report['longest_wait_ms']} ms ({what['what']} at {what['at']} UTC), p99 {report['p99_ms']} ms"
        )
    show(under_load.walk, capsys)


@pytest.mark.full
def test_twice_there_and_back_at_full_size(
    databases: Databases, playbook: Playbook, tmp_path: Path, capsys: Capture
) -> None:
    """300,000 tasks, an application at work, and each time the same catalog on either side."""
    database = databases.loaded("1")
    walk = Walker(database, playbook, tmp_path / "backups")
    app = Application(database.dsn("hive_app"), threads=4, rate=80, journal_dir=tmp_path, seed=3)
    catalogs = [picture(database)["catalog"]]
    app.start()
    try:
        for _ in range(2):
            walk("migrate")
            catalogs.append(picture(database)["catalog"])
            run = walk("rollback", "--tags", "full", rollback_confirm="local")
            catalogs.append(picture(database)["catalog"])
            assert run.output.count("the catalog is what it was before the phase.") == len(PHASES)
    finally:
        app.stop()
    with contextlib.closing(database.connect()) as connection:
        assert verify(tmp_path, connection) == []
    assert app.report()["errors"] == []
    assert catalogs[0] == catalogs[2] == catalogs[4]
    assert catalogs[1] == catalogs[3] != catalogs[0]
    show(walk, capsys)


def test_short_ids_are_unique_registered_and_rightly_spelt(under_load: UnderLoad) -> None:
    database = under_load.walk.database
    now = codes(database)
    everyone = [(code, key) for table in now.values() for key, code in table.items()]
    assert len({code for code, _ in everyone}) == len(everyone)
    registered = dict(database.query("SELECT short_id, entity_id::text FROM short_id_registry"))
    assert [pair for pair in everyone if registered.get(pair[0]) != pair[1]] == []

    for table in TABLES:
        assert database.value(f"SELECT count(*) FROM {table.name} WHERE short_id IS NULL") == 0
        before = under_load.codes[table.name]
        assert {key: code for key, code in now[table.name].items() if key in before} == before
        drawn = [
            new
            for (new,) in database.query(
                "SELECT new ->> 'short_id' FROM pgrollout.row_change WHERE step_id LIKE '%%/backfill_%%' "
                "AND old ->> 'short_id' IS NULL AND new ->> 'short_id' LIKE %s",
                f"{table.prefix}-%",
            )
        ]
        rows = database.value(f"SELECT count(*) FROM {table.name}")
        # a draw may collide once in a hundred at twice the rows, and four symbols are the least
        length = max(4, math.ceil(math.log(100 * 2 * rows, len(ALPHABET))))
        assert len(drawn) > rows / 3
        spelt = re.compile(rf"{table.prefix}-[{ALPHABET}]{{{length}}}")
        # the length goes by the count that ANALYZE stored: while rows come in it may be one step behind
        short = re.compile(rf"{table.prefix}-[{ALPHABET}]{{{max(4, length - 1)},{length + 1}}}")
        assert [code for code in drawn if not short.fullmatch(code)] == []
        assert sum(bool(spelt.fullmatch(code)) for code in drawn) > 0.95 * len(drawn)


def test_short_ids_of_rows_that_came_meanwhile(under_load: UnderLoad) -> None:
    """Rows that the application inserted without a short ID, with NULL and with one of its own all hold one."""
    database = under_load.walk.database
    for table in TABLES:
        held = dict(database.query(f"SELECT id::text, short_id FROM {table.name} WHERE {table.label} LIKE 'journal %'"))
        assert len(held) > 5
        assert None not in held.values()
        assert {code.split("-")[0] for code in held.values()} == {table.prefix}
    longest = "SELECT count(*) FROM project_management_tasks WHERE title LIKE 'journal %' AND length(short_id) = 14"
    assert database.value(longest) > 5  # those that it gave itself: ten symbols


def test_short_ids_after_the_rollout(under_load: UnderLoad) -> None:
    """The application may go on not knowing of short IDs; one that is taken is refused with who has it."""
    database = under_load.walk.database
    insert = "INSERT INTO agents (name, agent_type{}) VALUES ('later', 'developer'{}) RETURNING id::text, short_id"
    ask = partial(database.query, user="hive_app")
    ((_, without),), ((_, null),) = ask(insert.format("", "")), ask(insert.format(", short_id", ", NULL"))
    ((key, given),) = ask(insert.format(", short_id", ", 'AGT-MINE'"))
    assert re.fullmatch(rf"AGT-[{ALPHABET}]{{4,}}", without)
    assert re.fullmatch(rf"AGT-[{ALPHABET}]{{4,}}", null)
    assert given == "AGT-MINE"
    assert database.query("SELECT entity_type, entity_id::text FROM short_id_registry WHERE short_id = 'AGT-MINE'") == [
        ("agent", key)
    ]
    with pytest.raises(Exception, match=f"registered for agent {key}"):
        ask(insert.format(", short_id", ", 'AGT-MINE'"))
