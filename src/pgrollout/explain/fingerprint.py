"""Fingerprints: whether two plans are the same plan, at three levels of detail.

- shape: what each node does (joins by their algorithm) and the relation it does it to
- access: how as well: join types, indexes, scan directions, what is parallel
- full: conditions and keys as well, without constants, tables numbered in the order in which they are printed

No level knows costs, row counts, measures, settings, numbers of workers, output lists or schemas, so a plan has the
same fingerprints with and without ANALYZE, VERBOSE or any other option, for other constants and on other versions.
"""

from __future__ import annotations

import hashlib
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pgrollout.explain.conditions import normalised
from pgrollout.explain.nodes import BITMAP_PARTS, Node, documents, flat, operation, texts
from pgrollout.migration.names import identifier

LEVELS = ("shape", "access", "full")
_SHAPE = ("Node Type", "Strategy", "Partial Mode", "Operation", "Command")
_ACCESS = (*_SHAPE, "Join Type", "Scan Direction", "Parallel Aware", "Custom Plan Provider")
# What is read: of a function scan the function's name, of a CTE scan the CTE's.
_READ = ("Relation Name", "Function Name", "CTE Name", "Table Function Name", "Tuplestore Name")
CONDITIONS = (
    "Index Cond",
    "Recheck Cond",
    "TID Cond",
    "Order By",
    "Hash Cond",
    "Merge Cond",
    "Join Filter",
    "Filter",
    "One-Time Filter",
    "Run Condition",
    "Cache Key",
    "Cache Mode",
    "Sort Key",
    "Presorted Key",
    "Group Key",
    "Grouping Sets",
    "Sampling Method",
    "Sampling Parameters",
    "Repeatable Seed",
    "Conflict Resolution",
    "Conflict Arbiter Indexes",
    "Conflict Filter",
)
_APPENDS = ("Append", "Merge Append")
_PARAMETER = re.compile(r"\$\d+")
_PARTITION = re.compile(r"(?:_?(?:[a-z]?\d+))+(?=_|$)|_default$")


def fingerprint(plans: Any, fold_partitions: bool = False) -> dict[str, dict[str, str]]:
    """`{"shape": {"hash", "text"}, "access": {…}, "full": {…}}` of what explain_parse returns.

    `hash` is 16 hexadecimal digits, `text` the normalised plan that it was made of. With `fold_partitions` the
    partitions below an Append count as one when they are read alike, so that a plan stays itself when partitions are
    added: their names are told without numbers.
    """
    nodes = flat(documents(plans, "explain_fingerprint"), "explain_fingerprint")
    found = {}
    for level, lines in normalised_lines(nodes).items():
        kept = _folded(nodes, lines) if fold_partitions else lines
        text = "\n".join("  " * node.depth + line for node, line in zip(nodes, kept, strict=True) if line)
        found[level] = {"hash": hashlib.sha256(text.encode()).hexdigest()[:16], "text": text}
    return found


def normalised_lines(nodes: Sequence[Node]) -> dict[str, list[str]]:
    """For each level a line for each node."""
    lines: dict[str, list[str]] = {level: [] for level in LEVELS}
    for statement in _statements(nodes):
        names = _subplans(statement)
        aliases = _aliases(statement)
        for node in statement:
            role = f"{names[node.subplan]}: " if node.subplan in names else ""
            lines["shape"].append(role + _operation(node, _SHAPE) + _read(node))
            access = role + accessed(node)
            lines["access"].append(access)
            called = f" {aliases[alias]}" if (alias := _alias(node)) else ""
            lines["full"].append(" | ".join([access + called, *_conditions(node, names, _seen_from(node, aliases))]))
    return lines


def _statements(nodes: Sequence[Node]) -> Iterator[list[Node]]:
    for root in nodes:
        if root.parent is None:
            yield list(root.subtree())


def accessed(node: Node) -> str:
    """What a node does, how and to what."""
    index = f" using {node.raw['Index Name']}" if "Index Name" in node.raw else ""
    return _operation(node, _ACCESS) + index + _read(node)


def _read(node: Node) -> str:
    return next((f" on {node.raw[key]}" for key in _READ if key in node.raw), "")


def _operation(node: Node, fields: Sequence[str]) -> str:
    return operation({key: node.raw[key] for key in fields if key in node.raw})


def _alias(node: Node) -> str | None:
    alias = node.raw.get("Alias")
    return identifier(alias) if isinstance(alias, str) else None


def _aliases(statement: Sequence[Node]) -> dict[str, str]:
    """`t1` for the first table that is printed: versions tell partitions of a table apart differently."""
    found: dict[str, str] = {}
    for node in statement:
        if alias := _alias(node):
            found.setdefault(alias, f"t{len(found) + 1}")
    return found


def _seen_from(node: Node, aliases: dict[str, str]) -> ChainMap[str, str]:
    """The same without names for what a scan reads itself, or for the only table: only VERBOSE prints those always."""
    heap = next((each for each in (node, *node.ancestors()) if each.type not in BITMAP_PARTS), node)
    own = next(iter(aliases)) if len(aliases) == 1 else _alias(heap)
    return ChainMap({own: ""} if own else {}, aliases)


def _subplans(statement: Sequence[Node]) -> dict[str, str]:
    """What a plan calls its subqueries, and the parameters they return, by numbers in the order they are printed.

    Versions number them each in its own way; from 19 on they have names like `exists_1`. CTEs keep theirs.
    """
    names: dict[str, str] = {}
    for node in statement:
        if not (node.is_initplan or node.is_subplan) or not node.subplan:
            continue
        if node.cte is not None:
            names[node.subplan] = node.subplan
            continue
        called, _, returns = node.subplan.partition(" (returns ")
        bare = called.removeprefix("InitPlan ").removeprefix("SubPlan ")
        name = f"{node.relationship} {len(set(names.values())) + 1}"
        references = [node.subplan, f"{node.relationship} {bare}"]
        if node.is_initplan:
            references += _PARAMETER.findall(returns)
        if not bare.isdecimal():
            references.append(bare)
        names |= dict.fromkeys(references, name)
    return names


def _conditions(node: Node, names: Mapping[str, str], aliases: Mapping[str, str]) -> Iterator[str]:
    for key in CONDITIONS:
        if key in node.raw:
            value = node.raw[key]
            found = [normalised(text, names, aliases) for text in texts([value] if isinstance(value, str) else value)]
            yield f"{key}: {', '.join(found)}"


def _folded(nodes: Sequence[Node], lines: Sequence[str]) -> list[str]:
    """The lines with partitions named without numbers, and empty ones for partitions that are read like another."""
    plain, below = list(lines), set()
    for node in nodes:
        if node.parent and (node.parent.type in _APPENDS or node.parent.number in below):
            below.add(node.number)
            plain[node.number] = re.sub(r"[\w$]+", lambda match: _PARTITION.sub("*", match[0]), plain[node.number])
    for node in nodes:
        if node.type in _APPENDS:
            seen = set()
            for child in node.children:
                numbers = [below.number for below in child.subtree()]
                block = tuple((nodes[number].depth, plain[number]) for number in numbers)
                if block in seen:
                    for number in numbers:
                        plain[number] = ""
                seen.add(block)
    return plain
