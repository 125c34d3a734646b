"""Lock modes: which exclude each other, as PostgreSQL's documentation has it."""

from __future__ import annotations

import pytest

from pgrollout.migration.locks import MODES, conflict

# "Explicit Locking", the table of conflicting modes, row by row from ACCESS SHARE on.
TABLE = ["       x", "      xx", "    xxxx", "   xxxxx", "  xx xxx", "  xxxxxx", " xxxxxxx", "xxxxxxxx"]


@pytest.mark.parametrize("row", range(8), ids=lambda row: MODES[row])
def test_conflicts_are_those_of_the_documentation(row: int) -> None:
    assert "".join("x" if conflict(MODES[row], other) else " " for other in MODES) == TABLE[row]
