"""Plans in JSON and YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

from pgrollout.errors import RolloutError
from pgrollout.explain.lines import Line
from pgrollout.explain.values import LIST_KEYS, SIGNED, number

# With libyaml where PyYAML has it: ten times as fast.
Loader: Any = getattr(yaml, "CLoader", yaml.Loader)
BLANKS = re.compile(r"\s*")
DEEP = "is nested too deeply to be a plan"


def merged(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys may come twice: PostgreSQL 12 tells of the workers of a node in several groups."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key == "Workers" and key in found:
            value = merged_workers([*found[key], *value])
        found[key] = value
    return found


def merged_workers(workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One object a worker."""
    found: dict[Any, dict[str, Any]] = {}
    for worker in workers:
        found.setdefault(worker.get("Worker Number"), {}).update(worker)
    return list(found.values())


def read_json(lines: list[Line]) -> list[Any]:
    """All values of one or more JSON texts that follow each other."""
    text = "\n".join(line.text for line in lines)
    decoder = json.JSONDecoder(object_pairs_hook=merged)
    found: list[Any] = []
    position = 0
    while (position := _behind_blanks(text, position)) < len(text):
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            number = lines[min(error.lineno, len(lines)) - 1].number
            raise RolloutError(
                f"Line {number} is no JSON ({error.msg}); give all of the output of EXPLAIN (FORMAT JSON)."
            ) from None
        except (RecursionError, ValueError, AttributeError, TypeError):
            raise RolloutError(f"The JSON from line {lines[0].number} on {DEEP}.") from None
        found.append(value)
    return found


def _behind_blanks(text: str, position: int) -> int:
    found = BLANKS.match(text, position)
    return found.end() if found else position


def read_yaml(lines: list[Line]) -> list[Any]:
    """The values of YAML as PostgreSQL writes it: text is quoted, and nothing refers to anything else.

    Built from the events of the parser, because PyYAML's own constructor takes several times as long.
    """
    try:
        return _values(yaml.parse("\n".join(line.text for line in lines), Loader=Loader))
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark.line if error.problem_mark else 0
        number = lines[min(at, len(lines) - 1)].number
        raise RolloutError(
            f"Line {number} is no YAML ({error.problem}); give all of the output of EXPLAIN (FORMAT YAML)."
        ) from None
    except (yaml.YAMLError, RecursionError, AttributeError, TypeError):
        raise RolloutError(f"The YAML from line {lines[0].number} on cannot be read as a plan.") from None


def _values(events: Iterable[Any]) -> list[Any]:
    """The values that the events of YAML make, without recursion."""
    open_lists: list[list[Any]] = [[]]  # of a mapping: its keys and values in turn
    for event in events:
        match event:
            case yaml.ScalarEvent():
                open_lists[-1].append(_scalar(event))
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                open_lists.append([])
            case yaml.SequenceEndEvent():
                items = open_lists.pop()
                open_lists[-1].append(items)
            case yaml.MappingEndEvent():
                items = open_lists.pop()
                open_lists[-1].append(merged(list(map(_pair, items[::2], items[1::2]))))
            case yaml.AliasEvent():
                raise TypeError(event.anchor)
    return open_lists[0]


def _scalar(event: Any) -> Any:
    """Text where it is quoted, else a number, a truth value, nothing, or text."""
    text: str = event.value
    if not event.implicit[0]:
        return text
    if not text:
        return None
    if text in ("true", "false"):
        return text == "true"
    return number(text) if SIGNED.fullmatch(text) else text


def _pair(key: Any, value: Any) -> tuple[str, Any]:
    """A property; what is empty is a list without items, or no settings."""
    if not isinstance(key, str):
        raise TypeError(key)
    return key, ([] if key in LIST_KEYS else {}) if value is None else value
