"""Who runs a playbook, and whether the controller of another run is alive."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from ansible.plugins.loader import lookup_loader

from plugins.lookup import controller

ROOT = Path(__file__).resolve().parents[2]
HERE = socket.gethostname()


def state(pid: int, started: float, host: str = HERE) -> Any:
    (found,) = _lookup().run(["state"], {}, host=host, pid=pid, started=started)
    return found


def _lookup() -> Any:
    lookup_loader.add_directory(str(ROOT / "plugins" / "lookup"))
    return lookup_loader.get("controller")


def started(pid: int) -> float:
    return float(psutil.Process(pid).create_time())


def test_a_running_process_is_alive() -> None:
    assert state(os.getpid(), started(os.getpid())) == "alive"
    assert state(os.getppid(), started(os.getppid())) == "alive"


def test_the_start_may_come_as_text_of_the_ledger() -> None:
    assert state(os.getpid(), float(f"{started(os.getpid()):.2f}")) == "alive"


def test_an_ended_process_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        born = started(child.pid)
        assert state(child.pid, born) == "alive"
    assert state(child.pid, born) == "dead"


def test_a_killed_process_that_nobody_has_waited_for_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    born = started(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and left as a zombie
    try:
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
        assert state(child.pid, born) == "dead"
    finally:
        child.communicate()


@pytest.mark.parametrize("seconds", [-3600, -2, 2, 3600])
def test_another_process_with_the_same_pid_is_dead(seconds: float) -> None:
    assert state(os.getpid(), started(os.getpid()) + seconds) == "dead"


def test_a_process_of_another_host_is_neither() -> None:
    assert state(os.getpid(), started(os.getpid()), host=f"not-{HERE}") == "elsewhere"
    assert state(2**22 + 1, 0.0, host=f"not-{HERE}") == "elsewhere"


def test_a_process_that_may_not_be_looked_at_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(pid: int) -> None:
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(psutil, "Process", denied)
    assert controller._state(HERE, os.getpid(), 0.0) == "alive"


# ---- self


def test_self_is_the_playbook_and_not_the_worker_that_evaluates_it(tmp_path: Path) -> None:
    play = tmp_path / "self.yml"
    play.write_text(
        "- hosts: localhost\n"
        "  gather_facts: false\n"
        "  tasks:\n"
        "    - name: Write it down\n"
        "      ansible.builtin.copy:\n"
        "        content: \"{{ lookup('controller', 'self') | to_json }}\"\n"
        f"        dest: {tmp_path}/self.json\n"
        '        mode: "0600"\n'
    )
    environ = os.environ | {"ANSIBLE_LOOKUP_PLUGINS": str(ROOT / "plugins" / "lookup"), "ANSIBLE_HOME": str(tmp_path)}
    program = Path(sys.executable).parent / "ansible-playbook"
    command = [
        str(program),
        "-i",
        "localhost,",
        "-c",
        "local",
        "-e",
        f"ansible_python_interpreter={sys.executable}",
        str(play),
    ]
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True) as process:
        born = started(process.pid)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    found = json.loads((tmp_path / "self.json").read_text())
    assert found["pid"] == process.pid
    assert abs(found["started"] - born) < 1
    assert found["host"] == HERE
    assert found["operator"]
    assert found["git_revision"] == "unknown"  # the play is in no checkout


def test_the_operator_behind_sudo_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUDO_USER", "ann")
    assert controller._self(str(tmp_path))["operator"] == "ann"
    monkeypatch.delenv("SUDO_USER")
    monkeypatch.setenv("LOGNAME", "ben")
    assert controller._self(str(tmp_path))["operator"] == "ben"


def test_an_account_without_a_name_is_named_by_its_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nameless() -> str:  # as in a container that runs as an arbitrary uid; before Python 3.13 a KeyError
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr("getpass.getuser", nameless)
    assert controller._self(str(tmp_path))["operator"] == f"uid {os.getuid()}"


# ---- git revision


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "apply.sql").write_text("SELECT 1;\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_the_revision_is_the_commit(checkout: Path) -> None:
    assert controller._git_revision(str(checkout)) == git(checkout, "rev-parse", "--short=12", "HEAD")


def test_a_changed_file_is_told_and_an_unknown_one_is_not(checkout: Path) -> None:
    (checkout / "notes").write_text("mine")
    assert not controller._git_revision(str(checkout)).endswith("+")
    (checkout / "apply.sql").write_text("SELECT 2;\n")
    assert controller._git_revision(str(checkout)).endswith("+")


def test_no_checkout_and_no_git_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert controller._git_revision(str(tmp_path)) == "unknown"
    monkeypatch.setenv("PATH", "")
    assert controller._git_revision(str(tmp_path)) == "unknown"


def test_a_git_that_hangs_does_not_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("git", 10)

    monkeypatch.setattr(subprocess, "run", hang)
    assert controller._git_revision(str(tmp_path)) == "unknown"
