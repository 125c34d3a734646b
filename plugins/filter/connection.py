"""Filter over connection failures. The function lives in the package pgrollout, where it is tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

try:
    from pgrollout.connection import connection_remedy
except ImportError as error:
    raise AnsibleFilterError(
        "The Python package 'pgrollout' of this project is not installed; run 'make setup' first."
    ) from error


class FilterModule:
    """The filter of this file; its sidecar has the documentation."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"connection_remedy": connection_remedy}
