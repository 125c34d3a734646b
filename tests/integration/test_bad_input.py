"""Bad input: each ends in one sentence with the remedy, without a traceback, and the database is as it was."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.server import APPLICATION_ROLE, SUPERUSER, Server
from tests.support.pictures import differences, picture
from tests.support.rollouts import write_rollout
from tests.support.runs import assert_refused

if TYPE_CHECKING:
    from tests.conftest import Database, Databases, Playbook


@pytest.fixture(scope="module")
def victim(module_databases: Databases) -> Database:
    """One database for all: none of these runs may change it."""
    return module_databases.clone(empty=True)


def open_runs(database: Database) -> list[tuple[Any, ...]]:
    if database.value("SELECT to_regclass('pgrollout.run') IS NULL"):
        return []
    return database.query("SELECT run_id FROM pgrollout.run WHERE ended_at IS NULL")


# What is said on the command line, and what comes back. The last -l counts.
COMMAND_LINE = {
    "unknown phase": (["--tags", "fase1"], "unknown tag 'fase1'; did you mean 'phase1'?"),
    "no limit": (
        ["-l", ""],
        "No --limit given, so every environment would be touched. Say -l local, -l staging, -l prod",
    ),
    "typo in the limit": (
        ["-l", "local,stagign"],
        "The limit names stagign, which the inventory does not have, and Ansible would go on without it. "
        "Known groups: local, staging, prod; known hosts: demo, prod-db1, staging-db1.",
    ),
    "two environments": (
        ["-l", "local,staging"],
        "The limit 'local,staging' touches hosts of local and staging; a run touches hosts of exactly one of",
    ),
    "skipped tags": (["--skip-tags", "phase1"], "--skip-tags would leave out checks that a safe run depends on"),
    "unsupported version": (["-e", "guard_postgresql_from=19"], "supported are 19 to 18."),
}


@pytest.mark.parametrize("case", COMMAND_LINE)
def test_command_line(victim: Database, playbook: Playbook, case: str) -> None:
    arguments, sentence = COMMAND_LINE[case]
    before = picture(victim)
    assert_refused(playbook("migrate.yml", *arguments, database=victim, check=False), sentence)
    assert differences(before, picture(victim)) == []
    assert open_runs(victim) == []


def test_production_that_was_never_filled_in_says_what_to_fill(playbook: Playbook) -> None:
    run = playbook("migrate.yml", "-l", "prod", check=False)
    assert_refused(
        run,
        "Host prod-db1 has no postgresql_host. Fill in inventories/prod/hosts.yml (postgresql_host) and "
        "inventories/group_vars/prod/main.yml (postgresql_db, postgresql_user, postgresql_passfile, backup_dir).",
    )


FILES = {
    "missing": (None, "sql/phase1/001_a/apply.sql: the file is missing."),
    "does not parse": (
        "ANALYZE agents;\nCREATE TABEL x (y int);\n",
        'sql/phase1/001_a/apply.sql:2:8: syntax error at or near "TABEL".',
    ),
    "unsafe": (
        "TRUNCATE agents;",
        "all rows go at once under ACCESS EXCLUSIVE on public.agents, so its readers and writers wait until it "
        "is over; delete the rows in batches, or write '-- Accept: truncate because <reason>' above it",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_rollout(victim: Database, playbook: Playbook, tmp_path: Path, case: str) -> None:
    text, sentence = FILES[case]
    root = write_rollout(tmp_path / "sql", {"phase1/001_a/apply.sql": text or "ANALYZE agents;"})
    if text is None:
        (root / "phase1" / "001_a" / "apply.sql").unlink()
    before = picture(victim)
    assert_refused(
        playbook("migrate.yml", database=victim, variables={"rollout_dir": str(root)}, check=False), sentence
    )
    assert differences(before, picture(victim)) == []


CONNECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unreachable": (
        {"postgresql_port": 1},
        "that the server runs, and that nothing between here and there stops the connection.",
    ),
    "wrong password": (
        {"postgresql_passfile": "/dev/null", "postgresql_password": "not-the-secret"},
        "Check postgresql_user and its password: a line for this host, port, database and user in postgresql_passfile",
    ),
}


@pytest.mark.parametrize("case", CONNECTIONS)
def test_connection(victim: Database, playbook: Playbook, case: str) -> None:
    variables, sentence = CONNECTIONS[case]
    run = playbook("migrate.yml", database=victim, variables=variables, check=False)
    assert_refused(run, f"demo: no connection to database '{victim.name}' as 'rollout' at {victim.host}:", sentence)
    assert "not-the-secret" not in run.output


def test_missing_privileges_come_with_the_grants(victim: Database, playbook: Playbook) -> None:
    """The application's role reaches the database, but owns nothing in it."""
    before = picture(victim)
    run = playbook("migrate.yml", database=victim, variables={"postgresql_user": APPLICATION_ROLE}, check=False)
    assert_refused(run, f"GRANT CREATE ON DATABASE {victim.name} TO {APPLICATION_ROLE}.")
    assert_refused(run, f"does not own public.agents, its owner is rollout: GRANT rollout TO {APPLICATION_ROLE}.")
    assert differences(before, picture(victim)) == []
    assert victim.value("SELECT to_regnamespace('pgrollout') IS NULL")


def test_not_enough_disk_stops_before_the_first_step(
    empty_database: Database, playbook: Playbook, tmp_path: Path
) -> None:
    before = picture(empty_database)
    variables = {"backup_dir": str(tmp_path / "backups"), "backup_dump_factor": 1e9}
    run = playbook("migrate.yml", database=empty_database, variables=variables, check=False)
    assert_refused(run, f"for a dump of {empty_database.name}, which is")
    assert_refused(run, "Free some space, set backup_dir to another disk, or lower backup_dump_factor (1000000000.0)")
    assert differences(before, picture(empty_database)) == []
    assert open_runs(empty_database) == []
    assert list((tmp_path / "backups").glob("*")) == []


@pytest.fixture
def standby(server: Server) -> Iterator[Server]:
    """A streaming standby of the test server, with its passwords."""
    with tempfile.TemporaryDirectory(prefix="pgrollout-") as folder:
        made = Server(folder, fsync=False)
        made.data.mkdir(mode=0o700, parents=True)
        made._give(made.data)
        shutil.copy(server.passfile, made.passfile)
        source = f"host={server.host} port={server.port} user={SUPERUSER} password={server._password(SUPERUSER)}"
        copied = made._run("pg_basebackup", "-d", source, "-D", str(made.data), "-R", "--checkpoint=fast", "--no-sync")
        assert copied.returncode == 0, copied.stderr
        try:
            with made._locked():
                made._launch()
            yield made
        finally:
            made.stop("immediate")


def test_a_standby_is_refused(victim: Database, standby: Server, playbook: Playbook) -> None:
    run = playbook("migrate.yml", database=victim, variables={"postgresql_port": standby.port}, check=False)
    assert_refused(run, "demo is a standby (in recovery) and takes no changes; name its primary in the inventory.")
