"""Splits one SQL file with PostgreSQL's own grammar and reads the comments that steer the engine."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import Any

from pglast import parser

from pgrollout.errors import RolloutError
from pgrollout.migration.hazards import accepted_hazard

HEADER_KEYS = ("Migration", "Description", "Risk Level", "Expected duration", "Locks", "Only when", "Holds")
STEP_KEYS = ("Step", "Backfill", "New rows", "Done when", "Restore", "Check", "Refuses")
_KEY_LINE = re.compile(r"^--\s*([A-Za-z]+(?: [A-Za-z]+)?):\s*(.*?)\s*$")


@dataclass(frozen=True)
class Statement:
    """One statement: its SQL, the line of its first word, its parse tree, what the comment lines above it say.

    accepts: (hazard, reason) of each `-- Accept:` line.
    """

    sql: str
    line: int
    node: Any
    notes: dict[str, str] = field(default_factory=dict)
    accepts: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class SqlFile:
    """A parsed file: `header` holds the keys of HEADER_KEYS that it has."""

    path: str
    header: dict[str, str]
    statements: list[Statement]


def read_sql(text: str, path: str) -> SqlFile:
    """Parses `text`; raises RolloutError with file, line, column and message when PostgreSQL would not accept it."""
    if "\0" in text:
        # The parser would silently stop there.
        raise RolloutError(f"{path}:{_line(text, text.index(chr(0)))}: a NUL byte; save the file as plain UTF-8 text.")
    if not text.strip():
        raise RolloutError(f"{path}: the file is empty; expected at least one SQL statement.")
    try:
        raw = parser.parse_sql(text)
        comments = [token for token in parser.scan(text) if token.name == "SQL_COMMENT"]
    except parser.ParseError as error:
        raise RolloutError(_syntax_error(text, path, error)) from None
    if not raw:
        raise RolloutError(f"{path}: the file holds comments only; expected at least one SQL statement.")
    header: dict[str, str] = {}
    statements: list[Statement] = []
    previous_end = 0
    for stmt in raw:
        start = stmt.stmt_location
        end = start + stmt.stmt_len if stmt.stmt_len else len(text)
        notes: dict[str, str] = {}
        accepts: list[tuple[str, str]] = []
        for token in comments:
            if previous_end <= token.start < start:
                line = _line(text, token.start)
                comment = text[token.start : token.end + 1]
                if hazard := accepted_hazard(comment, f"{path}:{line}"):
                    accepts.append(hazard)
                    continue
                key, value = _key_value(comment, path, line)
                given = header if key in HEADER_KEYS and not statements else notes
                if key in given:
                    raise RolloutError(f"{path}:{line}: '{key}:' stands twice over the same statement; write it once.")
                if given is header or key in STEP_KEYS:
                    given[key] = value
        sql = text[start:end].strip().rstrip(";")
        statements.append(Statement(sql, _line(text, start), stmt.stmt, notes, accepts))
        previous_end = end
    return SqlFile(path, header, statements)


def _key_value(comment: str, path: str, line: int) -> tuple[str, str]:
    """The key and value of a steering comment, ('', '') of a free one; a near miss of a key is an error."""
    match = _KEY_LINE.match(comment)
    if not match:
        return "", ""
    known = {key.casefold(): key for key in (*HEADER_KEYS, *STEP_KEYS, "Accept")}
    key = known.get(match[1].casefold(), match[1])
    if key not in known.values():
        near = difflib.get_close_matches(key.casefold(), known, 1, 0.8)
        if near:
            raise RolloutError(f"{path}:{line}: unknown comment key '{key}:'; did you mean '{known[near[0]]}:'?")
        return "", ""
    return key, match[2]


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def _syntax_error(text: str, path: str, error: parser.ParseError) -> str:
    message, offset = error.args[0], error.args[1] or 0
    line = _line(text, offset)
    column = offset - (text.rfind("\n", 0, offset) + 1) + 1
    source = text.splitlines()[line - 1].lstrip() if text.splitlines() else ""
    if source.startswith("\\"):
        message = f"'{source.split()[0]}' is a psql command, not SQL; remove it"
    return f"{path}:{line}:{column}: {message}."
