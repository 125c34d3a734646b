"""The flat list of nodes, and how each is named: as PostgreSQL names it in TEXT."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pgrollout.errors import RolloutError
from pgrollout.explain.nodes import documents, flat, label
from tests.support.explained import captured, node, records

_NODE_LINE = re.compile(r"^(?: *-> +)?(\S.*?)  \(cost=")


def test_labels_are_those_of_the_text_of_the_same_execution() -> None:
    compared = 0
    for record in records():
        # newlines in literals and names make lines that are no nodes
        if record["id"] not in captured() or "text" not in record["texts"] or "newline" in record["id"]:
            continue
        printed = [match[1] for line in record["texts"]["text"].splitlines() if (match := _NODE_LINE.match(line))]
        if printed:
            found = [label(each) for each in flat(captured()[record["id"]], "test")]
            assert found == [line.removeprefix("Async ") for line in printed], record["id"]
            compared += len(found)
    assert compared > 6000


def test_paths_name_each_node_once_and_lead_to_it() -> None:
    for name, plans in captured().items():
        nodes = flat(plans, "test")
        assert len({each.path for each in nodes}) == len(nodes), name
        assert [each.number for each in nodes] == list(range(len(nodes)))
        for each in nodes:
            statement, *steps = map(int, each.path.split("."))
            raw = plans[statement]["Plan"]
            for step in steps:
                raw = raw["Plans"][step]
            assert raw is each.raw, (name, each.path)


def test_a_newline_in_a_name_does_not_break_the_line() -> None:
    assert label(flat([{"Plan": node("Seq Scan", relation_name="t", alias="a\nb")}], "test")[0]) == (
        'Seq Scan on t "a\\nb"'
    )


def test_one_document_is_a_list_of_one() -> None:
    document = {"Plan": node("Result")}
    assert documents(document, "explain_tree") == [document]


@pytest.mark.parametrize(
    ("plans", "found"),
    [
        ("Seq Scan on t", "a value of type str"),
        (None, "a value of type NoneType"),
        ([], "nothing"),
        ([{"Node Type": "Seq Scan"}], "a list with an element that has no 'Plan'"),
        ([{"Plan": {"Plans": []}}], "a node without 'Node Type' at 0"),
        ([{"Plan": node("Sort") | {"Plans": ["Seq Scan"]}}], "a node without 'Node Type' at 0.0"),
        ([{"Plan": node("Sort") | {"Plans": 3}}], "a node at 0 whose 'Plans' is no list"),
    ],
)
def test_what_is_no_plan_gives_a_sentence(plans: Any, found: str) -> None:
    with pytest.raises(RolloutError) as caught:
        flat(documents(plans, "explain_tree"), "explain_tree")
    assert str(caught.value) == (
        f"explain_tree got {found}; it needs the plans that explain_parse returns: "
        "put '| explain_parse' in front of '| explain_tree'."
    )
