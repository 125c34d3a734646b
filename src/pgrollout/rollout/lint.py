"""What the planner says of SQL without a database: safe forms, hazards, refusals. For a folder, or a whole rollout.

python -m pgrollout.rollout.lint DIR [--format json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pgrollout.errors import RolloutError
from pgrollout.migration.classify import Classifier
from pgrollout.migration.namesakes import refuse_namesakes
from pgrollout.migration.read import read_sql
from pgrollout.migration.show import lint_lines
from pgrollout.rollout.load import gates_below, required_indexes, steps_of_file


def lint(directory: str, schema: str = "public") -> dict[str, Any]:
    """Returns {directory, files, steps, refused, findings: [{level, where, step, message, sql, becomes}]}.

    level: refused (it would not run), warning (depends on the database, or hurts the application), rewritten (it runs
    in the safe form `becomes`), accepted (its author took a hazard upon himself).  Of a rollout, apply.sql and
    rollback.sql of each migration are read; of another folder every .sql file.
    """
    root = Path(directory)
    if not root.is_dir():
        raise RolloutError(f"{directory}: no such folder; name one that holds .sql files with -e lint_dir=<folder>.")
    files = sorted(root.glob("phase*/*/apply.sql")) + sorted(root.glob("phase*/*/rollback.sql"))
    files = files or sorted(root.rglob("*.sql"))
    if not files:
        raise RolloutError(f"{directory}: no .sql files found; name the folder that holds them.")
    findings: list[dict[str, Any]] = []
    apply: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    relied_on = required_indexes(gates_below(root, schema))
    for path in files:
        try:
            found = _steps(path, schema, relied_on)
        except RolloutError as error:
            findings.append(_finding("refused", str(path), "", str(error)))
            continue
        steps += found
        apply += found if path.name != "rollback.sql" else []
    refuse_namesakes(apply)
    for step in steps:
        findings += _findings(step)
    return {
        "directory": directory,
        "files": len(files),
        "steps": len(steps),
        "refused": sum(finding["level"] == "refused" for finding in findings),
        "findings": _joined(findings),
    }


def _steps(path: Path, schema: str, gates: frozenset[str]) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RolloutError(f"{path}: cannot be read as UTF-8: {error}") from None
    name = path.parent.name if path.name in ("apply.sql", "rollback.sql") else path.stem
    classifier = Classifier(schema, path.name == "rollback.sql", gates)
    return steps_of_file(read_sql(text, str(path)), name, "", classifier)


def _findings(step: dict[str, Any]) -> list[dict[str, Any]]:
    where, name, sql = step["where"], step["id"], step["written"] or step["sql"]
    found = [
        _finding("warning", where, name, f"{function}() comes with the extension {extension}", sql)
        for function, extension in step["functions"].items()
    ]
    if step["refused"]:
        return [_finding("refused", where, name, step["refused"], sql), *found]
    if step["written"]:
        found.append(_finding("rewritten", where, name, "", sql, [step["sql"]]))
    if step["mode"] == "data" and not step["backfill"]["key"]:
        text = "it runs in batches along the primary key; without one it is refused: '-- Backfill: by <key>' names it"
        found.append(_finding("warning", where, name, text, sql))
    found += [_finding("accepted", where, name, f"{a['hazard']}: {a['reason']}", sql) for a in step["accepted"]]
    found += [
        _finding("warning", where, name, f"needs PostgreSQL {need['version']}: {need['what']}", sql)
        for need in step["needs"]
    ]
    if step["kind"] == "ALTER COLUMN TYPE":
        text = "whether it rewrites the table depends on its present type; the plan asks the database"
        found.append(_finding("warning", where, name, text, sql))
    return found + [_finding("warning", where, name, f"application: {hazard}", sql) for hazard in step["hazards"]]


def _finding(
    level: str, where: str, step: str, message: str, sql: str = "", becomes: list[str] | None = None
) -> dict[str, Any]:
    return {"level": level, "where": where, "step": step, "message": message, "sql": sql, "becomes": becomes or []}


def _joined(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One finding for all forms of one statement."""
    joined: list[dict[str, Any]] = []
    for finding in findings:
        last = joined[-1] if joined else {"level": "", "where": ""}
        if finding["level"] == "rewritten" == last["level"] and finding["where"] == last["where"]:
            last["becomes"] += finding["becomes"]
        else:
            joined.append(finding)
    return joined


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What the planner says of the SQL in a folder, without a database.")
    parser.add_argument("directory")
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument("--schema", default="public", help="the schema of names without one")
    given = parser.parse_args(arguments)
    try:
        result = lint(given.directory, given.schema)
    except RolloutError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(result, indent=2) if given.format == "json" else "\n".join(lint_lines(result)))
    return 1 if result["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
