"""Lookup: reads the folder of a rollout (phases, migrations, steps). See pgrollout.rollout.load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

try:
    from pgrollout.errors import RolloutError
    from pgrollout.rollout.load import load_rollout
except ImportError as error:
    raise AnsibleError(
        "The Python package 'pgrollout' of this project is not installed; run 'make setup' first."
    ) from error

DOCUMENTATION = """
name: rollout
short_description: Reads a rollout folder
version_added: "0.1.0"
description:
  - Reads phases, migrations and their statements from a folder of SQL files on the controller, parsed with PostgreSQL's
    grammar.
options:
  _terms:
    description: The folder that holds phase1, phase2 and so on. A relative one is looked for in the current folder,
      then beside the playbooks folder.
    required: true
  schema:
    description: The schema of names without one.
    type: str
    default: public
author: The pgrollout authors
"""
EXAMPLES = """
- ansible.builtin.set_fact:
    rollout: "{{ lookup('rollout', 'sql') }}"
"""
RETURN = """
_raw:
  description: One dictionary a folder, with the keys schema, phases and immediate, or with error alone.
  type: list
  elements: dict
"""


class LookupModule(LookupBase):
    """Reads each named folder."""

    def run(self, terms: list[str], variables: Any = None, **kwargs: Any) -> list[dict[str, Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        base = Path(variables["playbook_dir"]).parent
        return [_load(_folder(base, term), self.get_option("schema")) for term in terms]


def _load(folder: str, schema: str) -> dict[str, Any]:
    """The rollout, or {error: sentence}: an exception of a lookup would bury the sentence under Ansible's own."""
    try:
        return load_rollout(folder, schema)
    except RolloutError as error:
        return {"error": str(error)}


def _folder(base: Path, term: str) -> str:
    """A relative path as the operator sees it: from the current folder, else from the project's."""
    return term if Path(term).is_dir() else str(base / term)
