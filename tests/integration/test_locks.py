"""Every kind of statement on a real server: the locks that the plan shows are the locks that it takes.

A statement of a transaction is asked for its locks before it commits. A top-level one is made to wait for a writer of
its table, and its locks are read from another session meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo.server import MIGRATION_ROLE
from pgrollout.migration.classify import _HANDLERS
from pgrollout.migration.locks import MODES
from pgrollout.migration.read import read_sql
from tests.conftest import Databases
from tests.support.ledger import InBackground
from tests.support.plans import plan_of, steps_of_plan
from tests.support.rollouts import rollout_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from demo.server import Server
    from tests.conftest import Database

SETUP = """
CREATE TABLE r (id int PRIMARY KEY, note text);
CREATE TABLE a (id int PRIMARY KEY, b int, c text, d int, e int NOT NULL, n int);
ALTER TABLE a ADD CONSTRAINT n_present CHECK (n IS NOT NULL);
CREATE TABLE fk (id int PRIMARY KEY, r_id int CONSTRAINT fk_r REFERENCES r DEFERRABLE);
CREATE TABLE unchecked (id int, r_id int);
ALTER TABLE unchecked ADD CONSTRAINT unchecked_r FOREIGN KEY (r_id) REFERENCES r NOT VALID;
CREATE INDEX a_b ON a (b);
CREATE UNIQUE INDEX a_c ON a (c);
CREATE TABLE p (k int NOT NULL, v text) PARTITION BY LIST (k);
CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
CREATE TABLE p2 (k int NOT NULL CONSTRAINT k_is_2 CHECK (k = 2), v text);
CREATE TABLE heir (x int);
CREATE TABLE elder (x int);
CREATE SEQUENCE q;
CREATE VIEW v AS SELECT id FROM a;
CREATE MATERIALIZED VIEW m AS SELECT id FROM r;
CREATE UNIQUE INDEX m_id ON m (id);
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE FUNCTION g() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TRIGGER present BEFORE UPDATE ON a FOR EACH ROW EXECUTE FUNCTION f();
CREATE POLICY present ON a;
CREATE TYPE mood AS ENUM ('sad');
CREATE DOMAIN code AS text;
CREATE SCHEMA elsewhere;
CREATE STATISTICS s ON b, d FROM a;
"""
STATEMENTS = [
    "CREATE TABLE t (id int REFERENCES r, x int)",
    "CREATE TABLE p3 PARTITION OF p FOR VALUES IN (3)",
    "CREATE TABLE child () INHERITS (elder)",
    "CREATE TABLE t (id int); CREATE INDEX t_i ON t (id); ALTER TABLE t ADD UNIQUE (id); TRUNCATE t",
    "ALTER TABLE a ADD x int",
    "ALTER TABLE a ADD x int REFERENCES r",
    "ALTER TABLE a ADD x int DEFAULT 1 REFERENCES r CHECK (x > 0)",
    "ALTER TABLE a ADD x int UNIQUE",
    "ALTER TABLE a DROP b",
    "ALTER TABLE fk DROP r_id",
    "ALTER TABLE a ALTER b TYPE bigint",
    "ALTER TABLE a ALTER b SET DEFAULT 1, ALTER b DROP DEFAULT",
    "ALTER TABLE a ALTER b SET NOT NULL, ALTER e DROP NOT NULL",
    "ALTER TABLE a ALTER b SET STATISTICS 5, ALTER b SET (n_distinct = 5), ALTER b RESET (n_distinct)",
    "ALTER TABLE a ALTER c SET STORAGE EXTERNAL, ALTER c SET COMPRESSION pglz",
    "ALTER TABLE a ALTER e ADD GENERATED ALWAYS AS IDENTITY; ALTER TABLE a ALTER e SET START WITH 5",
    "ALTER TABLE a ALTER e ADD GENERATED ALWAYS AS IDENTITY; ALTER TABLE a ALTER e DROP IDENTITY",
    "ALTER TABLE a ADD CONSTRAINT x CHECK (b > 0)",
    "ALTER TABLE a ADD CONSTRAINT x FOREIGN KEY (b) REFERENCES r",
    "ALTER TABLE unchecked VALIDATE CONSTRAINT unchecked_r",
    "ALTER TABLE unchecked ADD PRIMARY KEY (id)",
    "ALTER TABLE a ADD CONSTRAINT a_c UNIQUE USING INDEX a_c",
    "ALTER TABLE fk ALTER CONSTRAINT fk_r INITIALLY DEFERRED",
    "ALTER TABLE a DROP CONSTRAINT n_present",
    "ALTER TABLE fk DROP CONSTRAINT fk_r",
    "ALTER TABLE a RENAME CONSTRAINT n_present TO n_there",
    "ALTER TABLE a RENAME b TO bb",
    "ALTER TABLE a RENAME TO aa",
    "ALTER INDEX a_b RENAME TO a_bb",
    "ALTER VIEW v RENAME TO vv",
    "ALTER TRIGGER present ON a RENAME TO there",
    "ALTER POLICY present ON a RENAME TO there",
    "ALTER TABLE a SET SCHEMA elsewhere",
    "ALTER TABLE a SET (fillfactor = 70), RESET (fillfactor)",
    "ALTER TABLE a SET (user_catalog_table = true)",
    "ALTER TABLE a CLUSTER ON a_b, SET WITHOUT CLUSTER",
    "ALTER TABLE a REPLICA IDENTITY FULL",
    "ALTER TABLE a ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "ALTER TABLE a DISABLE TRIGGER present, ENABLE ALWAYS TRIGGER present",
    "ALTER TABLE a DISABLE TRIGGER USER",
    "ALTER TABLE a SET UNLOGGED",
    "ALTER TABLE heir INHERIT elder; ALTER TABLE heir NO INHERIT elder",
    "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES IN (2)",
    "ALTER TABLE p DETACH PARTITION p1",
    "CREATE INDEX p_i ON ONLY p (v)",
    "ALTER TABLE p ADD x int, DROP v",
    "ALTER TABLE p ALTER v SET DEFAULT '', ALTER v TYPE varchar(9), ALTER v SET STATISTICS 5, ALTER v SET STORAGE MAIN",
    "ALTER TABLE p ALTER v SET NOT NULL",
    "ALTER TABLE p ADD CHECK (k > 0)",
    "ALTER TABLE p RENAME v TO w",
    "ALTER TABLE p RENAME TO pp",
    "ALTER TABLE p OWNER TO rollout",
    "CREATE TRIGGER t BEFORE INSERT ON p FOR EACH ROW EXECUTE FUNCTION f(); DROP TRIGGER t ON p",
    "COMMENT ON TABLE p IS 'x'",
    "TRUNCATE p",
    "DROP TABLE p1",
    "DROP TABLE p",
    "CREATE TABLE p4 PARTITION OF p FOR VALUES IN (4) PARTITION BY LIST (v); ALTER TABLE p ADD x int",
    "ALTER TABLE heir INHERIT elder; ALTER TABLE elder ADD y int; DROP TABLE heir",
    "CREATE INDEX a_x ON a (d)",
    "DROP INDEX a_b",
    "REINDEX TABLE a",
    "CREATE VIEW w AS SELECT id FROM a",
    "CREATE OR REPLACE VIEW v AS SELECT id, 1 AS one FROM a",
    "CREATE MATERIALIZED VIEW n AS SELECT id FROM a",
    "REFRESH MATERIALIZED VIEW m",
    "CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION f()",
    "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON a FROM r FOR EACH ROW EXECUTE FUNCTION f()",
    "CREATE POLICY x ON a",
    "ALTER POLICY present ON a USING (true)",
    "CREATE STATISTICS x ON b, d FROM a",
    "ALTER STATISTICS s SET STATISTICS 5",
    "COMMENT ON TABLE a IS 'x'",
    "COMMENT ON COLUMN a.b IS 'x'",
    "CREATE SEQUENCE x",
    "ALTER SEQUENCE q INCREMENT 2",
    "ALTER TYPE mood ADD VALUE 'ok'",
    "ALTER DOMAIN code ADD CONSTRAINT x CHECK (value <> '') NOT VALID",
    "GRANT SELECT ON a TO hive_app",
    "REVOKE SELECT ON a FROM hive_app",
    "DROP TABLE fk",
    "DROP VIEW v",
    "DROP MATERIALIZED VIEW m",
    "DROP SEQUENCE q",
    "DROP TRIGGER present ON a",
    "DROP POLICY present ON a",
    "DROP STATISTICS s",
    "DROP FUNCTION g()",
    "TRUNCATE unchecked",
    "CLUSTER a USING a_b",
    "VACUUM FULL a",
    "ANALYZE a, r",
    "-- Done when: SELECT false\nINSERT INTO a (id, e, n) VALUES (1, 1, 1)",
    "-- Done when: SELECT false\nUPDATE a SET b = 1",
    "-- Done when: SELECT false\nDELETE FROM a",
]  # fmt: skip
LOCKS = """
SELECT l.relation::bigint, l.mode FROM pg_locks AS l
WHERE l.locktype = 'relation' AND l.pid = %s AND l.relation = ANY (%s)
"""
RELATIONS = """
SELECT c.oid::bigint, n.nspname || '.' || c.relname
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND (c.relkind IN ('r', 'p', 'v', 'm') OR n.nspname || '.' || c.relname = ANY (%s))
"""
# What readers and writers of the application notice, and what keeps autovacuum and other DDL away.
NOTICED = MODES[2:]
NAMES = {mode.title().replace(" ", "") + "Lock": mode for mode in MODES}


@pytest.fixture(scope="module")
def ground(server: Server, request: pytest.FixtureRequest) -> Iterator[Database]:
    databases = Databases(server, request)
    yield databases.clone(empty=True)
    databases.drop()


@pytest.fixture
def fresh(ground: Database, server: Server) -> Database:
    """The same few tables before each statement."""
    with contextlib.closing(server.connect(ground.name)) as superuser, superuser.cursor() as cursor:
        cursor.execute(
            "DROP SCHEMA public CASCADE; DROP SCHEMA IF EXISTS elsewhere CASCADE;"
            f"CREATE SCHEMA public AUTHORIZATION {MIGRATION_ROLE}; GRANT USAGE ON SCHEMA public TO PUBLIC"
        )
    ground.execute(SETUP)
    return ground


def strongest(rows: list[tuple[str, str]]) -> dict[str, str]:
    """The strongest mode on each relation; a reader's locks are left out."""
    found: dict[str, str] = {}
    for relation, mode in rows:
        if mode in NOTICED and MODES.index(mode) > MODES.index(found.get(relation, MODES[0])):
            found[relation] = mode
    return found


def held(rows: list[tuple[int, str]], relations: dict[int, str]) -> dict[str, str]:
    return strongest([(relations[relation], NAMES[mode]) for relation, mode in rows])


def in_a_transaction(database: Database, sql: str, relations: dict[int, str]) -> dict[str, str]:
    with contextlib.closing(database.connect(autocommit=False)) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        cursor.execute(LOCKS, (connection.info.backend_pid, list(relations)))
        found = held(cursor.fetchall(), relations)
        connection.commit()
    return found


def at_top_level(database: Database, sql: str, relations: dict[int, str]) -> dict[str, str]:
    """Holds every table as a writer does, reads the locks of the statement that waits, then lets it go."""
    tables = database.query(
        "SELECT c.oid::regclass::text FROM pg_class AS c "
        "WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'"
    )
    with (
        contextlib.closing(database.connect(autocommit=False)) as writer,
        contextlib.closing(database.connect()) as worker,
    ):
        for (table,) in tables:
            writer.cursor().execute(f"LOCK TABLE ONLY {table} IN ROW EXCLUSIVE MODE")
        pid = worker.info.backend_pid
        background = InBackground(worker.cursor().execute, sql)
        wait_until(lambda: database.query("SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted", pid), what=sql)
        found = held(database.query(LOCKS, pid, list(relations)), relations)
        writer.rollback()
        background.result()
    return found


@pytest.mark.parametrize("text", STATEMENTS)
def test_the_locks_of_the_plan_are_the_locks_of_the_server(fresh: Database, tmp_path: Path, text: str) -> None:
    rollout = rollout_of(tmp_path, {"001_a": text})
    for number in range(len(rollout["phases"][0]["migrations"][0]["apply"])):
        step = steps_of_plan(plan_of(fresh, rollout))[number]
        wanted = strongest([(lock["relation"], lock["mode"]) for lock in step["locks"]])
        relations = dict(fresh.query(RELATIONS, list(wanted)))
        run = at_top_level if step["mode"] == "concurrent" else in_a_transaction
        there = {name: mode for name, mode in wanted.items() if name in relations.values()}
        assert run(fresh, step["sql"], relations) == there, step["sql"]


def test_every_kind_of_statement_is_tried() -> None:
    """What the classifier knows and this file does not is named here, with why."""
    tried = {type(s.node).__name__ for text in STATEMENTS for s in read_sql(text, "x").statements}
    untried = set(_HANDLERS) - tried
    assert untried == WITHOUT_LOCKS


# No relation of the user is touched by any of these.
WITHOUT_LOCKS = {
    "AlterDefaultPrivilegesStmt",
    "AlterExtensionStmt",
    "AlterFunctionStmt",
    "AlterObjectDependsStmt",
    "AlterOwnerStmt",
    "AlterTypeStmt",
    "CompositeTypeStmt",
    "CreateDomainStmt",
    "CreateEnumStmt",
    "CreateExtensionStmt",
    "CreateFunctionStmt",
    "CreateRangeStmt",
    "CreateSchemaStmt",
    "MergeStmt",  # PostgreSQL 15; locks as UPDATE does
}
