"""explain_gate: plans of a file against a gate file, with no server; and the example of docs/gates.md."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgrollout.errors import RolloutError
from pgrollout.explain.read import explain_parse
from pgrollout.gates.files import limits_of
from pgrollout.gates.pasted import explain_gate

GATE: dict[str, Any] = {
    "title": "Look a task up",
    "parameters": {"code": "text"},
    "cases": {"first": "SELECT code FROM task LIMIT 1"},
    "preconditions": {"min_table_rows": {"task": 1000}},
    "gates": {"forbid_seq_scan": {}, "max_execution_ms": {"warn": 1, "fail": 50}, "max_shared_blocks": 10},
    "baseline": {"max_rows_processed_ratio": 2},
}
SLOW = """\
Seq Scan on public.task  (cost=0.00..18.00 rows=10 width=4) (actual time=0.1..80.0 rows=5 loops=1)
  Filter: (code = 'a'::text)
  Rows Removed by Filter: 50000
Planning Time: 0.1 ms
Execution Time: 81.5 ms
"""
FAST = """\
Index Scan using task_code on public.task  (cost=0.00..8.00 rows=5 width=4) (actual time=0.01..0.02 rows=5 loops=1)
  Index Cond: (code = 'a'::text)
  Buffers: shared hit=4
Planning Time: 0.1 ms
Execution Time: 0.05 ms
"""
SIZE = {"public.task": {"rows": 60_000}}


def statuses(results: list[dict[str, Any]], case: str = "") -> dict[str, str]:
    return {result["gate"]: result["status"] for result in results if result["case"] == case}


def test_what_a_plan_tells_is_judged_and_the_rest_is_inconclusive() -> None:
    results = explain_gate(explain_parse(SLOW), GATE, SIZE)
    assert statuses(results) == {
        "forbid_seq_scan": "fail",
        "max_execution_ms": "fail",
        "max_shared_blocks": "inconclusive",
        "baseline.max_rows_processed_ratio": "inconclusive",
    }
    reasons = {result["gate"]: result["reason"] for result in results}
    assert reasons["forbid_seq_scan"] == "public.task is read from end to end, 50,005 rows; allowed up to 10,000"
    assert reasons["max_execution_ms"] == "execution: 81.5 ms, over the 50 ms allowed"
    assert reasons["max_shared_blocks"] == "the plan does not tell blocks hit and read"


def test_several_plans_are_cases_of_their_own_and_may_be_compared() -> None:
    results = explain_gate(explain_parse(FAST) + explain_parse(SLOW), GATE, SIZE, explain_parse(FAST) * 2)
    assert set(statuses(results, "plan 1").values()) == {"pass"}
    assert statuses(results, "plan 2")["baseline.max_rows_processed_ratio"] == "fail"


def test_a_precondition_asks_for_what_no_plan_tells() -> None:
    (found,) = explain_gate(explain_parse(FAST), GATE)
    assert (found["status"], found["reason"]) == (
        "inconclusive",
        "task has unknown rows, too few to tell of a plan at size; expected 1,000",
    )
    asks = GATE | {"preconditions": {"settings": {"work_mem": "4MB"}}}
    (found,) = explain_gate(explain_parse(FAST), asks)
    assert found["reason"] == "work_mem is not known, expected 4MB"
    (found, *_) = explain_gate(explain_parse(FAST + "Settings: work_mem = '4MB'\n"), asks)
    assert found["status"] == "pass"


def test_a_gate_file_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "look.gate.yml"
    path.write_text(yaml.safe_dump(GATE), encoding="utf-8")
    assert statuses(explain_gate(explain_parse(SLOW), str(path), SIZE))["forbid_seq_scan"] == "fail"


@pytest.mark.parametrize(
    ("plans", "gate", "before", "said"),
    [
        ([], GATE, None, "expected the plans that explain_parse returns, at least one"),
        (SLOW, GATE, None, "expected the plans that explain_parse returns"),
        (explain_parse(FAST), GATE, explain_parse(FAST) * 2, "found 2 plans to compare 1 with; expected as many"),
        (explain_parse(FAST), GATE | {"gate": {}}, None, "unknown key 'gate'; did you mean 'gates'?"),
        (explain_parse(FAST), "nowhere.gate.yml", None, "nowhere.gate.yml: cannot be read"),
    ],
)
def test_what_is_no_plan_or_no_gate_is_refused(plans: Any, gate: Any, before: Any, said: str) -> None:
    with pytest.raises(RolloutError, match=re.escape(said)):
        explain_gate(plans, gate, None, before)


def test_the_example_of_the_page_is_a_gate() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "gates.md").read_text(encoding="utf-8")
    example = re.search(r"(?m)^    # sql/phase1.*\n((?:    .*\n)+)", page)
    assert example
    limits = limits_of(yaml.safe_load(textwrap.dedent(example[1])), "docs/gates.md")
    assert limits["waivers"][0]["gate"] == "max_execution_ms"
    assert set(limits["cases"]) == {"oldest", "unknown"}
