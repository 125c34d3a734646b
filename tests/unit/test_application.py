"""The application's journal and its arithmetic, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.application import Row, _faults, percentile, read_journals

TASKS = "project_management_tasks"


def journal(folder: Path, *lines: dict[str, Any], tail: str = "") -> dict[tuple[str, str], Row]:
    (folder / "1-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail, encoding="utf-8")
    return read_journals(folder)


def write(n: int, op: str = "update", **values: Any) -> dict[str, Any]:
    return {"n": n, "op": op, "table": TASKS, "id": "k", "values": values}


def outcome(n: int, how: str) -> dict[str, Any]:
    return {"n": n, "outcome": how}


def test_the_last_committed_value_of_each_column_holds(tmp_path: Path) -> None:
    lines = [write(1, priority=1), outcome(1, "committed"), write(2, kanban_state="done"), outcome(2, "committed")]
    row = journal(tmp_path, *lines, write(3, priority=3), outcome(3, "committed"))[TASKS, "k"]
    assert row.allowed == {"priority": [3], "kanban_state": ["done"]}
    assert (row.inserted, row.written) == ("before", True)


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    lines = [write(1, priority=1), outcome(1, "committed"), write(2, priority=2), outcome(2, "failed")]
    assert journal(tmp_path, *lines)[TASKS, "k"].allowed == {"priority": [1]}


def test_a_doubtful_write_allows_both_values(tmp_path: Path) -> None:
    lines = [write(1, priority=1), outcome(1, "committed"), write(2, priority=2), outcome(2, "doubtful")]
    assert journal(tmp_path, *lines)[TASKS, "k"].allowed == {"priority": [1, 2]}


def test_a_write_without_outcome_is_doubtful_and_a_cut_line_is_none(tmp_path: Path) -> None:
    rows = journal(tmp_path, write(1, "insert", title="t"), tail='{"n": 2, "op": "upd')
    assert rows[TASKS, "k"].inserted == "doubtful"
    assert len(rows) == 1


def test_of_two_applications_the_later_one_holds(tmp_path: Path) -> None:
    for name, priority in (("0b-0", 2), ("0a-0", 1)):
        lines = [write(1, priority=priority), outcome(1, "committed")]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert read_journals(tmp_path)[TASKS, "k"].allowed == {"priority": [2]}


@pytest.mark.parametrize(
    ("row", "present", "expected"),
    [
        (Row("committed", True), [], ["is gone"]),
        (Row("before"), [], ["is gone"]),
        (Row("doubtful"), [], []),
        (Row("failed"), [{}], ["is there, although its insert failed"]),
        (Row("committed", True), [{}, {}], ["is there 2 times"]),
        (Row("before", True, {"priority": [2]}), [{"priority": 1}], ["priority is 1, written was 2"]),
        (Row("before", True, {"priority": [1, 2]}), [{"priority": 1}], []),
        (Row("committed", True, {"short_id": [None]}), [{"short_id": "TSK-AB2C"}], []),
        (Row("committed", True, {"short_id": ["X"]}), [{"short_id": "Y"}], ["short_id is 'Y', written was 'X'"]),
    ],
)
def test_faults(row: Row, present: list[dict[str, Any]], expected: list[str]) -> None:
    assert list(_faults(row, present)) == expected


def test_percentile() -> None:
    assert percentile([], 0.99) == 0.0
    assert percentile([1.0], 0.99) == 1.0
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99.0
