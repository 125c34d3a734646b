# Copyright: contributors of this project
# GNU General Public License v3.0 or later (see LICENSE)
"""What a database holds and looks like, taken in one snapshot, and how two of those differ."""

from __future__ import annotations

import re
from typing import Any

try:
    from psycopg2 import sql
except ImportError:
    sql = None

# Tables whose rows pg_dump writes: not foreign tables, not temporary ones, not what belongs to an extension.
TABLES = """
SELECT n.nspname, c.relname, format('%I.%I', n.nspname, c.relname), pg_table_size(c.oid),
       (SELECT coalesce(array_agg(a.attname::text ORDER BY a.attname), '{}') FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't'
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1, 2
"""


def prepare(session: Any, functions: str) -> None:
    """Make the ledger's functions (roles/ledger/files/48_contents.sql) in the session's own schema.

    Outside of a transaction: what compares contents is read-only.
    """
    with session.cursor() as cursor:
        cursor.execute(functions.replace("pgrollout.", "pg_temp."))
        cursor.execute("SET row_security = off")  # fails where a policy would hide rows


def contents(session: Any, digest_max_bytes: int | None = None, like: dict[str, Any] | None = None) -> dict[str, Any]:
    """{tables: {name: {rows, digest, sample}}, sequences: {name: [value, handed out]}, catalog: {object: definition}}.

    In the session's snapshot. Of a table larger than `digest_max_bytes` only a sample is digested: `sample` is the
    condition of its rows, and None otherwise. Without a primary key there is none, and its digest is None. `like`: the
    tables of other contents, whose samples are taken here too.
    """
    found: dict[str, Any] = {"tables": {}}
    with session.cursor() as cursor:
        cursor.execute(TABLES)
        for schema, table, name, size, columns in cursor.fetchall():
            whole = sql.Identifier(schema, table)
            if like is not None:
                sample, counted = _sampled_like(like.get(name))
            else:
                sample, counted = _sampled(cursor, name, digest_max_bytes is not None and size > digest_max_bytes)
            found["tables"][name] = {"sample": sample, **_rows(cursor, whole, name, columns, sample, counted)}
        cursor.execute("SELECT pg_temp.sequence_values(), pg_temp.fingerprint(false)")
        found["sequences"], found["catalog"] = cursor.fetchone()
    return found


def _sampled(cursor: Any, name: str, large: bool) -> tuple[str | None, bool]:
    """(the sample's condition, whether the table is only counted)"""
    if not large:
        return None, False
    cursor.execute("SELECT pg_temp.sample_of(%s::regclass)", (name,))
    (condition,) = cursor.fetchone()
    return condition, condition is None


def _sampled_like(other: dict[str, Any] | None) -> tuple[str | None, bool]:
    return (other["sample"], other["digest"] is None) if other else (None, False)


def _rows(cursor: Any, table: Any, name: str, columns: list[str], sample: str | None, counted: bool) -> dict[str, Any]:
    answer = {"digest": None}
    if not counted:
        cursor.execute("SELECT pg_temp.digest(%s::regclass, %s, %s)", (name, columns, sample or "true"))
        (answer,) = cursor.fetchone()
    if counted or sample:
        cursor.execute(sql.SQL("SELECT count(*) FROM ONLY {}").format(table))
        return {"rows": cursor.fetchone()[0], "digest": answer["digest"]}
    return {key: answer[key] for key in ("rows", "digest")}


def told(held: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What a proof says of how much was compared."""
    tables = held["tables"].items()
    return {
        "counted_only": [name for name, table in tables if table["digest"] is None],
        "sampled": [name for name, table in tables if table["sample"]],
        "sequences": len(found["sequences"]),
        "objects": len(found["catalog"]),
    }


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What the second lacks or has otherwise, each as a phrase; a table without a digest in the first is counted."""
    sequences = _by_name(expected["sequences"], found["sequences"], "sequence ")
    return table_differences(expected, found) + sequences + catalog_differences(expected, found)


def table_differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    tables, restored = expected["tables"], found["tables"]
    phrases = [_table(name, tables.get(name), restored.get(name)) for name in sorted(tables.keys() | restored.keys())]
    return [phrase for phrase in phrases if phrase]


def catalog_differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Of the objects; one that a dump leaves out, an INVALID index, may be missing."""
    found = {name: _plain(what) for name, what in found["catalog"].items()}
    held = {name: _plain(what) for name, what in expected["catalog"].items() if name in found or not _is_invalid(what)}
    return _by_name(held, found, "")


# A cast as the server prints it: a type's name, its modifiers, dimensions.
CAST = re.compile(
    r'::(?:"(?:[^"]|"")+"|[a-z_]\w*)(?:\.(?:"(?:[^"]|"")+"|[a-z_]\w*))?(?: varying| precision)?'
    r"(?:\(\d+(?:,\d+)?\))?(?: with(?:out)? time zone)?(?:\[\])*"
)


def _plain(definition: str) -> str:
    """A definition without casts, parentheses and blanks.

    An expression that was printed, read and printed again is the same to the server but may have them elsewhere:
    (ARRAY['a'::varchar])::text[] becomes ARRAY[('a'::varchar)::text].
    """
    return re.sub(r"[()\s]", "", CAST.sub("", definition))


def _is_invalid(definition: str) -> bool:
    return bool(re.search(r"; valid f; ready [tf]$", definition))


def _by_name(one: dict[str, Any], other: dict[str, Any], what: str) -> list[str]:
    # A table that is missing is told before what is missing with it.
    names = sorted({*one, *other}, key=lambda name: (not name.startswith("table "), name))
    pairs = [(name, one.get(name, "not there"), other.get(name, "not there")) for name in names]
    return [f"{what}{name} was [{then}], restored [{now}]" for name, then, now in pairs if then != now]


def _table(name: str, expected: dict[str, Any] | None, found: dict[str, Any] | None) -> str:
    counts = [f"{each['rows']} rows" if each else "no such table" for each in (expected, found)]
    if counts[0] != counts[1]:
        return f"{name} had {counts[0]}, restored {counts[1]}"
    if expected and found and expected["digest"] is not None and expected["digest"] != found["digest"]:
        return f"{name} has as many rows as it had, {expected['rows']}, but not the same ones"
    return ""
