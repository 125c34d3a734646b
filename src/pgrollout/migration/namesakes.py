"""One name, two definitions within one rollout: the second would be taken for the first and never be made."""

from __future__ import annotations

import copy
from typing import Any

from pglast import ast, parse_sql

from pgrollout.migration.names import OF_NO_TABLE, shown

_KINDS = ("index", "table", "column", "constraint", "view", "trigger", "function", "type", "sequence", "policy")


def refuse_namesakes(steps: list[dict[str, Any]]) -> None:
    """Refuses each step that makes what an earlier one made otherwise, unless that was dropped or may be replaced."""
    made: dict[tuple[str, str, str], dict[str, Any]] = {}
    for step in steps:
        target = step["object"]
        if not target or target["kind"] not in _KINDS or step["mode"] not in ("ddl", "concurrent"):
            continue
        key = (target["kind"], "" if target["kind"] in OF_NO_TABLE else target["table"], target["name"])
        if step["kind"].startswith("DROP"):
            made.pop(key, None)
            continue
        earlier = made.setdefault(key, step)
        if earlier is step or step.get("replace") or step["refused"] or _same(earlier["sql"], step["sql"]):
            continue
        name = shown(target["name"])
        step["refused"] = (
            f"{earlier['id']} ({earlier['where']}) makes {target['kind']} {name} with "
            f"another definition: [{' '.join(earlier['sql'].split())}] against [{' '.join(step['sql'].split())}]; "
            "give one of them another name"
        )


def _same(one: str, other: str) -> bool:
    return bool(_plain(one) == _plain(other))


def _plain(sql: str) -> Any:
    """The tree without what does not belong to the definition."""
    node = copy.deepcopy(parse_sql(sql)[0].stmt)
    if isinstance(node, ast.IndexStmt):
        node.concurrent = node.if_not_exists = False
    elif isinstance(node, ast.CreateStmt | ast.CreateTableAsStmt | ast.CreateSeqStmt):
        node.if_not_exists = False
    return node
