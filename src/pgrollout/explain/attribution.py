"""Where work was spent: what each node took by itself, and inside whose time an InitPlan or a CTE ran.

EXPLAIN prints for each node what it took together with what ran inside it, as an average of its loops. What a node
took by itself is that, times its loops, without what ran inside it. Ordinary children and SubPlans run inside the
node they are printed under. An InitPlan runs inside the node that first asks for its result and a CTE inside the
scans that read it: somewhere below the node they are printed under.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from pgrollout.explain.nodes import GATHERS, WRITES, Node, expressions, number, without_literals

# What adds up over a plan, by our name: block counts are 8 kB blocks, all processes together.
BLOCKS = {
    f"{kind}_{what}": f"{kind.title()} {what.title()} Blocks"
    for kind in ("shared", "local", "temp")
    for what in ("hit", "read", "dirtied", "written")
    if kind != "temp" or what in ("read", "written")
}
WAL = {"wal_records": "WAL Records", "wal_fpi": "WAL FPI", "wal_bytes": "WAL Bytes"}
# Up to 16 one pair of keys, which holds shared and local blocks alike; from 17 on a pair for each.
IO = {
    "io_read_ms": ("I/O Read Time", "Shared I/O Read Time", "Local I/O Read Time"),
    "io_write_ms": ("I/O Write Time", "Shared I/O Write Time", "Local I/O Write Time"),
    "temp_io_read_ms": ("Temp I/O Read Time",),
    "temp_io_write_ms": ("Temp I/O Write Time",),
}
TIME = "ms"
_ROUNDING_MS = 0.0005  # times are printed with three decimals

Measures = dict[str, float]
"""What is known of a node: `ms` and the keys of BLOCKS, WAL and IO; a key that is missing is unknown, not zero."""

_PARAMETER = re.compile(r"\$\d+")
# 17 prints (InitPlan 1).col1, 19 prints (InitPlan expr_1).col1 or (expr_1).col1; none of them can be a column.
_REFERENCE = re.compile(r"\((?:InitPlan )?(\w+)\)\.col\d+")
_RETURNS = re.compile(r"\(returns (.*)\)$")


def counters(raw: Mapping[str, object]) -> Measures:
    """What adds up of a node, or of a document's Planning or Serialization."""
    found: Measures = {}
    for name, key in {**BLOCKS, **WAL}.items():
        value = number(raw, key)
        if value is not None:
            found[name] = value
    for name, keys in IO.items():
        values = [value for value in (number(raw, key) for key in keys) if value is not None]
        if values:
            found[name] = sum(values)
    return found


def processes(nodes: Sequence[Node]) -> list[float]:
    """Among how many processes each node's loops are spread, by number; 1 outside parallel parts.

    The workers that were launched do not tell: the leader may take part or not, and a Gather that runs several times
    need not get its workers each time. How often the node below a Gather ran for each run of the Gather does tell.
    """
    found = [1.0] * len(nodes)
    for node in nodes:
        parent = node.parent
        if parent is None:
            continue
        found[node.number] = found[parent.number]
        if parent.type in GATHERS and not node.is_initplan and node.loops and parent.loops:
            found[node.number] *= max(1.0, node.loops / parent.loops)
    return found


def inclusive(nodes: Sequence[Node]) -> list[Measures]:
    """What each node took with all that ran inside it: `ms` of one process on average, counts of all processes."""
    found = []
    for node, spread in zip(nodes, processes(nodes), strict=True):
        measures = counters(node.raw)
        total = number(node.raw, "Actual Total Time")
        if total is not None and node.loops is not None:
            measures[TIME] = total * node.loops / spread
        found.append(measures)
    return found


class Attribution:
    """What each node of a plan took by itself.

    `exclusive[n]`: its measures without what ran inside it, as computed: a little below zero where averages were
    rounded. `spent_in[n]`: for the root of an InitPlan or a CTE the nodes in whose time it ran. `outside[n]`: what of
    such a root ran in nobody's time: a CTE that writes is run to its end even when nobody reads it.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.inclusive = inclusive(nodes)
        self.exclusive = [dict(measures) for measures in self.inclusive]
        self.spent_in: dict[int, list[Node]] = {}
        self.outside: dict[int, Measures] = {}
        self._slack = [_ROUNDING_MS * (node.loops or 0) / n for node, n in zip(nodes, processes(nodes), strict=True)]
        self._rounding = list(self._slack)
        self._ordinary = [[child for child in node.children if not child.is_initplan] for node in nodes]
        for node in nodes:
            if node.parent is not None and not node.is_initplan:
                self._charge(node.parent, node, self.inclusive[node.number])
        self._ctes()
        self._initplans()

    def _charge(self, user: Node, node: Node, share: Measures) -> None:
        """Take what ran inside `user` off what it took."""
        own = self.exclusive[user.number]
        for key, value in share.items():
            if key in own:
                own[key] -= value
        self._slack[user.number] += self._rounding[node.number]

    # ---- CTEs

    def _ctes(self) -> None:
        scans = cte_scans(self.nodes)
        for node in self.nodes:
            if node.cte is not None:
                self.spent_in[node.number] = scans[node.number]
                rest = self._pour(node, scans[node.number])
                if node.type == WRITES and any(rest.values()):
                    self.outside[node.number] = rest

    def _pour(self, cte: Node, scans: Sequence[Node]) -> Measures:
        """Charge a CTE to its scans, to those that took most first; what is left when they can hold no more.

        Who reads first makes the CTE run, the others find its rows stored: usually one scan took it all. Which rows
        each of two scans that took turns asked for is not told; no scan is charged more than it took.
        """
        rest = dict(self.inclusive[cte.number])
        for key in rest:
            for scan in sorted(scans, key=lambda scan: -self.exclusive[scan.number].get(key, 0)):
                share = max(0.0, min(rest[key], self.exclusive[scan.number].get(key, 0)))
                self._charge(scan, cte, {key: share})
                rest[key] -= share
        return rest

    # ---- InitPlans

    def _initplans(self) -> None:
        users = _users(self.nodes)
        for node in self.nodes:
            if node.is_initplan and node.cte is None and node.parent is not None:
                user = self._user(node, node.parent, users)
                self.spent_in[node.number] = [user]
                self._charge(user, node, self.inclusive[node.number])

    def _user(self, initplan: Node, printed_under: Node, users: Mapping[str, list[Node]]) -> Node:
        """The node in whose time an InitPlan ran: the first of those that may have asked for it that took as much."""
        inside = {node.number for node in initplan.subtree()}
        asking = [
            node
            for name in sorted(_results(initplan))
            for node in users.get(name, ())
            if node.number not in inside and (node is printed_under or printed_under in node.ancestors())
        ]
        candidates = [*_in_order(asking, printed_under), printed_under]
        wanted = self.inclusive[initplan.number]
        for node in candidates:
            if self._fits(node, initplan, wanted):
                return node
        # Without VERBOSE the output, and so who asks, is not printed: somebody whose own time it can be part of, who
        # is below nodes whose whole time it can be part of.
        stack = [printed_under]
        while stack:
            node = stack.pop()
            if self._fits(node, initplan, wanted):
                return node
            below = reversed(self._ordinary[node.number])
            stack += [child for child in below if self._holds(self.inclusive, child, initplan, wanted)]
        return candidates[0]

    def _fits(self, node: Node, initplan: Node, wanted: Measures) -> bool:
        return self._holds(self.exclusive, node, initplan, wanted)

    def _holds(self, taken: Sequence[Measures], node: Node, initplan: Node, wanted: Measures) -> bool:
        """Whether an InitPlan can be part of what a node took."""
        if node.loops == 0 and initplan.loops:
            return False
        slack = self._slack[node.number] + self._rounding[initplan.number] + _ROUNDING_MS
        return all(
            taken[node.number].get(key, value) + (slack if key.endswith(TIME) else 0) >= value
            for key, value in wanted.items()
        )


def cte_scans(nodes: Sequence[Node]) -> dict[int, list[Node]]:
    """The scans of each CTE, by the number of its root. Of two CTEs of a name the nearer one is meant."""
    found: dict[int, list[Node]] = {node.number: [] for node in nodes if node.cte is not None}
    for scan in nodes:
        if scan.type != "CTE Scan":
            continue
        came_from = scan
        for ancestor in scan.ancestors():
            meant = [c for c in ancestor.children if c.cte == scan.raw.get("CTE Name") and c is not came_from]
            if meant:
                found[meant[0].number].append(scan)
                break
            came_from = ancestor
    return found


def _results(initplan: Node) -> set[str]:
    """The names under which others ask for an InitPlan's result: `$0` up to 16, its own name later."""
    returns = _RETURNS.search(initplan.subplan)
    if returns:
        return set(_PARAMETER.findall(returns[1]))
    return {initplan.subplan.removeprefix("InitPlan ")}


def _users(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """The nodes that mention each name that may be an InitPlan's result."""
    found: defaultdict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        names: set[str] = set()
        for _, text in expressions(node):
            if "$" in text or ").col" in text:
                plain = without_literals(text)
                names.update(_PARAMETER.findall(plain))
                names.update(_REFERENCE.findall(plain))
        for name in names:
            found[name].append(node)
    return found


def _in_order(asking: Sequence[Node], top: Node) -> Iterator[Node]:
    """Who asked first: on the way down those that need results before they start, then who mentions it, deepest first.

    A Gather has the results that its workers need computed before it launches them; an Append that leaves partitions
    out needs the value to do so, which the plan does not say; a Result asks its one-time filter before anything.
    """
    before: dict[int, Node] = {}
    for node in asking:
        way = [node]
        for ancestor in node.ancestors():
            if ancestor is top:
                break
            way.append(ancestor)
        if top.type in (*GATHERS, "Append", "Merge Append"):
            way.append(top)
        for step in reversed(way):
            if step.type in GATHERS or _prunes(step) or (step in asking and "One-Time Filter" in step.raw):
                before.setdefault(step.number, step)
    yield from before.values()
    # children run before the node above them works on their rows, so the deepest one asks first
    yield from sorted(asking, key=lambda node: (-node.depth, node.number))


def _prunes(node: Node) -> bool:
    return node.type in ("Append", "Merge Append") and (
        bool(node.raw.get("Subplans Removed")) or any(child.loops == 0 for child in node.children)
    )
