"""A plan reads the same in whatever a terminal, an editor or a log put around it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from pgrollout.explain.read import explain_parse
from tests.support.explain import corpus

# Each fortieth: all kinds of nodes, literals with line breaks, two statements, names that look like something else.
TEXTS = [one["texts"]["text"] for one in corpus() if "text" in one["texts"]][::40]
STRUCTURED = [text for one in corpus() if one["kind"] == "plain4" for text in one["texts"].values()][::40]

Frame = Callable[[str], str]


def width(rows: list[str]) -> int:
    return max(len(row) for row in [*rows, "QUERY PLAN"])


def aligned(text: str) -> str:
    rows = text.split("\n")
    lines = [" " + "QUERY PLAN".center(width(rows)), "-" * (width(rows) + 2), *(f" {row}" for row in rows)]
    return "\n".join([*lines, f"({len(rows)} rows)", ""])


def aligned_in_german_with_timing(text: str) -> str:
    return aligned(text).replace(" rows)", " Zeilen)") + "\nZeit: 4,321 ms\n"


def bordered(text: str) -> str:
    rows = text.split("\n")
    rule = "+" + "-" * (width(rows) + 2) + "+"
    drawn = [f"| {row.ljust(width(rows))} |" for row in ["QUERY PLAN".center(width(rows)), *rows]]
    return "\n".join([rule, drawn[0], rule, *drawn[1:], rule, f"({len(rows)} lignes)"])


def double_bordered(text: str) -> str:
    rows = text.split("\n")
    bar = "═" * (width(rows) + 2)
    drawn = [f"║ {row.ljust(width(rows))} ║" for row in ["QUERY PLAN".center(width(rows)), *rows]]
    return "\n".join([f"╔{bar}╗", drawn[0], f"╟{bar.replace('═', '─')}╢", *drawn[1:], f"╚{bar}╝", f"({len(rows)} 行)"])


def unaligned(text: str) -> str:
    return f"QUERY PLAN\n{text}\n({len(text.splitlines())} rows)\n"


def tuples_only(text: str) -> str:
    return "\n".join(f" {row}" for row in text.split("\n")) + "\n\n"


def expanded(text: str) -> str:
    rows = text.split("\n")
    return "\n".join(f"-[ RECORD {number} ]{'-' * 30}\nQUERY PLAN | {row}" for number, row in enumerate(rows, 1))


def expanded_with_border(text: str) -> str:
    rows = text.split("\n")
    drawn = [
        f"├─[ RECORD {number} ]{'─' * width(rows)}┤\n│ QUERY PLAN │ {row.ljust(width(rows))} │"
        for number, row in enumerate(rows, 1)
    ]
    return "\n".join([*drawn, f"└{'─' * 12}┴{'─' * (width(rows) + 2)}┘"])


def expanded_without_border(text: str) -> str:
    rows = text.split("\n")
    return "\n".join(f"* Record {number}    \nQUERY PLAN {row}" for number, row in enumerate(rows, 1))


def wrapped_by_psql(text: str) -> str:
    lines = [" " + "QUERY PLAN".center(70), "-" * 72]
    for row in text.split("\n"):
        pieces = [row[at : at + 70] for at in range(0, max(len(row), 1), 70)]
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            lines.append(("." if number else " ") + piece + ("" if last else "."))
    return "\n".join([*lines, f"({len(lines) - 2} rows)"])


def quoted(text: str) -> str:
    rows = ['"' + row.replace('"', '""') + '"' for row in ["QUERY PLAN", *text.split("\n")]]
    return "\n".join(rows)


def quoted_without_heading(text: str) -> str:
    return quoted(text).partition("\n")[2]


def comma_separated(text: str) -> str:
    rows = ['"' + row.replace('"', '""') + '"' if set(row) & set(',"') else row for row in text.split("\n")]
    return "\n".join(["QUERY PLAN", *rows])


def right_border(text: str) -> str:
    rows = text.split("\n")
    body = [f"{row.ljust(width(rows))}|" for row in rows]
    return "\n".join([f"{'QUERY PLAN'.ljust(width(rows))}|", "-" * width(rows) + "+", *body])


def windows(text: str) -> str:
    return text.replace("\n", "\r\n") + "\r\n"


def web_page(text: str) -> str:
    rows = [row.replace(" ", "\u00a0", len(row) - len(row.lstrip())) for row in text.split("\n")]
    return "\n".join(row.replace("  (cost=", " \u00a0(cost=") for row in rows)


def session(text: str) -> str:
    sql = "hive=# EXPLAIN (ANALYZE)\nhive-# SELECT * FROM task\nhive-#  WHERE short_id = 'x' -- (see above\n"
    return f"{sql}hive-# LIMIT 1;\n" + aligned(text) + "\nhive=# \n"


def below_sql(text: str) -> str:
    return "EXPLAIN ANALYZE\nSELECT *\n  FROM task\n WHERE a = 'b'\n LIMIT 1;\n\n" + text


def moved(text: str) -> str:
    return "\n".join(f"        {row}" for row in text.split("\n"))


def first_indentation_lost(text: str) -> str:
    return tuples_only(text).lstrip()


def byte_order_mark(text: str) -> str:
    return "\ufeff" + text


FRAMES = [
    aligned,
    aligned_in_german_with_timing,
    bordered,
    double_bordered,
    unaligned,
    tuples_only,
    expanded,
    expanded_with_border,
    expanded_without_border,
    wrapped_by_psql,
    quoted,
    quoted_without_heading,
    comma_separated,
    right_border,
    windows,
    web_page,
    session,
    below_sql,
    moved,
    first_indentation_lost,
    byte_order_mark,
]


@pytest.mark.parametrize("frame", FRAMES)
def test_a_framed_plan_reads_as_the_plan_without_frame(frame: Frame) -> None:
    found = [text for text in TEXTS if without_padding(read(frame(text))) != without_padding(read(text))]
    assert not found, f"{len(found)} of {len(TEXTS)}\n{frame(found[0])}\n{read(frame(found[0]))}"


def read(text: str) -> Any:
    try:
        return explain_parse(text)
    except Exception as error:  # so that all of them are compared
        return repr(error)


def without_padding(value: Any) -> str:
    """Frames pad and indent, also the lines of a literal that holds line breaks."""
    return re.sub(r"(?: |\\n)+", " ", json.dumps(value))


def plus(text: str) -> str:
    rows = text.split("\n")
    lines = [" " + "QUERY PLAN".center(width(rows)), "-" * (width(rows) + 2)]
    lines += [f" {row.ljust(width(rows))}+" for row in rows[:-1]]
    return "\n".join([*lines, f" {rows[-1]}", "(1 row)", ""])


def arrows(text: str) -> str:
    rows = text.split("\n")
    lines = [" " + "QUERY PLAN".center(width(rows)), "─" * (width(rows) + 2)]
    lines += [f" {row.ljust(width(rows))}↵" for row in rows[:-1]]
    return "\n".join([*lines, f" {rows[-1]}", "(1 ligne)", ""])


def bordered_plus(text: str) -> str:
    rows = text.split("\n")
    rule = "+" + "-" * (width(rows) + 2) + "+"
    body = [f"| {row.ljust(width(rows))}+|" for row in rows[:-1]]
    return "\n".join(
        [rule, f"| {'QUERY PLAN'.center(width(rows))} |", rule, *body, f"| {rows[-1].ljust(width(rows))} |", rule]
    )


def expanded_plus(text: str) -> str:
    rows = text.split("\n")
    cells = [
        f"QUERY PLAN | {rows[0].ljust(width(rows))}+",
        *(f"           | {row.ljust(width(rows))}+" for row in rows[1:]),
    ]
    return "\n".join(["hive=# EXPLAIN SELECT 1;", "-[ RECORD 1 ]-----", *cells]).removesuffix("+")


def expanded_old_ascii(text: str) -> str:
    rows = text.split("\n")
    return "\n".join(["-[ RECORD 1 ]-----", f"QUERY PLAN | {rows[0]}", *(f"           : {row}" for row in rows[1:])])


def quoted_cell(text: str) -> str:
    return '"QUERY PLAN"\n"' + text.replace('"', '""') + '"'


@pytest.mark.parametrize(
    "frame",
    [plus, arrows, bordered_plus, expanded_plus, expanded_old_ascii, unaligned, windows, quoted_cell, below_sql],
)
def test_a_framed_value_of_several_lines_reads_as_without_frame(frame: Frame) -> None:
    for text in STRUCTURED:
        assert explain_parse(frame(text)) == explain_parse(text), frame(text)
