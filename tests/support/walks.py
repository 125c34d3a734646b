"""A database, the playbooks against it and what was seen on the way, for tests that share one (fixture `walkers`)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.conftest import Database, Playbook, Run, Started
from tests.support.pictures import differences, picture
from tests.support.runs import assert_refused, words


@dataclass
class Walker:
    """One database, the playbooks against it, and what was seen on the way."""

    database: Database
    playbook: Playbook
    backups: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, *args: str, check: bool = True, **variables: Any) -> Run:
        given = {"backup_dir": str(self.backups)} | variables
        run = self.playbook(f"{name}.yml", *args, database=self.database, check=check, variables=given)
        number = itertools.count(2)
        label = first = " ".join([name, *args])
        while label in self.seconds:
            label = f"{first} ({next(number)})"
        self.seconds[label] = round(run.seconds, 1)
        return run

    def start(self, name: str, *args: str, **variables: Any) -> Started:
        """Leave it running."""
        given = {"backup_dir": str(self.backups)} | variables
        return self.playbook.start(f"{name}.yml", *args, database=self.database, variables=given)

    def refused(self, name: str, *args: str, **variables: Any) -> str:
        """The output of a run that must stop before it changes anything."""
        before = picture(self.database)
        run = self(name, *args, check=False, **variables)
        assert_refused(run)
        assert differences(before, picture(self.database)) == []
        return words(run)

    def backups_made(self) -> list[str]:
        return sorted(path.name for path in self.backups.iterdir()) if self.backups.is_dir() else []


class Walkers(Protocol):
    """`walkers(name)` makes a database of its own that lives as long as the module."""

    def __call__(self, name: str, empty: bool = False) -> Walker: ...
