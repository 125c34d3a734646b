"""What became of the rows of each table since a phase began."""

from __future__ import annotations

from typing import Any


def content_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A phrase for each table whose content differs, with its rows before and now.

    rows: {table_name, rows_before, rows_now, equal} of pgrollout.content_differences.
    """
    return [
        f"{row['table_name']} ({row['rows_before']:,} rows then, "
        f"{'gone' if row['rows_now'] is None else format(row['rows_now'], ',')} now)"
        for row in rows
        if not row["equal"]
    ]
