"""What explain_parse takes, and what it refuses with which sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pgrollout.errors import RolloutError
from pgrollout.explain.read import explain_parse
from tests.support.explain import corpus

PLAN = """\
Seq Scan on task  (cost=0.00..155.25 rows=5050 width=8) (actual time=0.003..0.103 rows=1 loops=1)
  Filter: (title = 'x'::text)
  Rows Removed by Filter: 9
Planning Time: 0.029 ms
Execution Time: 12.671 ms"""
PARSED = explain_parse(PLAN)
AS_JSON = json.dumps(PARSED)


def test_the_plan_of_these_tests() -> None:
    assert PARSED == [
        {
            "Plan": {
                "Node Type": "Seq Scan",
                "Parallel Aware": False,
                "Relation Name": "task",
                "Alias": "task",
                "Startup Cost": 0.0,
                "Total Cost": 155.25,
                "Plan Rows": 5050,
                "Plan Width": 8,
                "Actual Startup Time": 0.003,
                "Actual Total Time": 0.103,
                "Actual Rows": 1,
                "Actual Loops": 1,
                "Filter": "(title = 'x'::text)",
                "Rows Removed by Filter": 9,
            },
            "Planning Time": 0.029,
            "Execution Time": 12.671,
            "Triggers": [],
        }
    ]


@pytest.mark.parametrize(
    "given",
    [
        [{"QUERY PLAN": line} for line in PLAN.split("\n")],
        {"query_result": [{"QUERY PLAN": line} for line in PLAN.split("\n")], "changed": True, "rowcount": 5},
        [{"QUERY PLAN": PARSED}],
        [{"QUERY PLAN": AS_JSON}],
        {"query_result": [{"QUERY PLAN": PARSED}]},
        {"QUERY PLAN": PARSED},
        PLAN.split("\n"),
        PARSED,
        PARSED[0],
        [PARSED],
        AS_JSON,
        json.dumps(PARSED, indent=2),
    ],
)
def test_rows_parsed_json_and_text_read_the_same(given: Any) -> None:
    assert explain_parse(given) == PARSED


def test_a_rewrite_to_nothing_is_no_plan_and_no_error() -> None:
    assert explain_parse("Query rewrites to nothing") == []
    assert explain_parse("[]") == []
    assert explain_parse([{"QUERY PLAN": []}]) == []


def test_json_texts_that_follow_each_other_are_several_plans() -> None:
    assert explain_parse(AS_JSON + "\n\n" + AS_JSON) == PARSED * 2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("", r"but there is nothing\."),
        ("hello", r"line 1 \('hello'\) begins none\."),
        (f"{PLAN}\nhello", r"Line 6 \('hello'\) is neither a node nor a property"),
        (f"{PLAN}\nERROR: no", r"Line 6 \('ERROR: no'\)"),
        (PLAN.replace("Filter:", "!Filter"), r"Line 2 \("),
        (PLAN.replace("12.671", "some"), r"Line 5 \('Execution Time: some ms'\)"),
        (PLAN.replace("::text)", ""), "opened on line 2"),
        (PLAN.replace("'x'", "'x"), "opened on line 2"),
        ("Seq Scan on task\n  Buffers: many", r"Line 2 \('Buffers: many'\)"),
        ("Seq Scan on task\n  Worker 0:  nothing", "Line 2"),
        ("Seq Scan on task\nPlanning: x", "Line 2"),
        ("Seq Scan on task\nJIT:\n  Timing:", "Line 3"),
        ("Seq Scan on task\n  Workers: 2\n  Worker 0:  actual rows=1 loops=1", "Line 2"),
        ("Seq Scan on task\n  Plans: x\n  ->  Result", "Line 2"),
        ("Seq Scan on task\n        ->  (cost=1.00..2.00 rows=1 width=1)", "Line 2"),
        ("  ->  Seq Scan on task", "line 1"),
        ("Limit\n  ->  Result  (cost=9..9..99 rows=1 width=1)", "Line 2"),
        (f"Limit\n  ->  Result  (cost=1..2 rows={'9' * 5000} width=1)", "Line 2"),
        (f"Limit\n  Worker {'9' * 5000}:  actual rows=1 loops=1", "Line 2"),
        (f"Limit\n  Buffers: shared hit={'9' * 5000}", "Line 2"),
        ('[\n{"Plan": \n}]', r"Line 3 is no JSON"),
        ('[{"Plan": 1}]', "A node of a plan was expected, but this is int 1"),
        ('[{"Plan": {"Node Type": "Sort", "Plans": {}}}]', "'Plans' of 'Sort' is no list"),
        ('[{"Plan": {"Node Type": "Sort", "Plans": [2]}}]', "this is int 2"),
        ('[{"a": 1, "b": 2}]', "this has 'a', 'b' and no 'Plan'"),
        ("[" * 100_000, "JSON"),
        ("- Plan:\n    Node Type: 'Sort", "Line [12] is no YAML"),
        ("- Plan:\n    Node Type: [a", "YAML"),
        ("- Plan:\n    a: &a 1\n    x: *a", "YAML from line 1 on cannot be read"),
        ("- Plan:\n    ? [a]\n    : 1", "YAML from line 1 on cannot be read"),
        ("- Plan:\n" + "".join(" " * level + "a:\n" for level in range(4, 3_000)), "A node of a plan was expected"),
        ("<explain><Query>", "Line 1 is no XML"),
        ('<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><explain>&a;</explain>', "declares a document type"),
        ("<explain></explain>", "but there is nothing"),
        (None, "this is NoneType None"),
        (7, "this is int"),
        (b"Sort", "this is bytes"),
        ([None], "this is NoneType"),
        ({}, "this has nothing and no 'Plan'"),
    ],
)
def test_what_is_no_plan_is_refused_with_its_line_and_the_reason(given: Any, sentence: str) -> None:
    with pytest.raises(RolloutError, match=sentence) as refused:
        explain_parse(given)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_values_nested_without_end_are_refused() -> None:
    nested: list[Any] = []
    for _ in range(10_000):
        nested = [nested]
    with pytest.raises(RolloutError, match="nested too deeply"):
        explain_parse(nested)


# ---- logs of auto_explain


PAIRS = [one for one in corpus() if one["kind"] == "pair"][::23]


def logged(text: str, duration: str = "0.123") -> str:
    """A log entry as the server writes it to its log file: each line but the first begins with a tab."""
    prefix = "2026-05-04 03:02:01.000 UTC [4711] dba@hive LOG:  "
    return f"{prefix}duration: {duration} ms  plan:\n\t" + text.replace("\n", "\n\t")


@pytest.mark.parametrize("indent", ["\t", "        ", ""])
def test_log_entries_in_json_yaml_and_xml_read_as_the_plan_alone(indent: str) -> None:
    assert {one["pair_format"] for one in PAIRS} == {"json", "yaml", "xml"}
    for one in PAIRS:
        alone = [document for text in one["pair"] for document in explain_parse(text)]
        log = "\n".join(logged(text).replace("\n\t", f"\n{indent}") for text in one["pair"])
        assert explain_parse(log) == alone, one["id"]


QUERY = "SELECT *\n  FROM task -- Seq Scan on task\n Sort\n WHERE title = 'a\n\n b'  -- it's \"here\""


def test_log_entries_in_text_hold_the_query_and_its_plan() -> None:
    other = "2026-05-04 03:02:02.000 UTC [4711] dba@hive LOG:  duration: 7.000 ms  statement: SELECT 1\n"
    texts = [
        one["texts"]["text"] for one in PAIRS if "Execution" in one["texts"]["text"] and "rule_two" not in one["id"]
    ]
    for text in texts:
        plan = text.partition("\nSettings:")[0]
        log = (
            other
            + logged(f"Query Text: {QUERY}\n{plan}")
            + "\n"
            + other
            + logged(f"Query Text: SELECT 1\n{plan}")
            + "\n"
        )
        (alone,) = explain_parse(plan)
        assert explain_parse(log + other) == [{"Query Text": QUERY, **alone}, {"Query Text": "SELECT 1", **alone}], plan


def test_a_logged_query_keeps_its_parameters_apart() -> None:
    (document,) = explain_parse(logged(f"Query Text: {QUERY}\nQuery Parameters: $1 = 'it''s', $2 = NULL\n{PLAN}"))
    assert document["Query Text"] == QUERY
    assert document["Query Parameters"] == "$1 = 'it''s', $2 = NULL"


def test_a_log_entry_without_a_plan_is_refused() -> None:
    with pytest.raises(RolloutError, match=r"behind the query, but line 2 \('Query Text: SELECT 1'\) has none"):
        explain_parse(logged("Query Text: SELECT 1"))
