"""The role `backup` on a real server: what it makes is believed only after it was restored and counted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.server import find_clients
from tests.support.application import Application
from tests.support.backups import Backups, pg_backup
from tests.support.runs import assert_refused
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from demo.server import Server
    from tests.conftest import Databases, Started


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- a good one


def test_a_backup_under_write_load_is_verified_and_told(backups: Backups) -> None:
    # writes go on between the counts and the dump: only one snapshot for both makes them agree
    backups.replace_client("pg_dump", 'case "$*" in *--format*) sleep 1;; esac; exec "$real" "$@"')
    app = Application(backups.database.dsn("hive_app"), journal_dir=backups.work / "journal", rate=100).start()
    backups.make(backup_run="r1")
    app.stop()
    assert app.report()["errors"] == []

    evidence = backups.evidence()
    path = Path(evidence["path"])
    assert backups.names() == [evidence["id"]] == [path.name]
    assert path.name.startswith(f"{backups.database.name}-2")
    assert path.name.endswith("Z-r1")
    assert evidence["verified"] is True
    assert evidence["tables"] == backups.database.value("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    assert evidence["rows"] > 30_000
    assert evidence["bytes"] > 100_000
    assert evidence["restore_seconds"] > 0
    assert evidence["started"] <= evidence["finished"]
    assert backups.database.value("SELECT %s::pg_lsn < pg_current_wal_lsn()", evidence["lsn"])
    assert backups.scratch_databases() == []

    assert {mode(backups.folder), mode(path)} == {0o700}
    assert {mode(file) for file in path.iterdir()} == {0o600}
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=path, check=True, capture_output=True)

    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["database"] == backups.database.name
    tables = manifest["contents"]["tables"]
    assert tables["public.short_id_registry"]["rows"] > 0
    assert sum(table["rows"] for table in tables.values()) == evidence["rows"]
    assert "PostgreSQL" in manifest["client_version"]
    assert manifest["server_version"]


def test_names_that_need_quoting_everywhere(backups: Backups, databases: Databases) -> None:
    backups.database = databases.clone(empty=True, name=f'odd "na/me" {os.getpid()} ü=$x')
    backups.database.execute(
        'CREATE SCHEMA "S.p"; CREATE TABLE "S.p"."T""x" (a int); INSERT INTO "S.p"."T""x" VALUES (1)'
    )
    path = backups.dump()
    evidence = backups.verify(path)
    assert (evidence["rows"], evidence["verified"]) == (1, True)
    assert path.parent == backups.folder


def test_what_only_a_superuser_may_create_is_told(backups: Backups) -> None:
    backups.database.query("CREATE EXTENSION pg_stat_statements", user="postgres")
    path = backups.dump()
    assert backups.verify(path, verify_on="database")["not_restored"] == ["extension pg_stat_statements"]


@pytest.mark.parametrize("codec", ["gzip", "none"])
def test_every_codec_can_be_restored(backups: Backups, codec: str) -> None:
    assert backups.verify(backups.dump(compression=codec))["verified"] is True


@pytest.mark.ci
def test_check_mode_writes_nothing(backups: Backups) -> None:
    backups.make("--check")
    assert backups.names() == []


@pytest.mark.ci
def test_a_password_is_nowhere_to_be_seen(backups: Backups, server: Server) -> None:
    lines = Path(server.passfile).read_text().splitlines()
    password = next(line.rpartition(":")[2] for line in lines if ":rollout:" in line)
    backups.replace_client("pg_dump", f'echo "$@" >> {backups.work}/arguments; exec "$real" "$@"')
    run = backups.make("-vvv", postgresql_password=password, postgresql_passfile="")
    assert backups.evidence()["verified"] is True
    assert "--snapshot" in (backups.work / "arguments").read_text()
    assert password not in run.output
    assert password not in (backups.work / "arguments").read_text()
    assert not any(password.encode() in path.read_bytes() for path in Path(backups.evidence()["path"]).iterdir())


# ---- refused before anything is written


def test_too_little_space_is_refused_with_numbers(backups: Backups) -> None:
    run = backups.make(check=False, backup_dump_factor=1e7)
    assert_refused(run, "free; expected", " TB for a dump of", "backup_dump_factor (10000000.0)")
    run = backups.make(check=False, backup_scratch_factor=1e7)
    assert_refused(run, " TB for a dump of", ", and its scratch copy on the same disk")
    run = backups.make(check=False, backup_dump_factor=-1e8, backup_scratch_factor=1e7, backup_verify_on="database")
    assert_refused(run, "The server's disk has", " TB for the scratch copy of", "backup_scratch_factor (10000000.0)")
    assert backups.names() == []


@pytest.mark.parametrize(
    ("said", "major"),
    [
        ("pg_dump (PostgreSQL) 17.10", 17),
        ("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 15),
        ("pg_dump (PostgreSQL) 19beta1", 19),
        ("pg_dump: not found", 0),
    ],
)
def test_the_clients_major_version(said: str, major: int) -> None:
    assert pg_backup.pg_programs.major(said) == major


def test_an_old_client_is_refused_with_both_versions(backups: Backups) -> None:
    backups.replace_client("pg_dump", 'echo "pg_dump (PostgreSQL) 9.6.24"')
    major = backups.database.value("SELECT current_setting('server_version_num')::int / 10000")
    run = backups.make(check=False)
    assert_refused(run, f"The server is PostgreSQL {major}", "pg_dump (PostgreSQL) 9.6.24", f"version {major} or newer")
    assert backups.names() == []


def test_a_folder_without_clients_is_refused(backups: Backups) -> None:
    with pytest.raises(pg_backup.Refused, match="pg_dump and pg_restore are not in /usr/share"):
        pg_backup.inspect(backups.params(bin_dir="/usr/share"))


@pytest.mark.parametrize("folder", ["", "backups"])
def test_a_folder_that_is_not_named_in_full_is_refused(backups: Backups, folder: str) -> None:
    assert_refused(backups.make(check=False, backup_dir=folder), f"backup_dir is '{folder}'", "absolute path")


def test_a_role_that_may_not_make_the_scratch_database_is_refused(backups: Backups) -> None:
    run = backups.make(check=False, postgresql_user="hive_app", backup_verify_on="database")
    assert_refused(run, "ALTER ROLE hive_app CREATEDB")
    assert backups.names() == []


def test_an_unreachable_server_is_a_sentence(backups: Backups) -> None:
    run = backups.make(check=False, postgresql_port=1)
    assert_refused(run, f"PostgreSQL at {backups.database.host}, port 1, database {backups.database.name}: connection")


# ---- a dump that is not what the database held


def test_a_dump_that_lost_a_row_is_refused(backups: Backups) -> None:
    backups.replace_client(
        "pg_dump",
        """
        "$real" "$@" || exit
        for each in "$@"; do case "$each" in --file=/dev/*) ;; --file=*)
            sed -i 1d "$(ls -S "${each#--file=}"/[0-9]*.dat | head -n 1)";; esac; done
        """,
    )
    run = backups.make(check=False, backup_compression="none")
    rows = backups.database.value("SELECT count(*) FROM project_management_tasks")
    assert_refused(run, f"public.project_management_tasks had {rows} rows, restored {rows - 1} rows")
    assert backups.scratch_databases() == []
    assert [path.name for path in backups.folder.glob("*/verified.json")] == []


def flip(path: Path, name: str) -> None:
    """Another byte in the middle of one of those files."""
    (file, *_) = sorted(path.glob(name))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(path: Path) -> None:
    largest = max(path.glob("*.dat*"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def swap(path: Path) -> None:
    one, other = sorted(path.glob("[0-9]*.dat*"))[:2]
    one.rename(path / "kept")
    other.rename(one)
    (path / "kept").rename(other)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (truncate, r"\d+\.dat\S* has changed"),
        (lambda path: flip(path, "toc.dat"), "toc.dat has changed"),
        (lambda path: flip(path, "[0-9]*.dat*"), r"\d+\.dat\S* has changed"),
        (lambda path: flip(path, "manifest.json"), "manifest.json has changed"),
        (lambda path: flip(path, "SHA256SUMS"), "has changed|does not belong|cannot be read"),
        (lambda path: next(path.glob("[0-9]*.dat*")).unlink(), r"\d+\.dat\S* is missing"),
        (lambda path: (path / "extra.dat").touch(), "extra.dat does not belong to it"),
        (swap, r"\d+\.dat\S* has changed; \d+\.dat\S* has changed"),
        (lambda path: (path / "SHA256SUMS").unlink(), "SHA256SUMS cannot be read"),
        (lambda path: [file.unlink() for file in path.iterdir()], "SHA256SUMS cannot be read"),
    ],
)
def test_a_changed_backup_is_refused(backups: Backups, harm: Callable[[Path], Any], told: str) -> None:
    path = backups.dump()
    harm(path)
    with pytest.raises(pg_backup.Refused, match=told):
        backups.verify(path)
    assert backups.names() == [path.name]
    assert not (path / "verified.json").exists()


def sums(path: Path) -> None:
    """Whoever changed the backup made its checksums anew."""
    totals = pg_backup.backup_files.checksums(path)
    (path / "SHA256SUMS").write_text("".join(f"{total}  {name}\n" for name, total in totals.items()))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def another_value(path: Path) -> None:
    """One value of one row is another; nothing else tells it."""
    for file in path.glob("[0-9]*.dat"):
        text = file.read_text()
        if "\tdeveloper\t" in text:
            file.write_text(text.replace("\tdeveloper\t", "\tdevelopers\t", 1))
            return
    raise AssertionError("no row to change")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (another_value, r"public\.agents has as many rows as it had, \d+, but not the same ones"),
        (swap, "pg_restore ended with|had .* rows, restored|not the same ones"),
        (truncate, "pg_restore ended with|had .* rows, restored"),
        (lambda path: flip(path, "toc.dat"), "pg_restore|restored"),
        (
            lambda path: edit(path, lambda manifest: manifest["contents"]["tables"].pop("public.agents")),
            r"public.agents had no such table, restored \d+ rows",
        ),
        (
            lambda path: edit(
                path, lambda manifest: manifest["contents"]["catalog"].update({"table public.gone": "x"})
            ),
            r"table public.gone was \[x\], restored \[not there\]",
        ),
        (lambda path: edit(path, lambda manifest: manifest.update(id="older")), "says of itself that it is older"),
        (lambda path: edit(path, lambda manifest: manifest.update(format=1)), "is of format 1, not 2"),
    ],
)
def test_a_changed_backup_with_new_checksums_is_refused(
    backups: Backups, harm: Callable[[Path], Any], told: str
) -> None:
    path = backups.dump(compression="none")
    harm(path)
    sums(path)
    with pytest.raises(pg_backup.Refused, match=told):
        backups.verify(path)
    assert backups.names() == [path.name]
    assert backups.scratch_databases() == []
    assert not (path / "verified.json").exists()


@pytest.mark.ci
def test_a_sequence_and_what_stands_around_the_rows_are_compared(backups: Backups) -> None:
    backups.database.execute(
        "CREATE SEQUENCE tickets; SELECT nextval('tickets') FROM generate_series(1, 7);"
        "CREATE VIEW busy AS SELECT id FROM agents WHERE status = 'busy'"
    )
    path = backups.dump(compression="none")
    assert backups.verify(path)["sequences"] == 1
    listing = path / "toc.dat"
    for written, other, told in (
        (
            b"setval('public.tickets', 7, true)",
            b"setval('public.tickets', 8, true)",
            r"sequence public.tickets was \[\[7, True\]\]",
        ),
        (b"'busy'::text", b"'idle'::text", r"view public.busy was \["),
    ):
        kept = listing.read_bytes()
        assert written in kept
        listing.write_bytes(kept.replace(written, other))
        sums(path)
        with pytest.raises(pg_backup.Refused, match=told):
            backups.verify(path)
        listing.write_bytes(kept)


@pytest.mark.parametrize("on", ["server", "database"])
def test_it_is_restored_where_it_is_told(backups: Backups, on: str) -> None:
    path = backups.dump()
    if on == "server" and not pg_backup.logical_backup.scratch.server_programs(
        backups.bin_dir, backups.database.server.binaries.major
    ):
        with pytest.raises(pg_backup.Refused, match="has no initdb and postgres of PostgreSQL"):
            backups.verify(path, verify_on=on)
        return
    found = backups.verify(path, verify_on=on)
    assert (found["verified_on"], found["verified"]) == (on, True)
    assert (found["amcheck"] == "passed") == (on == "server")
    assert backups.names() == [path.name]


def test_of_large_tables_a_sample_may_be_compared(backups: Backups) -> None:
    backups.database.execute("CREATE TABLE heap AS SELECT g, md5(g::text) FROM generate_series(1, 30000) AS g")
    path = backups.dump(digest_max_bytes=1_000_000)
    found = backups.verify(path)
    assert "public.project_management_tasks" in found["sampled"]
    assert "public.agents" not in found["sampled"]
    assert found["counted_only"] == ["public.heap"]  # it has no primary key


def test_a_disk_that_is_full_is_told_and_leaves_nothing(backups: Backups) -> None:
    """pg_dump's folder is a disk of 300 kB, in a mount namespace of its own."""
    if subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"], check=False).returncode:
        pytest.skip("no user and mount namespaces here")
    backups.replace_client(
        "pg_dump",
        """
        case "$*" in *--snapshot*) ;; *) exec "$real" "$@";; esac
        for each in "$@"; do case "$each" in --file=*) folder="${each#--file=}";; esac; done
        exec unshare --user --map-root-user --mount sh -c '
            mount -t tmpfs -o size=300k none "$0" && exec "$@"' "$folder" "$real" "$@"
        """,
    )
    with pytest.raises(pg_backup.Refused, match="No space left on device"):
        backups.dump(compression="none")
    assert backups.names() == []


def test_a_backup_of_another_database_is_refused(backups: Backups, databases: Databases) -> None:
    path, first = backups.dump(), backups.database.name
    backups.database = databases.clone(empty=True)
    with pytest.raises(pg_backup.Refused, match=f"is a backup of {first}, not of {backups.database.name}"):
        backups.verify(path)


UNKNOWN = (
    'pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter "transaction_timeout"'
)
IGNORED = "Command was: SET transaction_timeout = 0;\npg_restore: warning: errors ignored on restore: 1"


@pytest.mark.parametrize(
    ("said", "harmless"),
    [
        (f"{UNKNOWN}\n{IGNORED}", True),
        (f"{UNKNOWN}\n{UNKNOWN}\n{IGNORED}", True),
        (f"{UNKNOWN}\npg_restore: error: COPY failed for table t: ERROR:  no luck\n{IGNORED}", False),
        (UNKNOWN, False),
        ("pg_restore: error: could not open file", False),
    ],
)
def test_of_a_newer_clients_errors_only_the_known_one_is_harmless(said: str, harmless: bool) -> None:
    assert pg_backup.pg_programs.only_unknown_timeout(said) is harmless


@pytest.mark.parametrize("name", ["pg_dump", "pg_restore"])
def test_a_failing_client_leaves_nothing_behind(backups: Backups, name: str) -> None:
    path = backups.dump()
    failing = (
        f'case "$*" in *--snapshot*|*--dbname*) echo "{name}: error: no luck" >&2; exit 3;; esac; exec "$real" "$@"'
    )
    backups.replace_client(name, failing)
    with pytest.raises(pg_backup.Refused, match=f"{name} ended with 3: {name}: error: no luck"):
        backups.verify(backups.dump() if name == "pg_dump" else path)
    assert backups.names() == [path.name]
    assert backups.scratch_databases() == []


# ---- runs that die

# Dumps, tells its parent's process id (the module's) and its own, and hangs.
HANG = """
case "$*" in *--snapshot*) ;; *) exec "$real" "$@";; esac
"$real" "$@"; echo $PPID $$ > {told}.new; mv {told}.new {told}; exec sleep 300
"""


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture
def hanging(backups: Backups) -> tuple[Started, int, int]:
    """A run whose pg_dump hangs with everything written; the process ids of module and client."""
    clients, told = backups.bin_dir, backups.work / "pids"
    backups.replace_client("pg_dump", HANG.format(told=told))
    started = backups.start(backup_run="victim")
    wait_until(told.exists)
    module, client = map(int, told.read_text().split())
    backups.bin_dir = clients
    return started, module, client


@pytest.mark.ci
def test_a_killed_run_leaves_no_backup_and_stops_no_other(backups: Backups, hanging: tuple[Started, int, int]) -> None:
    started, module, client = hanging
    (partial,) = backups.names()
    assert partial.endswith("-victim.partial")
    assert (backups.folder / partial / "toc.dat").exists()

    backups.make(backup_run="second")  # a live one's folder is left alone
    assert partial in backups.names()
    assert backups.evidence()["verified"] is True

    os.kill(module, signal.SIGKILL)
    wait_until(lambda: not alive(client))  # it does not hold its locks any longer than the module lived
    assert started.wait().rc != 0
    assert partial in backups.names()

    run = backups.make(backup_run="third")
    names = backups.names()
    assert run.rc == 0
    assert len(names) == 2
    assert names[0].endswith("-second")
    assert names[1].endswith("-third")


def test_a_run_that_is_told_to_end_cleans_up(backups: Backups, hanging: tuple[Started, int, int]) -> None:
    started, module, client = hanging
    os.kill(module, signal.SIGTERM)
    assert started.wait().rc != 0
    assert backups.names() == []
    wait_until(lambda: not alive(client))


def test_the_scratch_database_of_a_dead_run_goes_and_that_of_a_live_one_stays(backups: Backups) -> None:
    dead, live = "pgrollout_scratch_dead", "pgrollout_scratch_live"
    keeper = backups.database.connect()
    with keeper.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(1885827699, hashtext(%s))", (live,))
        for name in (dead, live):
            cursor.execute(f"CREATE DATABASE {name}")
        try:
            backups.verify(backups.dump(), verify_on="database")
            assert backups.scratch_databases() == [live]
        finally:
            for name in (dead, live):
                cursor.execute(f"DROP DATABASE IF EXISTS {name}")
    keeper.close()


# Restores, tells its parent's process id (the module's), and hangs.
SLOW_RESTORE = """
case "$*" in *--dbname*) ;; *) exec "$real" "$@";; esac
"$real" "$@"; echo $PPID > {told}.new; mv {told}.new {told}; exec sleep 300
"""


def test_a_killed_verification_leaves_neither_server_nor_data(backups: Backups) -> None:
    if not pg_backup.logical_backup.scratch.server_programs(backups.bin_dir, backups.database.server.binaries.major):
        pytest.skip("no server programs of this version beside the clients")
    told = backups.work / "pid"
    backups.replace_client("pg_restore", SLOW_RESTORE.format(told=told))
    for name in ("initdb", "postgres"):
        (backups.bin_dir / name).symlink_to(find_clients(backups.database.server.binaries) / name)  # type: ignore[operator]
    started = backups.start(backup_run="victim", backup_verify_on="server")
    wait_until(told.exists)
    (scratch,) = backups.folder.glob("*-scratch.partial")
    postmaster = int((scratch / "data" / "postmaster.pid").read_text().split()[0])
    assert alive(postmaster)
    os.kill(int(told.read_text()), signal.SIGKILL)
    wait_until(lambda: not alive(postmaster) and not scratch.exists())
    assert started.wait().rc != 0
    (left,) = backups.names()
    assert left.endswith("-victim")
    assert not (backups.folder / left / "verified.json").exists()


# ---- retention


def test_the_newest_verified_backup_is_never_removed(backups: Backups) -> None:
    good = backups.dump()
    backups.verify(good)
    newer = [f"{backups.database.name}-29990{day}01T000000Z-new" for day in (1, 2, 3)]
    for name in newer:
        shutil.copytree(good, backups.folder / name)
        (backups.folder / name / "verified.json").unlink()
    other = backups.folder / "other_database-20200101T000000Z-old"
    other.mkdir()
    asked = backups.params(keep=2)
    assert pg_backup.prune(asked, pretend=True)["removed"] == [newer[0]]
    assert len(backups.names()) == 5
    assert pg_backup.prune(asked, pretend=False)["removed"] == [newer[0]]
    assert backups.names() == sorted([good.name, *newer[1:], other.name])


def test_old_backups_go_but_for_the_newest_verified_one(backups: Backups) -> None:
    made = {}
    for days, verified in ((1, False), (10, False), (20, True), (30, True)):
        begun = datetime.now(UTC) - timedelta(days=days)
        made[days] = backups.folder / f"{backups.database.name}-{begun:%Y%m%dT%H%M%SZ}-aged"
        made[days].mkdir(parents=True)
        if verified:
            (made[days] / "verified.json").touch()
    removed = pg_backup.prune(backups.params(keep=10, keep_days=5), pretend=False)["removed"]
    assert removed == [made[10].name, made[30].name]
    assert backups.names() == sorted([made[1].name, made[20].name])


def test_the_role_keeps_as_many_as_it_is_told(backups: Backups) -> None:
    for year in (2001, 2002, 2003):
        (backups.folder / f"{backups.database.name}-{year}0101T000000Z-old").mkdir(parents=True)
    backups.make(backup_run="new", backup_keep=2)
    assert [name.rpartition("-")[2] for name in backups.names()] == ["old", "new"]
    assert "-2003" in backups.names()[0]
