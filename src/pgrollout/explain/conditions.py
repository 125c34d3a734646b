"""Conditions and keys of plans without what varies between executions of one plan, and between versions.

Constants and parameters become `?`, whatever their number. References to subqueries get the names they are given
here. What a subquery is compared with is told from 17 on only, so `(ANY (a = (hashed SubPlan 1).col1))` becomes what
16 prints: `(hashed SubPlan 1)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = r'"(?:[^"]|"")+"|[A-Za-z_\u0080-\U0010ffff][\w$]*'
_TYPE = (
    r"(?:character varying|bit varying|double precision|"
    r"time(?:stamp)?(?:\(\d+\))? with(?:out)? time zone|"
    r"interval(?: (?:year|month|day|hour|minute|second)(?: to (?:month|hour|minute|second))?)?|"
    rf"(?:{_NAME})(?:\.(?:{_NAME}))*)(?:\(-?\d+(?:,-?\d+)*\))?(?:\[\])*"
)
_TOKEN = re.compile(
    rf"(?P<constant>(?:(?:U&|[EBXN])?'(?:[^']|'')*'|\d[\w.+]*(?<!\.)|NULL(?=::))(?:::{_TYPE})*)"
    r"|(?P<parameter>\$\d+)"
    rf"|(?P<subplan>\b(?:InitPlan|SubPlan) \w+(?: \(returns [^)]*\))?)"
    rf"|(?P<qualifier>(?:{_NAME})\.(?=[\"\w*]))"
    rf"|(?P<name>{_NAME})",
)
_SUBQUERY = re.compile(r"(?:EXISTS|ARRAY)?\((?:rescan )?((?:hashed )?(?:InitPlan|SubPlan) \w+)\)(?:\.col\d+)?")
_COMPARED = re.compile(r"\((?:ANY|ALL) \(")
_COMPARED_WITH = re.compile(r"\((?:hashed )?SubPlan \w+\)")
_LIST = re.compile(r"\?(?:, \?)+")


def normalised(text: str, subplans: Mapping[str, str], aliases: Mapping[str, str]) -> str:
    """An expression that is equal for equal plans.

    `subplans`: what each reference is called (`$0` up to 16, `InitPlan 1` or `expr_1` later): `InitPlan 1`.
    `aliases`: what the table before a column is called; empty for one that needs no mention, as PostgreSQL itself
    prints none where a query has but one table.
    """

    def replaced(match: re.Match[str]) -> str:
        found = match[0]
        kind = match.lastgroup
        if kind == "constant":
            return "?"
        if kind == "parameter":
            return f"({subplans[found]})" if found in subplans else "?"
        if kind == "subplan":
            return subplans.get(found.partition(" (returns")[0], found)
        if kind == "qualifier":
            name = aliases.get(found[:-1], found[:-1])
            return f"{name}." if name else ""
        return subplans.get(found, found)

    plain = _TOKEN.sub(replaced, text)
    plain = _SUBQUERY.sub(r"(\1)", plain)
    return _LIST.sub("?", _without_comparison(plain).replace("(-?)", "?"))


def _without_comparison(text: str) -> str:
    """`(ANY (a = (SubPlan 1)))` as `(SubPlan 1)`."""
    parts, start = [], 0
    for match in _COMPARED.finditer(text):
        if match.start() < start:
            continue  # within one that was replaced
        end = _closing(text, match.start())
        subplan = _COMPARED_WITH.search(text, match.end(), end)
        if subplan:
            parts += [text[start : match.start()], subplan[0]]
            start = end
    return "".join([*parts, text[start:]])


def _closing(text: str, opening: int) -> int:
    """The end of what the parenthesis at `opening` begins; names in quotes may hold others."""
    depth = 0
    for match in re.compile(r'"(?:[^"]|"")*"|[()]').finditer(text, opening):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return len(text)
