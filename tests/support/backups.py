"""The role `backup` and its module against a database and a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.modules import load_module

if TYPE_CHECKING:
    from tests.conftest import Database, Playbook, Run, Started

ROLE = """
- name: Back up
  hosts: all
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - name: Back up
      ansible.builtin.include_role:
        name: backup
    - name: Hand over the evidence
      ansible.builtin.copy:
        content: "{{ __backup_evidence | to_json }}"
        dest: "{{ evidence }}"
        mode: "0600"
"""


ROOT = Path(__file__).resolve().parents[2]
pg_backup = load_module("pg_backup")
CONTENTS_SQL = (ROOT / "roles" / "ledger" / "files" / "48_contents.sql").read_text()


@dataclass
class Backups:
    """The role and the module against one database and one folder."""

    database: Database
    run: Playbook
    folder: Path
    work: Path
    bin_dir: Path

    @property
    def variables(self) -> dict[str, Any]:
        return {
            "backup_dir": str(self.folder),
            "evidence": str(self.work / "evidence.json"),
            "postgresql_bin_dir": str(self.bin_dir),
        }

    def _playbook(self, text: str) -> Path:
        path = self.work / "play.yml"
        path.write_text(text)
        return path

    def make(self, *args: str, check: bool = True, **variables: Any) -> Run:
        given = self.variables | variables
        return self.run(self._playbook(ROLE), *args, database=self.database, check=check, variables=given)

    def start(self, **variables: Any) -> Started:
        return self.run.start(self._playbook(ROLE), database=self.database, variables=self.variables | variables)

    def params(self, **given: Any) -> dict[str, Any]:
        """Arguments of the module, which calls them login_* and so on."""
        connection = self.database.dsn()
        login = {f"login_{name}": connection[name] for name in ("host", "port", "user")}
        defaults = {
            "dir": str(self.folder),
            "run": None,
            "jobs": 2,
            "compression": "auto",
            "lock_timeout_seconds": 60,
            "keep_days": 0,
        }
        defaults |= {"contents_sql": CONTENTS_SQL, "digest_max_bytes": None, "verify_on": "auto"}
        defaults |= {"way": "dump", "restored": None}
        rest = {
            "passfile": connection["passfile"],
            "ssl_mode": "prefer",
            "ca_cert": None,
            "ssl_cert": None,
            "ssl_key": None,
            "login_password": None,
        }
        return {**login, **defaults, **rest, "login_db": self.database.name, "bin_dir": str(self.bin_dir), **given}

    def dump(self, **given: Any) -> Path:
        return Path(pg_backup.dump(self.params(**given))["backup"]["path"])

    def verify(self, path: Path, **given: Any) -> dict[str, Any]:
        found: dict[str, Any] = pg_backup.verify(self.params(path=str(path), **given))["backup"]
        return found

    def evidence(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.work / "evidence.json").read_text())
        return found

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []

    def scratch_databases(self) -> list[str]:
        rows = self.database.query(
            r"SELECT datname FROM pg_database WHERE datname LIKE 'pgrollout\_scratch\_%' ORDER BY 1"
        )
        return [name for (name,) in rows]

    def replace_client(self, name: str, script: str) -> None:
        """Put a shell script before the real client, which it can call as $real."""
        own = self.work / "bin"
        own.mkdir(exist_ok=True)
        for client in ("pg_dump", "pg_restore"):
            if not (own / client).exists():
                (own / client).symlink_to(self.bin_dir / client)
        (own / name).unlink()
        (own / name).write_text(f"#!/bin/sh\nreal='{self.bin_dir / name}'\n{script}\n")
        (own / name).chmod(0o755)
        self.bin_dir = own
