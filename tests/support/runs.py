"""What a playbook said."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Run


def words(run: Run) -> str:
    """The output on one line, wherever Ansible broke it; no run shows a traceback, failed or not."""
    assert "Traceback" not in run.output, run.output
    return " ".join(run.output.split())


def assert_refused(run: Run, *sentences: str) -> None:
    """The run failed, and said each of these."""
    assert run.rc != 0, run.output
    said = words(run)
    assert [each for each in sentences if " ".join(each.split()) not in said] == [], run.output
