"""What a statement needs that not every supported version of PostgreSQL has, from the release notes of 14 to 18."""

from __future__ import annotations

from typing import Any

from pglast import ast
from pglast.enums.parsenodes import AlterTableType, ConstrType
from pglast.visitors import Visitor

# Functions that came after PostgreSQL 14; each by its name alone.
_FUNCTIONS = {
    "range_agg": 14, "regexp_count": 15, "regexp_instr": 15, "regexp_like": 15, "regexp_substr": 15,
    "any_value": 16, "array_sample": 16, "array_shuffle": 16, "date_add": 16, "date_subtract": 16, "erf": 16,
    "random_normal": 16, "json_scalar": 17, "json_serialize": 17, "to_bin": 17, "to_oct": 17,
    "uuid_extract_timestamp": 17, "uuid_extract_version": 17, "xmltext": 17,
    "array_reverse": 18, "array_sort": 18, "casefold": 18, "crc32": 18, "crc32c": 18, "gamma": 18, "lgamma": 18,
    "uuidv4": 18, "uuidv7": 18,
}  # fmt: skip
_COMMANDS = {
    AlterTableType.AT_SetAccessMethod: (15, "SET ACCESS METHOD"),
    AlterTableType.AT_SetExpression: (17, "SET EXPRESSION"),
}
_NODES = {
    "MergeStmt": (15, "MERGE"),
    "JsonObjectConstructor": (16, "JSON_OBJECT"),
    "JsonArrayConstructor": (16, "JSON_ARRAY"),
    "JsonIsPredicate": (16, "IS JSON"),
    "JsonFuncExpr": (17, "JSON_EXISTS, JSON_QUERY and JSON_VALUE"),
    "JsonTable": (17, "JSON_TABLE"),
    "ReturningOption": (18, "RETURNING WITH (OLD AS …, NEW AS …)"),
}


def needs(node: Any) -> list[dict[str, Any]]:
    """[{version, what}] of a parsed statement, oldest version first; [] where PostgreSQL 14 has it all."""
    found = _Needs()
    found(node)
    return [{"version": version, "what": what} for version, what in sorted(found.found)]


class _Needs(Visitor):  # type: ignore[misc]  # pglast is untyped here
    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[int, str]] = set()

    def visit(self, _ancestors: Any, node: Any) -> None:
        if known := _NODES.get(type(node).__name__):
            self.found.add(known)

    def visit_FuncCall(self, _ancestors: Any, node: ast.FuncCall) -> None:
        name = node.funcname[-1].sval
        if _FUNCTIONS.get(name, 14) > 14:
            self.found.add((_FUNCTIONS[name], f"{name}()"))

    def visit_IndexStmt(self, _ancestors: Any, node: ast.IndexStmt) -> None:
        if node.nulls_not_distinct:
            self.found.add((15, "NULLS NOT DISTINCT"))

    def visit_AlterTableCmd(self, _ancestors: Any, node: ast.AlterTableCmd) -> None:
        if known := _COMMANDS.get(node.subtype):
            self.found.add(known)
        if node.subtype == AlterTableType.AT_AddConstraint and node.def_.contype == ConstrType.CONSTR_NOTNULL:
            self.found.add((18, "NOT NULL as a named or NOT VALID constraint"))
        if node.subtype == AlterTableType.AT_SetStatistics and node.def_ is None:
            self.found.add((17, "SET STATISTICS DEFAULT"))
        if node.subtype == AlterTableType.AT_AlterConstraint and getattr(node.def_, "alterEnforceability", False):
            self.found.add((18, "ALTER CONSTRAINT … ENFORCED"))

    def visit_Constraint(self, _ancestors: Any, node: ast.Constraint) -> None:
        enforced = node.contype in (ConstrType.CONSTR_CHECK, ConstrType.CONSTR_FOREIGN)
        found = {
            (15, "NULLS NOT DISTINCT"): node.nulls_not_distinct,
            (15, "ON DELETE SET … (columns)"): node.fk_del_set_cols,
            (18, "a virtual generated column"): node.contype == ConstrType.CONSTR_GENERATED
            and node.generated_kind == "v",
            (18, "NOT ENFORCED"): node.contype == ConstrType.CONSTR_ATTR_NOT_ENFORCED
            or (enforced and node.is_enforced is False),
            (18, "WITHOUT OVERLAPS and PERIOD"): node.without_overlaps or node.fk_with_period,
        }
        self.found |= {need for need, present in found.items() if present}

    def visit_ViewStmt(self, _ancestors: Any, node: ast.ViewStmt) -> None:
        if any(option.defname == "security_invoker" for option in node.options or ()):
            self.found.add((15, "a security_invoker view"))

    def visit_AccessPriv(self, _ancestors: Any, node: ast.AccessPriv) -> None:
        if (node.priv_name or "").lower() == "maintain":
            self.found.add((17, "the privilege MAINTAIN"))
