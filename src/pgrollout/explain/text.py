"""Plans in TEXT: lines become nodes by their indentation, and properties by their name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pgrollout.errors import RolloutError
from pgrollout.explain import text_keys, titles
from pgrollout.explain.fill import fill, nodes
from pgrollout.explain.lines import Line, column, logical, shown
from pgrollout.explain.values import typed

Properties = dict[str, Any]

HEADERS = ("InitPlan ", "SubPlan ", "CTE ")
WORKER = re.compile(r"Worker ([0-9]{1,9}): +(.*)", re.DOTALL)
NAME = re.compile(r"[A-Za-z][^'\"\n]{0,80}")
TARGET_TABLE = re.compile(r"(?:Foreign )?(?:Insert|Update|Delete|Merge) on (.+)", re.DOTALL)
WORKER_JIT = re.compile(r"JIT for worker ([0-9]{1,9})")
# Properties of the statement. They stand at the root's column, but a paste may have lost the root's own indentation.
SUMMARY = frozenset(
    ("Planning", "Planning Time", "Execution Time", "Settings", "Query Identifier", "Serialization", "Query Parameters")
)
# What TEXT tells by titles and indentation, and never by a property of that name.
STRUCTURE = frozenset(
    (
        *("Node Type", "Operation", "Plans", "Workers", "Worker Number", "Actual Rows", "Actual Loops", "JIT"),
        *("Grouping Sets", "Target Tables", "Distributed Query", "Planning", "Serialization", "Triggers"),
    )
)
MEASURED = ("Planning Time", "Execution Time", "Query Identifier")
NARROWEST = 60  # terminal that somebody copies a plan from
GROUPS = ("Planning", "JIT")
GROUPING = "grouping lines"  # collected here until the node is whole
NOTHING = ("Query rewrites to nothing", "Utility statements have no plan structure", "CREATE TABLE AS")
CITUS = re.compile(r"(?:(Task)|Distributed Subplan \S+)")
CITUS_JOB = frozenset(("Task Count", "Tuple data received from nodes", "Tasks Shown"))


@dataclass
class Frame:
    """What lines that are indented deeper than `column` belong to."""

    column: int
    kind: str  # document, node, header, worker, target, group, advice, task or subplan
    properties: Properties
    name: str = ""  # of a property that the deeper lines are the value of


# The columns of a statement and of its topmost node: left of everything, because a paste may have moved the first line.
DOCUMENT, ROOT = -2, -1


@dataclass
class Reader:
    """The documents read so far, and what is open at the line to be read."""

    documents: list[Properties] = field(default_factory=list)
    nested: list[Properties] = field(default_factory=list)  # plans of other servers, inside of a Citus node
    open: list[Frame] = field(default_factory=list)
    root: int = 0  # the column of the topmost node

    def read(self, line: Line) -> None:
        """Takes one line in. Raises RolloutError for one that is no part of a plan."""
        at, text = column(line.text), line.text.strip()
        if text.startswith("->"):
            understood = self._arrow(at, text.removeprefix("->").lstrip())
        else:
            root = titles.node(text) if not self.open or at <= self.root + 1 else None
            if root is not None:
                self._begin(at, root)
            understood = root is not None or text in NOTHING or self._detail(at, text)
        if not understood:
            raise RolloutError(
                f"L{shown(line)[1:]} is neither a node nor a property of a plan; "
                "give the output of EXPLAIN and nothing else."
            )

    def _begin(self, at: int, root: Properties) -> None:
        document = {"Plan": root}
        self.documents.append(document)
        self.root = at
        self.open = [Frame(DOCUMENT, "document", document), Frame(ROOT, "node", root)]

    def _arrow(self, at: int, title: str) -> bool:
        """A node below another one."""
        if not self._close(at):
            return False
        above = self.open[-1]
        if citus := CITUS.fullmatch(title):
            self._citus(at, above, "task" if citus[1] else "subplan")
            return True
        node = titles.arrow_node(title)
        if node is None or above.kind not in ("node", "header", "task", "subplan"):
            return False
        if above.kind == "header":
            self.open[-2].properties.setdefault("Plans", []).append({**above.properties, **node})
            node = self.open[-2].properties["Plans"][-1]
        elif above.kind == "node":
            above.properties.setdefault("Plans", []).append(node)
        else:
            self._remote(at, above, node)
        self.open.append(Frame(at, "node", node))
        return True

    def _citus(self, at: int, above: Frame, kind: str) -> None:
        """A task on another server or a subplan of Citus, whose plans are documents of their own."""
        query = above.properties.setdefault("Distributed Query", {})
        group: Properties = {}
        if kind == "task":
            query.setdefault("Job", {}).setdefault("Tasks", []).append(group)
        else:
            query.setdefault("Subplans", []).append(group)
        self.open.append(Frame(at, kind, group))

    def _remote(self, at: int, above: Frame, node: Properties) -> None:
        """The plan of a task or a subplan: a document of its own, with its own times below."""
        document = {"Plan": node}
        self.nested.append(document)
        if above.kind == "subplan":
            above.properties["PlannedStmt"] = [document]
        else:
            above.properties["Remote Plan"] = [[document]]
        self.open.append(Frame(at - 1, "document", document))

    def _close(self, at: int) -> bool:
        """Closes what a line at this column does not belong to; False where nothing stays open."""
        while self.open and self.open[-1].column >= at:
            self.open.pop()
        return bool(self.open)

    def _detail(self, at: int, text: str) -> bool:
        """A line that tells something of what is open."""
        key, value = named(text)
        if self._is_summary(at, key or text):
            documents = (frame.column for frame in reversed(self.open) if frame.kind == "document")
            at = next((left + 1 for left in documents if left < at), at)
        if not self._close(at):
            return False
        above = self.open[-1]
        if above.kind == "document":
            return self._summary(at, above.properties, key, value, text)
        if above.kind == "advice":
            above.properties[above.name] = f"{above.properties[above.name]}\n{text}".lstrip()
            return True
        if text.startswith(HEADERS) and above.kind == "node":
            relationship = "SubPlan" if text.startswith("SubPlan") else "InitPlan"
            self.open.append(Frame(at, "header", {"Parent Relationship": relationship, "Subplan Name": text}))
            return True
        if text.startswith("Worker ") and (worker := WORKER.fullmatch(text)):
            return above.kind == "node" and self._worker(at, above.properties, int(worker[1]), worker[2])
        if not key:
            return self._target(at, above, text)
        return self._property(at, above, key, value)

    def _is_summary(self, at: int, key: str) -> bool:
        """Whether a line tells of the statement: by its name wherever it stands, else by the root's column."""
        return key in SUMMARY or at <= self.root or key.startswith("Trigger ")

    def _property(self, at: int, above: Frame, key: str, value: str) -> bool:
        if not value:
            return self._group(at, above, key)
        if key in STRUCTURE:
            return False
        into = above.properties
        if into.get("Node Type") == "Aggregate" and key in ("Hash Key", "Group Key", "Sort Key"):
            into.setdefault(GROUPING, []).append((key, [] if value == "()" else text_keys.split(value)))
            return True
        if key in CITUS_JOB and "Citus" in into.get("Custom Plan Provider", ""):
            into = into.setdefault("Distributed Query", {}).setdefault("Job", {})
        found = text_keys.properties(key, value)
        if found is None and into.get("Node Type") in ("Custom Scan", "Foreign Scan"):
            found = {key: value}  # an extension's own property under a name of PostgreSQL
        into.update(found or {})
        return found is not None

    def _group(self, at: int, above: Frame, key: str) -> bool:
        """`JIT:`, whose properties follow, or a property without a value."""
        if key == "JIT":  # of a worker, else of the statement
            owner = above.properties if above.kind == "worker" else self.open[0].properties
            self.open.append(Frame(at, "group", owner.setdefault("JIT", {})))
        elif match := WORKER_JIT.fullmatch(key):  # 12 tells it below the node and not below the worker
            worker = worker_of(above.properties, int(match[1]))
            self.open.append(Frame(at, "group", worker.setdefault("JIT", {})))
        elif key in STRUCTURE or key in text_keys.READERS:
            return False
        else:
            above.properties[key] = ""
        return True

    def _worker(self, at: int, node: Properties, number: int, rest: str) -> bool:
        worker = worker_of(node, number)
        frame = Frame(at, "worker", worker)
        self.open.append(frame)
        found = titles.worker(rest)
        if found is not None:
            worker.update(found)
            return True
        key, value = named(rest)
        return bool(key) and self._property(at + 1, frame, key, value)

    def _target(self, at: int, above: Frame, text: str) -> bool:
        """`Update on part_1` below a ModifyTable: one of several tables that it changes."""
        match = TARGET_TABLE.fullmatch(text)
        found = titles.target(match[1]) if match else None
        if found is None or above.properties.get("Node Type") != "ModifyTable":
            return False
        above.properties.setdefault("Target Tables", []).append(found)
        self.open.append(Frame(at, "target", found))
        return True

    def _summary(self, at: int, document: Properties, key: str, value: str, text: str) -> bool:
        """A line below the plan that tells something of the whole statement."""
        if text.startswith("Trigger ") and (trigger := text_keys.trigger(text)):
            document.setdefault("Triggers", []).append(trigger)
            return True
        if key in GROUPS:
            if value:
                return False
            self.open.append(Frame(at, "group", document.setdefault(key, {})))
            return True
        if key.endswith("Plan Advice") and not value:
            document[key] = ""
            self.open.append(Frame(at, "advice", document, key))
            return True
        if key == "Serialization" and value:
            group = document.setdefault(key, {})
            self.open.append(Frame(at, "group", group))
            group.update(text_keys.serialization(value) or {})
            return bool(group)
        if key not in SUMMARY or not value:
            return False
        found = text_keys.settings(value) if key == "Settings" else {key: typed(key, value)}
        if found is None or (key in MEASURED and isinstance(found[key], str)):
            return False
        document.update(found)
        return True


def named(text: str) -> tuple[str, str]:
    """Name and value of a property; no name where it is none."""
    key, colon, value = text.partition(":")
    if not colon or (value and value[0] != " ") or not NAME.fullmatch(key):
        return "", ""
    return key, value[1:]


def unwrapped(lines: list[Line]) -> Iterator[Line]:
    """Logical lines, with what a terminal wrapped to its left edge, where no line of a plan's own begins."""
    before: Line | None = None
    edge = 0
    for line in logical(lines):
        if before is None:
            edge = column(line.text)
        elif len(before.text) >= NARROWEST and _is_rest(line.text, edge):
            before = Line(before.number, before.text + line.text)
            continue
        else:
            yield before
        before = line
    if before is not None:
        yield before


def _is_rest(text: str, edge: int) -> bool:
    """Whether a line is the rest of a wrapped one: at the left edge, and no line that a plan has there."""
    at, text = column(text), text.strip()
    if text.startswith(("(cost=", "(actual ", "(never executed)")):
        return True
    key, _ = named(text)
    if at > edge + 1 or key in SUMMARY or key in GROUPS or key.endswith("Plan Advice") or text in NOTHING:
        return False
    return not text.startswith(("->", "Trigger ")) and titles.node(text) is None


def read_text(lines: list[Line]) -> list[Properties]:
    """The documents of plans in TEXT, one a statement, in the shape of EXPLAIN (FORMAT JSON)."""
    reader = Reader()
    for line in unwrapped(lines):
        reader.read(line)
    for document in (*reader.nested, *reader.documents):
        for node in nodes(document["Plan"]):
            _group(node)
        fill(document)
    return reader.documents


def _group(node: Properties) -> None:
    """The keys of an aggregate: one list, or grouping sets with the sorting that each of them needs."""
    lines = node.pop(GROUPING, None)
    if lines is None:
        return
    if len(lines) == 1 and lines[0][0] == "Group Key" and lines[0][1]:
        node["Group Key"] = lines[0][1]
        return
    sets: list[Properties] = []
    for key, items in lines:
        if key == "Sort Key":
            sets.append({"Sort Key": items, "Group Keys": []})
        elif key == "Group Key" and sets and "Group Keys" in sets[-1]:
            sets[-1]["Group Keys"].append(items)
        else:
            sets.append({f"{key}s": [items]})
    node["Grouping Sets"] = sets


def worker_of(node: Properties, number: int) -> Properties:
    """The worker's properties in the node; 12 tells of one worker in several places."""
    workers: list[Properties] = node.setdefault("Workers", [])
    for worker in workers:
        if worker["Worker Number"] == number:
            return worker
    workers.append({"Worker Number": number})
    return workers[-1]
