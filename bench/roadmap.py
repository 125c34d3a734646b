"""The roadmap's SQL as a careful person makes it run by hand: what the other tools apply."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pglast import ast, parse_sql, split

ROADMAP = Path(__file__).resolve().parent.parent / "tests" / "unit" / "data"

# (file's number, what is written, what runs): only what the server refuses or what would do nothing.
REPAIRS = (
    # neither the function nor the encoding exists; eight of 16 symbols, because three bytes run out of codes
    ("006", "translate(encode(gen_random_bytes(3), 'base32'), '018', '239')", "upper(left(md5(random()::text), 8))"),
    # the columns came with defaults, so nothing is NULL and nothing would be written
    (
        "007",
        "WHERE project_assignments IS NULL OR max_concurrent_projects IS NULL",
        "WHERE max_concurrent_projects = 1",
    ),
    ("007", "WHERE agent_assignment_history IS NULL OR delegation_metadata IS NULL", "WHERE complexity_score = 5"),
    # the name is taken by an index of 003
    ("008", "idx_agent_project_capacity ", "idx_agent_project_capacity_status "),
)


@dataclass(frozen=True)
class Unit:
    """What is committed together: statements of one transaction, or one that must stand alone."""

    name: str
    statements: tuple[str, ...]
    transactional: bool

    def script(self) -> str:
        """For psql: a transaction of its own where it can be one."""
        text = ";\n".join(self.statements) + ";\n"
        return f"BEGIN;\n{text}COMMIT;\n" if self.transactional else text


def repaired(number: str, text: str) -> str:
    """The file's text with its repairs; ValueError where one finds nothing to repair."""
    for of, written, runs in REPAIRS:
        if of == number:
            if written not in text:
                raise ValueError(f"roadmap {number}: expected {written!r} to repair.")
            text = text.replace(written, runs)
    return text


def units_of(name: str, text: str) -> list[Unit]:
    """One transaction for what stands together, as the roadmap has it; a concurrent build alone, as the server has it.

    SET NOT NULL gets a transaction after that of the rows: in one with them it deadlocks with every application that
    writes, because a writer that waits for a row holds the table's lock too.
    """
    units: list[Unit] = []
    open_group: list[str] = []
    open_kind = ""

    def close() -> None:
        if open_group:
            units.append(Unit(f"{name}_{len(units) + 1:02}", tuple(open_group), True))
            open_group.clear()

    for statement in split(text):
        kind = _kind(statement)
        if kind == "transaction":
            continue
        if kind != open_kind or kind == "concurrent":
            close()
        open_kind = kind
        if kind == "concurrent":
            units.append(Unit(f"{name}_{len(units) + 1:02}", (statement,), False))
        else:
            open_group.append(statement)
    close()
    return units


def _kind(statement: str) -> str:
    node = parse_sql(statement)[0].stmt
    if isinstance(node, ast.TransactionStmt):
        return "transaction"
    if isinstance(node, ast.IndexStmt) and node.concurrent:
        return "concurrent"
    if isinstance(node, ast.AlterTableStmt) and "SET NOT NULL" in statement.upper():
        return "not null"
    return "transactional"


def units(folder: Path = ROADMAP) -> list[Unit]:
    """All nine migrations of the roadmap, in order."""
    found: list[Unit] = []
    for file in sorted(folder.glob("roadmap_*.sql")):
        name = file.stem.removeprefix("roadmap_")
        found += units_of(name, repaired(name[:3], file.read_text()))
    return found
