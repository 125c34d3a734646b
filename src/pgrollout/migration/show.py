"""Text for people: the plan, and the server's words out of a module's error message."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from pgrollout.migration.locks import MODES
from pgrollout.migration.names import shown

_MARK = {
    "satisfied": "done",
    "pending": "to do",
    "rebuild": "REBUILD",
    "held": "HELD",
    "off": "off",
    "conflict": "CONFLICT",
    "unproven": "UNPROVEN",
    "refused": "REFUSED",
    "kept": "kept",
}
_WORK = {
    "ddl": "short DDL",
    "concurrent": "concurrent builds or drops",
    "data": "backfills",
    "restore": "backfills taken back",
    "keep": "walks over what is kept",
    "give_back": "tables given back",
}


def plan_lines(plan: dict[str, Any], statements: bool = False) -> list[str]:
    """The plan, a line a step: state, lock, table and its size; then who is in the way now, and a line a phase.

    With `statements` the SQL of each step that is to do; where it is not what the author wrote, as a difference.
    Hazards for the application stand under their phase, each once.
    """
    lines = []
    for phase in plan["phases"]:
        to_do = sum(step["state"] in ("pending", "rebuild") for step in phase["steps"])
        lines.append(
            f"{phase['name']}: {phase['title']} [{phase['state']}; {to_do} of {len(phase['steps'])} steps to do]"
        )
        written = ("", "")
        for step in phase["steps"]:
            lines.append(f"  {_MARK[step['state']]:9} {step['id']:60} {_locks(step)}".rstrip())
            if step["reason"]:
                lines.append(f"            {step['reason']}")
            if step["state"] in ("pending", "rebuild"):
                lines += [f"            accepted {a['hazard']}: {a['reason']}" for a in step["accepted"]]
                if statements:
                    lines += _difference(step, (step["where"], step["written"]) == written)
                    written = (step["where"], step["written"])
        lines += _hazards(phase["steps"])
    return lines + _blockers(plan.get("blockers", [])) + [_summary(phase) for phase in plan["phases"]]


def _difference(step: dict[str, Any], again: bool) -> list[str]:
    """What the author wrote (once for all the steps that it becomes) against what runs."""
    before = [] if again else step["written"].splitlines()
    return [f"          - {line}" for line in before] + [f"          + {line}" for line in step["sql"].splitlines()]


def _blockers(blockers: list[dict[str, Any]]) -> list[str]:
    lines = []
    for found in blockers:
        what = (
            "has an old snapshot, for which concurrent builds wait"
            if found["mode"] == "SNAPSHOT"
            else f"holds {found['mode']} on {shown(found['relation'])}"
        )
        who = f"pid {found['pid']}" if found["pid"] else "nobody's session"
        query = f": {found['query']}" if found["query"] else ""
        lines.append(
            f"in the way now: {who} (user {found['user']}, application '{found['application']}', {found['state']}, "
            f"for {found['seconds']} s) {what}{query}"
        )
    return lines


def _summary(phase: dict[str, Any]) -> str:
    """One line a phase: how much is to do, of what kind, the strongest lock, the largest table."""
    states = Counter(_MARK[step["state"]] for step in phase["steps"])
    to_do = [step for step in phase["steps"] if step["state"] in ("pending", "rebuild")]
    line = f"{phase['name']}: " + ", ".join(f"{count} {state}" for state, count in states.items())
    if not to_do:
        return line
    kinds = Counter(_WORK[step["mode"]] for step in to_do)
    line += " (" + ", ".join(f"{count} {kind}" for kind, count in kinds.items()) + ")"
    modes = [lock["mode"] for step in to_do for lock in step["locks"]]
    if modes:
        line += f"; strongest lock {max(modes, key=MODES.index)}"
    largest = max(to_do, key=lambda step: int(step["bytes"]))
    if largest["bytes"]:
        table = shown(largest["locks"][0]["relation"])
        line += f"; largest table {table}, {size(largest['bytes'])}, {largest['rows']:,} rows"
    return line


def _hazards(steps: list[dict[str, Any]]) -> list[str]:
    """Each hazard for the application once, with the steps that bring it."""
    found: dict[str, list[str]] = {}
    for step in steps:
        if step["state"] in ("pending", "rebuild"):
            for hazard in step["hazards"]:
                found.setdefault(hazard, []).append(step["name"])
    return [f"  application hazard: {hazard} ({len(names)} steps, first {names[0]})" for hazard, names in found.items()]


def _locks(step: dict[str, Any]) -> str:
    if not step["locks"]:
        return str(step["kind"])
    modes = ", ".join(f"{lock['mode']} on {shown(lock['relation'])}" for lock in step["locks"])
    return f"{step['kind']}; {modes}; {size(step['bytes'])}, {step['rows']:,} rows"


def size(number: int) -> str:
    """Bytes for people: 8 kB, 174 MB."""
    amount = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TB"


def server_message(message: str) -> str:
    """What the server said, without the module's frame, the context and the repeated statement."""
    message = message.split(", query list:")[0]
    text = re.sub(r"^.*?Cannot execute SQL .*?(?:None|\)|\}): ", "", message, count=1, flags=re.DOTALL)
    kept = []
    for line in text.splitlines():
        if re.match(r"^(CONTEXT|LINE \d+|PL/pgSQL|SQL statement|QUERY):?", line.strip()):
            break
        kept.append(line.strip().removeprefix("HINT:").strip())
    return " ".join(part if part.endswith((".", "?", "!", ":")) else f"{part}." for part in kept if part) or message


def failure(results: list[dict[str, Any]], segments: list[dict[str, Any]]) -> str:
    """'<step>: <what the server said>' of the first failed segment, '' if none failed.

    The step is the one that the failed CALL names, or the one whose top-level statement is quoted.
    """
    for number, result in enumerate(results):
        if result.get("failed"):
            message = str(result.get("msg", ""))
            return f"{_where(message, segments[number])}: {server_message(message)}"
    return ""


def failed_build(results: list[dict[str, Any]], segments: list[dict[str, Any]]) -> dict[str, Any]:
    """The step of the first failed segment that failed, if it is a concurrent build; {} otherwise."""
    for number, result in enumerate(results):
        if result.get("failed"):
            name = _where(str(result.get("msg", "")), segments[number])
            steps = [step for step in segments[number]["steps"] if step["id"] == name]
            return steps[0] if steps and steps[0]["kind"].startswith("CREATE INDEX CONCURRENTLY") else {}
    return {}


def _where(message: str, segment: dict[str, Any]) -> str:
    """The id of the step that a module's error message is about, or the segment's label."""
    failed = message.split(", query list:")[0]
    named = re.search(r"this_step\('((?:[^']|'')+)'\)", failed)
    quoted = [step["id"] for step in segment["steps"] if f"Cannot execute SQL '{step['sql']}'" in failed]
    return str(named[1] if named else [*quoted, segment["label"]][0])


def stop_advice(why: str, command: str) -> str:
    """What to do after a run of `command` that failed: start it again, unless somebody else is at work."""
    if "is over (taken over)" in why:
        return "What is committed stays and is in the ledger; look at status.yml before you start anything."
    if "another run holds this database" in why:
        return "Nothing was changed; status.yml shows how far that run is."
    return f"What is committed stays and is in the ledger; the same command goes on from there: {command}."


def violations(rows: Any) -> list[str]:
    """A sentence for each row that `check_queries` returned."""
    found = rows if isinstance(rows, list) else []
    return [
        f"{row['title']}: {row['object']}: found {row['found']}, expected {row['expected']} ({row['source']})"
        for row in found
    ]


def status_lines(plan: dict[str, Any]) -> list[str]:
    """One line a phase, then what is held, in conflict or drifted."""
    lines = []
    for phase in plan["phases"]:
        to_do = sum(step["state"] in ("pending", "rebuild") for step in phase["steps"])
        lines.append(
            f"{phase['name']}: {phase['state']}, {to_do} of {len(phase['steps'])} steps to do ({phase['title']})"
        )
        lines += [f"  held: {step['id']}: {step['reason']}" for step in phase["steps"] if step["state"] == "held"]
        lines += [f"  invalid: {step['id']}: {step['reason']}" for step in phase["steps"] if step["state"] == "rebuild"]
    return lines + [f"problem: {sentence}" for sentence in plan["stoppers"]]


def lint_lines(result: dict[str, Any]) -> list[str]:
    """The result for people: a line a finding, the safe form below what it takes the place of.

    What is said of several statements alike is said once.
    """
    lines = []
    said = Counter(finding["message"] for finding in result["findings"] if finding["level"] == "warning")
    for finding in result["findings"]:
        if finding["level"] == "warning":
            count = said.pop(finding["message"], 0)
            if count:
                more = f" (and {count - 1} more)" if count > 1 else ""
                lines.append(f"warning   {finding['where']}{more}: {finding['message']}")
            continue
        message = finding["message"] or " ".join(finding["sql"].split())[:100]
        lines.append(f"{finding['level']:9} {finding['where']}: {message}")
        lines += [f"            + {line}" for form in finding["becomes"] for line in form.splitlines()]
    return [*lines, f"{result['files']} files, {result['steps']} steps, {result['refused']} refused"]
