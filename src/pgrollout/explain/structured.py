"""Plans in JSON and YAML."""

from __future__ import annotations

import json
from typing import Any

import yaml

from pgrollout.errors import RolloutError
from pgrollout.explain.lines import Line
from pgrollout.explain.values import LIST_KEYS

# With libyaml where PyYAML has it: ten times as fast.
SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST_INDENT = 5_000  # of a plan in YAML; the loader would end the process on much deeper ones
DEEP = "is nested too deeply to be a plan"


class Loader(SafeLoader):  # type: ignore[misc]
    """YAML as PostgreSQL writes it, with keys that come twice put together."""


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    pairs = []
    for key_node, value_node in node.value:
        key, value = (loader.construct_object(part, deep=True) for part in (key_node, value_node))
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, "a name is no text", key_node.start_mark)
        if value is None:  # an empty list, or no settings
            value = [] if key in LIST_KEYS else {}
        pairs.append((key, value))
    return merged(pairs)


Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


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
    while text[position:].strip():
        position += len(text[position:]) - len(text[position:].lstrip())
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


def read_yaml(lines: list[Line]) -> list[Any]:
    """The one value of a YAML text."""
    if any(len(line.text) - len(line.text.lstrip()) > DEEPEST_INDENT for line in lines):
        raise RolloutError(f"The YAML from line {lines[0].number} on {DEEP}.")
    try:
        return [yaml.load("\n".join(line.text for line in lines), Loader=Loader)]
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark.line if error.problem_mark else 0
        number = lines[min(at, len(lines) - 1)].number
        raise RolloutError(
            f"Line {number} is no YAML ({error.problem}); give all of the output of EXPLAIN (FORMAT YAML)."
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError, AttributeError, TypeError):
        raise RolloutError(f"The YAML from line {lines[0].number} on cannot be read as a plan.") from None
