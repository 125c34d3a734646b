"""Plans of real servers: safe forms end in the catalog that the plain statements make, and are seen to be done."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgrollout.migration.names import object_name
from pgrollout.rollout.load import load_rollout
from tests.support.ledger import install
from tests.support.plans import facts_of, plan_of, states, steps_of_plan
from tests.support.rollouts import rollout_of

if TYPE_CHECKING:
    from tests.conftest import Database, Databases

ROOT = Path(__file__).resolve().parents[2]
# {} is a table of its own with columns id, b, c, d and rows; r has a primary key id.
PLAIN = [
    "CREATE INDEX {}_i ON {} (lower(c)) WHERE c IN ('x', 'y')",
    "CREATE UNIQUE INDEX IF NOT EXISTS {}_i ON {} (id) INCLUDE (c)",
    "ALTER TABLE {} ADD CHECK (b > 0)",
    "ALTER TABLE {} ADD CHECK (b < d), ADD CONSTRAINT {}_named CHECK (c <> '')",
    "ALTER TABLE {} ADD FOREIGN KEY (b) REFERENCES r ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED",
    "ALTER TABLE {} ADD UNIQUE (id, c)",
    "ALTER TABLE {} ADD CONSTRAINT {}_u UNIQUE (id) INCLUDE (c) WITH (fillfactor = 80) DEFERRABLE",
    "ALTER TABLE {} ADD PRIMARY KEY (id, b)",
    "ALTER TABLE {} ALTER b SET DEFAULT 1, ALTER b SET NOT NULL",
    "ALTER TABLE {} ADD e int DEFAULT 1 CHECK (e > 0) NOT NULL, ADD f timestamptz DEFAULT now(), DROP d",
    "ALTER TABLE {} ADD e int UNIQUE",
    "ALTER TABLE {} ADD e int DEFAULT 1 REFERENCES r (id) ON UPDATE CASCADE",
    'ALTER TABLE {} ADD "Order By" varchar(20) CHECK ("Order By" ~ \'^[A-Z]+$\')',
    "ALTER TABLE {} ADD COLUMN IF NOT EXISTS e jsonb DEFAULT '{{}}', ADD f numeric(8, 2)[]",
    "ALTER TABLE {} ALTER c TYPE varchar(50)",
    "ALTER TABLE {} ALTER c SET STATISTICS 500, SET (fillfactor = 70, autovacuum_enabled = false)",
    "ALTER TABLE {} ALTER c SET STORAGE PLAIN, ALTER c SET COMPRESSION pglz",
    "ALTER TABLE {} ENABLE ROW LEVEL SECURITY, REPLICA IDENTITY FULL, ALTER b SET (n_distinct = 5)",
    "CREATE TYPE {}_mood AS ENUM ('sad', 'ok'); ALTER TYPE {}_mood ADD VALUE IF NOT EXISTS 'fine' AFTER 'sad'",
    "CREATE TYPE {}_pair AS (x int, y text)",
    "CREATE DOMAIN {}_code AS varchar(10) NOT NULL CONSTRAINT {}_short CHECK (length(value) > 2)",
    "CREATE SEQUENCE IF NOT EXISTS {}_q AS integer START 7 CACHE 3",
    "CREATE POLICY {}_p ON {} AS RESTRICTIVE FOR UPDATE TO PUBLIC USING (b > 0) WITH CHECK (b < 9)",
    "CREATE STATISTICS {}_s (ndistinct) ON b, d FROM {}",
    "CREATE VIEW {}_v AS SELECT c FROM {}; CREATE OR REPLACE VIEW {}_v AS SELECT c, b FROM {}",
    "CREATE MATERIALIZED VIEW IF NOT EXISTS {}_m AS SELECT id, b FROM {}; CREATE UNIQUE INDEX {}_mi ON {}_m (id)",
    "DROP INDEX IF EXISTS {}_old, {}_older",
    "CREATE TABLE {}_n (LIKE {} INCLUDING ALL); ALTER TABLE {}_n ADD x int CHECK (x > 0), ADD UNIQUE (id)",
]  # fmt: skip


def setup(tables: int) -> str:
    made = "CREATE TABLE r (id int PRIMARY KEY); INSERT INTO r SELECT generate_series(1, 50);"
    for number in range(tables):
        made += (
            f"CREATE TABLE t{number} (id int, b int, c varchar(20), d int);"
            f"INSERT INTO t{number} SELECT i, i, 'n' || i, i + 1 FROM generate_series(1, 50) AS i;"
            f"CREATE INDEX t{number}_old ON t{number} (b); CREATE INDEX t{number}_older ON t{number} (d);"
        )
    return made


def written() -> list[str]:
    return [text.format(*[f"t{number}"] * text.count("{}")) for number, text in enumerate(PLAIN)]


def carry_out(database: Database, plan: dict[str, Any]) -> None:
    """Each step that is to do, in a transaction of its own, as the runner does."""
    for step in steps_of_plan(plan):
        if step["state"] == "pending":
            database.execute(step["sql"])


def with_acceptances(text: str) -> str:
    """`text` with what an author has to say of it: columns that the application may use, keys that it writes."""
    lines = []
    if "DROP d" in text:
        lines.append("-- Accept: drop-column because nobody reads d")
    if "PRIMARY KEY" in text:
        lines.append("-- Accept: not-null because every INSERT gives both")
    return "\n".join([*lines, text])


def test_safe_forms_make_the_catalog_that_the_plain_statements_make(databases: Databases, tmp_path: Path) -> None:
    plain, safe = databases.clone(empty=True), databases.clone(empty=True)
    for database in (plain, safe):
        install(database)
        database.execute(setup(len(PLAIN)))
    for text in written():
        for statement in text.split(";"):
            plain.execute(statement)
    text = ";\n".join(with_acceptances(text) for text in written())
    rollout = rollout_of(tmp_path, {"001_a": text})
    plan = plan_of(safe, rollout)
    assert plan["stoppers"] == []
    assert set(states(plan).values()) == {"pending"}
    carry_out(safe, plan)
    assert safe.value("SELECT pgrollout.fingerprint()") == plain.value("SELECT pgrollout.fingerprint()")
    again = plan_of(safe, rollout)
    assert again["stoppers"] == []
    assert {name: state for name, state in states(again).items() if state != "satisfied"} == {}
    # What the plain statements made is as good: nothing is done twice.
    theirs = plan_of(plain, rollout)
    assert theirs["stoppers"] == []
    assert {name: state for name, state in states(theirs).items() if state != "satisfied"} == {}


def test_a_cut_off_rewrite_goes_on_from_where_it_is(empty_database: Database, tmp_path: Path) -> None:
    """After each step of four statements the rest is to do, and nothing that is done."""
    empty_database.execute(setup(1))
    text = (
        "-- Accept: not-null because every INSERT gives both\nALTER TABLE t0 ADD PRIMARY KEY (id, b);"
        "ALTER TABLE t0 ADD e int DEFAULT 1 CHECK (e > 0), ADD f int UNIQUE;"
        "DROP INDEX t0_old; CREATE INDEX t0_old ON t0 (b, c);"
    )
    rollout = rollout_of(tmp_path, {"001_a": text})
    names = [step["name"] for step in steps_of_plan(plan_of(empty_database, rollout))]
    assert len(names) == 18
    for number, name in enumerate(names):
        plan = plan_of(empty_database, rollout)
        assert plan["stoppers"] == []
        found = states(plan)
        assert [n for n in names if found[n] == "pending"] == names[number:], f"before {name}"
        step = next(step for step in steps_of_plan(plan) if step["name"] == name)
        empty_database.execute(step["sql"])
    assert set(states(plan_of(empty_database, rollout)).values()) == {"satisfied"}


TYPES = {
    "varchar(50)": ("", "pending"),
    "text": ("", "pending"),
    "varchar(20)": ("", "satisfied"),
    "varchar(10)": ("narrowing", "refused"),
    "char(20)": ("rewrite", "refused"),
    "bytea USING c::bytea": ("rewrite", "refused"),
}


def test_a_long_name_is_shortened_as_postgresql_does(empty_database: Database) -> None:
    for table, column in (("t" * 60, "c" * 60), ("t" * 20, "c" * 60), ("ä" * 25, "ö" * 31)):
        empty_database.execute(
            f"CREATE TABLE {table} ({column} int); ALTER TABLE {table} ADD CHECK ({column} > 0), ADD UNIQUE ({column}),"
            f"ADD FOREIGN KEY ({column}) REFERENCES {table} ({column})"
        )
        made = empty_database.query(f"SELECT conname FROM pg_constraint WHERE conrelid = '{table}'::regclass")
        ours = {object_name(table, [column], label) for label in ("check", "key", "fkey")}
        assert ours <= {name for (name,) in made}


def test_whether_a_type_change_rewrites_is_the_servers_to_say(empty_database: Database, tmp_path: Path) -> None:
    empty_database.execute(setup(1))
    for number, (wanted, (hazard, state)) in enumerate(TYPES.items()):
        text = f"ALTER TABLE t0 ALTER c TYPE {wanted}"
        (step,) = steps_of_plan(plan_of(empty_database, rollout_of(tmp_path / str(number), {"001_a": text})))
        assert (step["state"], wanted) == (state, wanted)
        if hazard:
            assert f"Accept: {hazard} because" in step["reason"]
            accepted = rollout_of(
                tmp_path / f"{number}a", {"001_a": f"-- Accept: {hazard} because it is small\n{text}"}
            )
            (step,) = steps_of_plan(plan_of(empty_database, accepted))
            assert step["state"] == "pending"
            assert step["accepted"] == [{"hazard": hazard, "reason": "it is small"}]


def test_a_plain_update_takes_the_primary_key_and_is_refused_without_one(
    empty_database: Database, tmp_path: Path
) -> None:
    empty_database.execute(setup(1) + "CREATE TABLE two (b int, a int, c int, PRIMARY KEY (a, b) INCLUDE (c))")
    text = "UPDATE two SET c = 1;\nUPDATE t0 SET c = 1;\nUPDATE nowhere SET c = 1"
    plan = plan_of(empty_database, rollout_of(tmp_path, {"001_a": text}))
    first, second, third = steps_of_plan(plan)
    assert (first["state"], first["backfill"]["key"]) == ("pending", ["a", "b"])
    assert (first["written"], first["sql"]) == ("UPDATE two SET c = 1", "-- Backfill: by a, b\nUPDATE two SET c = 1")
    assert "public.t0 has no primary key to walk along" in second["reason"]
    assert "public.nowhere is not there yet" in third["reason"]


def test_views_and_functions_are_replaced_where_this_rollout_made_them(
    empty_database: Database, tmp_path: Path
) -> None:
    view = "CREATE OR REPLACE VIEW v AS SELECT 1 AS one"
    rollout = rollout_of(tmp_path / "a", {"001_a": view, "002_b": f"{view}, 2 AS two"})
    for expected in (["pending", "pending"], ["satisfied", "pending"], ["satisfied", "satisfied"]):
        steps = steps_of_plan(plan_of(empty_database, rollout))
        assert [step["state"] for step in steps] == expected
        if "pending" in expected:
            empty_database.execute(steps[expected.index("pending")]["sql"])
    theirs = rollout_of(tmp_path / "b", {"001_a": f"{view}, 2 AS two, 3 AS three"})
    (step,) = steps_of_plan(plan_of(empty_database, theirs))
    assert step["state"] == "conflict"
    assert "or say '-- Accept: replace because <reason>' above it." in step["reason"]
    accepted = rollout_of(
        tmp_path / "c", {"001_a": f"-- Accept: replace because nobody uses it\n{view}, 2 AS two, 3 AS three"}
    )
    (step,) = steps_of_plan(plan_of(empty_database, accepted))
    assert (step["state"], step["reason"]) == ("pending", "takes the place of another definition")


def test_without_twins_what_is_there_is_unproven_never_satisfied(
    server: Any, databases: Databases, tmp_path: Path
) -> None:
    """A role without TEMPORARY, and a read-only session: the facts query works and says why."""
    database = databases.clone(empty=True)
    index = "CREATE INDEX CONCURRENTLY mine ON agents (name)"
    rollout = rollout_of(tmp_path, {"001_a": f"{index}; ALTER TABLE agents ADD COLUMN x int; CREATE SCHEMA s;"})
    read_only = {"options": "-c default_transaction_read_only=on"}
    assert set(states(plan_of(database, rollout, **read_only)).values()) == {"pending"}
    database.execute("CREATE INDEX mine ON agents (name); CREATE SCHEMA s; CREATE SCHEMA t")
    plan = plan_of(database, rollout, **read_only)
    assert states(plan) == {"mine": "unproven", "agents.x": "pending", "s": "satisfied"}
    assert plan["stoppers"] == [
        f"001_a/mine ({steps_of_plan(plan)[0]['where']}): index mine is there and cannot be compared with ours: "
        "this session is read-only"
    ]
    with contextlib.closing(server.connect(database.name)) as superuser, superuser.cursor() as cursor:
        cursor.execute(f'REVOKE TEMPORARY ON DATABASE "{database.name}" FROM PUBLIC')
    plan = plan_of(database, rollout, user="hive_app")
    assert states(plan)["mine"] == "unproven"
    assert "GRANT TEMPORARY ON DATABASE" in plan["stoppers"][0]
    assert states(plan_of(database, rollout)) == {"mine": "satisfied", "agents.x": "pending", "s": "satisfied"}


def test_what_cannot_be_done_to_a_table_of_that_kind_is_refused_with_the_recipe(
    empty_database: Database, tmp_path: Path
) -> None:
    empty_database.execute(
        "CREATE TABLE p (a int, b int) PARTITION BY LIST (a); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);"
        "CREATE TABLE q (a int); CREATE MATERIALIZED VIEW m AS SELECT a FROM q"
    )
    text = (
        "ALTER TABLE p ADD UNIQUE (a);\nCREATE INDEX j ON ONLY q (a);\nREFRESH MATERIALIZED VIEW m;\n"
        "CREATE INDEX k ON ONLY p (a)"
    )
    steps = steps_of_plan(plan_of(empty_database, rollout_of(tmp_path, {"001_a": text})))
    assert [step["state"] for step in steps] == ["pending"] * 3 + ["refused"] * 3 + ["pending"]
    assert (
        "public.p is partitioned, where PostgreSQL makes no constraint of an index that is there" in steps[3]["reason"]
    )
    assert "public.q is not partitioned" in steps[4]["reason"]
    assert "public.m has no unique index over whole columns" in steps[5]["reason"]


def test_a_version_that_lacks_something_says_so(empty_database: Database, tmp_path: Path) -> None:
    text = "ALTER TABLE agents ADD CONSTRAINT c NOT NULL name NOT VALID;\nALTER TABLE agents ADD y int DEFAULT 1;"
    rollout = rollout_of(tmp_path, {"001_a": text})
    version = facts_of(empty_database, rollout)["server"]["version"]
    first, second = steps_of_plan(plan_of(empty_database, rollout))
    assert second["state"] == "pending"
    assert first["state"] == ("pending" if version >= 18 else "refused")
    if version < 18:
        assert f"came with PostgreSQL 18; this server is {version}" in first["reason"]


def test_who_is_in_the_way_right_now_is_told(empty_database: Database, tmp_path: Path) -> None:
    rollout = rollout_of(tmp_path, {"001_a": "ALTER TABLE agents ADD COLUMN x int"})
    assert facts_of(empty_database, rollout)["blocker"] == []
    with contextlib.closing(empty_database.connect(autocommit=False, application_name="report")) as reader:
        cursor = reader.cursor()
        cursor.execute(
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM agents; SELECT pg_sleep(1.1)"
        )
        found = facts_of(empty_database, rollout)["blocker"]
        seen = {(entry["relation"], entry["mode"]) for entry in found}
        assert seen == {("public.agents", "ACCESS SHARE"), (None, "SNAPSHOT")}
        assert {(entry["pid"], entry["application"]) for entry in found} == {(reader.info.backend_pid, "report")}


def test_the_shipped_rollout_is_planned_on_a_fresh_database(database: Database) -> None:
    rollout = load_rollout(str(ROOT / "sql"))
    plan = plan_of(database, rollout)
    assert plan["stoppers"] == []
    assert {step["state"] for step in steps_of_plan(plan)} == {"pending", "off"}
