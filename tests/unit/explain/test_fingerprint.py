"""Fingerprints: equal for equal plans of all versions and options, different for different ones."""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgrollout.explain.conditions import normalised
from pgrollout.explain.fingerprint import LEVELS, fingerprint
from pgrollout.explain.read import explain_parse
from tests.support.explained import capture, captured, node, records

# The captured queries that versions plan each in its own way; all others are one plan in every capture.
PLANNED_DIFFERENTLY = {
    "incsort": "incremental sorts come with 13",
    "incsort_full": "17 sorts incrementally where 15 does not",
    "hashagg_spill": "12 does not spill hash aggregates",
    "grouping_sets": "costs",
    "anti_join": "17 turns the join round",
    "initplan_minmax": "17 knows that a primary key is not null",
    "subplan_alt": "12 keeps both alternatives in the plan",
    "window_run_cond": "run conditions come with 15",
    "update_part": "14 updates partitions through an Append; and pages were added between captures",
    "settings_many": "costs",
}


@pytest.mark.parametrize("level", LEVELS)
def test_a_plan_has_one_fingerprint_in_all_versions_and_with_all_options(level: str) -> None:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for name, plans in captured().items():
        found[name.split("/")[2]].add(fingerprint(plans)[level]["hash"])
    assert len(found) > 130
    differ = {query for query, hashes in found.items() if len(hashes) > 1}
    assert differ == PLANNED_DIFFERENTLY.keys() - ({"initplan_minmax"} if level != "full" else set())


def test_a_plan_has_one_fingerprint_in_all_formats() -> None:
    """Every fifth capture. Without VERBOSE, TEXT does not tell the alias of ROWS FROM from a function."""
    for record in records()[::5]:
        outputs = [[text] for text in record["texts"].values()] + ([record["pair"]] if "pair" in record else [])
        found = {
            fingerprint([document for text in output for document in explain_parse(text)])["full"]["text"]
            for output in outputs
        }
        assert len(found) == 1 or "rows_from" in record["id"], record["id"]


def hashes(*roots: dict[str, Any]) -> list[dict[str, str]]:
    return [{level: text["hash"] for level, text in fingerprint({"Plan": root}).items()} for root in roots]


def levels_that_differ(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    first, second = hashes(one, other)
    return [level for level in LEVELS if first[level] != second[level]]


SCAN = node("Index Scan", relation_name="orders", alias="o", index_name="orders_pkey", index_cond="(id = 1)")


@pytest.mark.parametrize(
    ("changed", "differ"),
    [
        ({"Index Cond": "(id = 2)"}, []),
        ({"Index Cond": "(o.id = $1)"}, []),
        ({"Alias": "p"}, []),
        ({"Total Cost": 9.0, "Actual Rows": 3, "Schema": "public", "Output": ["id"], "Disabled": True}, []),
        ({"Index Cond": "(id > 1)"}, ["full"]),
        ({"Filter": "(a IS NULL)"}, ["full"]),
        ({"Index Name": "orders_two"}, ["access", "full"]),
        ({"Scan Direction": "Backward"}, ["access", "full"]),
        ({"Scan Direction": "Forward"}, []),
        ({"Parallel Aware": True}, ["access", "full"]),
        ({"Relation Name": "customers"}, list(LEVELS)),
        ({"Node Type": "Seq Scan"}, list(LEVELS)),
    ],
)
def test_each_level_knows_what_it_says(changed: dict[str, Any], differ: list[str]) -> None:
    assert levels_that_differ(SCAN, SCAN | changed) == differ


def test_the_order_of_a_join_and_its_type_are_told_apart() -> None:
    a, b = (node("Seq Scan", relation_name=name) for name in "ab")
    assert levels_that_differ(node("Nested Loop", a, b), node("Nested Loop", b, a)) == list(LEVELS)
    assert levels_that_differ(
        node("Nested Loop", a, b, join_type="Inner"), node("Nested Loop", a, b, join_type="Left")
    ) == ["access", "full"]


def test_all_versions_names_of_a_subquery_are_one() -> None:
    def plan(init: str, asked: str, sub: str, compared: str) -> dict[str, Any]:
        return node(
            "Seq Scan",
            node("Result", parent_relationship="InitPlan", subplan_name=init),
            node("Seq Scan", parent_relationship="SubPlan", subplan_name=sub, relation_name="u"),
            relation_name="t",
            filter=f"((a = {asked}) AND {compared})",
        )

    found = hashes(
        plan("InitPlan 1 (returns $0)", "$0", "SubPlan 2", "(NOT (hashed SubPlan 2))"),
        plan("InitPlan 3 (returns $4)", "$4", "SubPlan 1", "(NOT (hashed SubPlan 1))"),
        plan("InitPlan 1", "(InitPlan 1).col1", "SubPlan 2", "(NOT (ANY (b = (hashed SubPlan 2).col1)))"),
        plan("InitPlan e_1", "(InitPlan e_1).col1", "SubPlan any_1", "(NOT (ANY (b = (hashed SubPlan any_1).col1)))"),
        plan("expr_1", "(expr_1).col1", "any_1", "(NOT (ANY (b = (hashed any_1).col1)))"),
    )
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("(a = 1)", "(a = ?)"),
        ("(a = '-1'::integer)", "(a = ?)"),
        ("(a = '2024-01-05 00:00:00+00'::timestamp with time zone)", "(a = ?)"),
        ("(a = 'x'::character varying(10))", "(a = ?)"),
        ("(a = ANY ('{1,2}'::bigint[]))", "(a = ANY (?))"),
        ("(a = ANY (ARRAY['x'::text, $2, 3.5]))", "(a = ANY (ARRAY[?]))"),
        ("(a = 'it''s (b = 2)'::text)", "(a = ?)"),
        ("(a = 'x'::\"my type\")", "(a = ?)"),
        ("((a)::numeric > 1e10)", "((a)::numeric > ?)"),
        ("(a2 = NULL::integer)", "(a2 = ?)"),
        ("(a IS NOT NULL)", "(a IS NOT NULL)"),
        ('("col 1" = 1)', '("col 1" = ?)'),
        ("(x.a = y.b)", "(a = t2.b)"),
        ('("X y".a = 1)', "(t3.a = ?)"),
        ("(x.a = z.b)", "(a = z.b)"),
        ("x.*", "*"),
        ("(a = '(InitPlan 1).col1'::text)", "(a = ?)"),
        ("EXISTS(SubPlan 7)", "(SubPlan 1)"),
        ("((ALL (id > (SubPlan 7).col1)) OR (b < 3))", "((SubPlan 1) OR (b < ?))"),
    ],
)
def test_conditions_without_constants(printed: str, expected: str) -> None:
    assert normalised(printed, {"SubPlan 7": "SubPlan 1"}, {"x": "", "y": "t2", '"X y"': "t3"}) == expected


@given(st.text())
def test_a_literal_is_a_constant_whatever_is_in_it(text: str) -> None:
    literal = "'" + text.replace("'", "''") + "'"
    assert normalised(f"(a = {literal}::text)", {"$0": "InitPlan 1"}, {}) == "(a = ?)"


@given(st.text())
def test_any_text_has_a_normal_form(text: str) -> None:
    assert isinstance(normalised(text, {}, {}), str)


def test_partitions_fold_on_request() -> None:
    def plan(*partitions: str) -> dict[str, Any]:
        scans = (
            node("Index Scan", relation_name=f"events_{name}", index_name=f"events_{name}_at_idx", alias=f"events_{i}")
            for i, name in enumerate(partitions)
        )
        return {"Plan": node("Append", *scans)}

    few, many = plan("2024_01", "2024_02"), plan("2024_01", "2024_02", "2024_03", "p2024m04")
    assert fingerprint(few)["shape"] != fingerprint(many)["shape"]
    for level in LEVELS[:2]:
        assert fingerprint(few, fold_partitions=True)[level] == fingerprint(many, fold_partitions=True)[level]
    assert fingerprint(few, fold_partitions=True)["access"]["text"].splitlines() == [
        "Append",
        "  Index Scan using events*_at_idx on events*",
    ]


def test_the_text_is_the_plan_and_the_hash_is_short() -> None:
    found = fingerprint(capture("initplan"))
    assert found["full"]["text"].splitlines() == [
        "Limit",
        "  InitPlan 1: Aggregate",
        "    Seq Scan on big t1",
        "  Seq Scan on big t2 | Filter: (val = (InitPlan 1))",
    ]
    assert all(len(each["hash"]) == 16 for each in found.values())


def test_different_queries_differ() -> None:
    """Almost: some captured queries are the same plan with other constants."""
    texts = {
        fingerprint(capture(name.split("/")[2]))["full"]["hash"] for name in captured() if name.startswith("live/pg17/")
    }
    assert len(texts) > 105


def test_nothing_is_changed_by_asking() -> None:
    plans = capture("par_subplan")
    before = copy.deepcopy(plans)
    for fold in (False, True):
        fingerprint(plans, fold)
    assert plans == before


def test_statements_count_by_their_order() -> None:
    one, two = capture("rule_two_plans")
    assert all(
        fingerprint(list(order))["shape"] != fingerprint([one, two])["shape"]
        for order in itertools.permutations([two, one])
        if list(order) != [one, two]
    )
