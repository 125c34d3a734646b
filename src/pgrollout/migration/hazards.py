"""What has no safe form: the fixed list of hazards, and the author's `-- Accept: <hazard> because <reason>`."""

from __future__ import annotations

import difflib
import re

from pgrollout.errors import RolloutError

# name: what it means, for docs and messages.
HAZARDS = {
    "rewrite": "the table is written anew while nobody can read or write it",
    "scan": "every row is read while nobody can write",
    "narrowing": "a type that holds less than the one before",
    "rename": "the application asks for the old name until it is deployed anew",
    "drop-column": "the application may still use the column",
    "drop-table": "the application may still use the table",
    "drop-object": "the application may still use the view, function, type, sequence or schema",
    "gate-index": "a gate file relies on the index that is dropped",
    "truncate": "all rows go, and nobody can read or write meanwhile",
    "not-null": "the application's INSERT fails if it does not write the column",
    "replace": "another definition stands there, which a rollback cannot bring back",
    "on-delete-cascade": "a deleted row takes many others with it in one transaction",
}
WAITS = {
    "ACCESS EXCLUSIVE": "its readers and writers wait",
    "EXCLUSIVE": "its writers wait",
    "SHARE ROW EXCLUSIVE": "its writers wait",
    "SHARE": "its writers wait",
}
_ACCEPT = re.compile(r"^--\s*accept\s*:\s*(?P<text>.*?)\s*$", re.IGNORECASE)
_FORM = re.compile(r"(?P<hazard>[a-z-]+) because (?P<reason>\S.*)")


def accepted_hazard(comment: str, where: str) -> tuple[str, str] | None:
    """(hazard, reason) of an `-- Accept:` line, None of another comment; one that cannot be honoured is an error."""
    line = _ACCEPT.match(comment)
    if not line:
        return None
    form = _FORM.fullmatch(line["text"])
    if not form:
        raise RolloutError(
            f"{where}: found '{comment.strip()}', expected '-- Accept: <hazard> because <reason>' with one hazard of "
            f"{', '.join(HAZARDS)}; the reason goes to the ledger and the report."
        )
    if form["hazard"] not in HAZARDS:
        near = difflib.get_close_matches(form["hazard"], HAZARDS, 1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise RolloutError(f"{where}: unknown hazard '{form['hazard']}'{hint} Known: {', '.join(HAZARDS)}.")
    return form["hazard"], form["reason"]


def risk(hazard: str, what: str, recipe: str, table: str = "", mode: str = "") -> dict[str, str]:
    """A hazard of one statement: {hazard, reason}, the reason with lock, who waits and what to do instead."""
    lock = f" under {mode} on {table}, so {WAITS[mode]} until it is over" if mode else ""
    return {
        "hazard": hazard,
        "reason": f"{what}{lock}; {recipe}, or write '-- Accept: {hazard} because <reason>' above it",
    }


def settle(risks: list[dict[str, str]], accepts: list[tuple[str, str]]) -> tuple[str, list[dict[str, str]]]:
    """(refusal or '', [{hazard, reason}] that the author accepted) of a statement with `risks`."""
    given = dict(accepts)
    present = {risk["hazard"] for risk in risks}
    open_risks = [risk["reason"] for risk in risks if risk["hazard"] not in given]
    taken = [{"hazard": name, "reason": reason} for name, reason in accepts if name in present]
    return " ".join(open_risks), taken
