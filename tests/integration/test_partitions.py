"""Partitioned tables: their size, and indexes built partition by partition, cut off, gone on with, taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from pgrollout.migration import plan as planner
from pgrollout.rollout.load import load_rollout
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


def test_an_index_of_valid_parts_that_is_invalid_itself_is_not_done(ledger: Database, rollout: dict[str, Any]) -> None:
    """REINDEX makes an attached part valid and leaves what is above it as it was."""
    run(ledger, steps_of_plan(plan_of(ledger, rollout)))
    with ledger.server.connect(ledger.name) as superuser, superuser.cursor() as cursor:
        cursor.execute(
            """UPDATE pg_index SET indisvalid = false WHERE indexrelid IN ('i'::regclass, '"P-2_i"'::regclass)"""
        )
    plan = plan_of(ledger, rollout)
    assert to_do(plan) == ["i/p2y.attach"]
    run(ledger, steps_of_plan(plan))
    valid = indexes(ledger)
    assert valid["i"] == valid['"P-2_i"']
    # Where the server leaves it INVALID, the plan goes on saying so.
    assert to_do(plan_of(ledger, rollout)) == ([] if valid["i"] else ["i/p2y.attach"])


def test_partitions_whose_names_look_alike_have_steps_of_their_own(ledger: Database, rollout: dict[str, Any]) -> None:
    ledger.execute(
        "CREATE SCHEMA s; CREATE TABLE s.p1 PARTITION OF p FOR VALUES FROM (5000) TO (6000);"
        'CREATE TABLE "p1.attach" PARTITION OF p FOR VALUES FROM (6000) TO (7000);'
        'CREATE TABLE "P%2" PARTITION OF p FOR VALUES FROM (7000) TO (8000);'
        'CREATE TABLE "P 2" PARTITION OF p FOR VALUES FROM (8000) TO (9000)'
    )
    plan = plan_of(ledger, rollout)
    names = to_do(plan)
    assert len(set(names)) == len(names) == 17
    run(ledger, steps_of_plan(plan)[:8])
    assert to_do(plan_of(ledger, rollout)) == names[8:]
    run(ledger, steps_of_plan(plan)[8:])
    assert set(indexes(ledger).values()) == {True}
    assert ledger.value("SELECT count(*) FROM pgrollout.step WHERE state = 'done'") == 17


def test_an_index_on_a_partitioned_table_of_the_same_run_is_built_at_once(
    empty_database: Database, tmp_path: Path
) -> None:
    install(empty_database)
    made = "CREATE TABLE q (a int, b int) PARTITION BY LIST (a); CREATE TABLE q1 PARTITION OF q FOR VALUES IN (1);"
    rollout = rollout_of(tmp_path, {"001_a": made, "002_b": "CREATE INDEX k ON q (b);"})
    plan = plan_of(empty_database, rollout)
    assert [(step["name"], step["mode"]) for step in steps_of_plan(plan)] == [("q", "ddl"), ("q1", "ddl"), ("k", "ddl")]
    run(empty_database, steps_of_plan(plan))
    assert plan_of(empty_database, rollout)["pending"] == 0
    assert empty_database.value(
        "SELECT bool_and(indisvalid) FROM pg_index WHERE indrelid IN ('q'::regclass, 'q1'::regclass)"
    )


def test_a_name_that_is_a_keyword_on_one_side_alone_is_followed(empty_database: Database, tmp_path: Path) -> None:
    """Before PostgreSQL 16 the server prints system_user, and before 17 json_table, without quotes."""
    install(empty_database)
    empty_database.execute(
        'CREATE TABLE "system_user" (a int, b int) PARTITION BY LIST (a);'
        'CREATE TABLE "json_table" PARTITION OF "system_user" FOR VALUES IN (1) PARTITION BY LIST (b);'
        'CREATE TABLE "json_scalar" PARTITION OF "json_table" FOR VALUES IN (1);'
    )
    rollout = rollout_of(tmp_path, {"001_a": 'CREATE INDEX "merge_action" ON "system_user" (b);'})
    for done in range(5):
        plan = plan_of(empty_database, rollout)
        assert len(to_do(plan)) == 5 - done
        run(empty_database, [step for step in steps_of_plan(plan) if step["state"] in planner.TO_DO][:1])
    assert plan_of(empty_database, rollout)["pending"] == 0


@pytest.mark.parametrize(
    "later", ["DROP INDEX i", "DROP INDEX i; CREATE INDEX i ON p (a)"], ids=["dropped", "made anew"]
)
def test_an_index_that_a_later_step_took_away_is_not_built_again(ledger: Database, tmp_path: Path, later: str) -> None:
    run(ledger, steps_of_plan(plan_of(ledger, rollout_of(tmp_path, {"001_a": APPLY}))))
    rollout = rollout_of(tmp_path, {"001_a": APPLY, "002_b": later})
    first = [step for step in steps_of_plan(plan_of(ledger, rollout)) if step["state"] in planner.TO_DO]
    assert {step["migration"] for step in first} == {"002_b"}
    assert len(first) == (10 if "CREATE" in later else 1)
    for step in first:  # a cut-off after each
        assert to_do(plan_of(ledger, rollout))[:1] == [step["name"]]
        run(ledger, [step])
    assert plan_of(ledger, rollout)["pending"] == 0
