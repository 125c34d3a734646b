"""States of steps from facts made by hand: forward, back, and the sentences for which a plan is not carried out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgrollout.migration import plan as planner
from pgrollout.migration.hindrances import narrows
from pgrollout.migration.validation import checks, sentences
from tests.support.rollouts import rollout_of

INDEX = "CREATE INDEX CONCURRENTLY i ON a (b);"
DEFINITION = "CREATE INDEX i ON a USING btree (b)"


def there(valid: bool = True, definition: str = DEFINITION, building: int | None = None) -> dict[str, Any]:
    """The facts of an index."""
    return {
        "actual": {"definition": definition, "valid": valid, "building": building, "table": "public.a"},
        "wanted": {"definition": DEFINITION},
    }


def made(*ids: str, state: str = "done", message: str = "") -> dict[str, Any]:
    """The ledger's rows of steps."""
    return {"steps": {step: {"state": state, "message": message} for step in ids}, "migrations": {}}


def forward(rollout: dict[str, Any], facts: dict[str, Any], *phases: str, **given: Any) -> dict[str, Any]:
    switches, reapply, drift = given.get("switches", {}), given.get("reapply", []), given.get("accept_drift", [])
    return planner.plan_apply(rollout, facts, list(phases), switches, reapply, drift)


def states(plan: dict[str, Any]) -> list[str]:
    return [step["state"] for phase in plan["phases"] for step in phase["steps"]]


def reason(plan: dict[str, Any]) -> str:
    return str(plan["phases"][0]["steps"][0]["reason"])


@pytest.mark.parametrize(
    ("fact", "state"),
    [
        ({}, "pending"),
        (there(), "satisfied"),
        (there(valid=False), "rebuild"),
        (there(valid=False, building=4711), "conflict"),
        (there(definition="CREATE INDEX i ON a USING btree (c)"), "conflict"),
        ({"error": 'relation "a" does not exist', "actual": {}}, "conflict"),
    ],
)
def test_index(tmp_path: Path, fact: dict[str, Any], state: str) -> None:
    plan = forward(rollout_of(tmp_path, {"001_a": INDEX}), {"step": {"001_a/i": fact}})
    assert states(plan) == [state]
    assert plan["pending"] == (state in ("pending", "rebuild"))
    assert len(plan["stoppers"]) == (state == "conflict")


def test_conflict_shows_both_definitions_and_what_to_do(tmp_path: Path) -> None:
    other = "CREATE INDEX i ON a USING btree (c)"
    plan = forward(rollout_of(tmp_path, {"001_a": INDEX}), {"step": {"001_a/i": there(definition=other)}})
    assert reason(plan) == (
        f"index i exists with another definition; definition: found [{other}], expected [{DEFINITION}]. "
        "Rename or drop the one that is there, or correct the migration."
    )
    assert plan["stoppers"][0].startswith("001_a/i (")
    assert sentences(plan) == [f"001_a/i: {reason(plan)}"]


def test_column_is_compared_by_type_default_nullability_and_its_own_constraints(tmp_path: Path) -> None:
    rollout = rollout_of(tmp_path, {"001_a": "ALTER TABLE a ADD COLUMN b int REFERENCES a;"})
    wanted: dict[str, Any] = {
        "type": "integer",
        "not_null": False,
        "default": "1",
        "generated": "",
        "constraints": {"a_b_fkey": "FOREIGN KEY (b) REFERENCES a(id)"},
    }
    same = forward(rollout, {"step": {"001_a/a.b": {"actual": wanted, "wanted": wanted}}})
    more = forward(
        rollout,
        {
            "step": {
                "001_a/a.b": {
                    "actual": wanted | {"constraints": wanted["constraints"] | {"x": "CHECK (b > 0)"}},
                    "wanted": wanted,
                }
            }
        },
    )
    other = forward(
        rollout, {"step": {"001_a/a.b": {"actual": wanted | {"type": "bigint", "constraints": {}}, "wanted": wanted}}}
    )
    assert (states(same), states(more), states(other)) == (["satisfied"], ["satisfied"], ["conflict"])
    assert "type: found [bigint], expected [integer]" in reason(other)
    assert "constraint a_b_fkey: found [None], expected [FOREIGN KEY (b) REFERENCES a(id)]" in reason(other)


def test_refused_statement_stops_with_its_place_and_reason(tmp_path: Path) -> None:
    plan = forward(rollout_of(tmp_path, {"001_a": "TRUNCATE a;"}), {})
    assert states(plan) == ["refused"]
    assert "001_a/apply.sql:1): all rows go at once under ACCESS EXCLUSIVE on public.a" in plan["stoppers"][0]


def test_switch_that_is_off_leaves_its_steps_out(tmp_path: Path) -> None:
    rollout = rollout_of(tmp_path, {"001_a": f"-- Only when: enable_features\n\n{INDEX}"})
    off, on = forward(rollout, {}), forward(rollout, {}, switches={"enable_features": True})
    assert (states(off), off["pending"], reason(off)) == (["off"], 0, "enable_features is false")
    assert states(on) == ["pending"]


def test_held_step_stays_away_until_it_is_named(tmp_path: Path) -> None:
    rollout = rollout_of(tmp_path, {"001_a": INDEX})
    facts = {"ledger": made("001_a/i", state="held", message="taken away by ada")}
    held = forward(rollout, facts)
    assert (states(held), held["pending"], held["stoppers"]) == (["held"], 0, [])
    assert reason(held) == "taken away by ada; -e reapply=001_a/i brings it back"
    assert states(forward(rollout, facts, reapply=["001_a/i"])) == ["pending"]
    assert forward(rollout, facts, reapply=["001_a/j"])["stoppers"] == [
        "-e reapply=001_a/j: no step of that name is held."
    ]


def test_data_is_done_when_the_ledger_or_its_query_says_so(tmp_path: Path) -> None:
    rollout = rollout_of(
        tmp_path,
        {
            "001_a": "-- Step: fill\n-- Backfill: by id\nUPDATE a SET b = 1;\nANALYZE a;\n"
            "-- Step: flag\n-- Done when: SELECT true\nUPDATE flags SET value = 'true';"
        },
    )
    assert states(forward(rollout, {})) == ["pending"] * 3
    assert states(forward(rollout, {"ledger": made("001_a/fill", state="started")})) == ["pending"] * 3
    facts = {"ledger": made("001_a/fill", "001_a/analyze_a"), "step": {"001_a/flag": {"done": True}}}
    assert states(forward(rollout, facts)) == ["satisfied"] * 3
    assert states(forward(rollout, {"ledger": made("001_a/fill", state="rolled_back")})) == ["pending"] * 3


NOT_NULL = (
    "ALTER TABLE a ADD CONSTRAINT c CHECK (b IS NOT NULL) NOT VALID; ALTER TABLE a VALIDATE CONSTRAINT c;\n"
    "-- Accept: not-null because the application writes b\n"
    "ALTER TABLE a ALTER b SET NOT NULL; ALTER TABLE a DROP CONSTRAINT c;"
)
CHECK = {"actual": {"definition": "CHECK (b)", "valid": False}, "wanted": {"definition": "CHECK (b)"}}
VALIDATED = {"actual": {"definition": "CHECK (b)", "valid": True}, "wanted": {"definition": "CHECK (b)"}}


@pytest.mark.parametrize(
    ("check", "not_null", "expected"),
    [
        ({}, False, ["pending", "pending", "pending", "pending"]),
        (CHECK, False, ["satisfied", "pending", "pending", "pending"]),
        (VALIDATED, False, ["satisfied", "satisfied", "pending", "pending"]),
        (VALIDATED, True, ["satisfied", "satisfied", "satisfied", "pending"]),
        ({}, True, ["satisfied", "satisfied", "satisfied", "satisfied"]),
    ],
    ids=["nothing", "added", "validated", "used", "dropped"],
)
@pytest.mark.parametrize("ledger", [(), ("001_a/a.c", "001_a/a.c.validate", "001_a/a.b", "001_a/a.c.drop")])
def test_scaffold_of_not_null_resumes_wherever_it_was_cut_off(
    tmp_path: Path, check: dict[str, Any], not_null: bool, expected: list[str], ledger: tuple[str, ...]
) -> None:
    """Whatever the ledger says: someone may have dropped NOT NULL since a run that was done."""
    facts = {
        "001_a/a.c": check,
        "001_a/a.c.validate": check,
        "001_a/a.b": {"actual": {"not_null": not_null}},
        "001_a/a.c.drop": check,
    }
    plan = forward(rollout_of(tmp_path, {"001_a": NOT_NULL}), {"step": facts, "ledger": made(*ledger)})
    assert states(plan) == expected


HELPER = "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; ANALYZE a; DROP FUNCTION f();"


@pytest.mark.parametrize(
    ("present", "ledger", "expected"),
    [
        (False, (), ["pending", "pending", "pending"]),
        (True, ("001_a/f",), ["satisfied", "pending", "pending"]),
        (False, ("001_a/f", "001_a/analyze_a", "001_a/f.drop"), ["satisfied"] * 3),
    ],
    ids=["nothing", "made", "dropped"],
)
def test_a_helper_is_made_and_dropped_once(
    tmp_path: Path, present: bool, ledger: tuple[str, ...], expected: list[str]
) -> None:
    there = {"actual": {"definition": "f"}, "wanted": {"definition": "f"}} if present else {}
    facts = {"step": {"001_a/f": there, "001_a/f.drop": there}, "ledger": made(*ledger)}
    assert states(forward(rollout_of(tmp_path, {"001_a": HELPER}), facts)) == expected


TWO = {
    "phase1/001_a/apply.sql": INDEX,
    "phase1/001_a/rollback.sql": "DROP INDEX CONCURRENTLY i;",
    "phase2/002_b/apply.sql": "ALTER TABLE a ADD COLUMN c int;",
    "phase2/002_b/rollback.sql": "ALTER TABLE a DROP COLUMN c;",
}
COLUMN = {"type": "integer", "not_null": False, "default": "", "generated": "", "constraints": {}}
APPLIED: dict[str, Any] = {
    "step": {
        "001_a/i": there(),
        "001_a/i (rollback)": there(),
        "002_b/a.c": {"actual": COLUMN, "wanted": COLUMN},
        "002_b/a.c (rollback)": {"actual": COLUMN},
    },
    "relation": {"public.a": {"rows": 1234, "bytes": 8192}},
    "ledger": made("001_a/i", "002_b/a.c"),
}


def test_phases_out_of_order_are_refused(tmp_path: Path) -> None:
    rollout = rollout_of(tmp_path, TWO)
    assert forward(rollout, {}, "phase2")["stoppers"] == [
        "phase2 needs phase1 applied first, and the database says phase1 is not applied; run --tags phase1 before it."
    ]
    assert forward(rollout, {}, "phase1", "phase2")["stoppers"] == []
    assert forward(rollout, {})["stoppers"] == []
    assert forward(rollout, {"step": {"001_a/i": there()}}, "phase2")["stoppers"] == []


def test_phase_states(tmp_path: Path) -> None:
    rollout = rollout_of(tmp_path, {"001_a": f"{INDEX} ANALYZE a;"})
    half = {"step": {"001_a/i": there()}}
    assert [
        forward(rollout, facts)["states"]["phase1"] for facts in ({}, half, half | {"ledger": made("001_a/analyze_a")})
    ] == [
        "not applied",
        "partly applied",
        "applied",
    ]


def test_changed_file_is_drift_unless_accepted(tmp_path: Path) -> None:
    rollout = rollout_of(tmp_path, {"001_a": INDEX})
    recorded = {"checksum": "0" * 64, "applied_at": "2026-01-02T03:04:05+00:00"}
    facts = {"step": {"001_a/i": there()}, "ledger": {"steps": {}, "migrations": {"001_a": recorded}}}
    (sentence,) = forward(rollout, facts)["stoppers"]
    assert "001_a/apply.sql was changed after it was applied on 2026-01-02T03:04:05" in sentence
    assert sentence.endswith("or say -e accept_drift=001_a.")
    assert forward(rollout, facts, accept_drift=["001_a"])["stoppers"] == []
    recorded["checksum"] = rollout["phases"][0]["migrations"][0]["checksum"]
    assert forward(rollout, facts)["stoppers"] == []


def test_rollback_removes_what_the_ledger_says_was_made(tmp_path: Path) -> None:
    plan = planner.plan_rollback(rollout_of(tmp_path, TWO), APPLIED, ["phase1", "phase2"], keep=False)
    assert [phase["name"] for phase in plan["phases"]] == ["phase2", "phase1"]
    assert states(plan) == ["pending", "pending"]
    assert [step["undoes"] for phase in plan["phases"] for step in phase["steps"]] == [["002_b/a.c"], ["001_a/i"]]
    assert plan["loses"] == ["DROP COLUMN column a.c (1,234 rows)"]


def test_rollback_keeps_what_stood_there_before(tmp_path: Path) -> None:
    files = TWO | {"phase1/001_a/apply.sql": f"{INDEX} CREATE INDEX CONCURRENTLY j ON a (c);"}
    files["phase1/001_a/rollback.sql"] = "DROP INDEX CONCURRENTLY j; DROP INDEX CONCURRENTLY i;"
    facts = APPLIED | {"ledger": made("001_a/i"), "step": APPLIED["step"] | {"001_a/j (rollback)": there()}}
    plan = planner.plan_rollback(rollout_of(tmp_path, files), facts, ["phase1"])
    assert states(plan) == ["kept", "pending"]
    assert reason(plan) == "it stood here before the rollout"


def test_rollback_of_what_was_never_applied_has_nothing_to_do(tmp_path: Path) -> None:
    plan = planner.plan_rollback(rollout_of(tmp_path, TWO), APPLIED | {"ledger": {}}, ["phase1"])
    assert (states(plan), plan["pending"], reason(plan)) == (["satisfied"], 0, "its migration is not applied")


def test_rollback_refuses_a_phase_that_a_later_one_stands_on(tmp_path: Path) -> None:
    plan = planner.plan_rollback(rollout_of(tmp_path, TWO), APPLIED, ["phase1"])
    assert plan["stoppers"] == ["phase1 cannot be rolled back while phase2 is applied; roll that back first."]


def test_restore_needs_its_backfill_and_does_nothing_where_nothing_was_filled(tmp_path: Path) -> None:
    files = {
        "phase1/001_a/apply.sql": f"{INDEX}\n-- Step: fill\n-- Backfill: by id\nUPDATE a SET b = 1;",
        "phase1/001_a/rollback.sql": "-- Restore: fill\nSELECT FROM restored;\n-- Restore: fil\nSELECT FROM restored;",
    }
    rollout = rollout_of(tmp_path, files)
    plan = planner.plan_rollback(rollout, {"ledger": made("001_a/i", "001_a/fill")}, ["phase1"])
    assert states(plan) == ["pending", "refused"]
    assert plan["phases"][0]["steps"][0]["undoes"] == ["001_a/fill"]
    assert "'-- Restore:' names 001_a/fil, which is no backfill of apply.sql" in plan["stoppers"][0]
    untouched = planner.plan_rollback(rollout, {"ledger": made("001_a/i")}, ["phase1"])
    assert untouched["phases"][0]["steps"][0]["reason"] == "nothing was filled"


def test_locks_are_completed_with_what_only_the_catalog_knows(tmp_path: Path) -> None:
    foreign = COLUMN | {"references": ["public.a", "public.other"]}
    facts = APPLIED | {"step": APPLIED["step"] | {"002_b/a.c (rollback)": {"actual": foreign}}}
    plan = planner.plan_rollback(rollout_of(tmp_path, TWO), facts, ["phase1", "phase2"], keep=False)
    locks = [
        [(lock["relation"], lock["mode"]) for lock in step["locks"]] for p in plan["phases"] for step in p["steps"]
    ]
    assert locks == [
        [("public.a", "ACCESS EXCLUSIVE"), ("public.other", "ACCESS EXCLUSIVE")],
        [("public.a", "SHARE UPDATE EXCLUSIVE")],
    ]


def test_validation_names_object_found_and_expected(tmp_path: Path) -> None:
    rollout = rollout_of(tmp_path, TWO | {"phase1/001_a/validate.sql": "-- Check: rows\nSELECT 1, 2, 3;"})
    nothing, half = forward(rollout, {}), forward(rollout, {"step": {"001_a/i": there()}})
    assert sentences(nothing) == [
        "001_a/i: index i: found nothing, expected: CREATE INDEX CONCURRENTLY i ON a (b)",
        "002_b/a.c: column a.c: found nothing, expected: ALTER TABLE a ADD COLUMN c int",
    ]
    assert [check["title"] for check in checks(rollout, half)] == ["rows"]
    assert checks(rollout, nothing) == []
    assert sentences(forward(rollout, APPLIED)) == []


def test_what_is_off_or_held_is_neither_asked_for_nor_checked(tmp_path: Path) -> None:
    files = {"phase1/001_a/apply.sql": f"-- Only when: x\n\n{INDEX}", "phase1/001_a/validate.sql": "SELECT 1, 2, 3;"}
    rollout = rollout_of(tmp_path, files)
    plan = forward(rollout, {})
    assert (sentences(plan), checks(rollout, plan)) == ([], [])


def test_unknown_names_suggest_the_nearest() -> None:
    assert planner.unknown_names(["fase1", "full", "zzz"], ["phase1", "phase2", "full"], "tag") == [
        "unknown tag 'fase1'; did you mean 'phase1'? Known: phase1, phase2, full.",
        "unknown tag 'zzz'. Known: phase1, phase2, full.",
    ]


def test_materialized_views_are_found(tmp_path: Path) -> None:
    rollout = rollout_of(tmp_path, {"001_a": "CREATE VIEW v AS SELECT 1; CREATE MATERIALIZED VIEW m AS SELECT 1;"})
    assert planner.materialized_views(rollout) == ["public.m"]


# ---- what only the database shows


def test_a_cascading_delete_into_a_large_table_is_a_hazard(tmp_path: Path) -> None:
    key = "ALTER TABLE a ADD CONSTRAINT f FOREIGN KEY (b) REFERENCES c ON DELETE CASCADE NOT VALID;"
    for number, (rows, text, state) in enumerate(
        [
            (10, key, "pending"),
            (2_000_000, key, "refused"),
            (2_000_000, key.replace("CASCADE", "RESTRICT"), "pending"),
            (2_000_000, f"-- Accept: on-delete-cascade because c never loses a row\n{key}", "pending"),
        ]
    ):
        facts = {"relation": {"public.a": {"rows": rows, "bytes": 1}}}
        plan = forward(rollout_of(tmp_path / str(number), {"001_a": text}), facts)
        assert states(plan) == [state]
        assert ("ON DELETE CASCADE into public.a with 2,000,000 rows" in reason(plan)) == (state == "refused")


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        ("bigint", "integer", True),
        ("integer", "bigint", False),
        ("double precision", "real", True),
        ("text", "character varying(20)", True),
        ("text", "character varying", False),
        ("character varying", "character varying(20)", True),
        ("character varying(20)", "character varying(10)", True),
        ("character varying(20)", "text", False),
        ("numeric(10,2)", "numeric(10,1)", True),
        ("numeric(10,2)", "numeric(12,2)", False),
        ("numeric", "numeric(10,2)", True),
        ("timestamp with time zone", "date", True),
        ("timestamp(3) without time zone", "timestamp without time zone", False),
        ("integer", "text", False),
    ],
)
def test_what_narrows(found: str, wanted: str, expected: bool) -> None:
    assert narrows(found, wanted) is expected
