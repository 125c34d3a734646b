"""Partitioned tables: their size, and indexes built partition by partition, cut off, gone on with, taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from pgrollout.migration import plan as planner
from pgrollout.migration.load import load_rollout
from tests.support.ledger import carry_out, claim, finish, install
from tests.support.plans import facts_of, plan_of, states, steps_of_plan
from tests.support.rollouts import rollout_of, write_rollout

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Database

SCHEMA = """\
CREATE TABLE p (a int, b int, "Kind" text) PARTITION BY RANGE (a);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000);
CREATE TABLE "P-2" PARTITION OF p FOR VALUES FROM (1000) TO (2000) PARTITION BY LIST ("Kind");
CREATE TABLE "P-2.x" PARTITION OF "P-2" FOR VALUES IN ('x');
CREATE TABLE p2y PARTITION OF "P-2" FOR VALUES IN ('y');
INSERT INTO p SELECT n % 2000, n, CASE WHEN n % 2 = 0 THEN 'x' ELSE 'y' END FROM generate_series(0, 3999) AS n;
ANALYZE p, p1, "P-2.x", p2y;
"""
APPLY = "CREATE INDEX i ON p (b) WHERE b IS NOT NULL;\n"
FILES = {"phase1/001_a/apply.sql": APPLY, "phase1/001_a/rollback.sql": "DROP INDEX i;\n"}


@pytest.fixture
def ledger(empty_database: Database) -> Database:
    empty_database.execute(SCHEMA)
    install(empty_database)
    return empty_database


@pytest.fixture
def rollout(tmp_path: Path) -> dict[str, Any]:
    return load_rollout(str(write_rollout(tmp_path / "rollout", FILES)))


def run(database: Database, steps: list[dict[str, Any]]) -> None:
    number = claim(database)
    try:
        carry_out(database, number, [step for step in steps if step["state"] in planner.TO_DO])
    finally:
        finish(database, number)


def indexes(database: Database) -> dict[str, bool]:
    """Each index with its validity."""
    return dict(
        database.query("""
        SELECT indexrelid::regclass::text, indisvalid FROM pg_index
        WHERE indrelid IN (SELECT relid FROM pg_partition_tree('p')) ORDER BY 1""")
    )


def to_do(plan: dict[str, Any]) -> list[str]:
    assert plan["stoppers"] == []
    return [step["name"] for step in steps_of_plan(plan) if step["state"] in planner.TO_DO]


def test_a_partitioned_table_is_as_large_as_its_partitions(ledger: Database, tmp_path: Path) -> None:
    rollout = rollout_of(tmp_path, {"001_a": "ALTER TABLE p ADD COLUMN c int; ALTER TABLE p1 ADD COLUMN d int;"})
    whole, part = steps_of_plan(plan_of(ledger, rollout))
    assert (whole["rows"], part["rows"]) == (4000, 2000)
    assert whole["bytes"] == ledger.value(
        "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('p') WHERE isleaf"
    )
    assert whole["bytes"] > part["bytes"] > 0


def test_an_index_is_built_partition_by_partition_and_dropped_as_a_whole(
    ledger: Database, rollout: dict[str, Any]
) -> None:
    plan = plan_of(ledger, rollout)
    assert to_do(plan) == [
        *("i", "i/p1", "i/p1.attach", "i/P-2", "i/P-2.attach"),
        *("i/P-2.x", "i/P-2.x.attach", "i/p2y", "i/p2y.attach"),
    ]
    by_name = {step["name"]: step for step in steps_of_plan(plan)}
    assert (by_name["i"]["mode"], by_name["i/p1"]["mode"], by_name["i/P-2"]["mode"]) == ("ddl", "concurrent", "ddl")
    assert by_name["i/P-2.x"]["locks"] == [{"relation": 'public."P-2.x"', "mode": "SHARE UPDATE EXCLUSIVE"}]
    assert by_name["i/p1"]["rows"] == 2000
    run(ledger, steps_of_plan(plan))
    assert indexes(ledger) == {
        "i": True,
        "p1_i": True,
        '"P-2_i"': True,
        '"P-2.x_i"': True,
        "p2y_i": True,
    }
    again = plan_of(ledger, rollout)
    assert (again["pending"], set(states(again).values())) == (0, {"satisfied"})
    back = planner.plan_rollback(rollout, facts_of(ledger, rollout), ["phase1"])
    (drop,) = steps_of_plan(back)
    assert (drop["mode"], drop["sql"]) == ("ddl", "DROP INDEX i")
    assert {lock["mode"] for lock in drop["locks"]} == {"ACCESS EXCLUSIVE"}
    assert drop["locks"][0]["relation"] == "public.p"
    assert len(drop["locks"]) == 5
    run(ledger, steps_of_plan(back))
    assert indexes(ledger) == {}
    assert ledger.query("SELECT DISTINCT state FROM pgrollout.step WHERE step_id NOT LIKE '%%(rollback)'") == [
        ("rolled_back",)
    ]
    assert len(to_do(plan_of(ledger, rollout))) == 9


@pytest.mark.parametrize("done", range(1, 9))
def test_a_build_that_was_cut_off_goes_on(ledger: Database, rollout: dict[str, Any], done: int) -> None:
    first = steps_of_plan(plan_of(ledger, rollout))
    run(ledger, first[:done])
    if done == 3:  # a partition that came meanwhile
        ledger.execute("CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (2000) TO (3000)")
    rest = plan_of(ledger, rollout)
    assert to_do(rest) == [step["name"] for step in first[done:]]
    run(ledger, steps_of_plan(rest))
    assert all(indexes(ledger).values())
    assert plan_of(ledger, rollout)["pending"] == 0


def test_what_a_partition_has_is_used_and_what_a_failed_build_left_is_replaced(
    ledger: Database, rollout: dict[str, Any]
) -> None:
    ledger.execute("CREATE INDEX mine ON p1 (b) WHERE b IS NOT NULL; CREATE INDEX other ON p2y (b)")
    ledger.execute("CREATE TABLE p3 (LIKE p); INSERT INTO p3 VALUES (2000, 1), (2001, 1)")
    ledger.execute("ALTER TABLE p ATTACH PARTITION p3 FOR VALUES FROM (2000) TO (3000)")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        ledger.execute("CREATE UNIQUE INDEX CONCURRENTLY p3_i ON p3 (b) WHERE b IS NOT NULL")
    (conflict,) = plan_of(ledger, rollout)["stoppers"]
    assert "public.p3_i is there with another definition" in conflict
    ledger.execute("DROP INDEX p3_i; CREATE INDEX p3_i ON p3 (b) WHERE b IS NOT NULL")
    with ledger.server.connect(ledger.name) as superuser, superuser.cursor() as cursor:
        cursor.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'p3_i'::regclass")
    plan = plan_of(ledger, rollout)
    assert "i/p1" not in states(plan)
    assert (states(plan)["i/p3"], states(plan)["i/p2y"]) == ("rebuild", "pending")
    run(ledger, steps_of_plan(plan))
    assert indexes(ledger) == dict.fromkeys(("i", "mine", "other", '"P-2_i"', '"P-2.x_i"', "p2y_i", "p3_i"), True)
    assert plan_of(ledger, rollout)["pending"] == 0
