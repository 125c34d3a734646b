"""What a rollback would lose: the steps that keep it before a column or table goes, and that give it back.

An entry of the ledger's `kept`, as facts.sql returns it: {kept_id, run_id, relation, columns (NULL: the whole table),
key, copied, rows, state: capturing | kept}. See roles/ledger/files/46_keep.sql for how it is kept.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from pgrollout.migration.names import bare, identifiers, in_id, shown
from pgrollout.migration.text import literal


def keeping(steps: list[dict[str, Any]], facts: dict[str, Any], keep: bool) -> list[dict[str, Any]]:
    """A migration's decided rollback steps, with those that keep what its drops take away.

    Before the first DROP COLUMN of a table its columns begin to be kept and are walked over, behind the last one the
    keeping ends. A DROP TABLE becomes a move. Without `keep` only what was begun ends.
    """
    columns = [step for step in steps if step["kind"] == "DROP COLUMN"]
    by_table = {
        table: list(drops)
        for table, drops in groupby(sorted(columns, key=_table_of), key=_table_of)
        if keep and any(step["state"] == "pending" for step in drops)
    }
    for table in {_table_of(step) for step in columns} - by_table.keys():
        if _capturing(facts, table):
            by_table[table] = []
    first = {table: next(step for step in columns if _table_of(step) == table) for table in by_table}
    last = {table: next(step for step in reversed(columns) if _table_of(step) == table) for table in by_table}
    found = []
    for step in steps:
        table = _table_of(step) if step["kind"] == "DROP COLUMN" else ""
        if keep and table in first and step is first[table]:
            pending = [each for each in columns if _table_of(each) == table and each["state"] == "pending"]
            found += _begin(step, table, [each["object"]["name"] for each in pending], facts)
        if keep and step["kind"] == "DROP TABLE" and step["state"] == "pending":
            step = step | {"sql": f"SELECT pgrollout.keep_table({literal(_table_of(step))}, {literal(step['sql'])})"}
        found.append(step)
        if table in last and step is last[table]:
            found.append(_end(step, table))
    return found


def giving_back(steps: list[dict[str, Any]], facts: dict[str, Any], restore: bool) -> list[dict[str, Any]]:
    """A migration's decided steps, with those that give back what was kept of what it makes.

    Where its columns and constraints are there, and before a backfill takes a row without a value for one that nobody
    has written. A keeping that was broken off ends first; without `restore` that is all.
    """
    made: dict[str, set[str] | None] = {}  # table: its columns that this migration makes, None for the table as a whole
    for step in steps:
        if step["kind"] == "CREATE TABLE" and step["state"] in ("pending", "satisfied"):
            made[_table_of(step)] = None
        elif step["kind"] == "ADD COLUMN" and step["state"] in ("pending", "satisfied"):
            columns = made.setdefault(_table_of(step), set())
            if columns is not None:
                columns.add(step["object"]["name"])
    found = list(steps)
    for table, columns in made.items():
        entry = _newest(facts, table, columns)
        if not entry:
            continue
        place = _where_given_back(found, table)
        if restore:
            found.insert(place, _give_back(found[place - 1], entry))
        if entry["state"] == "capturing":
            found.insert(0, _end(steps[0], table))
    return found


def _where_given_back(steps: list[dict[str, Any]], table: str) -> int:
    """Behind what makes the table, its columns, partitions and constraints, but before a backfill of it."""
    makes = ("CREATE TABLE", "ADD COLUMN", "ADD CONSTRAINT", "ATTACH PARTITION")
    first = last = fill = 0
    for place, step in enumerate(steps, 1):
        own = bool(step["object"]) and _table_of(step) == table
        if own and step["kind"] in ("CREATE TABLE", "ADD COLUMN"):
            first = last = place
        elif step["kind"].startswith(makes) and (own or _takes_in(step, table)):
            last = place
        elif step["mode"] == "data" and step["backfill"]["table"] == table:
            fill = fill or place
    return max(first, min(last, fill - 1)) if fill else last


def _takes_in(step: dict[str, Any], table: str) -> bool:
    """Whether the step makes a partition of `table`: one that only refers to it has a weaker lock."""
    modes = [lock["mode"] for lock in step["locks"][:1] if lock["relation"] == table]
    return (step["kind"] == "ATTACH PARTITION" and bool(modes)) or modes == ["ACCESS EXCLUSIVE"]


def _newest(facts: dict[str, Any], table: str, columns: set[str] | None) -> dict[str, Any] | None:
    """The newest entry of a table as a whole (None), or of columns that are all among `columns`."""
    found = [
        entry
        for entry in _entries(facts, table)
        if (entry["columns"] is None if columns is None else set(entry["columns"] or ("",)) <= columns)
    ]
    return max(found, key=lambda entry: int(entry["kept_id"]), default=None)


def label(entry: dict[str, Any]) -> str:
    """`1,234 rows of agents (columns a, b), kept from run 7`"""
    columns = f" (columns {identifiers(entry['columns'])})" if entry["columns"] is not None else ""
    rows = f"{entry['rows']:,} rows" if entry["state"] == "kept" else "rows"
    return f"{rows} of {shown(entry['relation'])}{columns}, kept by run {entry['run_id']}"


def _begin(model: dict[str, Any], table: str, columns: list[str], facts: dict[str, Any]) -> list[dict[str, Any]]:
    entry = _capturing(facts, table)
    names = ", ".join(literal(name) for name in columns)
    begin = _step(
        model, table, "keep", "KEEP COLUMNS", f"SELECT pgrollout.keep_columns({literal(table)}, ARRAY[{names}])"
    )
    walk = _step(
        model, table, "keep_rows", "KEEP ROWS", f"-- what stands in {identifiers(columns)} and is not the default"
    )
    begin["locks"] = [{"relation": table, "mode": "SHARE ROW EXCLUSIVE"}]
    walk |= {"mode": "keep", "keeps": table, "locks": [{"relation": table, "mode": "ROW SHARE"}]}
    if entry:
        begin |= {"state": "satisfied", "reason": f"run {entry['run_id']} began it"}
    if entry and entry["copied"]:
        walk |= {"state": "satisfied"}
    return [begin, walk]


def _end(model: dict[str, Any], table: str) -> dict[str, Any]:
    step = _step(model, table, "keep_end", "END KEEP", f"SELECT pgrollout.end_keep({literal(table)})")
    return step | {"locks": [{"relation": table, "mode": "ACCESS EXCLUSIVE"}]}


def _give_back(model: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    step = _step(model, entry["relation"], "give_back", "GIVE BACK", "SELECT FROM restored")
    step |= {
        "reason": f"{label(entry)}; -e restore_kept=false leaves them there",
        "gives_back": entry["kept_id"],
        "locks": [{"relation": entry["relation"], "mode": "ROW EXCLUSIVE"}],
        "rows": entry["rows"],
    }
    if entry["columns"] is None:
        return step | {"mode": "give_back", "sql": f"-- rows of {entry['place']}"}
    spec = {"table": entry["relation"], "key": entry["key"], "columns": entry["columns"]}
    return step | {"mode": "restore", "restores": f"keep {entry['kept_id']}", "backfill": spec}


def _step(model: dict[str, Any], table: str, verb: str, kind: str, sql: str) -> dict[str, Any]:
    """A step of the engine's own beside one of the author's."""
    name = f"{verb}_{in_id(bare(table))}"
    mine = {"id": f"{model['migration']}/{name}", "name": name, "kind": kind, "sql": sql, "written": ""}
    nothing: dict[str, Any] = {
        "object": None,
        "hazards": [],
        "accepted": [],
        "undoes": [],
        "refused": "",
        "reason": "",
        "restores": "",
    }
    return {**model, **nothing, **mine, "mode": "ddl", "truth": "ledger", "state": "pending"}


def _table_of(step: dict[str, Any]) -> str:
    return str(step["object"]["table"])


def _entries(facts: dict[str, Any], table: str) -> list[dict[str, Any]]:
    return [entry for entry in facts.get("ledger", {}).get("kept", []) if entry["relation"] == table]


def _capturing(facts: dict[str, Any], table: str) -> dict[str, Any] | None:
    return next((entry for entry in _entries(facts, table) if entry["state"] == "capturing"), None)
