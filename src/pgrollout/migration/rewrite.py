"""The safe forms: what an author wrote plainly, as the statements that do the same without stopping the application.

Works on the parse tree. What comes out is parsed again and must be the tree that was meant; so a printer's mistake is a
refusal, never another statement.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from pglast import ast, parse_sql, parser
from pglast.enums.parsenodes import (
    AlterTableType,
    ConstrType,
    ObjectType,
    ReindexObjectType,
    SortByDir,
    SortByNulls,
    TransactionStmtKind,
)
from pglast.stream import IndentedStream, RawStream

from pgrollout.errors import RolloutError
from pgrollout.migration.names import identifier, object_name
from pgrollout.migration.scope import Scope

LINE = 110
_BRACKETS = {TransactionStmtKind.TRANS_STMT_BEGIN, TransactionStmtKind.TRANS_STMT_START}
_BRACKETS_END = {TransactionStmtKind.TRANS_STMT_COMMIT}
# In one ALTER TABLE PostgreSQL first drops, then changes types, then adds columns, then the rest.
_PASSES = {
    AlterTableType.AT_DropColumn: 0,
    AlterTableType.AT_DropConstraint: 0,
    AlterTableType.AT_AlterColumnType: 1,
    AlterTableType.AT_AddColumn: 2,
}


def safe_forms(sql: str, node: Any, scope: Scope, author_decides: bool = False) -> list[str] | None:
    """The statements that take the place of `sql`; None where it stays as it is, [] where nothing is left to do.

    author_decides: `-- Done when:` says what is there, not the plan's comparison, and IF NOT EXISTS keeps its sense.
    Raises RolloutError with the recipe where the safe form cannot be printed faithfully.
    """
    name = type(node).__name__
    handler = _FORMS.get(name) or (None if author_decides else _COMPARED.get(name))
    forms = handler(sql, node, scope) if handler else None
    if forms == [sql]:
        return None
    return forms


def printed(tree: Any) -> str:
    """`tree` as SQL, on several lines where it is long."""
    for stream in (RawStream, lambda: IndentedStream(comma_at_eoln=True), RawStream):
        try:
            text = str(stream()(tree))
        except Exception:  # the printer lacks a node
            continue
        if (len(text) <= LINE or stream is not RawStream) and _means(text, tree):
            return text
    if _means(text := str(RawStream()(tree)), tree):
        return text
    raise RolloutError(
        "the safe form of this statement cannot be printed faithfully; write it out as docs/planner.md shows it"
    )


def _means(text: str, tree: Any) -> bool:
    try:
        return bool(parse_sql(text)[0].stmt == tree)
    except parser.ParseError:
        return False


def _edited(sql: str, tree: Any) -> str:
    """`sql` with as few words cut or put in as make it mean `tree`, so that the author's layout stays; else printed."""
    cuts = [sql, _cut(sql, ["IF_P", "NOT", "EXISTS"]), _cut(sql, ["IF_P", "EXISTS"])]
    for text in (*cuts, *(_concurrent(cut) for cut in cuts)):
        if _means(text, tree):
            return text
    return printed(tree)


def _cut(sql: str, words: list[str]) -> str:
    tokens = [token for token in parser.scan(sql) if "COMMENT" not in token.name]
    names = [token.name for token in tokens]
    for start in range(len(names) - len(words)):
        if names[start : start + len(words)] == words:
            return sql[: tokens[start].start] + sql[tokens[start + len(words)].start :]
    return sql


def _concurrent(sql: str) -> str:
    """CONCURRENTLY after the first INDEX, TABLE or VIEW: where CREATE, DROP, REINDEX and REFRESH want it."""
    for token in parser.scan(sql):
        if token.name in ("INDEX", "TABLE", "VIEW", "SCHEMA"):
            return f"{sql[: token.end + 1]} CONCURRENTLY{sql[token.end + 1 :]}"
    return sql


def _changed(node: Any, **attributes: Any) -> Any:
    tree = copy.deepcopy(node)
    for name, value in attributes.items():
        setattr(tree, name, value)
    return tree


# -- statements --------------------------------------------------------------------------------------------------------


def _index(sql: str, node: ast.IndexStmt, scope: Scope) -> list[str]:
    in_use = scope.relation(node.relation) not in scope.made
    # ON ONLY makes the entry of a partitioned index and builds nothing; it cannot be concurrent.
    concurrent = bool(node.concurrent or (in_use and node.relation.inh))
    return [_edited(sql, _changed(node, concurrent=concurrent, if_not_exists=False))]


def _drop(sql: str, node: ast.DropStmt, _: Scope) -> list[str]:
    concurrent = bool(node.concurrent or node.removeType == ObjectType.OBJECT_INDEX)
    if len(node.objects) == 1:
        return [_edited(sql, _changed(node, concurrent=concurrent, missing_ok=False))]
    return [printed(_changed(node, objects=(o,), concurrent=concurrent, missing_ok=False)) for o in node.objects]


def _refresh(sql: str, node: ast.RefreshMatViewStmt, scope: Scope) -> list[str]:
    if node.skipData or scope.relation(node.relation) in scope.made:
        return [sql]
    return [_edited(sql, _changed(node, concurrent=True))]


def _reindex(sql: str, node: ast.ReindexStmt, _: Scope) -> list[str]:
    whole = node.kind in (ReindexObjectType.REINDEX_OBJECT_SYSTEM, ReindexObjectType.REINDEX_OBJECT_DATABASE)
    if whole or any(param.defname == "concurrently" for param in node.params or ()):
        return [sql]
    (concurrently,) = parse_sql("REINDEX INDEX CONCURRENTLY i")[0].stmt.params
    return [_edited(sql, _changed(node, params=(*(node.params or ()), concurrently)))]


def _transaction(sql: str, node: ast.TransactionStmt, _: Scope) -> list[str]:
    """BEGIN and COMMIT around a file mean what the engine does anyway, step by step."""
    return [] if node.kind in _BRACKETS | _BRACKETS_END and not node.options and not node.chain else [sql]


def _without_flag(flag: str) -> Callable[[str, Any, Scope], list[str]]:
    """IF NOT EXISTS is dropped: the plan compares what is there, and runs the statement only where nothing is."""
    return lambda sql, node, _: [_edited(sql, _changed(node, **{flag: False}))] if getattr(node, flag) else [sql]


# -- ALTER TABLE -------------------------------------------------------------------------------------------------------


def _alter_table(sql: str, node: ast.AlterTableStmt, scope: Scope) -> list[str]:
    if node.objtype != ObjectType.OBJECT_TABLE:
        return [sql]
    plain = _changed(node, missing_ok=False)
    commands = sorted(plain.cmds, key=lambda command: _PASSES.get(command.subtype, 3))
    if len(commands) == 1 and (forms := _command(plain, commands[0], scope)) is None:
        return [_edited(sql, plain)]
    done: list[str] = []
    for command in commands:
        forms = _command(plain, command, scope)
        done += [printed(_changed(plain, cmds=(command,)))] if forms is None else forms
    return done


def _command(statement: ast.AlterTableStmt, command: Any, scope: Scope) -> list[str] | None:
    """The forms of one change; None where it stays."""
    command.missing_ok = False
    if scope.relation(statement.relation) in scope.made:  # nobody's yet: all it needs is a name to be found again by
        return _named(statement, command) if command.subtype == AlterTableType.AT_AddConstraint else None
    handler = _COMMANDS.get(command.subtype)
    return handler(statement, command, scope) if handler else None


def _named(statement: ast.AlterTableStmt, command: Any) -> list[str] | None:
    name = command.def_.conname or _default_name(command.def_, statement.relation)
    if command.def_.conname or not name:
        return None
    return [printed(_changed(statement, cmds=(_changed(command, def_=_changed(command.def_, conname=name)),)))]


def _add_column(statement: ast.AlterTableStmt, command: Any, _: Scope) -> list[str] | None:
    """A column whose constraints would scan or index the table under its lock gets them afterwards."""
    column, table = command.def_, statement.relation
    groups = _with_attributes(column.constraints or ())
    if any(node.contype == ConstrType.CONSTR_ATTR_NOT_ENFORCED for _, nodes in groups for node in nodes):
        return None
    kinds = {constraint.contype for constraint, _ in groups}
    moved = [constraint for constraint, _ in groups if _moves(constraint, ConstrType.CONSTR_DEFAULT in kinds)]
    if not moved or ConstrType.CONSTR_PRIMARY in kinds:
        return None
    staying = tuple(node for constraint, nodes in groups if constraint not in moved for node in nodes)
    bare = _changed(command, def_=_changed(column, constraints=staying or None))
    forms = [printed(_changed(statement, cmds=(bare,)))]
    for constraint in moved:
        label = {ConstrType.CONSTR_CHECK: "check", ConstrType.CONSTR_FOREIGN: "fkey"}.get(constraint.contype, "key")
        constraint.conname = constraint.conname or object_name(table.relname, [column.colname], label)
        constraint.fk_attrs = constraint.keys = (ast.String(column.colname),)
        forms += _constraint_forms(table, constraint)
    return forms


def _with_attributes(nodes: tuple[Any, ...]) -> list[tuple[Any, list[Any]]]:
    """Column constraints, each with the nodes it is made of: the grammar keeps DEFERRABLE and the like behind it."""
    found: list[tuple[Any, list[Any]]] = []
    for node in nodes:
        if not node.contype.name.startswith("CONSTR_ATTR_"):
            found.append((copy.deepcopy(node), [node]))
            continue
        constraint, group = found[-1]
        group.append(node)
        if node.contype == ConstrType.CONSTR_ATTR_DEFERRABLE:
            constraint.deferrable = True
        elif node.contype == ConstrType.CONSTR_ATTR_DEFERRED:
            constraint.deferrable = constraint.initdeferred = True
    return found


def _moves(constraint: Any, has_default: bool) -> bool:
    """A foreign key of a new column that is NULL in every row is known to hold without a scan: it stays."""
    if constraint.contype == ConstrType.CONSTR_FOREIGN:
        return has_default
    return constraint.contype in (ConstrType.CONSTR_CHECK, ConstrType.CONSTR_UNIQUE)


def _add_constraint(statement: ast.AlterTableStmt, command: Any, scope: Scope) -> list[str] | None:
    constraint, table = command.def_, statement.relation
    named = _changed(constraint, conname=constraint.conname or _default_name(constraint, table))
    if constraint.contype in (ConstrType.CONSTR_PRIMARY, ConstrType.CONSTR_UNIQUE):
        if not constraint.keys or constraint.without_overlaps:
            return None
        primary = constraint.contype == ConstrType.CONSTR_PRIMARY
        keys = [key.sval for key in constraint.keys if primary]
        unknown = [key for key in keys if (scope.relation(table), key) not in scope.not_null]
        return [form for key in unknown for form in _not_null_forms(table, key)] + _constraint_forms(table, named)
    verified = constraint.contype in (ConstrType.CONSTR_CHECK, ConstrType.CONSTR_FOREIGN, ConstrType.CONSTR_NOTNULL)
    unenforced = constraint.contype != ConstrType.CONSTR_NOTNULL and constraint.is_enforced is False
    if not verified or constraint.skip_validation or unenforced:
        return None
    return _constraint_forms(table, named)


def _default_name(constraint: Any, table: ast.RangeVar) -> str:
    """The name that PostgreSQL would give to a constraint without one; '' for one that it builds of expressions."""
    label = {
        ConstrType.CONSTR_PRIMARY: "pkey",
        ConstrType.CONSTR_UNIQUE: "key",
        ConstrType.CONSTR_FOREIGN: "fkey",
        ConstrType.CONSTR_NOTNULL: "not_null",
        ConstrType.CONSTR_CHECK: "check",
    }.get(constraint.contype)
    if label is None:
        return ""
    if constraint.contype == ConstrType.CONSTR_CHECK:
        columns = sorted(set(columns_of(constraint.raw_expr)))
        return object_name(table.relname, columns if len(columns) == 1 else [], label)
    keys = constraint.fk_attrs if constraint.contype == ConstrType.CONSTR_FOREIGN else constraint.keys
    keys = () if constraint.contype == ConstrType.CONSTR_PRIMARY else keys
    return object_name(table.relname, [key.sval for key in keys or ()], label)


def columns_of(expression: Any) -> list[str]:
    """Names of the columns that an expression reads."""
    if isinstance(expression, ast.ColumnRef):
        return [expression.fields[-1].sval] if isinstance(expression.fields[-1], ast.String) else []
    if isinstance(expression, tuple):
        return [name for part in expression for name in columns_of(part)]
    if isinstance(expression, ast.Node):
        return [name for attribute in expression for name in columns_of(getattr(expression, attribute))]
    return []


# A constraint as the grammar makes it, so that all attributes that nobody sets are as they should be.
_UNCHECKED = {
    ConstrType.CONSTR_CHECK: "ALTER TABLE t ADD CONSTRAINT c CHECK (true) NOT VALID",
    ConstrType.CONSTR_FOREIGN: "ALTER TABLE t ADD CONSTRAINT c FOREIGN KEY (a) REFERENCES r NOT VALID",
    ConstrType.CONSTR_NOTNULL: "ALTER TABLE t ADD CONSTRAINT c NOT NULL a NOT VALID",
    ConstrType.CONSTR_UNIQUE: "ALTER TABLE t ADD CONSTRAINT c UNIQUE USING INDEX i",
    ConstrType.CONSTR_PRIMARY: "ALTER TABLE t ADD CONSTRAINT c PRIMARY KEY USING INDEX i",
}
_CARRIED = {
    ConstrType.CONSTR_CHECK: ("conname", "raw_expr", "is_no_inherit"),
    ConstrType.CONSTR_FOREIGN: (
        *("conname", "fk_attrs", "pktable", "pk_attrs", "fk_matchtype", "fk_upd_action", "fk_del_action"),
        *("fk_del_set_cols", "deferrable", "initdeferred", "fk_with_period", "pk_with_period"),
    ),
    ConstrType.CONSTR_NOTNULL: ("conname", "keys", "is_no_inherit"),
    ConstrType.CONSTR_UNIQUE: ("conname", "deferrable", "initdeferred"),
    ConstrType.CONSTR_PRIMARY: ("conname", "deferrable", "initdeferred"),
}


def _constraint_forms(table: ast.RangeVar, constraint: Any) -> list[str]:
    """A named constraint on a table in use: unchecked first, or on an index that was built concurrently."""
    tree = parse_sql(_UNCHECKED[constraint.contype])[0].stmt
    tree.relation = table
    made = tree.cmds[0].def_
    for attribute in _CARRIED[constraint.contype]:
        setattr(made, attribute, getattr(constraint, attribute))
    if constraint.contype in (ConstrType.CONSTR_UNIQUE, ConstrType.CONSTR_PRIMARY):
        made.indexname = constraint.conname
        return [printed(_unique_index(table, constraint)), printed(tree)]
    validate = f"ALTER TABLE {RawStream()(table)} VALIDATE CONSTRAINT {identifier(constraint.conname)}"
    return [printed(tree), validate]


def _unique_index(table: ast.RangeVar, constraint: Any) -> Any:
    def elements(keys: Any) -> Any:
        return tuple(
            ast.IndexElem(
                name=key.sval, ordering=SortByDir.SORTBY_DEFAULT, nulls_ordering=SortByNulls.SORTBY_NULLS_DEFAULT
            )
            for key in keys
        )

    tree = parse_sql("CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)")[0].stmt
    tree.idxname, tree.relation = constraint.conname, copy.deepcopy(table)
    tree.indexParams = elements(constraint.keys)
    tree.indexIncludingParams = elements(constraint.including) if constraint.including else None
    tree.nulls_not_distinct = constraint.nulls_not_distinct
    tree.options, tree.tableSpace = constraint.options, constraint.indexspace
    return tree


def _set_not_null(statement: ast.AlterTableStmt, command: Any, scope: Scope) -> list[str] | None:
    if (scope.relation(statement.relation), command.name) in scope.not_null:
        return None
    return _not_null_forms(statement.relation, command.name)


def _not_null_forms(relation: ast.RangeVar, column: str) -> list[str]:
    """SET NOT NULL that need not look: a CHECK that was validated while writers went on says so already."""
    table, check = RawStream()(relation), identifier(object_name(relation.relname, [column], "present"))
    return [
        f"ALTER TABLE {table} ADD CONSTRAINT {check} CHECK ({identifier(column)} IS NOT NULL) NOT VALID",
        f"ALTER TABLE {table} VALIDATE CONSTRAINT {check}",
        f"ALTER TABLE {table} ALTER COLUMN {identifier(column)} SET NOT NULL",
        f"ALTER TABLE {table} DROP CONSTRAINT {check}",
    ]


def _detach_partition(statement: ast.AlterTableStmt, command: Any, _: Scope) -> list[str]:
    detached = _changed(command, def_=_changed(command.def_, concurrent=True))
    return [printed(_changed(statement, cmds=(detached,)))]


_COMMANDS: dict[AlterTableType, Callable[[Any, Any, Scope], list[str] | None]] = {
    AlterTableType.AT_AddColumn: _add_column,
    AlterTableType.AT_AddConstraint: _add_constraint,
    AlterTableType.AT_SetNotNull: _set_not_null,
    AlterTableType.AT_DetachPartition: _detach_partition,
}
_FORMS: dict[str, Callable[[str, Any, Scope], list[str]]] = {
    "IndexStmt": _index,
    "DropStmt": _drop,
    "RefreshMatViewStmt": _refresh,
    "ReindexStmt": _reindex,
    "TransactionStmt": _transaction,
    "AlterTableStmt": _alter_table,
}
_COMPARED: dict[str, Callable[[str, Any, Scope], list[str]]] = {
    "CreateStmt": _without_flag("if_not_exists"),
    "CreateTableAsStmt": _without_flag("if_not_exists"),
    "CreateSchemaStmt": _without_flag("if_not_exists"),
    "CreateSeqStmt": _without_flag("if_not_exists"),
    "CreateExtensionStmt": _without_flag("if_not_exists"),
    "CreateStatsStmt": _without_flag("if_not_exists"),
    "AlterEnumStmt": _without_flag("skipIfNewValExists"),
    "RenameStmt": _without_flag("missing_ok"),
}
