"""How the cost of a backfill's row grows with the table: one UPDATE and the engine, at a size and at ten times it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median

from bench.backfill import KEYS, ROWS, Found, idle, prepare
from bench.lab import Lab
from bench.report import number, reach, spread, table

FACTORS = (1, 10)
COMPARED = ("one UPDATE", "ours")
FLAT = 1.2  # what still counts as flat: runs of one size differ by a tenth

Sizes = dict[tuple[str, str, int], Found]  # by key, way and rows


def run(lab: Lab, scale: float, runs: int, only: Iterable[str] = ()) -> Iterator[str]:
    """The table as Markdown, anew after each turn."""
    keys = [key for key in KEYS if not set(only) & set(KEYS) or key in only]
    sizes = [round(ROWS * scale * factor) for factor in FACTORS]
    found: Sizes = {(key, way, rows): Found() for key in keys for rows in sizes for way in COMPARED}
    for turn in range(runs):
        for (key, way, rows), result in found.items():
            template = lab.template(f"bench_{key}_{rows}", prepare(key, rows))
            idle(lab, template, way, key, rows, result)
            print(f"growth {turn + 1}/{runs} {key} {way}, {rows:,}: {result.rows_per_s[-1]:,.0f} rows/s", flush=True)
        yield _tables(found, keys, sizes, turn + 1)


def _tables(found: Sizes, keys: list[str], sizes: list[int], runs: int) -> str:
    body = table(
        ("key", "way", "rows", "rows/s on an idle server", "cost of a row, µs", "table after", "indexes after"),
        [
            (
                key,
                way,
                f"{rows:,}",
                spread(result.rows_per_s),
                spread(1e6 / speed for speed in result.rows_per_s),
                "x " + spread(result.table_growth),
                "x " + spread(result.index_growth),
            )
            for (key, way, rows), result in found.items()
        ],
    )
    lines: list[tuple[str, str, str, bool | None, str]] = []
    for key in keys:
        ours, other = (_growth(found, key, way, sizes) for way in ("ours", "one UPDATE"))
        what = f"cost of a row at ten times the rows ({key})"
        cause = "" if ours <= FLAT else f"one UPDATE: x {number(other)}"
        lines.append((what, f"flat: at most x {FLAT}", f"x {number(ours)}", ours <= FLAT, cause))
    return (
        f"{runs} runs of each, min / median / max. Growth is size after over size before.\n\n{body}\n\n{reach(lines)}"
    )


def _growth(found: Sizes, key: str, way: str, sizes: list[int]) -> float:
    small, large = (median(found[key, way, rows].rows_per_s) for rows in (sizes[0], sizes[-1]))
    return small / large
