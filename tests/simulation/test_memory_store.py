"""The twin has all that the store has; `tests/store` runs on both."""

from __future__ import annotations

import inspect

from clorefleet.simulation.memory_store import MemoryTransaction
from clorefleet.store.queries import Transaction


def test_the_twin_answers_every_question_itself():
    asked = {name for name, _ in inspect.getmembers(Transaction, inspect.isfunction) if name[0] != "_"}
    assert asked <= set(vars(MemoryTransaction)), "a new question needs its answer in the twin"
