"""What a gate file and what was measured of its query come to."""

from __future__ import annotations

import datetime
import re
from typing import Any

from pgrollout.gates import baseline_gates, plan_gates
from pgrollout.gates.plan_gates import Sample, sample
from pgrollout.gates.verdict import Verdict, amount, unknown

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_UNDEFINED = ("42703", "42P01", "42883", "42704")  # column, table, function, type


def verdicts(
    gate: dict[str, Any], measured: dict[str, Any], before: dict[str, Any] | None = None, today: str = ""
) -> list[dict[str, Any]]:
    """[{gate, case, mode, status: pass | warn | fail | inconclusive | waived, observed, limit, path, relation, reason,
    hint}], one for each limit of the file, case and plan mode.

    gate: see files.gates_of. measured: of this gate as gates_measured gives it; before: the same from before the first
    phase, if it was measured then. Limits against the baseline are named baseline.<limit>.
    """
    found = _preconditions(gate, measured)
    if found:
        return [_result("preconditions", "", "", verdict) for verdict in found]
    results = []
    for case in gate["cases"]:
        modes = measured["cases"].get(case, {"error": f"not run, because {_time_is_up(gate)}"})
        earlier = (before or {}).get("cases", {}).get(case, {})
        if gate.get("taken_back") and not any("plan" in mode for mode in earlier.values() if isinstance(mode, dict)):
            results.append(_result("baseline", case, "", unknown("it could not run before the first phase either")))
            continue
        if "error" in modes:
            results.append(_result("cases", case, "", unknown(modes["error"])))
            continue
        for mode in gate["plan_modes"]:
            results += _of_mode(gate, measured, before, case, mode, modes.get(mode, {}), earlier.get(mode, {}))
    day = datetime.date.fromisoformat(today) if today else datetime.datetime.now(datetime.UTC).date()
    return [_waived(result, gate["waivers"], day) for result in results]


def _of_mode(
    gate: dict[str, Any],
    measured: dict[str, Any],
    before: dict[str, Any] | None,
    case: str,
    mode: str,
    now: dict[str, Any],
    earlier: dict[str, Any],
) -> list[dict[str, Any]]:
    if "plan" not in now or "error" in now:
        error = now.get("error", f"not run, because {_time_is_up(gate)}")
        if gate.get("taken_back") and "plan" not in earlier:
            reason = f"{error}; before the first phase it could not be measured either"
            return [_result("query", case, mode, unknown(reason))]
        return [_result("query", case, mode, Verdict("fail", reason=error, hint=_remedy(gate, now)))]
    spread = gate["sampling"]["max_spread"]
    taken = sample(now, measured["tables"], spread)
    results = [_result(name, case, mode, plan_gates.judged(name, rule, taken)) for name, rule in gate["gates"].items()]
    for name, rule in gate["baseline"].items():
        results.append(
            _result(f"baseline.{name}", case, mode, _compared(name, rule, taken, measured, before, earlier, spread))
        )
    return results


def _compared(
    name: str,
    rule: Any,
    taken: Sample,
    measured: dict[str, Any],
    before: dict[str, Any] | None,
    earlier: dict[str, Any],
    spread: float,
) -> Verdict:
    if "plan" not in earlier or before is None:
        return unknown(earlier.get("error", "nothing was measured before the first phase"))
    if earlier.get("parameters") != taken.parameters:
        return unknown("before the first phase it was measured with other parameters, because other rows were there")
    same_major = before["version"] // 10000 == measured["version"] // 10000
    return baseline_gates.GATES[name](rule, taken, sample(earlier, before["tables"], spread), same_major)


def _time_is_up(gate: dict[str, Any]) -> str:
    return f"the time for all runs ({gate['sampling']['timeout_ms']} ms) was up"


def _remedy(gate: dict[str, Any], now: dict[str, Any]) -> str:
    if now.get("sqlstate") == "57014":
        return f"It may take {gate['sampling']['timeout_ms']} ms for all its runs (sampling.timeout_ms)."
    if now.get("sqlstate") in _UNDEFINED:
        return f"Has {gate['migration']} been applied?"
    return ""


# ---- preconditions


def _preconditions(gate: dict[str, Any], measured: dict[str, Any]) -> list[Verdict]:
    """What keeps the gate from telling anything at all."""
    rules, found = gate["preconditions"], []
    for table, least in rules.get("min_table_rows", {}).items():
        rows = plan_gates.facts_of(measured["tables"], table).get("rows")
        if rows is None or rows < least:
            counted = "unknown" if rows is None else amount(rows)
            reason = f"{table} has {counted} rows, too few to tell of a plan at size; expected {amount(least)}"
            found.append(Verdict("inconclusive", rows, least, relation=table, reason=reason))
    for name, wanted in rules.get("settings", {}).items():
        value = measured["settings"].get(name)
        expected = str(wanted).lower() if isinstance(wanted, bool) else str(wanted)
        if value != expected and not (
            expected in ("true", "false") and value == {"true": "on", "false": "off"}[expected]
        ):
            told = "is not known" if value is None else f"is {value}"
            found.append(Verdict("inconclusive", value, expected, reason=f"{name} {told}, expected {expected}"))
    return found + _statistics(rules, measured)


def _statistics(rules: dict[str, Any], measured: dict[str, Any]) -> list[Verdict]:
    if "max_stats_age" not in rules:
        return []
    count, unit = re.fullmatch(r"(\d+)([smhd])", rules["max_stats_age"]).groups()  # type: ignore[union-attr]
    limit = int(count) * _UNITS[unit]
    found = []
    for table, facts in measured["tables"].items():
        age = facts["analysed_s"]
        if age is None or age > limit:
            told = "was never analysed" if age is None else f"was analysed {amount(age / _UNITS[unit])} {unit} ago"
            reason = f"{table} {told}, expected within {rules['max_stats_age']}"
            found.append(Verdict("inconclusive", age, limit, relation=table, reason=reason, hint=f"ANALYZE {table}."))
    return found


# ---- waivers


def _waived(result: dict[str, Any], waivers: list[dict[str, Any]], today: datetime.date) -> dict[str, Any]:
    if result["status"] not in ("fail", "warn"):
        return result
    for waiver in waivers:
        if not _fits(waiver, result):
            continue
        if datetime.date.fromisoformat(waiver["until"]) >= today:
            return result | {"status": "waived", "hint": f"Waived until {waiver['until']}: {waiver['reason']}."}
        return result | {"hint": f"{result['hint']} Its waiver ended on {waiver['until']}.".strip()}
    return result


def _fits(waiver: dict[str, Any], result: dict[str, Any]) -> bool:
    return (
        waiver["gate"] == result["gate"]
        and waiver.get("case", result["case"]) == result["case"]
        and ("table" not in waiver or plan_gates.is_named(result["relation"], [waiver["table"]]))
    )


def _result(gate: str, case: str, mode: str, verdict: Verdict) -> dict[str, Any]:
    return {"gate": gate, "case": case, "mode": mode, **verdict.as_dict()}


def judged(gates: list[dict[str, Any]], measured: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """{gate id: verdicts}"""
    return {gate["id"]: verdicts(gate, measured[gate["id"]], baseline.get(gate["id"])) for gate in gates}
