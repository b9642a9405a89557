"""What replicas were used for: one sum per lease and hour.

The counts are the engines' own words, taken at the gateway, and a host can lie: they feed reports, scaling
and the idle rule, never a bill.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from clorefleet.domain.identity import LeaseId

WAIT_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the classes in which waits for a first byte are counted; one more class is open above."""


@dataclass(frozen=True, slots=True)
class UsageHour:
    """The requests that one lease took within one hour.

    Attributes:
        hour: its start, UTC.
        failures: requests that the replica failed; those of a client that left are not.
        uncounted: answered requests whose engine told no token counts.
        uncounted_events: of the streams among those; about one token each, so an estimate.
        first_byte_s, total_s: sums over the answered requests.
        waits: how many waited for their first byte as long as each class of `WAIT_BOUNDS_S` says.
        last_at: when the last of them ended.
    """

    lease_id: LeaseId
    hour: datetime
    model: str
    last_at: datetime
    requests: int = 0
    failures: int = 0
    uncounted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted_events: int = 0
    first_byte_s: float = 0.0
    total_s: float = 0.0
    waits: tuple[int, ...] = (0,) * (len(WAIT_BOUNDS_S) + 1)

    def plus(self, other: UsageHour) -> UsageHour:
        """Both together; they must be of one lease and hour."""
        if (self.lease_id, self.hour) != (other.lease_id, other.hour):
            raise ValueError("usage of different leases or hours does not add up")
        return replace(
            self,
            last_at=max(self.last_at, other.last_at),
            requests=self.requests + other.requests,
            failures=self.failures + other.failures,
            uncounted=self.uncounted + other.uncounted,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            uncounted_events=self.uncounted_events + other.uncounted_events,
            first_byte_s=self.first_byte_s + other.first_byte_s,
            total_s=self.total_s + other.total_s,
            waits=tuple(mine + theirs for mine, theirs in zip(self.waits, other.waits, strict=True)),
        )


def hour_of(instant: datetime) -> datetime:
    """The start of the UTC hour that `instant` lies in."""
    return instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def wait_class(first_byte_s: float) -> int:
    """The index in `UsageHour.waits` that a wait counts in."""
    return sum(first_byte_s > bound_s for bound_s in WAIT_BOUNDS_S)


def wait_quantile_s(waits: tuple[int, ...], share: float) -> float | None:
    """The bound under which at least `share` of the waits lie; None without waits or above the last bound."""
    total = sum(waits)
    seen = 0
    for count, bound_s in zip(waits, WAIT_BOUNDS_S, strict=False):
        seen += count
        if total and seen >= share * total:
            return bound_s
    return None
