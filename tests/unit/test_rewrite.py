"""The safe forms: what each plainly written statement becomes, and that what is written safely stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pglast import parse_sql

from pgrollout.errors import RolloutError
from pgrollout.migration import rewrite
from pgrollout.migration.names import object_name
from pgrollout.migration.read import read_sql
from pgrollout.migration.rewrite import printed, safe_forms
from pgrollout.migration.scope import Scope
from pgrollout.rollout.load import load_rollout
from tests.support.rollouts import rollout_of

ROOT = Path(__file__).resolve().parents[2]


def forms(sql: str, scope: Scope | None = None) -> list[str] | None:
    found = safe_forms(sql, parse_sql(sql)[0].stmt, scope or Scope("public"))
    return None if found is None else [" ".join(form.split()) for form in found]


PRESENT = [
    "ALTER TABLE a ADD CONSTRAINT a_b_present CHECK (b IS NOT NULL) NOT VALID",
    "ALTER TABLE a VALIDATE CONSTRAINT a_b_present",
    "ALTER TABLE a ALTER COLUMN b SET NOT NULL",
    "ALTER TABLE a DROP CONSTRAINT a_b_present",
]
REWRITTEN = {
    # indexes
    "CREATE INDEX i ON a (b)": ["CREATE INDEX CONCURRENTLY i ON a (b)"],
    "CREATE INDEX IF NOT EXISTS i ON a (lower(b))": ["CREATE INDEX CONCURRENTLY i ON a (lower(b))"],
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON a (b)": ["CREATE INDEX CONCURRENTLY i ON a (b)"],
    "CREATE UNIQUE INDEX i ON a (b) WHERE c = 'IN'": ["CREATE UNIQUE INDEX CONCURRENTLY i ON a (b) WHERE c = 'IN'"],
    "DROP INDEX i": ["DROP INDEX CONCURRENTLY i"],
    "DROP INDEX IF EXISTS i, s.j": ["DROP INDEX CONCURRENTLY i", "DROP INDEX CONCURRENTLY s.j"],
    "REINDEX INDEX i": ["REINDEX INDEX CONCURRENTLY i"],
    "REINDEX TABLE a": ["REINDEX TABLE CONCURRENTLY a"],
    "REFRESH MATERIALIZED VIEW m": ["REFRESH MATERIALIZED VIEW CONCURRENTLY m"],
    # constraints
    "ALTER TABLE a ADD CHECK (b > 0)": [
        "ALTER TABLE a ADD CONSTRAINT a_b_check CHECK (b > 0) NOT VALID",
        "ALTER TABLE a VALIDATE CONSTRAINT a_b_check",
    ],
    "ALTER TABLE a ADD CHECK (b > c)": [
        "ALTER TABLE a ADD CONSTRAINT a_check CHECK (b > c) NOT VALID",
        "ALTER TABLE a VALIDATE CONSTRAINT a_check",
    ],
    "ALTER TABLE s.a ADD CONSTRAINT f FOREIGN KEY (b) REFERENCES s.d (e) ON DELETE CASCADE DEFERRABLE": [
        "ALTER TABLE s.a ADD CONSTRAINT f FOREIGN KEY (b) REFERENCES s.d (e) ON DELETE CASCADE DEFERRABLE NOT VALID",
        "ALTER TABLE s.a VALIDATE CONSTRAINT f",
    ],
    'ALTER TABLE a ADD FOREIGN KEY (b, "C") REFERENCES d': [
        'ALTER TABLE a ADD CONSTRAINT "a_b_C_fkey" FOREIGN KEY (b, "C") REFERENCES d NOT VALID',
        'ALTER TABLE a VALIDATE CONSTRAINT "a_b_C_fkey"',
    ],
    "ALTER TABLE a ADD CONSTRAINT n NOT NULL b": [
        "ALTER TABLE a ADD CONSTRAINT n NOT NULL b NOT VALID",
        "ALTER TABLE a VALIDATE CONSTRAINT n",
    ],
    "ALTER TABLE a ADD UNIQUE (b, c) INCLUDE (d) WITH (fillfactor = 70) DEFERRABLE": [
        "CREATE UNIQUE INDEX CONCURRENTLY a_b_c_key ON a (b, c) INCLUDE (d) WITH (fillfactor = 70)",
        "ALTER TABLE a ADD CONSTRAINT a_b_c_key UNIQUE USING INDEX a_b_c_key DEFERRABLE",
    ],
    "ALTER TABLE a ADD CONSTRAINT u UNIQUE NULLS NOT DISTINCT (b)": [
        "CREATE UNIQUE INDEX CONCURRENTLY u ON a (b) NULLS NOT DISTINCT",
        "ALTER TABLE a ADD CONSTRAINT u UNIQUE USING INDEX u",
    ],
    "ALTER TABLE a ADD PRIMARY KEY (b)": [
        *PRESENT,
        "CREATE UNIQUE INDEX CONCURRENTLY a_pkey ON a (b)",
        "ALTER TABLE a ADD CONSTRAINT a_pkey PRIMARY KEY USING INDEX a_pkey",
    ],
    "ALTER TABLE a ALTER b SET NOT NULL": PRESENT,
    # columns
    "ALTER TABLE a ADD b int DEFAULT 1 CONSTRAINT c CHECK (b > 0) NOT NULL": [
        "ALTER TABLE a ADD COLUMN b integer DEFAULT 1 NOT NULL",
        "ALTER TABLE a ADD CONSTRAINT c CHECK (b > 0) NOT VALID",
        "ALTER TABLE a VALIDATE CONSTRAINT c",
    ],
    "ALTER TABLE a ADD b int UNIQUE": [
        "ALTER TABLE a ADD COLUMN b integer",
        "CREATE UNIQUE INDEX CONCURRENTLY a_b_key ON a (b)",
        "ALTER TABLE a ADD CONSTRAINT a_b_key UNIQUE USING INDEX a_b_key",
    ],
    "ALTER TABLE a ADD b int DEFAULT 1 REFERENCES c DEFERRABLE INITIALLY DEFERRED": [
        "ALTER TABLE a ADD COLUMN b integer DEFAULT 1",
        "ALTER TABLE a ADD CONSTRAINT a_b_fkey FOREIGN KEY (b) REFERENCES c DEFERRABLE INITIALLY DEFERRED NOT VALID",
        "ALTER TABLE a VALIDATE CONSTRAINT a_b_fkey",
    ],
    # several changes at once, in the order in which PostgreSQL makes them
    "ALTER TABLE a ADD CONSTRAINT k CHECK (b > 0), ADD b int, DROP c": [
        "ALTER TABLE a DROP COLUMN c",
        "ALTER TABLE a ADD COLUMN b integer",
        "ALTER TABLE a ADD CONSTRAINT k CHECK (b > 0) NOT VALID",
        "ALTER TABLE a VALIDATE CONSTRAINT k",
    ],
    "ALTER TABLE a DETACH PARTITION b": ["ALTER TABLE a DETACH PARTITION b CONCURRENTLY"],
    # what the plan compares itself
    "CREATE TABLE IF NOT EXISTS a (b int)": ["CREATE TABLE a (b int)"],
    "ALTER TABLE IF EXISTS a DROP COLUMN IF EXISTS b": ["ALTER TABLE a DROP COLUMN b"],
    "ALTER TABLE a ADD COLUMN IF NOT EXISTS b int": ["ALTER TABLE a ADD COLUMN b int"],
    "CREATE SEQUENCE IF NOT EXISTS q": ["CREATE SEQUENCE q"],
    "ALTER TYPE e ADD VALUE IF NOT EXISTS 'x' AFTER 'y'": ["ALTER TYPE e ADD VALUE 'x' AFTER 'y'"],
    "DROP TABLE IF EXISTS a, b": ["DROP TABLE a", "DROP TABLE b"],
    "BEGIN": [],
    "COMMIT": [],
}  # fmt: skip


@pytest.mark.parametrize("sql", REWRITTEN)
def test_a_plain_statement_becomes_its_safe_form(sql: str) -> None:
    assert forms(sql) == REWRITTEN[sql]


@pytest.mark.parametrize("sql", REWRITTEN)
def test_a_safe_form_is_a_fixed_point(sql: str) -> None:
    """Rewritten once more, after all that stands before it in its file, nothing changes."""
    scope = Scope("public", not_null={("public.a", "b")})
    assert [forms(form, scope) for form in REWRITTEN[sql]] == [None] * len(REWRITTEN[sql])


SAFE = [
    "ALTER TABLE a ADD COLUMN b uuid REFERENCES c (id)",
    "ALTER TABLE a ADD COLUMN b int DEFAULT 1",
    "ALTER TABLE a ADD COLUMN b int CHECK (b > 0) NOT ENFORCED",
    "CREATE INDEX i ON ONLY a (b)",
    "REFRESH MATERIALIZED VIEW m WITH NO DATA",
    "ROLLBACK",
]


@pytest.mark.parametrize("sql", SAFE)
def test_what_needs_no_other_form_stays(sql: str) -> None:
    assert forms(sql) is None


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE INDEX i ON a (b)",
        "ALTER TABLE a ADD b int CHECK (b > 0)",
        "ALTER TABLE a ADD CONSTRAINT u UNIQUE (b)",
        "ALTER TABLE a ALTER b SET NOT NULL",
        "ALTER TABLE a DETACH PARTITION c",
        "REFRESH MATERIALIZED VIEW a",
    ],
)
def test_on_a_table_of_its_own_file_nothing_needs_another_form(sql: str) -> None:
    assert forms(sql, Scope("public", made={"public.a"})) is None


def test_on_such_a_table_a_constraint_gets_the_name_by_which_it_is_found_again() -> None:
    made = Scope("public", made={"public.a"})
    assert forms("ALTER TABLE a ADD UNIQUE (b, c)", made) == ["ALTER TABLE a ADD CONSTRAINT a_b_c_key UNIQUE (b, c)"]
    assert forms("ALTER TABLE a ADD PRIMARY KEY (b)", made) == ["ALTER TABLE a ADD CONSTRAINT a_pkey PRIMARY KEY (b)"]


def test_the_authors_layout_stays_where_words_are_cut_or_put_in() -> None:
    sql = "CREATE INDEX IF NOT EXISTS i\n    ON a (b)  -- why\n    WHERE c IN ('x', 'y')"
    assert safe_forms(sql, parse_sql(sql)[0].stmt, Scope("public")) == [
        "CREATE INDEX CONCURRENTLY i\n    ON a (b)  -- why\n    WHERE c IN ('x', 'y')"
    ]


def test_what_cannot_be_printed_faithfully_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = parse_sql("ALTER TABLE a ADD CONSTRAINT c CHECK (b > 0)")[0].stmt
    monkeypatch.setattr(rewrite, "RawStream", lambda: lambda _: "ALTER TABLE a ADD CONSTRAINT c CHECK (b < 0)")
    monkeypatch.setattr(rewrite, "IndentedStream", lambda **_: lambda _: "not SQL at all")
    with pytest.raises(RolloutError, match="cannot be printed faithfully"):
        printed(tree)


@pytest.mark.parametrize(
    ("table", "columns", "label", "name"),
    [
        ("a", ["b"], "check", "a_b_check"),
        ("a", [], "pkey", "a_pkey"),
        ("a.b", ["c"], "key", "a.b_c_key"),
        ("t" * 60, ["c" * 60], "key", f"{'t' * 29}_{'c' * 29}_key"),
        ("t" * 60, ["c" * 60], "fkey", f"{'t' * 29}_{'c' * 28}_fkey"),
        ("ä", ["ö" * 40], "key", f"ä_{'ö' * 28}_key"),
    ],
)
def test_names_are_those_that_postgresql_would_give(table: str, columns: list[str], label: str, name: str) -> None:
    assert object_name(table, columns, label) == name
    assert len(name.encode()) <= 63


# ---- in a rollout


def steps(rollout: dict[str, Any], way: str) -> list[dict[str, Any]]:
    return [step for phase in rollout["phases"] for migration in phase["migrations"] for step in migration[way]]


@pytest.mark.parametrize("way", ["apply", "rollback"])
def test_the_shipped_rollout_is_a_fixed_point(way: str) -> None:
    """Every step is what its author wrote, word by word and tree by tree."""
    rollout = load_rollout(str(ROOT / "sql"))
    files = [read_sql(path.read_text(), str(path)) for path in sorted(ROOT.glob(f"sql/phase*/*/{way}.sql"))]
    written = [statement for file in files for statement in file.statements]
    found = steps(rollout, way)
    assert [step["written"] for step in found] == [""] * len(found)
    assert [step["refused"] for step in found] == [""] * len(found)
    assert [step["sql"] for step in found] == [statement.sql for statement in written]
    assert all(parse_sql(step["sql"])[0].stmt == statement.node for step, statement in zip(found, written, strict=True))


def test_each_form_is_a_step_that_knows_what_was_written(tmp_path: Path) -> None:
    text = (
        "BEGIN;\n-- Step: limits\n-- Done when: SELECT true\nALTER TABLE a ADD b int DEFAULT 1 CHECK (b > 0);\nCOMMIT;"
    )
    found = steps(rollout_of(tmp_path, {"001_a": text}), "apply")
    assert [step["name"] for step in found] == ["limits", "a.a_b_check", "a.a_b_check.validate"]
    assert {step["written"] for step in found} == {"ALTER TABLE a ADD b int DEFAULT 1 CHECK (b > 0)"}
    assert {step["truth"] for step in found} == {"catalog"}
    assert {step["where"][-2:] for step in found} == {":4"}


def test_a_constraint_on_an_index_is_compared_together_with_its_index(tmp_path: Path) -> None:
    found = steps(rollout_of(tmp_path, {"001_a": "ALTER TABLE public.a ADD UNIQUE (b)"}), "apply")
    index, constraint = found[1]["probe"].split(";")
    assert " ".join(index.split()) == "CREATE UNIQUE INDEX a_b_key ON a (b)"
    assert " ".join(constraint.split()) == "ALTER TABLE a ADD CONSTRAINT a_b_key UNIQUE USING INDEX a_b_key"
