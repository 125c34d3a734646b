"""The plan for people: what stands in a line, what is marked, what stands below, and what does not."""

from __future__ import annotations

import re

import pytest

from pgrollout.explain.nodes import flat, label
from pgrollout.explain.tree import tree
from tests.support.explained import capture, captured, node, ran


def test_the_whole_of_it() -> None:
    removed = {"Rows Removed by Filter": 2000, "Shared Hit Blocks": 14, "Shared Read Blocks": 0}
    scan = ran("Seq Scan", ms=4.0, rows=1000, plan_rows=5, relation_name="t", filter="(a = 1)") | removed
    root = ran("Sort", scan, ms=5.0, rows=1000, plan_rows=1000, sort_space_type="Disk", sort_space_used=96)
    document = {
        "Plan": root | {"Shared Hit Blocks": 14, "Shared Read Blocks": 0},
        "Planning Time": 0.25,
        "Execution Time": 5.5,
    }
    assert tree([document]) == [
        "   own ms   %  loops  rows/estimated  blocks  node",
        "!   1.000  20      1     1,000/1,000       0  Sort",
        "                                                  spilled to disk: 96 kB",
        "!!  4.000  80      1         1,000/5      14    Seq Scan on t",
        "                                                    2,000 rows removed by Filter: (a = 1)",
        "                                                    200 times more rows than estimated",
        "planning 0.250 ms; execution 5.500 ms; shared blocks: 14 hit, 0 read",
    ]


def test_without_analyze_there_are_cost_and_conditions() -> None:
    assert tree(capture("initplan", kind="plain")) == [
        "       cost    rows  node",
        "   1,803.91       3  Limit",
        "   1,718.01       1    InitPlan 1: Aggregate",
        "!  1,568.00  60,000      Seq Scan on x.big big_1",
        "!  1,718.00      60    Seq Scan on x.big",
        "                           Filter: (big.val = (InitPlan 1).col1)",
    ]


def test_without_costs_there_is_the_tree() -> None:
    assert tree(capture("cte_weird_name", kind="costs_off"))[:4] == [
        "   node",
        "   Nested Loop",
        "     CTE my cte (x): Result",
        '     CTE Second One: CTE Scan on "my cte (x)"',
    ]


def test_what_never_ran_says_so() -> None:
    (line,) = [line for line in tree(capture("nestloop_never")) if "Index Scan" in line]
    assert re.fullmatch(r" +0\.000 +0 +never +-/1 +0 +Index Scan using child_pkey on x\.child c", line)


@pytest.mark.parametrize(
    ("query", "note"),
    [
        ("hashjoin_spill", "spilled to disk: 64 batches, 970 temporary blocks"),
        ("brin", "128 lossy blocks: read whole, each row checked again"),
        ("idx_only_heapfetch", "19 heap fetches of 19 rows"),
        ("par_not_launched", "0 of 2 workers launched"),
    ],
)
def test_what_explains_a_node_stands_below_it(query: str, note: str) -> None:
    assert note in [line.strip() for line in tree(capture(query))]


def test_what_does_not_matter_is_left_out() -> None:
    scan = ran("Seq Scan", rows=1000, filter="(a = 1)", rows_removed_by_filter=20, plan_rows=1500)
    assert len(tree({"Plan": scan})) == 2


def test_a_long_condition_is_cut_and_stays_on_its_line() -> None:
    lines = tree({"Plan": node("Seq Scan", filter="(a = '" + "x\n" * 200 + "')", total_cost=1.0)})
    assert lines[-1].endswith("…")
    assert all(len(line) < 140 and "\n" not in line for line in lines)


def test_every_node_has_its_line_in_every_plan() -> None:
    for name, plans in list(captured().items())[::4]:
        lines = tree(plans)
        begin = lines[0].index("node")
        trees = iter([line[begin:] for line in lines[1:]])
        for each in flat(plans, "test"):
            subplan = f"{each.subplan.partition(' (returns')[0]}: " if each.subplan else ""
            expected = "  " * each.depth + subplan + label(each)
            assert any(line == expected for line in trees), (name, each.path)


def test_rows_that_a_limit_did_not_ask_for_are_no_misestimate() -> None:
    assert not [line for line in tree(capture("limit_early")) if "than estimated" in line]
