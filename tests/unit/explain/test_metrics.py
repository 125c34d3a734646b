"""What plans took: the sums hold on every captured plan, and each trap of EXPLAIN's numbers is stepped over."""

from __future__ import annotations

import cProfile
import json
import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pgrollout.explain.attribution import BLOCKS, TIME, Attribution
from pgrollout.explain.metrics import metrics
from pgrollout.explain.nodes import flat
from pgrollout.explain.read import explain_parse
from tests.support.explained import capture, captured, node, ran, records

VERSIONS = ("12", "14", "15", "17")


def measured(plans: Any, label: str, nth: int = 0) -> dict[str, Any]:
    """The nth node whose label begins so."""
    found: dict[str, Any] = [each for each in metrics(plans)["nodes"] if each["label"].startswith(label)][nth]
    return found


@lru_cache(maxsize=1)
def all_metrics() -> dict[str, dict[str, Any]]:
    return {name: metrics(plans) for name, plans in captured().items()}


# ---- invariants


def rounding(loops: float) -> float:
    """Times are averages of loops with three decimals."""
    return 0.0005 * loops + 0.001


def test_no_node_took_less_than_nothing_and_all_together_took_what_the_roots_took() -> None:
    """Time holds within rounding, blocks and WAL to the unit.

    Two things are no part of the roots' time and are not in this sum: triggers of constraints, which run when the
    nodes have ended, and CTEs that write but are not read to the end (`outside`), which are run to their end then.
    Where a Gather is stopped early its workers may run on unmeasured, so that it could seem to take less than they.
    """
    for name, plans in captured().items():
        nodes = flat(plans, "test")
        found = Attribution(nodes)
        slack = rounding(sum(each.loops or 0 for each in nodes))
        for each in nodes:
            for key, value in found.exclusive[each.number].items():
                assert value >= (-slack if key.endswith(TIME) else 0), (name, each.path, key)
        roots = [found.inclusive[each.number] for each in nodes if each.parent is None]
        for key in set().union(*found.inclusive):
            together = sum(own.get(key, 0) for own in found.exclusive)
            expected = sum(root.get(key, 0) for root in [*roots, *found.outside.values()])
            assert together == pytest.approx(expected, abs=slack if key.endswith(TIME) else 0), (name, key)


def test_nodes_and_triggers_of_constraints_fit_into_the_execution() -> None:
    compared = 0
    for name, found in all_metrics().items():
        totals = found["totals"]
        if totals["execution_ms"] is not None and totals["nodes_ms"] is not None:
            after = sum(trigger["ms"] for trigger in totals["triggers"] if trigger["constraint"])
            assert totals["nodes_ms"] + after <= totals["execution_ms"] + 0.01, name
            compared += 1
    assert compared > 400


def test_every_node_is_measured_once_and_plans_that_did_not_run_say_so() -> None:
    for name, plans in captured().items():
        found = all_metrics()[name]
        assert [each["path"] for each in found["nodes"]] == [each.path for each in flat(plans, "test")], name
        assert found["totals"]["analyzed"] == ("/plain" not in name and "/costs_off" not in name), name
        json.dumps(found, allow_nan=False)


def test_the_numbers_are_the_same_from_every_format_of_an_execution() -> None:
    """A number that TEXT does not tell may be unknown where it is zero, a name or setting anyway.

    auto_explain tells neither planning nor execution time, and settings whether asked or not.
    """
    for record in records():
        if record["kind"] == "pair":
            text = metrics(explain_parse(record["texts"]["text"]))
            pair = metrics([document for entry in record["pair"] for document in explain_parse(entry)])
            assert list(unequal(text, pair)) == [], record["id"]


_NOT_OF_BOTH = {"planning_ms", "execution_ms", "serialization_ms", "planning", "serialization", "relationship"}


def unequal(text: Any, pair: Any, path: str = "") -> Iterator[str]:
    if isinstance(text, dict) and isinstance(pair, dict):
        for key in (text.keys() | pair.keys()) - _NOT_OF_BOTH:
            yield from unequal(text.get(key), pair.get(key), f"{path}/{key}")
    elif isinstance(text, list) and isinstance(pair, list) and len(text) == len(pair):
        for i, (one, other) in enumerate(zip(text, pair, strict=True)):
            yield from unequal(one, other, f"{path}/{i}")
    elif text != pair and not (text in (None, [], {}) and (not pair or isinstance(pair, str))):
        yield f"{path}: {text!r} from TEXT, {pair!r} from its pair"


# ---- time: loops, workers, CTEs, InitPlans


@pytest.mark.parametrize("version", VERSIONS)
def test_the_divisor_is_how_often_the_node_below_a_gather_ran(version: str) -> None:
    plans = capture("par_leader_off", version)
    gather = next(each for each in flat(plans, "test") if each.type.startswith("Gather"))
    assert gather.raw["Workers Launched"] == 2
    below = measured(plans, str(gather.children[0].raw["Node Type"]), 0)
    assert below["loops"] == 2, "the leader takes no part"
    assert below["processes"] == 2
    assert below["inclusive_ms"] == pytest.approx(gather.children[0].raw["Actual Total Time"])


def test_a_gather_in_a_loop_has_its_processes_in_each_run() -> None:
    scan = ran("Seq Scan", ms=2.0, loops=15)
    plans = [{"Plan": ran("Nested Loop", ran("Result"), ran("Gather", scan, ms=3.0, loops=5), ms=20)}]
    found = metrics(plans)["nodes"]
    assert [each["processes"] for each in found] == [1, 1, 1, 3]
    assert found[3]["inclusive_ms"] == 10.0
    assert found[2]["exclusive_ms"] == 5.0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_cte_is_spent_in_the_scan_that_made_it_run(version: str) -> None:
    plans = capture("cte_mat_twice", version)
    cte, first = measured(plans, "HashAggregate"), measured(plans, "CTE Scan on c a")
    assert first["path"] in cte["spent_in"]
    assert len(cte["spent_in"]) == 2
    assert first["inclusive_ms"] >= cte["inclusive_ms"]
    assert first["exclusive_ms"] < cte["inclusive_ms"] / 10
    assert first["exclusive"]["shared_hit"] == 0
    assert measured(plans, "Hash Join")["exclusive_ms"] < cte["inclusive_ms"] / 2


def test_a_cte_that_writes_and_is_not_read_counts_for_the_statement() -> None:
    delete = ran(
        "ModifyTable",
        ms=4.0,
        operation="Delete",
        parent_relationship="InitPlan",
        subplan_name="CTE d",
        shared_hit_blocks=9,
    )
    totals = metrics([{"Plan": ran("Result", delete, ms=0.5, shared_hit_blocks=1)}])["totals"]
    assert (totals["nodes_ms"], totals["shared_hit"]) == (4.5, 10)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("query", "user"),
    [
        ("initplan", "Seq Scan on x.big"),
        ("par_initplan_launched", "Gather"),  # it has the value computed before its workers start
        ("append_runtime_prune", "Append"),  # which partitions to leave out: printed nowhere
        ("exists_onetime", "Result"),
        ("initplan_in_subplan", "Seq Scan on x.big2"),
    ],
)
def test_an_initplan_is_spent_in_who_asked_for_it(version: str, query: str, user: str) -> None:
    found = metrics(capture(query, version))["nodes"]
    by_path = {each["path"]: each for each in found}
    spent = {
        by_path[path]["label"]
        for each in found
        if each["subplan"] and "InitPlan" in each["subplan"] and each["loops"]
        for path in each["spent_in"]
    }
    assert spent == {user}


def test_an_initplan_is_charged_alike_when_the_output_is_not_printed() -> None:
    """Without VERBOSE nobody is seen to ask: it is the first node that took as long."""
    initplan = ran("Aggregate", ms=8.0, parent_relationship="InitPlan", subplan_name="InitPlan 1")
    scan = ran("Seq Scan", ms=9.0, parent_relationship="Outer")
    plans = [{"Plan": ran("Sort", initplan, scan, ms=9.5)}]
    assert [each["exclusive_ms"] for each in metrics(plans)["nodes"]] == [0.5, 8.0, 1.0]


def test_a_literal_that_looks_like_a_reference_asks_for_nothing() -> None:
    initplan = ran("Aggregate", ms=2.0, parent_relationship="InitPlan", subplan_name="InitPlan 1 (returns $0)")
    one = ran("Seq Scan", ms=5.0, parent_relationship="Outer", filter="(a = '$0'::text)")
    other = ran("Seq Scan", ms=5.0, parent_relationship="Inner", filter="(b = $0)")
    found = metrics([{"Plan": ran("Nested Loop", initplan, one, other, ms=11)}])["nodes"]
    assert found[1]["spent_in"] == ["0.2"]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_never_ran_took_nothing_and_is_no_misestimate(version: str) -> None:
    found = measured(capture("nestloop_never", version), "Index Scan")
    assert found["never_executed"] is True
    assert (found["loops"], found["rows"], found["exclusive_ms"]) == (0, 0, 0)
    assert (found["q_error"], found["caveat"]) == (None, "never executed")


# ---- spills


@pytest.mark.parametrize(
    ("query", "cause", "label"),
    [
        ("sort_external", "sort", "Sort"),
        ("incsort_full", "sort", "Incremental Sort"),
        ("par_gather_merge", "sort", "Sort"),
        ("hashjoin_spill", "hash", "Hash"),
        ("hashjoin_big_spill", "hash", "Hash"),
        ("par_hash_spill", "hash", "Parallel Hash"),
        ("hashagg_spill", "aggregate", "HashAggregate"),
        ("par_hashagg_spill_workers", "aggregate", "HashAggregate"),
    ],
)
def test_a_spill_is_named_once_at_the_node_that_caused_it(query: str, cause: str, label: str) -> None:
    found = metrics(capture(query))
    (spilled,) = [each for each in found["nodes"] if each["spill"]]
    assert (spilled["spill"]["cause"], spilled["label"]) == (cause, label)
    assert found["totals"]["spills"] == [spilled["path"]]
    assert spilled["spill"]["temp_blocks"] == found["totals"]["temp_blocks"] > 0


def test_disk_of_workers_counts() -> None:
    (spilled,) = [each for each in metrics(capture("par_gather_merge"))["nodes"] if each["spill"]]
    assert spilled["spill"]["disk_kb"] == 752 + 256 + 328
    workers = [{"Worker Number": 0, "HashAgg Batches": 5, "Disk Usage": 30}, {"Worker Number": 1, "HashAgg Batches": 1}]
    aggregate = ran("Aggregate", strategy="Hashed", disk_usage=0, workers=workers) | {"HashAgg Batches": 1}
    assert metrics({"Plan": aggregate})["nodes"][0]["spill"] == {
        "cause": "aggregate", "disk_kb": 30, "batches": 5, "temp_blocks": None
    }  # fmt: skip


def test_a_spill_is_seen_without_buffers_where_the_node_tells_it() -> None:
    for query in ("sort_external", "hashjoin_spill", "hashagg_spill"):
        (spilled,) = [each for each in metrics(capture(query, kind="timing_off/json"))["nodes"] if each["spill"]]
        assert spilled["spill"]["temp_blocks"] is None


def test_no_other_query_spills() -> None:
    spilling = {name.split("/")[2] for name, found in all_metrics().items() if found["totals"]["spills"]}
    # each of these was given too little memory
    assert {query for query in spilling if "spill" not in query} == {
        "sort_external", "incsort_full", "par_gather_merge", "grouping_sets", "rollup_sorted", "jit_join",
        "jit_par_sort",
    }  # fmt: skip


# ---- estimates


@pytest.mark.parametrize("version", VERSIONS)
def test_a_wrong_estimate_is_told_per_loop(version: str) -> None:
    found = measured(capture("est_error", version), "Seq Scan on x.skew")
    assert found["q_error"] == 200.0
    assert found["caveat"] is None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("query", "label", "caveat"),
    [
        ("limit_early", "Seq Scan on x.big2", "Limit"),
        ("limit_early", "Nested Loop", "Limit"),
        ("topn", "Sort", "Limit"),
        ("mergejoin", "Index Only Scan using big_pkey", "other side"),
        ("anti_join", "Index Only Scan using child_pkey", "stopped"),
        ("semi_join", "Index Only Scan using child_big_idx", "counted again"),
        ("empty_hash_never", "Seq Scan on x.big2", "empty"),
        ("brin", "Bitmap Index Scan", "pages"),
        ("bitmap_or", "BitmapOr", "no rows"),
        ("exists_onetime", "Result", "one-time filter"),
        ("mergeappend", "Append", "Limit"),
    ],
)
def test_what_stopped_early_is_no_misestimate(version: str, query: str, label: str, caveat: str) -> None:
    found = measured(capture(query, version), label)
    assert found["q_error"] is None
    assert caveat in found["caveat"]


def test_below_what_reads_to_the_end_a_limit_excuses_nothing() -> None:
    assert measured(capture("topn"), "Seq Scan")["q_error"] == 1.0


def test_a_limit_that_was_not_reached_excuses_nothing() -> None:
    scan = ran("Seq Scan", rows=3, plan_rows=5000)
    assert metrics([{"Plan": ran("Limit", scan, rows=3, plan_rows=100)}])["totals"]["max_q_error"] == pytest.approx(
        1666.67
    )
    # with LIMIT $1 the planner takes a tenth, so that nothing tells whether it was reached
    assert metrics([{"Plan": ran("Limit", scan, rows=3, plan_rows=500)}])["nodes"][1]["q_error"] is None


def test_more_rows_than_estimated_are_a_misestimate_even_when_stopped() -> None:
    scan = ran("Index Scan", rows=1000, plan_rows=1000, loops=1) | {"Plan Rows": 10}
    found = metrics(
        [{"Plan": ran("Limit", ran("Merge Append", scan, rows=1000, plan_rows=1000), rows=1000, plan_rows=10)}]
    )
    assert found["nodes"][2]["q_error"] == 100.0


@pytest.mark.parametrize("told", [{}, {"Inner Unique": True}, {"Inner Unique": False}])
def test_a_scan_that_may_stop_at_its_match_is_judged_alike_by_all_formats(told: dict[str, Any]) -> None:
    """TEXT tells `Inner Unique` with VERBOSE only."""

    def inner(kind: str, joined: int) -> Any:
        outer = ran("Seq Scan", rows=100, parent_relationship="Outer")
        scan = ran(kind, rows=25, plan_rows=50, loops=100, parent_relationship="Inner")
        return metrics({"Plan": ran("Nested Loop", outer, scan, rows=joined) | told})["nodes"][2]["q_error"]

    assert inner("Materialize", 100) is None
    assert inner("Materialize", 101) == 2, "some row had two matches, so all were read"
    assert inner("Index Scan", 100) == 2, "it is given the key"


def test_subqueries_that_may_stop_at_a_row_excuse_few_rows_only() -> None:
    def with_subplan(filtered: str, rows: float) -> Any:
        below = ran("Seq Scan", rows=rows, plan_rows=400, parent_relationship="SubPlan", subplan_name="SubPlan 1")
        return metrics([{"Plan": ran("Seq Scan", below, filter=filtered)}])["nodes"][1]["q_error"]

    assert with_subplan("EXISTS(SubPlan 1)", 1) is None
    assert with_subplan("EXISTS(SubPlan 1)", 0) == 400, "read to its end"
    assert with_subplan("(ANY (a = (hashed SubPlan 1).col1))", 1) == 400, "read to its end"
    assert with_subplan("(x = 'hashed SubPlan 1)'::text)", 1) is None


# ---- the rest


def test_rows_removed_are_told_per_loop_and_in_all() -> None:
    found = measured(capture("par_seq"), "Parallel Seq Scan")
    removed = found["rows_removed"]["filter"]
    assert removed["total"] == removed["per_loop"] * found["loops"]
    assert found["rows_read"] == found["rows"] + removed["total"] == pytest.approx(60000, abs=3)


@pytest.mark.parametrize("version", VERSIONS)
def test_heap_fetches_and_lossy_blocks(version: str) -> None:
    assert measured(capture("idx_only_heapfetch", version), "Index Only Scan")["heap_fetches"] == 19
    lossy = measured(capture("brin", version), "Bitmap Heap Scan")
    assert (lossy["exact_heap_blocks"], lossy["lossy_heap_blocks"]) == (0, 128)
    assert lossy["rows_removed"]["index_recheck"]["total"] > 0


def test_heap_blocks_of_workers_are_added_from_18_on() -> None:
    scan = ran("Bitmap Heap Scan", exact_heap_blocks=5, workers=[{"Worker Number": 0, "Exact Heap Blocks": 7}])
    assert metrics([{"Plan": scan | {"Index Searches": 4}}])["nodes"][0]["exact_heap_blocks"] == 12
    assert metrics([{"Plan": scan | {"Index Searches": 4}}])["nodes"][0]["index_searches"] == 4


def test_jit_of_all_processes_is_counted_once() -> None:
    totals = metrics(captured()["live/pg15jit/jit_join/analyze_json"])["totals"]
    assert totals["jit_ms"] > totals["execution_ms"], "three processes compiled at the same time"
    parts = ("generation_ms", "inlining_ms", "optimization_ms", "emission_ms")
    assert sum(totals["jit"][part] for part in parts) == pytest.approx(totals["jit_ms"], abs=0.01)


def test_jit_of_17_tells_generation_in_parts() -> None:
    timing = {
        "Generation": {"Deform": 0.5, "Total": 2.0},
        "Inlining": 0.0,
        "Optimization": 1.0,
        "Emission": 3.0,
        "Total": 6.0,
    }
    plans = [{"Plan": ran("Result"), "JIT": {"Functions": 4, "Timing": timing}}]
    assert metrics(plans)["totals"]["jit"] == {
        "functions": 4, "ms": 6.0, "generation_ms": 2.0, "inlining_ms": 0.0, "optimization_ms": 1.0, "emission_ms": 3.0
    }  # fmt: skip


def test_triggers_planning_and_serialisation() -> None:
    totals = metrics(capture("fk_insert_cost", kind="analyze_json"))["totals"]
    assert [trigger["calls"] for trigger in totals["triggers"]] == [3000, 3000]
    assert totals["triggers_ms"] == pytest.approx(sum(trigger["ms"] for trigger in totals["triggers"]))
    assert totals["planning"]["memory_used_kb"] > 0
    assert totals["planning_ms"] > 0
    assert totals["serialization_ms"] == totals["serialization"]["ms"]
    assert metrics(capture("sort_external", kind="analyze_json"))["totals"]["serialization"]["output_kb"] > 6000


def test_several_statements_are_added_up() -> None:
    plans = capture("rule_two_plans")
    found = metrics(plans)
    assert found["totals"]["statements"] == 2
    assert {each["path"].split(".")[0] for each in found["nodes"]} == {"0", "1"}
    alone = [metrics(document)["totals"]["shared_blocks"] for document in plans]
    assert found["totals"]["shared_blocks"] == sum(alone)


def test_what_was_not_measured_is_unknown_and_what_was_is_zero() -> None:
    off, on = (metrics(capture("result_false", kind=kind))["totals"] for kind in ("timing_off/json", "full/json"))
    assert (off["shared_blocks"], off["nodes_ms"], off["temp_blocks"]) == (None, None, None)
    assert (on["shared_blocks"], on["temp_blocks"]) == (0, 0)


# ---- properties


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> dict[str, Any]:
    """Plans whose nodes took at least what ran inside them, as instrumentation guarantees."""
    below = draw(st.lists(trees(depth=depth - 1), max_size=3)) if depth else []
    own, blocks = draw(st.integers(0, 1000)), draw(st.integers(0, 50))
    found: dict[str, Any] = ran(
        draw(st.sampled_from(["Append", "Nested Loop", "Sort", "Seq Scan", "Gather"])),
        *below,
        ms=own + sum(each["Actual Total Time"] for each in below),
        shared_hit_blocks=blocks + sum(each["Shared Hit Blocks"] for each in below),
        own=own,
        own_blocks=blocks,
        parent_relationship="Outer",
    )
    return found


@given(trees())
def test_each_node_is_charged_what_it_took_itself(tree: dict[str, Any]) -> None:
    for each, found in zip(flat([{"Plan": tree}], "test"), metrics([{"Plan": tree}])["nodes"], strict=True):
        assert found["exclusive_ms"] == each.raw["Own"]
        assert found["exclusive"]["shared_hit"] == each.raw["Own Blocks"]


@given(trees(), st.randoms(use_true_random=False))
def test_initplans_and_ctes_lose_nothing_wherever_they_are(tree: dict[str, Any], dice: random.Random) -> None:
    """Any node may be one: nobody is charged more than all took together, and every sum still holds."""
    for each in flat([{"Plan": tree}], "test")[1:]:
        name = dice.choice(["InitPlan 1", "CTE c", "SubPlan 1", ""])
        if name:
            each.raw.update({"Subplan Name": name, "Parent Relationship": name.split()[0].replace("CTE", "InitPlan")})  # type: ignore[attr-defined]
    found = Attribution(flat([{"Plan": tree}], "test"))
    roots = found.inclusive[0][TIME]
    charged = sum(max(0, own[TIME]) for own in found.exclusive)
    assert charged >= roots - 0.01


@pytest.mark.parametrize("subplan", ["InitPlan {}", "CTE {}", "SubPlan {}"])
def test_work_grows_with_the_plan(subplan: str) -> None:
    """Ten times the nodes take not much more than ten times the calls; squared it would be a hundred times."""

    def calls(count: int) -> int:
        below = (
            ran(
                "Result",
                parent_relationship=subplan.split()[0].replace("CTE", "InitPlan"),
                subplan_name=subplan.format(i),
            )
            for i in range(count)
        )
        plans = {"Plan": ran("Result", *below, ms=count)}
        profile = cProfile.Profile()
        profile.runcall(metrics, plans)
        return sum(entry.callcount for entry in profile.getstats())

    assert calls(1000) < 20 * calls(100)


def test_blocks_have_the_names_of_every_version() -> None:
    assert set(BLOCKS.values()) <= set().union(*(node_keys(plans) for plans in captured().values()))


def node_keys(plans: Any) -> set[str]:
    return set().union(*(each.raw.keys() for each in flat(plans, "test")))


def test_yaml_and_json_give_the_same() -> None:
    for record in records()[::50]:
        if record["kind"] == "plain4":
            texts = record["texts"]
            assert metrics(yaml.safe_load(texts["yaml"])) == metrics(json.loads(texts["json"])), record["id"]


def test_a_node_without_numbers_is_no_error() -> None:
    assert metrics({"Plan": node("Custom Scan", actual_rows="many")})["nodes"][0]["rows"] is None
