"""Which steps a build on a partitioned table becomes, by what its partitions have already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgrollout.migration.partitions import build_in_parts
from pgrollout.rollout.load import load_rollout
from tests.support.rollouts import write_rollout

SHAPE = "CREATE INDEX USING btree (b)"


def decided(tmp_path: Path, *indexes: dict[str, Any], relation: str = "public.p1", **changes: Any) -> dict[str, Any]:
    rollout = load_rollout(str(write_rollout(tmp_path, {"phase1/001_a/apply.sql": "CREATE INDEX i ON p (b);"})))
    step: dict[str, Any] = rollout["phases"][0]["migrations"][0]["apply"][0]
    partition = {"relation": relation, "parent": "public.p", "leaf": True, "rows": 5, "bytes": 9, "indexes": [*indexes]}
    fact = {"wanted": {"shape": SHAPE}, "partitions": [partition]}
    return step | {"state": "pending", "reason": "", "fact": fact, "rows": 5, "bytes": 9} | changes


def index(name: str = "public.other", **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": SHAPE, "valid": True, "parent": None} | changes


@pytest.mark.parametrize(
    ("indexes", "expected"),
    [
        ([], {"i": "pending", "i/p1": "pending", "i/p1.attach": "pending"}),
        ([index()], {"i": "pending", "i/p1.attach": "pending"}),
        ([index(parent="public.i")], {"i": "pending"}),
        ([index(parent="public.i", shape="CREATE INDEX USING btree (public.b)")], {"i": "pending"}),
        ([index(parent="public.i", valid=False)], {"i": "pending", "i/p1": "conflict"}),
        ([index(parent="public.j")], {"i": "pending", "i/p1": "pending", "i/p1.attach": "pending"}),
        ([index(shape="CREATE UNIQUE INDEX USING btree (b)")], dict.fromkeys(("i", "i/p1", "i/p1.attach"), "pending")),
        ([index("public.p1_i", valid=False)], {"i": "pending", "i/p1": "rebuild", "i/p1.attach": "pending"}),
        ([index("public.p1_i", shape="x")], {"i": "pending", "i/p1": "conflict", "i/p1.attach": "pending"}),
    ],
)
def test_a_partition_gets_what_it_lacks(tmp_path: Path, indexes: list[Any], expected: dict[str, str]) -> None:
    steps = build_in_parts(decided(tmp_path, *indexes))
    assert {step["name"]: step["state"] for step in steps} == expected
    assert [step["id"] for step in steps] == [f"001_a/{name}" for name in expected]


def test_the_statements_name_every_relation_in_full(tmp_path: Path) -> None:
    entry, build, attach = build_in_parts(decided(tmp_path, relation='parts."P.1%"'))
    assert entry["sql"] == "CREATE INDEX i ON ONLY public.p (b)"
    assert build["sql"] == 'CREATE INDEX CONCURRENTLY "P.1%_i" ON parts."P.1%" (b)'
    assert attach["sql"] == 'ALTER INDEX public.i ATTACH PARTITION parts."P.1%_i"'
    assert (build["name"], build["object"]["table"]) == ("i/P.1_", 'parts."P.1%"')


def test_long_names_stay_within_63_bytes_and_apart(tmp_path: Path) -> None:
    names = [
        build_in_parts(decided(tmp_path, relation=f'public."{"ä" * 30}{last}"'))[1]["object"]["name"] for last in "ab"
    ]
    assert [len(name.encode()) <= 63 for name in names] == [True, True]
    assert names[0] != names[1]


@pytest.mark.parametrize("state", ["held", "off", "refused", "conflict", "unproven"])
def test_what_is_not_to_be_built_stays_one_step(tmp_path: Path, state: str) -> None:
    step = decided(tmp_path, state=state)
    assert build_in_parts(step) == [step]
