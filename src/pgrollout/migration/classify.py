"""What one statement does: its kind, the object it makes or removes, the locks it takes, how it has to run.

Lock modes are those of PostgreSQL's documentation (explicit locking, and each command's own page).
"""

from __future__ import annotations

from typing import Any

from pglast import ast
from pglast.enums.parsenodes import AlterTableType, ConstrType, DropBehavior, ObjectType
from pglast.stream import RawStream
from pglast.visitors import Visitor

from pgrollout.migration.text import quoted

ACCESS_SHARE = "ACCESS SHARE"
ROW_EXCLUSIVE = "ROW EXCLUSIVE"
SHARE_UPDATE_EXCLUSIVE = "SHARE UPDATE EXCLUSIVE"
SHARE = "SHARE"
SHARE_ROW_EXCLUSIVE = "SHARE ROW EXCLUSIVE"
ACCESS_EXCLUSIVE = "ACCESS EXCLUSIVE"

PREPARED_HAZARD = (
    "a prepared 'SELECT *' of the application fails once with 'cached plan must not change result type'; "
    "name the columns, or let the driver re-prepare"
)
_DROPPED = {
    ObjectType.OBJECT_TABLE: "table",
    ObjectType.OBJECT_VIEW: "view",
    ObjectType.OBJECT_MATVIEW: "view",
    ObjectType.OBJECT_INDEX: "index",
    ObjectType.OBJECT_TRIGGER: "trigger",
    ObjectType.OBJECT_FUNCTION: "function",
    ObjectType.OBJECT_SCHEMA: "schema",
    ObjectType.OBJECT_EXTENSION: "extension",
}


class Classifier:
    """Classifies the statements of one file in order; it remembers which tables the file itself made."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.made: set[str] = set()
        self.not_null_checks: set[tuple[str, str]] = set()

    def classify(self, node: Any, notes: dict[str, str]) -> dict[str, Any]:
        """Returns {kind, mode, truth, object, locks, hazards, refused, probe} of one parsed statement.

        mode: ddl (through the lock-safe runner), concurrent (top level), data (batches), restore (batches back).
        truth: catalog, ledger, cursor or query: what says that the step is done.
        object: {kind, table, name} or None.  locks: [{relation, mode}].  refused: a reason, or ''.
        probe: whether the catalog's definition can be compared with the one that our statement makes (see twin.py).
        """
        step: dict[str, Any] = {
            "kind": type(node).__name__,
            "mode": "ddl",
            "truth": "catalog",
            "object": None,
            "locks": [],
            "hazards": [],
            "refused": "",
            "probe": False,
        }
        handler = getattr(self, "_" + type(node).__name__, None)
        if "Restore" in notes:
            step |= {"kind": "restore", "mode": "restore", "truth": "cursor"}
        elif handler is None:
            words = RawStream()(node).split("(")[0].split()[:2]
            step |= _refuse(f"{' '.join(words)} is not a statement that this engine can run safely")
        else:
            step |= handler(node, notes)
        if "Done when" in notes:
            step["truth"] = "query"
        return step

    def relation(self, name: ast.RangeVar) -> str:
        """The canonical `schema.name` of a relation in a statement."""
        return f"{name.schemaname or self.schema}.{name.relname}"

    def _names(self, parts: Any) -> str:
        names = [part.sval for part in parts]
        return ".".join(names if len(names) > 1 else [self.schema, *names])

    # -- indexes ---------------------------------------------------------------------------------------------------

    def _IndexStmt(self, node: ast.IndexStmt, _: dict[str, str]) -> dict[str, Any]:
        table = self.relation(node.relation)
        concurrent = bool(node.concurrent)
        step = {
            "kind": "CREATE INDEX" + (" CONCURRENTLY" if concurrent else ""),
            "mode": "concurrent" if concurrent else "ddl",
            "object": {"kind": "index", "table": table, "name": node.idxname},
            "locks": [_lock(table, SHARE_UPDATE_EXCLUSIVE if concurrent else SHARE)],
            "probe": True,
        }
        if not node.idxname:
            return step | _refuse("an index without a name cannot be found again; give it one")
        if not concurrent and table not in self.made:
            return step | _refuse(
                f"CREATE INDEX stops writers of {table} until it is built; write CREATE INDEX CONCURRENTLY"
            )
        return step

    # -- tables ----------------------------------------------------------------------------------------------------

    def _CreateStmt(self, node: ast.CreateStmt, _: dict[str, str]) -> dict[str, Any]:
        table = self.relation(node.relation)
        self.made.add(table)
        referenced = set()
        for element in node.tableElts or ():
            constraints = (
                [element] if isinstance(element, ast.Constraint) else getattr(element, "constraints", None) or ()
            )
            referenced |= {self.relation(c.pktable) for c in constraints if c.pktable}
        parents = [self.relation(parent) for parent in node.inhRelations or ()]
        parent_mode = ACCESS_EXCLUSIVE if node.partbound else SHARE_UPDATE_EXCLUSIVE
        step = {
            "kind": "CREATE TABLE",
            "object": {"kind": "table", "table": table, "name": table},
            "locks": [_lock(parent, parent_mode) for parent in parents]
            + [_lock(other, SHARE_ROW_EXCLUSIVE) for other in sorted(referenced - {table})],
            "probe": not parents,
        }
        if node.relation.relpersistence == "t":
            return step | _refuse("a temporary table is gone with the session of its step; make an ordinary one")
        return step

    def _AlterTableStmt(self, node: ast.AlterTableStmt, _: dict[str, str]) -> dict[str, Any]:
        if len(node.cmds) > 1:
            return _refuse(
                "several changes in one ALTER TABLE cannot be resumed one by one; write one change a statement"
            )
        command, table = node.cmds[0], self.relation(node.relation)
        handler = {
            AlterTableType.AT_AddColumn: self._add_column,
            AlterTableType.AT_DropColumn: self._drop_column,
            AlterTableType.AT_AddConstraint: self._add_constraint,
            AlterTableType.AT_ValidateConstraint: self._validate_constraint,
            AlterTableType.AT_DropConstraint: self._drop_constraint,
            AlterTableType.AT_SetNotNull: self._set_not_null,
            AlterTableType.AT_DropNotNull: self._drop_not_null,
            AlterTableType.AT_ColumnDefault: self._column_default,
        }.get(command.subtype)
        if handler is None:
            name = AlterTableType(command.subtype).name.removeprefix("AT_")
            return _refuse(f"ALTER TABLE … {name} is not a change that this engine can make safely")
        return handler(table, command)

    def _add_column(self, table: str, command: Any) -> dict[str, Any]:
        column = command.def_
        constraints = column.constraints or ()
        kinds = {c.contype for c in constraints}
        referenced = [self.relation(c.pktable) for c in constraints if c.contype == ConstrType.CONSTR_FOREIGN]
        step = {
            "kind": "ADD COLUMN",
            "object": {"kind": "column", "table": table, "name": column.colname},
            "locks": [_lock(table, ACCESS_EXCLUSIVE)]
            + [_lock(r, SHARE_ROW_EXCLUSIVE) for r in referenced if r != table],
            "hazards": [PREPARED_HAZARD],
            "probe": True,
        }
        if table in self.made:
            return step
        if rewrite := _volatile_default(column):
            return step | _refuse(
                f"{rewrite} rewrites {table} under ACCESS EXCLUSIVE; "
                "add the column without it, SET DEFAULT, then backfill"
            )
        if ConstrType.CONSTR_CHECK in kinds:
            return step | _refuse(
                f"an inline CHECK scans {table} under ACCESS EXCLUSIVE; add it NOT VALID in a statement of its own, "
                "then VALIDATE it"
            )
        if kinds & {
            ConstrType.CONSTR_PRIMARY,
            ConstrType.CONSTR_UNIQUE,
            ConstrType.CONSTR_IDENTITY,
            ConstrType.CONSTR_GENERATED,
        }:
            return step | _refuse(f"this column rewrites or indexes {table} under ACCESS EXCLUSIVE")
        if ConstrType.CONSTR_FOREIGN in kinds and ConstrType.CONSTR_DEFAULT in kinds:
            return step | _refuse(
                f"REFERENCES on a column with a default checks every row of {table} under lock; split it"
            )
        return step

    def _drop_column(self, table: str, command: Any) -> dict[str, Any]:
        return {
            "kind": "DROP COLUMN",
            "object": {"kind": "column", "table": table, "name": command.name},
            "locks": [_lock(table, ACCESS_EXCLUSIVE)],
            "hazards": [PREPARED_HAZARD],
            **_refuse_cascade(command.behavior),
        }

    def _add_constraint(self, table: str, command: Any) -> dict[str, Any]:
        constraint = command.def_
        foreign = constraint.contype == ConstrType.CONSTR_FOREIGN
        if column := _checked_not_null(constraint):
            self.not_null_checks.add((table, column))
        mode = SHARE_ROW_EXCLUSIVE if foreign else ACCESS_EXCLUSIVE
        step = {
            "kind": "ADD CONSTRAINT" + (" NOT VALID" if constraint.skip_validation else ""),
            "object": {"kind": "constraint", "table": table, "name": constraint.conname},
            "locks": [_lock(table, mode)] + ([_lock(self.relation(constraint.pktable), mode)] if foreign else []),
            "probe": True,
        }
        if not constraint.conname:
            return step | _refuse("a constraint without a name cannot be found again; give it one")
        if not constraint.skip_validation and table not in self.made:
            return step | _refuse(
                f"it scans {table} under {mode}; add it NOT VALID, then VALIDATE it in a statement of its own"
            )
        return step

    def _validate_constraint(self, table: str, command: Any) -> dict[str, Any]:
        return {
            "kind": "VALIDATE CONSTRAINT",
            "object": {"kind": "validation", "table": table, "name": command.name},
            "locks": [_lock(table, SHARE_UPDATE_EXCLUSIVE)],
        }

    def _drop_constraint(self, table: str, command: Any) -> dict[str, Any]:
        return {
            "kind": "DROP CONSTRAINT",
            "object": {"kind": "constraint", "table": table, "name": command.name},
            "locks": [_lock(table, ACCESS_EXCLUSIVE)],
            **_refuse_cascade(command.behavior),
        }

    def _set_not_null(self, table: str, command: Any) -> dict[str, Any]:
        step = {
            "kind": "SET NOT NULL",
            "object": {"kind": "not_null", "table": table, "name": command.name},
            "locks": [_lock(table, ACCESS_EXCLUSIVE)],
            "hazards": [
                f"an application that does not write {command.name} fails on its next INSERT unless a trigger fills it"
            ],
        }
        if table not in self.made and (table, command.name) not in self.not_null_checks:
            return step | _refuse(
                f"it scans {table} under ACCESS EXCLUSIVE; first ADD CONSTRAINT … CHECK ({command.name} IS NOT NULL) "
                "NOT VALID, then VALIDATE it"
            )
        return step

    def _drop_not_null(self, table: str, command: Any) -> dict[str, Any]:
        return {
            "kind": "DROP NOT NULL",
            "object": {"kind": "not_null", "table": table, "name": command.name},
            "locks": [_lock(table, ACCESS_EXCLUSIVE)],
        }

    def _column_default(self, table: str, command: Any) -> dict[str, Any]:
        return {
            "kind": "SET DEFAULT" if command.def_ else "DROP DEFAULT",
            "object": {"kind": "default", "table": table, "name": command.name},
            "locks": [_lock(table, ACCESS_EXCLUSIVE)],
            "probe": True,
        }

    # -- views, functions, triggers, comments ----------------------------------------------------------------------

    def _ViewStmt(self, node: ast.ViewStmt, _: dict[str, str]) -> dict[str, Any]:
        name = self.relation(node.view)
        return {
            "kind": "CREATE VIEW",
            "object": {"kind": "view", "table": name, "name": name},
            "probe": True,
        }

    def _CreateTableAsStmt(self, node: ast.CreateTableAsStmt, _: dict[str, str]) -> dict[str, Any]:
        name = self.relation(node.into.rel)
        if node.objtype != ObjectType.OBJECT_MATVIEW:
            return _refuse(
                "CREATE TABLE AS copies rows that the application may change meanwhile; create the table, "
                "then backfill it"
            )
        self.made.add(name)
        return {
            "kind": "CREATE MATERIALIZED VIEW",
            "object": {"kind": "view", "table": name, "name": name},
            "probe": True,
        }

    def _CreateFunctionStmt(self, node: ast.CreateFunctionStmt, _: dict[str, str]) -> dict[str, Any]:
        name = self._names(node.funcname)
        return {
            "kind": "CREATE FUNCTION",
            "object": {"kind": "function", "table": name, "name": name},
            "probe": True,
        }

    def _CreateTrigStmt(self, node: ast.CreateTrigStmt, _: dict[str, str]) -> dict[str, Any]:
        table = self.relation(node.relation)
        return {
            "kind": "CREATE TRIGGER",
            "object": {"kind": "trigger", "table": table, "name": node.trigname},
            "locks": [_lock(table, SHARE_ROW_EXCLUSIVE)],
            "probe": True,
        }

    def _CommentStmt(self, node: ast.CommentStmt, _: dict[str, str]) -> dict[str, Any]:
        kind = {ObjectType.OBJECT_COLUMN: "column", ObjectType.OBJECT_TABLE: "table"}.get(node.objtype)
        if kind is None:
            return {"kind": "COMMENT", "truth": "ledger"}
        parts = [part.sval for part in node.object]
        column = parts.pop() if kind == "column" else ""
        table = ".".join(parts if len(parts) > 1 else [self.schema, *parts])
        return {
            "kind": "COMMENT",
            "object": {"kind": "comment", "table": table, "name": column, "text": node.comment or ""},
            "locks": [_lock(table, SHARE_UPDATE_EXCLUSIVE)],
        }

    def _DropStmt(self, node: ast.DropStmt, _: dict[str, str]) -> dict[str, Any]:
        kind = _DROPPED.get(node.removeType)
        if kind is None or len(node.objects) != 1:
            return _refuse("one object of a kind that this engine knows is dropped by one statement")
        found = node.objects[0]
        if kind == "trigger":
            table = self._names(found[:-1])
            target = {"kind": kind, "table": table, "name": found[-1].sval}
            locks = [_lock(table, ACCESS_EXCLUSIVE)]
        elif kind == "function":
            name = self._names(found.objname)
            target, locks = {"kind": kind, "table": name, "name": name}, []
        elif kind in ("schema", "extension"):
            target, locks = {"kind": kind, "table": "", "name": found.sval}, []
        elif kind == "index":
            target, locks = {"kind": kind, "table": "", "name": found[-1].sval}, []
        else:
            name = self._names(found)
            target, locks = {"kind": kind, "table": name, "name": name}, [_lock(name, ACCESS_EXCLUSIVE)]
        step = {
            "kind": f"DROP {kind.upper()}" + (" CONCURRENTLY" if node.concurrent else ""),
            "mode": "concurrent" if node.concurrent else "ddl",
            "object": target,
            "locks": locks,
            **_refuse_cascade(node.behavior),
        }
        if kind == "index" and not node.concurrent:
            return step | _refuse("DROP INDEX stops readers and writers of its table; write DROP INDEX CONCURRENTLY")
        return step

    # -- data and maintenance --------------------------------------------------------------------------------------

    def _UpdateStmt(self, node: ast.UpdateStmt, notes: dict[str, str]) -> dict[str, Any]:
        table = self.relation(node.relation)
        step: dict[str, Any] = {"kind": "UPDATE", "locks": [_lock(table, ROW_EXCLUSIVE)], "truth": "ledger"}
        if "Backfill" not in notes:
            if "Done when" in notes:
                return step
            return step | _refuse(
                f"an UPDATE of {table} in one transaction locks every row that it changes until it ends; "
                "say '-- Backfill: by <key column>' above it, or '-- Done when: SELECT …' if it touches a handful of "
                "rows"
            )
        if node.fromClause or node.withClause:
            return step | _refuse("a backfill with FROM or WITH is not supported; use a sub-select in SET or WHERE")
        keys = [key.strip() for key in notes["Backfill"].removeprefix("by ").split(",") if key.strip()]
        values = node.targetList
        if any(isinstance(target.val, ast.MultiAssignRef) or target.indirection for target in values):
            return step | _refuse("a backfill sets whole columns one by one; write SET a = …, b = …")
        return step | {
            "kind": "BACKFILL",
            "mode": "data",
            "truth": "cursor",
            "backfill": {
                "table": table,
                "alias": node.relation.alias.aliasname if node.relation.alias else node.relation.relname,
                "key": keys,
                "columns": [target.name for target in values],
                "set": ", ".join(f"{quoted(target.name)} = {RawStream()(target.val)}" for target in values),
                "where": RawStream()(node.whereClause) if node.whereClause else "true",
                "new_rows": notes.get("New rows", "left"),
            },
            "refused": "" if keys else "'-- Backfill:' names no key column; write '-- Backfill: by id'",
        }

    def _small_dml(self, node: Any, notes: dict[str, str]) -> dict[str, Any]:
        kind = type(node).__name__.removesuffix("Stmt").upper()
        step = {"kind": kind, "truth": "ledger", "locks": [_lock(self.relation(node.relation), ROW_EXCLUSIVE)]}
        if "Done when" not in notes:
            return step | _refuse(
                f"{kind} changes rows and nothing says when it is done; add '-- Done when: SELECT …' above it"
            )
        return step

    _InsertStmt = _small_dml
    _DeleteStmt = _small_dml

    def _VacuumStmt(self, node: ast.VacuumStmt, _: dict[str, str]) -> dict[str, Any]:
        if node.is_vacuumcmd:
            return _refuse("VACUUM in a migration is autovacuum's work; leave it out")
        tables = [self.relation(r.relation) for r in node.rels or ()]
        return {
            "kind": "ANALYZE",
            "truth": "ledger",
            "locks": [_lock(table, SHARE_UPDATE_EXCLUSIVE) for table in tables],
        }

    def _RefreshMatViewStmt(self, node: ast.RefreshMatViewStmt, _: dict[str, str]) -> dict[str, Any]:
        if not node.concurrent:
            return _refuse("REFRESH MATERIALIZED VIEW stops its readers; write REFRESH MATERIALIZED VIEW CONCURRENTLY")
        return {"kind": "REFRESH", "truth": "ledger", "object": None}

    def _TransactionStmt(self, _node: Any, _: dict[str, str]) -> dict[str, Any]:
        return _refuse(
            "the engine sets the transactions itself (a concurrent build cannot run inside one); "
            "remove BEGIN, COMMIT and ROLLBACK"
        )


def _lock(relation: str, mode: str) -> dict[str, str]:
    return {"relation": relation, "mode": mode}


def _refuse(reason: str) -> dict[str, Any]:
    return {"refused": reason}


def _refuse_cascade(behavior: DropBehavior) -> dict[str, Any]:
    if behavior == DropBehavior.DROP_CASCADE:
        return _refuse(
            "CASCADE drops what the migration does not name and this rollout may not have made; drop it by name"
        )
    return {}


# What a column's default may call so that old rows get it without a rewrite: constant within a statement.
_STABLE_FUNCTIONS = {"now", "transaction_timestamp", "statement_timestamp", "timezone", "current_setting"}
_SERIALS = {"serial", "bigserial", "smallserial", "serial2", "serial4", "serial8"}


def _volatile_default(column: ast.ColumnDef) -> str:
    """What makes a new column rewrite its table: a serial type, a default that may be volatile; '' if nothing does."""
    type_name = column.typeName.names[-1].sval
    if type_name in _SERIALS:
        return f"the type {type_name}"
    for constraint in column.constraints or ():
        if constraint.contype == ConstrType.CONSTR_DEFAULT:
            calls = _Calls()
            calls(constraint.raw_expr)
            unsafe = sorted(calls.names - _STABLE_FUNCTIONS)
            if unsafe:
                return f"a default that calls {unsafe[0]}()"
    return ""


class _Calls(Visitor):  # type: ignore[misc]
    """Collects the names of the functions that an expression calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def visit_FuncCall(self, _ancestors: Any, node: ast.FuncCall) -> None:
        self.names.add(node.funcname[-1].sval)


def _checked_not_null(constraint: Any) -> str:
    """The column of a `CHECK (column IS NOT NULL)`, '' of anything else."""
    test = constraint.raw_expr
    if (
        isinstance(test, ast.NullTest)
        and isinstance(test.arg, ast.ColumnRef)
        and test.nulltesttype.name == "IS_NOT_NULL"
    ):
        return str(test.arg.fields[-1].sval)
    return ""
