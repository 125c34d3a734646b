"""Lines of TEXT output put together again: a literal or an identifier may hold line breaks, a terminal may wrap."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from pgrollout.errors import RolloutError


class Line(NamedTuple):
    """A line with its number in what was given, so that a message can name it."""

    number: int
    text: str


QUOTE = re.compile(r"['\"]")
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
# Lines with names or values that PostgreSQL prints as they are, so that a quote in them opens nothing.
BARE = re.compile(r"CTE (?!Scan)|Trigger |Settings: |Conflict Arbiter Indexes: |Query Parameters: ")
SHOWN = 60


def shown(line: Line) -> str:
    """How a message names a line."""
    text = line.text.strip()
    return f"line {line.number} ({text[:SHOWN] + '…' if len(text) > SHOWN else text!r})"


def column(text: str) -> int:
    """How far a line is indented."""
    return len(text) - len(text.lstrip())


def logical(lines: list[Line]) -> Iterator[Line]:
    """One line for each line that PostgreSQL printed; blank ones are left out. Raises where a quote never closes."""
    waiting = iter(lines)
    for line in waiting:
        text = line.text
        if not text or text.isspace():
            continue
        quoted = "'" in text or '"' in text
        if (not quoted and text.count("(") == text.count(")")) or BARE.match(text.lstrip()):
            yield line
        else:
            yield _unwrapped(_closed(line, waiting), waiting)


def open_quote(text: str, quote: str = "") -> str:
    """The quote that is open behind `text`, which begins inside of `quote`. A doubled quote closes and opens again."""
    position = 0
    while True:
        if quote:
            position = text.find(quote, position) + 1
            if not position:
                return quote
            quote = ""
        elif found := QUOTE.search(text, position):
            quote, position = found[0], found.end()
        else:
            return ""


def _closed(line: Line, waiting: Iterator[Line]) -> Line:
    """The line together with those that its quotes reach into."""
    quote = open_quote(line.text)
    if not quote:
        return line
    parts = [line.text]
    while quote:
        following = next(waiting, None)
        if following is None:
            raise RolloutError(
                f"The {quote} opened on {shown(line)} is never closed, so the plan is not whole; "
                "give all of the output of EXPLAIN."
            )
        parts.append(following.text)
        quote = open_quote(following.text, quote)
    return Line(line.number, "\n".join(parts))


def _unwrapped(line: Line, waiting: Iterator[Line]) -> Line:
    """The line together with what a terminal wrapped: PostgreSQL breaks no line inside of parentheses."""
    depth = _depth(line.text)
    if depth <= 0:
        return line
    parts = [line.text]
    while depth > 0:
        following = next(waiting, None)
        if following is None:
            raise RolloutError(
                f"The parenthesis opened on {shown(line)} is never closed, so the plan is not whole; "
                "give all of the output of EXPLAIN."
            )
        following = _closed(following, waiting)
        parts.append(following.text)
        depth += _depth(following.text)
    return Line(line.number, "".join(parts))


def _depth(text: str) -> int:
    """How many more parentheses open than close, outside of quotes."""
    if "'" in text or '"' in text:
        text = QUOTED.sub("", text)
    return text.count("(") - text.count(")")
