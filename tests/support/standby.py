"""A hot standby of a throwaway server, made by pg_basebackup and streaming over loopback."""

from __future__ import annotations

import shutil
from pathlib import Path

from demo.server import SUPERUSER, Server, ThrowawayError


class Standby(Server):
    """`start()` copies the primary and begins to stream; the primary sees it as `name`."""

    def __init__(self, folder: str | Path, primary: Server, name: str) -> None:
        super().__init__(folder, fsync=False)
        self._primary, self._name = primary, name

    def _make_passfile(self) -> None:
        shutil.copy(self._primary.passfile, self.passfile)
        self.passfile.chmod(0o600)

    def _make_cluster(self) -> None:
        if self.data.exists():
            return
        self.data.mkdir(mode=0o700)
        self._give(self.data)
        target = (
            f"host={self._primary.host} port={self._primary.port} user={SUPERUSER} "
            f"password={self._password(SUPERUSER)} application_name={self._name}"
        )
        # Some servers come without it. A newer one serves too, but not what its --write-recovery-conf writes.
        program = str(Path(self._primary.connection["client_bin_dir"]) / "pg_basebackup")
        done = self._run(program, "-d", target, "-D", str(self.data), "--checkpoint=fast", "--no-sync")
        if done.returncode:
            raise ThrowawayError(f"pg_basebackup failed: {done.stderr}")
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(f"primary_conninfo = '{target}'\n")
        (self.data / "standby.signal").touch()
        self._give(self.data / "standby.signal")

    def _make_roles(self) -> None:
        self.connect().close()  # they come with the copy; a connection shows that it takes some
