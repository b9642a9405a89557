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


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest) -> Store:
    """What the real store promises, its twin in memory promises too."""
    if request.param == "memory":
        return MemoryStore()
    opened: Store = request.getfixturevalue("file_store")
    return opened
