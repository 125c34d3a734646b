"""Captures of PostgreSQL 12, 14, 15, 17 and 18: the same execution in several formats reads the same."""

from __future__ import annotations

from typing import Any

import pytest

from pgrollout.explain.fill import nodes
from pgrollout.explain.read import explain_parse
from pgrollout.explain.values import BUFFER_KEYS, OLD_IO_KEYS, SPLIT_IO_KEYS, TEMP_IO_KEYS, WAL_KEYS
from tests.support.explain import ABSENT, Difference, Path, corpus, differences

VERSIONS = (12, 14, 15, 17, 18)

# What auto_explain does not tell of the statement: it logs without planning, summary and serialisation.
NOT_LOGGED = ("Planning", "Planning Time", "Execution Time", "Serialization", "Query Identifier")


def told_nowhere(path: Path, server: Any, text: dict[str, Any]) -> bool:
    """Whether TEXT, of itself, cannot tell this value: it was left out for being the usual or zero, without a proof.

    `text` is the whole document. Each case names what TEXT prints, so that a value it does print is never excused.
    """
    key = path[-1]
    parts: list[dict[str, Any]] = [part for node in nodes(text["Plan"]) for part in (node, *node.get("Workers", ()))]
    printed = {name for part in (*parts, text.get("Planning", {}), text.get("Serialization", {})) for name in part}
    match key:
        case "Query Text" | "Settings":  # of auto_explain; with it EXPLAIN's own options do not count
            return len(path) == 1
        case "Async Capable":  # printed only where true; 12 and 13 have no such property
            return server is False
        case "Disabled":  # printed only where true; until 17 there is no such property
            return server is False and "Actual Loops" not in printed
        case "Inner Unique":  # printed only with VERBOSE, and where it is true
            return "Output" not in printed
        case "Planned Partitions":  # printed only where not 0; 12 has no such property
            return bool(server == 0) and "HashAgg Batches" not in printed
        case "Workers":  # of workers that have nothing to tell
            return bool(server == [])
        case "Trigger Name" | "Relation":  # printed with VERBOSE, and where it is not clear
            return path[0] == "Triggers"
        case _ if key in (
            *WAL_KEYS,
            "WAL Buffers Full",
        ):  # without any WAL in the statement it does not show that it was counted
            return bool(server == 0) and printed.isdisjoint(WAL_KEYS)
        case _ if key in BUFFER_KEYS:
            return bool(server == 0) and printed.isdisjoint(BUFFER_KEYS)
        case _ if key in (*OLD_IO_KEYS, *SPLIT_IO_KEYS, *TEMP_IO_KEYS):
            return bool(server == 0) and printed.isdisjoint((*OLD_IO_KEYS, *SPLIT_IO_KEYS, *TEMP_IO_KEYS))
    return False


def other_words(path: Path, server: Any, text: Any, document: dict[str, Any]) -> bool:
    """Whether TEXT words it as another version would, or as another case."""
    key = path[-1]
    if key == "Parent Relationship":  # until 13 the only child of a ModifyTable is a "Member"
        parent = document["Plan"]
        for step in path[1:-3]:
            parent = parent[step]
        return (parent["Node Type"], server, text) == ("ModifyTable", "Member", "Outer")
    if key == "Function Name":  # without VERBOSE the alias of ROWS FROM (…) looks like a function that has its own name
        return server is ABSENT and "Output" not in document["Plan"]
    return False


def unexplained(server: list[Any], text: list[Any]) -> list[Difference]:
    """What differs between a reading of a structured format and one of TEXT, except for what TEXT cannot tell."""
    if len(server) != len(text):
        return [((), f"{len(server)} plans", f"{len(text)} plans")]
    return [
        (path, one, other)
        for expected, found in zip(server, text, strict=True)
        for path, one, other in differences(expected, found)
        if not (one is ABSENT and len(path) == 1 and path[0] in NOT_LOGGED)
        and not (other is ABSENT and told_nowhere(path, one, found))
        and not other_words(path, one, other, found)
    ]


def report(found: dict[str, list[Difference]]) -> str:
    """The differences as lines, those of the first captures."""
    lines = [f"{name} {list(path)}: {one!r} != {other!r}" for name, many in found.items() for path, one, other in many]
    return f"{len(found)} captures differ\n" + "\n".join(lines[:40])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("structured", ["json", "yaml", "xml"])
def test_text_of_an_execution_reads_as_the_other_format_of_the_same_execution(version: int, structured: str) -> None:
    found = {}
    pairs = [
        one for one in corpus() if (one["kind"], one["pg"], one.get("pair_format")) == ("pair", version, structured)
    ]
    assert len(pairs) >= 80
    for one in pairs:
        server = [document for text in one["pair"] for document in explain_parse(text)]
        if wrong := unexplained(server, explain_parse(one["texts"]["text"])):
            found[one["id"]] = wrong
    assert not found, report(found)


@pytest.mark.parametrize("version", VERSIONS)
def test_all_four_formats_of_a_plan_read_the_same(version: int) -> None:
    found = {}
    plans = [one for one in corpus() if one["kind"] == "plain4" and one["pg"] == version]
    assert len(plans) >= 240
    for one in plans:
        server = explain_parse(one["texts"]["json"])
        wrong = unexplained(server, explain_parse(one["texts"]["text"]))
        for structured in one["texts"].keys() & {"yaml", "xml"}:
            wrong += differences(server, explain_parse(one["texts"][structured]))
        if wrong:
            found[one["id"]] = wrong
    assert not found, report(found)


@pytest.mark.parametrize("version", VERSIONS[:-1])  # of 18 there are pairs and plans only
def test_single_captures_name_and_type_their_properties_as_json_does(version: int) -> None:
    """Three executions, one in each format: the numbers differ, names and types of the properties do not."""
    known: dict[str, dict[str, set[tuple[str, str, type]]]] = {}
    for one in corpus():
        if one["kind"] == "single" and one["pg"] == version:
            ((structured, text),) = one["texts"].items()
            told = known.setdefault(structured, {}).setdefault(one["id"].split("/")[2], set())
            for document in explain_parse(text):
                told |= {("statement", key, type(value)) for key, value in document.items()}
                told |= {(node["Node Type"], *item) for node in nodes(document["Plan"]) for item in types(node)}
    assert all(len(known[structured]) >= 120 for structured in ("json", "yaml", "xml"))
    # one statement has several good plans, and its statistics change while it runs
    found = {
        (structured, name): wrong
        for structured in ("yaml", "xml")
        for name, told in known[structured].items()
        if (wrong := told ^ known["json"][name]) and name != "merge"
    }
    assert not found


def types(node: dict[str, Any]) -> list[tuple[str, type]]:
    return [(key, type(value)) for key, value in node.items() if key not in ("JIT", "Workers")]  # not in each execution
