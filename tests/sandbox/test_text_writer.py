"""The small real model behind simulated engines: how much of the user's machine it takes."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

import clorefleet.sandbox

PAYLOAD = Path(clorefleet.sandbox.__file__).parent / "payload"


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setenv("SANDBOX_HOME", str(tmp_path / "opt/sandbox"))
    monkeypatch.syspath_prepend(str(PAYLOAD))
    return importlib.import_module("text_writer")


@pytest.mark.parametrize(
    ("asked", "processors", "gets"),
    [(2, 1, 1), (2, 2, 1), (64, 2, 1), (2, 8, 2), (64, 8, 4), (1, 8, 1), (64, 64, 4)],
)
def test_an_engine_leaves_half_of_the_processors_alone(
    writer: ModuleType, asked: int, processors: int, gets: int
):
    assert writer.threads(asked, processors) == gets
