"""Time, as it is passed in. Only this module asks the machine what time it is.

Instants are timezone-aware UTC and feed the ledger; durations and deadlines come from `monotonic_s`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The wall clock, UTC."""
        ...

    def monotonic_s(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))


@dataclass(frozen=True, slots=True)
class OffsetClock:
    """The sandbox's clock seen from outside: simulated time = base + elapsed x factor.

    `base_unix_s` is the simulated time at `real_unix_s`. Durations stay real: the sandbox's nodes do
    real work, and only what is billed runs faster.
    """

    base_unix_s: float
    real_unix_s: float
    factor: float

    def now(self) -> datetime:
        elapsed_s = time.time() - self.real_unix_s
        return datetime.fromtimestamp(self.base_unix_s + elapsed_s * self.factor, UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))
