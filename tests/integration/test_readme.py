"""Every command of the README is true: the local ones run, in its order; the others stop and say what to fill in."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def commands(environment: str) -> list[list[str]]:
    """The ansible-playbook lines of the README for one environment, as (playbook, arguments…)."""
    lines = re.findall(r"^\s+ansible-playbook (.*?)(?:\s+#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)
    return [words for line in lines if f"-l {environment}" in line for words in [shlex.split(line)]]


def arguments(words: list[str]) -> list[str]:
    """What follows the playbook, without the limit, which the fixture sets."""
    limit = words.index("-l")
    return words[1:limit] + words[limit + 2 :]


@pytest.mark.ci
def test_the_local_commands_run_in_order(database: Any, playbook: Any) -> None:
    playbook("migrate.yml", database=database)
    found = commands("local")
    assert len(found) >= 10
    for words in found:
        playbook(words[0], *arguments(words), database=database)
    assert database.value("SELECT count(*) FROM pg_class WHERE relname LIKE 'idx\\_%'") == 0


@pytest.mark.parametrize("words", commands("prod") + commands("staging"), ids=" ".join)
def test_an_environment_that_is_not_filled_in_says_so(words: list[str], playbook: Any) -> None:
    environment = words[words.index("-l") + 1]
    run = playbook(words[0], *arguments(words), "-l", environment, check=False)  # the last limit holds
    assert run.rc != 0
    said = re.sub(r"\s+", " ", run.stdout)
    assert f"Fill in inventories/{environment}/hosts.yml" in said
    assert "Traceback" not in run.stdout + run.stderr
