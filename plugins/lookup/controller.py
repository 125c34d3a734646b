"""Lookup: who runs this playbook, and whether the controller of another run is still alive."""

from __future__ import annotations

import getpass
import multiprocessing
import os
import socket
import subprocess
from typing import Any

import psutil
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
name: controller
short_description: Tells who runs this playbook, or whether another controller is alive
version_added: "0.1.0"
description:
  - With the term C(self), returns operator, host, pid, started (seconds since 1970) and git_revision of this run.
  - With the term C(state), returns C(dead), C(alive) or C(elsewhere) of the process that O(host), O(pid) and O(started)
    name.
options:
  _terms:
    description: C(self) or C(state).
    required: true
  host:
    description: The host that the other run recorded.
    type: str
  pid:
    description: The process that the other run recorded.
    type: int
  started:
    description: When that process started, in seconds since 1970; a reused pid is another process.
    type: float
author: The pgrollout authors
"""
EXAMPLES = """
- ansible.builtin.debug:
    msg: "{{ lookup('controller', 'self')['operator'] }}"
"""
RETURN = """
_raw:
  description: One dictionary (C(self)) or one string (C(state)).
  type: list
"""


class LookupModule(LookupBase):
    """Answers for the controller's own processes only; no database is asked."""

    def run(self, terms: list[str], variables: Any = None, **kwargs: Any) -> list[Any]:
        self.set_options(var_options=variables, direct=kwargs)
        if terms == ["self"]:
            return [_self(variables["playbook_dir"])]
        return [_state(self.get_option("host"), self.get_option("pid"), self.get_option("started"))]


def _self(folder: str) -> dict[str, Any]:
    # Lookups run in a forked worker of ansible-playbook; the run is the parent.
    parent = multiprocessing.parent_process()
    pid = parent.pid if parent and parent.pid else os.getpid()
    return {
        "operator": os.environ.get("SUDO_USER") or _user(),
        "host": socket.gethostname(),
        "pid": pid,
        "started": psutil.Process(pid).create_time(),
        "git_revision": _git_revision(folder),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's account without an entry in passwd
        return f"uid {os.getuid()}"


def _state(host: str, pid: int, started: float) -> str:
    if host != socket.gethostname():
        return "elsewhere"
    try:
        process = psutil.Process(pid)
        # Boot time is read with the resolution of a clock tick, hence the second of tolerance.
        same = abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return "dead"
    except psutil.AccessDenied:
        return "alive"
    return "alive" if same else "dead"


def _git_revision(folder: str) -> str:
    """The commit, with '+' where files of the checkout differ from it; 'unknown' outside a checkout."""
    try:
        revision = _git(folder, "rev-parse", "--short=12", "HEAD")
        return revision + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(folder: str, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
