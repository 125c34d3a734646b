"""Names: the one form in which relations travel, those that PostgreSQL gives to what has none, look-ups by name.

A relation is known everywhere (plan, facts, ledger, probe) by what `format('%I.%I', schema, name)` prints, so that its
text can stand in a statement, be given to `to_regclass` and be taken apart by `parse_ident`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pglast import ast, keywords, parse_sql, parser

from pgrollout.migration.text import literal, quoted

MAX_BYTES = 63
# Kinds of objects whose name is a canonical text; that of a column, index or trigger is the bare name.
QUALIFIED = ("table", "view", "function", "type", "sequence")
# Kinds whose name is unique in its schema: DROP names them without their table.
OF_NO_TABLE = ("index", "statistics")
_WORDS = keywords.RESERVED_KEYWORDS | keywords.TYPE_FUNC_NAME_KEYWORDS | keywords.COL_NAME_KEYWORDS
_PART = r'"(?:[^"]|"")+"|[^."]+'
_TWO_PARTS = re.compile(f"({_PART})\\.({_PART})")


def identifier(name: str) -> str:
    """A name as PostgreSQL's quote_ident prints it: in double quotes only where it needs them."""
    return name if re.fullmatch("[a-z_][a-z0-9_]*", name) and name not in _WORDS else quoted(name)


def identifiers(names: Iterable[str]) -> str:
    """`a, "userId"`"""
    return ", ".join(map(identifier, names))


def qualified(schema: str, name: str) -> str:
    """The canonical text of a relation, type or function."""
    return f"{identifier(schema)}.{identifier(name)}"


def parts(relation: str) -> tuple[str, str]:
    """(schema, name) of a canonical text."""
    match = _TWO_PARTS.fullmatch(relation)
    if not match:
        raise ValueError(f"{relation!r} is no schema and name")
    schema, name = (part[1:-1].replace('""', '"') if part.startswith('"') else part for part in match.groups())
    return schema, name


def canonical(relation: str) -> str:
    """What a server has printed, as we print it: each version has keywords, and so quotes, of its own."""
    return qualified(*parts(relation))


def bare(relation: str) -> str:
    """The name alone, without quotes."""
    return parts(relation)[1]


def beside(relation: str, name: str) -> str:
    """The canonical text of what lives in the schema of `relation`, as its indexes do."""
    return qualified(parts(relation)[0], name)


def shown(relation: str) -> str:
    """For people: without the schema where that is `public`."""
    return relation.removeprefix("public.")


def in_id(text: str) -> str:
    """As part of a step's id: with what a shell, a list with commas and a log line leave alone."""
    return re.sub(r"[^\w.-]+", "_", text)


def column_names(text: str) -> list[str]:
    """The names in `id, "userId"`, read as SQL reads them; [] where that is no list of names."""
    try:
        (statement,) = parse_sql(f"SELECT {text}")
        columns = [target.val.fields for target in statement.stmt.targetList or () if target.name is None]
        names = [field for (field,) in columns]
    except (parser.ParseError, AttributeError, ValueError):
        return []
    return [name.sval for name in names] if all(isinstance(name, ast.String) for name in names) else []


def object_name(table: str, columns: list[str], label: str) -> str:
    """`table_column_label`, shortened as PostgreSQL does: the longer of table and columns gives way, bytewise."""
    first, second = table.encode(), "_".join(columns).encode()
    room = MAX_BYTES - len(label) - 1 - (1 if second else 0)
    while len(first) + len(second) > room:
        first, second = (first[:-1], second) if len(first) > len(second) else (first, second[:-1])
    shortened = [part.decode(errors="ignore") for part in (first, second) if part]
    return "_".join([*shortened, label])


def regclass(relation: str) -> str:
    """A canonical text as an expression of type regclass, NULL where there is no such relation."""
    return f"to_regclass({literal(relation)})"
