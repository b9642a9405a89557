"""Shared by all tests.

hypothesis is imported here, at once: its plugin would import it at the very end otherwise, and CPython 3.11
can fail to parse a module while finalizers of event loops run ("AST constructor recursion depth mismatch").
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields, replace

import hypothesis
import pytest

from clorefleet.cli.context import options
from tests.order import spread

hypothesis.settings.register_profile("default", deadline=None)

pytest_plugins = ["tests.postgres"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits runs beside what computes: see `tests.order`."""
    files = [list(group) for _, group in itertools.groupby(items, key=lambda item: item.path)]
    waits = [file for file in files if file[0].get_closest_marker("end_to_end")]
    computes = [file for file in files if not file[0].get_closest_marker("end_to_end")]
    items[:] = itertools.chain.from_iterable(spread(waits, computes))


@pytest.fixture(autouse=True)
def options_are_as_at_the_start() -> Iterator[None]:
    """A process has one set of them: a test that reads a command line in its own leaves none to the next."""
    before = replace(options)
    yield
    for field in fields(before):
        setattr(options, field.name, getattr(before, field.name))
