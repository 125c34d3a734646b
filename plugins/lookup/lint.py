"""Lookup: what the planner says of a folder of SQL without a database. See pgrollout.rollout.lint."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

try:
    from pgrollout.errors import RolloutError
    from pgrollout.rollout.lint import lint
except ImportError as error:
    raise AnsibleError(
        "The Python package 'pgrollout' of this project is not installed; run 'make setup' first."
    ) from error

DOCUMENTATION = """
name: lint
short_description: Lints a folder of SQL files
version_added: "0.2.0"
description:
  - Reads a rollout folder, or any folder of .sql files, and says without a database what the planner would rewrite,
    warn of or refuse.
options:
  _terms:
    description: The folder.
    required: true
  schema:
    description: The schema of names without one.
    type: str
    default: public
author: The pgrollout authors
"""
EXAMPLES = """
- ansible.builtin.debug:
    msg: "{{ lookup('lint', 'sql') | lint_lines }}"
"""
RETURN = """
_raw:
  description: >-
    One dictionary a folder, with the keys directory, files, steps, refused and findings (level, where, step, message,
    sql, becomes), or with error alone.
  type: list
  elements: dict
"""


class LookupModule(LookupBase):
    """Lints each named folder."""

    def run(self, terms: list[str], variables: Any = None, **kwargs: Any) -> list[dict[str, Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        return [_lint(str(term), self.get_option("schema")) for term in terms]


def _lint(folder: str, schema: str) -> dict[str, Any]:
    """The result, or {error: sentence}: an exception of a lookup would bury the sentence under Ansible's own."""
    try:
        return lint(folder, schema)
    except RolloutError as error:
        return {"error": str(error)}
