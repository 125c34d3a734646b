"""Text inside SQL: names and values, quoted."""

from __future__ import annotations


def quoted(name: str) -> str:
    """An identifier in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A SQL string literal (standard_conforming_strings is on by default since 9.1)."""
    return "'" + text.replace("'", "''") + "'"
