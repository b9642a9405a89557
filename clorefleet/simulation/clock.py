"""Virtual time: true time that the world moves, and each process's own idea of it.

True time is seconds since the life began. A process's wall clock may be wrong and may jump; its
monotonic clock may stall; sleeping moves the world.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta


class TrueTime:
    def __init__(self, began_at: datetime) -> None:
        self.began_at = began_at
        self.now_s = 0.0
        self._last_s, self._last = 0.0, began_at

    def at(self, seconds: float) -> datetime:
        if self._last_s != seconds:
            self._last_s, self._last = seconds, self.began_at + timedelta(seconds=round(seconds, 3))
        return self._last

    def seconds(self, at: datetime) -> float:
        return (at - self.began_at).total_seconds()


class ProcessClock:
    """What one process reads; `offset_s` is how far its wall clock is ahead of the truth."""

    def __init__(self, true: TrueTime, pass_time: Callable[[float], None], *, offset_s: float = 0) -> None:
        self._true = true
        self._pass_time = pass_time
        self.offset_s = offset_s
        self.stalled_at_s: float | None = None
        """The monotonic clock stands still here while set (D3)."""

    def now(self) -> datetime:
        return self._true.at(self._true.now_s + self.offset_s)

    def monotonic_s(self) -> float:
        return self._true.now_s if self.stalled_at_s is None else self.stalled_at_s

    def sleep(self, seconds: float) -> None:
        self._pass_time(seconds)
