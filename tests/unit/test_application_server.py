"""The application against a real server, and its verification against databases that were tampered with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.application import TABLES, Application, Row, read_journals, verify

if TYPE_CHECKING:
    from demo.server import Server
    from tests.conftest import Database

ROOT = Path(__file__).resolve().parents[2]


def run_for(seconds: float, database: Database, folder: Path, **options: Any) -> Application:
    app = Application(database.dsn("hive_app"), journal_dir=folder, seed=1, **options)
    app.start()
    time.sleep(seconds)
    app.stop()
    return app


def discrepancies(app: Application, database: Database) -> list[str]:
    connection = database.connect()
    try:
        return app.verify(connection)
    finally:
        connection.close()


def an_own_task(app: Application, inserted: str, column: str = "priority") -> tuple[str, Row]:
    rows = read_journals(app.journal_dir)
    wanted = (
        (key, row)
        for (table, key), row in rows.items()
        if table == "project_management_tasks" and row.inserted == inserted and row.written and column in row.allowed
    )
    return next(wanted)


@pytest.fixture
def app(database: Database, tmp_path: Path) -> Application:
    """An application that has worked for a second."""
    return run_for(1, database, tmp_path / "journal", rate=200)


def test_it_works_at_its_rate_without_an_error(app: Application, database: Database) -> None:
    report = app.report()
    assert report["errors"] == []
    assert discrepancies(app, database) == []
    assert report["transactions"] == report["reads"] + report["updates"] + report["inserts"] >= 60
    assert report["rate"] >= 50
    assert 0 < report["p99_ms"] <= report["longest_wait_ms"]
    touched = {table for table, _ in read_journals(app.journal_dir)}
    assert touched == {table.name for table in TABLES}


def test_inserts_come_in_all_three_ways(app: Application, database: Database) -> None:
    rows = [row for row in read_journals(app.journal_dir).values() if row.inserted == "committed"]
    ways = {"without" if "short_id" not in r.allowed else r.allowed["short_id"] == [None] for r in rows}
    assert ways == {"without", True, False}
    assert database.value("SELECT count(*) FROM project_management_tasks WHERE title LIKE 'journal %'") > 0


def test_a_deleted_row_is_found(app: Application, database: Database) -> None:
    key, _ = an_own_task(app, "committed")
    database.query("DELETE FROM project_management_tasks WHERE id = %s::uuid", key)
    assert discrepancies(app, database) == [f"project_management_tasks {key}: is gone"]


def test_a_deleted_row_of_the_baseline_is_found(app: Application, database: Database) -> None:
    key, _ = an_own_task(app, "before")
    database.query("DELETE FROM project_management_tasks WHERE id = %s::uuid", key)
    assert discrepancies(app, database) == [f"project_management_tasks {key}: is gone"]


def test_a_doubled_row_is_found(app: Application, database: Database) -> None:
    key, _ = an_own_task(app, "committed")
    database.execute("ALTER TABLE project_management_tasks DROP CONSTRAINT project_management_tasks_pkey")
    database.query(
        "INSERT INTO project_management_tasks SELECT * FROM project_management_tasks WHERE id = %s::uuid", key
    )
    assert discrepancies(app, database) == [f"project_management_tasks {key}: is there 2 times"]


def test_a_row_doubled_under_another_key_is_found(app: Application, database: Database) -> None:
    key, _ = an_own_task(app, "committed")
    copy = "INSERT INTO project_management_tasks (project_id, title) SELECT project_id, title"
    database.query(f"{copy} FROM project_management_tasks WHERE id = %s::uuid", key)
    found = discrepancies(app, database)
    assert any("that nobody wrote" in each for each in found)
    assert any(f"{key}: 'journal " in each and "is there 2 times" in each for each in found)


def test_a_lost_update_is_found(app: Application, database: Database) -> None:
    key, row = an_own_task(app, "before")
    (written,) = row.allowed["priority"]
    database.query("UPDATE project_management_tasks SET priority = priority + 1 WHERE id = %s::uuid", key)
    expected = f"project_management_tasks {key}: priority is {written + 1}, written was {written}"
    assert discrepancies(app, database) == [expected]


def test_a_wait_and_an_error_are_reported(database: Database, tmp_path: Path) -> None:
    app = Application(database.dsn("hive_app"), journal_dir=tmp_path, seed=1).start()
    blocker = database.connect(autocommit=False)
    with blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE project_management_tasks")
        time.sleep(1)
        blocker.commit()
        cursor.execute("ALTER TABLE project_management_prds RENAME COLUMN title TO heading")
        blocker.commit()
        time.sleep(1)
    blocker.close()
    app.stop()
    report = app.report()
    assert report["longest_wait_ms"] > 700
    assert {error["sqlstate"] for error in report["errors"]} == {"42703"}
    assert any('column "title"' in error["message"] for error in report["errors"])


def test_without_leave_a_lost_connection_is_an_error(database: Database, tmp_path: Path) -> None:
    app = Application(database.dsn("hive_app"), journal_dir=tmp_path, seed=1).start()
    time.sleep(0.5)
    database.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'hive_app'", user="postgres")
    time.sleep(0.5)
    app.stop()
    assert len(app.report()["errors"]) == app.threads
    assert discrepancies(app, database) == []


def test_it_survives_a_server_stop(server: Server, database: Database, tmp_path: Path) -> None:
    app = Application(database.dsn("hive_app"), journal_dir=tmp_path, rate=200, seed=1, survive_restart=True).start()
    time.sleep(1)
    server.restart("immediate")
    before = app.report()["transactions"]
    time.sleep(1)
    app.stop()
    report = app.report()
    assert report["errors"] == []
    assert report["disconnections"] >= app.threads
    assert report["transactions"] > before
    assert discrepancies(app, database) == []


def test_a_killed_process_leaves_a_journal_that_can_be_verified(database: Database, tmp_path: Path) -> None:
    address = ["--host", database.host, "--port", str(database.port), "--database", database.name]
    rest = ["--passfile", database.passfile, "--journal-dir", str(tmp_path), "--rate", "400", "--seconds", "60"]
    process = subprocess.Popen([sys.executable, "-m", "tests.support.application", *address, *rest], cwd=ROOT)
    deadline = time.monotonic() + 30
    while sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")) < 20_000 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while database.value("SELECT count(*) FROM pg_stat_activity WHERE usename = 'hive_app'", user="postgres"):
        time.sleep(0.1)
    connection = database.connect()
    assert verify(tmp_path, connection) == []
    connection.close()
    assert len(read_journals(tmp_path)) > 50


def test_as_a_process_it_prints_its_report(database: Database, tmp_path: Path) -> None:
    address = ["--host", database.host, "--port", str(database.port), "--database", database.name]
    rest = ["--passfile", database.passfile, "--journal-dir", str(tmp_path), "--seconds", "1"]
    command = [sys.executable, "-m", "tests.support.application", *address, *rest]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["errors"] == []
