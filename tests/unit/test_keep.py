"""Which steps keep what a rollback takes away, and where what was kept is given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgrollout.migration.keep import giving_back, keeping
from tests.support.rollouts import rollout_of

BACK = "ALTER TABLE a DROP COLUMN y; ALTER TABLE b DROP COLUMN z; ALTER TABLE a DROP COLUMN x; DROP TABLE c;"


def steps_of(folder: Path, sql: str, direction: str, **states: str) -> list[dict[str, Any]]:
    """Steps with their states by name, pending where none is given."""
    files = {"phase1/001_t/apply.sql": "CREATE TABLE nothing ();", "phase1/001_t/rollback.sql": "DROP TABLE nothing;"}
    rollout = rollout_of(folder, files | {f"phase1/001_t/{direction}.sql": sql})
    return [
        step | {"state": states.get(step["name"].replace(".", "_"), "pending"), "rows": 0, "bytes": 0}
        for step in rollout["phases"][0]["migrations"][0][direction]
    ]


def entry(table: str = "public.a", columns: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    found = {"kept_id": 7, "run_id": 3, "relation": table, "columns": columns, "key": ["id"], "copied": True}
    return found | {"rows": 12, "state": "kept", "place": "pgrollout.kept_7_a"} | changes


def ledger(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"ledger": {"kept": list(entries)}}


def names(steps: list[dict[str, Any]], state: str = "pending") -> list[str]:
    return [step["name"] for step in steps if step["state"] == state]


def test_columns_are_kept_from_the_first_drop_to_the_last(tmp_path: Path) -> None:
    steps = keeping(steps_of(tmp_path, BACK, "rollback"), {}, keep=True)
    assert names(steps) == [
        *("keep_a", "keep_rows_a", "a.y"),
        *("keep_b", "keep_rows_b", "b.z", "keep_end_b"),
        *("a.x", "keep_end_a", "c"),
    ]
    keep, walk = steps[:2]
    assert keep["sql"] == "SELECT pgrollout.keep_columns('public.a', ARRAY['y', 'x'])"
    assert keep["locks"] == [{"relation": "public.a", "mode": "SHARE ROW EXCLUSIVE"}]
    assert (walk["mode"], walk["keeps"]) == ("keep", "public.a")
    assert steps[-1]["sql"] == "SELECT pgrollout.keep_table('public.c', 'DROP TABLE c')"


def test_what_is_gone_already_is_not_kept(tmp_path: Path) -> None:
    gone = {"a_y": "satisfied", "a_x": "kept", "c": "satisfied"}
    steps = keeping(steps_of(tmp_path, BACK, "rollback", **gone), {}, keep=True)
    assert names(steps) == ["keep_b", "keep_rows_b", "b.z", "keep_end_b"]
    assert steps[-1]["sql"] == "DROP TABLE c"


@pytest.mark.parametrize(("copied", "expected"), [(False, ["keep_rows_a", "a.x"]), (True, ["a.x"])])
def test_a_keeping_that_was_broken_off_goes_on(tmp_path: Path, copied: bool, expected: list[str]) -> None:
    begun = ledger(entry(columns=["x", "y"], state="capturing", copied=copied))
    steps = keeping(steps_of(tmp_path, BACK, "rollback", a_y="satisfied", b_z="kept", c="kept"), begun, keep=True)
    assert names(steps) == [*expected, "keep_end_a"]


def test_a_keeping_whose_columns_are_all_gone_ends(tmp_path: Path) -> None:
    begun = ledger(entry(columns=["x", "y"], state="capturing"))
    gone = {"a_y": "satisfied", "a_x": "satisfied", "b_z": "satisfied", "c": "satisfied"}
    assert names(keeping(steps_of(tmp_path, BACK, "rollback", **gone), begun, keep=True)) == ["keep_end_a"]


def test_without_keeping_only_what_was_begun_ends(tmp_path: Path) -> None:
    begun = ledger(entry(columns=["x", "y"], state="capturing"))
    steps = keeping(steps_of(tmp_path, BACK, "rollback", a_y="satisfied"), begun, keep=False)
    assert names(steps) == ["b.z", "a.x", "keep_end_a", "c"]
    assert steps[-1]["sql"] == "DROP TABLE c"


FILL = "-- Backfill: by id\nUPDATE a SET y = 1 WHERE y IS NULL;\n"
FORTH = f"""\
ALTER TABLE a ADD COLUMN x int;
ALTER TABLE a ADD COLUMN y int;
ALTER TABLE a ADD CONSTRAINT y_above CHECK (y > 0);
{FILL}"""


def test_columns_come_back_behind_their_constraints_and_before_a_backfill(tmp_path: Path) -> None:
    found = names(giving_back(steps_of(tmp_path, FORTH, "apply"), ledger(entry(columns=["x", "y"])), restore=True))
    place = found.index("give_back_a")
    assert {"a.x", "a.y", "a.y_above"} <= set(found[:place])
    assert "backfill_a" in found[place:]


def test_the_newest_of_two_comes_back(tmp_path: Path) -> None:
    kept = ledger(entry(columns=["x"]), entry(columns=["x", "y"], kept_id=9))
    (step,) = [
        s for s in giving_back(steps_of(tmp_path, FORTH, "apply"), kept, restore=True) if s["kind"] == "GIVE BACK"
    ]
    assert (step["gives_back"], step["restores"]) == (9, "keep 9")
    assert step["reason"] == "12 rows of a (columns x, y), kept by run 3; -e restore_kept=false leaves them there"
    assert step["backfill"] == {"table": "public.a", "key": ["id"], "columns": ["x", "y"]}


@pytest.mark.parametrize(
    ("kept", "states"),
    [
        (entry(columns=["x", "other"]), {}),  # a column that nobody makes any more
        (entry(), {}),  # the table itself
        (entry("public.other", columns=["x"]), {}),
        (entry(columns=["x"]), {"a_x": "held"}),
    ],
)
def test_what_is_not_made_again_stays(tmp_path: Path, kept: dict[str, Any], states: dict[str, str]) -> None:
    steps = steps_of(tmp_path, FORTH, "apply", **states)
    assert giving_back(steps, ledger(kept), restore=True) == steps


def test_what_is_not_wanted_back_stays_and_its_keeping_ends(tmp_path: Path) -> None:
    steps = steps_of(tmp_path, FORTH, "apply")
    assert giving_back(steps, ledger(entry(columns=["x", "y"])), restore=False) == steps
    begun = ledger(entry(columns=["x", "y"], state="capturing"))
    assert names(giving_back(steps, begun, restore=False)) == ["keep_end_a", *names(steps)]


def test_a_table_comes_back_behind_its_partitions(tmp_path: Path) -> None:
    sql = (
        "CREATE TABLE a (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE a_1 PARTITION OF a DEFAULT;"
        "CREATE TABLE b (id int REFERENCES a (id));"
    )
    kept = ledger(entry(), entry("public.b", place="pgrollout.kept_8_b", kept_id=8))
    steps = giving_back(steps_of(tmp_path, sql, "apply"), kept, restore=True)
    assert names(steps) == ["a", "a_1", "give_back_a", "b", "give_back_b"]
    assert {step["mode"] for step in steps if step["kind"] == "GIVE BACK"} == {"give_back"}


def test_a_rollback_that_is_taken_back_ends_its_keeping_first(tmp_path: Path) -> None:
    begun = ledger(entry(columns=["x", "y"], state="capturing"))
    steps = giving_back(steps_of(tmp_path, FORTH, "apply", a_x="satisfied"), begun, restore=True)
    assert steps[0]["sql"] == "SELECT pgrollout.end_keep('public.a')"
    assert steps[0]["locks"] == [{"relation": "public.a", "mode": "ACCESS EXCLUSIVE"}]
    assert "give_back_a" in names(steps)
