"""What to do when a server cannot be reached, from the words of libpq, ssh or Ansible."""

from __future__ import annotations

import re

_DEFAULT = (
    "Check postgresql_host, postgresql_port, postgresql_db, postgresql_user and the password file "
    "or vault_postgresql_password."
)

# The first that matches counts. With ssl_mode prefer libpq tries twice and says both: what stopped the better try
# comes first.
_REMEDIES = (
    (
        r"psycopg2?\)? .*Python|No module named '?psycopg",
        "Install psycopg2 for that Python (Debian: python3-psycopg2), or name one that has it in "
        "ansible_python_interpreter.",
    ),
    (
        r"Host key verification failed|authenticity of host|HOST IDENTIFICATION HAS CHANGED",
        "Compare the host's key with its owner's and put it into known_hosts; Ansible answers no questions.",
    ),
    (
        r"Permission denied \(",
        "Check ansible_user and ansible_ssh_private_key_file: ssh to that host must work without a question.",
    ),
    (
        r"via ssh|kex_exchange|ssh:",
        "Check ansible_host, ansible_port and that sshd runs there; for a database reached by TCP from here "
        "set ansible_connection: local.",
    ),
    (
        r"root certificate file .* (does not exist|could not)|could not read root certificate",
        "Set postgresql_ca_cert to the file of the authority that signed the server's certificate, on the host where "
        "the modules run.",
    ),
    (
        r"server certificate for .* does not match host name",
        "Set postgresql_host to a name that the server's certificate holds, or have the certificate issued for this "
        "name.",
    ),
    (
        r"certificate verify failed|signature failure",
        "The server's certificate is not signed by the authority in postgresql_ca_cert, or has expired: set "
        "postgresql_ca_cert to the right file, and make sure that this is the right server.",
    ),
    (
        r"server does not support SSL",
        "Switch ssl on in the server, or lower postgresql_ssl_mode if the network may be trusted.",
    ),
    (
        r"client certificate|certificate authentication failed|private key file|could not (load|read) certificate file"
        r"|certificate file .* does not exist|tlsv1 alert|sslv3 alert",
        "Check postgresql_ssl_cert and postgresql_ssl_key: a certificate for postgresql_user from an authority that "
        "the server trusts, and its key with mode 0600, on the host where the modules run.",
    ),
    (
        r"password authentication failed|no password supplied|empty password",
        "Check postgresql_user and its password: a line for this host, port, database and user in postgresql_passfile "
        "(mode 0600, on the host where the modules run), or vault_postgresql_password.",
    ),
    (
        r"(Peer|Ident) authentication failed",
        "By this socket the server lets in a role only from the account of its name: use that account (ansible_user, "
        "ansible_become_user), or change pg_hba.conf.",
    ),
    (
        r"no pg_hba\.conf entry|pg_hba\.conf rejects",
        "Have pg_hba.conf of the server admit this user, database, address and encryption, or set postgresql_ssl_mode.",
    ),
    (r"database .* does not exist", "Check postgresql_db."),
    (r"role .* (does not exist|is not permitted to log in)", "Check postgresql_user."),
    (
        r"starting up|shutting down|in recovery mode|too many clients|connection slots",
        "Wait until the server has room, then start the same command again.",
    ),
    (
        r"Connection refused|timeout expired|timed out|could not translate host name|Network is unreachable"
        r"|No route to host|No such file or directory",
        "Check postgresql_host and postgresql_port, that the server runs, and that nothing between here and there "
        "stops the connection.",
    ),
)


def connection_remedy(words: str) -> str:
    """One sentence that says what to do about a refused or failed connection of which `words` is the reason."""
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, words, re.IGNORECASE)), _DEFAULT)
