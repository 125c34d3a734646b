"""PostgreSQL's property names and the types of their values, for the formats that do not say them (TEXT and XML)."""

from __future__ import annotations

import re

SHARED_LOCAL_COUNTERS = ("Hit", "Read", "Dirtied", "Written")
BUFFER_KEYS = (
    *(f"Shared {counter} Blocks" for counter in SHARED_LOCAL_COUNTERS),
    *(f"Local {counter} Blocks" for counter in SHARED_LOCAL_COUNTERS),
    "Temp Read Blocks",
    "Temp Written Blocks",
)
# Until 16 "I/O" means shared and local together; 15 tells temporary files apart, 17 tells all three apart.
OLD_IO_KEYS = ("I/O Read Time", "I/O Write Time")
TEMP_IO_KEYS = ("Temp I/O Read Time", "Temp I/O Write Time")
SPLIT_IO_KEYS = ("Shared I/O Read Time", "Shared I/O Write Time", "Local I/O Read Time", "Local I/O Write Time")
WAL_KEYS = ("WAL Records", "WAL FPI", "WAL Bytes")

BOOLEAN_KEYS = frozenset(
    (
        "Parallel Aware",
        "Async Capable",
        "Disabled",
        "Inner Unique",
        "Single Copy",
        "Inlining",
        "Optimization",
        "Expressions",
        "Deforming",
    )
)

# Names and expressions: text even where they look like a number or a truth value.
TEXT_KEYS = frozenset(
    (
        "Alias",
        "CTE Name",
        "Cache Key",
        "Cache Mode",
        "Command",
        "Conflict Filter",
        "Conflict Resolution",
        "Constraint Name",
        "Custom Plan Provider",
        "Filter",
        "Foreign File",
        "Foreign Program",
        "Format",
        "Function Call",
        "Function Name",
        "Hash Cond",
        "Index Cond",
        "Index Name",
        "Join Filter",
        "Join Type",
        "Merge Cond",
        "Node",
        "Node Type",
        "One-Time Filter",
        "Operation",
        "Order By",
        "Parent Relationship",
        "Partial Mode",
        "Query",
        "Query Parameters",
        "Query Text",
        "Recheck Cond",
        "Relation",
        "Relation Name",
        "Relations",
        "Remote SQL",
        "Repeatable Seed",
        "Replaces",
        "Run Condition",
        "Sampling Method",
        "Scan Direction",
        "Schema",
        "Sort Method",
        "Sort Space Type",
        "Storage",
        "Strategy",
        "Subplan Name",
        "TID Cond",
        "Table Function Call",
        "Table Function Name",
        "Trigger Name",
        "Tuplestore Name",
        "Vectorized Filter",
        "Window",
    )
)

# Names lists of expressions or names.
LIST_KEYS = frozenset(
    (
        "Conflict Arbiter Indexes",
        "Group Key",
        "Group Keys",
        "Grouping Sets",
        "Hash Key",
        "Hash Keys",
        "Output",
        "Params Evaluated",
        "Plans",
        "Presorted Key",
        "Sampling Parameters",
        "Sort Key",
        "Sort Methods Used",
        "Target Tables",
        "Triggers",
        "Workers",
    )
)

# Names that their XML tag does not tell, because every character that a tag cannot hold becomes a hyphen.
HYPHENATED = (
    "Full-sort Groups",
    "Pre-sorted Groups",
    "One-Time Filter",
    *OLD_IO_KEYS,
    *TEMP_IO_KEYS,
    *SPLIT_IO_KEYS,
    "I/O Count",
    "I/O Waits",
    "Average I/O Size",
    "Average I/Os In Progress",
)

WHOLE = r"[0-9]{1,30}"
NUMBER = rf"{WHOLE}(?:\.{WHOLE})?"
SIGNED = re.compile(f"-?{NUMBER}")
UNIT = re.compile(r" ?(?:kB|ms|b)$")
# Properties that TEXT writes with a unit; other values that end in one are text (Citus writes "147 kB" as text).
UNIT_KEYS = frozenset(
    (
        "Peak Memory Usage",
        "Disk Usage",
        "Foreign File Size",
        "Planning Time",
        "Execution Time",
        "Subplan Duration",
    )
)


def number(text: str) -> int | float:
    """The number that PostgreSQL printed, as JSON types it: with a decimal point it is a float."""
    return float(text) if "." in text else int(text)


def typed(key: str, text: str) -> str | int | float | bool:
    """The value of a property whose type only its name tells; what is not known is a number if it looks like one."""
    if key in TEXT_KEYS:
        return text
    if key in BOOLEAN_KEYS and text in ("true", "false"):
        return text == "true"
    bare = UNIT.sub("", text) if key in UNIT_KEYS else text
    return number(bare) if SIGNED.fullmatch(bare) else text


def tag_of_key(key: str) -> str:
    """The XML tag of a property."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", key)


TAGS = {tag_of_key(key): key for key in HYPHENATED}


def key_of_tag(tag: str) -> str:
    """The property of an XML tag."""
    return TAGS.get(tag) or tag.replace("-", " ")
