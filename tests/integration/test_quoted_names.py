"""Tables as ORMs name them: capitals, dashes, dots, quotes, percent signs; there, drifted, and back."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from pgrollout.migration import plan as planner
from pgrollout.rollout.load import load_rollout
from tests.support.ledger import carry_out, claim, finish, install
from tests.support.plans import facts_of, plan_of, states, steps_of_plan
from tests.support.rollouts import write_rollout

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Database, Playbook

SCHEMA = """\
CREATE TABLE "Project" ("projectId" int PRIMARY KEY, "user" text);
CREATE TABLE "order-line" (
    "lineNo" int, "order" int, note text, "obsoleteFlag" int, PRIMARY KEY ("order", "lineNo"));
CREATE TABLE "50% ""x"" of a.b" ("Id" int PRIMARY KEY, "a.b""%" int);
INSERT INTO "Project" SELECT n, 'user ' || n FROM generate_series(1, 50) AS n;
INSERT INTO "order-line" SELECT n % 7, n, NULL, 1 FROM generate_series(1, 3000) AS n;
INSERT INTO "50% ""x"" of a.b" SELECT n, n FROM generate_series(1, 100) AS n;
"""
APPLY = """\
CREATE TABLE "Team" ("teamId" int PRIMARY KEY, "Name" text NOT NULL);
CREATE TYPE "Mood" AS ENUM ('good', 'bad');
CREATE SEQUENCE "Ticket.Seq";
ALTER TABLE "Project"
    ADD COLUMN "userId" text CONSTRAINT "userId present" CHECK ("userId" <> ''),
    ADD COLUMN "teamId" int REFERENCES "Team",
    ADD COLUMN "Mood" "Mood";
ALTER TABLE "order-line" ADD COLUMN "Label%" text;
ALTER TABLE "order-line" ADD CONSTRAINT "to ""50%"" x" FOREIGN KEY ("lineNo") REFERENCES "50% ""x"" of a.b" NOT VALID;
CREATE FUNCTION "fillUserId"() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW."userId" := coalesce(NEW."userId", NEW."user"); RETURN NEW; END $$;
CREATE TRIGGER "fill-userId" BEFORE INSERT OR UPDATE ON "Project" FOR EACH ROW EXECUTE FUNCTION "fillUserId"();
-- New rows: trigger fill-userId
UPDATE "Project" SET "userId" = "user" WHERE "userId" IS NULL;
-- Backfill: by "order", "lineNo"
-- Step: fill-labels
UPDATE "order-line" AS "L" SET "Label%" = "L"."order" || '%' WHERE "L"."Label%" IS NULL;
UPDATE "50% ""x"" of a.b" SET "a.b""%" = -"a.b""%" WHERE "50% ""x"" of a.b"."a.b""%" > 0;
ALTER TABLE "Project" ALTER COLUMN "userId" SET NOT NULL;
CREATE INDEX "Project.userId" ON "Project" ("userId");
CREATE INDEX "order-line ""Label"" %" ON "order-line" (lower("Label%")) WHERE "Label%" <> '';
ALTER TABLE "50% ""x"" of a.b" ADD UNIQUE ("a.b""%");
CREATE VIEW "Open Lines" AS SELECT "order", "Label%" FROM "order-line";
CREATE POLICY "Own rows" ON "Project" USING ("userId" = current_user);
CREATE STATISTICS "Line.Stats" ON "order", "lineNo" FROM "order-line";
COMMENT ON COLUMN "order-line"."Label%" IS 'it''s "quoted"';
ALTER TABLE "order-line" SET (fillfactor = 90);
-- Accept: drop-column because nobody has read it since 2019
ALTER TABLE "order-line" DROP COLUMN "obsoleteFlag";
"""
ROLLBACK = """\
ALTER TABLE "order-line" ADD COLUMN "obsoleteFlag" int;
-- Done when: SELECT reloptions IS NULL FROM pg_class WHERE oid = '"order-line"'::regclass
ALTER TABLE "order-line" RESET (fillfactor);
DROP STATISTICS "Line.Stats";
DROP POLICY "Own rows" ON "Project";
DROP VIEW "Open Lines";
ALTER TABLE "50% ""x"" of a.b" DROP CONSTRAINT "50% ""x"" of a.b_a.b""%_key";
DROP INDEX "order-line ""Label"" %";
DROP INDEX "Project.userId";
-- Restore: backfill_50_x_of_a.b
UPDATE "50% ""x"" of a.b" SET "Id" = "Id" WHERE false;
DROP TRIGGER "fill-userId" ON "Project";
DROP FUNCTION "fillUserId"();
ALTER TABLE "order-line" DROP CONSTRAINT "to ""50%"" x";
ALTER TABLE "order-line" DROP COLUMN "Label%";
ALTER TABLE "Project" DROP COLUMN "Mood", DROP COLUMN "teamId", DROP COLUMN "userId";
DROP SEQUENCE "Ticket.Seq";
DROP TYPE "Mood";
DROP TABLE "Team";
"""
FILES = {"phase1/001_names/apply.sql": APPLY, "phase1/001_names/rollback.sql": ROLLBACK}
TABLES = ('"Project"', '"order-line"', '"50% ""x"" of a.b"')


@pytest.fixture
def rollout(tmp_path: Path) -> dict[str, Any]:
    return load_rollout(str(write_rollout(tmp_path / "rollout", FILES)))


@pytest.fixture
def ledger(empty_database: Database) -> Database:
    empty_database.execute(SCHEMA)
    install(empty_database)
    return empty_database


def run(database: Database, steps: list[dict[str, Any]], kind: str = "migrate") -> None:
    number = claim(database, kind=kind)
    carry_out(database, number, [step for step in steps if step["state"] in planner.TO_DO])
    finish(database, number)


def picture(database: Database) -> dict[str, Any]:
    """Catalog and contents, but for the column whose contents no rollback brings back."""
    rows = "SELECT array_agg((to_jsonb(t) - 'obsoleteFlag')::text ORDER BY to_jsonb(t)::text) FROM {} AS t"
    contents = {f"rows of {name}": database.value(rows.format(name)) for name in TABLES}
    return contents | dict(database.value("SELECT pgrollout.fingerprint()"))


def difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {key: (one.get(key), other.get(key)) for key in {*one, *other} if one.get(key) != other.get(key)}


def test_a_rollout_on_quoted_names_goes_there_and_back(ledger: Database, rollout: dict[str, Any]) -> None:
    before = picture(ledger)
    first = plan_of(ledger, rollout)
    assert first["stoppers"] == []
    assert set(states(first).values()) == {"pending"}
    lines = {step["name"]: step for step in steps_of_plan(first)}
    assert lines["order-line.Label_"]["bytes"] > 8192
    assert [lock["relation"] for lock in lines["order-line.to_50_x"]["locks"]] == [
        'public."order-line"',
        'public."50% ""x"" of a.b"',
    ]
    assert lines["backfill_Project"]["backfill"]["key"] == ["projectId"]
    run(ledger, steps_of_plan(first))
    assert ledger.value('SELECT count(*) FROM "Project" WHERE "userId" = "user"') == 50
    assert ledger.value("""SELECT count(*) FROM "order-line" WHERE "Label%" = "order" || '%'""") == 3000
    assert ledger.value("SELECT key::text FROM pgrollout.row_change WHERE step_id LIKE '%labels' LIMIT 1").startswith(
        '{"order"'
    )
    again = plan_of(ledger, rollout)
    assert (again["stoppers"], again["pending"]) == ([], 0)
    back = planner.plan_rollback(rollout, facts_of(ledger, rollout), ["phase1"])
    assert back["stoppers"] == []
    dropped = {step["name"]: step for step in steps_of_plan(back)}
    assert {lock["relation"] for lock in dropped["Project.teamId"]["locks"]} == {'public."Project"', 'public."Team"'}
    run(ledger, steps_of_plan(back), "rollback")
    assert difference(before, picture(ledger)) == {}


def test_drift_on_quoted_names_is_seen(ledger: Database, rollout: dict[str, Any]) -> None:
    run(ledger, steps_of_plan(plan_of(ledger, rollout)))
    ledger.execute('DROP INDEX "Project.userId"; CREATE INDEX "Project.userId" ON "Project" ("user")')
    ledger.execute('ALTER TABLE "Project" ALTER COLUMN "userId" DROP NOT NULL')
    ledger.execute('ALTER TABLE "order-line" ALTER COLUMN "Label%" SET DEFAULT 1')
    with contextlib.closing(ledger.server.connect(ledger.name)) as superuser, superuser.cursor() as cursor:
        index = '"order-line ""Label"" %"'
        cursor.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{index}'::regclass")
    found = plan_of(ledger, rollout)
    assert {name: state for name, state in states(found).items() if state != "satisfied"} == {
        "Project.Project_userId_present": "pending",
        "Project.Project_userId_present.validate": "pending",
        "Project.userId.set": "pending",
        "Project.Project_userId_present.drop": "pending",
        "Project.userId.create": "conflict",
        "order-line_Label_": "rebuild",
        "order-line.Label_": "conflict",
    }
    assert "found [1], expected []" in str(found["stoppers"])
    assert 'index "Project.userId" exists with another definition; definition: found [CREATE INDEX' in str(found)
    ledger.execute('DROP INDEX "Project.userId"; ALTER TABLE "order-line" ALTER COLUMN "Label%" DROP DEFAULT')
    run(ledger, steps_of_plan(plan_of(ledger, rollout)))
    assert set(states(plan_of(ledger, rollout)).values()) == {"satisfied"}


@pytest.mark.ci
def test_the_playbooks_follow_quoted_names(empty_database: Database, playbook: Playbook, tmp_path: Path) -> None:
    empty_database.execute(SCHEMA)
    given = {
        "rollout_dir": str(write_rollout(tmp_path / "rollout", FILES)),
        "backup_dir": str(tmp_path / "backups"),
        "probe_writes": ['public."Project"'],
    }
    playbook("migrate.yml", database=empty_database, variables=given)
    assert empty_database.value('SELECT count(*) FROM "Project" WHERE "userId" = "user"') == 50
    looked_at = empty_database.value("SELECT tables FROM pgrollout.probe")
    assert set(looked_at) >= {'public."Project"', 'public."order-line"', 'public."50% ""x"" of a.b"'}
    assert empty_database.value("SELECT sum(errors) FROM pgrollout.probe_sample") == 0
    assert playbook("migrate.yml", database=empty_database, variables=given).changed == 0
    confirmed = given | {"rollback_confirm": "local", "rollback_indexes": "Project.userId"}
    playbook("rollback.yml", "--tags", "partial", database=empty_database, variables=confirmed)
    assert empty_database.value("""SELECT to_regclass('"Project.userId"')""") is None
    again = ("-e", "reapply=001_names/Project.userId.create")
    playbook("migrate.yml", *again, database=empty_database, variables=given)
    assert empty_database.value("""SELECT to_regclass('"Project.userId"')""") is not None
    playbook("rollback.yml", "--tags", "phase1", database=empty_database, variables=confirmed)
    assert empty_database.value("""SELECT to_regclass('"Team"')""") is None
