"""What is told of two plans: every change once, at its place, and nothing that did not change."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from pgrollout.explain.compare import STRUCTURE, compare
from pgrollout.explain.fingerprint import fingerprint
from pgrollout.explain.nodes import BITMAP_PARTS, flat
from tests.support.explained import capture, captured, node, ran


def seq(table: str, **more: Any) -> dict[str, Any]:
    return ran("Seq Scan", relation_name=table, alias=table, parent_relationship="Outer", **more)  # type: ignore[no-any-return]


def hash_join(outer: dict[str, Any], inner: dict[str, Any], **more: Any) -> dict[str, Any]:
    return ran("Hash Join", outer, ran("Hash", inner, parent_relationship="Inner"), **more)  # type: ignore[no-any-return]


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(change["kind"], change["path"]) for change in compare({"Plan": before}, {"Plan": after})["changes"]]


def lines(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    found: list[str] = compare({"Plan": before}, {"Plan": after})["lines"]
    return found


def test_a_plan_is_itself() -> None:
    for name, plans in captured().items():
        if not name.startswith("live/pg17/") or not name.endswith(("/full/json", "/plain")):
            continue
        assert compare(plans, plans) == {"same_plan": True, "lines": [], "changes": []}, name


def test_a_plan_is_the_same_when_its_full_fingerprint_is() -> None:
    """All versions of each captured query against each other."""
    compared = 0
    for name, plans in captured().items():
        if name.endswith("/full/json") and not name.startswith("live/pg17/"):
            newer = captured().get("/".join(["live/pg17", *name.split("/")[2:]]))
            if newer:
                same = fingerprint(plans)["full"] == fingerprint(newer)["full"]
                assert compare(plans, newer)["same_plan"] == same, name
                compared += 1
    assert compared > 300


def test_a_node_put_in_anywhere_is_the_one_change() -> None:
    for name, plans in captured().items():
        if not re.match("live/pg15/(par_|cte_|initplan|subplan|bitmap).*/plain", name):
            continue
        for place in flat(plans, "test"):
            if place.type in (*BITMAP_PARTS, "Hash"):
                continue
            changed = copy.deepcopy(plans)
            inner = next(each for each in flat(changed, "test") if each.path == place.path)
            below = dict(inner.raw)
            kept = {key: below.pop(key) for key in ("Parent Relationship", "Subplan Name") if key in below}
            inner.raw.clear()  # type: ignore[attr-defined]
            cost = below["Total Cost"]
            inner.raw.update(node("Materialize", below | {"Parent Relationship": "Outer"}, total_cost=cost) | kept)  # type: ignore[attr-defined]
            added = [(each["kind"], each["label"]) for each in compare(plans, changed)["changes"]]
            assert added == [("added", "Materialize")], (name, place.path)
            removed = [(each["kind"], each["label"]) for each in compare(changed, plans)["changes"]]
            assert removed == [("removed", "Materialize")], (name, place.path)


def test_an_index_that_is_used_now() -> None:
    index = ran("Index Scan", relation_name="t", alias="t", index_name="t_idx", index_cond="(a = 1)", ms=0.1)
    full = seq("t", ms=30.0, rows=5000, filter="(a = 1)", rows_removed_by_filter=100_000) | {"Shared Hit Blocks": 900}
    found = compare({"Plan": full}, {"Plan": index | {"Shared Hit Blocks": 4}})
    assert found["changes"][2] == {
        "kind": "scan", "path": "0", "label": "Index Scan using t_idx on t",
        "before": "Seq Scan on t", "after": "Index Scan using t_idx on t", "ratio": None,
    }  # fmt: skip
    assert found["lines"] == [
        "rows processed 105,000 → 1 (÷105,000)",
        "shared blocks 900 → 4 (÷225)",
        "Seq Scan on t → Index Scan using t_idx on t; rows read 105,000 → 1 (÷105,000); "
        "shared blocks 900 → 4 (÷225); ms 30 → 0.1 (÷300)  [0]",
    ]
    assert [change["kind"] for change in found["changes"]] == [
        "rows_processed", "shared_blocks", "scan", "rows_read", "shared_blocks", "exclusive_ms",
    ]  # fmt: skip


def test_the_way_of_a_join() -> None:
    nested = ran("Nested Loop", seq("a"), seq("b"))
    assert lines(hash_join(seq("a"), seq("b")), nested) == ["Hash Join → Nested Loop  [0]"]


def test_the_order_of_joins() -> None:
    before = hash_join(hash_join(seq("a"), seq("b")), seq("c"))
    after = hash_join(hash_join(seq("b"), seq("c")), seq("a"))
    assert changes(before, after) == [("join_order", "0.0")]
    assert lines(before, after) == ["Hash Join: joins b, c now, a, b before  [0.0]"]


def test_other_partitions_are_no_other_join_order() -> None:
    before = hash_join(ran("Append", seq("p_1"), seq("p_2")), seq("c"))
    after = hash_join(ran("Append", seq("p_2"), seq("p_3")), seq("c"))
    assert changes(before, after) == [("removed", "0.0.0"), ("added", "0.0.1")]


def test_indexes_of_a_bitmap_scan_belong_to_it() -> None:
    def bitmap(*indexes: str) -> dict[str, Any]:
        scans = [ran("Bitmap Index Scan", index_name=index) for index in indexes]
        below = scans if len(scans) == 1 else [ran("BitmapOr", *scans)]
        return ran("Bitmap Heap Scan", *below, relation_name="t", alias="t")  # type: ignore[no-any-return]

    assert lines(bitmap("i"), bitmap("i", "j")) == [
        "Bitmap Heap Scan using i on t → Bitmap Heap Scan using i, j on t  [0]"
    ]


def test_a_condition_that_is_a_filter_now() -> None:
    scan = node("Index Scan", relation_name="t", alias="t", index_name="i")
    before, after = (
        scan | {"Index Cond": "((a = 1) AND (b = 2))"},
        scan | {"Index Cond": "(a = 1)", "Filter": "(b = 2)"},
    )
    assert lines(before, after) == [
        "Index Scan using i on t: Index Cond: ((a = ?) AND (b = ?)) → Index Cond: (a = ?), Filter: (b = ?)  [0]"
    ]


def test_a_spill_that_is_new() -> None:
    before, after = ran("Sort", seq("t")), ran("Sort", seq("t"), sort_space_type="Disk", sort_space_used=900)
    assert lines(before, after) == ["Sort: spills now (sort)  [0]"]
    assert lines(after, before) == ["Sort: spills no more (sort)  [0]"]


@pytest.mark.parametrize(
    ("key", "before", "after", "told"),
    [
        ("Shared Hit Blocks", 1000, 1010, []),
        ("Shared Hit Blocks", 4, 9, []),
        ("Shared Hit Blocks", 1000, 1100, ["shared_blocks", "shared_blocks"]),
        ("Actual Total Time", 100.0, 140.0, []),
        ("Actual Total Time", 1.0, 4.0, []),
        ("Actual Total Time", 100.0, 200.0, ["exclusive_ms"]),
        ("Actual Rows", 1000, 2000, ["rows_processed", "rows_read"]),
    ],
)
def test_noise_is_not_told(key: str, before: float, after: float, told: list[str]) -> None:
    assert [kind for kind, _ in changes(seq("t") | {key: before}, seq("t") | {key: after})] == told


def test_estimates_are_compared_where_nothing_ran() -> None:
    scan = node("Seq Scan", relation_name="t", alias="t", plan_rows=10, total_cost=5.0)
    found = compare({"Plan": scan}, {"Plan": scan | {"Plan Rows": 1000, "Total Cost": 500.0}})
    assert [(change["kind"], change["ratio"]) for change in found["changes"]] == [
        ("total_cost", 100.0), ("plan_rows", 100.0), ("exclusive_cost", 100.0)
    ]  # fmt: skip
    assert found["same_plan"] is True
    assert found["lines"][-1] == "Seq Scan on t: rows estimated 10 → 1,000 (×100); cost 5 → 500 (×100)  [0]"


def test_kinds_of_the_plan_itself_are_told_apart_from_measures() -> None:
    found = compare(capture("incsort", "12"), capture("incsort"))
    kinds = [change["kind"] for change in found["changes"]]
    assert [kind for kind in kinds if kind in STRUCTURE] == ["node", "scan"]
