"""The plan: which steps are satisfied, pending, in conflict or refused, given the SQL and the facts of one database.

States of a step: satisfied | pending | rebuild (what a command that was cut off left is replaced or completed) |
held (an operator took it away) | off (its switch is off) | conflict | unproven (something of that name is there and
cannot be compared) | refused.  For a rollback also: kept (stood there before the rollout).
"""

from __future__ import annotations

import difflib
from typing import Any

from pgrollout.migration.hindrances import hindrance
from pgrollout.migration.keep import giving_back, keeping
from pgrollout.migration.leftovers import leftover
from pgrollout.migration.locks import conflict
from pgrollout.migration.names import OF_NO_TABLE, QUALIFIED, identifier, shown
from pgrollout.migration.partitions import build_at_once, build_in_parts, drop_as_a_whole

TO_DO = ("pending", "rebuild")
STOPPERS = ("conflict", "unproven", "refused")


def plan_apply(
    rollout: dict[str, Any],
    facts: dict[str, Any],
    phases: list[str],
    switches: dict[str, bool],
    reapply: list[str],
    accept_drift: list[str],
    restore_kept: bool = True,
) -> dict[str, Any]:
    """Plans the way forward through `phases` (all of them where the list is empty).

    facts: {server, relation, step, ledger}, as facts.sql returns them.  switches: values of the rollout's `Only when`.
    restore_kept: give back what an earlier rollback kept.
    Returns {phases: [{name, title, state, steps, unrecorded}], pending, unfinished, stoppers: [sentence], states,
    applied: [migration] (of all phases, as a whole), gates_failed (gates that failed when they were last measured),
    blockers: [{pid, relation, mode, user, application, state, seconds, query}]} (who is in the way right now).
    unfinished: a run died after its last step; the record of a migration (unrecorded: [name]) or its own is missing;
    or a gate failed.
    """
    held_back = [f"-e reapply={name}: no step of that name is held." for name in reapply if not _is_held(facts, name)]
    decided_of = _decide_all(rollout, facts, switches, reapply)
    planned = []
    stoppers: list[str] = held_back
    drift: list[str] = []
    state_of: dict[str, str] = {}
    applied: list[str] = []
    ledger = facts.get("ledger", {})
    for phase in rollout["phases"]:
        steps = []
        unrecorded = []
        for migration in phase["migrations"]:
            decided = [part for step in migration["apply"] for part in decided_of[step["id"]]]
            decided = giving_back(decided, facts, restore_kept)
            steps += decided
            drift += _drift(migration, facts, accept_drift)
            if _is_unrecorded(migration, decided, facts):
                unrecorded.append(migration["name"])
            if _is_applied(migration, decided, ledger):
                applied.append(migration["name"])
        state_of[phase["name"]] = _phase_state(steps)
        if phases and phase["name"] not in phases:
            continue
        missing = [need for need in phase["needs"] if state_of[need] != "applied" and need not in (phases or state_of)]
        if missing and any(step["state"] in TO_DO for step in steps):
            stoppers.append(
                f"{phase['name']} needs {' and '.join(missing)} applied first, and the database says "
                f"{', '.join(f'{need} is {state_of[need]}' for need in missing)}; run --tags {missing[0]} before it."
            )
        stoppers += [f"{step['id']} ({step['where']}): {step['reason']}" for step in steps if step["state"] in STOPPERS]
        planned.append(
            {
                "name": phase["name"],
                "title": phase["title"],
                "state": state_of[phase["name"]],
                "steps": steps,
                "unrecorded": unrecorded,
            }
        )
    return {
        "phases": planned,
        "pending": sum(step["state"] in TO_DO for phase in planned for step in phase["steps"]),
        "unfinished": bool(
            ledger.get("open") or ledger.get("gates_failed") or any(phase["unrecorded"] for phase in planned)
        ),
        "stoppers": stoppers + drift,
        "states": state_of,
        "applied": applied,
        "gates_failed": ledger.get("gates_failed", 0),
        "blockers": _blockers(planned, facts),
    }


def plan_rollback(
    rollout: dict[str, Any], facts: dict[str, Any], phases: list[str], keep: bool = True
) -> dict[str, Any]:
    """Plans the way back through `phases`, last one first. Only what the ledger says this rollout made is removed.

    Returns {phases: [{name, title, state, steps}], pending, stoppers, loses: [sentence]}; the steps are in the order in
    which they run. `loses` says what of the application's data goes away with a dropped column or table; with `keep`
    it is kept in the ledger.
    """
    made = {_key(step["object"]): step for step in apply_steps(rollout) if step["object"] and _stands(facts, step)}
    filled = {step["id"]: step for step in apply_steps(rollout) if step["mode"] == "data"}
    planned = []
    stoppers: list[str] = []
    loses: list[str] = []
    for phase in reversed(rollout["phases"]):
        if phase["name"] not in phases:
            continue
        after = [later["name"] for later in rollout["phases"] if phase["name"] in _needs(rollout, later["name"])]
        standing = [name for name in after if name not in phases and _touched(rollout, facts, name)]
        if standing:
            stoppers.append(
                f"{phase['name']} cannot be rolled back while {' and '.join(standing)} "
                f"{'is' if len(standing) == 1 else 'are'} applied; "
                "roll that back first."
            )
        steps: list[dict[str, Any]] = []
        for migration in reversed(phase["migrations"]):
            mine = []
            touched = any(_stands(facts, step) for step in migration["apply"])
            for step in migration["rollback"]:
                decided = _decide_rollback(step, facts, made, filled) if touched else _untouched(step)
                if decided["state"] in TO_DO and (found := hindrance(decided, facts)):
                    decided |= {"state": "refused", "reason": found}
                mine.append(decided)
                if decided["state"] == "pending" and step["kind"] in ("DROP COLUMN", "DROP TABLE"):
                    loses.append(f"{step['kind']} {label_of(step['object'])} ({decided['rows']:,} rows)")
            steps += keeping(mine, facts, keep)
        stoppers += [f"{step['id']} ({step['where']}): {step['reason']}" for step in steps if step["state"] in STOPPERS]
        state = "applied" if _touched(rollout, facts, phase["name"]) else "not applied"
        planned.append({"name": phase["name"], "title": phase["title"], "state": state, "steps": steps})
    return {
        "phases": planned,
        "pending": sum(step["state"] in TO_DO for phase in planned for step in phase["steps"]),
        "stoppers": stoppers,
        "loses": loses,
    }


def apply_steps(rollout: dict[str, Any]) -> list[dict[str, Any]]:
    """Every apply step of the rollout, in order."""
    return [step for phase in rollout["phases"] for migration in phase["migrations"] for step in migration["apply"]]


def materialized_views(rollout: dict[str, Any]) -> list[str]:
    """Names of the materialized views that the rollout makes."""
    return [step["object"]["name"] for step in apply_steps(rollout) if step["kind"] == "CREATE MATERIALIZED VIEW"]


def rollout_indexes(plan: dict[str, Any]) -> list[dict[str, str]]:
    """[{table, name}] of the indexes that the rollout makes and that stand."""
    return [
        {"table": step["object"]["table"], "name": step["object"]["name"]}
        for phase in plan["phases"]
        for step in phase["steps"]
        if step["kind"].startswith("CREATE") and step["object"] and step["object"]["kind"] == "index"
        if step["state"] == "satisfied" and "scaffold" not in step
    ]


def rollout_fills(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """[{id, phase, table, columns}] of the backfills of the plan's phases, whether done or not."""
    wanted = ("table", "columns")
    return [
        {"id": step["id"], "phase": phase["name"], **{name: step["backfill"][name] for name in wanted}}
        for phase in plan["phases"]
        for step in phase["steps"]
        if step["mode"] == "data"
    ]


def rollback_steps(rollout: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rollback step of the rollout, marked so that its facts have a key of their own."""
    return [
        step | {"rollback": True}
        for phase in rollout["phases"]
        for migration in phase["migrations"]
        for step in migration["rollback"]
    ]


def _decide_all(
    rollout: dict[str, Any], facts: dict[str, Any], switches: dict[str, bool], reapply: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """Every apply step by its id, with its state and reason; several where its table's partitions have a step each."""
    decided = []
    for phase in rollout["phases"]:
        for migration in phase["migrations"]:
            steps = [_decide(step, facts, switches, reapply) for step in migration["apply"]]
            decided += _scaffolds(steps, migration["apply"])
    _successions(decided, facts)
    build_at_once(decided, facts.get("relation", {}))
    for step in decided:
        if step["state"] in TO_DO and (found := hindrance(step, facts)):
            step |= {"state": "refused", "reason": found}
    return {step["id"]: build_in_parts(step) for step in decided}


def _decide(
    step: dict[str, Any], facts: dict[str, Any], switches: dict[str, bool], reapply: list[str]
) -> dict[str, Any]:
    fact = facts.get("step", {}).get(step["id"], {})
    ledger = _ledger(facts, step)
    answer = {**step, "fact": fact, "state": "pending", "reason": "", **_size(step, fact, facts)}
    answer |= drop_as_a_whole(answer, facts.get("relation", {}))
    if step["refused"]:
        return answer | {"state": "refused", "reason": step["refused"]}
    if step["only_when"] and not switches.get(step["only_when"], False):
        return answer | {"state": "off", "reason": f"{step['only_when']} is false"}
    if ledger.get("state") == "held" and step["id"] not in reapply:
        return answer | {"state": "held", "reason": f"{ledger['message']}; -e reapply={step['id']} brings it back"}
    if fact.get("error"):
        return answer | {"state": "conflict", "reason": f"cannot be compared with the database: {fact['error']}"}
    if step["truth"] == "query":
        return answer | ({"state": "satisfied"} if fact.get("done") else leftover(step, facts))
    if step["truth"] in ("ledger", "cursor"):
        return answer | ({"state": "satisfied"} if ledger.get("state") == "done" else leftover(step, facts))
    return answer | _compare(step, fact)


def _compare(step: dict[str, Any], fact: dict[str, Any]) -> dict[str, Any]:
    """State and reason of a step whose truth is the catalog."""
    kind, actual, wanted = step["object"]["kind"], fact.get("actual"), fact.get("wanted")
    if step["kind"].startswith("DROP"):
        gone = (
            actual is None
            or (kind == "not_null" and not actual["not_null"])
            or (kind == "default" and not actual["default"])
        )
        return {"state": "satisfied" if gone else "pending"}
    if actual is None:
        return {"state": "pending"}
    if kind == "validation":
        return {"state": "satisfied" if actual["valid"] else "pending"}
    if kind == "not_null":
        return {"state": "satisfied" if actual["not_null"] else "pending"}
    if kind == "comment":
        return {"state": "satisfied" if actual["text"] == step["object"]["text"] else "pending"}
    if kind in ("schema", "extension"):
        return {"state": "satisfied"}
    if fact.get("unproven"):
        reason = f"{label_of(step['object'])} is there and cannot be compared with ours: {fact['unproven']}"
        return {"state": "unproven", "reason": reason}
    if kind == "default":
        return {"state": "satisfied" if actual["default"] == (wanted or {}).get("default") else "pending"}
    if kind == "column_type":
        return {"state": "satisfied" if actual["type"] == (wanted or {}).get("type") else "pending"}
    if not step["probe"] and kind != "table":  # its name is all that can be compared
        return {"state": "satisfied"}
    if kind == "type":
        later = step.get("later_labels", [])
        actual = actual | {"labels": [label for label in actual["labels"] if label not in later]}
    differences = _differences(kind, actual, wanted or {}, step.get("overridden", {}))
    if differences:
        return {
            "state": "conflict",
            "reason": f"{label_of(step['object'])} exists with another definition; "
            + "; ".join(differences)
            + ". Rename or drop the one that is there, or correct the migration"
            + (", or say '-- Accept: replace because <reason>' above it." if step.get("replace") else "."),
        }
    if kind == "index" and actual["building"]:
        if str(actual.get("builder")).startswith("pgrollout/"):  # it outlived its playbook; the claim waits for it
            reason = f"the session with pid {actual['building']} of an earlier run still builds it and is waited for"
            return {"state": "rebuild", "reason": reason}
        return {
            "state": "conflict",
            "reason": f"it is being built right now by the session with pid {actual['building']}; wait for it.",
        }
    if kind == "index" and not actual["valid"] and not actual.get("partitioned"):  # that waits for its partitions
        return {"state": "rebuild", "reason": "an INVALID index of this definition was left by a build that failed"}
    return {"state": "satisfied"}


def _differences(
    kind: str, actual: dict[str, Any], wanted: dict[str, Any], overridden: dict[str, list[str]]
) -> list[str]:
    """What differs, each as 'found …, expected …'; [] where what is there is what is asked for.

    overridden: {column: [not_null | default | column_type]} that a later step of the rollout changes, so no difference.
    """
    if kind == "column":
        excused = ["type" if aspect == "column_type" else aspect for found in overridden.values() for aspect in found]
        names = [name for name in ("type", "not_null", "default", "generated") if name not in excused]
        pairs = [(name, actual[name], wanted.get(name)) for name in names]
        pairs += [
            (f"constraint {n}", actual["constraints"].get(n), d) for n, d in wanted.get("constraints", {}).items()
        ]
    elif kind == "table":
        columns = wanted.get("columns", {}).items()
        pairs = [(f"column {n}", actual["columns"].get(n), d) for n, d in columns if n not in overridden]
        pairs += [
            (f"constraint {n}", actual["constraints"].get(n), d) for n, d in wanted.get("constraints", {}).items()
        ]
    else:
        pairs = [(name, actual.get(name), wanted.get(name)) for name in ("definition", "labels")]
    return [f"{name}: found [{found}], expected [{expected}]" for name, found, expected in pairs if found != expected]


def _scaffolds(decided: list[dict[str, Any]], steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Settles what a migration makes only to drop it again (the CHECK that lets SET NOT NULL skip its scan).

    Once such a helper is gone, nothing in the catalog tells 'not yet made' from 'made, used and dropped'; what was done
    with its help does: the first step after its last validation.
    """
    for index, step in enumerate(steps):
        later = [
            (i, other)
            for i, other in enumerate(steps)
            if i > index
            and other["kind"].startswith("DROP")
            and step["object"]
            and _key(other["object"]) == _key(step["object"])
        ]
        if not later or step["kind"].startswith("DROP") or step["object"]["kind"] not in ("constraint", "index"):
            continue
        dropped, _ = later[0]
        mine = [i for i in range(index, dropped + 1) if _same_name(steps[i], step)]
        between = [i for i in range(index, dropped) if i not in mine]
        if decided[index]["fact"].get("actual") is None and between:
            used = all(decided[i]["state"] == "satisfied" for i in between)
            for i in mine:
                decided[i] |= {"state": "satisfied" if used else "pending", "scaffold": True}
    return decided


def _successions(decided: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Settles what is made, replaced or dropped by more than one step: where the last is done, so are those before."""
    by_object: dict[str, list[dict[str, Any]]] = {}
    for step in decided:
        if "scaffold" in step:
            continue  # settled by what it helped with: the ledger may know of a run before the help was needed again
        if step["object"] and step["truth"] == "catalog" and step["object"]["kind"] not in _ASPECTS:
            by_object.setdefault(_key(step["object"]), []).append(step)
    for steps in by_object.values():
        for index, step in enumerate(steps):
            earlier, later = steps[:index], steps[index + 1 :]
            drops = step["kind"].startswith("DROP")
            made_anew = any(s["state"] == "satisfied" and not s["kind"].startswith("DROP") for s in later)
            dropped = any(s["kind"].startswith("DROP") and _stands(facts, s) for s in later)
            if (drops and made_anew) or (step["state"] == "conflict" and made_anew) or (not drops and dropped):
                if step["state"] in ("pending", "conflict"):
                    step |= {"state": "satisfied", "reason": ""}
            elif drops and any(s["state"] == "pending" and not s["kind"].startswith("DROP") for s in earlier):
                step |= {"state": "pending"}  # not there to be dropped because it is not yet made
            elif step["state"] == "conflict" and _gives_way(step, earlier):
                step |= {"state": "pending", "reason": "takes the place of another definition"}


# What a step says of an object that another one made; several such steps follow each other as a matter of course.
_ASPECTS = ("not_null", "default", "validation", "comment", "column_type")


def _gives_way(step: dict[str, Any], earlier: list[dict[str, Any]]) -> bool:
    """Whether what stands there with another definition is dropped first, or may be replaced."""
    if any(other["kind"].startswith("DROP") and other["state"] == "pending" for other in earlier):
        return True
    if not step.get("replace"):
        return False
    return bool(earlier) or any(hazard == "replace" for hazard, _ in step["accepts"])


def _same_name(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["object"]) and (one["object"]["table"], one["object"]["name"]) == (
        other["object"]["table"],
        other["object"]["name"],
    )


def _untouched(step: dict[str, Any]) -> dict[str, Any]:
    """A rollback step of a migration of which the ledger knows nothing."""
    reason = step["refused"] or "its migration is not applied"
    return {**step, "rollback": True, "state": "satisfied", "reason": reason, "rows": 0, "bytes": 0}


def _decide_rollback(
    step: dict[str, Any], facts: dict[str, Any], made: dict[str, Any], filled: dict[str, Any]
) -> dict[str, Any]:
    fact = facts.get("step", {}).get(step["id"] + " (rollback)", {})
    answer = {**step, "rollback": True, "fact": fact, "state": "pending", "reason": "", **_size(step, fact, facts)}
    answer |= drop_as_a_whole(answer, facts.get("relation", {}))
    if step["refused"]:
        return answer | {"state": "refused", "reason": step["refused"]}
    if step["mode"] == "restore":
        if step["restores"] not in filled:
            return answer | {
                "state": "refused",
                "reason": f"'-- Restore:' names {step['restores']}, which is no backfill of apply.sql",
            }
        answer["backfill"] = filled[step["restores"]]["backfill"]
        ledger = facts.get("ledger", {}).get("steps", {}).get(step["restores"], {})
        touched = ledger.get("state") in ("started", "done", "failed", "restoring")
        return answer | (
            {"undoes": [step["restores"]]} if touched else {"state": "satisfied", "reason": "nothing was filled"}
        )
    if step["truth"] == "query":
        return answer | ({"state": "satisfied"} if fact.get("done") else leftover(step, facts))
    if step["truth"] == "ledger":
        return answer | {"state": "refused", "reason": f"{step['kind']} in a rollback needs '-- Done when: SELECT …'"}
    outcome = _compare(step, fact)
    if outcome["state"] != "pending":
        return answer | outcome
    if _key(step["object"]) not in made:
        return answer | {"state": "kept", "reason": "it stood here before the rollout"}
    undone = made[_key(step["object"])]["id"]
    of_partitions = [name for name in facts.get("ledger", {}).get("steps", {}) if name.startswith(f"{undone}/")]
    return answer | {"undoes": [undone, *of_partitions]}


def _size(step: dict[str, Any], fact: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Rows and bytes of the step's table; the locks, completed with what only the catalog knows."""
    relations = facts.get("relation", {})
    locks = list(step["locks"])
    actual = fact.get("actual")
    if step["kind"].startswith(("DROP INDEX", "DROP STATISTICS")) and actual:
        locks = [{"relation": actual["table"], "mode": "SHARE UPDATE EXCLUSIVE"}]
    if step["kind"] == "DROP TABLE" and locks:
        others = relations.get(locks[0]["relation"], {}).get("references", [])
        locks += [{"relation": name, "mode": "ACCESS EXCLUSIVE"} for name in others]
    if step["kind"] in ("DROP COLUMN", "DROP CONSTRAINT") and actual:
        others = [name for name in actual.get("references", []) if name != locks[0]["relation"]]
        locks += [{"relation": name, "mode": "ACCESS EXCLUSIVE"} for name in others]
    locks = _with_kin(step, locks, relations)
    table = locks[0]["relation"] if locks else ""
    known = relations.get(table, {})
    return {"locks": locks, "rows": known.get("rows", 0), "bytes": known.get("bytes", 0)}


# Changes that reach the partitions and heirs of their table too.
_RECURSES = (
    "ADD COLUMN",
    "DROP COLUMN",
    "ALTER COLUMN TYPE",
    "SET DEFAULT",
    "DROP DEFAULT",
    "SET NOT NULL",
    "DROP NOT NULL",
    "ADD CONSTRAINT",
    "DROP CONSTRAINT",
    "VALIDATE CONSTRAINT",
    "RENAME COLUMN",
    "SET STATISTICS",
    "SET STORAGE",
    "SET COMPRESSION",
    "CREATE TRIGGER",
    "DROP TRIGGER",
    "DROP TABLE",
    "TRUNCATE",
)


def _with_kin(step: dict[str, Any], locks: list[dict[str, str]], relations: dict[str, Any]) -> list[dict[str, str]]:
    """Locks with those on partitions and heirs, and on the parent of a partition that is dropped."""
    more = []
    if step["kind"].startswith(_RECURSES) and " only " not in f" {step['sql'].lower()} ":
        for entry in locks:
            children = relations.get(entry["relation"], {}).get("children", [])
            more += [{"relation": child, "mode": entry["mode"]} for child in children]
    if step["kind"] == "DROP TABLE" and locks:
        parents = relations.get(locks[0]["relation"], {}).get("parents", [])
        more += [{"relation": parent, "mode": "ACCESS EXCLUSIVE"} for parent in parents]
    return locks + more


def _blockers(planned: list[dict[str, Any]], facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Of those who hold locks or snapshots now, the ones that a step which is to do would have to wait for."""
    to_do = [step for phase in planned for step in phase["steps"] if step["state"] in TO_DO]
    wanted = {(lock["relation"], lock["mode"]) for step in to_do for lock in step["locks"]}
    waits = any(step["mode"] == "concurrent" for step in to_do)
    return [
        found
        for found in facts.get("blocker", [])
        if (found["mode"] == "SNAPSHOT" and waits)
        or any(relation == found["relation"] and conflict(mode, found["mode"]) for relation, mode in wanted)
        # A concurrent build or drop waits for whoever uses its table, whatever the locks say.
        or any(
            step["mode"] == "concurrent" and lock["relation"] == found["relation"] and found["mode"] != "ACCESS SHARE"
            for step in to_do
            for lock in step["locks"]
        )
    ]


def _drift(migration: dict[str, Any], facts: dict[str, Any], accepted: list[str]) -> list[str]:
    recorded = facts.get("ledger", {}).get("migrations", {}).get(migration["name"])
    if not recorded or recorded["checksum"] == migration["checksum"] or migration["name"] in accepted:
        return []
    return [
        f"{migration['path']}/apply.sql was changed after it was applied on {recorded['applied_at'][:19]} "
        f"(applied {recorded['checksum'][:12]}, now {migration['checksum'][:12]}); put the applied text back and write "
        f"a new migration, or say -e accept_drift={migration['name']}."
    ]


def _phase_state(steps: list[dict[str, Any]]) -> str:
    states = {step["state"] for step in steps}
    if not states & {*TO_DO, *STOPPERS}:
        return "applied"
    return "partly applied" if "satisfied" in states else "not applied"


def _ledger(facts: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
    """The ledger's row of a step that this rollout has made or taken away, {} of one that it has not touched."""
    row = facts.get("ledger", {}).get("steps", {}).get(step["id"], {})
    return row if row.get("state") != "rolled_back" else {}


def _stands(facts: dict[str, Any], step: dict[str, Any]) -> bool:
    """Whether the ledger says that this rollout made the step's object and nobody has taken it away since."""
    return bool(_ledger(facts, step).get("state", "held") != "held")


def _is_unrecorded(migration: dict[str, Any], decided: list[dict[str, Any]], facts: dict[str, Any]) -> bool:
    """Whether every step is done, this rollout did some of them, and the ledger has no record of the whole."""
    done = all(step["state"] in ("satisfied", "held") for step in decided)
    ours = any(_stands(facts, step) for step in migration["apply"])
    return done and ours and migration["name"] not in facts.get("ledger", {}).get("migrations", {})


def _is_applied(migration: dict[str, Any], decided: list[dict[str, Any]], ledger: dict[str, Any]) -> bool:
    """Whether it stands as a whole, or was once applied as a whole and nobody has taken a part away on purpose."""
    states = {step["state"] for step in decided}
    if states & {"held", "off"}:
        return False
    return states == {"satisfied"} or migration["name"] in ledger.get("migrations", {})


def _is_held(facts: dict[str, Any], step_id: str) -> bool:
    return bool(facts.get("ledger", {}).get("steps", {}).get(step_id, {}).get("state") == "held")


def _touched(rollout: dict[str, Any], facts: dict[str, Any], phase: str) -> bool:
    """Whether the ledger has a step of that phase that was made and not rolled back."""
    return any(_stands(facts, step) for step in apply_steps(rollout) if step["phase"] == phase)


def _needs(rollout: dict[str, Any], phase: str) -> set[str]:
    """The phases that `phase` needs, directly or through another."""
    direct = {entry["name"]: entry["needs"] for entry in rollout["phases"]}
    found: set[str] = set()
    queue = list(direct[phase])
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue += direct[name]
    return found


def _key(target: dict[str, Any]) -> str:
    """One text for an object; an index is known by its name alone, because DROP INDEX does not name the table."""
    table = "" if target["kind"] in OF_NO_TABLE else target["table"]
    return f"{target['kind']}|{table}|{target['name']}"


def label_of(target: dict[str, Any]) -> str:
    if target["kind"] in ("column", "constraint", "trigger", "default", "not_null"):
        return f"{target['kind'].replace('_', ' ')} {shown(target['table'])}.{identifier(target['name'])}"
    return f"{target['kind']} {shown(target['name']) if target['kind'] in QUALIFIED else identifier(target['name'])}"


def unknown_names(given: list[str], known: list[str], what: str) -> list[str]:
    """A sentence for each of `given` that is not one of `known`, with the nearest name that is."""
    sentences = []
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            sentences.append(f"unknown {what} '{name}'{hint or '.'} Known: {', '.join(known)}.")
    return sentences
