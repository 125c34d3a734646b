"""The property lines of TEXT and what they are in JSON: one line may hold several properties."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pgrollout.explain.values import BUFFER_KEYS, LIST_KEYS, NUMBER, WHOLE, number, typed

Properties = dict[str, Any]

COUNTER = re.compile(rf"(shared|local|temp)|(hit|read|dirtied|written|write)=({NUMBER})")
WAL_COUNTERS = {
    "records": "WAL Records",
    "fpi": "WAL FPI",
    "bytes": "WAL Bytes",
    "fpi bytes": "WAL FPI Bytes",
    "buffers full": "WAL Buffers Full",
}
WAL = re.compile(rf"({'|'.join(sorted(WAL_COUNTERS, key=len, reverse=True))})=({WHOLE})")
SORT = re.compile(rf"(.+?)\s+(Memory|Disk): ({WHOLE})kB")
HASH = re.compile(
    rf"({WHOLE})(?: \(originally ({WHOLE})\))?\s+Batches: ({WHOLE})(?: \(originally ({WHOLE})\))?"
    rf"\s+Memory Usage: ({WHOLE})kB"
)
HASH_AGGREGATE = {
    "Planned Partitions": "Planned Partitions",
    "Batches": "HashAgg Batches",
    "Memory Usage": "Peak Memory Usage",
    "Disk Usage": "Disk Usage",
}
MEMOIZE = {
    "Hits": "Cache Hits",
    "Misses": "Cache Misses",
    "Evictions": "Cache Evictions",
    "Overflows": "Cache Overflows",
    "Memory Usage": "Peak Memory Usage",
}
ESTIMATES = {
    "capacity": "Estimated Capacity",
    "distinct keys": "Estimated Distinct Lookup Keys",
    "lookups": "Estimated Lookups",
    "hit percent": "Estimated Hit Percent",
}
PREFETCH = {"avg": "Average Prefetch Distance", "max": "Max Prefetch Distance", "capacity": "Prefetch Capacity"}
STREAM = {
    "count": "I/O Count",
    "waits": "I/O Waits",
    "size": "Average I/O Size",
    "in-progress": "Average I/Os In Progress",
}
TUPLES = {f"{name.lower()}": f"Tuples {name}" for name in ("Inserted", "Updated", "Deleted", "Skipped")}
HEAP_BLOCKS = {"exact": "Exact Heap Blocks", "lossy": "Lossy Heap Blocks"}
MEMORY = {"used": "Memory Used", "allocated": "Memory Allocated"}
SERIALIZATION = re.compile(rf"(?:time=({NUMBER}) ms\s+)?output=({WHOLE})kB\s+format=(\w+)")
COLON_PAIR = re.compile(rf"([A-Z][A-Za-z -]*): ({WHOLE})(?:kB)?")
EQUALS_PAIR = re.compile(rf"([a-z][a-z -]*)=({NUMBER})(?:kB|%)?")
SORT_GROUPS = re.compile(rf"({WHOLE})\s+Sort Methods?: (.+?)(?=  Average |$)")
SORT_SPACE = re.compile(rf"Average (Memory|Disk): ({WHOLE})kB\s+Peak (?:Memory|Disk): ({WHOLE})kB")
JIT_TIME = re.compile(rf"(Generation|Deform|Inlining|Optimization|Emission|Total) ({NUMBER}) ms")
JIT_OPTION = re.compile(r"(\w+) (true|false)")
TRIGGER = re.compile(
    r"Trigger(?: (?!for constraint )(.+?))?(?: for constraint (.+?))?(?: on (.+?))?"
    rf": (?:time=({NUMBER}) )?calls=({WHOLE})",
    re.DOTALL,
)
SETTING = re.compile(r"([A-Za-z_][\w.$]*) = '(.*?)'(?=, [A-Za-z_][\w.$]* = |$)", re.DOTALL)
# No such line of PostgreSQL is longer; some of the patterns above take the square of the length.
LONGEST_LINE, LONGEST_SETTINGS = 1_000, 10_000
PUNCTUATION = re.compile(r"['\"(\[)\]]|, ")


def properties(key: str, value: str) -> Properties | None:
    """What the line `key: value` of a node or worker says in JSON's names; None where the value cannot be read."""
    reader = READERS.get(key)
    if reader is not None:
        return reader(value) if len(value) <= LONGEST_LINE else None
    if key in LIST_KEYS:
        return {key: value.split(", ") if key == "Conflict Arbiter Indexes" else split(value)}
    return {key: typed(key, value)}


def split(text: str) -> list[str]:
    """The items of a list of expressions; a comma inside quotes, parentheses or brackets parts nothing."""
    if not any(mark in text for mark in "'\"(["):
        return text.split(", ")
    items: list[str] = []
    depth = start = position = 0
    while match := PUNCTUATION.search(text, position):
        position = match.end()
        mark = match[0]
        if mark in "'\"":  # a doubled quote is the end of one quoted part and the beginning of the next
            position = text.find(mark, position) + 1 or len(text)
        elif mark in "([":
            depth += 1
        elif mark in ")]":
            depth -= 1
        elif depth <= 0:
            items.append(text[start : match.start()])
            start = position
    return [*items, text[start:]]


def counters(value: str, names: dict[str, str], pair: re.Pattern[str]) -> Properties | None:
    """`a: 1  b: 2kB` or `a=1 b=2` with JSON's names; None where something else stands there."""
    found = [(name.strip(), amount) for name, amount in pair.findall(value)]
    if not found or any(name not in names for name, _ in found) or pair.sub("", value).strip():
        return None
    return {names[name]: number(amount) for name, amount in found}


def buffers(value: str) -> Properties | None:
    """`shared hit=1 read=2, temp written=3`: what is not told is 0."""
    return _scoped(value, dict.fromkeys(BUFFER_KEYS, 0), lambda scope, what: f"{scope} {what} Blocks")


def io_timings(value: str) -> Properties | None:
    """`read=0.1` (until 14) or `shared read=0.1, temp write=0.2`, with the names of 17 (`fill` knows better)."""
    return _scoped(value, {}, lambda scope, what: f"{scope} I/O {what} Time".lstrip())


def _scoped(value: str, zeros: Properties, key: Callable[[str, str], str]) -> Properties | None:
    found = dict(zeros)
    scope = ""
    for scoped, what, amount in COUNTER.findall(value):
        if scoped:
            scope = scoped.capitalize()
        else:
            found[key(scope, what.capitalize())] = number(amount)
    return None if COUNTER.sub("", value).strip(" ,") else found


def wal(value: str) -> Properties | None:
    """`records=1 fpi=2 bytes=3 buffers full=4`: what every version counts and is not told is 0."""
    found = {WAL_COUNTERS[name]: int(amount) for name, amount in WAL.findall(value)}
    if WAL.sub("", value).strip():
        return None
    return {"WAL Records": 0, "WAL FPI": 0, "WAL Bytes": 0, **found}


def sort_method(value: str) -> Properties | None:
    match = SORT.fullmatch(value)
    if match is None:
        return None
    return {"Sort Method": match[1], "Sort Space Used": int(match[3]), "Sort Space Type": match[2]}


def hash_table(value: str) -> Properties | None:
    match = HASH.fullmatch(value)
    if match is None:
        return None
    buckets, original_buckets, batches, original_batches, memory = match.groups()
    return {
        "Hash Buckets": int(buckets),
        "Original Hash Buckets": int(original_buckets or buckets),
        "Hash Batches": int(batches),
        "Original Hash Batches": int(original_batches or batches),
        "Peak Memory Usage": int(memory),
    }


def hash_aggregate(first: str) -> Callable[[str], Properties | None]:
    """The reader of a line `Planned Partitions: 4  Batches: 5  Memory Usage: 9kB  Disk Usage: 8kB`, any of them."""

    def read(value: str) -> Properties | None:
        found = counters(f"{first}: {value}", HASH_AGGREGATE, COLON_PAIR)
        if found is None or "HashAgg Batches" not in found:
            return found
        return {"Disk Usage": 0, **found}  # printed only where it spilled

    return read


def sort_groups(kind: str) -> Callable[[str], Properties | None]:
    """The reader of `Full-sort Groups: 2  Sort Methods: quicksort, top-N heapsort  Average Memory: 9kB  Peak …`."""

    def read(value: str) -> Properties | None:
        match = SORT_GROUPS.match(value)
        if match is None:
            return None
        group: Properties = {"Group Count": int(match[1]), "Sort Methods Used": match[2].strip().split(", ")}
        for space, average, peak in SORT_SPACE.findall(value):
            used = {"Average Sort Space Used": int(average), "Peak Sort Space Used": int(peak)}
            group[f"Sort Space {space}"] = used
        return {kind: group}

    return read


def sampling(value: str) -> Properties | None:
    method, _, rest = value.partition(" (")
    arguments, repeatable, seed = rest.partition(" REPEATABLE (")
    if not arguments.endswith(")"):
        return None
    parameters = split(arguments[:-1]) if arguments != ")" else []
    found: Properties = {"Sampling Method": method, "Sampling Parameters": parameters}
    return {**found, "Repeatable Seed": seed.removesuffix(")")} if repeatable else found


def heap_blocks(value: str) -> Properties | None:
    """`exact=1 lossy=2`: what is not told is 0."""
    found = counters(value, HEAP_BLOCKS, EQUALS_PAIR)
    return None if found is None else {**dict.fromkeys(HEAP_BLOCKS.values(), 0), **found}


def merged_tuples(value: str) -> Properties | None:
    """`inserted=1 updated=2 deleted=3 skipped=4` of MERGE: what is not told is 0."""
    found = counters(value, TUPLES, EQUALS_PAIR)
    return None if found is None else {**dict.fromkeys(TUPLES.values(), 0), **found}


def storage(value: str) -> Properties | None:
    match = re.fullmatch(rf"(\w+)\s+Maximum Storage: ({WHOLE})kB", value)
    return {"Storage": match[1], "Maximum Storage": int(match[2])} if match else None


def serialization(value: str) -> Properties | None:
    match = SERIALIZATION.fullmatch(value)
    if match is None:
        return None
    time = {"Time": float(match[1])} if match[1] else {}
    return {**time, "Output Volume": int(match[2]), "Format": match[3]}


def jit_options(value: str) -> Properties | None:
    return {"Options": {name: state == "true" for name, state in JIT_OPTION.findall(value)}}


def jit_timing(value: str) -> Properties | None:
    """`Generation 1.2 ms (Deform 0.3 ms), Inlining …`: 17 and later tell deforming apart, inside of generation."""
    times: Properties = {name: float(amount) for name, amount in JIT_TIME.findall(value)}
    if "Deform" in times:
        times["Generation"] = {"Deform": times.pop("Deform"), "Total": times["Generation"]}
    return {"Timing": times} if times else None


def settings(value: str) -> Properties | None:
    found = dict(SETTING.findall(value)) if len(value) <= LONGEST_SETTINGS else {}
    return {"Settings": found} if found else None


def trigger(line: str) -> Properties | None:
    """`Trigger name for constraint c on t: time=0.1 calls=2`; names stand there as they are, unquoted."""
    match = TRIGGER.fullmatch(line) if len(line) <= LONGEST_LINE else None
    if match is None:
        return None
    name, constraint, relation, time, calls = match.groups()
    keys = {"Trigger Name": name, "Constraint Name": constraint, "Relation": relation}
    found: Properties = {key: value for key, value in keys.items() if value is not None}
    return {**found, **({"Time": float(time)} if time else {}), "Calls": int(calls)}


READERS: dict[str, Callable[[str], Properties | None]] = {
    "Buffers": buffers,
    "I/O Timings": io_timings,
    "WAL": wal,
    "Sort Method": sort_method,
    "Buckets": hash_table,
    "Planned Partitions": hash_aggregate("Planned Partitions"),
    "Batches": hash_aggregate("Batches"),
    "Full-sort Groups": sort_groups("Full-sort Groups"),
    "Pre-sorted Groups": sort_groups("Pre-sorted Groups"),
    "Hits": lambda value: counters(f"Hits: {value}", MEMOIZE, COLON_PAIR),
    "Estimates": lambda value: counters(value, ESTIMATES, EQUALS_PAIR),
    "Prefetch": lambda value: counters(value, PREFETCH, EQUALS_PAIR),
    "I/O": lambda value: counters(value, STREAM, EQUALS_PAIR),
    "Tuples": merged_tuples,
    "Heap Blocks": heap_blocks,
    "Memory": lambda value: counters(value, MEMORY, EQUALS_PAIR),
    "Storage": storage,
    "Sampling": sampling,
    "Serialization": serialization,
    "Options": jit_options,
    "Timing": jit_timing,
}
