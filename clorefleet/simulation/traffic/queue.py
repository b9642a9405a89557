"""What replicas make of one minute's load. A fluid between minutes, Erlang's formula within one [a model].

Tokens that the replicas cannot do in their minute wait for the next ones. Of the requests that come while
nothing waits, the share that waits longer than the SLO allows is Erlang's (`planner/capacity.py`); while
something waits, they are late when the queue before them takes longer than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from clorefleet.domain.load import MINUTE_S
from clorefleet.planner.capacity import ReplicaCapacity, late_share

_STEP = 8
"""Loads are rounded up to an eighth of a place: late shares are then looked up, never too low."""


@dataclass(frozen=True, slots=True)
class Minute:
    served_tokens: float
    backlog_tokens: float
    """Left for the next minute."""
    late: float
    """Share of this minute's requests."""


def pass_minute(
    serving: int,
    capacity: ReplicaCapacity,
    *,
    tokens: float,
    backlog_tokens: float,
    service_s: float,
    wait_s: float,
) -> Minute:
    """`tokens` arrive (weighted) for `serving` replicas; without one, they are turned away and late."""
    if serving <= 0:
        return Minute(0.0, 0.0, 1.0 if tokens > 0 else 0.0)
    able = serving * capacity.tokens_per_s * MINUTE_S
    due = tokens + backlog_tokens
    served = min(due, able)
    queue_s = backlog_tokens / (serving * capacity.tokens_per_s)
    # Where no place is ever free the formula has no answer: all are counted late, against us.
    is_full = due >= able or queue_s > wait_s
    late = 1.0 if is_full else _late(serving, capacity, due, service_s, wait_s)
    return Minute(served, due - served, late)


def _late(serving: int, capacity: ReplicaCapacity, tokens: float, service_s: float, wait_s: float) -> float:
    per_place = capacity.tokens_per_s / capacity.places
    load = tokens / MINUTE_S / per_place
    return _late_rounded(
        serving * capacity.places, -int(-load * _STEP // 1), float(f"{service_s:.2g}"), wait_s
    )


@lru_cache(maxsize=200_000)
def _late_rounded(places: int, load_steps: int, service_s: float, wait_s: float) -> float:
    return late_share(places, load_steps / _STEP, service_s=service_s, wait_s=wait_s)
