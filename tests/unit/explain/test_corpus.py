"""Captures of PostgreSQL 12, 14, 15 and 17: the same execution in several formats reads the same."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pgrollout.explain.fill import nodes
from pgrollout.explain.read import explain_parse
from pgrollout.explain.values import BUFFER_KEYS, OLD_IO_KEYS, SPLIT_IO_KEYS, TEMP_IO_KEYS, WAL_KEYS
from tests.support.explain import ABSENT, corpus, differences

VERSIONS = (12, 14, 15, 17)
CORE = re.compile(r"/Plan(/Plans\[\d+\])*/")

# What auto_explain does not tell of the statement: it logs without planning, summary and serialisation.
NOT_LOGGED = {
    "/Planning",
    "/Planning Time",
    "/Execution Time",
    "/Serialization",
    "/Query Identifier",
}


def told_nowhere(path: str, server: Any, text: dict[str, Any]) -> bool:
    """Whether TEXT, of itself, cannot tell this value: it was left out for being the usual or zero, without a proof.

    `text` is the whole document. Each case names what TEXT prints, so that a value it does print is never excused.
    """
    key = path.rpartition("/")[2]
    parts = [part for node in nodes(text["Plan"]) for part in (node, *node.get("Workers", ()))]
    printed = {name for part in (*parts, text.get("Planning", {}), text.get("Serialization", {})) for name in part}
    match key:
        case "Query Text" | "Settings":  # of auto_explain; with it EXPLAIN's own options do not count
            return path in ("/Query Text", "/Settings") and key not in text
        case "Async Capable":  # printed only where true; 12 and 13 have no such property
            return server is False
        case "Inner Unique":  # printed only where true and VERBOSE is on
            return server is False and "Output" not in printed
        case "Planned Partitions":  # printed only where not 0; 12 has no such property
            return server == 0 and "HashAgg Batches" not in printed
        case "Workers":  # of workers that have nothing to tell
            return server == []
        case "Trigger Name" | "Relation":  # printed with VERBOSE, and where it is not clear
            return path.startswith("/Triggers[")
        case _ if key in WAL_KEYS:  # without any WAL in the statement it does not show that it was counted
            return server == 0 and printed.isdisjoint(WAL_KEYS)
        case _ if key in BUFFER_KEYS:
            return server == 0 and printed.isdisjoint(BUFFER_KEYS)
        case _ if key in (*OLD_IO_KEYS, *SPLIT_IO_KEYS, *TEMP_IO_KEYS):
            return server == 0 and printed.isdisjoint((*OLD_IO_KEYS, *SPLIT_IO_KEYS, *TEMP_IO_KEYS))
    return False


def other_words(path: str, server: Any, text: Any, document: dict[str, Any]) -> bool:
    """Whether TEXT words it as another version would, or as another case."""
    key = path.rpartition("/")[2]
    if key == "Parent Relationship":  # until 13 the only child of a ModifyTable is a "Member"
        parent = document["Plan"]
        for index in re.findall(r"/Plans\[(\d+)\]", path)[:-1]:
            parent = parent["Plans"][int(index)]
        return (parent["Node Type"], server, text) == ("ModifyTable", "Member", "Outer")
    if key == "Function Name":  # without VERBOSE the alias of ROWS FROM (…) looks like a function that has its own name
        return server is ABSENT and "Output" not in document["Plan"]
    return False


def unexplained(server: list[Any], text: list[Any]) -> list[tuple[str, Any, Any]]:
    """What differs between a reading of a structured format and one of TEXT, except for what TEXT cannot tell."""
    if len(server) != len(text):
        return [("", f"{len(server)} plans", f"{len(text)} plans")]
    return [
        (path, one, other)
        for expected, found in zip(server, text, strict=True)
        for path, one, other in differences(expected, found)
        if not (one is ABSENT and path in NOT_LOGGED)
        and not (other is ABSENT and told_nowhere(path, one, found))
        and not other_words(path, one, other, found)
    ]


def report(found: dict[str, list[tuple[str, Any, Any]]]) -> str:
    """The differences as lines, those of the first captures."""
    lines = [f"{name} {path}: {one!r} != {other!r}" for name, many in found.items() for path, one, other in many]
    return f"{len(found)} captures differ\n" + "\n".join(lines[:40])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("structured", ["json", "yaml", "xml"])
def test_text_of_an_execution_reads_as_the_other_format_of_the_same_execution(version: int, structured: str) -> None:
    found = {}
    pairs = [one for one in corpus() if (one["kind"], one["pg"], one.get("pair_format")) == ("pair", version, structured)]
    assert len(pairs) >= 120
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


@pytest.mark.parametrize("version", VERSIONS)
def test_single_captures_have_the_same_shape_in_json_yaml_and_xml(version: int) -> None:
    """Three executions: what is measured differs, what is planned and how it is named and typed does not."""
    shapes: dict[str, list[Any]] = {}
    for one in corpus():
        if one["kind"] == "single" and one["pg"] == version:
            (text,) = one["texts"].values()
            planned = [
                [{key: node[key] for key in node.keys() & PLANNED} for node in nodes(document["Plan"])]
                for document in explain_parse(text)
            ]
            shapes.setdefault(one["id"].rpartition("/")[0], []).append(planned)
    assert len(shapes) >= 120
    found = {
        name: list(differences(first, other))
        for name, (first, *others) in shapes.items()
        for other in others
        if name.rpartition("/")[2] not in VARYING and first != other
    }
    assert not found, report(found)


PLANNED = {
    "Node Type",
    "Relation Name",
    "Index Name",
    "Alias",
    "Parallel Aware",
    "Join Type",
    "Strategy",
    "Plan Width",
    "Sort Key",
    "Group Key",
    "Filter",
    "Index Cond",
    "Hash Cond",
    "Parent Relationship",
    "Subplan Name",
}
VARYING: set[str] = set()
