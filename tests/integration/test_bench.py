"""The bench at a tiny scale: that it measures and what must hold at any size. Figures are for `make bench`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from bench import backfill, growth, recovery, stall
from bench.application import Application, Witness, measured
from bench.lab import Lab
from bench.roadmap import units
from bench.tools import Outcome, psql
from demo.server import Server
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def lab(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The tests' server as a lab; its templates go with it."""
    return Lab(server, tmp_path_factory.mktemp("bench"))


@pytest.mark.ci
def test_a_lock_wait_is_seen_and_laid_to_whom_it_is_for(lab: Lab) -> None:
    template = lab.template("bench_smoke", scale="0.01")
    with lab.database(template) as database:
        application = Application(lab, database, stall.scripts(), 100, stall.rows(0.01))
        witness = Witness(database)

        def lock() -> None:
            connection = database.connect(autocommit=False, application_name="bench tool")
            with witness, contextlib.closing(connection):
                connection.cursor().execute("LOCK TABLE project_management_tasks IN ACCESS EXCLUSIVE MODE")
                wait_until(lambda: witness.longest.get("migration", 0.0) > 300, what="a wait for the lock")

        found = measured(application, lock, 1)
    assert "LOCK TABLE" in witness.behind
    assert found.during.longest_ms >= witness.longest["migration"]  # it counts from when the operation was due
    assert found.during.longest_ms > 10 * found.before.p99_ms
    assert found.during.failed == 0


@pytest.mark.ci
def test_the_roadmap_as_repaired_applies(lab: Lab) -> None:
    template = lab.template("bench_smoke", scale="0.01")
    with lab.database(template) as database:
        assert Outcome.of(psql(lab, database, lab.scratch("psql"), units())()) == Outcome(True, "")
        indexes = (
            "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indexrelid::regclass::text ~ '^idx_'"
        )
        found = dict(database.query(indexes))
        assert len(found) == 37
        assert all(found.values())
        assert database.value("SELECT count(*) FROM project_management_tasks WHERE short_id IS NULL") == 0
        assert database.value("SELECT count(DISTINCT estimated_duration_minutes) FROM project_management_tasks") > 0


@pytest.mark.ci
def test_all_ways_to_backfill_write_the_same(lab: Lab) -> None:
    (text,) = backfill.run(lab, 0.01, 1, ["uuid"])
    assert text.count("| uuid |") == len(backfill.WAYS)
    assert "bigint" not in text


@pytest.mark.ci
def test_a_backfill_is_compared_with_itself_at_ten_times_the_rows(lab: Lab) -> None:
    (text,) = growth.run(lab, 0.005, 1, ["uuid"])
    rows = [line.split(" | ")[1:3] for line in text.splitlines() if line.startswith("| uuid")]
    assert rows == [["one UPDATE", "1,500"], ["ours", "1,500"], ["one UPDATE", "15,000"], ["ours", "15,000"]]


@pytest.mark.ci
def test_a_killed_build_comes_to_its_end_by_ours_only(lab: Lab) -> None:
    *_, text = recovery.run(lab, 0.05, 1, ["psql"])
    ends = [line.rsplit("|", 2)[1].strip() for line in text.splitlines() if "an INVALID index" in line]
    assert ends == ["valid", "INVALID", "INVALID"]


def test_a_readme_has_a_place_for_every_table() -> None:
    from bench.__main__ import BENCHES, HERE
    from bench.report import put

    text = (Path(HERE) / "README.md").read_text()
    for name in BENCHES:
        assert "x marks it" in put(text, name, "x marks it")
