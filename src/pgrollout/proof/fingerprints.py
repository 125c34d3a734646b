"""Two fingerprints of a catalog (see roles/ledger/files/48_contents.sql), compared object by object."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping
from typing import Any

from pgrollout.errors import RolloutError

_KEPT = 30  # characters on both sides of what differs in a long definition


def fingerprint_diff(was: Mapping[str, str] | str, now: Mapping[str, str] | str) -> list[str]:
    """A sentence for each object that one of two fingerprints lacks, or has otherwise; in the order of their names.

    Each is {object: definition}, or that as JSON: what pgrollout.fingerprint() returns. RolloutError: something else.
    """
    then, found = _read(was), _read(now)
    return difference_lines(
        [
            {"object": name, "found": found.get(name), "expected": then.get(name)}
            for name in sorted(then.keys() | found.keys())
            if then.get(name) != found.get(name)
        ]
    )


def difference_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The same for rows {object, found, expected} of pgrollout.catalog_differences; None is an object that is not
    there."""
    return [f"{row['object']}: {_difference(row['found'], row['expected'])}" for row in rows]


def _read(given: Mapping[str, str] | str) -> Mapping[str, str]:
    found = given
    if isinstance(given, str):
        with contextlib.suppress(ValueError):
            found = json.loads(given)
    if not isinstance(found, Mapping) or not all(isinstance(value, str) for value in found.values()):
        raise RolloutError(
            f"fingerprint_diff got {type(given).__name__} {str(given)[:60]!r}; expected is a fingerprint, "
            "{object: definition} or that as JSON: SELECT pgrollout.fingerprint()."
        )
    return found


def _difference(found: str | None, expected: str | None) -> str:
    if found is None:
        return f"is not there, expected [{expected}]"
    if expected is None:
        return f"found [{found}], expected was none of that name"
    one, other = _differing(found, expected)
    return f"found [{one}], expected [{other}]"


def _differing(one: str, other: str) -> tuple[str, str]:
    """What differs of two definitions: their fields, or, where those do not pair off, what is around the difference."""
    fields, others = one.split("; "), other.split("; ")
    if len(fields) == len(others):
        pairs = [pair for pair in zip(fields, others, strict=True) if pair[0] != pair[1]]
        return "; ".join(first for first, _ in pairs), "; ".join(second for _, second in pairs)
    start = max(0, _alike(one, other) - _KEPT)
    end = max(0, _alike(one[start:][::-1], other[start:][::-1]) - _KEPT)
    return _cut(one, start, end), _cut(other, start, end)


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in pairs)


def _cut(text: str, start: int, end: int) -> str:
    return ("…" if start else "") + text[start : len(text) - end] + ("…" if end else "")
