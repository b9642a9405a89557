"""In which order the files of tests go to the test processes, each of which takes the next when it is free.

A test of the whole way waits most of its minute: for the market's pace, a server's boot, an engine. Several
at once leave the processors idle, or, where all come to the same moment, fight for them. So their files are
spread over those that compute, early enough that none is the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
LAST_AT = 2 / 3
"""Of those that compute, the share that is begun when the last that waits is."""


def spread(waits: Sequence[T], computes: Sequence[T]) -> list[T]:
    """Each in its own order: those of `waits` at even distances among the first of `computes`."""
    ordered: list[T] = []
    taken = 0
    for number, each in enumerate(waits):
        upto = round(number * LAST_AT * len(computes) / max(1, len(waits) - 1))
        ordered += [*computes[taken:upto], each]
        taken = upto
    return ordered + list(computes[taken:])
