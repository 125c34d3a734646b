# Copyright: contributors of this project
# GNU General Public License v3.0 or later (see LICENSE)
"""What a database holds and looks like, taken in one snapshot, and how two of those differ."""

from __future__ import annotations

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


def contents(session: Any, digest_max_bytes: int | None = None) -> dict[str, Any]:
    """{tables: {name: {rows, digest}}, sequences: {name: [value, handed out]}, catalog: {object: definition}}.

    In the session's snapshot. A table larger than `digest_max_bytes` is counted, and its digest is None.
    """
    found: dict[str, Any] = {"tables": {}}
    with session.cursor() as cursor:
        cursor.execute(TABLES)
        for schema, table, name, size, columns in cursor.fetchall():
            if digest_max_bytes is not None and size > digest_max_bytes:
                cursor.execute(sql.SQL("SELECT count(*) FROM ONLY {}").format(sql.Identifier(schema, table)))
                found["tables"][name] = {"rows": cursor.fetchone()[0], "digest": None}
            else:
                cursor.execute("SELECT pg_temp.digest(%s::regclass, %s)", (name, columns))
                (answer,) = cursor.fetchone()
                found["tables"][name] = {key: answer[key] for key in ("rows", "digest")}
        cursor.execute("SELECT pg_temp.sequence_values(), pg_temp.fingerprint(false)")
        found["sequences"], found["catalog"] = cursor.fetchone()
    return found


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What the second lacks or has otherwise, each as a phrase; a table without a digest in the first is counted."""
    tables, restored = expected["tables"], found["tables"]
    told = [_table(name, tables.get(name), restored.get(name)) for name in sorted(tables.keys() | restored.keys())]
    for part, what in (("sequences", "sequence "), ("catalog", "")):
        one, other = expected[part], found[part]
        for name in sorted(one.keys() | other.keys()):
            then, now = one.get(name, "not there"), other.get(name, "not there")
            told.append(f"{what}{name} was [{then}], restored [{now}]" if then != now else "")
    return [phrase for phrase in told if phrase]


def _table(name: str, expected: dict[str, Any] | None, found: dict[str, Any] | None) -> str:
    counts = [f"{each['rows']} rows" if each else "no such table" for each in (expected, found)]
    if counts[0] != counts[1]:
        return f"{name} had {counts[0]}, restored {counts[1]}"
    if expected and found and expected["digest"] is not None and expected["digest"] != found["digest"]:
        return f"{name} has as many rows as it had, {expected['rows']}, but not the same ones"
    return ""
