"""Every way to a server that docs/inventory.md names, and what is said when one of them is closed.

The hosts of an inventory differ in their way alone, so one playbook tries them all at once. The server's log tells
which way each came.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from demo.load import load
from demo.server import MIGRATION_ROLE, Server
from tests.conftest import Database, Playbook
from tests.support import sshd
from tests.support.certificates import Authority
from tests.support.probe import lives
from tests.support.rollouts import write_rollout
from tests.support.runs import words

if TYPE_CHECKING:
    from tests.conftest import Run

DATABASE = "agent_hive"
HOST_NAME = "localhost"  # what the server's certificate is for; 127.0.0.1 is another name
CERTIFIED = "certified"
HBA = f"hostssl all {CERTIFIED} 127.0.0.1/32 cert\nhostssl all {CERTIFIED} ::1/128 cert\n"


@dataclass(frozen=True)
class Guarded:
    """A server that speaks TLS, asks the role `certified` for a certificate and logs who came by which way."""

    server: Server
    authority: Authority
    stranger: Authority

    def base(self) -> dict[str, Any]:
        return {
            "postgresql_host": HOST_NAME,
            "postgresql_port": self.server.port,
            "postgresql_db": DATABASE,
            "postgresql_user": MIGRATION_ROLE,
            "postgresql_passfile": str(self.server.passfile),
            "postgresql_bin_dir": self.server.connection["client_bin_dir"],
        }

    def local(self, **changes: Any) -> dict[str, Any]:
        return self.base() | {"ansible_connection": "local"} | changes

    def verified(self, **changes: Any) -> dict[str, Any]:
        trusted = {"postgresql_ssl_mode": "verify-full", "postgresql_ca_cert": str(self.authority.ca)}
        return self.local(**trusted | changes)

    def ways(self, since: int) -> dict[str, set[str]]:
        """{role: the ways its sessions came} by the log from `since` on: socket, tcp, tls, certificate."""
        text = self.server.log.read_text(errors="replace")[since:]
        came = dict(re.findall(r"\[(\d+)\] .*connection received: host=(\S+)", text))
        by = dict(re.findall(r"\[(\d+)\] .*connection authenticated: .* method=(\S+)", text))
        found: dict[str, set[str]] = {}
        for pid, role, rest in re.findall(r"\[(\d+)\] .*connection authorized: user=(\S+) (.*)", text):
            way = "socket" if came[pid] == "[local]" else "tls" if "SSL enabled" in rest else "tcp"
            found.setdefault(role, set()).add("certificate" if by.get(pid) == "cert" else way)
        return found

    def said(self) -> int:
        return len(self.server.log.read_text(errors="replace"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    certificates = tmp_path_factory.mktemp("certificates")
    authority, stranger = Authority(certificates / "ours"), Authority(certificates / "strangers")
    certificate, key = authority.issue("server", HOST_NAME)
    with tempfile.TemporaryDirectory(prefix="pgrollout-") as folder:
        server = Server(folder, fsync=False)
        try:
            server.start()
            hba = server.data / "pg_hba.conf"
            hba.write_text(HBA + hba.read_text())
            for source, name in ((certificate, "server.crt"), (key, "server.key"), (authority.ca, "root.crt")):
                (server.data / name).write_bytes(source.read_bytes())
                (server.data / name).chmod(0o600)
                server._give(server.data / name)
            with contextlib.closing(server.connect()) as connection, connection.cursor() as cursor:
                cursor.execute(f"CREATE ROLE {CERTIFIED} LOGIN CREATEDB IN ROLE {MIGRATION_ROLE}, pg_monitor")
                cursor.execute("ALTER SYSTEM SET ssl_ca_file = 'root.crt'")
                cursor.execute("ALTER SYSTEM SET log_connections = on")
                cursor.execute("ALTER SYSTEM SET ssl = on")
                cursor.execute("SELECT pg_reload_conf()")
            load(server, DATABASE, "0.1", data=False)
            yield Guarded(server, authority, stranger)
        finally:
            server.stop("immediate")


def play(
    folder: Path, name: str, hosts: Mapping[str, Mapping[str, Any]], *args: str, env: Mapping[str, str] | None = None
) -> Run:
    """A playbook over hosts of production, described as docs/inventory.md says."""
    folder.mkdir(exist_ok=True)
    inventory = folder / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"prod": {"hosts": {host: dict(given) for host, given in hosts.items()}}}))
    return Playbook(folder)(name, "-i", str(inventory), "-l", ",".join(hosts), *args, check=False, env=env)


def sentence(run: Run, host: str) -> str:
    """The last that was said of a host: why it was not reached, and what to do."""
    said = words(run).replace("''", "'")  # as YAML doubles them
    found = re.findall(rf"{host}: no connection to .*?(?= fatal: | PLAY RECAP| Origin: | \[ERROR\])", said)
    assert found, run.output
    print(found[-1])
    return str(found[-1])


# ---- the ways that are open


def test_by_socket_by_tcp_by_tls_and_with_a_client_certificate(guarded: Guarded, tmp_path: Path) -> None:
    crt, key = guarded.authority.issue(CERTIFIED)
    certified = {
        "postgresql_user": CERTIFIED,
        "postgresql_passfile": "",
        "postgresql_ssl_cert": str(crt),
        "postgresql_ssl_key": str(key),
    }
    roles = {"by-socket": "w_socket", "by-tcp": "w_tcp", "by-tls": "w_tls"}
    with contextlib.closing(guarded.server.connect()) as connection, connection.cursor() as cursor:
        for role in roles.values():
            cursor.execute(f"CREATE ROLE {role} LOGIN PASSWORD %s IN ROLE {MIGRATION_ROLE}", (f"secret of {role}",))
    passfile = tmp_path / "passfile"
    passfile.touch(mode=0o600)
    passfile.write_text("".join(f"*:*:{DATABASE}:{role}:secret of {role}\n" for role in roles.values()))
    own = {"postgresql_passfile": str(passfile)}
    since = guarded.said()
    run = play(
        tmp_path / "ansible",
        "status.yml",
        {
            "by-socket": guarded.local(postgresql_user="w_socket", postgresql_host=guarded.server.socket_dir, **own),
            "by-tcp": guarded.local(postgresql_user="w_tcp", postgresql_ssl_mode="disable", **own),
            "by-tls": guarded.verified(postgresql_user="w_tls", **own),
            "by-certificate": guarded.verified(**certified),
        },
    )
    assert run.rc == 0, run.output
    assert run.changed == 0
    assert {host: counts["failed"] for host, counts in run.recap.items()} == dict.fromkeys(
        ["by-socket", "by-tcp", "by-tls", "by-certificate"], 0
    )
    ways = guarded.ways(since)
    assert {role: ways[role] for role in (*roles.values(), CERTIFIED)} == {
        "w_socket": {"socket"},
        "w_tcp": {"tcp"},
        "w_tls": {"tls"},
        CERTIFIED: {"certificate"},
    }


@pytest.mark.ci
def test_a_backup_by_tls_with_a_client_certificate(guarded: Guarded, tmp_path: Path) -> None:
    """pg_dump and pg_restore are given the same settings as the modules."""
    crt, key = guarded.authority.issue(CERTIFIED)
    host = guarded.verified(
        postgresql_user=CERTIFIED,
        postgresql_passfile="",
        postgresql_ssl_cert=str(crt),
        postgresql_ssl_key=str(key),
        backup_dir=str(tmp_path / "backups"),
    )
    since = guarded.said()
    run = play(tmp_path / "ansible", "backup.yml", {"certified": host})
    assert run.rc == 0, run.output
    assert "tables, 0 rows" in words(run)
    assert guarded.ways(since)[CERTIFIED] == {"certificate"}


# ---- the ways that are closed


@pytest.fixture(scope="module")
def closed(guarded: Guarded, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One playbook over hosts that each have one thing wrong."""
    folder = tmp_path_factory.mktemp("closed")
    crt, key = guarded.stranger.issue(CERTIFIED)
    nobody = folder / "passfile"
    nobody.touch(mode=0o600)
    hosts = {
        "fine": guarded.local(),
        "wrong-password": guarded.local(postgresql_passfile="", postgresql_password="not-the-secret"),
        "no-password": guarded.local(postgresql_passfile=str(nobody)),
        "wrong-port": guarded.local(postgresql_port=1),
        "wrong-socket": guarded.local(postgresql_host=str(folder)),
        "wrong-database": guarded.local(postgresql_db="agent_bee"),
        "wrong-authority": guarded.verified(postgresql_ca_cert=str(guarded.stranger.ca)),
        "missing-authority": guarded.verified(postgresql_ca_cert=str(folder / "ca.crt")),
        "wrong-name": guarded.verified(postgresql_host="127.0.0.1"),
        "no-certificate": guarded.verified(postgresql_user=CERTIFIED),
        "wrong-certificate": guarded.verified(
            postgresql_user=CERTIFIED, postgresql_ssl_cert=str(crt), postgresql_ssl_key=str(key)
        ),
    }
    return play(folder / "ansible", "status.yml", hosts)


CLOSED = {
    "wrong-password": ("password authentication failed for user", "Check postgresql_user and its password:"),
    "no-password": ("no password supplied", "Check postgresql_user and its password:"),
    "wrong-port": ("Connection refused", "Check postgresql_host and postgresql_port,"),
    "wrong-socket": ("No such file or directory", "Check postgresql_host and postgresql_port,"),
    "wrong-database": ('database "agent_bee" does not exist', "Check postgresql_db."),
    "wrong-authority": ("certificate verify failed", "not signed by the authority in postgresql_ca_cert"),
    "missing-authority": ("does not exist", "Set postgresql_ca_cert to the file of the authority"),
    "wrong-name": ('does not match host name "127.0.0.1"', "Set postgresql_host to a name that the server's"),
    "no-certificate": ("client certificate", "Check postgresql_ssl_cert and postgresql_ssl_key:"),
    "wrong-certificate": ("alert unknown ca", "Check postgresql_ssl_cert and postgresql_ssl_key:"),
}


@pytest.mark.parametrize("case", CLOSED)
def test_a_way_that_is_closed_says_why_and_what_to_do(closed: Run, case: str) -> None:
    why, remedy = CLOSED[case]
    said = sentence(closed, case)
    assert why in said
    assert remedy in said
    assert closed.rc != 0
    assert closed.recap[case]["failed"] == 1
    assert "not-the-secret" not in closed.output


def test_of_several_hosts_those_that_answer_are_not_blamed_and_nothing_goes_on(closed: Run) -> None:
    assert closed.recap["fine"]["failed"] == 0
    assert "fine: " not in words(closed).replace("ok: [fine]", "")
    assert "TASK [Plan" not in closed.output


# ---- over SSH


@pytest.fixture
def by_ssh(guarded: Guarded) -> Iterator[sshd.Sshd]:
    """An sshd whose sessions know a password that nothing else does: with it, a module has run over there."""
    secret = guarded.server._password(MIGRATION_ROLE)
    with tempfile.TemporaryDirectory(prefix="pgrollout-") as folder, contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(sshd.running(Path(folder), {"PGPASSWORD": secret}))
        except sshd.CannotRunError as error:
            pytest.skip(str(error))
        yield started


@pytest.mark.ci
def test_over_ssh_the_modules_run_at_the_server(guarded: Guarded, by_ssh: sshd.Sshd, tmp_path: Path) -> None:
    there = guarded.base() | by_ssh.variables | {"ansible_python_interpreter": sys.executable}
    there["postgresql_passfile"] = ""
    hosts = {
        "by-socket": there | {"postgresql_host": guarded.server.socket_dir},
        "by-tls": there | {"postgresql_ssl_mode": "verify-full", "postgresql_ca_cert": str(guarded.authority.ca)},
    }
    since = guarded.said()
    run = play(tmp_path / "ansible", "status.yml", hosts)
    assert run.rc == 0, run.output
    assert guarded.ways(since)[MIGRATION_ROLE] == {"socket", "tls"}
    assert "Accepted publickey for" in by_ssh.log
    # the same without SSH has no password
    run = play(tmp_path / "ansible", "status.yml", {"here": guarded.local(postgresql_passfile="")})
    assert "no password supplied" in sentence(run, "here")


@pytest.mark.ci
def test_over_ssh_the_probe_measures_at_the_server_and_ends_with_its_run(
    guarded: Guarded, by_ssh: sshd.Sshd, tmp_path: Path
) -> None:
    files = {"phase1/001_one/apply.sql": "CREATE INDEX CONCURRENTLY by_ssh ON agents (name);"}
    there = guarded.base() | by_ssh.variables | {"ansible_python_interpreter": sys.executable}
    there |= {"postgresql_host": guarded.server.socket_dir, "postgresql_passfile": ""}
    there |= {"rollout_dir": str(write_rollout(tmp_path / "sql", files)), "backup_dir": str(tmp_path / "backups")}
    run = play(tmp_path / "ansible", "migrate.yml", {"there": there})
    assert run.rc == 0, run.output
    assert "downtime probe: 1 table and the commit" in words(run)
    assert "longest stall" in words(run)
    database = Database(DATABASE, guarded.server)
    ((reason, pid),) = database.query("SELECT reason, pid FROM pgrollout.probe")
    assert reason == "the work is done"
    assert not lives(pid)
    measured = "SELECT sum(cardinality(waits_ms)) FROM pgrollout.probe_sample WHERE table_name = 'public.agents'"
    assert database.value(measured) > 0


@pytest.mark.ci
def test_over_ssh_what_is_closed_says_why_and_what_to_do(guarded: Guarded, by_ssh: sshd.Sshd, tmp_path: Path) -> None:
    there = guarded.base() | by_ssh.variables | {"ansible_python_interpreter": sys.executable}
    wrong, unknown = tmp_path / "wrong_key", tmp_path / "known_hosts"
    sshd.make_key(wrong)
    unknown.touch()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    arguments = str(there["ansible_ssh_common_args"])
    # ControlPath=none: each to make a connection of its own
    alone = there | {"ansible_ssh_common_args": f"{arguments} -o ControlPath=none"}
    hosts = {
        "nothing-listens": alone | {"ansible_port": 1},
        "wrong-key": alone | {"ansible_ssh_private_key_file": str(wrong)},
        "unknown-host": alone
        | {"ansible_ssh_common_args": f"-F none -o ControlPath=none -o UserKnownHostsFile={unknown}"},
        "no-driver": there | {"ansible_python_interpreter": str(tmp_path / "bare" / "bin" / "python")},
    }
    run = play(tmp_path / "ansible", "status.yml", hosts)
    assert run.rc != 0
    assert "Check ansible_host, ansible_port and that sshd runs there" in sentence(run, "nothing-listens")
    assert "Check ansible_user and ansible_ssh_private_key_file" in sentence(run, "wrong-key")
    assert "Compare the host's key with its owner's" in sentence(run, "unknown-host")
    assert "Install psycopg2 for that Python (Debian: python3-psycopg2)" in sentence(run, "no-driver")
