"""Figures as Markdown: spreads, tables, and a README whose tables are replaced between markers."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path


def number(value: float) -> str:
    """Three digits that count: 0.0123 is 0.012, 1.234 is 1.23, 12.34 is 12.3, 1234 is 1,234."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def spread(values: Iterable[float]) -> str:
    """'min / median / max' of several runs, the value alone of one, '-' of none."""
    found = sorted(values)
    if not found:
        return "-"
    if len(found) == 1:
        return number(found[0])
    return " / ".join(map(number, (found[0], statistics.median(found), found[-1])))


def percentile(values: Sequence[float], part: float) -> float:
    """The value that `part` (of 1) of the values do not exceed; 0 of none."""
    found = sorted(values)
    return found[min(len(found) - 1, int(part * len(found)))] if found else 0.0


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def reach(rows: Iterable[tuple[str, str, str, bool | None, str]]) -> str:
    """A table of targets: (what, target, found, whether it is met or None where not measured, cause)."""
    verdict = {True: "met", False: "not met", None: "not measured"}
    header = ("reach", "target", "found", "", "cause")
    return table(header, [(what, target, found, verdict[met], cause) for what, target, found, met, cause in rows])


def put(text: str, name: str, body: str) -> str:
    """`text` with what stands between the markers of `name` replaced by `body`; ValueError where there are none."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the README has no place for {name}: expected the lines {begin} and {end}.")
    return f"{head}{begin}\n{body.strip()}\n{end}{tail}"


def machine(server_version: str) -> str:
    """One line: when, on what, under which load."""
    memory = _first(Path("/proc/meminfo"), r"MemTotal:\s+(\d+)")
    model = _first(Path("/proc/cpuinfo"), r"model name\s*:\s*(.+)") or platform.machine()
    parts = [
        datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        f"PostgreSQL {server_version}",
        f"{os.cpu_count()} cores ({model.strip()})",
        *([f"{int(memory) / 1024**2:.0f} GB"] if memory else []),
        f"Linux {platform.release().split('-')[0]}",
        f"load when it began {os.getloadavg()[0]:.1f}",
    ]
    return ", ".join(parts)


def _first(path: Path, pattern: str) -> str:
    found = re.search(pattern, path.read_text()) if path.exists() else None
    return found[1] if found else ""
