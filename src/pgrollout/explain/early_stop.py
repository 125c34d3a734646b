"""Which row counts can be held against their estimates.

The planner estimates what a node gives when it is read to its end. A node that is stopped early gave fewer rows for
no fault of the estimate, one whose rows are fetched again after a restore gave more: neither is a misestimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from pgrollout.explain.attribution import cte_scans
from pgrollout.explain.nodes import BITMAP_PARTS, WRITES, Node, expressions, number, whole, without_literals


class Bound(Enum):
    """What the actual rows say of those that the estimate was for."""

    AT_LEAST = "at least"
    AT_MOST = "at most"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Caveat:
    """Why the rows of a node are not those of the estimate; `inherited` by nodes that stop when this one does."""

    reason: str
    bound: Bound = Bound.AT_LEAST
    inherited: bool = True


_LIMIT = Caveat("stopped by the Limit above")
_FIRST_MATCH = Caveat("stopped at the first match of each row")
_OTHER_SIDE = Caveat("stopped where the other side of the join ended")
_EMPTY_SIDE = Caveat("stopped because the other side of the join is empty")
_DECIDED = Caveat("stopped as soon as EXISTS, ANY or ALL was decided")
_WINDOW = Caveat("stopped by the run condition of the window")
_RUN_CONDITION = Caveat("cut short by its run condition, which the planner does not estimate", inherited=False)
_AGAIN = Caveat("rows counted again that the merge join went back to", Bound.AT_MOST, inherited=False)
_NEITHER = Caveat("stopped early, and rows counted again that the merge join went back to", Bound.NOTHING)
_NO_ROWS = Caveat("counts no rows", Bound.NOTHING, inherited=False)
_PAGES = Caveat("counts pages of ten rows, not rows", Bound.NOTHING, inherited=False)
_GATED = Caveat("nothing run: its one-time filter is false, which the planner does not estimate", inherited=False)

_READ_TO_END = ("Sort", "Hash", "Bitmap Heap Scan", "BitmapAnd", "BitmapOr", WRITES)
_BY_KEY = ("Index Scan", "Index Only Scan", "Bitmap Heap Scan", "Memoize")
# The sides of a Merge Join, by its type, that it may leave before their end; the others it must read out.
_MERGE_STOPS = {
    "Inner": ("Outer", "Inner"),
    "Semi": ("Outer", "Inner"),
    "Left": ("Inner",),
    "Anti": ("Inner",),
    "Right": ("Outer",),
    "Right Anti": ("Outer",),
    "Full": (),
}


def caveats(nodes: Sequence[Node]) -> dict[int, Caveat]:
    """By number the nodes whose rows do not tell whether their estimate was right."""
    stopped: dict[int, Caveat] = {}
    scans = cte_scans(nodes)
    # A CTE is read as far as its scans are, so those come first; a later CTE may scan an earlier one.
    later = [node for node in nodes if node.parent is None]
    while later:
        top = later.pop()
        if top.cte is not None and top.type != WRITES:
            reasons = [stopped.get(scan.number) for scan in scans[top.number]]
            if reasons and all(reason and reason.inherited for reason in reasons) and reasons[0]:
                stopped[top.number] = reasons[0]
        stack = [top]
        while stack:
            node = stack.pop()
            for child in node.children:
                if child.cte is not None:
                    later.append(child)
                    continue
                caveat = _below(node, child, stopped.get(node.number))
                if caveat:
                    stopped[child.number] = caveat
                stack.append(child)
    return stopped | {node.number: caveat for node in nodes if (caveat := _of_its_own(node))}


def _below(node: Node, child: Node, above: Caveat | None) -> Caveat | None:
    """Why a child is not read to its end, or its rows count twice: what the executor does, node type by node type."""
    if child.is_subplan or child.is_initplan:
        return _DECIDED if _may_be_decided_early(node, child) else None
    kind, side = node.type, child.relationship
    inherited = above if above and above.inherited else None
    if kind in _READ_TO_END or (kind == "Hash Join" and side == "Inner"):
        return None
    if kind in ("Aggregate", "SetOp") and node.raw.get("Strategy") in ("Plain", "Hashed"):
        return None
    if kind == "Limit":
        return _LIMIT if _reached(node, child) else inherited
    if kind == "WindowAgg" and "Run Condition" in node.raw:
        return _WINDOW
    if kind == "Hash Join" and side == "Outer" and _ends_with_empty_hash(node):
        return _EMPTY_SIDE
    if kind == "Nested Loop" and side == "Inner" and _one_match(node, child):
        return _FIRST_MATCH
    if kind == "Merge Join":
        stops = side in _MERGE_STOPS.get(str(node.raw.get("Join Type", "Inner")), ("Outer", "Inner"))
        if side == "Inner":
            return _NEITHER if stops or inherited else _AGAIN
        return _OTHER_SIDE if stops else inherited
    return inherited


def _reached(limit: Node, child: Node) -> bool:
    """Whether a Limit stopped its child, or the child had ended before.

    A Limit's estimate is its constant, when its child promises more. A count that is not known when planning is
    taken to be a tenth of the child's rows, so there the estimate says nothing. Averages of several runs do neither.
    """
    rows, estimate = number(limit.raw, "Actual Rows"), number(limit.raw, "Plan Rows")
    below = number(child.raw, "Plan Rows")
    if rows is None or estimate is None or below is None or limit.loops != 1:
        return True
    return rows >= estimate or estimate == max(1, round(below * 0.1))


def _ends_with_empty_hash(join: Node) -> bool:
    """Whether nothing can match; a join that gives unmatched outer rows reads them all the same."""
    empty = any(child.relationship == "Inner" and number(child.raw, "Actual Rows") == 0 for child in join.children)
    return empty and join.raw.get("Join Type") not in ("Left", "Full", "Anti")


def _one_match(join: Node, inner: Node) -> bool:
    """Whether a Nested Loop may leave its inner side at the first match of each outer row.

    It does in a semi or anti join, and where a match is known to be the only one. That is `Inner Unique`, which TEXT
    prints with VERBOSE only, so it is told from what all formats have: no outer row gave more than one. A scan by the
    key of the outer row gives its matches and nothing else, so stopping it early cuts nothing off.
    """
    if join.raw.get("Join Type") in ("Semi", "Anti"):
        return True
    outer = next((child for child in join.children if child.relationship == "Outer"), None)
    rows, given = _all_rows(join), _all_rows(outer) if outer else None
    return inner.type not in _BY_KEY and rows is not None and given is not None and rows <= given


def _all_rows(node: Node) -> float | None:
    rows = number(node.raw, "Actual Rows")
    return None if rows is None or node.loops is None else rows * node.loops


def _may_be_decided_early(user: Node, subplan: Node) -> bool:
    """EXISTS, ANY and ALL stop at the row that decides; before 17 EXPLAIN does not tell them from other subqueries.

    A subquery that gave no row has been read to its end, and a hashed one always is.
    """
    rows = number(subplan.raw, "Actual Rows")
    name = subplan.subplan.partition(" (returns")[0].removeprefix("SubPlan ").removeprefix("InitPlan ")
    hashed = any(
        f"hashed SubPlan {name})" in text or f"hashed {name})" in text
        for text in (without_literals(text) for _, text in expressions(user))
    )
    return not hashed and (rows is None or rows > 0 or subplan.loops != 1)


def _of_its_own(node: Node) -> Caveat | None:
    """Why the rows of a node are not to be compared, wherever it stands."""
    rows = number(node.raw, "Actual Rows")
    if node.type in ("BitmapAnd", "BitmapOr") or (node.type == WRITES and not rows):
        return _NO_ROWS
    if "One-Time Filter" in node.raw and rows == 0:
        return _GATED
    if node.type == "WindowAgg" and "Run Condition" in node.raw:
        return _RUN_CONDITION
    if node.type == "Bitmap Index Scan" and rows and node.parent is not None:
        heap = next((above for above in node.ancestors() if above.type not in BITMAP_PARTS), node.parent)
        lossy, exact = whole(heap.raw, "Lossy Heap Blocks"), whole(heap.raw, "Exact Heap Blocks")
        # BRIN knows ranges of pages, and tells the executor ten rows for each page
        if lossy and not exact and rows == 10 * lossy:
            return _PAGES
    return None


def q_error(node: Node, caveat: Caveat | None) -> float | None:
    """How many times the estimate is too high or too low, both per loop and at least one row; 1 = right.

    None where it was never executed, where the plan has no actual rows, and where they say nothing of the estimate.
    """
    estimate, actual = number(node.raw, "Plan Rows"), number(node.raw, "Actual Rows")
    if estimate is None or actual is None or not node.loops:
        return None
    estimate, actual = max(1.0, estimate), max(1.0, actual)
    if estimate == actual:
        return 1.0
    bound = caveat.bound if caveat else None
    if (
        bound is Bound.NOTHING
        or (bound is Bound.AT_LEAST and actual < estimate)
        or (bound is Bound.AT_MOST and actual > estimate)
    ):
        return None
    return max(estimate / actual, actual / estimate)
