"""The download lines of nodes: what a node fetches from the hub comes at its true line speed.

All of a node's downloads share one line, as on a real server. A node that is not connected here, and
anybody who asks the hub without naming a node, is not slowed down.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_BYTES_PER_MBIT = 1_000_000 / 8


class Line:
    """Hands out sending times so that the sum never exceeds the rate."""

    def __init__(self, bytes_per_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        if bytes_per_s <= 0:
            raise ValueError("a line's speed must be more than zero")
        self.bytes_per_s = bytes_per_s
        self._monotonic = monotonic
        self._free_at_s = 0.0

    def reserve(self, size: int) -> float:
        """Take the next `size` bytes of the line; returns the seconds to wait until they are through."""
        now_s = self._monotonic()
        self._free_at_s = max(now_s, self._free_at_s) + size / self.bytes_per_s
        return self._free_at_s - now_s

    async def carry(self, size: int) -> None:
        await asyncio.sleep(self.reserve(size))


class NodeLines:
    """Implements `rack.Lines`. `scale` multiplies every line: 10 = ten times faster than true."""

    def __init__(self, *, scale: float = 1.0) -> None:
        self.scale = scale
        self._lines: dict[int, Line] = {}

    def connect(self, order_id: int, *, down_mbit_s: float) -> None:
        self._lines[order_id] = Line(max(down_mbit_s, 0.001) * _BYTES_PER_MBIT * self.scale)

    def disconnect(self, order_id: int) -> None:
        self._lines.pop(order_id, None)

    def of(self, order_id: int) -> Line | None:
        return self._lines.get(order_id)
