"""Statements about schemas, types, sequences, policies, privileges, names and owners."""

from __future__ import annotations

from typing import Any

from pglast import ast
from pglast.enums.parsenodes import ObjectType

from pgrollout.migration.hazards import risk
from pgrollout.migration.locks import ACCESS_EXCLUSIVE, SHARE_ROW_EXCLUSIVE, SHARE_UPDATE_EXCLUSIVE, lock
from pgrollout.migration.names import beside, qualified, regclass
from pgrollout.migration.scope import Scope
from pgrollout.migration.text import literal


def target(kind: str, table: str, name: str) -> dict[str, str]:
    """What a step makes or removes."""
    return {"kind": kind, "table": table, "name": name}


def create_schema(node: ast.CreateSchemaStmt, _scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    if node.schemaElts:
        return {"refused": "CREATE SCHEMA with objects in it makes them in one step; write a statement for each"}
    if not node.schemaname:
        return {"refused": "CREATE SCHEMA AUTHORIZATION without a name depends on who runs it; name the schema"}
    return {"kind": "CREATE SCHEMA", "object": target("schema", "", node.schemaname)}


def create_extension(node: ast.CreateExtensionStmt, _scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    return {"kind": "CREATE EXTENSION", "object": target("extension", "", node.extname)}


def alter_extension(node: ast.AlterExtensionStmt, _scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    """ALTER EXTENSION … UPDATE; which version is the newest is the server's to say."""
    return {
        "kind": "ALTER EXTENSION",
        "truth": "query",
        "done_when": "SELECT e.installed_version = e.default_version FROM pg_available_extensions AS e "
        f"WHERE e.name = {literal(node.extname)}",
    }


def create_type(
    node: ast.CreateEnumStmt | ast.CreateDomainStmt | ast.CompositeTypeStmt | ast.CreateRangeStmt,
    scope: Scope,
    _: dict[str, str],
) -> dict[str, Any]:
    if isinstance(node, ast.CompositeTypeStmt):
        name = scope.relation(node.typevar)
    else:
        name = scope.named(node.domainname if isinstance(node, ast.CreateDomainStmt) else node.typeName)
    words = "CREATE DOMAIN" if isinstance(node, ast.CreateDomainStmt) else "CREATE TYPE"
    return {"kind": words, "object": target("type", name, name), "probe": True}


def alter_enum(node: ast.AlterEnumStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    """A new value can be used once its step is committed, which it is before the next step starts."""
    name = scope.named(node.typeName)
    labels = f"SELECT FROM pg_enum AS e WHERE e.enumtypid = to_regtype({literal(name)})"
    done = f"SELECT EXISTS ({labels} AND e.enumlabel = {literal(node.newVal)})"
    step = {"kind": "ALTER TYPE ADD VALUE", "truth": "query", "done_when": done}
    if node.oldVal is None:
        return step | {"adds_label": [name, node.newVal]}
    recipe = "add the new value, let the application move over, then leave the old one unused"
    what = f"the application may still send the value {node.oldVal!r}"
    return step | {"kind": "ALTER TYPE RENAME VALUE", "risks": [risk("rename", what, recipe)]}


def alter_domain(node: ast.AlterDomainStmt, _scope: Scope, __: dict[str, str]) -> dict[str, Any]:
    step: dict[str, Any] = {"kind": "ALTER DOMAIN", "truth": "ledger"}
    validates = node.subtype in ("V", "O") or (node.subtype == "C" and not node.def_.skip_validation)
    if not validates:
        return step
    recipe = "put the check on each table instead: ADD CONSTRAINT … NOT VALID, then VALIDATE"
    what = "it reads every row of every table that uses the domain, under SHARE, so their writers wait until it is over"
    return step | {"risks": [risk("scan", what, recipe)]}


def alter_composite(_node: Any, _scope: Scope, __: dict[str, str]) -> dict[str, Any]:
    return {"kind": "ALTER TYPE", "truth": "ledger"}


def create_sequence(node: ast.CreateSeqStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    name = scope.relation(node.sequence)
    owned = any(option.defname == "owned_by" for option in node.options or ())
    # Owned by a column it cannot be made beside the twin of its table: then its name is all that is compared.
    return {"kind": "CREATE SEQUENCE", "object": target("sequence", name, name), "probe": not owned}


def alter_sequence(node: ast.AlterSeqStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    name = scope.relation(node.sequence)
    return {"kind": "ALTER SEQUENCE", "truth": "ledger", "locks": [lock(name, SHARE_ROW_EXCLUSIVE)]}


def create_policy(node: ast.CreatePolicyStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    table = scope.relation(node.table)
    return {
        "kind": "CREATE POLICY",
        "object": target("policy", table, node.policy_name),
        "locks": [lock(table, ACCESS_EXCLUSIVE)],
        "probe": True,
    }


def alter_policy(node: ast.AlterPolicyStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    return {
        "kind": "ALTER POLICY",
        "truth": "ledger",
        "locks": [lock(scope.relation(node.table), ACCESS_EXCLUSIVE)],
    }


def create_statistics(node: ast.CreateStatsStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    table = scope.relation(node.relations[0])
    step = {"kind": "CREATE STATISTICS", "locks": [lock(table, SHARE_UPDATE_EXCLUSIVE)]}
    if not node.defnames:
        return step | {"refused": "statistics without a name cannot be found again; give them one"}
    return step | {"object": target("statistics", table, node.defnames[-1].sval), "probe": True}


def alter_statistics(_node: ast.AlterStatsStmt, _scope: Scope, __: dict[str, str]) -> dict[str, Any]:
    return {"kind": "ALTER STATISTICS", "truth": "ledger"}


def grant(node: ast.GrantStmt, _scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    """Takes no lock on a table. A privilege may also come from PUBLIC or another role, so its truth is the ledger."""
    return {"kind": "GRANT" if node.is_grant else "REVOKE", "truth": "ledger"}


def default_privileges(_node: Any, _scope: Scope, __: dict[str, str]) -> dict[str, Any]:
    return {"kind": "ALTER DEFAULT PRIVILEGES", "truth": "ledger"}


def alter_function(_node: ast.AlterFunctionStmt, _scope: Scope, __: dict[str, str]) -> dict[str, Any]:
    return {"kind": "ALTER FUNCTION", "truth": "ledger"}


def depends(_node: ast.AlterObjectDependsStmt, _scope: Scope, __: dict[str, str]) -> dict[str, Any]:
    return {"kind": "ALTER … DEPENDS ON EXTENSION", "truth": "ledger"}


def owner(node: ast.AlterOwnerStmt, _scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    return {"kind": f"ALTER {_words(node.objectType)} OWNER", "truth": "ledger"}


def move(node: ast.AlterObjectSchemaStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    """SET SCHEMA is a change of name: a query that names the old schema fails."""
    words = _words(node.objectType)
    recipe = "leave a view of the old name behind, or deploy the application first"
    step: dict[str, Any] = {"kind": f"ALTER {words} SET SCHEMA", "truth": "ledger"}
    if node.relation:
        name = scope.relation(node.relation)
        moved = qualified(node.newschema, node.relation.relname)
        step |= {"locks": [lock(name, ACCESS_EXCLUSIVE)], "truth": "query"}
        step["done_when"] = f"SELECT {regclass(moved)} IS NOT NULL AND {regclass(name)} IS NULL"
    return step | {"risks": [risk("rename", "the application may still look in the old schema", recipe)]}


_RENAMED = {
    ObjectType.OBJECT_INDEX: SHARE_UPDATE_EXCLUSIVE,
    ObjectType.OBJECT_TABLE: ACCESS_EXCLUSIVE,
    ObjectType.OBJECT_VIEW: ACCESS_EXCLUSIVE,
    ObjectType.OBJECT_MATVIEW: ACCESS_EXCLUSIVE,
    ObjectType.OBJECT_SEQUENCE: ACCESS_EXCLUSIVE,
    ObjectType.OBJECT_COLUMN: ACCESS_EXCLUSIVE,
    ObjectType.OBJECT_TABCONSTRAINT: ACCESS_EXCLUSIVE,
    ObjectType.OBJECT_TRIGGER: ACCESS_EXCLUSIVE,
    ObjectType.OBJECT_POLICY: ACCESS_EXCLUSIVE,
}
# No query of the application names these.
_QUIET = (
    ObjectType.OBJECT_INDEX,
    ObjectType.OBJECT_TABCONSTRAINT,
    ObjectType.OBJECT_TRIGGER,
    ObjectType.OBJECT_POLICY,
    ObjectType.OBJECT_STATISTIC_EXT,
    ObjectType.OBJECT_DOMCONSTRAINT,
)
_CATALOGS = {
    ObjectType.OBJECT_COLUMN: ("pg_attribute", "attrelid", "attname"),
    ObjectType.OBJECT_TABCONSTRAINT: ("pg_constraint", "conrelid", "conname"),
    ObjectType.OBJECT_TRIGGER: ("pg_trigger", "tgrelid", "tgname"),
    ObjectType.OBJECT_POLICY: ("pg_policy", "polrelid", "polname"),
}


def rename(node: ast.RenameStmt, scope: Scope, _: dict[str, str]) -> dict[str, Any]:
    words = _words(node.renameType)
    step: dict[str, Any] = {"kind": f"RENAME {words}", "truth": "ledger"}
    old = ""
    if node.relation and node.renameType in _RENAMED:
        relation = scope.relation(node.relation)
        step["locks"] = [lock(relation, _RENAMED[node.renameType])]
        if node.renameType in _CATALOGS:
            catalog, owner_column, name_column = _CATALOGS[node.renameType]
            query = (
                f"SELECT EXISTS (SELECT FROM {catalog} WHERE {owner_column} = {regclass(relation)} AND {name_column} = "
            )
            step |= {"truth": "query", "done_when": f"{query}{literal(node.newname)})"}
            old = f"{node.subname} of {relation}"
        else:
            renamed = beside(relation, node.newname)
            done = f"SELECT {regclass(renamed)} IS NOT NULL AND {regclass(relation)} IS NULL"
            step |= {"truth": "query", "done_when": done}
            old = relation
    if node.renameType in _QUIET:
        return step
    recipe = "add the new one beside it, let the application move over, then drop the old one"
    return step | {
        "risks": [risk("rename", f"the application may still ask for {words.lower()} {old}".rstrip(), recipe)]
    }


def _words(kind: ObjectType) -> str:
    name = str(kind.name.removeprefix("OBJECT_"))
    return {"MATVIEW": "MATERIALIZED VIEW", "TABCONSTRAINT": "CONSTRAINT", "STATISTIC_EXT": "STATISTICS"}.get(
        name, name.replace("_", " ")
    )
