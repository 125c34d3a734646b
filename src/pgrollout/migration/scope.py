"""What one SQL file has said so far: the tables that it made itself, what fills their columns, what it has checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pglast import ast

from pgrollout.migration.names import qualified


@dataclass
class Scope:
    """Read by rewriting and classifying, told by `Classifier` as the statements go by.

    made: relations of this file, which nobody uses yet, so that no lock on them matters.
    checks: {(table, constraint): column} of each `CHECK (column IS NOT NULL)`; not_null: (table, column) validated so.
    constrained: tables with a constraint that this file has validated.
    filled: (table, column) that has a default.  triggers: tables with a BEFORE INSERT trigger of this file, which may
    fill what the application leaves out.
    indexes: {name: SQL} of this file's indexes.  objects: (kind, name) of what it creates.
    gates: indexes that the rollout's gate files rely on.
    """

    schema: str
    rollback: bool = False
    gates: frozenset[str] = frozenset()
    made: set[str] = field(default_factory=set)
    checks: dict[tuple[str, str], str] = field(default_factory=dict)
    not_null: set[tuple[str, str]] = field(default_factory=set)
    constrained: set[str] = field(default_factory=set)
    filled: set[tuple[str, str]] = field(default_factory=set)
    triggers: set[str] = field(default_factory=set)
    indexes: dict[str, str] = field(default_factory=dict)
    objects: set[tuple[str, str]] = field(default_factory=set)

    def relation(self, name: ast.RangeVar) -> str:
        """The canonical text of a relation in a statement."""
        return qualified(name.schemaname or self.schema, name.relname)

    def named(self, parts: Any) -> str:
        """The canonical text of a list of name parts."""
        schema, name = [self.schema, *(part.sval for part in parts)][-2:]
        return qualified(schema, name)
