"""The minutes of some weeks in order, under one policy: what it costs, and who had to wait."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Protocol

from clorefleet.domain.load import MINUTE_S, PROMPT_TOKEN_WEIGHT, LoadSample
from clorefleet.fleet.autoscale import WINDOW_MAX, StartCost
from clorefleet.fleet.demand import mean_tokens_per_request
from clorefleet.fleet.forecast import BUCKET_S
from clorefleet.planner.capacity import ReplicaCapacity
from clorefleet.simulation.traffic.market import PriceHistory
from clorefleet.simulation.traffic.queue import pass_minute
from clorefleet.simulation.traffic.week import Weeks

START_SPREAD = 0.15
"""Standard deviation of the logarithm of a start-up's length [assumed]."""
_SAMPLES_KEPT = int(WINDOW_MAX.total_seconds()) // MINUTE_S + 10


@dataclass(frozen=True, slots=True)
class Service:
    """One kind of replica, and what is promised with it."""

    capacity: ReplicaCapacity
    ready_after_s: float
    once_usd: Decimal
    """Creation fee of an order."""
    slo_wait_s: float
    slo_share: float
    replicas_max: int

    def start_cost(self, usd_per_day: Decimal) -> StartCost:
        return StartCost(self.ready_after_s, usd_per_day, self.once_usd)


@dataclass(slots=True)
class Sight:
    """What a policy sees at the end of a minute: the past only."""

    now: datetime
    ages: tuple[timedelta, ...]
    """Since the order, of each replica."""
    starting: int
    samples: deque[LoadSample]
    past: dict[int, float]
    """Mean weighted tokens/s by bucket of the forecast's length."""
    tokens_per_request: float
    usd_per_day: Decimal
    last_used: datetime


class Policy(Protocol):
    name: str
    reason: str
    """Of what was last wanted; "" where it has none to tell."""

    def wanted(self, sight: Sight) -> int:
        """Replicas wanted from now on."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """Simulated. What a policy came to over the measured minutes."""

    policy: str
    usd: Decimal
    requests: int
    late_requests: float
    turned_away: int
    starts: int
    serving: tuple[int, ...]
    """Replicas that served, by the minute."""
    held: tuple[int, ...]
    """Replicas that billed, by the minute."""
    reasons: tuple[tuple[datetime, int, str], ...] = ()
    """Changes of the wanted number."""

    @property
    def attained(self) -> float:
        """Share of requests that waited no longer than the SLO's wait."""
        return 1 - self.late_requests / self.requests if self.requests else 1.0


@dataclass(slots=True)
class _Replica:
    ready_at: int
    ordered_at: int
    usd_per_day: Decimal


@dataclass(slots=True)
class _Bill:
    usd: Decimal = Decimal(0)
    starts: int = 0
    by_price: dict[Decimal, int] = field(default_factory=dict)

    def minute(self, replicas: list[_Replica]) -> None:
        for each in replicas:
            self.by_price[each.usd_per_day] = self.by_price.get(each.usd_per_day, 0) + 1

    def total(self, once_usd: Decimal) -> Decimal:
        running = sum((price * minutes / 1440 for price, minutes in self.by_price.items()), Decimal(0))
        return running + once_usd * self.starts


def replay(
    weeks: Weeks,
    policy: Policy,
    service: Service,
    prices: PriceHistory,
    *,
    seed: int,
    measured_from: int = 0,
) -> Outcome:
    """
    Args:
        measured_from: minutes before this one are lived through (history for a forecast) and not counted.
    """
    chance = random.Random(f"starts {seed}")  # noqa: S311 - seeded chance, not cryptography
    replicas: list[_Replica] = []
    bill = _Bill()
    samples: deque[LoadSample] = deque(maxlen=_SAMPLES_KEPT)
    past: dict[int, float] = {}
    bucket, bucket_tokens, bucket_minutes = int(weeks.begins_at.timestamp()) // BUCKET_S, 0.0, 0
    backlog = late = 0.0
    requests = turned_away = 0
    tokens_per_request = _first_tokens_per_request(weeks)
    last_used = weeks.begins_at
    serving_by_minute: list[int] = []
    held_by_minute: list[int] = []
    reasons: list[tuple[datetime, int, str]] = []
    wanted = policy.wanted(
        Sight(weeks.begins_at, (), 0, samples, past, tokens_per_request, prices.at_minute(0), last_used)
    )
    for _ in range(wanted):  # what runs when the count begins was there before
        replicas.append(_Replica(0, 0, prices.at_minute(0)))
    for minute in range(weeks.minutes):
        at = weeks.begins_at + timedelta(minutes=minute)
        serving = sum(1 for each in replicas if each.ready_at <= minute)
        count = weeks.requests[minute]
        tokens = weeks.prompt_tokens[minute] * PROMPT_TOKEN_WEIGHT + weeks.generated_tokens[minute]
        per_place = service.capacity.tokens_per_s / service.capacity.places
        passed = pass_minute(
            serving,
            service.capacity,
            tokens=tokens,
            backlog_tokens=backlog,
            service_s=max(1e-6, tokens_per_request / per_place),
            wait_s=service.slo_wait_s,
        )
        backlog = passed.backlog_tokens
        away = count if serving == 0 else 0
        if minute >= measured_from:
            requests += count
            turned_away += away
            late += passed.late * count
            serving_by_minute.append(serving)
            held_by_minute.append(len(replicas))
            bill.minute(replicas)
        done = min(1.0, passed.served_tokens / tokens) if tokens > 0 else 0.0
        sample = LoadSample(
            started_at=at,
            length_s=MINUTE_S,
            requests=0 if away else count,
            turned_away=away,
            prompt_tokens=0 if away else round(weeks.prompt_tokens[minute] * done),
            generated_tokens=0 if away else round(weeks.generated_tokens[minute] * done),
            running=min(
                serving * service.capacity.places, math.ceil(passed.served_tokens / MINUTE_S / per_place)
            ),
            waiting=int(backlog / tokens_per_request),
            serving=serving,
        )
        samples.append(sample)
        now = at + timedelta(minutes=1)
        if sample.is_used:
            last_used = now
        bucket_tokens += tokens / MINUTE_S
        bucket_minutes += 1
        if (minute + 1) % (BUCKET_S // MINUTE_S) == 0:
            past[bucket] = bucket_tokens / bucket_minutes
            bucket, bucket_tokens, bucket_minutes = bucket + 1, 0.0, 0
        if minute % 30 == 0:
            tokens_per_request = mean_tokens_per_request(list(samples)[-60:], tokens_per_request)
        before = wanted
        starting = sum(1 for each in replicas if each.ready_at > minute + 1)
        price = prices.at_minute(minute)
        ages = tuple(timedelta(minutes=minute + 1 - each.ordered_at) for each in replicas)
        sight = Sight(now, ages, starting, samples, past, tokens_per_request, price, last_used)
        wanted = min(service.replicas_max, max(0, policy.wanted(sight)))
        if wanted != before and minute >= measured_from:
            reasons.append((now, wanted, policy.reason))
        while len(replicas) > wanted:
            # As the fleet does: those that still start go first, the last one before the others.
            replicas.remove(
                max(replicas, key=lambda each: (each.ready_at > minute, each.ready_at, each.ordered_at))
            )
        while len(replicas) < wanted:
            took_s = service.ready_after_s * math.exp(chance.gauss(0.0, START_SPREAD))
            ready_at = minute + 1 + math.ceil(took_s / MINUTE_S)
            replicas.append(_Replica(ready_at, minute + 1, price))
            bill.starts += int(minute >= measured_from)
    return Outcome(
        policy=policy.name,
        usd=bill.total(service.once_usd),
        requests=requests,
        late_requests=late,
        turned_away=turned_away,
        starts=bill.starts,
        serving=tuple(serving_by_minute),
        held=tuple(held_by_minute),
        reasons=tuple(reasons),
    )


def _first_tokens_per_request(weeks: Weeks) -> float:
    """Of the first day, as somebody who sets the service up would know it roughly."""
    day = slice(0, 1440)
    count = sum(weeks.requests[day])
    tokens = sum(weeks.prompt_tokens[day]) * PROMPT_TOKEN_WEIGHT + sum(weeks.generated_tokens[day])
    return max(1.0, tokens / count) if count else 100.0
