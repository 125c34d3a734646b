"""docs/recovery.md on a server that archives: back to the restore point before a phase, beside the live database."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest

from demo.server import MIGRATION_ROLE, SUPERUSER, Server
from tests.conftest import Database
from tests.support.rollouts import write_rollout
from tests.support.runs import words
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Playbook

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recovery.md"
ROLLOUT = {
    "phase1/001_code/apply.sql": "CREATE INDEX CONCURRENTLY item_code ON item (code);",
    "phase1/001_code/rollback.sql": "DROP INDEX CONCURRENTLY item_code;",
    "phase2/002_upper/apply.sql": "UPDATE item SET code = upper(code) WHERE code <> upper(code);",
    "phase2/002_upper/rollback.sql": "-- Restore: item_code\nUPDATE item SET code = code;",
}


class Archiving(Server):
    """It archives into a folder of its own, and has one base backup from before anything happened."""

    @property
    def archive(self) -> Path:
        return self.folder / "archive"

    def begin(self) -> None:
        self.start()
        self.archive.mkdir()
        self._give(self.archive)
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(f"archive_mode = on\narchive_command = 'cp %p {self.archive}/%f'\n")
        self.restart()

    def back_up(self) -> Path:
        target = f"host={self.host} port={self.port} user={SUPERUSER} password={self._password(SUPERUSER)}"
        base = self.folder / "base"
        base.mkdir(mode=0o700)
        self._give(base)
        program = str(Path(self.connection["client_bin_dir"]) / "pg_basebackup")
        done = self._run(program, "-d", target, "-D", str(base), "--checkpoint=fast", "--no-sync", "--wal-method=fetch")
        assert done.returncode == 0, done.stderr
        return base

    def begin_beside(self, base: Path, restore_point: str) -> None:
        """Steps 2 and 3 of the page, with the names of this test."""
        settings = re.search(r"<<'END'\n(.*?)\n +END", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        assert settings
        text = "\n".join(line.strip() for line in settings[1].splitlines()) + "\n"
        for name, other in {
            "/var/lib/archive": str(self.archive),
            "pgrollout_7_phase3": restore_point,
            "'/var/tmp'": f"'{self.folder / 'socket'}'",
        }.items():
            assert name in text
            text = text.replace(name, other)
        # What the page does not need: this throwaway server's own settings stand in a file of its own.
        with (base / "postgresql.auto.conf").open("a") as conf:
            conf.write(text)
        (base / "recovery.signal").touch()
        for path in (base / "recovery.signal", base / "postgresql.auto.conf"):
            self._give(path)
        done = self._run("pg_ctl", "-D", str(base), "-w", "-l", str(self.folder / "log.before"), "start")
        assert done.returncode == 0, done.stdout + (self.folder / "log.before").read_text()

    def end_beside(self, base: Path) -> None:
        self._run("pg_ctl", "-D", str(base), "-m", "immediate", "stop")


@pytest.fixture
def archiving() -> Iterator[Archiving]:
    with tempfile.TemporaryDirectory(prefix="pgrollout-") as folder:
        server = Archiving(Path(folder) / "s", fsync=False)
        try:
            server.begin()
            yield server
        finally:
            server.stop("immediate")


@pytest.mark.ci
def test_back_to_before_a_phase_beside_the_live_database(
    archiving: Archiving, playbook: Playbook, tmp_path: Path
) -> None:
    if archiving.socket_dir is None or not shutil.which("cp"):
        pytest.skip("needs a Unix socket")
    with contextlib.closing(archiving.connect()) as session, session.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE live OWNER {MIGRATION_ROLE}")
    live = Database("live", archiving)
    live.execute(
        "CREATE TABLE item (id int PRIMARY KEY, code text);"
        "INSERT INTO item SELECT g, 'c' || g FROM generate_series(1, 500) AS g"
    )
    base = archiving.back_up()
    variables = {
        "rollout_dir": str(write_rollout(tmp_path / "rollout", ROLLOUT)),
        "backup_dir": str(tmp_path / "backups"),
    }
    asked = "no restore point: WAL is archived, but GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO rollout"
    assert asked in words(playbook("migrate.yml", "--tags", "phase1", database=live, variables=variables))
    with contextlib.closing(archiving.connect("live")) as session, session.cursor() as cursor:
        cursor.execute(f"GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO {MIGRATION_ROLE}")
    run = playbook("migrate.yml", database=live, variables=variables)
    (point,) = live.query("SELECT restore_point FROM pgrollout.phase_run WHERE restore_point IS NOT NULL")[0]
    assert f"before phase2: restore point {point} at" in words(run)
    live.execute("INSERT INTO item VALUES (501, 'the application was here')")
    with contextlib.closing(archiving.connect()) as session, session.cursor() as cursor:
        cursor.execute("SELECT pg_walfile_name(pg_switch_wal())")
        (last,) = cursor.fetchone()
    wait_until((archiving.archive / last).exists, what="the last WAL file in the archive")

    archiving.begin_beside(base, point)
    try:
        where = {
            "host": str(archiving.folder / "socket"),
            "port": 5433,
            "dbname": "live",
            "user": MIGRATION_ROLE,
            "passfile": live.passfile,
        }

        def lines(**target: object) -> list[str]:
            with contextlib.closing(psycopg2.connect(**target)) as session:
                cursor = session.cursor()
                cursor.execute("SELECT line FROM pgrollout.contents_lines()")
                return [line for (line,) in cursor.fetchall()]

        def paused() -> bool:
            with contextlib.closing(psycopg2.connect(**where)) as session:
                cursor = session.cursor()
                cursor.execute("SELECT pg_get_wal_replay_pause_state()")
                return bool(cursor.fetchone() == ("paused",))

        wait_until(paused, what="the restore point")
        then, now = lines(**where), lines(**live.dsn())
        differ = {line.split(":")[0] for line in {*then} ^ {*now}}
        assert differ == {"table item"}
        assert any(line.startswith("table item: 500 rows") for line in then)
        assert any(line.startswith("table item: 501 rows") for line in now)
        assert any(line.startswith("index public.item_code:") for line in then)  # phase 1 was there before
    finally:
        archiving.end_beside(base)
