"""A database on which the rollout went through without a fault: what faulty runs must end like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import Databases, Playbook

if TYPE_CHECKING:
    from demo.server import Server
    from tests.conftest import Database


@dataclass(frozen=True)
class Undisturbed:
    """`name` is a template to clone; `fingerprint` and `migrations` are what its run left, `steps` in order of work."""

    name: str
    fingerprint: dict[str, str]
    migrations: set[str]
    steps: list[str]


@pytest.fixture(scope="session")
def undisturbed(
    server: Server, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Undisturbed]:
    """One migrate.yml on the baseline's schema without rows: the catalog does not depend on them."""
    databases = Databases(server, request)
    database = databases.clone(empty=True)
    folder = tmp_path_factory.mktemp("undisturbed")
    Playbook(folder)("migrate.yml", database=database, variables={"backup_dir": str(folder / "backups")})
    steps = database.query("SELECT step_id FROM pgrollout.step ORDER BY started_at")
    migrations = database.query("SELECT migration FROM pgrollout.migration")
    yield Undisturbed(
        database.name,
        database.value("SELECT pgrollout.fingerprint()"),
        {name for (name,) in migrations},
        [name for (name,) in steps],
    )
    databases.drop()


@pytest.fixture
def migrated(undisturbed: Undisturbed, databases: Any) -> Database:
    """A clone of the undisturbed database: everything applied, no rows."""
    made: Database = databases.clone(source=undisturbed.name)
    return made
