"""The minutes of some weeks in order, under one policy: what it costs, and who had to wait."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Protocol

from clorefleet.domain.load import MINUTE_S, LoadSample, weighted_tokens
from clorefleet.fleet.autoscale import WINDOW_MAX, StartCost
from clorefleet.fleet.demand import Minutes, mean_tokens_per_request
from clorefleet.fleet.forecast import BUCKET_S
from clorefleet.planner.capacity import ReplicaCapacity
from clorefleet.simulation.traffic.market import PriceHistory
from clorefleet.simulation.traffic.queue import pass_minute
from clorefleet.simulation.traffic.week import Weeks

START_SPREAD = 0.15
"""Standard deviation of the logarithm of a start-up's length [assumed]."""
WARM_UP_MINUTES = 1440
"""Lived through before the measured time, so that the policy has the replicas of its own by then; twice
as long as a decision looks back. Of what is before that, only the demand is kept, for a forecast."""
_BUCKET_MINUTES = BUCKET_S // MINUTE_S
_MINUTES_KEPT = int(WINDOW_MAX.total_seconds()) // MINUTE_S + 10


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
    minutes: Minutes
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
        measured_from: minutes before this one are history for a forecast; the last day of them is lived
            through, and not counted.
    """
    chance = random.Random(f"starts {seed}")  # noqa: S311 - seeded chance, not cryptography
    replicas: list[_Replica] = []
    bill = _Bill()
    minutes = Minutes()
    first = max(0, measured_from - WARM_UP_MINUTES) // _BUCKET_MINUTES * _BUCKET_MINUTES
    bucket = int(weeks.begins_at.timestamp()) // BUCKET_S
    past = {
        bucket + begin // _BUCKET_MINUTES: _mean_demand(weeks, begin)
        for begin in range(0, first, _BUCKET_MINUTES)
    }
    backlog = late = 0.0
    requests = turned_away = 0
    tokens_per_request = _first_tokens_per_request(weeks)
    begins_at = weeks.begins_at + timedelta(minutes=first)
    last_used = begins_at
    serving_by_minute: list[int] = []
    held_by_minute: list[int] = []
    reasons: list[tuple[datetime, int, str]] = []
    wanted = policy.wanted(
        Sight(begins_at, (), 0, minutes, past, tokens_per_request, prices.at_minute(first), last_used)
    )
    for _ in range(wanted):  # what runs at first was there before
        replicas.append(_Replica(first, first, prices.at_minute(first)))
    for minute in range(first, weeks.minutes):
        at = weeks.begins_at + timedelta(minutes=minute)
        serving = sum(1 for each in replicas if each.ready_at <= minute)
        count = weeks.requests[minute]
        tokens = weighted_tokens(weeks.prompt_tokens[minute], weeks.generated_tokens[minute])
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
        minutes.append(sample)
        if len(minutes.samples) >= 2 * _MINUTES_KEPT:
            minutes.forget_before(_MINUTES_KEPT)
        now = at + timedelta(minutes=1)
        if sample.is_used:
            last_used = now
        if (minute + 1) % _BUCKET_MINUTES == 0:
            begin = minute + 1 - _BUCKET_MINUTES
            past[bucket + begin // _BUCKET_MINUTES] = _mean_demand(weeks, begin)
        if minute % 30 == 0:
            tokens_per_request = mean_tokens_per_request(minutes.samples[-60:], tokens_per_request)
        before = wanted
        starting = sum(1 for each in replicas if each.ready_at > minute + 1)
        price = prices.at_minute(minute)
        ages = tuple(timedelta(minutes=minute + 1 - each.ordered_at) for each in replicas)
        sight = Sight(now, ages, starting, minutes, past, tokens_per_request, price, last_used)
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


def _mean_demand(weeks: Weeks, begin: int) -> float:
    """Weighted tokens/s of the bucket that begins with a minute."""
    minutes = slice(begin, begin + _BUCKET_MINUTES)
    return weighted_tokens(sum(weeks.prompt_tokens[minutes]), sum(weeks.generated_tokens[minutes])) / BUCKET_S


def _first_tokens_per_request(weeks: Weeks) -> float:
    """Of the first day, as somebody who sets the service up would know it roughly."""
    day = slice(0, 1440)
    count = sum(weeks.requests[day])
    tokens = weighted_tokens(sum(weeks.prompt_tokens[day]), sum(weeks.generated_tokens[day]))
    return max(1.0, tokens / count) if count else 100.0
