"""A rollout written as people write SQL goes through the playbooks: safe forms, backfill, acceptance, second run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.rollouts import write_rollout

if TYPE_CHECKING:
    from tests.conftest import Database, Playbook

APPLY = """\
BEGIN;
CREATE TABLE IF NOT EXISTS team (id int PRIMARY KEY, name text NOT NULL);
ALTER TABLE agents
    ADD COLUMN IF NOT EXISTS team_id int REFERENCES team,
    ADD COLUMN IF NOT EXISTS grade int DEFAULT 1 CHECK (grade BETWEEN 1 AND 9),
    ADD COLUMN IF NOT EXISTS badge text;
CREATE INDEX IF NOT EXISTS agents_grade_idx ON agents (grade);
UPDATE agents SET badge = 'B-' || id WHERE badge IS NULL;
ALTER TABLE agents ADD UNIQUE (badge);
-- Accept: not-null because every release since 7.2 writes a badge
ALTER TABLE agents ALTER COLUMN badge SET NOT NULL;
ALTER TABLE agents ALTER COLUMN agent_type TYPE text;
COMMIT;
"""
ROLLBACK = """\
-- Accept: narrowing because agents are few and no type is longer than 50
ALTER TABLE agents ALTER COLUMN agent_type TYPE varchar(50);
ALTER TABLE agents DROP CONSTRAINT IF EXISTS agents_badge_key;
DROP INDEX IF EXISTS agents_grade_idx;
ALTER TABLE agents DROP COLUMN badge, DROP COLUMN grade, DROP COLUMN team_id;
DROP TABLE IF EXISTS team;
"""


@pytest.mark.ci
def test_plain_sql_goes_there_and_back(database: Database, playbook: Playbook, tmp_path: Path) -> None:
    files = {"phase1/001_plain/apply.sql": APPLY, "phase1/001_plain/rollback.sql": ROLLBACK}
    given = {"rollout_dir": str(write_rollout(tmp_path / "plain", files)), "backup_dir": str(tmp_path / "backups")}
    playbook("migrate.yml", database=database, variables=given)
    assert database.value("SELECT count(*) FROM agents WHERE badge IS NULL OR badge <> 'B-' || id") == 0
    assert database.query(
        "SELECT conname, convalidated FROM pg_constraint WHERE conrelid = 'agents'::regclass "
        "AND conname ~ 'grade|badge' AND contype <> 'n' ORDER BY conname"
    ) == [("agents_badge_key", True), ("agents_grade_check", True)]
    (spec,) = database.value("SELECT array_agg(key::text) FROM (SELECT key FROM pgrollout.row_change LIMIT 1) AS k")
    assert spec.startswith('{"id"')
    again = playbook("migrate.yml", database=database, variables=given)
    assert again.changed == 0
    playbook("rollback.yml", "--tags", "phase1", "-e", "rollback_confirm=local", database=database, variables=given)
    assert database.value("SELECT count(*) FROM pg_attribute WHERE attname IN ('badge', 'grade', 'team_id')") == 0
