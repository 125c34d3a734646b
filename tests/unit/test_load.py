"""A rollout folder: what is read from it, how steps get their names, and what a person reads when it is not right."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from pgrollout.errors import RolloutError
from pgrollout.rollout.load import load_rollout, required_indexes
from tests.support.rollouts import PHASE, rollout_of, write_rollout

ROOT = Path(__file__).resolve().parents[2]
INDEX = "CREATE INDEX CONCURRENTLY i ON a (b);"


def refusal(root: Path) -> str:
    with pytest.raises(RolloutError) as caught:
        load_rollout(str(root))
    return str(caught.value).replace(str(root), "sql")


def names(rollout: dict[str, Any]) -> list[str]:
    return [step["name"] for step in rollout["phases"][0]["migrations"][0]["apply"]]


def test_phases_and_migrations_come_in_order(tmp_path: Path) -> None:
    files = {f"{phase}/{name}/apply.sql": INDEX for phase in ("phase10", "phase2") for name in ("002_b", "001_a")}
    files["phase10/phase.yml"] = PHASE.format(name="ten", needs="phase2")
    files["phase2/phase.yml"] = PHASE.format(name="two", needs="")
    rollout = load_rollout(str(write_rollout(tmp_path, files)))
    assert [phase["name"] for phase in rollout["phases"]] == ["phase2", "phase10"]
    assert [migration["name"] for migration in rollout["phases"][0]["migrations"]] == ["001_a", "002_b"]
    assert rollout["phases"][1]["needs"] == ["phase2"]
    assert rollout["immediate"] is None


def test_migration_has_its_header_checksum_steps_and_checks(tmp_path: Path) -> None:
    text = f"-- Migration: 001_a\n-- Only when: enable_features\n\n{INDEX}\n"
    rollout = rollout_of(
        tmp_path,
        {
            "phase1/001_a/apply.sql": text,
            "phase1/001_a/rollback.sql": "DROP INDEX CONCURRENTLY i;",
            "phase1/001_a/validate.sql": "-- Check: all well\nSELECT 1, 2, 3 WHERE false;\n"
            "-- Refuses: check_violation\nINSERT INTO a VALUES (1);",
            "phase1/001_a/require.sql": "SELECT 1, 2, 3;",
        },
    )
    (migration,) = rollout["phases"][0]["migrations"]
    (step,) = migration["apply"]
    assert migration["checksum"] == hashlib.sha256(text.encode()).hexdigest()
    assert (step["id"], step["only_when"]) == ("001_a/i", "enable_features")
    assert step["where"].endswith("001_a/apply.sql:4")
    assert [check["title"] for check in migration["validate"]] == ["all well", "check_violation"]
    assert [check["refuses"] for check in migration["validate"]] == ["", "check_violation"]
    assert migration["require"][0]["title"].endswith("require.sql:1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CREATE TABLE a (b int); DROP TABLE a;", ["a", "a.drop"]),
        (
            "ALTER TABLE a ADD CONSTRAINT c CHECK (b IS NOT NULL) NOT VALID; ALTER TABLE a VALIDATE CONSTRAINT c;"
            "ALTER TABLE a ALTER b SET NOT NULL; ALTER TABLE a DROP CONSTRAINT c;",
            ["a.c", "a.c.validate", "a.b", "a.c.drop"],
        ),
        ("ANALYZE a; ANALYZE b; ANALYZE a;", ["analyze_a", "analyze_b", "analyze_a.analyze"]),
        ("-- Step: fill.b_1-x\n-- Backfill: by id\nUPDATE a SET b = 1;", ["fill.b_1-x"]),
    ],
)
def test_step_names(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert names(rollout_of(tmp_path, {"001_a": text})) == expected


def test_later_steps_excuse_what_they_change(tmp_path: Path) -> None:
    """A column that a later step makes NOT NULL is still the column that the earlier step asked for."""
    rollout = rollout_of(
        tmp_path,
        {
            "phase1/001_a/apply.sql": "ALTER TABLE a ADD COLUMN b int;",
            "phase2/002_b/apply.sql": "ALTER TABLE a ADD CONSTRAINT c CHECK (b IS NOT NULL) NOT VALID;"
            "ALTER TABLE a VALIDATE CONSTRAINT c; ALTER TABLE a ALTER b SET NOT NULL;"
            "ALTER TABLE a ALTER b SET DEFAULT 1;",
        },
    )
    assert rollout["phases"][0]["migrations"][0]["apply"][0]["overridden"] == {"b": ["not_null", "default"]}


def test_immediate_holds_steps_of_the_phases(tmp_path: Path) -> None:
    files = {
        "phase1/001_a/apply.sql": INDEX,
        "immediate/apply.sql": "-- Holds: 001_a/i\n\n-- Done when: SELECT true\nUPDATE flags SET value = 'false';",
        "immediate/validate.sql": "SELECT 1, 2, 3 WHERE false;",
    }
    assert [step["id"] for step in rollout_of(tmp_path, files)["immediate"]["holds"]] == ["001_a/i"]
    (tmp_path / "immediate" / "apply.sql").write_text("-- Holds: 001_a/j\n\nANALYZE a;")
    assert refusal(tmp_path) == (
        "sql/immediate/apply.sql: '-- Holds:' names '001_a/j', which is no step of any phase."
    )  # fmt: skip


BROKEN: dict[str, tuple[dict[str, str | None], str]] = {
    "no phase": ({"phase1": None}, "sql: no phase* folders found; expected at least phase1/<migration>/apply.sql."),
    "no migration": (
        {"phase1/001_a": None},
        "sql/phase1: no migrations found; expected folders such as sql/phase1/001_name with apply.sql.",
    ),
    "missing apply": ({"phase1/001_a/apply.sql": None}, "sql/phase1/001_a/apply.sql: the file is missing."),
    "missing rollback": ({"phase1/001_a/rollback.sql": None}, "sql/phase1/001_a/rollback.sql: the file is missing."),
    "missing settings": ({"phase1/phase.yml": None}, "sql/phase1/phase.yml: the file is missing."),
    "empty": (
        {"phase1/001_a/apply.sql": ""},
        "sql/phase1/001_a/apply.sql: the file is empty; expected at least one SQL statement.",
    ),
    "does not parse": (
        {"phase1/001_a/rollback.sql": "-- fine\nDROP INDEX i\nDROP INDEX j;"},
        'sql/phase1/001_a/rollback.sql:3:1: syntax error at or near "DROP".',
    ),
    "unknown key": (
        {"phase1/phase.yml": PHASE.format(name="x", needs="") + "titel: y\n"},
        "sql/phase1/phase.yml: found ['expected_duration_minutes', 'needs', 'objective', 'titel', 'title'], "
        "expected exactly the keys ['expected_duration_minutes', 'needs', 'objective', 'title'].",
    ),
    "not a mapping": (
        {"phase1/phase.yml": "- a\n"},
        "sql/phase1/phase.yml: found list, "
        "expected exactly the keys ['expected_duration_minutes', 'needs', 'objective', 'title'].",
    ),
    "not YAML": ({"phase1/phase.yml": "title: [a\n"}, "sql/phase1/phase.yml: not valid YAML: while parsing"),
    "needs a later one": (
        {"phase1/phase.yml": PHASE.format(name="x", needs="phase2")},
        "sql/phase1/phase.yml: needs 'phase2', which is no earlier phase.",
    ),
    "bad step name": (
        {"phase1/001_a/apply.sql": f"-- Step: Größe\n{INDEX}"},
        "sql/phase1/001_a/apply.sql:2: the step name 'Größe' may hold a-z, 0-9, '_', '.' and '-' only.",
    ),
    "step name twice": (
        {"phase1/001_a/apply.sql": f"-- Step: a\n{INDEX}\n-- Step: a\nANALYZE a;"},
        "sql/phase1/001_a/apply.sql:4: the step name 'a' is used twice in one file.",
    ),
    "a check that writes": (
        {"phase1/001_a/validate.sql": "DELETE FROM a;"},
        "sql/phase1/001_a/validate.sql:1: a check only reads; write a SELECT, "
        "or say '-- Refuses: <condition>' above it.",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_is_not_right_is_told_in_one_sentence(tmp_path: Path, case: str) -> None:
    write_rollout(
        tmp_path, {"phase1/001_a/apply.sql": INDEX, "phase1/001_a/rollback.sql": "DROP INDEX CONCURRENTLY i;"}
    )
    changes, sentence = BROKEN[case]
    for name, text in changes.items():
        path = tmp_path / name
        if text is not None:
            path.write_text(text, encoding="utf-8")
        elif path.is_file():
            path.unlink()
        else:
            path.rename(tmp_path / f"other_{path.name}")
    assert refusal(tmp_path).startswith(sentence)


def test_no_such_folder_says_which_setting_to_change(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match="no such folder; set 'rollout_dir' to the folder that holds phase1, phase2"):
        load_rollout(str(tmp_path / "none"))


def test_a_file_in_another_encoding_is_told(tmp_path: Path) -> None:
    write_rollout(tmp_path, {"phase1/001_a/apply.sql": INDEX})
    (tmp_path / "phase1" / "001_a" / "apply.sql").write_bytes(b"-- Gr\xf6\xdfe\nANALYZE a;")
    assert refusal(tmp_path) == "sql/phase1/001_a/apply.sql: not UTF-8 (byte 5); save it as UTF-8."


def test_the_shipped_rollout_loads_and_none_of_its_steps_is_refused() -> None:
    rollout = load_rollout(str(ROOT / "sql"))
    migrations = [migration for phase in rollout["phases"] for migration in phase["migrations"]]
    steps = [step for migration in migrations for step in migration["apply"] + migration["rollback"]]
    assert [phase["name"] for phase in rollout["phases"]] == ["phase1", "phase2", "phase3", "phase4"]
    assert [migration["name"][:3] for migration in migrations] == [f"{number:03}" for number in range(1, 11)]
    assert [step["where"] for step in steps if step["refused"]] == []
    assert all(migration["header"].keys() >= {"Migration", "Description", "Risk Level"} for migration in migrations)
    assert all(migration["header"]["Migration"] == migration["name"] for migration in migrations)


@pytest.mark.parametrize(
    ("statement", "name", "relation"),
    [
        ('CREATE TABLE "Item" (id int);', "Item", 'public."Item"'),
        ('ALTER TABLE "old items" ADD COLUMN "user Id" int;', "old_items.user_Id", 'public."old items"'),
        ('ALTER TABLE "My".item DROP COLUMN a;', "item.a", '"My".item'),
        ('CREATE TABLE "a.b" (id int);', "a.b", 'public."a.b"'),
        ('CREATE TRIGGER "T,1" BEFORE INSERT ON "order" EXECUTE FUNCTION f();', "order.T_1", 'public."order"'),
        ("CREATE TABLE größe_2 (id int);", "größe_2", 'public."größe_2"'),
        ('COMMENT ON COLUMN "a""b%"."c" IS \'x\';', "a_b_.c", 'public."a""b%"'),
    ],
)
def test_a_name_that_needs_double_quotes_is_followed(tmp_path: Path, statement: str, name: str, relation: str) -> None:
    (step,) = rollout_of(tmp_path, {"001_a": statement})["phases"][0]["migrations"][0]["apply"]
    assert (step["name"], step["object"]["table"]) == (name, relation)


def test_names_that_look_alike_in_an_id_are_told_apart(tmp_path: Path) -> None:
    text = 'CREATE TABLE "a b" (); CREATE TABLE "a%b" (); CREATE TABLE "a.b" (); ALTER TABLE a ADD b int;'
    assert names(rollout_of(tmp_path, {"001_a": text})) == ["a_b", "a_b.create", "a.b", "a.b.add"]


def test_gates_come_in_order_and_name_the_indexes_they_rely_on(tmp_path: Path) -> None:
    files = {f"{phase}/phase.yml": PHASE.format(name=phase, needs="") for phase in ("phase10", "phase2")}
    for phase in ("phase10", "phase2"):
        files |= {
            f"{phase}/001_a/apply.sql": INDEX,
            f"{phase}/001_a/gates/look.sql": "SELECT 1",
            f"{phase}/001_a/gates/look.gate.yml": "title: x\ncases: {all: SELECT}\n"
            'gates: {require_index: [{table: a, index: ["Order Idx", a.b-c]}, {table: a, index: i}]}\n',
        }
    gates = load_rollout(str(write_rollout(tmp_path, files)))["gates"]
    assert [gate["phase"] for gate in gates] == ["phase2", "phase10"]
    assert required_indexes(gates) == {"Order Idx", "a.b-c", "i"}
    (tmp_path / "phase2/001_a/gates/look.gate.yml").write_text("title: x\ncases: {all: SELECT}\ngates: {fast: yes}")
    assert refusal(tmp_path).startswith("sql/phase2/001_a/gates/look.gate.yml: gates: unknown key 'fast'; expected of ")
