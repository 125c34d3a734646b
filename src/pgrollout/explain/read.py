"""The entry: plans out of whatever a task, a person or a log has of them."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from pgrollout.errors import RolloutError
from pgrollout.explain import titles
from pgrollout.explain.frames import log_entries, numbered, unframed
from pgrollout.explain.lines import Line, logical, shown
from pgrollout.explain.structured import read_json, read_yaml
from pgrollout.explain.text import NOTHING, read_text, unwrapped
from pgrollout.explain.xml import read_xml

Document = dict[str, Any]

WANTED = "Give what EXPLAIN printed: rows of postgresql_query, or its output in TEXT, JSON, YAML or XML."
QUERY_TEXT = "Query Text: "
YAML_START = re.compile(r'(?:- )?(?:Plan: *$|Query Text: ".*"$)')
LONGEST_TITLE = 20  # lines
MOST_STARTS = 10  # tries to find where a plan begins below SQL that looks like one


def explain_parse(output: Any) -> list[Document]:
    """The plans in `output`, one a statement, each in the shape of an element of EXPLAIN (FORMAT JSON).

    `output`: rows of `postgresql_query` (or all that the task returned), parsed JSON, or text in any of the four
    formats, as psql, pgAdmin and others show it or as auto_explain logs it. What TEXT does not tell is absent. Raises
    RolloutError with the line and the reason.
    """
    try:
        documents = list(_documents(output))
    except RecursionError:
        raise RolloutError(f"A plan was expected, but this is nested too deeply to be one. {WANTED}") from None
    for document in documents:
        _check(document)
    return documents


def _documents(output: Any) -> Iterator[Document]:
    if isinstance(output, str):
        yield from _of_text(output)
    elif isinstance(output, Mapping):
        yield from _of_mapping(output)
    elif isinstance(output, Sequence) and not isinstance(output, bytes):
        rows = [_cell(row) for row in output]
        if rows and all(isinstance(row, str) for row in rows):
            yield from _of_text("\n".join(rows))
        else:
            for row in rows:
                if row not in NOTHING and row != "Utility Statement":
                    yield from _documents(row)
    else:
        raise RolloutError(f"A plan was expected, but this is {_brief(output)}. {WANTED}")


def _cell(row: Any) -> Any:
    """The one column of a row of the result, or what else the row is."""
    if isinstance(row, Mapping) and len(row) == 1 and "Plan" not in row:
        return next(iter(row.values()))
    return row


def _of_mapping(output: Mapping[Any, Any]) -> Iterator[Document]:
    if "Plan" in output:
        yield dict(output)
    elif "query_result" in output:
        yield from _documents(output["query_result"])
    elif len(output) == 1:
        yield from _documents(_cell(output))
    else:
        names = ", ".join(repr(str(name)[:40]) for name in islice(output, 5))
        raise RolloutError(f"A plan was expected, but this has {names or 'nothing'} and no 'Plan'. {WANTED}")


def _of_text(text: str) -> Iterator[Document]:
    lines = numbered(text)
    entries = [entry for entry in log_entries(lines) if entry] or [unframed(lines)]
    for entry in entries:
        yield from _of_lines(entry)


def _of_lines(lines: list[Line]) -> Iterator[Document]:
    """The documents of a text without frames, in the format that its first line has."""
    starts = ((index, kind) for index in range(len(lines)) if (kind := _format(lines, index)))
    failed: RolloutError | None = None
    for index, kind in islice(starts, MOST_STARTS):
        try:
            yield from _read(kind, lines, index)
            return
        except RolloutError as error:
            failed = failed or error
            if kind != "text":
                break
    if failed:
        raise failed
    if any(line.text.strip() in NOTHING for line in lines):
        return
    first = next((line for line in lines if line.text.strip()), None)
    found = f"{shown(first)} begins none" if first else "there is nothing"
    raise RolloutError(f"A plan was expected, but {found}. {WANTED}")


def _format(lines: list[Line], index: int) -> str:
    """The format that a line begins; empty for one that begins no plan."""
    text = lines[index].text.strip()
    if text.startswith(("[", "{")):
        return "json"
    if text.startswith(("<explain", "<?xml")):
        return "xml"
    if YAML_START.match(text):
        return "yaml"
    if text.startswith(QUERY_TEXT):
        return "logged"
    return "text" if not text.startswith("->") and _is_node(lines, index) else ""


def _is_node(lines: list[Line], index: int) -> bool:
    """Whether a line is the first one of a plan in TEXT; its names may hold line breaks, and a terminal may wrap it."""
    text = lines[index].text.strip()
    if titles.node(text) is not None:
        return True
    if text.partition(" ")[0] not in titles.FIRST_WORDS:
        return False
    head = lines[index : index + LONGEST_TITLE]
    for whole in (logical, unwrapped):
        try:
            line = next(whole(head), None)
        except RolloutError:
            continue
        if line is not None and titles.node(line.text.strip()) is not None:
            return True
    return False


def _read(kind: str, lines: list[Line], index: int) -> list[Document]:
    if kind == "logged":
        return _logged(lines, index)
    if kind == "text":
        return read_text(lines[index:])
    values = {"json": read_json, "yaml": read_yaml, "xml": read_xml}[kind](lines[index:])
    return list(_documents(values))


def _logged(lines: list[Line], index: int) -> list[Document]:
    """TEXT of auto_explain: the query as it was sent, then its plan."""
    starts = (at for at in range(index + 1, len(lines)) if _format(lines, at) == "text")
    failed: RolloutError | None = None
    for at in islice(starts, MOST_STARTS):
        try:
            documents = read_text(lines[at:])
        except RolloutError as error:
            failed = failed or error
            continue
        query = "\n".join(line.text for line in lines[index:at]).removeprefix(QUERY_TEXT)
        query, _, parameters = query.partition("\nQuery Parameters: ")
        told = {"Query Text": query, **({"Query Parameters": parameters} if parameters else {})}
        return [{**told, **documents[0]}, *documents[1:]]
    raise failed or RolloutError(f"A plan was expected behind the query, but {shown(lines[index])} has none. {WANTED}")


def _check(document: Document) -> None:
    """Raises RolloutError where a document is no tree of nodes."""
    waiting = [document.get("Plan")]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Mapping) or not isinstance(node.get("Node Type"), str) or not node["Node Type"]:
            raise RolloutError(f"A node of a plan was expected, but this is {_brief(node)}. {WANTED}")
        children = node.get("Plans", [])
        if not isinstance(children, Sequence) or isinstance(children, str):
            raise RolloutError(f"'Plans' of {node['Node Type'][:40]!r} is no list, but {_brief(children)}. {WANTED}")
        waiting.extend(children)


def _brief(value: Any) -> str:
    """A value as a message shows it: what it is and how it begins."""
    try:
        return f"{type(value).__name__} {reprlib.repr(value)}"
    except Exception:  # a value that cannot show itself, as one nested too deeply
        return type(value).__name__
