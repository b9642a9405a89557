"""How many replicas the load needs. Pure: samples, prices and a time in, a count with its reason out.

Starting a server of this trade costs real money: it bills from the order on, and serves only when image and
weights are there, minutes or hours later. Three rules follow:

- *Up* early: as soon as more is needed for `up_after`, or, with a forecast, a start-up before it will be.
- *Down* late: a server is kept until keeping it has cost as much as starting another would (the break-even
  time of the ski-rental problem, which costs at most twice what hindsight would: Karlin et al., 1988). With a
  forecast it is given back at once when the forecast does not need it again before that time.
- What replicas carry is worked out from the SLO (`planner/capacity.py`), and corrected by what was seen: they
  carry at least what they did, and no more than they did while requests were waiting.

"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache

from clorefleet.domain.load import MINUTE_S, LoadSample
from clorefleet.domain.money import format_usd
from clorefleet.fleet.demand import (
    NOTHING,
    Demand,
    Minutes,
    demand_of,
    learned,
    smooth_minutes,
)
from clorefleet.fleet.forecast import Forecast
from clorefleet.planner.capacity import ReplicaCapacity, demand_carried

BUSY_SHARE = 0.9
"""Of all places taken: then a late first byte means a queue, and not a long prompt."""
WINDOW_MAX = timedelta(hours=12)
"""No server is kept for the sake of its start-up for longer."""
FORECAST_SLACK = 3.0
"""With a forecast, sizes have a margin for its error on top, and every minute is sized for its worst: so
each may be sized for so many times the late share that the SLO allows over all. In
`benchmarks/autoscale_cost.py` 99.8 % of the requests were then still in time where 99 % were asked for."""
VARIATION_STEPS = 20
"""Bursts are told apart by a twentieth of the mean."""


@dataclass(frozen=True, slots=True)
class ScaleRule:
    """Follow the load, so that `slo_share` of the requests wait `slo_wait_s` for a place at most."""

    replicas_max: int
    slo_wait_s: float = 10.0
    slo_share: float = 0.99
    target: float = 1.0
    """Share of a replica's capacity that is used at most, where the SLO alone would admit more."""
    up_after: timedelta = timedelta(minutes=2)
    """How long more must be needed before more is rented: one burst is over before a server has started."""
    down_after: timedelta = timedelta(minutes=10)
    """The least time that fewer must suffice before one is given back; mostly it takes longer, see above."""

    def __post_init__(self) -> None:
        if (
            self.replicas_max < 1
            or not 0 < self.slo_share < 1
            or self.slo_wait_s < 0
            or not 0 < self.target <= 1
        ):
            raise ValueError("a rule needs a maximum from 1, a share of requests, a wait and a target share")


@dataclass(frozen=True, slots=True)
class StartCost:
    """What one more replica costs before it serves."""

    ready_after_s: float
    """From the order to serving: measured, else predicted."""
    usd_per_day: Decimal
    """Running, with fee."""
    once_usd: Decimal = Decimal(0)
    """Creation fee."""
    minimum_rental_s: float = 0.0
    """Paid for in any case."""

    @property
    def usd(self) -> Decimal:
        return self.usd_per_day * Decimal(str(self.ready_after_s)) / 86_400 + self.once_usd

    @property
    def break_even(self) -> timedelta:
        """Keeping a replica for longer than this costs more than starting another."""
        once_s = float(self.once_usd / self.usd_per_day) * 86_400 if self.usd_per_day > 0 else 0.0
        seconds = max(self.ready_after_s + once_s, self.minimum_rental_s)
        return min(WINDOW_MAX, timedelta(seconds=seconds))


@dataclass(frozen=True, slots=True)
class Load:
    """What is known of one deployment when it is decided about."""

    minutes: Minutes
    """As far back as `WINDOW_MAX` where they can be, and without those that nobody took."""
    capacity: ReplicaCapacity
    start: StartCost
    ages: tuple[timedelta, ...]
    """Since the order, of each replica that serves or is on its way."""
    tokens_per_request: float
    """Weighted; of the minutes, or of the past where they have no request."""
    forecast: Forecast | None = None

    @property
    def replicas(self) -> int:
        return len(self.ages)


@dataclass(frozen=True, slots=True)
class ScaleDecision:
    wanted: int
    needed: int
    """By the demand of this moment alone."""
    demand_tokens_per_s: float
    reason: str


def decide(rule: ScaleRule, load: Load, *, now: datetime) -> ScaleDecision:
    """The replicas wanted now, up to the rule's maximum; the least is the deployment's business."""
    width = smooth_minutes(load.start.ready_after_s)
    demand = demand_of(load.minutes, load.tokens_per_request, watched=_watched(rule, load), width=width)
    slack = 1.0 if load.forecast is None else FORECAST_SLACK
    sizes = _Sizes(rule, learned(load.capacity, load.minutes), load.tokens_per_request, slack)
    up, why_up = _needed(rule, load, demand, sizes, now)
    have = load.replicas
    needed = sizes.replicas(demand.now, demand.variation)
    if up >= have:
        return _bounded(rule, up, needed, demand.now, f"{up} needed: {why_up}")
    keep, why_keep = _kept(rule, load, demand, sizes, now)
    wanted = max(up, min(have, keep))
    words = f"{have} kept, {up} needed now" if wanted == have else f"{wanted} suffice of {have}"
    return _bounded(rule, wanted, needed, demand.now, f"{words}: {why_keep}")


def _watched(rule: ScaleRule, load: Load) -> int:
    """Minutes that the decision looks back."""
    return _minutes(max(rule.up_after, rule.down_after, min(load.start.break_even, WINDOW_MAX)))


def _needed(rule: ScaleRule, load: Load, demand: Demand, sizes: _Sizes, now: datetime) -> tuple[int, str]:
    """By what is asked now, and by what will be when a server that is ordered now serves."""
    ready = timedelta(seconds=load.start.ready_after_s)
    lasting = demand.lasting(_minutes(rule.up_after))
    need = sizes.replicas(lasting, demand.variation)
    carried, have = sizes.carried(demand.variation), min(max(1, load.replicas), rule.replicas_max)
    why = f"{_rate(lasting)} asked for, and {have} carry {_rate(carried[have - 1])} within the SLO"
    last = load.minutes.last
    if last is not None and _is_late(rule, load.minutes.samples, load.capacity):
        # The sizes were wrong: one more than serve, once.
        need = max(need, last.serving + 1)
        why = f"answers begin after more than {rule.slo_wait_s:g} s, all places being taken"
    if last is not None and last.turned_away and need < 1:
        need, why = 1, "a request found no replica"
    soon, source = demand.rising_to(ready.total_seconds()), "if it goes on rising"
    variation = demand.variation
    if load.forecast is not None:
        expected = load.forecast.most_within(0, ready.total_seconds() + MINUTE_S, now=now)
        if expected is not None:
            soon, source = expected, "as in earlier weeks"
            variation = math.hypot(variation, load.forecast.error)
    ahead = sizes.replicas(soon, variation)
    if ahead > need:
        return ahead, f"{_rate(soon)} expected in {_span(ready)}, {source}, and a start takes as long"
    return need, why


def _kept(rule: ScaleRule, load: Load, demand: Demand, sizes: _Sizes, now: datetime) -> tuple[int, str]:
    """How many to keep at least, though fewer would do just now."""
    break_even = max(load.start.break_even, rule.down_after)
    grown_up = timedelta(seconds=load.start.ready_after_s) + rule.down_after
    youngest = min(load.ages)
    if youngest < grown_up:
        return load.replicas, f"the last was started only {_span(youngest)} ago"
    expected = None
    if load.forecast is not None:
        expected = load.forecast.most_within(0, break_even.total_seconds(), now=now)
    window = min(WINDOW_MAX, rule.down_after if expected is not None else break_even)
    if len(demand.smoothed) < _minutes(window):
        return load.replicas, f"the load was watched for {len(demand.smoothed)} of {_minutes(window)} min"
    past = demand.most(_minutes(window))
    keep = sizes.replicas(past, demand.variation)
    cost = f"starting another costs ${format_usd(load.start.usd)}, as much as keeping one {_span(break_even)}"
    if expected is not None and load.forecast is not None:
        ahead = sizes.replicas(expected, math.hypot(demand.variation, load.forecast.error))
        if ahead >= keep:
            return ahead, f"{_rate(expected)} expected within {_span(break_even)}; {cost}"
    return keep, f"at most {_rate(past)} in the last {_span(window)}; {cost}"


class _Sizes:
    """How many replicas a demand needs within the SLO."""

    def __init__(
        self, rule: ScaleRule, capacity: ReplicaCapacity, tokens_per_request: float, slack: float
    ) -> None:
        self._rule = rule
        self._late_max = min(0.5, slack * (1 - rule.slo_share))
        self._tokens_per_s = _rounded(capacity.tokens_per_s)
        self._places = capacity.places
        self._tokens_per_request = _rounded(max(1.0, tokens_per_request))

    def carried(self, variation: float) -> tuple[float, ...]:
        """Demand that 1, 2, ... replicas carry."""
        rule = self._rule
        return _carried(
            rule.replicas_max,
            self._tokens_per_s,
            self._places,
            self._tokens_per_request,
            rule.slo_wait_s,
            self._late_max,
            rule.target,
            round(variation * VARIATION_STEPS) / VARIATION_STEPS,
        )

    def replicas(self, demand: float, variation: float) -> int:
        """The fewest that carry `demand`; the most there may be when none do."""
        if demand < NOTHING:
            return 0
        carried = self.carried(variation)
        return min(len(carried), bisect_left(carried, demand) + 1)


@lru_cache(maxsize=4096)
def _carried(
    replicas_max: int,
    tokens_per_s: float,
    places: int,
    tokens_per_request: float,
    wait_s: float,
    late_max: float,
    target: float,
    variation: float,
) -> tuple[float, ...]:
    capacity = ReplicaCapacity(tokens_per_s, places)
    return tuple(
        min(
            target * count * tokens_per_s,
            demand_carried(
                count,
                capacity,
                tokens_per_request=tokens_per_request,
                wait_s=wait_s,
                late_max=late_max,
                variation=variation,
            ),
        )
        for count in range(1, replicas_max + 1)
    )


def _rounded(value: float) -> float:
    """To two digits, so that the SLO is not worked out anew each minute."""
    return float(f"{value:.2g}")


def _is_late(rule: ScaleRule, samples: Sequence[LoadSample], capacity: ReplicaCapacity) -> bool:
    recent = samples[-_minutes(rule.up_after) :]
    return len(recent) >= _minutes(rule.up_after) and all(
        each.first_byte_s is not None
        and each.first_byte_s > rule.slo_wait_s
        and each.serving > 0
        and each.running >= BUSY_SHARE * capacity.places * each.serving
        for each in recent
    )


def _bounded(rule: ScaleRule, wanted: int, needed: int, demand: float, reason: str) -> ScaleDecision:
    bounded = min(rule.replicas_max, wanted)
    if bounded < wanted:
        reason += f"; the maximum is {rule.replicas_max}"
    return ScaleDecision(bounded, needed, demand, reason)


def _minutes(duration: timedelta) -> int:
    return max(1, -int(-duration.total_seconds() // MINUTE_S))


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f} tok/s"


def _span(duration: timedelta) -> str:
    minutes = duration.total_seconds() / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
