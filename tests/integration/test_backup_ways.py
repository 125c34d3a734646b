"""Base backups of the whole server, and backups made elsewhere: believed only after a restore, as dumps are."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.application import Application
from tests.support.backups import Backups, pg_backup
from tests.support.runs import assert_refused

if TYPE_CHECKING:
    from demo.server import Server
    from tests.conftest import Database

ROLE = "replicator"


@pytest.fixture
def base(backups: Backups, server: Server) -> Iterator[Backups]:
    """`backups` where the server's programs are beside the clients, which a base backup is started with."""
    if not pg_backup.physical_backup.scratch.server_programs(backups.bin_dir, server.binaries.major):
        pytest.skip("this server comes without clients, so nothing here can start a copy of it")
    backups.database.query("ALTER ROLE rollout REPLICATION", user="postgres")
    yield backups
    backups.database.query("ALTER ROLE rollout NOREPLICATION", user="postgres")


def made(base: Backups, **given: Any) -> Path:
    return base.dump(way="basebackup", **given)


# ---- base backups


def test_a_base_backup_is_started_and_read_through(base: Backups) -> None:
    base.make(backup_way="basebackup", backup_run="b1")
    evidence = base.evidence()
    assert (evidence["verified"], evidence["verified_on"], evidence["amcheck"]) == (True, "server", "passed")
    assert evidence["written_meanwhile"] == []
    assert evidence["rows"] > 30_000
    assert evidence["restore_seconds"] > 0
    path = Path(evidence["path"])
    assert base.names() == [path.name]
    assert {"base.tar.gz", "pg_wal.tar.gz", "backup_manifest", "manifest.json", "SHA256SUMS"} <= {
        file.name for file in path.iterdir()
    }
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o600}
    assert base.database.value("SELECT %s::pg_lsn <= pg_current_wal_lsn()", evidence["lsn"])


# Before and after it copies, the application writes some fifty rows, however fast the machine is.
BETWEEN_WRITES = """
lines() {{ cat {journal}/*.jsonl | wc -l; }}
await() {{ until=$(($(lines) + 100)); while [ "$(lines)" -lt "$until" ]; do sleep 0.05; done; }}
await; "$real" "$@" || exit; await
"""


def test_under_write_load_what_was_written_meanwhile_is_named(base: Backups) -> None:
    journal, bin_dir = base.work / "journal", base.bin_dir
    (base.work / "bin").mkdir()
    for program in bin_dir.iterdir():
        (base.work / "bin" / program.name).symlink_to(program)
    base.replace_client("pg_basebackup", BETWEEN_WRITES.format(journal=journal))
    app = Application(base.database.dsn("hive_app"), journal_dir=journal, rate=100).start()
    path = made(base)
    app.stop()
    assert app.report()["errors"] == []
    told = base.verify(path)["written_meanwhile"]
    assert any(phrase.startswith("public.project_management_tasks ") for phrase in told)
    assert not any(phrase.startswith("public.short_id_registry ") for phrase in told)


@pytest.mark.ci
def test_a_tablespace_comes_with_it(base: Backups, server: Server) -> None:
    place = server.folder / "space"
    place.mkdir(mode=0o700)
    base.database.query(f"CREATE TABLESPACE far LOCATION '{place}'", user="postgres")
    try:
        base.database.query(
            "CREATE TABLE far_away TABLESPACE far AS SELECT generate_series(1, 7) AS a", user="postgres"
        )
        base.database.query("ALTER TABLE far_away OWNER TO rollout", user="postgres")
        path = made(base)
        tables = json.loads((path / "manifest.json").read_text())["contents"]["tables"]
        assert tables["public.far_away"]["rows"] == 7
        assert base.verify(path)["written_meanwhile"] == []
    finally:
        base.database.query("DROP TABLE IF EXISTS far_away", user="postgres")
        base.database.query("DROP TABLESPACE far", user="postgres")


@pytest.mark.ci
def test_settings_of_the_original_do_not_reach_its_copy(base: Backups) -> None:
    base.database.query("ALTER SYSTEM SET shared_preload_libraries = 'not_here'", user="postgres")
    try:
        path = made(base)
    finally:
        base.database.query("ALTER SYSTEM RESET shared_preload_libraries", user="postgres")
    assert base.verify(path)["verified"] is True


@pytest.mark.parametrize("name", ["base.tar.gz", "pg_wal.tar.gz", "backup_manifest"])
def test_a_flipped_byte_is_found(base: Backups, name: str) -> None:
    path = made(base)
    file = path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(pg_backup.Refused, match=f"{name} has changed"):
        base.verify(path)
    if name == "pg_wal.tar.gz":
        return  # what a copy does not replay it does not miss
    # and by PostgreSQL's own manifest, where somebody has made the sums anew
    sums = "".join(f"{total}  {each}\n" for each, total in pg_backup.backup_files.checksums(path).items())
    (path / "SHA256SUMS").write_text(sums)
    with pytest.raises(pg_backup.Refused, match=r"cannot be unpacked|pg_verifybackup ended with 1|Expecting|JSON"):
        base.verify(path)
    assert base.names() == [path.name]


def test_without_the_right_to_replicate_it_is_refused_with_the_remedy(backups: Backups) -> None:
    if backups.database.value("SELECT rolreplication FROM pg_roles WHERE rolname = 'rollout'"):
        pytest.skip("another test lent it")
    with pytest.raises(pg_backup.Refused, match="ALTER ROLE rollout REPLICATION"):
        made(backups)
    assert backups.names() == []


# ---- made elsewhere

MAKE = """
set -e
mkdir -p {store}
{pg_dump} --format=custom --file={store}/one
echo '{{"id": "one", "finished": "'"$(date -u +%Y-%m-%dT%H:%M:%SZ)"'", "restore": "pg_restore"}}'
"""
RESTORE = """
set -e
test "$PGROLLOUT_BACKUP" = one
{psql} --quiet --dbname=postgres --command='CREATE DATABASE "{scratch}"'
{pg_restore} --no-owner --no-privileges --dbname={scratch} {store}/$PGROLLOUT_BACKUP
{more}
echo '{{"host": "{host}", "port": {port}, "db": "{scratch}", "user": "postgres", "passfile": "{passfile}"}}'
"""
RELEASE = "{psql} --quiet --dbname=postgres --command='DROP DATABASE IF EXISTS \"{scratch}\"'\n"


@pytest.fixture
def elsewhere(backups: Backups) -> dict[str, Any]:
    """The role's variables for a backup that scripts make of PostgreSQL's own programs."""
    return scripts(backups)


def scripts(backups: Backups, more: str = "") -> dict[str, Any]:
    database = backups.database
    dsn = database.dsn("postgres")
    login = f"--host={dsn['host']} --port={dsn['port']} --username=postgres --no-password"
    environment = f"export PGPASSFILE={shlex.quote(str(dsn['passfile']))}\n"
    names = {
        "store": backups.work / "store", "scratch": f"elsewhere_{os.getpid()}", "more": more,
        "host": dsn["host"], "port": dsn["port"], "passfile": dsn["passfile"],
        "psql": f"{backups.bin_dir}/psql {login}", "pg_restore": f"{backups.bin_dir}/pg_restore {login}",
        "pg_dump": f"{backups.bin_dir}/pg_dump {login} --dbname={database.name}",
    }  # fmt: skip
    given: dict[str, Any] = {"backup_way": "external"}
    for what, text in (("command", MAKE), ("restore_command", RESTORE), ("release_command", RELEASE)):
        given[f"backup_external_{what}"] = ["sh", "-c", environment + text.format(**names)]
    return given


def scratch_left(database: Database) -> int:
    return int(database.value("SELECT count(*) FROM pg_database WHERE datname LIKE 'elsewhere%'"))


def test_a_backup_made_elsewhere_is_restored_there_and_compared_here(
    backups: Backups, elsewhere: dict[str, Any]
) -> None:
    run = backups.make(**elsewhere)
    evidence = backups.evidence()
    assert (evidence["id"], evidence["verified"], evidence["verified_on"]) == ("one", True, "elsewhere")
    assert evidence["written_meanwhile"] == []
    assert evidence["restore_seconds"] > 0
    assert "Backup one: " in run.output
    assert scratch_left(backups.database) == 0


@pytest.mark.ci
def test_one_that_lacks_an_object_is_refused_and_the_place_given_back(backups: Backups) -> None:
    lost = scripts(backups, "{psql} --quiet --dbname={scratch} --command='DROP TABLE agents CASCADE'")
    psql = re.search(r"\S+/psql .*?--no-password", lost["backup_external_release_command"][2])
    assert psql
    text = lost["backup_external_restore_command"][2]
    lost["backup_external_restore_command"][2] = text.replace("{psql}", psql[0]).replace(
        "{scratch}", f"elsewhere_{os.getpid()}"
    )
    run = backups.make(check=False, **lost)
    assert_refused(run, "The backup, restored, is not what the database held", "table public.agents was")
    assert scratch_left(backups.database) == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"backup_external_command": ["sh", "-c", "echo no repo >&2; exit 3"]}, "failed with 3: no repo"),
        ({"backup_external_command": ["echo", "done"]}, "answered [done]; expected is a JSON object with id"),
        ({"backup_external_command": []}, "Expected is one of backup_external_command and backup_external_url"),
        ({"backup_external_restore_command": []}, "and backup_external_restore_command, which restores it"),
        ({"backup_external_restore_command": ["false"]}, "of the restore failed with 1"),
        (
            {"backup_external_command": [], "backup_external_url": "http://127.0.0.1:1/backup"},
            "The command or URL of the backup failed with",
        ),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused(
    backups: Backups, elsewhere: dict[str, Any], changes: dict[str, Any], told: str
) -> None:
    assert_refused(backups.make(check=False, **(elsewhere | changes)), told)
    assert scratch_left(backups.database) == 0
