"""Chance that depends on the seed and on what is asked, never on how often something else was asked.

A life with one incident less stays otherwise as it was, which is what makes shrinking work; and two
processes with different hash seeds throw the same dice.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


class Dice:
    def __init__(self, seed: int) -> None:
        self._seed = f"{seed}"

    def unit(self, *question: object) -> float:
        """In [0, 1), the same for the same question."""
        text = "|".join((self._seed, *map(str, question)))
        return int.from_bytes(blake2b(text.encode(), digest_size=7).digest()) / (1 << 56)

    def between(self, low: float, high: float, *question: object) -> float:
        return low + (high - low) * self.unit(*question)

    def pick(self, options: Sequence[T], *question: object) -> T:
        return options[int(self.unit(*question) * len(options))]
