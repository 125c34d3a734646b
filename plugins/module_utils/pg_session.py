# Copyright: contributors of this project
# GNU General Public License v3.0 or later (see LICENSE)
"""How this project's modules reach a server: options that they share, for libpq and for PostgreSQL's programs."""

from __future__ import annotations

import os
from typing import Any

try:
    import psycopg2
except ImportError:
    psycopg2 = None


class Refused(Exception):  # noqa: N818  (it reads as what it is: raise Refused(...))
    """A sentence for the operator: what was found, what was expected, what to do."""


# Of a module's arguments.
OPTIONS: dict[str, dict[str, Any]] = {
    "login_host": {"type": "str"},
    "login_port": {"type": "int", "default": 5432},
    "login_user": {"type": "str", "default": "postgres"},
    "login_password": {"type": "str", "no_log": True},
    "login_db": {"type": "str", "required": True},
    "passfile": {"type": "path", "no_log": False},
    "ssl_mode": {"type": "str", "default": "prefer"},
    "ca_cert": {"type": "path"},
    "ssl_cert": {"type": "path"},
    "ssl_key": {"type": "path", "no_log": False},
}
# Option, its name in libpq, and in the environment of PostgreSQL's programs.
NAMES = (
    ("login_host", "host", "PGHOST"),
    ("login_port", "port", "PGPORT"),
    ("login_user", "user", "PGUSER"),
    ("login_password", "password", "PGPASSWORD"),
    ("login_db", "dbname", "PGDATABASE"),
    ("passfile", "passfile", "PGPASSFILE"),
    ("ssl_mode", "sslmode", "PGSSLMODE"),
    ("ca_cert", "sslrootcert", "PGSSLROOTCERT"),
    ("ssl_cert", "sslcert", "PGSSLCERT"),
    ("ssl_key", "sslkey", "PGSSLKEY"),
)


def libpq(params: dict[str, Any], application: str) -> dict[str, Any]:
    """Arguments for psycopg2.connect."""
    given = {name: params[option] for option, name, _ in NAMES if params[option] not in (None, "")}
    return {**given, "application_name": application, "connect_timeout": 10}


def environment(params: dict[str, Any], application: str) -> dict[str, str]:
    """The same connection for PostgreSQL's programs; the environment, unlike the arguments, is not shown by ps.

    What the host's own environment says of libpq, such as PGPASSWORD, holds for them as it does for psycopg2.
    """
    given = {name: str(params[option]) for option, _, name in NAMES if params[option] not in (None, "")}
    return {**os.environ, **given, "PGAPPNAME": application, "PGCONNECT_TIMEOUT": "10", "LC_ALL": "C"}


def connect(params: dict[str, Any], application: str) -> Any:
    """An autocommit session that no server-side timeout ends while it waits for a program."""
    session = psycopg2.connect(**libpq(params, application))
    session.autocommit = True
    with session.cursor() as cursor:
        for setting in ("statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"):
            cursor.execute("SELECT set_config(name, '0', false) FROM pg_settings WHERE name = %s", (setting,))
        cursor.execute("SET client_connection_check_interval = '1s'")
    return session


def where(params: dict[str, Any]) -> str:
    """For messages: the server and the database."""
    return f"{params['login_host'] or 'local socket'}, port {params['login_port']}, database {params['login_db']}"
