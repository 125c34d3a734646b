"""Gates outside of a rollout: of two texts, measured on a database, judged."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pgrollout.gates.files import read_gate
from pgrollout.gates.judge import verdicts
from pgrollout.gates.queries import gate_queries, gates_measured

if TYPE_CHECKING:
    from tests.conftest import Database


def gate_of(limits: str, query: str, name: str = "001_a/look") -> dict[str, Any]:
    return {"id": name, "migration": name.split("/")[0], "phase": "phase1"} | read_gate(
        limits, query, "look.gate.yml", "look.sql"
    )


def measure(database: Database, *gates: dict[str, Any]) -> dict[str, Any]:
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
        for query in gate_queries(list(gates), "public"):
            cursor.execute(query)
        measured, baseline = cursor.fetchone()
        found: dict[str, Any] = gates_measured([{"measured": measured, "baseline": baseline}])["measured"]
        return found


def judge(
    database: Database, gate: dict[str, Any], before: dict[str, Any] | None = None, today: str = ""
) -> list[dict[str, Any]]:
    return verdicts(gate, measure(database, gate)[gate["id"]], before, today)
