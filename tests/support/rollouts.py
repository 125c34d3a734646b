"""Rollout folders written for a test, and facts made up by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgrollout.rollout.load import load_rollout

PHASE = """\
title: {name}
objective: something
expected_duration_minutes: {{min: 1, max: 2}}
needs: [{needs}]
"""
NO_WAY_BACK = "DROP VIEW nothing;"


def write_rollout(root: Path, files: Mapping[str, str]) -> Path:
    """Writes `files` (path below `root`: text); phase.yml and rollback.sql where the test does not care.

    A phase needs all before it.
    """
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if path.name == "apply.sql" and not (path.parent / "rollback.sql").exists():
            (path.parent / "rollback.sql").write_text(files.get(f"{Path(name).parent}/rollback.sql", NO_WAY_BACK))
    earlier: list[str] = []
    for phase in sorted(root.glob("phase*")):
        if not (phase / "phase.yml").exists():
            (phase / "phase.yml").write_text(PHASE.format(name=phase.name, needs=", ".join(earlier)))
        earlier.append(phase.name)
    return root


def rollout_of(root: Path, files: Mapping[str, str]) -> dict[str, Any]:
    """The rollout of `files`; a text that is no path is apply.sql of the migration of that name in phase1."""
    paths = {(name if "/" in name else f"phase1/{name}/apply.sql"): text for name, text in files.items()}
    return load_rollout(str(write_rollout(root, paths)))
