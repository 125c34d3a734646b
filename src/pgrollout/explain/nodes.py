"""The nodes of plans: one flat list, in the order in which EXPLAIN prints them, each knowing its parent.

A plan is what `explain_parse` gives: a list of documents shaped as the elements of EXPLAIN (FORMAT JSON). Everything
here walks lists instead of recursing, so that a deep plan is no deeper than a long one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pgrollout.errors import RolloutError
from pgrollout.migration.names import identifier

GATHERS = ("Gather", "Gather Merge")
JOINS = ("Nested Loop", "Hash Join", "Merge Join")
BITMAP_PARTS = ("Bitmap Index Scan", "BitmapAnd", "BitmapOr")
WRITES = "ModifyTable"
# What names a thing instead of saying what is done with it.
_NAMES = {"Node Type", "Parent Relationship", "Subplan Name", "Relation Name", "Schema", "Alias", "Index Name"}
_STRING = re.compile(r"'(?:[^']|'')*'")
_AGGREGATES = {"Sorted": "GroupAggregate", "Hashed": "HashAggregate", "Mixed": "MixedAggregate"}
# Where the name of what a scan reads stands, when it is no relation.
_SOURCES = ("Function Name", "CTE Name", "Table Function Name", "Tuplestore Name")


@dataclass(eq=False, slots=True)
class Node:
    """A node: `raw` as PostgreSQL gave it, and its place. `number` counts through all documents, `path` is
    "statement.child.child": "0" is the root of the first statement, "0.1" that root's second child."""

    raw: Mapping[str, Any]
    number: int
    path: str
    depth: int
    parent: Node | None
    children: list[Node] = field(default_factory=list)

    @property
    def type(self) -> str:
        return str(self.raw["Node Type"])

    @property
    def relationship(self) -> str:
        return str(self.raw.get("Parent Relationship", ""))

    @property
    def is_initplan(self) -> bool:
        """Run when somebody first asks for its result, so inside the time of whoever asks. A CTE is one as well."""
        return self.relationship == "InitPlan"

    @property
    def is_subplan(self) -> bool:
        return self.relationship == "SubPlan"

    @property
    def subplan(self) -> str:
        """`InitPlan 1 (returns $0)`, `SubPlan 2`, `CTE name`, or `exists_1` from 19 on; empty for ordinary nodes."""
        return str(self.raw.get("Subplan Name", ""))

    @property
    def cte(self) -> str | None:
        """The name of the CTE that this node computes."""
        return self.subplan.removeprefix("CTE ") if self.is_initplan and self.subplan.startswith("CTE ") else None

    @property
    def loops(self) -> float | None:
        """How often it ran, over all processes; 0 = never executed; None = not ANALYZE."""
        return number(self.raw, "Actual Loops")

    def ancestors(self) -> Iterator[Node]:
        """From its parent up to the root."""
        node = self.parent
        while node:
            yield node
            node = node.parent

    def subtree(self) -> Iterator[Node]:
        """Itself and all below it, as printed."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))


def number(raw: Mapping[str, Any], key: str) -> float | None:
    """A number, or None where there is none: PostgreSQL leaves out what it does not know."""
    value = raw.get(key)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def whole(raw: Mapping[str, Any], key: str) -> int | None:
    value = number(raw, key)
    return None if value is None else int(value)


def documents(plans: Any, asked_by: str) -> list[Mapping[str, Any]]:
    """The documents of a list, or of one document alone; an error says what came instead."""
    found = [plans] if isinstance(plans, Mapping) else plans
    if not isinstance(found, Sequence) or isinstance(found, (str, bytes)) or not found:
        raise RolloutError(_wrong(asked_by, "nothing" if found == [] else f"a value of type {type(plans).__name__}"))
    for document in found:
        if not isinstance(document, Mapping) or not isinstance(document.get("Plan"), Mapping):
            raise RolloutError(_wrong(asked_by, "a list with an element that has no 'Plan'"))
    return list(found)


def _wrong(asked_by: str, found: str) -> str:
    return (
        f"{asked_by} got {found}; it needs the plans that explain_parse returns: "
        f"put '| explain_parse' in front of '| {asked_by}'."
    )


def flat(found: Sequence[Mapping[str, Any]], asked_by: str) -> list[Node]:
    """All nodes of all documents, parents before children."""
    nodes: list[Node] = []
    stack: list[tuple[Any, str, Node | None]] = [
        (document["Plan"], str(index), None) for index, document in reversed(list(enumerate(found)))
    ]
    while stack:
        raw, path, parent = stack.pop()
        if not isinstance(raw, Mapping) or not isinstance(raw.get("Node Type"), str):
            raise RolloutError(_wrong(asked_by, f"a node without 'Node Type' at {path}"))
        node = Node(raw, len(nodes), path, 0 if parent is None else parent.depth + 1, parent)
        nodes.append(node)
        if parent is not None:
            parent.children.append(node)
        below = raw.get("Plans") or []
        if not isinstance(below, Sequence) or isinstance(below, str):
            raise RolloutError(_wrong(asked_by, f"a node at {path} whose 'Plans' is no list"))
        stack.extend((child, f"{path}.{index}", node) for index, child in reversed(list(enumerate(below))))
    return nodes


def expressions(node: Node) -> Iterator[tuple[str, str]]:
    """(key, text) of whatever a node computes: conditions, keys, output; each text of a list by itself."""
    for key, value in node.raw.items():
        if key not in _NAMES and key != "Plans":
            for text in texts(value):
                yield key, text


def texts(value: Any) -> Iterator[str]:
    """The strings of a value, lists in lists included (Grouping Sets are such)."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, Mapping):
        yield from texts(list(value.values()))


def without_literals(text: str) -> str:
    """An expression whose strings are empty, so that what looks like a name in it is one."""
    return _STRING.sub("''", text)


def operation(raw: Mapping[str, Any]) -> str:
    """What a node does, in the words of EXPLAIN's text: `Parallel Hash Left Join`, `Partial HashAggregate`."""
    name = str(raw["Node Type"])
    if name == "Aggregate":
        name = _AGGREGATES.get(raw.get("Strategy", ""), name)
    elif name == "SetOp":
        name = f"{'Hash' if raw.get('Strategy') == 'Hashed' else ''}SetOp {raw.get('Command', '')}".rstrip()
    elif name == WRITES:
        name = str(raw.get("Operation", name))
    elif name == "Foreign Scan" and raw.get("Operation", "Select") != "Select":
        name = f"Foreign {raw['Operation']}"
    elif name == "Custom Scan" and "Custom Plan Provider" in raw:
        name = f"Custom Scan ({raw['Custom Plan Provider']})"
    elif name in JOINS and raw.get("Join Type", "Inner") != "Inner":
        # "Hash Left Join", but "Nested Loop Left Join"
        name = f"{name.removesuffix(' Join')} {raw['Join Type']} Join"
    if raw.get("Scan Direction") == "Backward":
        name += " Backward"
    if raw.get("Partial Mode", "Simple") != "Simple":
        name = f"{raw['Partial Mode']} {name}"
    if raw.get("Parallel Aware") is True:
        name = f"Parallel {name}"
    return name


def relation(node: Node) -> str | None:
    """The table or index that is read or written, with its schema where the plan tells it."""
    name = node.raw.get("Relation Name")
    return _qualified(node.raw, name) if isinstance(name, str) else None


def _qualified(raw: Mapping[str, Any], name: str) -> str:
    schema = raw.get("Schema")
    return f"{identifier(schema)}.{identifier(name)}" if isinstance(schema, str) else identifier(name)


def label(node: Node) -> str:
    """The node on one line: `Index Scan using orders_pkey on public.orders o`."""
    raw = node.raw
    index = raw.get("Index Name")
    source = relation(node) or next((_qualified(raw, str(raw[key])) for key in _SOURCES if key in raw), None)
    alias = identifier(raw["Alias"]) if isinstance(raw.get("Alias"), str) else None
    if node.type == "Bitmap Index Scan":
        target = f" on {identifier(str(index))}" if index else ""
    else:
        target = f" using {identifier(str(index))}" if index else ""
        if source or alias:
            known = source is not None and alias in (None, source, source.rpartition(".")[2])
            target += f" on {source}" if known else f" on {' '.join(filter(None, (source, alias)))}"
    return (operation(raw) + target).replace("\n", "\\n")
