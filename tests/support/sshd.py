"""A real sshd on loopback with keys and settings of its own, for as long as a test."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from demo.server import HOST, free_port
from tests.support.waiting import wait_until

CONFIG = """\
ListenAddress {host}
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
LogLevel VERBOSE
SetEnv {environment}
"""


class CannotRunError(Exception):
    """Why there is no sshd here."""


@dataclass(frozen=True)
class Sshd:
    """`variables` reach it as Ansible's host variables; `log` is what it says."""

    folder: Path
    port: int

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def variables(self) -> dict[str, object]:
        return {
            "ansible_host": HOST,
            "ansible_port": self.port,
            "ansible_user": getpass.getuser(),
            "ansible_ssh_private_key_file": str(self.folder / "user_key"),
            "ansible_ssh_common_args": f"-F none -o IdentitiesOnly=yes -o UserKnownHostsFile={self.folder}/known_hosts",
            "ansible_control_path_dir": str(self.folder / "cp"),  # short: it is the path of a socket
        }


def make_key(path: Path) -> str:
    """Writes a private key; its public half in one line."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    path.touch(mode=0o600)
    path.write_bytes(private)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode()


@contextlib.contextmanager
def running(folder: Path, environment: Mapping[str, str]) -> Iterator[Sshd]:
    """An sshd that lets the caller's own account in by key. `environment` is what its sessions get."""
    program = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if not program or not shutil.which("ssh"):
        raise CannotRunError("ssh or sshd is not installed (Debian: openssh-client, openssh-server)")
    sshd = Sshd(folder, free_port())
    (folder / "authorized_keys").write_text(make_key(folder / "user_key") + "\n")
    (folder / "known_hosts").write_text(f"[{HOST}]:{sshd.port} {make_key(folder / 'host_key')}\n")
    given = " ".join(f'"{name}={value}"' for name, value in environment.items())
    config = folder / "sshd_config"
    config.write_text(CONFIG.format(host=HOST, port=sshd.port, folder=folder, environment=given))
    tried = subprocess.run([program, "-t", "-f", str(config)], capture_output=True, text=True)
    if tried.returncode:
        raise CannotRunError(f"sshd does not run here: {tried.stderr.strip()}")
    process = subprocess.Popen([program, "-D", "-f", str(config), "-E", str(folder / "log")], start_new_session=True)
    try:
        wait_until(lambda: (folder / "log").exists() and "Server listening" in sshd.log, 30, "sshd listens")
        yield sshd
    finally:
        process.terminate()
        process.wait(30)
