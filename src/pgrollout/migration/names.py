"""Names: in double quotes, and those that PostgreSQL gives to what has none."""

from __future__ import annotations

MAX_BYTES = 63


def quoted(name: str) -> str:
    """An identifier in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def object_name(table: str, columns: list[str], label: str) -> str:
    """`table_column_label`, shortened as PostgreSQL does: the longer of table and columns gives way, bytewise."""
    first, second = table.split(".")[-1].encode(), "_".join(columns).encode()
    room = MAX_BYTES - len(label) - 1 - (1 if second else 0)
    while len(first) + len(second) > room:
        first, second = (first[:-1], second) if len(first) > len(second) else (first, second[:-1])
    parts = [part.decode(errors="ignore") for part in (first, second) if part]
    return "_".join([*parts, label])


def literal(text: str) -> str:
    """A SQL string literal (standard_conforming_strings is on by default since 9.1)."""
    return "'" + text.replace("'", "''") + "'"


def regclass(relation: str) -> str:
    """`schema.name` as an expression of type regclass, NULL where there is no such relation."""
    schema, name = relation.split(".", 1)
    return f"to_regclass({literal(f'{quoted(schema)}.{quoted(name)}')})"
