"""Every kind of statement: what it makes, what it locks, how it runs, and which ones are refused and why."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pglast import ast
from pglast.enums.parsenodes import AlterTableType

from pgrollout.errors import RolloutError
from pgrollout.migration.alter import _COMMANDS
from pgrollout.migration.alter import _REFUSED as ALTER_REFUSED
from pgrollout.migration.classify import _HANDLERS, Classifier
from pgrollout.migration.hazards import HAZARDS
from pgrollout.migration.hindrances import missing
from pgrollout.migration.read import read_sql
from pgrollout.migration.refusals import REFUSALS, refusal

AE, SRE, SUE, RE = "ACCESS EXCLUSIVE", "SHARE ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "ROW EXCLUSIVE"


def classify(text: str, rollback: bool = False, gates: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    classifier = Classifier("public", rollback, gates)
    return [step for statement in read_sql(text, "apply.sql").statements for step in classifier.steps(statement)]


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
    "ALTER TABLE a ADD CONSTRAINT c CHECK (b IS NOT NULL) NOT VALID; ALTER TABLE a VALIDATE CONSTRAINT c;"
    "ALTER TABLE a ALTER b SET DEFAULT 1; ALTER TABLE a ALTER b SET NOT NULL": (
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
    "REFRESH MATERIALIZED VIEW CONCURRENTLY m": ("REFRESH", "ddl", "ledger", None, [("public.m", "EXCLUSIVE")]),
    "ALTER TABLE a ALTER b TYPE text": (
        "ALTER COLUMN TYPE", "ddl", "catalog", ("column_type", "public.a", "b"), [("public.a", AE)],
    ),
    "ALTER TABLE a ALTER b SET STATISTICS 500": ("SET STATISTICS", "ddl", "query", None, [("public.a", SUE)]),
    "ALTER TABLE a SET (fillfactor = 70)": ("SET (storage parameters)", "ddl", "query", None, [("public.a", SUE)]),
    "ALTER TABLE a OWNER TO b": ("OWNER TO", "ddl", "query", None, [("public.a", AE)]),
    "ALTER TABLE a DISABLE TRIGGER t": ("DISABLE TRIGGER", "ddl", "query", None, [("public.a", SRE)]),
    "ALTER TABLE a DETACH PARTITION b CONCURRENTLY": (
        "DETACH PARTITION CONCURRENTLY", "concurrent", "query", None, [("public.a", SUE), ("public.b", AE)],
    ),
    "CREATE TABLE b (c int); ALTER TABLE a ATTACH PARTITION b FOR VALUES IN (1)": (
        "ATTACH PARTITION", "ddl", "query", None, [("public.a", SUE), ("public.b", AE)],
    ),
    "REINDEX TABLE CONCURRENTLY a": ("REINDEX TABLE CONCURRENTLY", "concurrent", "ledger", None, [("public.a", SUE)]),
    "CREATE TYPE s.e AS ENUM ('x')": ("CREATE TYPE", "ddl", "catalog", ("type", "s.e", "s.e"), []),
    "CREATE DOMAIN d AS int": ("CREATE DOMAIN", "ddl", "catalog", ("type", "public.d", "public.d"), []),
    "ALTER TYPE e ADD VALUE 'y'": ("ALTER TYPE ADD VALUE", "ddl", "query", None, []),
    "CREATE SEQUENCE q": ("CREATE SEQUENCE", "ddl", "catalog", ("sequence", "public.q", "public.q"), []),
    "CREATE POLICY p ON a": ("CREATE POLICY", "ddl", "catalog", ("policy", "public.a", "p"), [("public.a", AE)]),
    "CREATE STATISTICS x ON b, c FROM a": (
        "CREATE STATISTICS", "ddl", "catalog", ("statistics", "public.a", "x"), [("public.a", SUE)],
    ),
    "GRANT SELECT ON a TO b": ("GRANT", "ddl", "ledger", None, []),
    "CREATE SCHEMA s": ("CREATE SCHEMA", "ddl", "catalog", ("schema", "", "s"), []),
    "CREATE EXTENSION pgcrypto": ("CREATE EXTENSION", "ddl", "catalog", ("extension", "", "pgcrypto"), []),
    "ALTER INDEX i RENAME TO j": ("RENAME INDEX", "ddl", "query", None, [("public.i", SUE)]),
    "ALTER TABLE a RENAME CONSTRAINT b TO c": ("RENAME CONSTRAINT", "ddl", "query", None, [("public.a", AE)]),
    "-- Backfill: by id\nUPDATE a SET b = 1": ("BACKFILL", "data", "cursor", None, [("public.a", RE)]),
    "-- Done when: SELECT true\nUPDATE a SET b = 1": ("UPDATE", "ddl", "query", None, [("public.a", RE)]),
    "-- Done when: SELECT true\nINSERT INTO a VALUES (1)": ("INSERT", "ddl", "query", None, [("public.a", RE)]),
    "-- Done when: SELECT true\nDELETE FROM a": ("DELETE", "ddl", "query", None, [("public.a", RE)]),
    "-- Restore: fill\nSELECT FROM restored": ("restore", "restore", "cursor", None, []),
}  # fmt: skip


@pytest.mark.parametrize("text", ACCEPTED)
def test_statement(text: str) -> None:
    step = classify(text, rollback=True)[-1]
    target = step["object"] and tuple(step["object"][key] for key in ("kind", "table", "name"))
    locks = [(lock["relation"], lock["mode"]) for lock in step["locks"]]
    assert (step["kind"], step["mode"], step["truth"], target, locks) == ACCEPTED[text]
    assert step["refused"] == ""


REFUSED = {
    "CREATE INDEX CONCURRENTLY ON a (b)": "without a name",
    "ALTER TABLE a ADD CHECK (b > 0) NOT VALID": "without a name",
    "ALTER TABLE a ADD CONSTRAINT c UNIQUE USING INDEX i": "give both the same name",
    "ALTER INDEX i SET (fillfactor = 70)": "ALTER INDEX is not supported",
    "ALTER TABLE a ALTER 1 SET STATISTICS 7": "of an index column by number",
    "ALTER TABLE a SET WITHOUT OIDS": "has done nothing since PostgreSQL 12",
    "ALTER FOREIGN TABLE a OPTIONS (x 'y')": "ALTER FOREIGN TABLE is not supported",
    "CREATE TABLE t AS SELECT 1": "create the table, then backfill it",
    "-- Backfill:\nUPDATE a SET b = 1": "names no key column",
    "-- Backfill: by id\nUPDATE a SET b = c.d FROM c": "with FROM, WITH or RETURNING cannot run in batches",
    "INSERT INTO a VALUES (1)": "add '-- Done when: SELECT …' above it",
    "DELETE FROM a": "add '-- Done when: SELECT …' above it",
    "MERGE INTO a USING b ON true WHEN MATCHED THEN DELETE": "MERGE changes rows and nothing says when it is done",
    "VACUUM a": "autovacuum's work",
    "REFRESH MATERIALIZED VIEW m WITH NO DATA": "makes its readers fail",
    "REINDEX DATABASE": "maintenance of all tables",
    "DROP TABLE a CASCADE": "drop it by name",
    "DROP LANGUAGE x": "DROP LANGUAGE is not supported",
    "CREATE SCHEMA s CREATE TABLE t (a int)": "write a statement for each",
    "ROLLBACK": "set by the engine itself, step by step; remove it",
    "BEGIN ISOLATION LEVEL SERIALIZABLE": "set by the engine itself",
    "DO $$ BEGIN NULL; END $$": "DO hides what it does, so that nobody can say which locks it takes",
    "CALL f()": "CALL hides what it does",
    "COPY a FROM stdin": "load them before the rollout",
    "SELECT 1": "put a check into validate.sql",
    "LOCK TABLE a": "what the engine does itself",
    "SET lock_timeout = 0": "search_path and timeouts are the engine's",
    "CREATE ROLE r": "make them before the rollout",
    "CREATE RULE r AS ON INSERT TO a DO NOTHING": "write a trigger",
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
    assert "fails on its next INSERT" in classify("ALTER TABLE a ALTER b SET NOT NULL")[2]["hazards"][0]


def test_what_would_reach_further_or_be_gone_is_refused() -> None:
    assert "CASCADE drops what the migration does not name" in last("ALTER TABLE a DROP COLUMN b CASCADE")["refused"]
    assert "a temporary table is gone" in last("CREATE TEMP TABLE a (b int)")["refused"]
    assert "a temporary view is gone" in last("CREATE TEMP VIEW a AS SELECT 1")["refused"]
    for assignment in ("(b, c) = (1, 2)", "d[1] = 2"):
        refused = last(f"-- Backfill: by id\nUPDATE a SET {assignment}")["refused"]
        assert "sets whole columns one by one" in refused


def test_a_partition_locks_its_parent_and_a_copied_structure_is_a_table() -> None:
    part = last("CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)")
    assert part["locks"] == [{"relation": "public.p", "mode": "ACCESS EXCLUSIVE"}]
    assert last("CREATE TABLE a (LIKE b)")["refused"] == ""


def test_a_stable_default_and_quoted_names_pass() -> None:
    assert last("ALTER TABLE a ADD COLUMN b timestamp DEFAULT (now() AT TIME ZONE 'utc')")["refused"] == ""
    assert last('-- Backfill: by id\nUPDATE a SET "Order" = 1')["backfill"]["set"] == '"Order" = 1'


def test_a_plain_update_is_a_backfill_whose_key_the_plan_finds() -> None:
    step = last("UPDATE a SET b = 1 WHERE b IS NULL")
    assert (step["kind"], step["mode"], step["backfill"]["key"]) == ("BACKFILL", "data", [])


# ---- completeness: no statement of PostgreSQL's grammar passes unknown

STATEMENTS = sorted(name for name in vars(ast) if name.endswith("Stmt"))


@pytest.mark.parametrize("name", STATEMENTS)
def test_every_statement_is_classified_or_refused_by_name(name: str) -> None:
    if name in _HANDLERS:
        assert name not in REFUSALS or name == "TransactionStmt"
        return
    sentence = refusal(name)
    assert name in REFUSALS, f"{name} would pass unknown"
    assert name not in sentence
    assert len(sentence.split()) > 6


@pytest.mark.parametrize("command", list(AlterTableType), ids=lambda command: command.name)
def test_every_change_of_a_table_is_classified_or_refused_by_name(command: AlterTableType) -> None:
    """The grammar makes each but those that exist inside the server alone."""
    if command in _COMMANDS:
        return
    internal = re.compile(r"AT_(Re|Cooked|AddIndex|AddColumnToView|Replace)")
    assert command in ALTER_REFUSED or internal.match(command.name), f"{command.name} would pass unknown"


def test_no_internal_name_reaches_a_person() -> None:
    texts = [*(text for pair in REFUSALS.values() for text in pair), *ALTER_REFUSED.values()]
    assert not [text for text in texts if re.search(r"AT_|[a-z]Stmt", text)]


# ---- hazards


HAZARDOUS = {
    "ALTER TABLE a ADD COLUMN b uuid DEFAULT gen_random_uuid()": ("rewrite", "gen_random_uuid() rewrites the table"),
    "ALTER TABLE a ADD COLUMN b bigserial": ("rewrite", "the type bigserial rewrites"),
    "ALTER TABLE a ADD b int GENERATED ALWAYS AS IDENTITY": ("rewrite", "an identity column rewrites"),
    "ALTER TABLE a ADD b int GENERATED ALWAYS AS (c + 1) STORED": ("rewrite", "a stored generated column rewrites"),
    "ALTER TABLE a ADD b int PRIMARY KEY": ("scan", "built and checked at once"),
    "ALTER TABLE a ADD b int NOT NULL": ("not-null", "fails as soon as public.a has a row"),
    "ALTER TABLE a ALTER b SET EXPRESSION AS (c)": ("rewrite", "a new expression for b"),
    "ALTER TABLE a SET LOGGED": ("rewrite", "copies the table"),
    "ALTER TABLE a SET TABLESPACE t": ("rewrite", "copies the table"),
    "CLUSTER a USING i": ("rewrite", "so its readers and writers wait until it is over"),
    "VACUUM FULL a": ("rewrite", "VACUUM FULL copies the table"),
    "ALTER TABLE a ADD CONSTRAINT c EXCLUDE USING gist (b WITH &&)": ("scan", "builds its index and reads every row"),
    "ALTER TABLE a ATTACH PARTITION b FOR VALUES IN (1)": ("scan", "reads every row of public.b"),
    "ALTER DOMAIN d ADD CONSTRAINT c CHECK (value > 0)": ("scan", "every table that uses the domain"),
    "ALTER TABLE a RENAME b TO c": ("rename", "may still ask for column b of public.a"),
    "ALTER TABLE a RENAME TO b": ("rename", "may still ask for table public.a"),
    "ALTER TABLE a SET SCHEMA s": ("rename", "look in the old schema"),
    "ALTER TYPE e RENAME VALUE 'a' TO 'b'": ("rename", "may still send the value 'a'"),
    "ALTER TABLE a DROP COLUMN b": ("drop-column", "may still use column b of public.a"),
    "DROP TABLE a": ("drop-table", "may still use table public.a"),
    "DROP VIEW v": ("drop-object", "may still use view public.v"),
    "DROP TYPE t": ("drop-object", "may still use type public.t"),
    "TRUNCATE a": ("truncate", "all rows go at once"),
    "DROP INDEX CONCURRENTLY idx_watched": ("gate-index", "a gate file of this rollout relies on index idx_watched"),
}  # fmt: skip


@pytest.mark.parametrize("text", HAZARDOUS)
def test_a_hazard_is_refused_until_its_author_accepts_it(text: str) -> None:
    hazard, words = HAZARDOUS[text]
    (step,) = classify(text, gates=frozenset({"idx_watched"}))
    assert words in step["refused"]
    assert f"write '-- Accept: {hazard} because <reason>' above it" in step["refused"]
    (accepted,) = classify(f"-- Accept: {hazard} because I say so\n{text}", gates=frozenset({"idx_watched"}))
    assert accepted["refused"] == ""
    assert accepted["accepted"] == [{"hazard": hazard, "reason": "I say so"}]
    other = "truncate" if hazard != "truncate" else "scan"
    (wrong,) = classify(f"-- Accept: {other} because I say so\n{text}", gates=frozenset({"idx_watched"}))
    assert words in wrong["refused"]


def test_all_static_hazards_are_tried() -> None:
    assert {hazard for hazard, _ in HAZARDOUS.values()} == HAZARDS.keys() - {
        "narrowing",
        "replace",
        "on-delete-cascade",
    }


def test_in_a_rollback_dropping_what_the_rollout_made_is_no_hazard() -> None:
    for text in ("ALTER TABLE a DROP COLUMN b", "DROP TABLE a", "DROP VIEW v", "DROP INDEX CONCURRENTLY i"):
        assert classify(text, rollback=True, gates=frozenset({"i"}))[-1]["refused"] == ""


def test_not_null_is_safe_where_something_fills_the_column() -> None:
    plain = "ALTER TABLE a ALTER b SET NOT NULL"
    assert "fails if it does not write b" in classify(plain)[2]["refused"]
    trigger = "CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION f();"
    later = trigger.replace("BEFORE INSERT", "BEFORE UPDATE")
    for text, refused in ((trigger, False), ("ALTER TABLE a ALTER b SET DEFAULT 1;", False), (later, True)):
        assert bool([step for step in classify(text + plain) if step["refused"]]) is refused


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("-- Accept: rename", "expected '-- Accept: <hazard> because <reason>'"),
        ("-- Accept: rename because", "expected '-- Accept: <hazard> because <reason>'"),
        ("-- accept: renames because x", "unknown hazard 'renames'; did you mean 'rename'? Known: rewrite,"),
        ("-- Accepts: rename because x", "unknown comment key 'Accepts:'; did you mean 'Accept:'?"),
    ],
)
def test_an_acceptance_that_cannot_be_honoured_is_told(line: str, sentence: str) -> None:
    with pytest.raises(RolloutError, match=re.escape(sentence)):
        read_sql(f"ANALYZE a;\n{line}\nALTER TABLE a RENAME b TO c", "apply.sql")


def test_an_acceptance_of_what_does_not_happen_is_refused() -> None:
    assert "it has no such hazard; remove the line" in last("-- Accept: scan because x\nANALYZE a")["refused"]


# ---- versions


VERSIONED = {
    "MERGE INTO a USING b ON true WHEN MATCHED THEN DELETE": (15, "MERGE"),
    "CREATE UNIQUE INDEX i ON a (b) NULLS NOT DISTINCT": (15, "NULLS NOT DISTINCT"),
    "CREATE VIEW v WITH (security_invoker) AS SELECT 1": (15, "a security_invoker view"),
    "ALTER TABLE a SET ACCESS METHOD heap": (15, "SET ACCESS METHOD"),
    "ALTER TABLE a ADD CONSTRAINT c FOREIGN KEY (b) REFERENCES d ON DELETE SET NULL (b) NOT VALID": (
        15,
        "ON DELETE SET",
    ),
    "ALTER TABLE a ALTER b SET EXPRESSION AS (c)": (17, "SET EXPRESSION"),
    "ALTER TABLE a ADD CONSTRAINT c NOT NULL b NOT VALID": (18, "NOT NULL as a named or NOT VALID constraint"),
    "ALTER TABLE a ADD b int GENERATED ALWAYS AS (c) VIRTUAL": (18, "a virtual generated column"),
    "ALTER TABLE a ALTER b SET DEFAULT uuidv7()": (18, "uuidv7()"),
    "ALTER TABLE a ADD CONSTRAINT c CHECK (b > 0) NOT ENFORCED": (18, "NOT ENFORCED"),
}


@pytest.mark.parametrize("text", VERSIONED)
def test_what_a_version_lacks_is_told(text: str) -> None:
    version, what = VERSIONED[text]
    needed = last(text)["needs"]
    assert what in missing(needed, version - 1)
    assert f"came with PostgreSQL {version}; this server is {version - 1}" in missing(needed, version - 1)
    assert missing(needed, version) == ""


@pytest.mark.parametrize("text", ACCEPTED)
def test_what_every_supported_version_has_needs_none(text: str) -> None:
    assert classify(text, rollback=True)[-1]["needs"] == []
