"""Plans in XML, which has neither types nor lists: names tell what is what."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from pgrollout.errors import RolloutError
from pgrollout.explain.lines import Line
from pgrollout.explain.structured import merged
from pgrollout.explain.values import LIST_KEYS, key_of_tag, typed

SORT_GROUPS = "Incremental Sort Groups"  # XML's one tag for full-sort and pre-sorted groups


def read_xml(lines: list[Line]) -> list[Any]:
    """The statements of an <explain> element; one of auto_explain holds its plan without a <Query> around it."""
    text = "\n".join(line.text for line in lines)
    first = lines[0].number
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise RolloutError(f"The XML from line {first} on declares a document type, which no plan does.")
    try:
        explain = ElementTree.fromstring(text)
        queries = [child for child in explain if _name(child) == "Query"]
        return [_value("Query", query) for query in queries or [explain]]
    except ElementTree.ParseError as error:
        number = lines[min(error.position[0], len(lines)) - 1].number
        raise RolloutError(
            f"Line {number} is no XML ({error}); give all of the output of EXPLAIN (FORMAT XML)."
        ) from None
    except (RecursionError, ValueError, AttributeError, TypeError):
        raise RolloutError(f"The XML from line {first} on is not the XML of a plan.") from None


def _name(element: ElementTree.Element) -> str:
    """The tag without its namespace."""
    return element.tag.rpartition("}")[2]


def _value(key: str, element: ElementTree.Element) -> Any:
    """What an element holds, as JSON has it."""
    children = [(key_of_tag(_name(child)), child) for child in element]
    if key == "Settings":
        return {_name(child): child.text or "" for child in element}
    if not children:
        return [] if key in LIST_KEYS else typed(key, element.text or "")
    if all(name == "Item" for name, _ in children):
        return [child.text or "" for _, child in children]
    if key in LIST_KEYS:
        return [_value(name, child) for name, child in children]
    groups = [_sort_group(child) for name, child in children if name == SORT_GROUPS]
    rest = [(name, _value(name, child)) for name, child in children if name != SORT_GROUPS]
    # Pre-sorted groups come after full-sort ones and never without them.
    return merged([*rest, *zip(("Full-sort Groups", "Pre-sorted Groups"), groups, strict=False)])


def _sort_group(element: ElementTree.Element) -> dict[str, Any]:
    """Groups of an incremental sort. Memory comes before disk, and disk alone where each method is an external one."""
    values = [(key, _value(key, child)) for child in element for key in (key_of_tag(_name(child)),)]
    group = dict(values)
    spaces = [value for key, value in values if key == "Sort Space"]
    group.pop("Sort Space", None)
    external = all(method.startswith("external") for method in group["Sort Methods Used"])
    names = ("Sort Space Disk",) if external and len(spaces) == 1 else ("Sort Space Memory", "Sort Space Disk")
    return {**group, **dict(zip(names, spaces, strict=False))}
