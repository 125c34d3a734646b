"""Indexes of partitioned tables: PostgreSQL neither builds nor drops them concurrently as a whole.

An entry ON ONLY the table that builds nothing, then each partition's index concurrently, then its ATTACH, however deep;
with the last one the server marks the whole as valid, and where it has not, the plan says so. Which partitions there
are, and what they have already, only the facts say, so this is done to the plan and not to the file; a plan after a
cut-off goes on from what it finds.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any

from pglast import parse_sql

from pgrollout.migration.locks import ACCESS_EXCLUSIVE, SHARE, SHARE_UPDATE_EXCLUSIVE, lock
from pgrollout.migration.names import MAX_BYTES, bare, beside, canonical, in_id, parts
from pgrollout.migration.rewrite import printed


def build_in_parts(step: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps that take the place of a decided concurrent build on a partitioned table; [step] of any other.

    Reads step['fact']['partitions']: [{relation, parent, leaf, rows, bytes, indexes: [{name, shape, valid, parent}]}],
    parents before their children.
    """
    fact = step.get("fact", {})
    partitions, wanted = fact.get("partitions"), (fact.get("wanted") or {}).get("shape")
    concurrent = step["kind"] == "CREATE INDEX CONCURRENTLY"
    if not concurrent or partitions is None or step["state"] not in ("pending", "satisfied"):
        return [step]
    actual = fact.get("actual") or {}
    if step["state"] == "satisfied" and (not actual or actual["shape"] != wanted):
        return [step]  # a later step has taken it away, or its place
    table = step["object"]["table"]
    partitions = _labelled([_canonical(partition) for partition in partitions])
    index_of = {table: beside(table, step["object"]["name"])}
    if step["state"] == "pending" and actual:  # dropped first, and with it what is attached to it
        partitions, actual = _without(index_of[table], partitions), {}
    invalid = {table} if actual and not actual["valid"] else set()
    steps = [_entry(step)]
    settled: set[str] = set()  # tables whose index a step below them sees to
    for partition in partitions:
        name, parent = partition["relation"], index_of[partition["parent"]]
        own = beside(name, _index_name(bare(name), step["object"]["name"]))
        attached = [index for index in partition["indexes"] if index["parent"] == parent]
        equal = [index for index in partition["indexes"] if not index["parent"] and index["shape"] == wanted]
        usable = [index for index in equal if index["valid"] or not partition["leaf"]]
        taken = [index for index in partition["indexes"] if index["name"] == own]
        found = [*attached, *usable]
        index_of[name] = found[0]["name"] if found else own
        if not found:
            steps.append(_build(step, partition, own) | _state(taken, wanted))
        elif partition["leaf"] and not found[0]["valid"]:
            settled |= _above(partition, partitions)
            reason = f"the attached index {found[0]['name']} is INVALID; REINDEX INDEX CONCURRENTLY it first"
            steps.append(_build(step, partition, own) | {"state": "conflict", "reason": reason})
        elif not found[0]["valid"]:
            invalid.add(name)
        if not attached:
            steps.append(_attach(step, partition, index_of[name], parent))
            settled |= _above(partition, partitions)
    # A REINDEX makes an attached part valid and leaves what is above it INVALID; an ATTACH, once more, looks again.
    for partition in reversed(partitions):
        name, parent = partition["relation"], partition["parent"]
        if parent in invalid - settled:
            steps.append(_attach(step, partition, index_of[name], index_of[parent]))
            settled |= _above(partition, partitions)
    return steps


def _above(partition: dict[str, Any], partitions: list[dict[str, Any]]) -> set[str]:
    """The tables that a partition lies in: an ATTACH below marks the index of each as valid that it completes."""
    parent_of = {each["relation"]: each["parent"] for each in partitions}
    found, name = set(), partition["relation"]
    while name in parent_of:
        name = parent_of[name]
        found.add(name)
    return found


def _without(index: str, partitions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The partitions as they are once `index` is dropped."""
    gone, left = {index}, []
    for partition in partitions:
        gone |= {each["name"] for each in partition["indexes"] if each["parent"] in gone}
        left.append(partition | {"indexes": [each for each in partition["indexes"] if each["name"] not in gone]})
    return left


def _canonical(partition: dict[str, Any]) -> dict[str, Any]:
    """A partition of the facts, with every name as we print it."""
    indexes = [
        index | {"name": canonical(index["name"]), "parent": index["parent"] and canonical(index["parent"])}
        for index in partition["indexes"]
    ]
    names = {"relation": canonical(partition["relation"]), "parent": canonical(partition["parent"])}
    return partition | names | {"indexes": indexes}


def _labelled(partitions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each with what it is called in the ids of its steps, also where another schema has one of that name."""
    labels: set[str] = set()
    found = []
    for partition in partitions:
        stem = in_id(bare(partition["relation"])).replace(".attach", "_attach")
        candidates = [stem, *(f"{stem}.{number}" for number in range(2, len(partitions) + 2))]
        label = next(each for each in candidates if each not in labels)
        labels.add(label)
        found.append(partition | {"label": label})
    return found


def build_at_once(steps: list[dict[str, Any]], relations: dict[str, Any]) -> None:
    """Builds plainly what lies on a partitioned table that this run makes: nobody's yet, and its parts unknown."""
    tables = [step for step in steps if step["kind"] == "CREATE TABLE"]
    made = {step["object"]["table"] for step in tables if parse_sql(step["sql"])[0].stmt.partspec}
    for step in steps:
        table = step["object"]["table"] if step["kind"] == "CREATE INDEX CONCURRENTLY" else ""
        if step["state"] == "pending" and table in made and table not in relations:
            tree = parse_sql(step["sql"])[0].stmt
            tree.concurrent = False
            step |= {
                "kind": "CREATE INDEX",
                "mode": "ddl",
                "sql": printed(tree),
                "written": step["written"] or step["sql"],
                "locks": [lock(table, SHARE)],
            }


def drop_as_a_whole(step: dict[str, Any], relations: dict[str, Any]) -> dict[str, Any]:
    """What changes of a concurrent drop where the index is a partitioned one: a short transaction, with these locks."""
    actual = step.get("fact", {}).get("actual") or {}
    if step["kind"] != "DROP INDEX CONCURRENTLY" or not actual.get("partitioned"):
        return {}
    tree = parse_sql(step["sql"])[0].stmt
    tree.concurrent = False
    tables = [actual["table"], *relations.get(actual["table"], {}).get("children", [])]
    return {
        "kind": "DROP INDEX",
        "mode": "ddl",
        "sql": printed(tree),
        "written": step["written"] or step["sql"],
        "locks": [lock(table, ACCESS_EXCLUSIVE) for table in tables],
    }


def _state(taken: list[dict[str, Any]], wanted: str | None) -> dict[str, str]:
    """The state of a build, by the index that already bears its name."""
    if not taken:
        return {"state": "pending", "reason": ""}
    if taken[0]["shape"] == wanted and not taken[0]["valid"]:
        return {"state": "rebuild", "reason": "an INVALID index of this definition was left by a build that failed"}
    return {"state": "conflict", "reason": f"{taken[0]['name']} is there with another definition; rename or drop it"}


def _index_name(partition: str, index: str) -> str:
    """`partition_index`; one that is too long ends in a digest of the whole, so that no two become one."""
    name = f"{partition}_{index}"
    if len(name.encode()) <= MAX_BYTES:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name.encode()[: MAX_BYTES - 9].decode(errors="ignore") + "_" + digest


def _entry(step: dict[str, Any]) -> dict[str, Any]:
    """The index of the whole, which builds nothing; it bears the step's own id."""
    table = step["object"]["table"]
    sql = _statement(step["sql"], table, step["object"]["name"], only=True)
    return step | {
        "kind": "CREATE INDEX",
        "mode": "ddl",
        "sql": sql,
        "written": step["written"] or step["sql"],
        "locks": [lock(table, SHARE)],
    }


def _part(step: dict[str, Any], partition: dict[str, Any], suffix: str) -> dict[str, Any]:
    name = f"{step['name']}/{partition['label']}{suffix}"
    return step | {
        "id": f"{step['migration']}/{name}",
        "name": name,
        "state": "pending",
        "reason": "",
        "written": step["written"] or step["sql"],
        "rows": partition["rows"],
        "bytes": partition["bytes"],
    }


def _build(step: dict[str, Any], partition: dict[str, Any], index: str) -> dict[str, Any]:
    table = partition["relation"]
    concurrent = bool(partition["leaf"])
    return _part(step, partition, "") | {
        "kind": "CREATE INDEX CONCURRENTLY" if concurrent else "CREATE INDEX",
        "mode": "concurrent" if concurrent else "ddl",
        "object": step["object"] | {"table": table, "name": bare(index)},
        "locks": [lock(table, SHARE_UPDATE_EXCLUSIVE if concurrent else SHARE)],
        "sql": _statement(step["sql"], table, bare(index), only=not concurrent),
    }


def _attach(step: dict[str, Any], partition: dict[str, Any], index: str, parent: str) -> dict[str, Any]:
    return _part(step, partition, ".attach") | {
        "kind": "ATTACH INDEX",
        "mode": "ddl",
        "object": None,
        "locks": [lock(parent, SHARE_UPDATE_EXCLUSIVE), lock(index, ACCESS_EXCLUSIVE)],
        "sql": f"ALTER INDEX {parent} ATTACH PARTITION {index}",
    }


def _statement(sql: str, table: str, name: str, only: bool) -> str:
    tree = copy.deepcopy(parse_sql(sql)[0].stmt)
    tree.idxname, tree.concurrent, tree.relation.inh = name, not only, not only
    tree.relation.schemaname, tree.relation.relname = parts(table)
    return printed(tree)
