"""The documents of the captured plans, and hand-written ones for what those have not got."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import yaml

from tests.support.explain import corpus


@lru_cache(maxsize=1)
def records() -> tuple[dict[str, Any], ...]:
    """The captures of 12 to 17, which are of the same queries; those of 18 are not."""
    return tuple(record for record in corpus() if record["pg"] < 18)


@lru_cache(maxsize=1)
def captured() -> dict[str, list[dict[str, Any]]]:
    """The documents of each capture that has JSON, by its id: all versions, options and kinds."""
    return dict(_captured())


def _captured() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for record in records():
        if record["kind"] == "pair" and record["pair_format"] == "json":
            yield record["id"], [json.loads(document) for document in record["pair"]]
        elif "json" in record["texts"]:
            yield record["id"], json.loads(record["texts"]["json"])


def capture(query: str, version: str = "17", kind: str = "full/json") -> list[dict[str, Any]]:
    """The documents of one query, with ANALYZE and all options unless told otherwise."""
    return captured()[f"live/pg{version}/{query}/{kind}"]


def yaml_twins() -> Iterator[tuple[str, Any, Any]]:
    """(id, documents from JSON, documents from YAML) of the plans without ANALYZE."""
    for record in records():
        if record["kind"] == "plain4":
            yield (
                record["id"],
                json.loads(record["texts"]["json"]),
                yaml.load(record["texts"]["yaml"], yaml.CSafeLoader),
            )


def node(kind: str, *plans: dict[str, Any], **properties: Any) -> dict[str, Any]:
    """A node; `total_cost=1` is its "Total Cost"."""
    found = {"Node Type": kind} | {
        key.replace("_", " ").title().replace(" By ", " by "): value for key, value in properties.items()
    }
    return found | ({"Plans": list(plans)} if plans else {})


def ran(kind: str, *plans: dict[str, Any], ms: float = 1.0, rows: float = 1, loops: int = 1, **more: Any) -> Any:
    """A node that was executed."""
    return node(
        kind, *plans, actual_startup_time=0.0, actual_total_time=ms, actual_rows=rows, actual_loops=loops, **more
    )
