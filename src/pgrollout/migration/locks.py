"""Lock modes, as PostgreSQL's documentation has them (explicit locking, and each command's own page)."""

from __future__ import annotations

ACCESS_SHARE = "ACCESS SHARE"
ROW_SHARE = "ROW SHARE"
ROW_EXCLUSIVE = "ROW EXCLUSIVE"
SHARE_UPDATE_EXCLUSIVE = "SHARE UPDATE EXCLUSIVE"
SHARE = "SHARE"
SHARE_ROW_EXCLUSIVE = "SHARE ROW EXCLUSIVE"
EXCLUSIVE = "EXCLUSIVE"
ACCESS_EXCLUSIVE = "ACCESS EXCLUSIVE"

# From weak to strong.
MODES = (
    ACCESS_SHARE,
    ROW_SHARE,
    ROW_EXCLUSIVE,
    SHARE_UPDATE_EXCLUSIVE,
    SHARE,
    SHARE_ROW_EXCLUSIVE,
    EXCLUSIVE,
    ACCESS_EXCLUSIVE,
)

# "Explicit Locking" in PostgreSQL's documentation: each mode with the weakest that it conflicts with; it conflicts with
# all from there on, but for SHARE with itself.
_CONFLICTS_FROM = {
    ACCESS_SHARE: ACCESS_EXCLUSIVE,
    ROW_SHARE: EXCLUSIVE,
    ROW_EXCLUSIVE: SHARE,
    SHARE_UPDATE_EXCLUSIVE: SHARE_UPDATE_EXCLUSIVE,
    SHARE: ROW_EXCLUSIVE,
    SHARE_ROW_EXCLUSIVE: ROW_EXCLUSIVE,
    EXCLUSIVE: ROW_SHARE,
    ACCESS_EXCLUSIVE: ACCESS_SHARE,
}


def conflict(one: str, other: str) -> bool:
    """Whether two lock modes on one relation exclude each other."""
    return MODES.index(other) >= MODES.index(_CONFLICTS_FROM[one]) and (one, other) != (SHARE, SHARE)


def lock(relation: str, mode: str) -> dict[str, str]:
    """A lock of a step."""
    return {"relation": relation, "mode": mode}
