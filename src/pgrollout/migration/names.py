"""Names: those that PostgreSQL gives to what has none, and how a query finds a relation by its name."""

from __future__ import annotations

from pgrollout.migration.text import literal, quoted

MAX_BYTES = 63


def object_name(table: str, columns: list[str], label: str) -> str:
    """`table_column_label`, shortened as PostgreSQL does: the longer of table and columns gives way, bytewise."""
    first, second = table.split(".")[-1].encode(), "_".join(columns).encode()
    room = MAX_BYTES - len(label) - 1 - (1 if second else 0)
    while len(first) + len(second) > room:
        first, second = (first[:-1], second) if len(first) > len(second) else (first, second[:-1])
    parts = [part.decode(errors="ignore") for part in (first, second) if part]
    return "_".join([*parts, label])


def regclass(relation: str) -> str:
    """`schema.name` as an expression of type regclass, NULL where there is no such relation."""
    schema, name = relation.split(".", 1)
    return f"to_regclass({literal(f'{quoted(schema)}.{quoted(name)}')})"
