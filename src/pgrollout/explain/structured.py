"""Plans in JSON, YAML and XML, each in the shape of EXPLAIN (FORMAT JSON)."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any
from xml.etree import ElementTree

import yaml

from pgrollout.errors import RolloutError
from pgrollout.explain.lines import Line
from pgrollout.explain.values import LIST_KEYS, key_of_tag, typed

# With libyaml where PyYAML has it: ten times as fast.
SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST_INDENT = 5_000  # of a plan in YAML; the loader would end the process on much deeper ones
DEEP = "is nested too deeply to be a plan"


class Loader(SafeLoader):  # type: ignore[misc]
    """YAML as PostgreSQL writes it, with keys that come twice put together."""


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    pairs = [(loader.construct_object(key, deep=True), loader.construct_object(value, deep=True))
             for key, value in node.value]
    if not all(isinstance(key, Hashable) for key, _ in pairs):
        raise yaml.constructor.ConstructorError(None, None, "a key is no text", node.start_mark)
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


def read_xml(lines: list[Line]) -> list[Any]:
    """The statements of an <explain> element; one of auto_explain holds its plan without a <Query> around it."""
    text = "\n".join(line.text for line in lines)
    if "<!" in text:
        raise RolloutError(f"The XML from line {lines[0].number} on has a declaration, which no plan has.")
    try:
        explain = ElementTree.fromstring(text)
        queries = [child for child in explain if _tag(child) == "Query"]
        return [_element("Query", query) for query in queries or [explain]]
    except ElementTree.ParseError as error:
        number = lines[min(error.position[0], len(lines)) - 1].number
        raise RolloutError(
            f"Line {number} is no XML ({error}); give all of the output of EXPLAIN (FORMAT XML)."
        ) from None
    except (RecursionError, ValueError):
        raise RolloutError(f"The XML from line {lines[0].number} on {DEEP}.") from None


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _element(key: str, element: ElementTree.Element) -> Any:
    """The value of an element: XML has neither types nor lists, so its name and its children's tell what it is."""
    children = [(key_of_tag(_tag(child)), child) for child in element]
    if not children:
        text = element.text or ""
        return [] if key in LIST_KEYS else {} if key == "Settings" and not text.strip() else typed(key, text)
    if key == "Settings":
        return {_tag(child): child.text or "" for child in element}
    if all(name == "Item" for name, _ in children):
        return [child.text or "" for _, child in children]
    values = [(name, _element(name, child)) for name, child in children]
    if key in LIST_KEYS:
        return [value for _, value in values]
    return merged(values)
