"""The gates that hold a plan against the one that was measured before the first phase."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from pgrollout.explain.compare import STRUCTURE, compare, lines
from pgrollout.explain.fingerprint import fingerprint
from pgrollout.gates.plan_gates import Sample
from pgrollout.gates.verdict import Verdict, held_against, unknown

# What differs between two measurements of the same: some blocks (a hint bit, an index page split) and some time.
NOISE_BLOCKS = 8
NOISE_ROWS = 100
NOISE_MS = 5
NOISE_ERROR = 10  # an estimate that is no further off is good enough


def shape(level: str, taken: Sample, before: Sample, _same_major: bool) -> Verdict:
    if level == "ignore":
        return Verdict("pass")
    now, then = fingerprint([taken.plan])[level], fingerprint([before.plan])[level]
    if now["hash"] == then["hash"]:
        return Verdict("pass", now["hash"], then["hash"])
    changes = [each for each in compare([before.plan], [taken.plan])["changes"] if each["kind"] in STRUCTURE]
    reason = f"the plan is another one than before the first phase: {'; '.join(lines(changes))}"
    return Verdict("fail", now["hash"], then["hash"], reason=reason)


def _ratio(
    value: Callable[[Sample], float | None], noise: float, what: str
) -> Callable[[Any, Sample, Sample, bool], Verdict]:
    def gate(limit: Any, taken: Sample, before: Sample, _same_major: bool) -> Verdict:
        now, then = value(taken), value(before)
        if now is None or then is None:
            return unknown(f"the plans do not tell {what}")
        if now - then <= noise:
            return Verdict("pass", now, then)
        return held_against(limit, now / max(then, noise), " times", f"{what}, compared with before the first phase")

    return gate


def _cost(limit: Any, taken: Sample, before: Sample, same_major: bool) -> Verdict:
    if not same_major:
        return unknown("costs of two major versions of PostgreSQL cannot be compared")
    return _ratio(lambda sample: sample.total("total_cost"), 1, "cost")(limit, taken, before, same_major)


GATES: dict[str, Callable[[Any, Sample, Sample, bool], Verdict]] = {
    "shape": shape,
    "max_cost_ratio": _cost,
    "max_shared_blocks_ratio": _ratio(
        lambda sample: sample.total("shared_blocks"), NOISE_BLOCKS, "blocks hit and read"
    ),
    "max_rows_processed_ratio": _ratio(lambda sample: sample.total("rows_processed"), NOISE_ROWS, "rows processed"),
    "max_rows_estimate_error_ratio": _ratio(
        lambda sample: sample.total("max_q_error"), NOISE_ERROR, "the largest estimate error"
    ),
    "max_execution_ratio": _ratio(
        lambda sample: statistics.median(sample.execution_ms) if sample.execution_ms else None, NOISE_MS, "execution"
    ),
}
