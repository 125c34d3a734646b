"""What one statement does: its kind, the object it makes or removes, the locks it takes, how it has to run.

A statement is first brought into its safe forms (rewrite.py), then each form is classified here, in alter.py (ALTER
TABLE) or in objects.py (types, sequences, policies, names, privileges). What is no part of a migration is refused by
name (refusals.py); what has no safe form is a hazard that the author may accept (hazards.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pglast import ast, parse_sql
from pglast.enums.parsenodes import AlterTableType, ConstrType, ObjectType
from pglast.stream import RawStream

from pgrollout.errors import RolloutError
from pgrollout.migration import objects
from pgrollout.migration.alter import alter_table, checked_not_null, refuse_cascade
from pgrollout.migration.functions import extension_functions, unknown_encoding
from pgrollout.migration.hazards import risk, settle
from pgrollout.migration.locks import (
    ACCESS_EXCLUSIVE,
    EXCLUSIVE,
    ROW_EXCLUSIVE,
    SHARE,
    SHARE_ROW_EXCLUSIVE,
    SHARE_UPDATE_EXCLUSIVE,
    lock,
)
from pgrollout.migration.names import OF_NO_TABLE, column_names
from pgrollout.migration.objects import target
from pgrollout.migration.read import Statement
from pgrollout.migration.refusals import refusal
from pgrollout.migration.rewrite import columns_of, safe_forms
from pgrollout.migration.scope import Scope
from pgrollout.migration.text import quoted
from pgrollout.migration.twin import twin_statement
from pgrollout.migration.versions import needs

_DROPPED = {
    ObjectType.OBJECT_TABLE: "table",
    ObjectType.OBJECT_VIEW: "view",
    ObjectType.OBJECT_MATVIEW: "view",
    ObjectType.OBJECT_INDEX: "index",
    ObjectType.OBJECT_TRIGGER: "trigger",
    ObjectType.OBJECT_FUNCTION: "function",
    ObjectType.OBJECT_PROCEDURE: "function",
    ObjectType.OBJECT_ROUTINE: "function",
    ObjectType.OBJECT_SCHEMA: "schema",
    ObjectType.OBJECT_EXTENSION: "extension",
    ObjectType.OBJECT_TYPE: "type",
    ObjectType.OBJECT_DOMAIN: "type",
    ObjectType.OBJECT_SEQUENCE: "sequence",
    ObjectType.OBJECT_POLICY: "policy",
    ObjectType.OBJECT_STATISTIC_EXT: "statistics",
}
_ASKED_FOR_BY_NAME = ("view", "function", "type", "sequence", "schema", "extension")


class Classifier:
    """Classifies the statements of one file in order; its scope remembers what the file has said so far.

    as_written: no safe forms; the emergency switch runs as it stands, in one transaction and without a plan.
    """

    def __init__(
        self, schema: str, rollback: bool = False, gates: frozenset[str] = frozenset(), as_written: bool = False
    ) -> None:
        self.scope = Scope(schema, rollback, gates)
        self.as_written = as_written

    def steps(self, statement: Statement) -> list[dict[str, Any]]:
        """The steps of one statement: [] for BEGIN and COMMIT, one for most, several where the safe form needs them.

        Each is {kind, mode, truth, object, locks, hazards, refused, accepted, accepts, plan_risks, needs, probe,
        done_when, sql, written}.

        mode: ddl (through the lock-safe runner), concurrent (top level), data (batches), restore (batches back).
        truth: catalog, ledger, cursor or query (done_when): what says that the step is done.
        object: {kind, table, name} or None.  locks: [{relation, mode}].  refused: a reason, or ''.
        accepted: [{hazard, reason}] that the author took upon himself; accepts: the same for hazards that only the plan
        can tell (plan_risks).  needs: [{version, what}].  functions: {name: the extension that it comes with}.
        written: what the author wrote, '' where sql is just that.
        probe: our statement for the twin (see twin.py), '' where the catalog's definition cannot be compared.
        """
        stays = self.as_written or "Restore" in statement.notes
        decides = "Done when" in statement.notes
        try:
            forms = None if stays else safe_forms(statement.sql, statement.node, self.scope, decides)
        except RolloutError as error:
            return [self._step(statement, statement.sql, statement.notes) | {"refused": str(error)}]
        if forms is None:
            return [self._unused(statement, [self._step(statement, statement.sql, statement.notes)])[0]]
        # What the author said of the whole cannot say when a part of it is done.
        notes = statement.notes if len(forms) == 1 else {k: v for k, v in statement.notes.items() if k != "Done when"}
        steps = [self._step(statement, form, notes) | {"written": statement.sql} for form in forms]
        return self._unused(statement, steps)

    def _step(self, statement: Statement, sql: str, notes: dict[str, str]) -> dict[str, Any]:
        node = statement.node if sql == statement.sql else parse_sql(sql)[0].stmt
        step: dict[str, Any] = {
            "kind": type(node).__name__,
            "mode": "ddl",
            "truth": "catalog",
            "object": None,
            "locks": [],
            "hazards": [],
            "refused": "",
            "risks": [],
            "plan_risks": [],
            "probe": False,
            "done_when": notes.get("Done when", "").rstrip(";"),
            "sql": sql,
            "written": "",
        }
        handler = _HANDLERS.get(type(node).__name__)
        if "Restore" in notes:
            step |= {"kind": "restore", "mode": "restore", "truth": "cursor"}
        elif handler is None:
            step |= {"refused": refusal(type(node).__name__), "truth": "ledger"}
        else:
            step |= handler(node, self.scope, notes)
            self._learn(node, step)
        if "Done when" in notes:
            step |= {"truth": "query", "done_when": notes["Done when"].rstrip(";")}
        risks, after = step.pop("risks"), step.pop("probe_after", "")
        open_risks, accepted = settle(risks, statement.accepts)
        probe = twin_statement(sql) if step["probe"] and not step["refused"] else ""
        return step | {
            "refused": step["refused"] or open_risks or unknown_encoding(sql, node),
            "accepted": accepted,
            "accepts": statement.accepts,
            "needs": needs(node),
            "functions": extension_functions(sql, node),
            "probe": f"{twin_statement(after)}; {probe}" if probe and after else probe,
        }

    def _unused(self, statement: Statement, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """An acceptance of what does not happen is a mistake, or left over: the reason would go into the ledger."""
        taken = {entry["hazard"] for step in steps for entry in step["accepted"]}
        possible = {hazard for step in steps for hazard in step["plan_risks"]}
        for hazard, _ in statement.accepts:
            if hazard not in taken | possible and steps and not steps[0]["refused"]:
                steps[0]["refused"] = (
                    f"'-- Accept: {hazard}' stands above it, and it has no such hazard; remove the line"
                )
        return steps

    def _learn(self, node: Any, step: dict[str, Any]) -> None:
        """Tells the scope what later statements of the file may rely on."""
        scope = self.scope
        if isinstance(node, ast.CreateStmt):
            scope.made.add(scope.relation(node.relation))
        elif isinstance(node, ast.CreateTableAsStmt):
            scope.made.add(scope.relation(node.into.rel))
        elif isinstance(node, ast.IndexStmt) and node.idxname:
            scope.indexes[node.idxname] = step["sql"]
        elif isinstance(node, ast.CreateTrigStmt) and _fills(node):
            scope.triggers.add(scope.relation(node.relation))
        elif isinstance(node, ast.AlterTableStmt):
            _learn_of_table(scope, scope.relation(node.relation), node.cmds[0])
        if step["object"] and step["kind"].startswith("CREATE"):
            scope.objects.add((step["object"]["kind"], step["object"]["name"]))


def _fills(trigger: ast.CreateTrigStmt) -> bool:
    """Whether the trigger fires before each inserted row (bits of catalog/pg_trigger.h)."""
    before, insert = 1 << 1, 1 << 2
    return bool(trigger.row and trigger.timing & before and trigger.events & insert)


def _learn_of_table(scope: Scope, table: str, command: Any) -> None:
    if command.subtype == AlterTableType.AT_AddConstraint and (column := checked_not_null(command.def_)):
        scope.checks[table, command.def_.conname] = column
    elif command.subtype == AlterTableType.AT_ValidateConstraint:
        scope.constrained.add(table)
        if column := scope.checks.get((table, command.name), ""):
            scope.not_null.add((table, column))
    elif command.subtype == AlterTableType.AT_ColumnDefault and command.def_:
        scope.filled.add((table, command.name))
    elif command.subtype == AlterTableType.AT_AddColumn and any(
        constraint.contype == ConstrType.CONSTR_DEFAULT for constraint in command.def_.constraints or ()
    ):
        scope.filled.add((table, command.def_.colname))


# -- indexes and tables ------------------------------------------------------------------------------------------------


def _index(node: ast.IndexStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    table = scope.relation(node.relation)
    concurrent = bool(node.concurrent)
    step = {
        "kind": "CREATE INDEX" + (" CONCURRENTLY" if concurrent else ""),
        "mode": "concurrent" if concurrent else "ddl",
        "object": target("index", table, node.idxname),
        "locks": [lock(table, SHARE_UPDATE_EXCLUSIVE if concurrent else SHARE)],
        "probe": True,
    }
    if not node.idxname:
        return step | {"refused": "an index without a name cannot be found again; give it one"}
    return step


def _table(node: ast.CreateStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    table = scope.relation(node.relation)
    referenced = set()
    for element in node.tableElts or ():
        constraints = [element] if isinstance(element, ast.Constraint) else getattr(element, "constraints", None) or ()
        referenced |= {scope.relation(c.pktable) for c in constraints if c.pktable}
    parents = [scope.relation(parent) for parent in node.inhRelations or ()]
    parent_mode = ACCESS_EXCLUSIVE if node.partbound else SHARE_UPDATE_EXCLUSIVE
    step = {
        "kind": "CREATE TABLE",
        "object": target("table", table, table),
        "locks": [lock(parent, parent_mode) for parent in parents]
        + [lock(other, SHARE_ROW_EXCLUSIVE) for other in sorted(referenced - {table})],
        "probe": not parents,
    }
    if node.relation.relpersistence == "t":
        return step | {"refused": "a temporary table is gone with the session of its step; make an ordinary one"}
    return step


def _reindex(node: ast.ReindexStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    kind = node.kind.name.removeprefix("REINDEX_OBJECT_")
    if kind in ("SYSTEM", "DATABASE"):
        return {"refused": f"REINDEX {kind} is maintenance of all tables; name the index or the table"}
    # Of an index the table is not known here; REINDEX of a table locks the table.
    locks = [lock(scope.relation(node.relation), SHARE_UPDATE_EXCLUSIVE)] if kind == "TABLE" else []
    step = {"kind": f"REINDEX {kind} CONCURRENTLY", "mode": "concurrent", "truth": "ledger", "locks": locks}
    return step | {"reindexes": node.name if kind == "SCHEMA" else scope.relation(node.relation)}


# -- views, functions, triggers, comments ------------------------------------------------------------------------------


def _replaces(node: Any) -> dict[str, Any]:
    """Whether OR REPLACE hurts depends on what stands there: the plan looks."""
    return {"replace": True, "plan_risks": ["replace"]} if node.replace else {}


def _view(node: ast.ViewStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    name = scope.relation(node.view)
    step = {"kind": "CREATE VIEW", "object": target("view", name, name), "probe": True, **_replaces(node)}
    if node.view.relpersistence == "t":
        return step | {"refused": "a temporary view is gone with the session of its step; make an ordinary one"}
    return step | {"locks": [lock(name, ACCESS_EXCLUSIVE)] if node.replace else []}


def _table_as(node: ast.CreateTableAsStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    name = scope.relation(node.into.rel)
    if node.objtype != ObjectType.OBJECT_MATVIEW:
        return {
            "refused": "CREATE TABLE AS copies rows that the application may change meanwhile; create the table, "
            "then backfill it"
        }
    return {"kind": "CREATE MATERIALIZED VIEW", "object": target("view", name, name), "probe": True}


def _function(node: ast.CreateFunctionStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    name = scope.named(node.funcname)
    return {
        "kind": "CREATE FUNCTION",
        "object": target("function", name, name),
        "probe": True,
        **_replaces(node),
    }


def _trigger(node: ast.CreateTrigStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    table = scope.relation(node.relation)
    return {
        "kind": "CREATE TRIGGER",
        "object": target("trigger", table, node.trigname),
        "locks": [lock(table, SHARE_ROW_EXCLUSIVE)],
        "probe": True,
        **_replaces(node),
    }


def _comment(node: ast.CommentStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    kind = {ObjectType.OBJECT_COLUMN: "column", ObjectType.OBJECT_TABLE: "table"}.get(node.objtype)
    if kind is None:
        return {"kind": "COMMENT", "truth": "ledger"}
    column = node.object[-1].sval if kind == "column" else ""
    table = scope.named(node.object[:-1] if column else node.object)
    return {
        "kind": "COMMENT",
        "object": target("comment", table, column) | {"text": node.comment or ""},
        "locks": [lock(table, SHARE_UPDATE_EXCLUSIVE)],
    }


# -- drops -------------------------------------------------------------------------------------------------------------


def _drop(node: ast.DropStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    kind, found = _DROPPED.get(node.removeType), node.objects[0]
    if kind is None:
        words = node.removeType.name.removeprefix("OBJECT_").replace("_", " ")
        return {"refused": f"DROP {words} is not supported; the administration of the server may do it by hand"}
    place, locks = _dropped(kind, found, scope)
    step = {
        "kind": f"DROP {kind.upper()}" + (" CONCURRENTLY" if node.concurrent else ""),
        "mode": "concurrent" if node.concurrent else "ddl",
        "object": place,
        "locks": locks,
        **refuse_cascade(node.behavior),
    }
    in_use = not scope.rollback and (kind, place["name"]) not in scope.objects
    return step | {"risks": _drop_risks(kind, place, scope) if in_use else []}


def _dropped(kind: str, found: Any, scope: Scope) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The object that goes, and the locks that its going takes."""
    if kind in ("trigger", "policy"):
        table = scope.named(found[:-1])
        return target(kind, table, found[-1].sval), [lock(table, ACCESS_EXCLUSIVE)]
    if kind == "function":
        name = scope.named(found.objname)
        return target(kind, name, name), []
    if kind in ("schema", "extension"):
        return target(kind, "", found.sval), []
    if kind in OF_NO_TABLE:
        return target(kind, "", found[-1].sval), []
    if kind == "type":
        name = scope.named(found.names)
        return target(kind, name, name), []
    name = scope.named(found)
    return target(kind, name, name), [lock(name, ACCESS_EXCLUSIVE)]


def _drop_risks(kind: str, place: dict[str, str], scope: Scope) -> list[dict[str, str]]:
    recipe = "take it out of the application first"
    if kind == "table":
        return [risk("drop-table", f"the application may still use table {place['name']}", recipe)]
    if kind in _ASKED_FOR_BY_NAME:
        return [risk("drop-object", f"the application may still use {kind} {place['name']}", recipe)]
    if kind == "index" and place["name"] in scope.gates:
        what = f"a gate file of this rollout relies on index {place['name']}"
        return [risk("gate-index", what, "keep the index, or change the gate first")]
    return []


# -- data and maintenance ----------------------------------------------------------------------------------------------


def _update(node: ast.UpdateStmt, scope: Scope, notes: dict[str, str]) -> dict[str, Any]:
    """An UPDATE is a backfill, unless its author says when it is done: in one transaction it would lock every row."""
    table = scope.relation(node.relation)
    step: dict[str, Any] = {"kind": "UPDATE", "locks": [lock(table, ROW_EXCLUSIVE)], "truth": "ledger"}
    if "Backfill" not in notes and "Done when" in notes:
        return step
    if node.fromClause or node.withClause or node.returningClause:
        return step | {
            "refused": f"an UPDATE of {table} with FROM, WITH or RETURNING cannot run in batches, and in one "
            "transaction it locks every row that it changes until it ends; use a sub-select in SET or WHERE, or say "
            "'-- Done when: SELECT …' above it if it touches a handful of rows"
        }
    # Without a key here the plan takes the table's primary key.
    keys = column_names(notes.get("Backfill", "").removeprefix("by "))
    values = node.targetList
    if any(isinstance(entry.val, ast.MultiAssignRef) or entry.indirection for entry in values):
        return step | {"refused": "a backfill sets whole columns one by one; write SET a = …, b = …"}
    return step | {
        "kind": "BACKFILL",
        "hazards": _old_values(values),
        "mode": "data",
        "truth": "cursor",
        "backfill": {
            "table": table,
            "alias": node.relation.alias.aliasname if node.relation.alias else node.relation.relname,
            "key": keys,
            "columns": [entry.name for entry in values],
            "set": ", ".join(f"{quoted(entry.name)} = {RawStream()(entry.val)}" for entry in values),
            "where": RawStream()(node.whereClause) if node.whereClause else "true",
            "new_rows": notes.get("New rows", "left"),
        },
        "refused": f"'-- Backfill: {notes['Backfill']}' names no key column; write '-- Backfill: by id', in double "
        "quotes what SQL wants in them"
        if "Backfill" in notes and not keys
        else "",
    }


def _old_values(assignments: Any) -> list[str]:
    """SET reads the row as it was: a column that the same UPDATE sets still has its former value there."""
    names = {entry.name for entry in assignments}
    found = []
    for entry in assignments:
        read = sorted((set(columns_of(entry.val)) & names) - {entry.name})
        found += [f"{entry.name} is computed from the old {column}, not from what this UPDATE sets" for column in read]
    return found


def _small_dml(node: Any, scope: Scope, notes: dict[str, str]) -> dict[str, Any]:
    kind = type(node).__name__.removesuffix("Stmt").upper()
    step = {"kind": kind, "truth": "ledger", "locks": [lock(scope.relation(node.relation), ROW_EXCLUSIVE)]}
    if "Done when" not in notes:
        return step | {
            "refused": f"{kind} changes rows and nothing says when it is done; add '-- Done when: SELECT …' above it"
        }
    return step


def _vacuum(node: ast.VacuumStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    tables = [scope.relation(r.relation) for r in node.rels or ()]
    if not node.is_vacuumcmd:
        locks = [lock(table, SHARE_UPDATE_EXCLUSIVE) for table in tables]
        return {"kind": "ANALYZE", "truth": "ledger", "locks": locks}
    if not any(option.defname == "full" for option in node.options or ()):
        return {"refused": "VACUUM in a migration is autovacuum's work; leave it out"}
    if len(tables) != 1:
        return {"refused": "VACUUM FULL of several tables stops them all; name one table a statement"}
    recipe = "let autovacuum reuse the space, or repack the table with a tool that copies it beside the writers"
    return {
        "kind": "VACUUM FULL",
        "mode": "concurrent",
        "truth": "ledger",
        "locks": [lock(tables[0], ACCESS_EXCLUSIVE)],
        "risks": [risk("rewrite", "VACUUM FULL copies the table", recipe, tables[0], ACCESS_EXCLUSIVE)],
    }


def _cluster(node: ast.ClusterStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    if not node.relation:
        return {"refused": "CLUSTER without a table copies every clustered table; name one"}
    table = scope.relation(node.relation)
    recipe = "leave the order of rows alone, or repack the table with a tool that copies it beside the writers"
    return {
        "kind": "CLUSTER",
        "truth": "ledger",
        "locks": [lock(table, ACCESS_EXCLUSIVE)],
        "risks": [risk("rewrite", "CLUSTER copies the table", recipe, table, ACCESS_EXCLUSIVE)],
    }


def _truncate(node: ast.TruncateStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    tables = [scope.relation(relation) for relation in node.relations]
    recipe = "delete the rows in batches"
    return {
        "kind": "TRUNCATE",
        "truth": "ledger",
        "locks": [lock(table, ACCESS_EXCLUSIVE) for table in tables],
        "risks": [risk("truncate", "all rows go at once", recipe, tables[0], ACCESS_EXCLUSIVE)],
        **refuse_cascade(node.behavior),
    }


def _refresh(node: ast.RefreshMatViewStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    name = scope.relation(node.relation)
    if not node.concurrent:
        if name in scope.made:
            return {"kind": "REFRESH", "truth": "ledger", "locks": [lock(name, ACCESS_EXCLUSIVE)]}
        return {"refused": "REFRESH MATERIALIZED VIEW … WITH NO DATA makes its readers fail; leave it out"}
    return {"kind": "REFRESH", "truth": "ledger", "locks": [lock(name, EXCLUSIVE)]}


_HANDLERS: dict[str, Callable[[Any, Scope, dict[str, str]], dict[str, Any]]] = {
    "AlterDefaultPrivilegesStmt": objects.default_privileges,
    "AlterDomainStmt": objects.alter_domain,
    "AlterEnumStmt": objects.alter_enum,
    "AlterExtensionStmt": objects.alter_extension,
    "AlterFunctionStmt": objects.alter_function,
    "AlterObjectDependsStmt": objects.depends,
    "AlterObjectSchemaStmt": objects.move,
    "AlterOwnerStmt": objects.owner,
    "AlterPolicyStmt": objects.alter_policy,
    "AlterSeqStmt": objects.alter_sequence,
    "AlterStatsStmt": objects.alter_statistics,
    "AlterTableStmt": alter_table,
    "AlterTypeStmt": objects.alter_composite,
    "ClusterStmt": _cluster,
    "CommentStmt": _comment,
    "CompositeTypeStmt": objects.create_type,
    "CreateDomainStmt": objects.create_type,
    "CreateEnumStmt": objects.create_type,
    "CreateExtensionStmt": objects.create_extension,
    "CreateFunctionStmt": _function,
    "CreatePolicyStmt": objects.create_policy,
    "CreateRangeStmt": objects.create_type,
    "CreateSchemaStmt": objects.create_schema,
    "CreateSeqStmt": objects.create_sequence,
    "CreateStatsStmt": objects.create_statistics,
    "CreateStmt": _table,
    "CreateTableAsStmt": _table_as,
    "CreateTrigStmt": _trigger,
    "DeleteStmt": _small_dml,
    "DropStmt": _drop,
    "GrantStmt": objects.grant,
    "IndexStmt": _index,
    "InsertStmt": _small_dml,
    "MergeStmt": _small_dml,
    "RefreshMatViewStmt": _refresh,
    "ReindexStmt": _reindex,
    "RenameStmt": objects.rename,
    "TruncateStmt": _truncate,
    "UpdateStmt": _update,
    "VacuumStmt": _vacuum,
    "ViewStmt": _view,
}
