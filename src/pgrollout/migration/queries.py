"""The SQL that carries out a planned step or a check, as lists of statements for postgresql_query."""

from __future__ import annotations

import json
import re
from typing import Any

from pgrollout.migration.names import beside, identifier
from pgrollout.migration.text import literal

_CARRIED = (
    "id",
    "migration",
    "phase",
    "kind",
    "sql",
    "object",
    "locks",
    "undoes",
    "restores",
    "backfill",
    "accepted",
    "keeps",
    "gives_back",
)


# Up to this size of its table a concurrent build takes a second or two, which is not worth a session of its own.
SMALL_TABLE_BYTES = 64 * 1024**2


def segments(steps: list[dict[str, Any]], record: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Groups planned steps into the calls that carry them out: [{label, steps, record}].

    record: {name, phase, checksum} of the migration that is applied once the last of the steps is; the last call writes
    it, one without steps where there are none.

    A call of a module costs a third of a second, short DDL some milliseconds; so neighbours of one migration that are
    over in no time share a session (each still has its own transactions, locks and ledger row). A backfill and a build
    on a large table have a session each.
    """
    groups: list[list[dict[str, Any]]] = []
    for step in steps:
        last = groups[-1][-1] if groups else None
        if last and last["migration"] == step["migration"] and _is_short(last) and _is_short(step):
            groups[-1].append(step)
        else:
            groups.append([step])
    found: list[dict[str, Any]] = [{"label": _label(group), "steps": group, "record": None} for group in groups]
    if record and not found:
        found = [{"label": f"{record['name']} (record)", "steps": []}]
    if record:
        found[-1]["record"] = record
    return found


def _is_short(step: dict[str, Any]) -> bool:
    if step["mode"] == "concurrent":
        return bool(step["kind"].startswith("DROP") or step["bytes"] <= SMALL_TABLE_BYTES)
    return bool(step["mode"] == "ddl")


def _label(group: list[dict[str, Any]]) -> str:
    first = f"{group[0]['id']} ({group[0]['kind']})"
    return first if len(group) == 1 else f"{first} to {group[-1]['name']} ({group[-1]['kind']}), {len(group)} steps"


def segment_queries(segment: dict[str, Any], run_id: int, settings: dict[str, Any]) -> list[str]:
    """The statements of one of `segments`, for one session in autocommit; they stop at the first that fails.

    Step and settings travel in session settings, so that an error quotes a short CALL and not a page of JSON.
    """
    run, steps, record = int(run_id), segment["steps"], segment["record"]
    queries = [
        f"CALL pgrollout.enter({run}, {literal(_ledger_id(steps[0]) if steps else record['name'])})",
        f"SELECT set_config('pgrollout.settings', {literal(json.dumps(settings))}, false)",
    ]
    for step in steps:
        step_id = _ledger_id(step)
        carried = {key: step[key] for key in _CARRIED if key in step} | {"id": step_id}
        if step["state"] == "rebuild":
            carried["leftover"] = step.get("reason", "")
        queries.append(f"SELECT set_config('pgrollout.step', {literal(json.dumps(carried))}, false)")
        this = f"pgrollout.this_step({literal(step_id)})"
        if step["mode"] == "ddl":
            queries.append(f"CALL pgrollout.run_ddl({run}, {this})")
            continue
        if step["mode"] in ("keep", "give_back"):
            routine = "backfill" if step["mode"] == "keep" else "give_table_back"
            queries.append(f"CALL pgrollout.{routine}({run}, {this}{', 1' if step['mode'] == 'keep' else ''})")
            continue
        if step["mode"] in ("data", "restore"):
            queries += _data_queries(step, run, this)
            continue
        queries += [
            f"CALL pgrollout.begin_step({run}, {this})",
            *_drops_of_leftovers(step),
            step["sql"],
            f"SELECT pgrollout.end_step({run}, {this})",
        ]
    if record:
        values = ", ".join(literal(record[key]) for key in ("name", "phase", "checksum"))
        queries.append(f"SELECT pgrollout.record_migration({run}, {values})")
    return queries


def _drops_of_leftovers(step: dict[str, Any]) -> list[str]:
    """What a command that was cut off left goes at top level too: it takes as long as it takes, without a timeout."""
    if step["state"] != "rebuild":
        return []
    return [f"DROP INDEX CONCURRENTLY {name}" for name in step.get("leftovers") or [_own_index(step)]]


def leftover_queries(step: dict[str, Any], run_id: int, settings: dict[str, Any]) -> list[str]:
    """Drops what a failed build left behind, unless somebody uses the table: then the next run replaces it."""
    run, hasty = int(run_id), settings | {"give_up_s": 5}
    locks = json.dumps([lock | {"mode": "ACCESS EXCLUSIVE"} for lock in step["locks"]])
    return [
        f"CALL pgrollout.enter({run}, {literal(step['id'])})",
        f"SELECT set_config('pgrollout.settings', {literal(json.dumps(hasty))}, false)",
        f"CALL pgrollout.await_locks({run}, {literal(json.dumps({'id': step['id']}))}, {literal(locks)})",
        f"DROP INDEX CONCURRENTLY {_own_index(step)}",
    ]


def _own_index(step: dict[str, Any]) -> str:
    return beside(step["object"]["table"], step["object"]["name"])


# A backfill, and the way back from it, leaves a dead row for each that it changes. On a larger table what is dead is
# vacuumed away before each of so many parts, so that the table grows by that part and not to twice its size.
VACUUM_PARTS = 5
VACUUM_BYTES = 8 * 1024**2
# TRUNCATE would take ACCESS EXCLUSIVE to give empty pages at the table's end back, which the next part fills again. No
# parallel workers: the cores are the application's. Whoever holds its lock (an autovacuum against wraparound may for
# hours) is not waited for.
VACUUM = "VACUUM (TRUNCATE false, SKIP_LOCKED, PARALLEL 0)"


def _data_queries(step: dict[str, Any], run: int, this: str) -> list[str]:
    parts = VACUUM_PARTS if step["bytes"] > VACUUM_BYTES else 1
    if step["mode"] == "data":  # until this part of all rows is visited
        calls = [f"CALL pgrollout.backfill({run}, {this}, {part / parts:g})" for part in range(1, parts + 1)]
    else:  # this part of the changes that are left
        calls = [f"CALL pgrollout.restore({run}, {this}, {1 / (parts - part):g})" for part in range(parts)]
    vacuum = f"{VACUUM} {step['backfill']['table']}"
    return calls if parts == 1 else [query for call in calls for query in (vacuum, call)]


def immediate_queries(migration: dict[str, Any], search_path: str, lock_timeout_ms: int) -> list[str]:
    """The emergency switch, for one transaction: no run lock, no ledger, a bounded wait for a locked row."""
    return [
        f"SELECT set_config('search_path', {literal(identifier(search_path))}, true), "
        f"set_config('lock_timeout', '{int(lock_timeout_ms)}ms', true), "
        "set_config('application_name', 'pgrollout/immediate', true)",
        *[step["sql"] for step in migration["apply"]],
    ]


def hold_queries(migration: dict[str, Any], operator: str, stop: bool = True) -> list[str]:
    """Marks `holds` of a migration as taken away and, with `stop`, asks what runs to stop.

    Does nothing where there is no ledger.
    """
    steps = [
        {key: step[key] for key in ("migration", "phase", "kind", "sql")} | {"id": _made(step)}
        for step in migration["holds"]
    ]
    why = f"taken away by {operator}"
    orders = f"PERFORM pgrollout.hold({literal(json.dumps(steps))}::jsonb, {literal(why)});"
    for step in migration.get("apply", []):
        if step["kind"] == "CREATE TABLE":
            orders += f" PERFORM pgrollout.accept_table({literal(step['object']['name'])}, {literal(step['name'])});"
    if stop:
        orders += (
            f" UPDATE pgrollout.control SET request = 'stop', who = {literal(operator)}, "
            "why = 'rollback.yml --tags immediate', at = clock_timestamp();"
        )
    return [
        "DO $pgrollout_hold$ BEGIN IF to_regclass('pgrollout.step') IS NOT NULL THEN "
        f"{orders} END IF; END $pgrollout_hold$"
    ]


def _made(step: dict[str, Any]) -> str:
    """The apply step that a held step stands for: a rollback step holds what it undoes."""
    return str(step["undoes"][0]) if step.get("undoes") else str(step["id"])


def _ledger_id(step: dict[str, Any]) -> str:
    return str(step["id"]) + (" (rollback)" if step.get("rollback") else "")


def check_queries(checks: list[dict[str, Any]], search_path: str) -> list[str]:
    """One transaction, always rolled back, that runs `checks`; its last statement returns the violations.

    Rows: (title, object, found, expected, source), all text. A check that must be refused runs in an inner block.
    """
    selects = [
        f"SELECT {literal(check['title'])}, q.object::text, q.found::text, q.expected::text, {literal(check['where'])} "
        f"FROM ({check['sql']}) AS q (object, found, expected)"
        for check in checks
        if not check["refuses"]
    ]
    refusals = [_refusal(check) for check in checks if check["refuses"]]
    found = (
        "SELECT r.title, r.object, r.found, r.expected, r.source "
        "FROM jsonb_to_recordset(current_setting('pgrollout.accepted')::jsonb) "
        "AS r (title text, object text, found text, expected text, source text)"
    )
    return [
        f"SELECT set_config('search_path', {literal(identifier(search_path))}, true), "
        "set_config('lock_timeout', '2s', true), "
        "set_config('application_name', 'pgrollout/check', true), set_config('pgrollout.accepted', '[]', true)",
        *refusals,
        "SELECT * FROM ("
        + "\nUNION ALL ".join([*selects, found])
        + ") AS violations (title, object, found, expected, source)",
    ]


def _refusal(check: dict[str, Any]) -> str:
    condition = check["refuses"] if re.fullmatch(r"[a-z_]+", check["refuses"]) else "check_violation"
    row = (
        f"jsonb_build_object('title', {literal(check['title'])}, "
        f"'object', {literal(' '.join(check['sql'].split())[:120])}, "
        f"'found', verdict, 'expected', {literal('refused with ' + condition)}, 'source', {literal(check['where'])})"
    )
    return f"""DO $pgrollout_check$
DECLARE
    verdict text;
BEGIN
    BEGIN
        EXECUTE {literal(check["sql"])};
        RAISE EXCEPTION USING ERRCODE = 'PGR01';
    EXCEPTION
        WHEN {condition} THEN verdict := NULL;
        WHEN SQLSTATE 'PGR01' THEN verdict := 'accepted';
        WHEN OTHERS THEN verdict := SQLERRM;
    END;
    IF verdict IS NOT NULL THEN
        PERFORM set_config('pgrollout.accepted', (current_setting('pgrollout.accepted')::jsonb || {row})::text, true);
    END IF;
END
$pgrollout_check$"""
