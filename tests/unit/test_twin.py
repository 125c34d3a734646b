"""The statement as it runs on the empty twin: nothing may reach the real table, nothing else may change."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pglast import parse_sql

from pgrollout.migration.twin import twin_statement

NAMES = st.text("abcdefghij_", min_size=1, max_size=8).map(lambda text: f"x{text}")


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("sql", "twin"),
    [
        (
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON public.a (b) WHERE c = 'CONCURRENTLY'",
            "CREATE INDEX i ON a (b) WHERE c = 'CONCURRENTLY'",
        ),
        ("CREATE INDEX i ON ONLY public . a (b)", "CREATE INDEX i ON ONLY a (b)"),
        ('CREATE INDEX i ON "Public"."A b" ("C")', 'CREATE INDEX i ON "A b" ("C")'),
        (
            "ALTER TABLE public.a ADD COLUMN IF NOT EXISTS b uuid REFERENCES public.c (id)",
            "ALTER TABLE a ADD COLUMN b uuid REFERENCES c (id)",
        ),
        (
            "CREATE TABLE IF NOT EXISTS public.a (b date DEFAULT (now() AT TIME ZONE 'utc'), c int REFERENCES s.d)",
            "CREATE TABLE a (b date DEFAULT (now() AT TIME ZONE 'utc'), c int REFERENCES d)",
        ),
        (
            "CREATE TRIGGER t BEFORE INSERT ON public.a FOR EACH ROW EXECUTE FUNCTION public.f('x')",
            "CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION public.f('x')",
        ),
        (
            "CREATE OR REPLACE FUNCTION s.f(x int) RETURNS int LANGUAGE sql AS $$ SELECT 1 FROM s.a $$",
            "CREATE OR REPLACE FUNCTION f(x int) RETURNS int LANGUAGE sql AS $$ SELECT 1 FROM s.a $$",
        ),
        (
            "CREATE OR REPLACE VIEW s.v (b, c) AS SELECT x, y FROM s.t",
            "CREATE TEMP VIEW pgrollout_view_twin (b, c) AS SELECT x, y FROM s.t",
        ),
        (
            "CREATE MATERIALIZED VIEW IF NOT EXISTS m AS WITH w AS (SELECT 1) SELECT * FROM w WITH NO DATA",
            "CREATE TEMP VIEW pgrollout_view_twin AS WITH w AS (SELECT 1) SELECT * FROM w",
        ),
        (
            "CREATE MATERIALIZED VIEW m WITH (fillfactor = 70) AS SELECT 1 AS x WITH DATA",
            "CREATE TEMP VIEW pgrollout_view_twin AS SELECT 1 AS x",
        ),
    ],
)
def test_twin(sql: str, twin: str) -> None:
    assert squeezed(twin_statement(sql)) == twin


@settings(deadline=None)  # the machine may be busy
@given(NAMES, NAMES, NAMES, NAMES)
def test_no_schema_is_left_on_a_relation(schema: str, table: str, column: str, other: str) -> None:
    twin = twin_statement(f"ALTER TABLE {schema}.{table} ADD COLUMN {column} int REFERENCES {schema}.{other} (id)")
    node = parse_sql(twin)[0].stmt
    assert node.relation.schemaname is None
    assert node.cmds[0].def_.constraints[0].pktable.schemaname is None
    assert (node.relation.relname, node.cmds[0].def_.colname) == (table, column)
