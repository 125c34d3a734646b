"""Lines of TEXT that the corpus does not have: other versions, options, extensions, traps."""

from __future__ import annotations

from typing import Any

import pytest

from pgrollout.explain.fill import nodes
from pgrollout.explain.read import explain_parse


def plan(text: str) -> dict[str, Any]:
    (document,) = explain_parse(text)
    found: dict[str, Any] = document["Plan"]
    return found


def has(whole: dict[str, Any], part: dict[str, Any]) -> bool:
    """Whether all of `part` is in `whole`, with the same types."""
    return all(key in whole and whole[key] == value and type(whole[key]) is type(value) for key, value in part.items())


TITLES: dict[str, dict[str, Any]] = {
    'Parallel Index Only Scan Backward using "I x" on "S s".t a': {
        "Node Type": "Index Only Scan",
        "Parallel Aware": True,
        "Scan Direction": "Backward",
        "Index Name": "I x",
        "Schema": "S s",
        "Relation Name": "t",
        "Alias": "a",
    },
    'Index Scan using "say ""on"" t" on t': {"Index Name": 'say "on" t', "Relation Name": "t"},
    "Index Scan using <13585>btree_task_title on task": {"Index Name": "<13585>btree_task_title"},
    'Bitmap Index Scan on "a on b"': {"Node Type": "Bitmap Index Scan", "Index Name": "a on b"},
    "Hash Right Semi Join": {"Node Type": "Hash Join", "Join Type": "Right Semi"},
    "Merge Join": {"Node Type": "Merge Join", "Join Type": "Inner"},
    "Nested Loop": {"Node Type": "Nested Loop", "Join Type": "Inner"},
    "Nested Loop Anti Join": {"Node Type": "Nested Loop", "Join Type": "Anti"},
    "Partial GroupAggregate": {"Node Type": "Aggregate", "Strategy": "Sorted", "Partial Mode": "Partial"},
    "MixedAggregate": {"Strategy": "Mixed", "Partial Mode": "Simple"},
    "SetOp Except All": {"Node Type": "SetOp", "Strategy": "Sorted", "Command": "Except All"},
    "HashSetOp Intersect": {"Node Type": "SetOp", "Strategy": "Hashed", "Command": "Intersect"},
    "Merge on s.t x": {"Node Type": "ModifyTable", "Operation": "Merge", "Schema": "s", "Alias": "x"},
    "Merge Append": {"Node Type": "Merge Append"},
    "Async Foreign Scan on s.t": {"Node Type": "Foreign Scan", "Async Capable": True, "Operation": "Select"},
    "Foreign Scan": {"Node Type": "Foreign Scan", "Operation": "Select"},
    "Foreign Update on t": {"Node Type": "Foreign Scan", "Operation": "Update", "Relation Name": "t"},
    "Named Tuplestore Scan": {"Node Type": "Named Tuplestore Scan"},
    "WorkTable Scan on r r_1": {"CTE Name": "r", "Alias": "r_1"},
    'Values Scan on "*VALUES*"': {"Alias": "*VALUES*"},
    'Subquery Scan on "ANY_subquery"': {"Node Type": "Subquery Scan", "Alias": "ANY_subquery"},
    "Custom Scan (ChunkAppend) on metrics m": {
        "Node Type": "Custom Scan",
        "Custom Plan Provider": "ChunkAppend",
        "Relation Name": "metrics",
        "Alias": "m",
    },
    "Custom Scan (Citus Adaptive)": {"Custom Plan Provider": "Citus Adaptive"},
    "Tid Range Scan on t": {"Node Type": "Tid Range Scan"},
    "Sample Scan on t": {"Node Type": "Sample Scan"},
    'Table Function Scan on "xmltable" x': {"Table Function Name": "xmltable", "Alias": "x"},
}


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize(
    "measured",
    [
        "",
        "  (cost=0.10..2.00 rows=3 width=4)",
        " (never executed)",
        "  (cost=0.10..2.00 rows=3 width=4) (never executed)",
    ],
)
def test_the_title_of_a_node(title: str, measured: str) -> None:
    node = plan(title + measured)
    assert has(node, TITLES[title])
    assert has(node, {"Total Cost": 2.0, "Plan Rows": 3} if "cost" in measured else {})
    assert has(node, {"Actual Loops": 0, "Actual Rows": 0} if "never" in measured else {})
    (child,) = plan(f"Limit\n  ->  {title}{measured}")["Plans"]
    assert has(child, {**TITLES[title], "Parent Relationship": "Outer"})


PROPERTIES: dict[str, dict[str, Any]] = {
    "WAL: records=1 fpi=2 bytes=3 buffers full=4": {
        "WAL Records": 1,
        "WAL FPI": 2,
        "WAL Bytes": 3,
        "WAL Buffers Full": 4,
    },
    "WAL: records=1 bytes=30 fpi bytes=20": {"WAL Records": 1, "WAL Bytes": 30, "WAL FPI Bytes": 20, "WAL FPI": 0},
    "Buffers: shared hit=1 read=2 dirtied=3 written=4, local hit=5, temp read=6 written=7": {
        "Shared Hit Blocks": 1,
        "Shared Read Blocks": 2,
        "Shared Dirtied Blocks": 3,
        "Shared Written Blocks": 4,
        "Local Hit Blocks": 5,
        "Local Read Blocks": 0,
        "Temp Read Blocks": 6,
        "Temp Written Blocks": 7,
    },
    "I/O Timings: shared read=1.500, local write=0.250, temp read=0.125": {
        "Shared I/O Read Time": 1.5,
        "Local I/O Write Time": 0.25,
        "Temp I/O Read Time": 0.125,
    },
    "Storage: Disk  Maximum Storage: 17kB": {"Storage": "Disk", "Maximum Storage": 17},
    "Index Searches: 3": {"Index Searches": 3},
    "Disabled: true": {"Disabled": True},
    "Window: w1 AS (PARTITION BY a ORDER BY b ROWS UNBOUNDED PRECEDING)": {
        "Window": "w1 AS (PARTITION BY a ORDER BY b ROWS UNBOUNDED PRECEDING)"
    },
    "Estimates: capacity=8 distinct keys=4 lookups=10 hit percent=60.00%": {
        "Estimated Capacity": 8,
        "Estimated Distinct Lookup Keys": 4,
        "Estimated Lookups": 10,
        "Estimated Hit Percent": 60.0,
    },
    "Prefetch: avg=2.50 max=8 capacity=16": {
        "Average Prefetch Distance": 2.5,
        "Max Prefetch Distance": 8,
        "Prefetch Capacity": 16,
    },
    "Replaces: Aggregate": {"Replaces": "Aggregate"},
    "Heap Blocks: lossy=42": {"Exact Heap Blocks": 0, "Lossy Heap Blocks": 42},
    "Tuples: inserted=1 skipped=2": {
        "Tuples Inserted": 1,
        "Tuples Updated": 0,
        "Tuples Deleted": 0,
        "Tuples Skipped": 2,
    },
    "Sort Method: still in progress  Memory: 25kB": {
        "Sort Method": "still in progress",
        "Sort Space Used": 25,
        "Sort Space Type": "Memory",
    },
    "Buckets: 2048 (originally 1024)  Batches: 4 (originally 1)  Memory Usage: 9kB": {
        "Hash Buckets": 2048,
        "Original Hash Buckets": 1024,
        "Hash Batches": 4,
        "Original Hash Batches": 1,
        "Peak Memory Usage": 9,
    },
    "Planned Partitions: 4  Batches: 5  Memory Usage: 9kB  Disk Usage: 8kB": {
        "Planned Partitions": 4,
        "HashAgg Batches": 5,
        "Peak Memory Usage": 9,
        "Disk Usage": 8,
    },
    "Peak Memory Usage: 24 kB": {"Peak Memory Usage": 24},
    "Full-sort Groups: 2  Sort Methods: quicksort, top-N heapsort  Average Memory: 28kB  Peak Memory: 30kB": {
        "Full-sort Groups": {
            "Group Count": 2,
            "Sort Methods Used": ["quicksort", "top-N heapsort"],
            "Sort Space Memory": {"Average Sort Space Used": 28, "Peak Sort Space Used": 30},
        }
    },
    "Pre-sorted Groups: 9  Sort Methods: quicksort, external merge  Average Memory: 1kB  Peak Memory: 2kB"
    "  Average Disk: 3kB  Peak Disk: 4kB": {
        "Pre-sorted Groups": {
            "Group Count": 9,
            "Sort Methods Used": ["quicksort", "external merge"],
            "Sort Space Memory": {"Average Sort Space Used": 1, "Peak Sort Space Used": 2},
            "Sort Space Disk": {"Average Sort Space Used": 3, "Peak Sort Space Used": 4},
        }
    },
    "Sampling: system_rows ('1'::bigint)": {"Sampling Method": "system_rows", "Sampling Parameters": ["'1'::bigint"]},
    "Output: a, ROW(1, 2), 'x, y', ARRAY[1, 2], \"c, d\"": {
        "Output": ["a", "ROW(1, 2)", "'x, y'", "ARRAY[1, 2]", '"c, d"']
    },
    "Conflict Arbiter Indexes: a_pkey, it's": {"Conflict Arbiter Indexes": ["a_pkey", "it's"]},
    "Filter: false": {"Filter": "false"},
    "One-Time Filter: false": {"One-Time Filter": "false"},
    "Order By: (p <-> '(0,0)'::point)": {"Order By": "(p <-> '(0,0)'::point)"},
    "Batch Size: 10": {"Batch Size": 10},
    "Foreign File Size: 123 b": {"Foreign File Size": 123},
    "Chunks excluded during startup: 3": {"Chunks excluded during startup": 3},
    "Vectorized Filter: (a > 1)": {"Vectorized Filter": "(a > 1)"},
}


@pytest.mark.parametrize("line", PROPERTIES)
def test_the_properties_of_a_line(line: str) -> None:
    assert has(plan(f"Result (actual rows=1.00 loops=1)\n  {line}"), PROPERTIES[line])
    if not line.startswith("Conflict"):  # a worker changes nothing
        assert has(plan(f"Result (actual rows=1.00 loops=1)\n  Worker 3:  {line}")["Workers"][0], PROPERTIES[line])


def test_what_lies_in_a_literal_or_a_name_is_neither_node_nor_property() -> None:
    document, *more = explain_parse(
        'Seq Scan on "x\n->  Sort  (cost=1.00..2.00 rows=3 width=4)" "a\'\'\n  Filter: b"\n'
        "  Filter: (a = 'it''s )\n\nSeq Scan on fake  (cost=0.00..1.00 rows=1 width=1)\n"
        "Execution Time: 9999 ms'::text)\n"
        "Execution Time: 1.500 ms"
    )
    assert not more
    assert has(document, {"Execution Time": 1.5})
    assert "Plans" not in document["Plan"]
    assert document["Plan"]["Relation Name"] == "x\n->  Sort  (cost=1.00..2.00 rows=3 width=4)"
    assert document["Plan"]["Alias"] == "a''\n  Filter: b"
    assert document["Plan"]["Filter"].endswith("Execution Time: 9999 ms'::text)")


def test_names_that_are_printed_without_quotes() -> None:
    document = explain_parse(
        'Limit\n  CTE it\'s: "odd\n    ->  Result\n  ->  CTE Scan on "it\'s: ""odd"\n'
        "Trigger o'brien on t: time=0.100 calls=2\nTrigger for constraint it's: calls=1"
    )[0]
    assert document["Plan"]["Plans"][0]["Subplan Name"] == "CTE it's: \"odd"
    assert document["Plan"]["Plans"][1]["CTE Name"] == "it's: \"odd"
    assert document["Triggers"] == [
        {"Trigger Name": "o'brien", "Relation": "t", "Time": 0.1, "Calls": 2},
        {"Constraint Name": "it's", "Calls": 1},
    ]


def test_lines_that_a_terminal_wrapped() -> None:
    text = (
        "Index Scan using task_title_and_status_idx on public.task task_1  (cost=0.29..8.31 rows=1 width=93)"
        " (actual time=0.194..12.382 rows=1123 loops=1)\n"
        "  Output: id, short_id, title, description, status, priority, created_at, updated_at, project_id, agent_id\n"
        "  Index Cond: ((task_1.title = ANY ($1)) AND (task_1.status = ANY ($2)) AND (task_1.priority > 10) AND true)\n"
        "  Buffers: shared hit=1000000 read=2000000 dirtied=3000000 written=4000000, temp read=500000 written=600000\n"
        "Planning Time: 0.123 ms\nExecution Time: 12.671 ms"
    )
    whole = explain_parse(text)
    for width in range(60, 110):
        wrapped = "\n".join(row[at : at + width] for row in text.split("\n") for at in range(0, len(row), width))
        assert explain_parse(wrapped) == whole, wrapped
        if width > 80:  # and the blanks at the end of each line were lost
            stripped = "\n".join(row.rstrip() for row in wrapped.split("\n"))
            assert [node["Total Cost"] for node in nodes(plan(stripped))] == [8.31]


def test_buffers_that_are_off_and_no_buffers_are_told_apart() -> None:
    off = plan("Limit (actual rows=1 loops=1)\n  ->  Result (actual rows=1 loops=1)")
    assert "Shared Hit Blocks" not in off
    assert "Shared Hit Blocks" not in off["Plans"][0]
    on = plan("Limit (actual rows=1 loops=1)\n  Buffers: shared hit=1\n  ->  Result (actual rows=1 loops=1)")
    assert has(on["Plans"][0], {"Shared Hit Blocks": 0, "Temp Written Blocks": 0})
    planning = plan("Result (actual rows=1 loops=1)\nPlanning:\n  Buffers: shared hit=1\nPlanning Time: 0.1 ms")
    assert has(planning, {"Shared Hit Blocks": 0})
    planned = plan("Result\nPlanning:\n  Buffers: shared hit=1")
    assert "Shared Hit Blocks" not in planned  # it was not run


def test_a_never_executed_node_has_times_where_they_were_taken() -> None:
    timed = plan("Limit (actual time=0.1..0.2 rows=0 loops=1)\n  ->  Result (never executed)")
    assert has(timed["Plans"][0], {"Actual Total Time": 0.0, "Actual Loops": 0})
    untimed = plan("Limit (actual rows=0 loops=1)\n  ->  Result (never executed)")
    assert "Actual Total Time" not in untimed["Plans"][0]


def test_relationships_to_the_parent() -> None:
    text = """\
Hash Join
  InitPlan 1 (returns $0)
    ->  Result
  InitPlan exists_1
    ->  Result
  CTE c
    ->  Append
          ->  Seq Scan on p1
          ->  Seq Scan on p2
  ->  Subquery Scan on s
        ->  Custom Scan (Two)
              ->  Seq Scan on a
              ->  Seq Scan on b
  ->  Hash
        ->  Custom Scan (One)
              ->  Seq Scan on d
  SubPlan 2
    ->  Result"""
    found = [(node.get("Parent Relationship"), node.get("Subplan Name")) for node in nodes(plan(text))]
    assert found == [
        (None, None),
        ("InitPlan", "InitPlan 1 (returns $0)"),
        ("InitPlan", "InitPlan exists_1"),
        ("InitPlan", "CTE c"),
        ("Member", None),
        ("Member", None),
        ("Outer", None),
        ("Subquery", None),
        ("children", None),
        ("children", None),
        ("Inner", None),
        ("Outer", None),
        ("child", None),
        ("SubPlan", "SubPlan 2"),
    ]


def test_workers_of_version_12_that_are_told_of_in_two_places() -> None:
    text = """\
Sort (actual time=1.000..2.000 rows=9 loops=2)
  Sort Key: a
  Worker 0:  Sort Method: quicksort  Memory: 25kB
  Worker 1:  Sort Method: quicksort  Memory: 26kB
  Worker 0: actual time=0.5..0.6 rows=4 loops=1
    Buffers: shared hit=3
  Worker 1: actual time=0.7..0.8 rows=5 loops=1"""
    first, second = plan(text)["Workers"]
    assert has(first, {"Worker Number": 0, "Sort Space Used": 25, "Actual Rows": 4, "Shared Hit Blocks": 3})
    assert has(second, {"Worker Number": 1, "Sort Space Used": 26, "Actual Total Time": 0.8, "Shared Hit Blocks": 0})


def test_jit_of_workers_and_of_the_statement() -> None:
    text = """\
Gather (actual time=1.000..2.000 rows=9 loops=1)
  Workers Planned: 1
  Worker 0:  actual time=0.5..0.6 rows=4 loops=1
    JIT:
      Functions: 8
      Options: Inlining true, Optimization false, Expressions true, Deforming true
      Timing: Generation 0.614 ms, Inlining 1.000 ms, Optimization 2.000 ms, Emission 3.000 ms, Total 6.614 ms
    Buffers: shared hit=3
JIT:
  Functions: 28
  Options: Inlining true, Optimization true, Expressions true, Deforming true
  Timing: Generation 1.5 ms (Deform 0.5 ms), Inlining 1.0 ms, Optimization 2.0 ms, Emission 3.0 ms, Total 7.5 ms
Execution Time: 2.500 ms"""
    (document,) = explain_parse(text)
    (worker,) = document["Plan"]["Workers"]
    assert worker["JIT"]["Options"]["Optimization"] is False
    assert worker["JIT"]["Timing"]["Generation"] == 0.614
    assert worker["Shared Hit Blocks"] == 3
    assert document["JIT"]["Functions"] == 28
    assert document["JIT"]["Timing"]["Generation"] == {"Deform": 0.5, "Total": 1.5}


def test_io_times_are_named_as_the_version_names_them() -> None:
    run = "Limit (actual rows=1 loops=1)\n  I/O Timings: {}\n  ->  Result (actual rows=1 loops=1)"
    until_14 = plan(run.format("read=0.5 write=0.1"))
    assert has(until_14, {"I/O Read Time": 0.5, "I/O Write Time": 0.1})
    assert has(until_14["Plans"][0], {"I/O Read Time": 0.0})
    assert "Temp I/O Read Time" not in until_14["Plans"][0]
    shared_and_local = plan(run.format("shared read=0.5, temp write=0.1"))
    assert has(shared_and_local, {"I/O Read Time": 0.5, "I/O Write Time": 0.0, "Temp I/O Write Time": 0.1})
    since_17 = plan(run.format("shared read=0.5").replace("rows=1 ", "rows=1.00 "))
    assert has(since_17, {"Shared I/O Read Time": 0.5, "Local I/O Read Time": 0.0, "Temp I/O Read Time": 0.0})
    assert "I/O Read Time" not in since_17


def test_several_tables_that_a_statement_changes() -> None:
    text = """\
Update on part
  Update on s.part_1 p
  Foreign Update on part_2
    Remote SQL: UPDATE x SET a = $2 WHERE ctid = $1
    Batch Size: 1
  Conflict Resolution: NOTHING
  ->  Append
        ->  Seq Scan on part_1"""
    node = plan(text)
    assert node["Target Tables"] == [
        {"Relation Name": "part_1", "Schema": "s", "Alias": "p"},
        {
            "Relation Name": "part_2",
            "Alias": "part_2",
            "Remote SQL": "UPDATE x SET a = $2 WHERE ctid = $1",
            "Batch Size": 1,
        },
    ]
    assert node["Conflict Resolution"] == "NOTHING"


def test_grouping_sets_and_their_sorting() -> None:
    text = """\
MixedAggregate
  Hash Key: a
  Hash Key: b, c
  Group Key: d, e
  Group Key: d
  Group Key: ()
  Sort Key: f DESC
    Group Key: f
    Group Key: ()
  ->  Sort
        Sort Key: d, e"""
    assert plan(text)["Grouping Sets"] == [
        {"Hash Keys": [["a"]]},
        {"Hash Keys": [["b", "c"]]},
        {"Group Keys": [["d", "e"], ["d"], []]},
        {"Sort Key": ["f DESC"], "Group Keys": [["f"], []]},
    ]
    assert plan("HashAggregate\n  Group Key: a, b")["Group Key"] == ["a", "b"]


def test_plans_of_citus_are_below_the_distributed_query_as_in_json() -> None:
    text = """\
Custom Scan (Citus Adaptive)  (cost=0.00..0.00 rows=0 width=0) (actual time=5.383..5.428 rows=4 loops=1)
  ->  Distributed Subplan 6_1
        Intermediate Data Size: 26 MB
        Result destination: Write locally
        ->  Limit  (cost=0.00..0.01 rows=1 width=0) (actual time=0.003..0.004 rows=1 loops=1)
              ->  Result  (cost=0.00..0.01 rows=1 width=0) (actual time=0.003..0.004 rows=1 loops=1)
        Planning Time: 0.001 ms
        Execution Time: 8.687 ms
  Task Count: 2
  Tuple data received from nodes: 41 kB
  Tasks Shown: One of 2
  ->  Task
        Tuple data received from node: 20 kB
        Node: host=worker port=5432 dbname=hive
        ->  Seq Scan on task_102022 task  (cost=0.00..17.25 rows=3 width=112) (actual time=0.024..0.024 rows=0 loops=1)
              Filter: (title = 'x'::text)
            Planning Time: 0.149 ms
            Execution Time: 0.031 ms
Planning Time: 1.259 ms
Execution Time: 30.896 ms"""
    (document,) = explain_parse(text)
    assert has(document, {"Planning Time": 1.259, "Execution Time": 30.896})
    assert "Plans" not in document["Plan"]
    query = document["Plan"]["Distributed Query"]
    (subplan,) = query["Subplans"]
    assert subplan["Result destination"] == "Write locally"
    assert has(subplan["PlannedStmt"][0], {"Planning Time": 0.001, "Execution Time": 8.687})
    assert subplan["PlannedStmt"][0]["Plan"]["Plans"][0]["Node Type"] == "Result"
    assert has(query["Job"], {"Task Count": 2, "Tasks Shown": "One of 2", "Tuple data received from nodes": "41 kB"})
    (task,) = query["Job"]["Tasks"]
    assert task["Node"] == "host=worker port=5432 dbname=hive"
    assert has(task["Remote Plan"][0][0], {"Planning Time": 0.149, "Execution Time": 0.031})
    assert has(task["Remote Plan"][0][0]["Plan"], {"Relation Name": "task_102022", "Rows Removed by Filter": 0})


def test_nodes_and_properties_that_nobody_here_has_heard_of() -> None:
    node = plan(
        "Limit\n  ->  Sky Scan on s.t x  (cost=0.00..1.00 rows=1 width=4)\n        Stars Seen: 12\n        Colour: blue"
    )
    (sky,) = node["Plans"]
    assert has(sky, {"Node Type": "Sky Scan", "Schema": "s", "Relation Name": "t", "Alias": "x"})
    assert has(sky, {"Stars Seen": 12, "Colour": "blue"})


def test_plan_advice_of_19() -> None:
    (document,) = explain_parse("Seq Scan on t\nGenerated Plan Advice:\n  SEQ_SCAN(t)\n  NO_GATHER(t)\n")
    assert document["Generated Plan Advice"] == "SEQ_SCAN(t)\nNO_GATHER(t)"


def test_serialization_and_planning_of_17() -> None:
    (document,) = explain_parse(
        "Result  (cost=0.00..0.01 rows=1 width=4) (actual time=0.001..0.001 rows=1 loops=1)\n"
        "Planning:\n  Buffers: shared hit=3\n  Memory: used=14kB  allocated=32kB\nPlanning Time: 0.123 ms\n"
        "Serialization: time=0.785 ms  output=129kB  format=binary\n  Buffers: shared hit=2\nExecution Time: 1.5 ms"
    )
    assert has(document["Planning"], {"Memory Used": 14, "Memory Allocated": 32, "Shared Hit Blocks": 3})
    assert has(document["Serialization"], {"Time": 0.785, "Output Volume": 129, "Format": "binary"})
    assert document["Serialization"]["Shared Hit Blocks"] == 2
