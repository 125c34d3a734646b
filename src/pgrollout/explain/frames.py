"""What terminals, editors and logs put around a plan: borders, headings, quotes, wrapped lines, log line prefixes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from pgrollout.explain.lines import Line

HEADING = "QUERY PLAN"
WRAPPED = (".", "…")  # psql's marks at both ends of a break
BORDERS = "|│║╎┃"
WRAPPED = (".", "…")  # psql's marks at both ends of a break
# What the lines are drawn with that psql and others put around a result: -----, ----+, ╔════╗
DRAWN = "-+=|* " + "".join(map(chr, range(0x2500, 0x2580)))
# -[ RECORD 1 ]----, * Record 1, ┌─[ RECORD 1 ]───┐: above each row of psql's expanded display, in the client's language
RECORD = re.compile(r"(?:\[ )?\w+ [0-9]+(?: \])?")
# (12 rows), (12 Zeilen), (12 行): in the language of the client
ROW_COUNT = re.compile(r"\s*\([0-9]+ ?[^()=:]{1,40}\)\s*")
TIMING = re.compile(r"\s*\w+ ?: [0-9.,]+ ms\b.*")  # psql's \timing, below the row count

PLAN_LOGGED = re.compile(r"duration: [0-9.]+ ms +plan:\s*$")
LOG_LINE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}")


def numbered(text: str) -> list[Line]:
    """The lines of a text, without the line ends of Windows and without the blanks of web pages."""
    rows = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [Line(number, _indented(row)) for number, row in enumerate(rows, 1)]


def _indented(row: str) -> str:
    """The line with ordinary blanks where a web page has non-breaking ones: before it and before what is measured."""
    if "\u00a0" not in row:
        return row
    bare = row.lstrip("\u00a0 \t")
    head = row[: len(row) - len(bare)].replace("\u00a0", " ")
    return head + re.sub(r"[\u00a0 ]+(?=\((?:cost|actual|never))|(?<=->)[\u00a0 ]+", "  ", bare)


def log_entries(lines: list[Line]) -> Iterator[list[Line]]:
    """The plans of auto_explain in a server log, each as its lines without prefix and indentation."""
    starts = [index for index, line in enumerate(lines) if "plan:" in line.text and PLAN_LOGGED.search(line.text)]
    for start, end in pairwise([*starts, len(lines)]):
        body = lines[start + 1 : end]
        first = next((line.text for line in body if line.text.strip()), "")
        indent = first[: len(first) - len(first.lstrip())]
        yield list(_entry(body, indent))


def _entry(body: list[Line], indent: str) -> Iterator[Line]:
    """The lines of one entry: the server begins each further one with a tab, a client that shows notices does not."""
    for line in body:
        if indent and line.text.startswith(indent):
            yield Line(line.number, line.text.removeprefix(indent))
        elif (indent and line.text.strip()) or LOG_LINE.match(line.text):
            return
        else:
            yield line


def unframed(lines: list[Line]) -> list[Line]:
    """The plan without what was drawn around it; what stands before a heading or behind a row count is left out."""
    first = next((index for index, line in enumerate(lines) if line.text.strip()), 0)
    headings = [index for index in range(len(lines)) if _is_heading(lines, index, first)]
    if not headings:
        return _bare(lines)
    return [line for start, end in pairwise([*headings, len(lines)]) for line in _bare(lines[start + 1 : end])]


def _is_heading(lines: list[Line], index: int, first: int) -> bool:
    """Whether a line is the name of the column: the first line of all, or one with a drawn line below or above it."""
    text = lines[index].text
    if HEADING not in text or text.strip(f'{BORDERS}" \t+↵') != HEADING:
        return False
    below = lines[index + 1].text if index + 1 < len(lines) else ""
    above = lines[index - 1].text if index else ""
    return index == first or _is_drawn(below) or _is_drawn(above)


def _bare(lines: list[Line]) -> list[Line]:
    """The rows of one frame."""
    rows = _rows(lines)
    rows = _without_quotes(rows)
    rows = _expanded(rows)
    rows = _without_borders(rows)
    return _joined(rows)


def _rows(lines: list[Line]) -> list[Line]:
    """The lines between the drawn ones, up to the last row count."""
    last = range(len(lines) - 1, -1, -1)
    counted = (index for index in last if ROW_COUNT.fullmatch(lines[index].text) and _is_last(lines, index))
    start, end = 0, next(counted, len(lines))
    while start < end and _is_around(lines[start].text):
        start += 1
    while start < end and (_is_around(lines[end - 1].text) or TIMING.fullmatch(lines[end - 1].text)):
        end -= 1
    return lines[start:end]


def _is_around(text: str) -> bool:
    return not text.strip() or _is_drawn(text)


def _is_drawn(text: str) -> bool:
    """Whether a line is one of those that are drawn around a result."""
    return not text.strip(DRAWN) and any(line in text for line in ("---", "───", "═══", "━━━"))


def _is_record(text: str) -> bool:
    """Whether a line is the one above a row in psql's expanded display."""
    return text[:1] in DRAWN and text[:1] != " " and bool(RECORD.fullmatch(text.strip(DRAWN)))


def _is_last(lines: list[Line], index: int) -> bool:
    """Whether a row count is one: behind it comes nothing, or psql's timing, or a prompt after a blank line."""
    behind = lines[index + 1].text if index + 1 < len(lines) else ""
    return not behind.strip() or bool(TIMING.fullmatch(behind))


def _without_quotes(rows: list[Line]) -> list[Line]:
    """The rows of a copy as CSV (pgAdmin, psql --csv), where all of them or the ones with a comma are quoted."""
    if not rows or not rows[0].text.startswith('"'):
        quoted = [row for row in rows if row.text.startswith('"') and row.text.rstrip(",;").endswith('"')]
        if not quoted or any(row.text.startswith(" ") and '"' in row.text for row in rows):
            return rows
    found: list[Line] = []
    inside = False
    for number, text in rows:
        begins = not inside and text.startswith('"')
        if not (inside or begins):
            found.append(Line(number, text))
            continue
        inside = (text.count('"') % 2 == 1) != inside
        text = text[1:] if begins else text
        text = text if inside else text.rstrip(",; \t").removesuffix('"')
        found.append(Line(number, text.replace('""', '"')))
    return found


def _expanded(rows: list[Line]) -> list[Line]:
    r"""The rows of psql's expanded display (\x): a line above each, and the column's name before it."""
    first = next((index for index, row in enumerate(rows) if _is_record(row.text)), None)
    if first is None:
        return _expanded_unaligned(rows)
    cells = [row for row in rows[first:] if not (_is_record(row.text) or _is_drawn(row.text))]
    name = cells[0].text.find(HEADING) if cells else -1
    if name < 0:
        return rows
    cut = name + len(HEADING)
    if cells[0].text[cut + 1 : cut + 2] in BORDERS:
        cut += 2
    if name:  # there is a border on the left, and so on the right
        cells = [Line(number, text.rstrip()[:-1].rstrip()) for number, text in cells]
    return [Line(number, text[cut:]) for number, text in cells]


def _expanded_unaligned(rows: list[Line]) -> list[Line]:
    """`QUERY PLAN|…`, with an empty line between the rows."""
    prefix = f"{HEADING}|"
    if not any(row.text.startswith(prefix) for row in rows):
        return rows
    return [Line(row.number, row.text.removeprefix(prefix)) for row in rows if row.text.strip()]


def _without_borders(rows: list[Line]) -> list[Line]:
    """The rows without what every one of them has on its left and on its right."""
    texts = [row.text for row in rows if row.text.strip()]
    if texts and all(text.lstrip()[0] in BORDERS for text in texts):
        rows = [Line(number, text.lstrip()[1:]) for number, text in rows]
    if texts and all(text.rstrip()[-1] in BORDERS for text in texts):
        rows = [Line(number, text.rstrip()[:-1].rstrip()) for number, text in rows]
    if texts and all(row.text[:1] in (" ", *WRAPPED, "") for row in rows):
        rows = _without_margin(rows)
    return rows


def _without_margin(rows: list[Line]) -> list[Line]:
    """psql begins each row with a blank, or with the mark of a row that it wrapped; the mark ends the row above too."""
    found: list[Line] = []
    for row in rows:
        if row.text[:1] in WRAPPED and found and found[-1].text.endswith(row.text[0]):
            found[-1] = Line(found[-1].number, found[-1].text[:-1] + row.text[1:])
        else:
            found.append(Line(row.number, row.text[1:]))
    return found


def _joined(rows: list[Line]) -> list[Line]:
    """Rows without the mark that each line but the last of a value has, where a value has several."""
    for mark in ("+", "↵"):
        if len(rows) > 1 and all(row.text.rstrip().endswith(mark) for row in rows[:-1]):
            return [Line(row.number, row.text.rstrip().removesuffix(mark).rstrip()) for row in rows]
    return rows
