"""One verdict of one gate, and how a value is held against a limit that may warn before it fails."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# From best to worst: of several verdicts of a gate the worst counts.
STATUSES = ("pass", "waived", "inconclusive", "warn", "fail")


@dataclass(frozen=True)
class Verdict:
    """What a gate says of one plan. `path` and `relation` lead to the node (see explain_metrics); `reason` is a
    sentence, `hint` what to do, both empty where there is nothing to say."""

    status: str
    observed: float | str | None = None
    limit: float | str | None = None
    path: str = ""
    relation: str = ""
    reason: str = ""
    hint: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def worst(verdicts: list[Verdict]) -> Verdict:
    """The first of the worst."""
    return max(verdicts, key=lambda verdict: STATUSES.index(verdict.status))


def unknown(reason: str, hint: str = "") -> Verdict:
    return Verdict("inconclusive", reason=reason, hint=hint)


def held_against(limit: Any, value: float | None, unit: str, what: str) -> Verdict:
    """`limit`: a number that fails when exceeded, or {warn, fail}."""
    if value is None:
        return unknown(f"the plan does not tell {what}")
    bounds: dict[str, float] = limit if isinstance(limit, dict) else {"fail": limit}
    for status in ("fail", "warn"):
        if status in bounds and value > bounds[status]:
            reason = f"{what}: {amount(value)}{unit}, over the {amount(bounds[status])}{unit} allowed"
            return Verdict(status, value, bounds[status], reason=reason)
    return Verdict("pass", value, bounds.get("fail", bounds.get("warn")))


def amount(value: float) -> str:
    """1234567 is 1,234,567; 0.0123 is 0.012."""
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"
