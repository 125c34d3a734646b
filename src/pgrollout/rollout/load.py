"""Reads a rollout directory: phases, migrations, their steps. The only file of this package that touches the disk."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

from pgrollout.errors import RolloutError
from pgrollout.migration.classify import Classifier
from pgrollout.migration.names import QUALIFIED, bare, in_id
from pgrollout.migration.namesakes import refuse_namesakes
from pgrollout.migration.read import SqlFile, Statement, read_sql

# Objects whose name says enough without a table's.
_NAMED_ALONE = ("index", "schema", "extension", "statistics")
PHASE_KEYS = {"title", "objective", "expected_duration_minutes", "needs"}


def load_rollout(directory: str, schema: str = "public") -> dict[str, Any]:
    """Returns {schema, phases: [phase], immediate, rolled_back: [check], gates: [gate]}: plain dicts and lists, as
    filters need them.

    phase: {name, title, objective, expected_duration_minutes: {min, max}, needs: [name], migrations: [migration]}.
    migration: {name, phase, path, checksum (SHA-256 of apply.sql), header: {…}, apply: [step], rollback: [step],
    validate: [check], require: [check]}.  `immediate` is a migration too, or None where the rollout has none.
    gate: see pgrollout.gates.files.
    Raises RolloutError with the file, what was found and what was expected.
    """
    root = Path(directory)
    if not root.is_dir():
        raise RolloutError(f"{directory}: no such folder; set 'rollout_dir' to the folder that holds phase1, phase2, …")
    folders = sorted((p for p in root.glob("phase*") if p.is_dir()), key=lambda p: (len(p.name), p.name))
    if not folders:
        raise RolloutError(f"{directory}: no phase* folders found; expected at least phase1/<migration>/apply.sql.")
    gates = gates_below(root, schema)
    phases = [_phase(folder, schema, required_indexes(gates)) for folder in folders]
    names = [phase["name"] for phase in phases]
    for phase in phases:
        for need in phase["needs"]:
            if need not in names[: names.index(phase["name"])]:
                raise RolloutError(f"{directory}/{phase['name']}/phase.yml: needs '{need}', which is no earlier phase.")
    steps = [step for phase in phases for migration in phase["migrations"] for step in migration["apply"]]
    _mark_overridden(steps)
    refuse_namesakes(steps)
    _settle_extensions(steps)
    immediate = _immediate(root / "immediate", phases, schema)
    return {
        "schema": schema,
        "phases": phases,
        "immediate": immediate,
        "rolled_back": _checks(_file(root / "rolled_back.sql")) if (root / "rolled_back.sql").exists() else [],
        "gates": gates,
    }


def _immediate(folder: Path, phases: list[dict[str, Any]], schema: str) -> dict[str, Any] | None:
    """The emergency switch: a migration with `holds`, the steps that it takes away until told otherwise."""
    if not folder.is_dir():
        return None
    found = _migration(folder, "immediate", schema, emergency=True)
    known = {step["id"]: step for phase in phases for migration in phase["migrations"] for step in migration["apply"]}
    names = [name.strip() for name in found["header"].get("Holds", "").split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise RolloutError(f"{folder}/apply.sql: '-- Holds:' names '{name}', which is no step of any phase.")
    return found | {"holds": [known[name] for name in names]}


def _settle_extensions(steps: list[dict[str, Any]]) -> None:
    """Leaves of the functions that steps call those that the rollout itself brings by no extension and no function."""
    extensions = {step["object"]["name"] for step in steps if step["kind"] == "CREATE EXTENSION"}
    functions = {bare(step["object"]["name"]) for step in steps if step["kind"] == "CREATE FUNCTION"}
    for step in steps:
        step["functions"] = {
            name: extension
            for name, extension in step["functions"].items()
            if extension not in extensions and name not in functions
        }


def _mark_overridden(steps: list[dict[str, Any]]) -> None:
    """Notes on each step that makes columns or an enum what later steps change of them or add to it."""
    for index, step in enumerate(steps):
        if step["object"] and step["object"]["kind"] == "type":
            added = [later["adds_label"] for later in steps[index + 1 :] if "adds_label" in later]
            step["later_labels"] = [label for name, label in added if name == step["object"]["name"]]
        if not step["object"] or step["object"]["kind"] not in ("column", "table"):
            continue
        table, kind, name = step["object"]["table"], step["object"]["kind"], step["object"]["name"]
        overridden: dict[str, list[str]] = {}
        for later in steps[index + 1 :]:
            target = later["object"] or {"kind": "", "table": "", "name": ""}
            same = target["table"] == table and (kind == "table" or target["name"] == name)
            if same and target["kind"] in ("not_null", "default", "column_type"):
                overridden.setdefault(target["name"], []).append(target["kind"])
        step["overridden"] = overridden


def _phase(folder: Path, schema: str, gates: frozenset[str]) -> dict[str, Any]:
    settings = _phase_settings(folder / "phase.yml")
    migrations = [_migration(p, folder.name, schema, gates) for p in sorted(folder.iterdir()) if p.is_dir()]
    if not migrations:
        raise RolloutError(f"{folder}: no migrations found; expected folders such as {folder}/001_name with apply.sql.")
    return {"name": folder.name, **settings, "migrations": migrations}


def _phase_settings(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise RolloutError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or set(found) != PHASE_KEYS:
        keys = sorted(found) if isinstance(found, dict) else type(found).__name__
        raise RolloutError(f"{path}: found {keys}, expected exactly the keys {sorted(PHASE_KEYS)}.")
    return found


def gates_below(root: Path, schema: str) -> list[dict[str, Any]]:
    """The performance gates of all migrations."""
    found = []
    for folder in sorted(root.glob("phase*/*/gates"), key=lambda path: (len(path.parts[-3]), path)):
        # Here, because most rollouts that a test or a person lints have none.
        from pgrollout.gates.files import gates_of

        found += gates_of(folder.parent, folder.parent.name, folder.parent.parent.name, schema)
    return found


def required_indexes(gates: list[dict[str, Any]]) -> frozenset[str]:
    """The indexes that gates rely on: none of them is dropped without a word."""
    rules = [rule for gate in gates for rule in gate["gates"].get("require_index", [])]
    named = [[rule["index"]] if isinstance(rule["index"], str) else rule["index"] for rule in rules]
    return frozenset(name for names in named for name in names)


def _migration(
    folder: Path, phase: str, schema: str, gates: frozenset[str] = frozenset(), emergency: bool = False
) -> dict[str, Any]:
    text = _text(folder / "apply.sql")
    apply = read_sql(text, str(folder / "apply.sql"))
    name = folder.name
    return {
        "name": name,
        "phase": phase,
        "path": str(folder),
        "checksum": hashlib.sha256(text.encode()).hexdigest(),
        "header": apply.header,
        "apply": steps_of_file(apply, name, phase, Classifier(schema, gates=gates, as_written=emergency)),
        "rollback": []
        if emergency
        else steps_of_file(_file(folder / "rollback.sql"), name, phase, Classifier(schema, rollback=True, gates=gates)),
        "validate": _checks(_file(folder / "validate.sql")) if (folder / "validate.sql").exists() else [],
        "require": _checks(_file(folder / "require.sql")) if (folder / "require.sql").exists() else [],
    }


def _file(path: Path) -> SqlFile:
    return read_sql(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RolloutError(f"{path}: the file is missing.") from None
    except UnicodeDecodeError as error:
        raise RolloutError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise RolloutError(f"{path}: cannot be read: {error.strerror}.") from None


def steps_of_file(file: SqlFile, migration: str, phase: str, classifier: Classifier) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    taken: set[str] = set()
    for statement in file.statements:
        for number, step in enumerate(classifier.steps(statement)):
            name = _step_name(statement, number, step, taken, file.path)
            taken.add(name)
            steps.append(
                step
                | {
                    "id": f"{migration}/{name}",
                    "name": name,
                    "migration": migration,
                    "phase": phase,
                    "where": f"{file.path}:{statement.line}",
                    "only_when": file.header.get("Only when", ""),
                    "restores": f"{migration}/{statement.notes['Restore']}" if "Restore" in statement.notes else "",
                }
            )
    return steps


def _step_name(statement: Statement, number: int, step: dict[str, Any], taken: set[str], path: str) -> str:
    """The author's `-- Step:`, or a name made of the object and, where two steps share it, of the verb or a number.

    number: which of the safe forms of the statement it is; the author's name is the first's.
    """
    if "Step" in statement.notes and number == 0:
        name = statement.notes["Step"]
        if not re.fullmatch(r"[a-z0-9_.-]+", name):
            raise RolloutError(
                f"{path}:{statement.line}: the step name '{name}' may hold a-z, 0-9, '_', '.' and '-' only."
            )
        if name in taken:
            raise RolloutError(f"{path}:{statement.line}: the step name '{name}' is used twice in one file.")
        return name
    target = step["object"]
    if step["mode"] == "restore":
        stem = f"restore_{statement.notes['Restore']}"
    elif target is None:
        stem = "_".join([step["kind"].lower(), *(bare(lock["relation"]) for lock in step["locks"][:1])])
    elif target["kind"] in QUALIFIED:
        stem = bare(target["name"])
    else:
        own = target["kind"] in _NAMED_ALONE or not target["table"]
        stem = ".".join([*([] if own else [bare(target["table"])]), target["name"] or "unnamed"])
    stem = in_id(stem)  # two names that become one are told apart below
    verb = step["kind"].lower().split()[0]
    candidates = [stem, f"{stem}.{verb}"] + [f"{stem}.{verb}{number}" for number in range(2, 100)]
    return next(candidate for candidate in candidates if candidate not in taken)


def _checks(file: SqlFile) -> list[dict[str, Any]]:
    """validate.sql and require.sql: SELECTs that return violations, and statements that must be refused."""
    checks = []
    for statement in file.statements:
        where = f"{file.path}:{statement.line}"
        reads = type(statement.node).__name__ == "SelectStmt"
        refuses = statement.notes.get("Refuses", "")
        if not reads and not refuses:
            raise RolloutError(
                f"{where}: a check only reads; write a SELECT, or say '-- Refuses: <condition>' above it."
            )
        checks.append(
            {
                "title": statement.notes.get("Check") or statement.notes.get("Refuses") or where,
                "sql": statement.sql,
                "refuses": refuses,
                "where": where,
            }
        )
    return checks
