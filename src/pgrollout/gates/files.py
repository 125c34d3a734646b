"""Reads gate files: <migration>/gates/<query>.sql with <query>.gate.yml beside it."""

from __future__ import annotations

import datetime
import difflib
import itertools
import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from pglast import ast, parser
from pglast.visitors import Visitor

from pgrollout.errors import RolloutError
from pgrollout.migration.names import qualified

SUFFIX = ".gate.yml"
# Statements that EXPLAIN takes and PREPARE too.
_QUERIES = (ast.SelectStmt, ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt, ast.MergeStmt)


def gates_of(folder: Path, migration: str, phase: str, schema: str) -> list[dict[str, Any]]:
    """The gates of a migration's folder, in the order of their names.

    Each: {id, title, migration, phase, where, sql (with $1 for its parameters), parameters: [{name, type}],
    cases: {name: SQL that returns one row with them}, relations: [canonical names], writes: bool} and, as the file has
    them or the schema's defaults, plan_modes, preconditions, sampling, gates, baseline, waivers.
    Raises RolloutError with the file, what was found and what was expected.
    """
    found = []
    for path in sorted((folder / "gates").glob("*")):
        stem = path.name.removesuffix(SUFFIX if path.name.endswith(SUFFIX) else ".sql")
        if path.name not in (f"{stem}{SUFFIX}", f"{stem}.sql"):
            raise RolloutError(f"{path}: no part of a gate; expected <query>.sql and <query>{SUFFIX}.")
        partner = path.with_name(f"{stem}.sql" if path.name.endswith(SUFFIX) else f"{stem}{SUFFIX}")
        if not partner.is_file():
            raise RolloutError(f"{path}: {partner.name} is missing beside it; a gate is a query and its limits.")
        if path.name.endswith(SUFFIX):
            gate = read_gate(_text(path), _text(partner), str(path), str(partner), schema)
            found.append({"id": f"{migration}/{stem}", "migration": migration, "phase": phase, **gate})
    return found


def read_gate(limits: str, query: str, path: str, query_path: str, schema: str = "public") -> dict[str, Any]:
    """A gate of the two texts; the paths are for messages."""
    settings = _settings(limits, path)
    parameters = settings.pop("parameters")
    sql, node = _query(query, query_path, list(parameters), path)
    return {
        **settings,
        "where": path,
        "sql": sql,
        "parameters": [{"name": name, "type": kind} for name, kind in parameters.items()],
        "cases": {name: _case(name, case, parameters, path) for name, case in settings["cases"].items()},
        "relations": _relations(node, schema),
        "writes": not isinstance(node, ast.SelectStmt),
    }


# ---- the limits


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of gate files, which editors use too."""
    found: dict[str, Any] = json.loads(files("pgrollout.gates").joinpath("gate.schema.json").read_text("utf-8"))
    return found


def read_limits(path: Path) -> dict[str, Any]:
    """The limits of a gate file, completed with the schema's defaults."""
    return _settings(_text(path), str(path))


def limits_of(given: Any, path: str) -> dict[str, Any]:
    """Limits that were read from YAML already; the path is for messages."""
    given = _plain(given)
    fault = best_match(Draft202012Validator(schema()).iter_errors(given))
    if fault:
        raise RolloutError(f"{path}: {_sentence(fault)}")
    settings: dict[str, Any] = _with_defaults(given, schema())
    for waiver in settings["waivers"]:
        _waiver(waiver, settings, path)
    return settings


def _settings(text: str, path: str) -> dict[str, Any]:
    try:
        return limits_of(yaml.safe_load(text), path)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2027-02-31
        raise RolloutError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _plain(value: Any) -> Any:
    """YAML reads 2027-01-01 as a date; JSON, and so the schema, knows it as text."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.isoformat() if isinstance(value, datetime.date) else value


def _sentence(error: ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path) or "the file"
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = sorted(map(str, set(error.instance) - set(known)))
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"expected of {', '.join(known)}."
        return f"{where}: unknown key '{unknown[0]}'; {hint}"
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"{where}: '{missing[0]}' is missing."
    if error.validator in ("type", "enum"):
        expected = error.validator_value
        names = ", ".join(map(str, expected)) if isinstance(expected, list) else str(expected)
        return f"{where}: found {error.instance!r}, expected {'one of ' if ',' in names else ''}{names}."
    return f"{where}: {error.message}."


def _with_defaults(given: Any, rules: dict[str, Any]) -> Any:
    """`given`, completed with the schema's defaults."""
    rules = _resolved(rules)
    if isinstance(given, list):
        return [_with_defaults(each, rules.get("items", {})) for each in given]
    if not isinstance(given, dict):
        return given
    properties = {name: _resolved(rule) for name, rule in rules.get("properties", {}).items()}
    absent = {name: rule["default"] for name, rule in properties.items() if "default" in rule and name not in given}
    return {name: _with_defaults(value, properties.get(name, {})) for name, value in (given | absent).items()}


def _resolved(rules: dict[str, Any]) -> dict[str, Any]:
    return schema()["$defs"][rules["$ref"].rpartition("/")[2]] | rules if "$ref" in rules else rules


def _waiver(waiver: dict[str, Any], settings: dict[str, Any], path: str) -> None:
    try:
        datetime.date.fromisoformat(waiver["until"])
    except ValueError:
        raise RolloutError(f"{path}: waivers: until is {waiver['until']}, which is no day.") from None
    known = [*settings["gates"], *(f"baseline.{name}" for name in settings["baseline"])]
    if waiver["gate"] not in known:
        raise RolloutError(f"{path}: waivers: there is no gate '{waiver['gate']}'; expected of {', '.join(known)}.")
    if waiver.get("case", "") and waiver["case"] not in settings["cases"]:
        raise RolloutError(f"{path}: waivers: there is no case '{waiver['case']}'.")


# ---- the query


def _query(text: str, path: str, parameters: list[str], gate_path: str) -> tuple[str, Any]:
    """The statement with $1, $2 … where it names parameters as :name, and its parse tree."""
    sql, named = _numbered(text, parameters)
    try:
        statements = parser.parse_sql(sql)
    except parser.ParseError as error:
        unknown = [name for name in re.findall(r"(?<!:):([a-z_][a-z0-9_]*)", text) if name not in parameters]
        if unknown:
            known = f"the parameters of {gate_path}"
            raise RolloutError(f"{path}: {error.args[0]}; :{unknown[0]} is none of {known}.") from None
        raise RolloutError(f"{path}: {error.args[0]}.") from None
    if len(statements) != 1 or not isinstance(statements[0].stmt, _QUERIES):
        raise RolloutError(f"{path}: found {len(statements)} statements, expected one query or one change of rows.")
    if unused := [name for name in parameters if name not in named]:
        raise RolloutError(f"{gate_path}: the parameter '{unused[0]}' is nowhere in {Path(path).name} as :{unused[0]}.")
    start = statements[0].stmt_location
    end = start + statements[0].stmt_len if statements[0].stmt_len else len(sql)
    return sql[start:end].strip(), statements[0].stmt


def _numbered(text: str, parameters: list[str]) -> tuple[str, set[str]]:
    """`text` with each :name of the parameters as $n, literals and comments left alone; and the names it has."""
    tokens = parser.scan(text)
    found, position, named = [], 0, set()
    for colon, word in itertools.pairwise(tokens):
        name = text[word.start : word.end + 1]
        if colon.name == "ASCII_58" and word.start == colon.end + 1 and name in parameters:
            found += [text[position : colon.start], f"${parameters.index(name) + 1}"]
            position = word.end + 1
            named.add(name)
    return "".join([*found, text[position:]]), named


def _case(name: str, case: str | dict[str, Any], parameters: dict[str, str], path: str) -> str:
    """A query for the one row of parameters that a case stands for."""
    if isinstance(case, str):
        try:
            statements = parser.parse_sql(case)
        except parser.ParseError as error:
            raise RolloutError(f"{path}: cases.{name}: {error.args[0]}.") from None
        if len(statements) != 1 or not isinstance(statements[0].stmt, ast.SelectStmt):
            raise RolloutError(f"{path}: cases.{name}: expected one SELECT that returns a row of the parameters.")
        return case.strip().rstrip(";")
    if set(case) != set(parameters):
        raise RolloutError(
            f"{path}: cases.{name}: found {sorted(case)}, expected a value for each parameter: {sorted(parameters)}."
        )
    values = ", ".join(f"{_literal(value)} AS {key}" for key, value in case.items())
    return f"SELECT {values}"


def _literal(value: str | float | bool | None) -> str:
    if value is None:
        return "NULL"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "'" + text.replace("'", "''") + "'"


class _Relations(Visitor):  # type: ignore[misc]
    """Relations that a statement names, and the names that its WITH gives."""

    def __init__(self) -> None:
        super().__init__()
        self.named: list[ast.RangeVar] = []
        self.common: set[str] = set()

    def visit_RangeVar(self, _ancestors: Any, node: ast.RangeVar) -> None:
        self.named.append(node)

    def visit_CommonTableExpr(self, _ancestors: Any, node: ast.CommonTableExpr) -> None:
        self.common.add(node.ctename)


def _relations(node: Any, schema: str) -> list[str]:
    visitor = _Relations()
    visitor(node)
    names = [
        qualified(each.schemaname or schema, each.relname)
        for each in visitor.named
        if each.schemaname or each.relname not in visitor.common
    ]
    return sorted(set(names))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RolloutError(f"{path}: cannot be read as UTF-8 text: {error}") from None
