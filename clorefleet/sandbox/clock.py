"""The sandbox's time: what is billed can run faster than what is done.

Simulated time = base + real time since the anchor x factor. Real durations stay real: a node boots
and a model loads in true seconds, and only rent, rental limits and other renters follow the
simulated clock. Only this module asks the machine what time it is; everything else in the sandbox is
given a `SandboxClock`.

Simulated time stands still while the sandbox is stopped. A clean stop records the instant. After a
kill the next start goes on at a mark that was written ahead of time (`mark_ahead_s`), so that no
client ever sees the clock run backwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

MARK_INTERVAL_S = 1.0
"""Real seconds between two marks written by the server."""
_MARK_LEAD_INTERVALS = 3.0
"""A mark lies this many intervals ahead: one for the interval itself, two for a slow disk."""


@dataclass(frozen=True, slots=True)
class ClockAnchor:
    """What another process needs to compute the same simulated time."""

    base_unix_s: float
    """Simulated unix time at `real_unix_s`."""
    real_unix_s: float
    factor: float


class SandboxClock:
    """Simulated and real time of one running sandbox.

    `real_unix` and `monotonic` are parameters so that tests can stop the world.
    """

    def __init__(
        self,
        *,
        base_unix_s: float,
        factor: float = 1.0,
        real_unix: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if factor <= 0:
            raise ValueError("the time factor must be more than zero")
        self.factor = factor
        self._real_unix = real_unix
        self._monotonic = monotonic
        self._base_unix_s = base_unix_s
        self._anchor_real_unix_s = real_unix()
        self._anchor_monotonic_s = monotonic()

    def now_s(self) -> float:
        """Simulated unix seconds. Never decreases, whatever the machine's wall clock does."""
        return self._base_unix_s + (self._monotonic() - self._anchor_monotonic_s) * self.factor

    def real_unix_s(self) -> float:
        """The machine's own wall clock."""
        return self._real_unix()

    def monotonic_s(self) -> float:
        """Real seconds for limits, delays and deadlines."""
        return self._monotonic()

    def advance(self, seconds: float) -> None:
        """Jump forward by simulated `seconds`; raises ValueError for a jump back."""
        if seconds < 0:
            raise ValueError("the sandbox's clock never runs backwards")
        now_s = self.now_s()
        self._base_unix_s = now_s + seconds
        self._anchor_real_unix_s = self._real_unix()
        self._anchor_monotonic_s = self._monotonic()

    def anchor(self) -> ClockAnchor:
        return ClockAnchor(self._base_unix_s, self._anchor_real_unix_s, self.factor)

    def mark_ahead_s(self) -> float:
        """A simulated instant that is certainly not yet reached when the next mark is written."""
        return self.now_s() + MARK_INTERVAL_S * _MARK_LEAD_INTERVALS * self.factor
