"""Databases that tests of a module share, and one on which the rollout went through without a fault."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from demo.server import find_clients
from tests.conftest import Databases, Playbook
from tests.support.backups import Backups
from tests.support.walks import Walker, Walkers

if TYPE_CHECKING:
    from pathlib import Path

    from demo.server import Server
    from tests.conftest import Database


@pytest.fixture(scope="module")
def module_databases(server: Server, request: pytest.FixtureRequest) -> Iterator[Databases]:
    """As `databases`, dropped after the module."""
    made = Databases(server, request)
    yield made
    made.drop()


@pytest.fixture(scope="module")
def walkers(module_databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walkers]:
    """`walkers("name")` and `walkers("name", empty=True)`: a database and the playbooks against it."""
    made: list[Walker] = []

    def make(name: str, empty: bool = False) -> Walker:
        folder = tmp_path_factory.mktemp(name)
        (folder / "ansible").mkdir()
        made.append(Walker(module_databases.clone(empty), Playbook(folder / "ansible"), folder / "backups"))
        return made[-1]

    yield make
    for started in (started for walker in made for started in walker.playbook.started):
        started.end()


@pytest.fixture
def backups(server: Server, database: Database, playbook: Playbook, tmp_path: Path) -> Backups:
    clients = find_clients(server.binaries)
    assert clients is not None
    return Backups(database, playbook, tmp_path / "backups", tmp_path, clients)


@dataclass(frozen=True)
class Undisturbed:
    """What faulty runs must end like.

    `name` is a template to clone; `fingerprint` and `migrations` are what its run left, `steps` in order of work.
    """

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
