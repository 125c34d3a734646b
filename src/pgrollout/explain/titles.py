"""The first line of a node in TEXT: `Parallel Index Scan using i on s.t a  (cost=…) (actual …)` and its JSON keys."""

from __future__ import annotations

import re
from typing import Any

from pgrollout.explain.values import NUMBER, WHOLE, number

IDENTIFIER = r'(?:"(?:[^"]|"")*"|[^\s".]+)'
TARGET = re.compile(rf"(?:({IDENTIFIER})\.)?({IDENTIFIER})(?: ({IDENTIFIER}))?")
INDEX = re.compile(rf"( Backward)? using ({IDENTIFIER})(?: on (.+))?", re.DOTALL)

# A wrapped line may have lost the blank it was broken at, therefore the `\s*` between the numbers.
COSTS = re.compile(rf"\(cost=({NUMBER})\.\.({NUMBER})\s*rows=({NUMBER})\s*width=({WHOLE})\)$")
MEASURED = rf"actual\s*(?:time=({NUMBER})\.\.({NUMBER})\s*)?rows=({NUMBER})\s*loops=({NUMBER})"
ACTUAL = re.compile(rf"\((?:{MEASURED}|(never executed))\)$")
WORKER_ACTUAL = re.compile(rf"{MEASURED}$")

# Scans, and the key their object has in JSON. Without one only the alias is told.
SCANS = {
    "Seq Scan": "Relation Name",
    "Sample Scan": "Relation Name",
    "Bitmap Heap Scan": "Relation Name",
    "Tid Scan": "Relation Name",
    "Tid Range Scan": "Relation Name",
    "Foreign Scan": "Relation Name",
    "Subquery Scan": None,
    "Values Scan": None,
    "Function Scan": "Function Name",
    "Table Function Scan": "Table Function Name",
    "CTE Scan": "CTE Name",
    "WorkTable Scan": "CTE Name",
    "Named Tuplestore Scan": "Tuplestore Name",
}
PLAIN = frozenset(
    (
        "Result",
        "ProjectSet",
        "Append",
        "Merge Append",
        "Recursive Union",
        "BitmapAnd",
        "BitmapOr",
        "Gather",
        "Gather Merge",
        "Materialize",
        "Memoize",
        "Sort",
        "Incremental Sort",
        "Group",
        "WindowAgg",
        "Unique",
        "LockRows",
        "Limit",
        "Hash",
        "Foreign Scan",
        "Named Tuplestore Scan",
        "Custom Scan",
        "???",
    )
)
STRATEGIES = {
    "Aggregate": "Plain",
    "GroupAggregate": "Sorted",
    "HashAggregate": "Hashed",
    "MixedAggregate": "Mixed",
}
AGGREGATE = re.compile(rf"(?:(Partial|Finalize) )?({'|'.join(STRATEGIES)})")
JOIN = re.compile(r"(Nested Loop|Hash|Merge)(?: (Left|Full|Right|Semi|Anti|Right Semi|Right Anti))?( Join)?")
SET_OPERATION = re.compile(r"(Hash)?SetOp (Intersect All|Intersect|Except All|Except|\?\?\?)")
MODIFY = re.compile(r"(Insert|Update|Delete|Merge) on (.+)", re.DOTALL)
FOREIGN_MODIFY = re.compile(r"Foreign (Insert|Update|Delete)(?: on (.+))?", re.DOTALL)
CUSTOM = re.compile(r"Custom Scan \(([^)]*)\)(?: on (.+))?", re.DOTALL)
# With which a title begins, also one of which the rest stands on the next line.
FIRST_WORDS = frozenset(
    (
        *(name.partition(" ")[0] for name in (*SCANS, *PLAIN, *STRATEGIES)),
        *("Index", "Partial", "Finalize", "Nested", "SetOp", "HashSetOp", "Insert", "Update", "Delete"),
        *("Parallel", "Async"),
    )
)
UNKNOWN = re.compile(r"[A-Z][A-Za-z0-9_ -]{0,80}(?:\([^()=]{0,80}\))?")
ON = re.compile(r"(.+?) on (.+)", re.DOTALL)


def node(line: str) -> dict[str, Any] | None:
    """The properties that a node's first line tells, without the arrow; None where it is no node's first line."""
    title, measured = _measured(line)
    properties: dict[str, Any] = {"Parallel Aware": False}
    if title.startswith("Parallel "):
        title, properties["Parallel Aware"] = title.removeprefix("Parallel "), True
    if title.startswith("Async "):
        title, properties["Async Capable"] = title.removeprefix("Async "), True
    kind = known(title)
    if kind is None and measured:
        kind = _unknown(title)
    return None if kind is None else {**kind, **properties, **measured}


def arrow_node(line: str) -> dict[str, Any] | None:
    """As `node`; behind an arrow stands a node in any case, also one of a type nobody here has heard of."""
    return node(line) or _unknown(line)


def worker(text: str) -> dict[str, Any] | None:
    """Times, rows and loops of a worker: `actual time=0.003..0.004 rows=1 loops=1`."""
    match = WORKER_ACTUAL.match(text)
    return _actual(match) if match else None


def target(text: str | None, key: str | None = "Relation Name") -> dict[str, Any] | None:
    """`schema.name alias` as JSON has it; None where it is nothing of the kind."""
    match = TARGET.fullmatch(text or "")
    if match is None:
        return None
    schema, name, alias = (unquoted(part) if part else None for part in match.groups())
    if key is None:  # only an alias, as in Subquery Scan on x
        return {"Alias": name} if schema is None and alias is None else None
    found = {key: name} if schema is None else {key: name, "Schema": schema}
    return {**found, "Alias": alias or name}


def unquoted(name: str) -> str:
    """An identifier without its double quotes."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def known(title: str) -> dict[str, Any] | None:
    """Node Type and what else the title of a node says; None where no PostgreSQL knows such a node."""
    if title in PLAIN:
        return {"Node Type": title, "Operation": "Select"} if title == "Foreign Scan" else {"Node Type": title}
    if found := _scan(title) or _index_scan(title):  # most nodes of a plan are scans
        return found
    if match := AGGREGATE.fullmatch(title):
        partial, name = match.groups()
        return {"Node Type": "Aggregate", "Strategy": STRATEGIES[name], "Partial Mode": partial or "Simple"}
    if match := JOIN.fullmatch(title):
        return _join(*match.groups())
    if match := SET_OPERATION.fullmatch(title):
        strategy = "Hashed" if match[1] else "Sorted"
        return {"Node Type": "SetOp", "Strategy": strategy, "Command": match[2]}
    if match := MODIFY.fullmatch(title):
        return _with_target({"Node Type": "ModifyTable", "Operation": match[1]}, target(match[2]))
    if match := FOREIGN_MODIFY.fullmatch(title):
        direct = {"Node Type": "Foreign Scan", "Operation": match[1]}
        return _with_target(direct, target(match[2])) if match[2] else direct
    if match := CUSTOM.fullmatch(title):
        custom = {"Node Type": "Custom Scan", "Custom Plan Provider": match[1]}
        return _with_target(custom, target(match[2])) if match[2] else custom
    return None


def _measured(line: str) -> tuple[str, dict[str, Any]]:
    """The title of a node, and its costs and actual numbers."""
    properties: dict[str, Any] = {}
    if not line.endswith(")"):
        return line, properties
    if match := ACTUAL.search(line, max(0, line.rfind("("))):
        line = line[: match.start()].rstrip()
        properties = _actual(match)
    if match := COSTS.search(line, max(0, line.rfind("("))):
        line = line[: match.start()].rstrip()
        startup, total, rows, width = match.groups()
        costs = {"Startup Cost": float(startup), "Total Cost": float(total)}
        properties = {**costs, "Plan Rows": number(rows), "Plan Width": int(width), **properties}
    return line, properties


def _actual(match: re.Match[str]) -> dict[str, Any]:
    startup, total, rows, loops, *never = match.groups()
    if any(never):
        return {"Actual Rows": 0, "Actual Loops": 0}
    times = {"Actual Startup Time": float(startup), "Actual Total Time": float(total)} if startup else {}
    return {**times, "Actual Rows": number(rows), "Actual Loops": number(loops)}


def _index_scan(title: str) -> dict[str, Any] | None:
    kind = "Index Only Scan" if title.startswith("Index Only") else "Index Scan"
    match = INDEX.fullmatch(title, len(kind)) if title.startswith(kind) else None
    if match is None:
        return None
    direction = "Backward" if match[1] else "Forward"
    properties = {"Node Type": kind, "Scan Direction": direction, "Index Name": unquoted(match[2])}
    return _with_target(properties, target(match[3])) if match[3] else properties


def _join(kind: str, join: str | None, suffix: str | None) -> dict[str, Any] | None:
    if bool(suffix) != (kind != "Nested Loop" or join is not None):  # "Nested Loop", but "Hash Join"
        return None
    node_type = kind if kind == "Nested Loop" else f"{kind} Join"
    return {"Node Type": node_type, "Join Type": join or "Inner"}


def _scan(title: str) -> dict[str, Any] | None:
    name, _, rest = title.partition(" on ")
    if name == "Bitmap Index Scan":
        match = re.fullmatch(IDENTIFIER, rest)
        return {"Node Type": name, "Index Name": unquoted(rest)} if match else None
    if name not in SCANS:
        return None
    operation = {"Operation": "Select"} if name == "Foreign Scan" else {}
    return _with_target({"Node Type": name, **operation}, target(rest, SCANS[name]))


def _with_target(properties: dict[str, Any], found: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if found is None else {**properties, **found}


def _unknown(title: str) -> dict[str, Any] | None:
    """A node of a type that is not known here (a future one, an extension's)."""
    match = ON.fullmatch(title)
    found = target(match[2]) if match else None
    if match and found and UNKNOWN.fullmatch(match[1]):
        return {"Node Type": match[1], **found}
    return {"Node Type": title} if UNKNOWN.fullmatch(title) else None
