"""Each command of docs/explain.md and docs/gates.md, on a plan that somebody put into a file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    command
    for page in ("explain.md", "gates.md")
    for command in re.findall(r"^    (ansible .+)$", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE)
]
PLAN = """\
Seq Scan on big  (cost=0.00..18.00 rows=10 width=4) (actual time=0.1..2.0 rows=5 loops=1)
  Filter: (a > 1)
  Rows Removed by Filter: 900
Planning Time: 0.1 ms
Execution Time: 2.1 ms
"""


GATE = """\
title: Look
cases: {any: {}}
gates: {forbid_seq_scan: {always: [big]}}
"""


def test_there_are_commands() -> None:
    assert any("explain_tree" in command for command in COMMANDS)
    assert any("explain_gate" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_tells_of_the_plan(command: str, tmp_path: Path) -> None:
    for name, text in {"plan.txt": PLAN, "look.gate.yml": GATE}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        command = command.replace(f"'{name}'", f"'{tmp_path}/{name}'")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "read from end to end" in done.stdout if "explain_gate" in command else "Seq Scan" in done.stdout
    assert "90" in done.stdout  # 900 thrown away, 905 read
