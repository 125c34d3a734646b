"""What is known of a backup, in a sentence."""

from __future__ import annotations

from typing import Any

_WHERE = {
    "server": "into a server of its own",
    "database": "beside the original",
    "elsewhere": "by backup_external_restore",
}
_FEW = 5  # tables that are named


def backup_line(evidence: dict[str, Any]) -> str:
    """evidence: what the role backup leaves in __backup_evidence, {id, tables, rows, bytes, verified, verified_on,
    restore_seconds, amcheck, sampled, counted_only, written_meanwhile}; what a way does not know is left out."""
    parts = [f"{evidence[key]:,} {key}" for key in ("tables", "rows") if key in evidence]
    parts += [_size(evidence["bytes"])] if evidence.get("bytes") else []
    if not evidence["verified"]:
        return f"Backup {evidence['id']}: {', '.join([*parts, 'NOT verified (backup_verify: none)'])}."
    seconds = f"restored in {evidence['restore_seconds']} s {_WHERE[evidence['verified_on']]} and compared"
    parts.append(seconds + ("" if evidence.get("written_meanwhile") else ", row by row"))
    limits = [f"pg_amcheck {evidence['amcheck']}"] if evidence.get("amcheck") else []
    if evidence.get("written_meanwhile"):
        limits.append(f"written while it was made: {_named(evidence['written_meanwhile'])}")
    if evidence.get("sampled"):
        limits.append(f"of these only a sample, by key range: {_named(evidence['sampled'])}")
    if evidence.get("counted_only"):
        limits.append(f"only counted: {_named(evidence['counted_only'])}")
    return f"Backup {evidence['id']}: {'; '.join([', '.join(parts), *limits])}."


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def _size(count: int) -> str:
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:,.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
