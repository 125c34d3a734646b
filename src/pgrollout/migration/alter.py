"""ALTER TABLE: what each change locks, when it is done, what of it has no safe form.

Lock levels are those of AlterTableGetLockLevel in PostgreSQL's tablecmds.c; tests/integration/test_locks.py compares
them with what a server takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pglast import ast
from pglast.enums.parsenodes import AlterTableType, ConstrType, DropBehavior, ObjectType
from pglast.visitors import Visitor

from pgrollout.migration.hazards import risk
from pgrollout.migration.locks import ACCESS_EXCLUSIVE, SHARE_ROW_EXCLUSIVE, SHARE_UPDATE_EXCLUSIVE, lock
from pgrollout.migration.names import bare, beside, regclass
from pgrollout.migration.scope import Scope
from pgrollout.migration.text import literal

PREPARED_HAZARD = (
    "a prepared 'SELECT *' of the application fails once with 'cached plan must not change result type'; "
    "name the columns, or let the driver re-prepare"
)
RLS_HAZARD = "row-level security hides every row that no policy shows, from all but the owner; make the policies first"


def alter_table(node: ast.AlterTableStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    """One change of one table, or the attachment of a partition's index."""
    table, command = scope.relation(node.relation), node.cmds[0]
    if node.objtype == ObjectType.OBJECT_INDEX and command.subtype == AlterTableType.AT_AttachPartition:
        child = beside(table, command.def_.name.relname)
        return {
            "kind": "ATTACH INDEX",
            "locks": [lock(table, SHARE_UPDATE_EXCLUSIVE), lock(child, ACCESS_EXCLUSIVE)],
            **_done(_inherits(child, table)),
        }
    if node.objtype != ObjectType.OBJECT_TABLE:
        what = node.objtype.name.removeprefix("OBJECT_").replace("MATVIEW", "MATERIALIZED VIEW").replace("_", " ")
        return {"refused": f"ALTER {what} is not supported; make a new one beside it and drop the old one afterwards"}
    handler = _COMMANDS.get(command.subtype)
    if handler is None:
        words = AlterTableType(command.subtype).name.removeprefix("AT_")
        return {"refused": _REFUSED.get(command.subtype, f"ALTER TABLE {words} exists inside the server only")}
    step = handler(table, command, scope)
    if table in scope.made:
        step["risks"] = []  # nobody uses it yet
    return step


def refuse_cascade(behavior: DropBehavior) -> dict[str, Any]:
    """CASCADE has no limit, so nobody can accept it."""
    if behavior == DropBehavior.DROP_CASCADE:
        return {
            "refused": "CASCADE drops what the migration does not name and this rollout may not have made; "
            "drop it by name"
        }
    return {}


def _target(kind: str, table: str, name: str) -> dict[str, str]:
    return {"kind": kind, "table": table, "name": name}


def _done(query: str) -> dict[str, Any]:
    """A change whose truth is a query over the catalog."""
    return {"truth": "query", "done_when": query}


def _strong(kind: str, table: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "locks": [lock(table, ACCESS_EXCLUSIVE)], **more}


def _weak(kind: str, table: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "locks": [lock(table, SHARE_UPDATE_EXCLUSIVE)], **more}


def _of_table(table: str, condition: str) -> dict[str, Any]:
    return _done(f"SELECT {condition} FROM pg_class AS c WHERE c.oid = {regclass(table)}")


def _of_column(table: str, column: str, condition: str) -> dict[str, Any]:
    return _done(
        f"SELECT {condition} FROM pg_attribute AS a WHERE a.attrelid = {regclass(table)} "
        f"AND a.attname = {literal(column)} AND NOT a.attisdropped"
    )


def _inherits(child: str, parent: str) -> str:
    return (
        "SELECT EXISTS (SELECT FROM pg_inherits AS i "
        f"WHERE i.inhrelid = {regclass(child)} AND i.inhparent = {regclass(parent)})"
    )


# -- columns -----------------------------------------------------------------------------------------------------------


def _add_column(table: str, command: Any, scope: Scope) -> dict[str, Any]:
    column = command.def_
    constraints = column.constraints or ()
    kinds = {c.contype for c in constraints}
    referenced = [scope.relation(c.pktable) for c in constraints if c.contype == ConstrType.CONSTR_FOREIGN]
    return {
        "kind": "ADD COLUMN",
        "object": _target("column", table, column.colname),
        "locks": [lock(table, ACCESS_EXCLUSIVE)] + [lock(r, SHARE_ROW_EXCLUSIVE) for r in referenced if r != table],
        "hazards": [PREPARED_HAZARD],
        "probe": True,
        "risks": _column_risks(table, column, kinds),
    }


def _column_risks(table: str, column: Any, kinds: set[ConstrType]) -> list[dict[str, str]]:
    virtual = any(
        c.contype == ConstrType.CONSTR_GENERATED and c.generated_kind == "v" for c in column.constraints or ()
    )
    if what := volatile_default(column):
        recipe = "add the column without it, SET DEFAULT, then backfill"
        return [risk("rewrite", f"{what} rewrites the table", recipe, table, ACCESS_EXCLUSIVE)]
    if ConstrType.CONSTR_GENERATED in kinds and not virtual:
        recipe = "add a plain column, fill it by a trigger and a backfill"
        return [risk("rewrite", "a stored generated column rewrites the table", recipe, table, ACCESS_EXCLUSIVE)]
    if ConstrType.CONSTR_IDENTITY in kinds:
        recipe = "add the column, backfill it from a sequence, then ADD GENERATED … AS IDENTITY"
        return [risk("rewrite", "an identity column rewrites the table", recipe, table, ACCESS_EXCLUSIVE)]
    if ConstrType.CONSTR_PRIMARY in kinds:
        recipe = "add the column, backfill it, then ADD PRIMARY KEY in a statement of its own"
        return [risk("scan", "a new primary key column is built and checked at once", recipe, table, ACCESS_EXCLUSIVE)]
    if ConstrType.CONSTR_NOTNULL in kinds and ConstrType.CONSTR_DEFAULT not in kinds:
        recipe = "give it a default, or add it without NOT NULL, backfill it, then SET NOT NULL"
        return [risk("not-null", f"NOT NULL without a default fails as soon as {table} has a row", recipe)]
    return []


def _drop_column(table: str, command: Any, scope: Scope) -> dict[str, Any]:
    recipe = "take it out of the application first"
    what = f"the application may still use column {command.name} of {table}"
    return _strong(
        "DROP COLUMN",
        table,
        object=_target("column", table, command.name),
        hazards=[PREPARED_HAZARD],
        risks=[] if scope.rollback else [risk("drop-column", what, recipe)],
        **refuse_cascade(command.behavior),
    )


def _column_type(table: str, command: Any, _: Scope) -> dict[str, Any]:
    """Whether it rewrites is known by the server alone: the plan runs it on an empty twin and looks."""
    return _strong(
        "ALTER COLUMN TYPE",
        table,
        object=_target("column_type", table, command.name),
        hazards=[PREPARED_HAZARD],
        probe=True,
        plan_risks=["rewrite", "narrowing"],
    )


def _set_not_null(table: str, command: Any, scope: Scope) -> dict[str, Any]:
    column = command.name
    filled = (table, column) in scope.filled or table in scope.triggers
    recipe = "make a BEFORE INSERT trigger or a default that fills it in the same file, or deploy the application first"
    return _strong(
        "SET NOT NULL",
        table,
        object=_target("not_null", table, column),
        hazards=[f"an application that writes NULL into {column} fails on its next INSERT unless a trigger fills it"],
        risks=[]
        if filled
        else [risk("not-null", f"the application's INSERT into {table} fails if it does not write {column}", recipe)],
    )


def _drop_not_null(table: str, command: Any, _: Scope) -> dict[str, Any]:
    return _strong("DROP NOT NULL", table, object=_target("not_null", table, command.name))


def _column_default(table: str, command: Any, _: Scope) -> dict[str, Any]:
    return _strong(
        "SET DEFAULT" if command.def_ else "DROP DEFAULT",
        table,
        object=_target("default", table, command.name),
        probe=True,
    )


def _set_statistics(table: str, command: Any, _: Scope) -> dict[str, Any]:
    if command.name is None:
        return {"refused": "SET STATISTICS of an index column by number is not supported; name a column of a table"}
    target = command.def_.ival if command.def_ else -1
    return _weak(
        "SET STATISTICS", table, **_of_column(table, command.name, f"coalesce(a.attstattarget, -1) = {target}")
    )


def _set_storage(table: str, command: Any, _: Scope) -> dict[str, Any]:
    word = command.def_.sval.upper()
    letters = {"PLAIN": "p", "EXTERNAL": "e", "EXTENDED": "x", "MAIN": "m"}
    if word not in letters:
        return _strong("SET STORAGE", table, truth="ledger")
    return _strong("SET STORAGE", table, **_of_column(table, command.name, f"a.attstorage = '{letters[word]}'"))


def _set_compression(table: str, command: Any, _: Scope) -> dict[str, Any]:
    letter = {"pglz": "p", "lz4": "l"}.get(command.def_.sval.lower(), "")
    return _strong("SET COMPRESSION", table, **_of_column(table, command.name, f"a.attcompression = '{letter}'"))


def _column_options(table: str, command: Any, _: Scope) -> dict[str, Any]:
    return _weak(
        "SET (attribute options)",
        table,
        **_of_column(table, command.name, f"a.attoptions @> {_options(command.def_)}"),
    )


def _reset_column_options(table: str, command: Any, _: Scope) -> dict[str, Any]:
    absent = " AND ".join(f"NOT coalesce(a.attoptions::text, '') ~ {literal(o.defname + '=')}" for o in command.def_)
    return _weak("RESET (attribute options)", table, **_of_column(table, command.name, absent))


def _add_identity(table: str, command: Any, _: Scope) -> dict[str, Any]:
    return _strong("ADD IDENTITY", table, **_of_column(table, command.name, "a.attidentity <> ''"))


def _drop_identity(table: str, command: Any, _: Scope) -> dict[str, Any]:
    return _strong("DROP IDENTITY", table, **_of_column(table, command.name, "a.attidentity = ''"))


def _drop_expression(table: str, command: Any, _: Scope) -> dict[str, Any]:
    return _strong("DROP EXPRESSION", table, **_of_column(table, command.name, "a.attgenerated = ''"))


def _set_expression(table: str, command: Any, _: Scope) -> dict[str, Any]:
    recipe = "add a second column with the new expression and let the application move over"
    what = f"a new expression for {command.name} rewrites the table"
    return _strong(
        "SET EXPRESSION", table, truth="ledger", risks=[risk("rewrite", what, recipe, table, ACCESS_EXCLUSIVE)]
    )


# -- constraints -------------------------------------------------------------------------------------------------------


def _add_constraint(table: str, command: Any, scope: Scope) -> dict[str, Any]:
    constraint = command.def_
    foreign = constraint.contype == ConstrType.CONSTR_FOREIGN
    mode = SHARE_ROW_EXCLUSIVE if foreign else ACCESS_EXCLUSIVE
    referenced = scope.relation(constraint.pktable) if foreign else table
    step: dict[str, Any] = {
        "kind": "ADD CONSTRAINT" + (" NOT VALID" if constraint.skip_validation else ""),
        "object": _target("constraint", table, constraint.conname),
        "locks": [lock(table, mode)] + ([lock(referenced, mode)] if referenced != table else []),
        "probe": True,
        "plan_risks": ["on-delete-cascade"] if foreign and constraint.fk_del_action == "c" else [],
    }
    if not constraint.conname:
        return step | {"refused": "a constraint without a name cannot be found again; give it one"}
    if constraint.indexname:
        if constraint.indexname != constraint.conname:
            return step | {
                "refused": f"PostgreSQL renames the index {constraint.indexname} to {constraint.conname}, and a second "
                "run would build it again; give both the same name"
            }
        made = scope.indexes.get(constraint.indexname)
        return step | {"probe": bool(made), "probe_after": made or ""}
    if constraint.contype == ConstrType.CONSTR_EXCLUSION or constraint.without_overlaps:
        recipe = "PostgreSQL has no way to build it beside the writers; add it in a quiet hour"
        what = "an exclusion constraint builds its index and reads every row"
        return step | {"risks": [risk("scan", what, recipe, table, mode)]}
    return step


def _alter_constraint(table: str, command: Any, _: Scope) -> dict[str, Any]:
    step = _strong("ALTER CONSTRAINT", table, truth="ledger")
    if getattr(command.def_, "alterEnforceability", False) and command.def_.is_enforced:
        recipe = "add it anew NOT VALID, then VALIDATE it"
        return step | {"risks": [risk("scan", "ENFORCED reads every row", recipe, table, ACCESS_EXCLUSIVE)]}
    return step


def _validate_constraint(table: str, command: Any, _: Scope) -> dict[str, Any]:
    return _weak("VALIDATE CONSTRAINT", table, object=_target("validation", table, command.name))


def _drop_constraint(table: str, command: Any, _: Scope) -> dict[str, Any]:
    return _strong(
        "DROP CONSTRAINT", table, object=_target("constraint", table, command.name), **refuse_cascade(command.behavior)
    )


def checked_not_null(constraint: Any) -> str:
    """The column of a `CHECK (column IS NOT NULL)`, '' of anything else."""
    test = constraint.raw_expr
    if (
        isinstance(test, ast.NullTest)
        and isinstance(test.arg, ast.ColumnRef)
        and test.nulltesttype.name == "IS_NOT_NULL"
    ):
        return str(test.arg.fields[-1].sval)
    return ""


# -- the table as a whole ----------------------------------------------------------------------------------------------


def _options(options: Any) -> str:
    """Storage parameters as the catalog keeps them: an array of key=value."""
    return "ARRAY[" + ", ".join(literal(f"{o.defname}={_option_value(o.arg)}") for o in options) + "]::text[]"


def _option_value(value: Any) -> str:
    if value is None:
        return "true"
    if isinstance(value, ast.TypeName):
        return str(value.names[-1].sval)
    return str(next(getattr(value, name) for name in ("ival", "fval", "sval", "boolval") if hasattr(value, name)))


def _set_options(table: str, command: Any, _: Scope) -> dict[str, Any]:
    make = _strong if any(option.defname == "user_catalog_table" for option in command.def_) else _weak
    if any(option.defnamespace for option in command.def_):
        return make("SET (storage parameters)", table, truth="ledger")  # of the TOAST table
    return make("SET (storage parameters)", table, **_of_table(table, f"c.reloptions @> {_options(command.def_)}"))


def _reset_options(table: str, command: Any, _: Scope) -> dict[str, Any]:
    names = ", ".join(literal(option.defname) for option in command.def_)
    absent = f"NOT EXISTS (SELECT FROM pg_options_to_table(c.reloptions) AS o WHERE o.option_name IN ({names}))"
    return _weak("RESET (storage parameters)", table, **_of_table(table, absent))


def _owner(table: str, command: Any, _: Scope) -> dict[str, Any]:
    if not command.newowner.rolename:
        return _strong("OWNER TO", table, truth="ledger")
    return _strong(
        "OWNER TO", table, **_of_table(table, f"pg_get_userbyid(c.relowner) = {literal(command.newowner.rolename)}")
    )


def _replica_identity(table: str, command: Any, _: Scope) -> dict[str, Any]:
    kind = command.def_.identity_type
    condition = f"c.relreplident = '{kind}'"
    if command.def_.name:
        index = regclass(beside(table, command.def_.name))
        condition += f" AND EXISTS (SELECT FROM pg_index AS i WHERE i.indexrelid = {index} AND i.indisreplident)"
    return _strong("REPLICA IDENTITY", table, **_of_table(table, condition))


def _row_security(kind: str, condition: str) -> Callable[[str, Any, Scope], dict[str, Any]]:
    return lambda table, _command, _scope: _strong(kind, table, hazards=[RLS_HAZARD], **_of_table(table, condition))


def _trigger_state(kind: str, letter: str) -> Callable[[str, Any, Scope], dict[str, Any]]:
    def handler(table: str, command: Any, _: Scope) -> dict[str, Any]:
        step = {"kind": kind, "locks": [lock(table, SHARE_ROW_EXCLUSIVE)]}
        if command.name is None:  # ALL, USER
            return step | {"truth": "ledger"}
        return step | _done(
            f"SELECT t.tgenabled = '{letter}' FROM pg_trigger AS t WHERE t.tgrelid = {regclass(table)} "
            f"AND t.tgname = {literal(command.name)}"
        )

    return handler


def _cluster_on(table: str, command: Any, _: Scope) -> dict[str, Any]:
    index = regclass(beside(table, command.name))
    return _weak(
        "CLUSTER ON", table, **_done(f"SELECT i.indisclustered FROM pg_index AS i WHERE i.indexrelid = {index}")
    )


def _drop_cluster(table: str, _command: Any, _: Scope) -> dict[str, Any]:
    clustered = f"SELECT FROM pg_index AS i WHERE i.indrelid = {regclass(table)} AND i.indisclustered"
    return _weak("SET WITHOUT CLUSTER", table, **_done(f"SELECT NOT EXISTS ({clustered})"))


def _copied(kind: str, what: str) -> Callable[[str, Any, Scope], dict[str, Any]]:
    def handler(table: str, _command: Any, _scope: Scope) -> dict[str, Any]:
        recipe = "fill a new table beside it and let the application move over"
        return _strong(kind, table, truth="ledger", risks=[risk("rewrite", what, recipe, table, ACCESS_EXCLUSIVE)])

    return handler


# -- partitions and inheritance ----------------------------------------------------------------------------------------


def _attach_partition(table: str, command: Any, scope: Scope) -> dict[str, Any]:
    child = scope.relation(command.def_.name)
    known = child in scope.made or child in scope.constrained
    recipe = (
        f"first ADD a CHECK on {child} that says what the bounds say, NOT VALID, and VALIDATE it in the same file "
        "(on the default partition the opposite)"
    )
    return {
        "kind": "ATTACH PARTITION",
        "locks": [lock(table, SHARE_UPDATE_EXCLUSIVE), lock(child, ACCESS_EXCLUSIVE)],
        "risks": []
        if known
        else [risk("scan", f"ATTACH PARTITION reads every row of {child}", recipe, child, ACCESS_EXCLUSIVE)],
        **_done(_inherits(child, table)),
    }


def _detach_partition(table: str, command: Any, scope: Scope) -> dict[str, Any]:
    child = scope.relation(command.def_.name)
    concurrent = bool(command.def_.concurrent)
    # Concurrently the partition is locked at the end alone, when nobody uses it through its parent any more.
    first = SHARE_UPDATE_EXCLUSIVE if concurrent else ACCESS_EXCLUSIVE
    return {
        "kind": "DETACH PARTITION" + (" CONCURRENTLY" if concurrent else ""),
        "mode": "concurrent" if concurrent else "ddl",
        "locks": [lock(table, first), lock(child, ACCESS_EXCLUSIVE)],
        "hazards": [f"queries of {bare(table)} no longer see the rows of {bare(child)}"],
        **_done(f"SELECT NOT ({_inherits(child, table).removeprefix('SELECT ')})"),
    }


def _detach_finalize(table: str, command: Any, scope: Scope) -> dict[str, Any]:
    child = scope.relation(command.def_.name)
    return {
        "kind": "DETACH PARTITION FINALIZE",
        "locks": [lock(table, SHARE_UPDATE_EXCLUSIVE), lock(child, ACCESS_EXCLUSIVE)],
        **_done(f"SELECT NOT ({_inherits(child, table).removeprefix('SELECT ')})"),
    }


def _inherit(kind: str) -> Callable[[str, Any, Scope], dict[str, Any]]:
    def handler(table: str, command: Any, scope: Scope) -> dict[str, Any]:
        parent = scope.relation(command.def_)
        query = _inherits(table, parent)
        if kind == "NO INHERIT":
            query = f"SELECT NOT ({query.removeprefix('SELECT ')})"
        mode = SHARE_UPDATE_EXCLUSIVE if kind == "INHERIT" else None
        locks = [lock(table, ACCESS_EXCLUSIVE)] + ([lock(parent, mode)] if mode else [])
        return {"kind": kind, "locks": locks, **_done(query)}

    return handler


def _plain(kind: str) -> Callable[[str, Any, Scope], dict[str, Any]]:
    """A change of the catalog alone that is compared with nothing: its truth is the ledger."""
    return lambda table, _command, _scope: _strong(kind, table, truth="ledger")


_COMMANDS: dict[AlterTableType, Callable[[str, Any, Scope], dict[str, Any]]] = {
    AlterTableType.AT_AddColumn: _add_column,
    AlterTableType.AT_DropColumn: _drop_column,
    AlterTableType.AT_AlterColumnType: _column_type,
    AlterTableType.AT_ColumnDefault: _column_default,
    AlterTableType.AT_SetNotNull: _set_not_null,
    AlterTableType.AT_DropNotNull: _drop_not_null,
    AlterTableType.AT_SetExpression: _set_expression,
    AlterTableType.AT_DropExpression: _drop_expression,
    AlterTableType.AT_SetStatistics: _set_statistics,
    AlterTableType.AT_SetOptions: _column_options,
    AlterTableType.AT_ResetOptions: _reset_column_options,
    AlterTableType.AT_SetStorage: _set_storage,
    AlterTableType.AT_SetCompression: _set_compression,
    AlterTableType.AT_AddIdentity: _add_identity,
    AlterTableType.AT_SetIdentity: _plain("SET IDENTITY"),
    AlterTableType.AT_DropIdentity: _drop_identity,
    AlterTableType.AT_AddConstraint: _add_constraint,
    AlterTableType.AT_AlterConstraint: _alter_constraint,
    AlterTableType.AT_ValidateConstraint: _validate_constraint,
    AlterTableType.AT_DropConstraint: _drop_constraint,
    AlterTableType.AT_ChangeOwner: _owner,
    AlterTableType.AT_ClusterOn: _cluster_on,
    AlterTableType.AT_DropCluster: _drop_cluster,
    AlterTableType.AT_SetLogged: _copied("SET LOGGED", "SET LOGGED copies the table"),
    AlterTableType.AT_SetUnLogged: _copied("SET UNLOGGED", "SET UNLOGGED copies the table"),
    AlterTableType.AT_SetAccessMethod: _copied("SET ACCESS METHOD", "SET ACCESS METHOD copies the table"),
    AlterTableType.AT_SetTableSpace: _copied("SET TABLESPACE", "SET TABLESPACE copies the table"),
    AlterTableType.AT_SetRelOptions: _set_options,
    AlterTableType.AT_ResetRelOptions: _reset_options,
    AlterTableType.AT_EnableTrig: _trigger_state("ENABLE TRIGGER", "O"),
    AlterTableType.AT_EnableAlwaysTrig: _trigger_state("ENABLE ALWAYS TRIGGER", "A"),
    AlterTableType.AT_EnableReplicaTrig: _trigger_state("ENABLE REPLICA TRIGGER", "R"),
    AlterTableType.AT_DisableTrig: _trigger_state("DISABLE TRIGGER", "D"),
    AlterTableType.AT_EnableTrigAll: _trigger_state("ENABLE TRIGGER ALL", ""),
    AlterTableType.AT_DisableTrigAll: _trigger_state("DISABLE TRIGGER ALL", ""),
    AlterTableType.AT_EnableTrigUser: _trigger_state("ENABLE TRIGGER USER", ""),
    AlterTableType.AT_DisableTrigUser: _trigger_state("DISABLE TRIGGER USER", ""),
    AlterTableType.AT_EnableRule: _plain("ENABLE RULE"),
    AlterTableType.AT_EnableAlwaysRule: _plain("ENABLE ALWAYS RULE"),
    AlterTableType.AT_EnableReplicaRule: _plain("ENABLE REPLICA RULE"),
    AlterTableType.AT_DisableRule: _plain("DISABLE RULE"),
    AlterTableType.AT_AddInherit: _inherit("INHERIT"),
    AlterTableType.AT_DropInherit: _inherit("NO INHERIT"),
    AlterTableType.AT_AddOf: _plain("OF"),
    AlterTableType.AT_DropOf: _plain("NOT OF"),
    AlterTableType.AT_ReplicaIdentity: _replica_identity,
    AlterTableType.AT_EnableRowSecurity: _row_security("ENABLE ROW LEVEL SECURITY", "c.relrowsecurity"),
    AlterTableType.AT_DisableRowSecurity: _row_security("DISABLE ROW LEVEL SECURITY", "NOT c.relrowsecurity"),
    AlterTableType.AT_ForceRowSecurity: _row_security("FORCE ROW LEVEL SECURITY", "c.relforcerowsecurity"),
    AlterTableType.AT_NoForceRowSecurity: _row_security("NO FORCE ROW LEVEL SECURITY", "NOT c.relforcerowsecurity"),
    AlterTableType.AT_AttachPartition: _attach_partition,
    AlterTableType.AT_DetachPartition: _detach_partition,
    AlterTableType.AT_DetachPartitionFinalize: _detach_finalize,
}
_REFUSED = {
    AlterTableType.AT_DropOids: "ALTER TABLE … SET WITHOUT OIDS has done nothing since PostgreSQL 12; remove it",
    AlterTableType.AT_GenericOptions: "ALTER FOREIGN TABLE … OPTIONS belongs to the administration of foreign servers; "
    "run it outside the rollout",
    AlterTableType.AT_AlterColumnGenericOptions: "ALTER FOREIGN TABLE … ALTER COLUMN … OPTIONS belongs to the "
    "administration of foreign servers; run it outside the rollout",
}

# What a column's default may call so that old rows get it without a rewrite: constant within a statement.
_STABLE_FUNCTIONS = {"now", "transaction_timestamp", "statement_timestamp", "timezone", "current_setting"}
_SERIALS = {"serial", "bigserial", "smallserial", "serial2", "serial4", "serial8"}


def volatile_default(column: ast.ColumnDef) -> str:
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


class _Calls(Visitor):  # type: ignore[misc]  # pglast is untyped here
    """Collects the names of the functions that an expression calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def visit_FuncCall(self, _ancestors: Any, node: ast.FuncCall) -> None:
        self.names.add(node.funcname[-1].sval)
