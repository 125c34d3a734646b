"""The remedy for words that tests/integration/test_connections.py does not hear from a server."""

from __future__ import annotations

import pytest

from pgrollout.connection import connection_remedy

NO_ENTRY = 'FATAL: no pg_hba.conf entry for host "10.0.0.7", user "rollout", database "agent_hive", '


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (NO_ENTRY + "no encryption", "Have pg_hba.conf of the server admit this user"),
        # libpq tried twice: it is the password that is wrong
        (f'FATAL: password authentication failed for user "rollout" {NO_ENTRY}no encryption', "Check postgresql_user"),
        ('FATAL: Peer authentication failed for user "rollout"', "By this socket the server lets in a role only"),
        ('FATAL: role "rolout" does not exist', "Check postgresql_user."),
        ("FATAL: remaining connection slots are reserved for superusers", "Wait until the server has room"),
        ("server does not support SSL, but SSL was required", "Switch ssl on in the server"),
        ('private key file "/etc/x.key" has group or world access', "Check postgresql_ssl_cert and postgresql_ssl_key"),
        ('could not translate host name "db1" to address', "Check postgresql_host and postgresql_port"),
        ("something new", "Check postgresql_host, postgresql_port, postgresql_db, postgresql_user"),
    ],
)
def test_the_remedy_fits_the_words(words: str, remedy: str) -> None:
    assert connection_remedy(words).startswith(remedy)
