"""Gate files: what is read from them, completed from the schema, and said of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pgrollout.errors import RolloutError
from pgrollout.gates.files import gates_of, read_gate, schema

LIMITS = """\
title: Look a task up by its short ID
parameters: {short_id: text, n: int}
cases:
  typical: SELECT short_id, 1 AS n FROM task LIMIT 1;
  none: {short_id: it's none, n: 3}
preconditions: {min_table_rows: {task: 1000}}
gates:
  forbid_seq_scan: {always: [task]}
  max_execution_ms: {warn: 20, fail: 50}
waivers:
  - {gate: forbid_seq_scan, case: none, reason: "a few rows", until: 2027-01-01}
"""
QUERY = "-- Not a parameter: :n\nSELECT t.*, ':n', a[1:2] FROM task AS t WHERE t.short_id = :short_id::text LIMIT :n;\n"


def read(limits: str = LIMITS, query: str = QUERY) -> dict[str, Any]:
    return read_gate(limits, query, "look.gate.yml", "look.sql")


def refusal(limits: str = LIMITS, query: str = QUERY) -> str:
    with pytest.raises(RolloutError) as caught:
        read(limits, query)
    return str(caught.value)


def test_parameters_become_numbers_outside_of_literals_and_comments() -> None:
    gate = read()
    assert gate["sql"] == "SELECT t.*, ':n', a[1:2] FROM task AS t WHERE t.short_id = $1::text LIMIT $2"
    assert gate["parameters"] == [{"name": "short_id", "type": "text"}, {"name": "n", "type": "int"}]


def test_a_case_is_a_query_for_one_row_of_parameters() -> None:
    assert read()["cases"] == {
        "typical": "SELECT short_id, 1 AS n FROM task LIMIT 1",
        "none": "SELECT 'it''s none' AS short_id, '3' AS n",
    }


def test_what_is_left_out_comes_from_the_schema() -> None:
    gate = read()
    assert gate["plan_modes"] == ["custom", "generic"]
    assert gate["sampling"] == {"warmup": 1, "runs": 5, "timeout_ms": 30000, "max_spread": 1}
    assert gate["gates"]["forbid_seq_scan"] == {"always": ["task"], "over_rows": 10000, "severity": "fail"}
    assert gate["gates"]["max_execution_ms"] == {"warn": 20, "fail": 50}
    assert gate["baseline"] == {}
    assert gate["waivers"][0]["until"] == "2027-01-01"


def test_relations_are_those_of_the_query_without_its_own_names() -> None:
    query = "WITH n AS (SELECT :n AS n), t AS (SELECT * FROM s.task) SELECT * FROM t, n, u WHERE :short_id <> ''"
    assert read(query=query)["relations"] == ["public.u", "s.task"]


@pytest.mark.parametrize(("query", "writes"), [("SELECT", False), ("DELETE FROM task", True), ("VALUES (1)", False)])
def test_whether_it_writes(query: str, writes: bool) -> None:
    assert read("title: x\ncases: {all: SELECT}\ngates: {max_temp_blocks: 0}", query)["writes"] is writes


@pytest.mark.parametrize(
    ("found", "instead", "sentence"),
    [
        ("max_execution_ms:", "max_exec_ms:", "gates: unknown key 'max_exec_ms'; did you mean 'max_execution_ms'?"),
        ("warn: 20", "warm: 20", "gates.max_execution_ms: unknown key 'warm'; did you mean 'warn'?"),
        ("{warn: 20, fail: 50}", "fast", "gates.max_execution_ms: found 'fast', expected one of number, object."),
        ("title: Look", "titel: Look", "the file: unknown key 'titel'; did you mean 'title'?"),
        (
            "  none: {short_id: it's none, n: 3}",
            "  none: {n: 3}",
            "cases.none: found ['n'], expected a value for each parameter: ['n', 'short_id'].",
        ),
        (
            "gate: forbid",
            "gate: forbod",
            "waivers: there is no gate 'forbod_seq_scan'; expected of forbid_seq_scan, max_execution_ms.",
        ),
        ("case: none", "case: nobody", "waivers: there is no case 'nobody'."),
        ('reason: "a few rows", ', "", "waivers.0: 'reason' is missing."),
        ("n: int}", "n: int, m: int}", "the parameter 'm' is nowhere in look.sql as :m."),
        ("LIMIT 1;", "LIMIT;", 'cases.typical: syntax error at or near ";".'),
        (
            "SELECT short_id, 1 AS n FROM task LIMIT 1;",
            "DELETE FROM task",
            "cases.typical: expected one SELECT that returns a row of the parameters.",
        ),
        ("2027-01-01", "2027-02-31", "not valid YAML: day is out of range for month"),
        ("2027-01-01", "'2027-02-31'", "waivers: until is 2027-02-31, which is no day."),
        ("title:", "title: [", "not valid YAML: "),
    ],
)
def test_what_is_wrong_with_the_limits_is_one_sentence(found: str, instead: str, sentence: str) -> None:
    assert found in LIMITS
    assert refusal(LIMITS.replace(found, instead)).startswith(f"look.gate.yml: {sentence}")


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (
            "SELECT :short_id, :n, :other",
            'look.sql: syntax error at or near ":"; :other is none of the parameters of look.gate.yml.',
        ),
        ("SELECT :short_id, :n; SELECT 1", "look.sql: found 2 statements, expected one query or one change of rows."),
        ("CREATE TABLE a (b int) -- :n", "look.sql: found 1 statements, expected one query or one change of rows."),
        ("SELECT :short_id, ':n'", "look.gate.yml: the parameter 'n' is nowhere in look.sql as :n."),
    ],
)
def test_what_is_wrong_with_the_query_is_one_sentence(query: str, sentence: str) -> None:
    assert refusal(query=query) == sentence


def test_the_gates_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "001_a"
    assert gates_of(folder, "001_a", "phase1", "public") == []
    (folder / "gates").mkdir(parents=True)
    (folder / "gates" / "look.sql").write_text(QUERY)
    with pytest.raises(RolloutError, match=r"look\.gate\.yml is missing beside it; a gate is a query and its limits"):
        gates_of(folder, "001_a", "phase1", "public")
    (folder / "gates" / "look.gate.yml").write_text(LIMITS)
    (gate,) = gates_of(folder, "001_a", "phase1", "public")
    assert (gate["id"], gate["migration"], gate["phase"]) == ("001_a/look", "001_a", "phase1")
    (folder / "gates" / "notes.md").write_text("")
    with pytest.raises(
        RolloutError, match=r"notes\.md: no part of a gate; expected <query>\.sql and <query>\.gate\.yml"
    ):
        gates_of(folder, "001_a", "phase1", "public")


def test_the_schema_is_one_and_describes_itself() -> None:
    Draft202012Validator.check_schema(schema())
    assert json.loads(json.dumps(schema())) == schema()
