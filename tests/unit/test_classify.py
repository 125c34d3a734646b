"""Every kind of statement: what it makes, what it locks, how it runs, and which ones are refused and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgrollout.migration.classify import Classifier
from pgrollout.migration.read import read_sql

ROADMAP = sorted((Path(__file__).parent / "data").glob("roadmap_*.sql"))
AE, SRE, SUE, RE = "ACCESS EXCLUSIVE", "SHARE ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "ROW EXCLUSIVE"


def classify(text: str) -> list[dict[str, Any]]:
    classifier = Classifier("public")
    return [classifier.classify(s.node, s.notes) for s in read_sql(text, "apply.sql").statements]


def last(text: str) -> dict[str, Any]:
    return classify(text)[-1]


# kind, mode, what says that it is done, object (kind, table, name), locks
ACCEPTED: dict[str, tuple[str, str, str, tuple[str, str, str] | None, list[tuple[str, str]]]] = {
    "CREATE INDEX CONCURRENTLY i ON a (b)": (
        "CREATE INDEX CONCURRENTLY", "concurrent", "catalog", ("index", "public.a", "i"), [("public.a", SUE)],
    ),
    "CREATE TABLE s.a (b int); CREATE INDEX i ON s.a (b)": (
        "CREATE INDEX", "ddl", "catalog", ("index", "s.a", "i"), [("s.a", "SHARE")],
    ),
    "CREATE TABLE a (b int REFERENCES c, d int, FOREIGN KEY (d) REFERENCES s.e, e int REFERENCES a)": (
        "CREATE TABLE", "ddl", "catalog", ("table", "public.a", "public.a"), [("public.c", SRE), ("s.e", SRE)],
    ),
    "ALTER TABLE a ADD COLUMN b int DEFAULT 1": (
        "ADD COLUMN", "ddl", "catalog", ("column", "public.a", "b"), [("public.a", AE)],
    ),
    "ALTER TABLE a ADD COLUMN b int REFERENCES c": (
        "ADD COLUMN", "ddl", "catalog", ("column", "public.a", "b"), [("public.a", AE), ("public.c", SRE)],
    ),
    "ALTER TABLE a DROP COLUMN b": ("DROP COLUMN", "ddl", "catalog", ("column", "public.a", "b"), [("public.a", AE)]),
    "ALTER TABLE a ADD CONSTRAINT c CHECK (b > 0) NOT VALID": (
        "ADD CONSTRAINT NOT VALID", "ddl", "catalog", ("constraint", "public.a", "c"), [("public.a", AE)],
    ),
    "ALTER TABLE a ADD CONSTRAINT c FOREIGN KEY (b) REFERENCES d NOT VALID": (
        "ADD CONSTRAINT NOT VALID", "ddl", "catalog", ("constraint", "public.a", "c"),
        [("public.a", SRE), ("public.d", SRE)],
    ),
    "ALTER TABLE a VALIDATE CONSTRAINT c": (
        "VALIDATE CONSTRAINT", "ddl", "catalog", ("validation", "public.a", "c"), [("public.a", SUE)],
    ),
    "ALTER TABLE a DROP CONSTRAINT c": (
        "DROP CONSTRAINT", "ddl", "catalog", ("constraint", "public.a", "c"), [("public.a", AE)],
    ),
    "ALTER TABLE a ADD CONSTRAINT c CHECK (b IS NOT NULL) NOT VALID; ALTER TABLE a ALTER b SET NOT NULL": (
        "SET NOT NULL", "ddl", "catalog", ("not_null", "public.a", "b"), [("public.a", AE)],
    ),
    "ALTER TABLE a ALTER b DROP NOT NULL": (
        "DROP NOT NULL", "ddl", "catalog", ("not_null", "public.a", "b"), [("public.a", AE)],
    ),
    "ALTER TABLE a ALTER b SET DEFAULT 1": (
        "SET DEFAULT", "ddl", "catalog", ("default", "public.a", "b"), [("public.a", AE)],
    ),
    "ALTER TABLE a ALTER b DROP DEFAULT": (
        "DROP DEFAULT", "ddl", "catalog", ("default", "public.a", "b"), [("public.a", AE)],
    ),
    "CREATE VIEW v AS SELECT 1": ("CREATE VIEW", "ddl", "catalog", ("view", "public.v", "public.v"), []),
    "CREATE MATERIALIZED VIEW m AS SELECT 1": (
        "CREATE MATERIALIZED VIEW", "ddl", "catalog", ("view", "public.m", "public.m"), [],
    ),
    "CREATE FUNCTION s.f() RETURNS int LANGUAGE sql AS 'SELECT 1'": (
        "CREATE FUNCTION", "ddl", "catalog", ("function", "s.f", "s.f"), [],
    ),
    "CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION f()": (
        "CREATE TRIGGER", "ddl", "catalog", ("trigger", "public.a", "t"), [("public.a", SRE)],
    ),
    "COMMENT ON COLUMN s.a.b IS 'x'": ("COMMENT", "ddl", "catalog", ("comment", "s.a", "b"), [("s.a", SUE)]),
    "COMMENT ON TABLE a IS 'x'": ("COMMENT", "ddl", "catalog", ("comment", "public.a", ""), [("public.a", SUE)]),
    "COMMENT ON INDEX i IS 'x'": ("COMMENT", "ddl", "ledger", None, []),
    "DROP INDEX CONCURRENTLY i": ("DROP INDEX CONCURRENTLY", "concurrent", "catalog", ("index", "", "i"), []),
    "DROP TABLE a": ("DROP TABLE", "ddl", "catalog", ("table", "public.a", "public.a"), [("public.a", AE)]),
    "DROP VIEW v": ("DROP VIEW", "ddl", "catalog", ("view", "public.v", "public.v"), [("public.v", AE)]),
    "DROP MATERIALIZED VIEW v": ("DROP VIEW", "ddl", "catalog", ("view", "public.v", "public.v"), [("public.v", AE)]),
    "DROP TRIGGER t ON a": ("DROP TRIGGER", "ddl", "catalog", ("trigger", "public.a", "t"), [("public.a", AE)]),
    "DROP FUNCTION f(int)": ("DROP FUNCTION", "ddl", "catalog", ("function", "public.f", "public.f"), []),
    "ANALYZE a": ("ANALYZE", "ddl", "ledger", None, [("public.a", SUE)]),
    "REFRESH MATERIALIZED VIEW CONCURRENTLY m": ("REFRESH", "ddl", "ledger", None, []),
    "-- Backfill: by id\nUPDATE a SET b = 1": ("BACKFILL", "data", "cursor", None, [("public.a", RE)]),
    "-- Done when: SELECT true\nUPDATE a SET b = 1": ("UPDATE", "ddl", "query", None, [("public.a", RE)]),
    "-- Done when: SELECT true\nINSERT INTO a VALUES (1)": ("INSERT", "ddl", "query", None, [("public.a", RE)]),
    "-- Done when: SELECT true\nDELETE FROM a": ("DELETE", "ddl", "query", None, [("public.a", RE)]),
    "-- Restore: fill\nSELECT FROM restored": ("restore", "restore", "cursor", None, []),
}  # fmt: skip


@pytest.mark.parametrize("text", ACCEPTED)
def test_statement(text: str) -> None:
    step = last(text)
    target = step["object"] and tuple(step["object"][key] for key in ("kind", "table", "name"))
    locks = [(lock["relation"], lock["mode"]) for lock in step["locks"]]
    assert (step["kind"], step["mode"], step["truth"], target, locks) == ACCEPTED[text]
    assert step["refused"] == ""


REFUSED = {
    "CREATE INDEX i ON a (b)": "write CREATE INDEX CONCURRENTLY",
    "CREATE INDEX CONCURRENTLY ON a (b)": "without a name",
    "DROP INDEX i": "write DROP INDEX CONCURRENTLY",
    "ALTER TABLE a ADD b int, ADD c int": "write one change a statement",
    "ALTER TABLE a ADD b int CHECK (b > 0)": "add it NOT VALID in a statement of its own",
    "ALTER TABLE a ADD b int UNIQUE": "rewrites or indexes public.a",
    "ALTER TABLE a ADD b int PRIMARY KEY": "rewrites or indexes public.a",
    "ALTER TABLE a ADD b int GENERATED ALWAYS AS IDENTITY": "rewrites or indexes public.a",
    "ALTER TABLE a ADD b int GENERATED ALWAYS AS (c + 1) STORED": "rewrites or indexes public.a",
    "ALTER TABLE a ADD b int DEFAULT 1 REFERENCES c": "checks every row of public.a under lock",
    "ALTER TABLE a ADD CONSTRAINT c CHECK (b > 0)": "then VALIDATE it",
    "ALTER TABLE a ADD CONSTRAINT c FOREIGN KEY (b) REFERENCES d": "scans public.a under SHARE ROW EXCLUSIVE",
    "ALTER TABLE a ADD CHECK (b > 0) NOT VALID": "without a name",
    "ALTER TABLE a ADD CONSTRAINT c UNIQUE (b)": "scans public.a under ACCESS EXCLUSIVE",
    "ALTER TABLE a ALTER b SET NOT NULL": "first ADD CONSTRAINT … CHECK (b IS NOT NULL) NOT VALID",
    "ALTER TABLE a ADD CONSTRAINT c CHECK (b IS NOT NULL) NOT VALID; ALTER TABLE a ALTER d SET NOT NULL": "(d IS NOT",
    "ALTER TABLE a ALTER b TYPE text": "ALTER TABLE … AlterColumnType",
    "ALTER TABLE a RENAME b TO c": "ALTER TABLE is not a statement",
    "CREATE TABLE t AS SELECT 1": "create the table, then backfill it",
    "DROP TABLE a, b": "one object",
    "DROP TYPE t": "a kind that this engine knows",
    "UPDATE a SET b = 1": "say '-- Backfill: by <key column>' above it",
    "-- Backfill:\nUPDATE a SET b = 1": "names no key column",
    "-- Backfill: by id\nUPDATE a SET b = c.d FROM c": "a backfill with FROM or WITH",
    "INSERT INTO a VALUES (1)": "add '-- Done when: SELECT …' above it",
    "DELETE FROM a": "add '-- Done when: SELECT …' above it",
    "VACUUM a": "autovacuum's work",
    "REFRESH MATERIALIZED VIEW m": "write REFRESH MATERIALIZED VIEW CONCURRENTLY",
    "BEGIN": "remove BEGIN, COMMIT and ROLLBACK",
    "COMMIT": "remove BEGIN, COMMIT and ROLLBACK",
    "TRUNCATE a": "TRUNCATE TABLE is not a statement",
    "CLUSTER a": "not a statement that this engine can run safely",
    "LOCK TABLE a": "not a statement that this engine can run safely",
    "DO $$ BEGIN NULL; END $$": "not a statement that this engine can run safely",
    "GRANT SELECT ON a TO b": "GRANT SELECT is not a statement",
    "SELECT 1": "not a statement that this engine can run safely",
    "SET lock_timeout = 0": "not a statement that this engine can run safely",
    "CALL f()": "not a statement that this engine can run safely",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused_by_name(text: str) -> None:
    assert REFUSED[text] in last(text)["refused"]


def test_what_the_file_itself_made_may_be_changed_freely() -> None:
    steps = classify(
        "CREATE TABLE a (b int); ALTER TABLE a ADD c int CHECK (c > 0); ALTER TABLE a ADD CONSTRAINT u UNIQUE (b);"
        "ALTER TABLE a ALTER c SET NOT NULL; CREATE MATERIALIZED VIEW m AS SELECT 1 AS x;"
        "CREATE UNIQUE INDEX i ON m (x)"
    )
    assert [step["refused"] for step in steps] == [""] * 6


def test_backfill_is_taken_apart() -> None:
    (step,) = classify(
        "-- Backfill: by tenant, id\n-- New rows: trigger fill_b\n"
        "UPDATE s.a AS t SET b = lower(t.c), d = 2 WHERE t.b IS NULL"
    )
    assert step["backfill"] == {
        "table": "s.a",
        "alias": "t",
        "key": ["tenant", "id"],
        "columns": ["b", "d"],
        "set": '"b" = lower(t.c), "d" = 2',
        "where": "t.b IS NULL",
        "new_rows": "trigger fill_b",
    }
    (whole,) = classify("-- Backfill: by id\nUPDATE a SET b = 1")
    assert whole["backfill"] | {"set": ""} == {
        "table": "public.a",
        "alias": "a",
        "key": ["id"],
        "columns": ["b"],
        "set": "",
        "where": "true",
        "new_rows": "left",
    }


def test_hazards_for_the_application_are_named() -> None:
    assert "cached plan" in last("ALTER TABLE a ADD b int")["hazards"][0]
    assert "fails on its next INSERT" in last("ALTER TABLE a ALTER b SET NOT NULL")["hazards"][0]


@pytest.mark.parametrize("path", ROADMAP, ids=[path.stem for path in ROADMAP])
def test_the_roadmaps_own_text_is_refused(path: Path) -> None:
    """As it was written, no migration can be carried out: its transaction, its plain UPDATEs, its inline checks."""
    steps = classify(path.read_text(encoding="utf-8"))
    refused = " ".join(step["refused"] for step in steps)
    assert steps[0]["refused"] == steps[-1]["refused"] != ""
    assert "remove BEGIN, COMMIT and ROLLBACK" in refused
    wanted = {
        "roadmap_003": "an inline CHECK scans public.agents",
        "roadmap_004": "an inline CHECK scans public.project_management_tasks",
        "roadmap_006": "an UPDATE of public.project_management_tasks in one transaction",
        "roadmap_007": "an UPDATE of public.agents in one transaction",
    }
    assert wanted.get(path.stem[:11], "") in refused


def test_all_of_the_roadmaps_migrations_were_tried() -> None:
    assert len(ROADMAP) == 9


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("DROP TABLE a CASCADE", "CASCADE drops what the migration does not name"),
        ("ALTER TABLE a DROP COLUMN b CASCADE", "CASCADE drops what the migration does not name"),
        (
            "ALTER TABLE a ADD COLUMN b uuid DEFAULT gen_random_uuid()",
            "a default that calls gen_random_uuid() rewrites",
        ),
        ("ALTER TABLE a ADD COLUMN b bigserial", "the type bigserial rewrites"),
        ("CREATE TEMP TABLE a (b int)", "a temporary table is gone"),
        ("-- Backfill: by id\nUPDATE a SET (b, c) = (1, 2)", "sets whole columns one by one"),
        ("-- Backfill: by id\nUPDATE a SET d[1] = 2", "sets whole columns one by one"),
    ],
)
def test_what_would_rewrite_or_reach_further_is_refused(sql: str, reason: str) -> None:
    (statement,) = read_sql(sql, "apply.sql").statements
    assert reason in Classifier("public").classify(statement.node, statement.notes)["refused"]


def test_a_partition_locks_its_parent_and_a_copied_structure_is_a_table() -> None:
    (part,) = read_sql("CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)", "apply.sql").statements
    assert Classifier("public").classify(part.node, {})["locks"] == [
        {"relation": "public.p", "mode": "ACCESS EXCLUSIVE"}
    ]
    (like,) = read_sql("CREATE TABLE a (LIKE b)", "apply.sql").statements
    assert Classifier("public").classify(like.node, {})["refused"] == ""


def test_a_stable_default_and_quoted_names_pass() -> None:
    (column,) = read_sql("ALTER TABLE a ADD COLUMN b timestamp DEFAULT (now() AT TIME ZONE 'utc')", "a").statements
    assert Classifier("public").classify(column.node, {})["refused"] == ""
    (fill,) = read_sql('-- Backfill: by id\nUPDATE a SET "Order" = 1', "a").statements
    assert Classifier("public").classify(fill.node, fill.notes)["backfill"]["set"] == '"Order" = 1'
