"""The bench's arithmetic and texts: logs, who is waited for, spreads, the roadmap's SQL, files of the other tools."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from bench import overhead, roadmap
from bench.__main__ import arguments
from bench.application import APPLICATION, AUTOVACUUM, READER, Wait, behind, felt, laid_to, read_log
from bench.report import percentile, put, reach, spread, table
from bench.stall import rows, scripts
from bench.tools import alembic_revision, telling_line

# ---- pgbench's log


def test_an_operation_was_due_before_its_end_by_all_that_it_took() -> None:
    (operation,) = read_log(["0 1 250000 3 1000 500000 240000"])
    assert operation.due == pytest.approx(1000.25)
    assert (operation.wait_ms, operation.failed) == (250.0, False)


def test_a_failed_operation_is_one_without_a_wait() -> None:
    (operation,) = read_log(["0 1 failed 3 1000 500000 240000"])
    assert (operation.wait_ms, operation.failed) == (0.0, True)


def test_what_was_due_in_the_stretch_counts_however_late_it_was_answered() -> None:
    operations = read_log(["0 1 1000 0 10 1000", "0 2 7000000 0 17 0", "0 3 1000 0 17 1000", "0 4 failed 0 10 9"])
    found = felt(operations, 10.0, 12.0)
    assert (found.operations, found.failed, found.longest_ms) == (3, 1, 7000.0)
    assert found.per_second == 1.0
    assert found.in_time == pytest.approx(1 / 3)


def test_a_stretch_without_operations_is_no_error() -> None:
    assert felt([], 1.0, 1.0).longest_ms == 0.0


# ---- who is waited for


def test_a_wait_is_for_all_in_front_through_others_too() -> None:
    waits = {1: Wait(1, 5.0, (2,)), 2: Wait(2, 9.0, (3, 1)), 3: Wait(3, 9.0, (4,))}
    assert behind(1, waits) == {1, 2, 3, 4}
    assert behind(3, waits) == {4}


@pytest.mark.parametrize(
    ("names", "who"),
    [
        ([APPLICATION], "application"),
        ([READER, APPLICATION], "reader"),
        ([AUTOVACUUM, READER], "autovacuum"),
        (["pgrollout/1/step", READER], "migration"),
        (["bench tool"], "migration"),
        ([], "application"),
    ],
)
def test_a_wait_is_laid_to_the_migration_wherever_it_stands_in_front(names: list[str], who: str) -> None:
    assert laid_to(names) == who


# ---- figures


def test_a_spread_is_least_median_and_most() -> None:
    assert spread([30.0, 1234.5, 0.25]) == "0.25 / 30.0 / 1,234"
    assert spread([0.0123]) == "0.012"
    assert spread([]) == "-"


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], 0.99) == 100.0
    assert percentile([float(n) for n in range(1000)], 0.5) == 500.0
    assert percentile([], 0.99) == 0.0


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert table(["a"], [["x | y"]]).splitlines()[2] == "| x \\| y |"


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    found = reach([("a", "1", "1", True, ""), ("b", "1", "2", False, "why"), ("c", "1", "-", None, "")])
    assert [line.split("|")[4].strip() for line in found.splitlines()[2:]] == ["met", "not met", "not measured"]


def test_a_table_takes_the_place_of_the_last_one_and_of_nothing_else() -> None:
    text = "before\n<!-- stall -->\nold\n<!-- end of stall -->\nafter"
    assert put(text, "stall", " new\n") == "before\n<!-- stall -->\nnew\n<!-- end of stall -->\nafter"
    with pytest.raises(ValueError, match="no place for backfill"):
        put(text, "backfill", "new")


def test_time_in_which_two_statements_ran_counts_once() -> None:
    log = [
        "2026-01-01 00:00:10.000 UTC [7] rollout@d pgrollout/1/a LOG:  duration: 4000.000 ms  statement: SELECT 1",
        "2026-01-01 00:00:11.000 UTC [8] rollout@d pg_dump LOG:  duration: 2000.000 ms  statement: COPY",
        "2026-01-01 00:00:30.000 UTC [8] rollout@d  LOG:  duration: 500.000 ms  statement: COPY",
        "2026-01-01 00:00:40.000 UTC [9] rollout@d pgrollout-probe/1 LOG:  duration: 9000.000 ms  statement: S",
        "2026-01-01 00:00:40.000 UTC [9] hive_app@d psql LOG:  duration: 9000.000 ms  statement: S",
        "2026-01-01 00:00:40.000 UTC [9] rollout@d psql ERROR:  no such thing",
    ]
    statements = overhead.read_log(log)
    assert {statement.database for statement in statements} == {"d"}
    assert overhead.busy(statements) == pytest.approx(5.5)


# ---- the roadmap's SQL and those who apply it


def test_concurrent_builds_stand_alone_and_the_rest_in_a_transaction() -> None:
    ddl = "ALTER TABLE a ADD b int; ALTER TABLE a ADD c int"
    text = f"BEGIN; {ddl}; CREATE INDEX CONCURRENTLY i ON a (b); ANALYZE a; COMMIT;"
    found = roadmap.units_of("x", text)
    assert [(unit.name, len(unit.statements), unit.transactional) for unit in found] == [
        ("x_01", 2, True),
        ("x_02", 1, False),
        ("x_03", 1, True),
    ]
    assert found[0].script().startswith("BEGIN;\n")
    assert found[1].script() == "CREATE INDEX CONCURRENTLY i ON a (b);\n"


def test_the_rows_of_a_file_are_committed_before_its_columns_are_not_null() -> None:
    found = roadmap.units_of("x", "BEGIN; UPDATE a SET b = 1; ALTER TABLE a ALTER b SET NOT NULL; COMMIT;")
    assert [unit.statements for unit in found] == [("UPDATE a SET b = 1",), ("ALTER TABLE a ALTER b SET NOT NULL",)]


def test_all_nine_migrations_are_there_and_every_repair_finds_its_place() -> None:
    found = roadmap.units()
    assert len({unit.name[:3] for unit in found}) == 9
    assert len({unit.name for unit in found}) == len(found)
    everything = "\n".join(statement for unit in found for statement in unit.statements)
    assert "base32" not in everything
    assert sum(not unit.transactional for unit in found) == everything.count("CONCURRENTLY IF NOT EXISTS")


def test_a_repair_without_its_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="roadmap 008"):
        roadmap.repaired("008", "SELECT 1")


@pytest.mark.parametrize("transactional", [True, False])
def test_a_revision_is_python_with_the_statements_as_they_are(transactional: bool) -> None:
    statement = "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT ':x' || '%' || E'\\n' $$"
    tree = ast.parse(alembic_revision(2, roadmap.Unit("u", (statement,), transactional)))
    constants: list[Any] = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert {statement, "0002", "0001"} <= set(constants)
    assert any(isinstance(node, ast.With) for node in ast.walk(tree)) is not transactional


def test_what_a_tool_said_is_told_from_its_first_error_on() -> None:
    said = "step 1\npsql:/some/where/all.sql:1: ERROR:  relation  exists\nHINT: go on\n"
    assert telling_line(said) == "ERROR: relation exists"
    assert telling_line("one\ntwo\n\n") == "two"
    assert telling_line("") == ""


def test_an_application_has_rows_to_draw_at_any_scale() -> None:
    assert rows(1)["tasks"] == 300_000
    assert min(rows(0.001).values()) >= 4
    assert len(scripts()) == 16


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("stal", "there is no bench 'stal'; name one of backfill, growth, stall, recovery, overhead."),
        ("stall --only pgsql", "--only pgsql is nothing that is compared here; name one of alembic, dbmate, ours,"),
        ("stall --scale 0", "expected --scale over 0 and --runs of at least 1, found 0 and 3."),
        ("--runs 0", "found 1 and 0."),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(line: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(line.split())
    assert sentence in capsys.readouterr().err


def test_without_a_name_everything_is_measured() -> None:
    assert arguments([]).what == ["backfill", "growth", "stall", "recovery", "overhead"]
