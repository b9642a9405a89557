from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clorefleet.simulation.memory_store import MemoryStore
from clorefleet.store.database import Store, open_store


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state' / 'clorefleet.db'}"


@pytest.fixture
def file_store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url)
    yield opened
    opened.dispose()


@pytest.fixture(params=["sqlite", "memory", "postgres"])
def store(request: pytest.FixtureRequest) -> Store:
    """What the real store promises on SQLite, it promises on PostgreSQL, and its twin in memory does too."""
    if request.param == "memory":
        return MemoryStore()
    opened: Store = request.getfixturevalue("file_store" if request.param == "sqlite" else "server_store")
    return opened


@pytest.fixture
def server_store(server_url: str) -> Iterator[Store]:
    opened = open_store(server_url)
    yield opened
    opened.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def any_url(request: pytest.FixtureRequest) -> str:
    """A database without tables, of either kind."""
    url: str = request.getfixturevalue("store_url" if request.param == "sqlite" else "server_url")
    return url
