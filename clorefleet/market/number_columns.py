"""Columns of numbers as an answer spells them, as floats, and which of them only `wire` can judge."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
_FLOAT_MIN, _FLOAT_MAX = 1e-28, 1e16
"""Beyond these `wire` may not believe a number."""


class NumberColumn:
    """Nan for what is missing."""

    def __init__(self) -> None:
        self._values, self._texts = array("d"), array("q")

    def add(self, values: list[Any]) -> None:
        """Floats, integers, texts and None."""
        try:
            self._values.fromlist(values)
        except TypeError:  # it takes neither None nor texts, and then nothing
            at = len(self._values)
            self._texts.extend(at + i for i, value in enumerate(values) if isinstance(value, str))
            self._values.extend(value if isinstance(value, float) else math.nan for value in values)

    def read(self) -> tuple[Floats, Flags]:
        """Nan too where the other says that `wire` must judge."""
        numbers = of_array(self._values)
        size = np.abs(numbers)
        unusual = (size > 0) & ((size < _FLOAT_MIN) | (size > _FLOAT_MAX))
        if self._texts:
            unusual[of_array(self._texts)] = True
        return (np.where(unusual, math.nan, numbers) if unusual.any() else numbers), unusual


def of_array(values: array[Any]) -> NDArray[Any]:
    return np.frombuffer(values, dtype=values.typecode) if values else np.zeros(0, dtype=values.typecode)
