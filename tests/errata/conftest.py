"""Connections of the migration role to the two kinds of database, closed after the test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def full(database: Any) -> Iterator[Any]:
    """A connection to a database with the baseline's data (30,000 tasks)."""
    with contextlib.closing(database.connect()) as connection:
        yield connection


@pytest.fixture
def bare(empty_database: Any) -> Iterator[Any]:
    """A connection to a database with the baseline's tables and no rows."""
    with contextlib.closing(empty_database.connect()) as connection:
        yield connection
