"""What a server answers when gates are measured on it: plans by case and mode, nothing left behind, errors in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.gates import gate_of, measure

if TYPE_CHECKING:
    from tests.conftest import Database

ROWS = 20_000
LIMITS = """\
title: Look it up
parameters: {{code: text}}
cases:
{cases}
sampling: {{warmup: 1, runs: 3, timeout_ms: {timeout}}}
preconditions: {{settings: {{work_mem: 4MB}}}}
gates: {{max_shared_blocks: 100}}
"""
TYPICAL = "  typical: SELECT code FROM item ORDER BY id LIMIT 1"


@pytest.fixture
def item(empty_database: Database) -> Database:
    empty_database.execute(
        "CREATE TABLE item (id int PRIMARY KEY, code text, note jsonb);"
        f"INSERT INTO item SELECT g, 'C-' || g, '{{}}' FROM generate_series(1, {ROWS}) AS g;"
        "CREATE INDEX item_code ON item (code); ANALYZE item"
    )
    return empty_database


def gate(query: str, cases: str = TYPICAL, timeout: int = 30_000, limits: str = LIMITS) -> dict[str, Any]:
    return gate_of(limits.format(cases=cases, timeout=timeout), query)


def nodes(plan: dict[str, Any]) -> list[str]:
    return [plan["Node Type"], *(name for part in plan.get("Plans", []) for name in nodes(part))]


def test_each_case_is_planned_and_run_in_each_mode(item: Database) -> None:
    cases = f"{TYPICAL}\n  none: {{code: it's not there}}"
    found = measure(item, gate("SELECT * FROM item WHERE code = :code", cases))["001_a/look"]
    assert {name: list(modes) for name, modes in found["cases"].items()} == {
        "typical": ["custom", "generic"],
        "none": ["custom", "generic"],
    }
    custom, generic = (found["cases"]["typical"][mode] for mode in ("custom", "generic"))
    assert "'C-1'" in custom["plan"]["Plan"]["Index Cond"]
    assert "$1" in generic["plan"]["Plan"]["Index Cond"]
    for each in (custom, generic):
        assert each["plan"]["Plan"]["Actual Rows"] == 1
        assert [len(each[key]) for key in ("execution_ms", "planning_ms", "shared_blocks")] == [3, 3, 3]
        assert 0 < each["shared_blocks"][-1] < 10
    assert found["cases"]["none"]["custom"]["plan"]["Plan"]["Actual Rows"] == 0
    assert found["settings"] == {"work_mem": "4MB"}
    table = found["tables"]["public.item"]
    assert table["rows"] == ROWS
    assert table["bytes"] == item.value("SELECT pg_table_size('item')")
    assert 0 <= table["analysed_s"] < 600


def test_what_a_query_writes_is_taken_back(item: Database) -> None:
    before = item.value("SELECT sum(hashtext(i::text)) FROM item AS i")
    query = "UPDATE item SET note = '{\"seen\": true}' WHERE code = :code RETURNING id"
    found = measure(item, gate(query))["001_a/look"]["cases"]["typical"]["custom"]
    assert nodes(found["plan"]["Plan"])[0] == "ModifyTable"
    assert item.value("SELECT sum(hashtext(i::text)) FROM item AS i") == before


def test_a_query_without_parameters_and_one_of_several_types(item: Database) -> None:
    plain = LIMITS.replace("parameters: {{code: text}}\n", "")
    first = gate("SELECT count(*) FROM item", "  all: SELECT", limits=plain)
    typed = LIMITS.replace("{{code: text}}", '{{ids: "int[]", since: date, note: jsonb}}')
    query = "SELECT id FROM item WHERE id = ANY (:ids) AND note @> :note AND CURRENT_DATE > :since"
    cases = "  some: SELECT ARRAY[1, 2, 3] AS ids, DATE '2020-02-29' AS since, '{}'::jsonb AS note"
    second = gate(query, cases.replace("{", "{{").replace("}", "}}").format(), limits=typed) | {"id": "001_a/typed"}
    found = measure(item, first, second)
    assert found["001_a/look"]["cases"]["all"]["generic"]["plan"]["Plan"]["Actual Rows"] == 1
    assert found["001_a/typed"]["cases"]["some"]["generic"]["plan"]["Plan"]["Actual Rows"] == 3


@pytest.mark.parametrize(
    ("query", "cases", "where", "error"),
    [
        ("SELECT gone FROM item WHERE code = :code", TYPICAL, ("typical", "custom"), 'column "gone" does not exist'),
        (
            "SELECT * FROM item WHERE code = :code",
            "  drawn: SELECT code FROM item WHERE false",
            ("drawn",),
            "its parameters: the query that draws them returns no row",
        ),
        (
            "SELECT * FROM item WHERE code = :code",
            "  drawn: SELECT id FROM item",
            ("drawn",),
            "its parameters: column q.code does not exist",
        ),
    ],
)
def test_what_cannot_be_measured_says_why(item: Database, query: str, cases: str, where: Any, error: str) -> None:
    found = measure(item, gate(query, cases), gate("SELECT * FROM item WHERE code = :code") | {"id": "001_a/other"})
    told = found["001_a/look"]["cases"]
    for key in where:
        told = told[key]
    assert told["error"] == error
    assert "plan" in found["001_a/other"]["cases"]["typical"]["custom"]


def test_the_timeout_ends_a_gate_and_not_those_after_it(item: Database) -> None:
    cases = f"{TYPICAL}\n  zz_another: {{{{code: x}}}}".format()  # the timer strikes only once in a statement
    slow = gate("SELECT count(*) FROM generate_series(1, 10000000000) WHERE :code <> ''", cases, timeout=200)
    found = measure(item, slow, gate("SELECT * FROM item WHERE code = :code") | {"id": "001_a/other"})
    assert list(found["001_a/look"]["cases"]) == ["typical"]
    assert found["001_a/look"]["cases"]["typical"] == {
        "custom": {
            "parameters": ["C-1"], "execution_ms": [], "planning_ms": [], "shared_blocks": [], "sqlstate": "57014",
            "error": "canceling statement due to statement timeout",
        }
    }  # fmt: skip
    assert "plan" in found["001_a/other"]["cases"]["typical"]["generic"]


def test_a_timeout_outside_of_the_query_leaves_the_gate_unmeasured(item: Database) -> None:
    look, other = gate("SELECT * FROM item WHERE code = :code", timeout=100), gate("SELECT 1 WHERE :code <> ''")
    long = look | {"relations": ["public.item"] * 50_000}  # looking their sizes up takes longer
    found = measure(item, long, other | {"id": "001_a/other"})
    assert found["001_a/look"]["cases"] == {}
    assert "plan" in found["001_a/other"]["cases"]["typical"]["generic"]


def test_rows_and_age_of_a_partitioned_table_are_its_leaves(empty_database: Database) -> None:
    empty_database.execute(
        "CREATE TABLE p (id int, code text) PARTITION BY RANGE (id);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (1000);"
        "INSERT INTO p SELECT g, g FROM generate_series(1, 500) AS g; ANALYZE p1"
    )
    query = gate("SELECT * FROM p WHERE code = :code", "  a: {{code: 7}}".format())
    found = measure(empty_database, query)["001_a/look"]["tables"]["public.p"]
    assert (found["rows"], found["analysed_s"]) == (99, None)
    empty_database.execute("ANALYZE p2")
    found = measure(empty_database, query)["001_a/look"]["tables"]["public.p"]
    assert found["rows"] == 500
    assert found["analysed_s"] is not None
