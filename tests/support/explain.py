"""Plans captured from real servers, and where two readings of one execution differ."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path as File
from typing import Any

DATA = File(__file__).resolve().parents[1] / "data" / "explain"
CORPUS = (DATA / "live_dev.jsonl.gz", DATA / "pg18.jsonl.gz")

Path = tuple[str | int, ...]
Difference = tuple[Path, Any, Any]


@cache
def corpus() -> tuple[dict[str, Any], ...]:
    """Captures: id, pg, kind, query, options, texts{format: text}, and of a pair: pair_format, pair.

    `kind`: pair is TEXT and, in `pair`, what auto_explain said of the same execution; plain4 the formats of one
    statement without ANALYZE; single one format with ANALYZE.
    """
    found: list[dict[str, Any]] = []
    for file in CORPUS:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            found += (json.loads(line) for line in lines)
    return tuple(found)


def differences(server: Any, text: Any, path: Path = ()) -> Iterator[Difference]:
    """Each path where the two differ, with both values; what one of them lacks is ABSENT."""
    if isinstance(server, dict) and isinstance(text, dict):
        for key in server.keys() | text.keys():
            yield from differences(server.get(key, ABSENT), text.get(key, ABSENT), (*path, key))
    elif isinstance(server, list) and isinstance(text, list) and len(server) == len(text):
        for index, (one, other) in enumerate(zip(server, text, strict=True)):
            yield from differences(one, other, (*path, index))
    elif server != text or isinstance(server, bool) != isinstance(text, bool):
        yield path, server, text


class Absent:
    """A value that one of the two does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = Absent()
