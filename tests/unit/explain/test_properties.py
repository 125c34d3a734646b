"""No input crashes the reader or makes it hang; a plan that was written is the plan that is read; time is linear."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgrollout.errors import RolloutError
from pgrollout.explain.fill import nodes
from pgrollout.explain.read import explain_parse
from tests.support.explain import corpus

SAMPLES = [text for one in corpus() for text in (*one["texts"].values(), *one.get("pair", []))][::97]
PIECES = [
    *(
        "->  ",
        "  ",
        "\n",
        "\t",
        "'",
        '"',
        "(",
        ")",
        ": ",
        "::text",
        "+",
        "|",
        "\u00a0",
        "\r\n",
        "{",
        "[",
        "- ",
        "<",
        "&",
    ),
    *(
        "Seq Scan on t",
        "Sort",
        "Filter: ",
        "  (cost=0.00..1.00 rows=1 width=1)",
        " (actual rows=1 loops=1)",
        "QUERY PLAN",
    ),
    *(
        "Worker 0:  ",
        "InitPlan 1",
        "CTE x",
        "Buffers: shared hit=1",
        "JIT:",
        "Planning:",
        "Settings: a = 'b'",
        "------",
    ),
    *(
        "(3 rows)",
        "duration: 1.0 ms  plan:\n",
        "Query Text: ",
        '"Plan"',
        "<explain>",
        "- Plan:",
        "Group Key: a",
        "Task",
    ),
    *(
        "Trigger a: calls=1",
        "Full-sort Groups: 1  Sort Method: ",
        "Sampling: ",
        "Heap Blocks:",
        "WAL: ",
        "I/O Timings: x",
    ),
]


def refuses_or_reads(given: Any) -> None:
    """Either a tree of nodes, or one sentence."""
    documents, sentence = [], ""
    try:
        documents = explain_parse(given)
    except RolloutError as refused:
        sentence = str(refused)
    assert "\n" not in sentence
    assert all(node["Node Type"] for document in documents for node in nodes(document["Plan"]))


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=200))
@example("Sort\n  Sort Key:\n  Group Key: ()")
@settings(max_examples=200, deadline=None)
def test_no_text_crashes_the_reader(text: str) -> None:
    refuses_or_reads(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from(PIECES) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["Plan", "Plans", "Node Type", "QUERY PLAN", "query_result", "x"]), inner)
    ),
    max_leaves=12,
)


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_no_value_crashes_the_reader(value: Any) -> None:
    refuses_or_reads(value)
    refuses_or_reads(json.dumps(value, default=repr))


@given(st.sampled_from(SAMPLES), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_no_damaged_plan_crashes_the_reader(text: str, chance: random.Random) -> None:
    """Lines lost, doubled, moved; characters lost, changed, put in."""
    for _ in range(chance.randint(1, 4)):
        at, to = sorted(chance.choices(range(len(text) + 1), k=2))
        match chance.randrange(4):
            case 0:
                text = text[:at] + chance.choice(PIECES) + text[at:]
            case 1:
                text = text[:at] + text[min(to, at + 30) :]
            case 2:
                rows = text.split("\n")
                del rows[chance.randrange(len(rows))]
                text = "\n".join(rows)
            case 3:
                text = text[:to]
    refuses_or_reads(text)


# ---- what was written is what is read

NAMES = st.text(alphabet="ab \"'.\n()>-:é", min_size=1, max_size=12).filter(lambda name: name.strip("\n ") == name)
LITERALS = st.text(alphabet="ab '\"\n()->:=.1", max_size=30)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@st.composite
def trees(draw: st.DrawFn, depth: int = 4) -> dict[str, Any]:
    """A plan of scans, sorts and joins with any names and literals."""
    kind = draw(st.sampled_from(["Seq Scan", "Sort", "Hash Join", "Append", "Aggregate"])) if depth else "Seq Scan"
    node: dict[str, Any] = {"Node Type": kind, "Startup Cost": 0.5, "Total Cost": draw(st.integers(1, 10**9)) / 100}
    node |= {"Plan Rows": draw(st.integers(0, 10**12)), "Plan Width": draw(st.integers(0, 9999))}
    if kind == "Seq Scan":
        literal = draw(LITERALS).replace("'", "''")
        return node | {"Relation Name": draw(NAMES), "Alias": draw(NAMES), "Filter": f"(a = '{literal}'::text)"}
    children = {"Hash Join": 2, "Append": draw(st.integers(1, 4))}.get(kind, 1)
    if kind == "Sort":
        node["Sort Key"] = [quoted(name) for name in draw(st.lists(NAMES, min_size=1, max_size=3))]
    return node | {"Plans": [draw(trees(depth=depth - 1)) for _ in range(children)]}


def written(node: dict[str, Any], indent: str = "", arrow: str = "") -> Iterator[str]:
    """The tree as PostgreSQL writes it in TEXT."""
    title = node["Node Type"]
    if title == "Seq Scan":
        title += f" on {quoted(node['Relation Name'])} {quoted(node['Alias'])}"
    costs = f"cost={node['Startup Cost']:.2f}..{node['Total Cost']:.2f}"
    yield f"{indent}{arrow}{title}  ({costs} rows={node['Plan Rows']} width={node['Plan Width']})"
    inner = indent + ("      " if arrow else "  ")
    if "Filter" in node:
        yield f"{inner}Filter: {node['Filter']}"
    if "Sort Key" in node:
        yield f"{inner}Sort Key: {', '.join(node['Sort Key'])}"
    for child in node.get("Plans", ()):
        yield from written(child, inner, "->  ")


def is_in(part: Any, whole: Any) -> bool:
    """Whether everything that was written was read; reading adds what the titles imply."""
    if isinstance(part, dict):
        return all(key in whole and is_in(value, whole[key]) for key, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(is_in(one, other) for one, other in zip(part, whole, strict=True))
    return bool(part == whole)


@given(trees())
@settings(max_examples=60, deadline=None)
def test_a_written_tree_is_read_back(tree: dict[str, Any]) -> None:
    (document,) = explain_parse("\n".join(written(tree)))
    assert is_in(tree, document["Plan"])
    assert len(list(nodes(tree))) == len(list(nodes(document["Plan"])))


# ---- time


def wide(count: int) -> str:
    """An Append over many partitions, as VERBOSE and ANALYZE tell of it."""
    measured = "  (cost=0.00..155.25 rows=5050 width=8) (actual time=0.003..0.103 rows=1 loops=1)"
    rows = [f"Append{measured}", "  Buffers: shared hit=968"]
    for number in range(count):
        rows += [
            f"  ->  Seq Scan on public.part_{number} p_{number}{measured}",
            "        Filter: ((title = 'it''s'::text) AND (id > 100))",
            "        Rows Removed by Filter: 58877",
        ]
    return "\n".join(rows)


def deep(count: int) -> str:
    """Nested loops in nested loops."""
    measured = "  (cost=0.00..155.25 rows=5050 width=8)"
    rows = [f"Nested Loop{measured}"]
    for level in range(count // 2):
        rows += [f"{' ' * (2 + 6 * level)}->  {title}{measured}" for title in ("Seq Scan on t", "Nested Loop")]
    return "\n".join(rows)


TRAPS: dict[str, Callable[[int], str]] = {
    "a wide plan": wide,
    "a framed plan": lambda count: "\n".join(f"| {row} |" for row in wide(count).split("\n")),
    "a literal of many lines": lambda count: "Result\n  Filter: (a = '" + "\n->  Sort (\n" * count + "'::text)",
    "a quote that never closes": lambda count: "Result\n" + "  Filter: (a = 'x\n" * (2 * count + 1),
    "parentheses that never close": lambda count: "Result\n" + "  Filter: ((a = b)\n" * count,
    "blanks": lambda count: "Result" + " " * 20 * count + "(cost=" + " " * 20 * count,
    "many roots": lambda count: "Sort\n" * count + "nothing",
    "one long list": lambda count: "Result\n  Output: " + "f(a, 'b'), " * count + "c",
    "one long counter": lambda count: "Result\n  Memory: " + "a b " * count,
    "one long name": lambda count: "Result\nTrigger " + " on x for constraint y" * count + ": calls=",
    "JSON": lambda count: json.dumps([{"Plan": {"Node Type": "Append", "Plans": [{"Node Type": "Result"}] * count}}]),
    "half a JSON": lambda count: '[{"Plan": {"Node Type": "Append", "Plans": [' + '{"Node Type": "Result"}, ' * count,
    "many JSON texts": lambda count: '{"Plan": {"Node Type": "Result"}}\n' * count,
    "YAML": lambda count: "- Plan:\n    Node Type: Append\n    Plans:\n" + '      - Node Type: "Result"\n' * count,
    "XML": lambda count: (
        "<explain><Query><Plan><Node-Type>Append</Node-Type><Plans>"
        + "<Plan><Node-Type>Result</Node-Type></Plan>" * count
        + "</Plans></Plan></Query></explain>"
    ),
    "many log entries": lambda count: "LOG:  duration: 1.0 ms  plan:\n\tQuery Text: x\n\tResult\n" * count,
    "blank lines": lambda count: "\n" * 10 * count + "Result" + "\n" * 10 * count,
    "headings": lambda count: "QUERY PLAN\n----------\n" * count + " Result\n(1 row)",
    "row counts": lambda count: "Result\n" + "(1 row)\n\n" * count,
    "records": lambda count: "-[ RECORD 1 ]---\nQUERY PLAN | Result\n" * count,
    "borders": lambda count: "|" * 20 * count + "\n" + "|-" * 20 * count,
    "quotes": lambda count: '"' + "Result" + '""' * 20 * count,
    "dots": lambda count: " Result.\n" + "." * 20 * count + "\n" + ". .\n" * count,
    "SQL above": lambda count: "SELECT 1;\n" * count + "Result",
}


def seconds(text: str) -> float:
    """The best of three: other work on the machine only makes it longer."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        refuses_or_reads(text)
        taken.append(time.process_time() - start)
    return min(taken)


@pytest.mark.parametrize("trap", TRAPS)
def test_time_grows_with_the_length_and_not_with_its_square(trap: str) -> None:
    small, large = (seconds(TRAPS[trap](count)) for count in (300, 2_400))
    assert large < 24 * max(small, 0.001), f"{trap}: 8 times as long takes {large / small:.0f} times as long"


def test_a_plan_of_ten_thousand_nodes_is_read_whole() -> None:
    (document,) = explain_parse(wide(10_000))
    assert len(document["Plan"]["Plans"]) == 10_000
    assert all(node["Rows Removed by Filter"] == 58877 for node in document["Plan"]["Plans"])


def test_a_deep_plan_is_read_whole() -> None:
    """Indentation makes a deep plan as long as the square of its depth."""
    (document,) = explain_parse(deep(1_000))
    assert sum(1 for _ in nodes(document["Plan"])) == 1_001
