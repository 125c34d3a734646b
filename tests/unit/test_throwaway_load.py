"""The loader: all or nothing, repeatable, and clear about what is wrong with a file."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from demo.load import load
from demo.server import Server, ThrowawayError

SCHEMA = "CREATE TABLE agents (id int PRIMARY KEY, name text);\n"
DATA = """INSERT INTO agents
SELECT n, '100 % ' || current_setting('baseline.seed')
  FROM generate_series(1, (10 * current_setting('baseline.scale')::numeric)::int) AS n;
"""


def _baseline(folder: Path, schema: str = SCHEMA, data: str = DATA) -> Path:
    (folder / "schema.sql").write_text(schema)
    (folder / "data.sql").write_text(data)
    return folder


def _drop(server: Server, name: str) -> None:
    with contextlib.closing(server.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name}")


def test_load_and_load_again(server: Server, tmp_path: Path) -> None:
    loaded = load(server, "load_twice", scale="0.5", seed="7", baseline=_baseline(tmp_path))
    assert loaded.fresh
    assert loaded.rows == {"agents": 5}
    assert loaded.label == "baseline at scale 0.5, seed 7"
    again = load(server, "load_twice", scale="2", seed="8", baseline=tmp_path)
    assert not again.fresh
    assert (again.rows, again.label) == (loaded.rows, loaded.label)
    _drop(server, "load_twice")


def test_schema_alone(server: Server, tmp_path: Path) -> None:
    assert load(server, "load_schema", data=False, baseline=_baseline(tmp_path)).rows == {"agents": 0}
    _drop(server, "load_schema")


def test_a_failed_load_leaves_nothing_and_is_done_again(server: Server, tmp_path: Path) -> None:
    broken = _baseline(tmp_path, data=DATA + "\nSELECT\n    no_such_column FROM agents;\n")
    with pytest.raises(ThrowawayError, match=r'data\.sql, line 6: column "no_such_column" does not exist'):
        load(server, "load_broken", baseline=broken)
    with contextlib.closing(server.connect("load_broken")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('public.agents')")
        assert cursor.fetchone() == (None,)
    assert load(server, "load_broken", baseline=_baseline(tmp_path)).fresh
    _drop(server, "load_broken")


def test_a_missing_file_is_told(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ThrowawayError, match=r"schema\.sql is missing: the checkout is not complete"):
        load(server, "load_nothing", baseline=tmp_path)
