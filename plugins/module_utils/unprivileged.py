# Copyright: contributors of this project
# GNU General Public License v3.0 or later (see LICENSE)
"""Running PostgreSQL as root's caller: it refuses to be root itself."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import subprocess

# root looks like `nobody` in here: no user is made and no owner is changed.
NAMESPACE = ("unshare", "--user", "--map-user=65534", "--map-group=65534", "--")


@functools.lru_cache(maxsize=None)  # noqa: UP033  (a target host's Python may be older than the controller's)
def namespace_works() -> bool:
    if not shutil.which("unshare"):
        return False
    return not subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode


def account() -> str | None:
    """Name of an existing account for `runuser`: postgres where there is one, else nobody."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return name
    return None


def prefix(as_account: str | None) -> list[str]:
    """What to put before a command line of PostgreSQL, for `runuser` if an account is named."""
    if os.geteuid() != 0:
        return []
    return ["runuser", "-u", as_account, "--"] if as_account else list(NAMESPACE)
