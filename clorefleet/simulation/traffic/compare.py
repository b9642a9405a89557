"""Several policies over the same weeks, side by side. Every figure is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from clorefleet.domain.deployment import Deployment
from clorefleet.domain.load import MINUTE_S, weighted_tokens
from clorefleet.fleet.autoscale import ScaleRule
from clorefleet.planner.capacity import demand_carried
from clorefleet.simulation.traffic.market import PriceHistory
from clorefleet.simulation.traffic.optimum import Optimum, cheapest_constant, optimum
from clorefleet.simulation.traffic.policy import (
    AlwaysOn,
    AsWritten,
    ByLoad,
    needed_by_minute,
    size_by_clock,
)
from clorefleet.simulation.traffic.replay import Outcome, Policy, Service, replay
from clorefleet.simulation.traffic.trace import Trace
from clorefleet.simulation.traffic.week import MINUTES_A_WEEK, Weeks, compose

HISTORY_WEEKS = 2
"""Lived through before the count begins, so that a forecast has something to look back on."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Simulated."""

    how: str
    """How the load was composed."""
    prices: str
    service: Service
    begins_at: datetime
    """Of the measured time."""
    outcomes: tuple[Outcome, ...]
    needed: tuple[int, ...]
    """Replicas that each minute's load needs within the SLO; what foresight of minutes would run."""
    optimum: Optimum | None = None
    """With the share of late requests that the last of the outcomes had."""


def scale_for(trace: Trace, service: Service, replicas: float) -> float:
    """The scale at which the trace's own rate needs about `replicas`."""
    tokens = weighted_tokens(sum(trace.prompt_tokens), sum(trace.generated_tokens))
    rate = tokens / max(1.0, trace.length_s)
    # Whatever the size, one more replica carries about as much more as the fourth does.
    count = 4
    carried = demand_carried(
        count,
        service.capacity,
        tokens_per_request=tokens / len(trace.offsets_s),
        wait_s=service.slo_wait_s,
        late_max=1 - service.slo_share,
    )
    return max(1e-6, float(f"{replicas * carried / count / rate:.3g}"))


def compare(
    trace: Trace,
    service: Service,
    prices: PriceHistory,
    *,
    weeks: int,
    scale: float,
    profile: str,
    seed: int,
    begins_at: datetime,
    deployment: Deployment | None = None,
    with_optimum: bool = False,
) -> Comparison:
    """
    Args:
        weeks: measured; `HISTORY_WEEKS` more come before them.
        deployment: the fleet file's, to be run as it is written beside the others.
    """
    load = compose(
        trace,
        weeks=weeks + HISTORY_WEEKS,
        scale=scale,
        profile=profile,
        seed=seed,
        begins_at=begins_at,
    )
    first = HISTORY_WEEKS * MINUTES_A_WEEK
    tokens = weighted_tokens(sum(load.prompt_tokens), sum(load.generated_tokens))
    mean = tokens / max(1, sum(load.requests))
    needed = needed_by_minute(load, service, mean)
    outcomes = [
        replay(load, policy, service, prices, seed=seed, measured_from=first)
        for policy in _policies(load, service, needed, first, deployment)
    ]
    best = None
    if with_optimum:
        best = optimum(
            load,
            service,
            prices.mean,
            late_max=1 - outcomes[-1].attained,
            measured_from=first,
            replicas_min=1,
        )
    return Comparison(
        how=load.how,
        prices=prices.source,
        service=service,
        begins_at=load.begins_at + timedelta(weeks=HISTORY_WEEKS),
        outcomes=tuple(outcomes),
        needed=tuple(needed[first:]),
        optimum=best,
    )


def _policies(
    load: Weeks, service: Service, needed: Sequence[int], first: int, deployment: Deployment | None
) -> list[Policy]:
    rule = ScaleRule(service.replicas_max, slo_wait_s=service.slo_wait_s, slo_share=service.slo_share)
    always = cheapest_constant(load, service, late_max=1 - service.slo_share, measured_from=first)
    # The clock's numbers come from the weeks before, as a person's would.
    before = Weeks(
        load.begins_at, load.requests[:first], load.prompt_tokens[:first], load.generated_tokens[:first], ""
    )
    policies: list[Policy] = [
        AlwaysOn(always),
        size_by_clock(before, service, needed[:first]),
        ByLoad(rule, service),
        ByLoad(rule, service, with_forecast=True, name="load + forecast"),
    ]
    if deployment is not None:
        policies.insert(0, AsWritten(deployment, service))
    return policies


def usd_per_week(outcome: Outcome, minutes: int) -> Decimal:
    return outcome.usd * MINUTES_A_WEEK / max(1, minutes)


def peak_demand(load: Weeks) -> float:
    """Weighted tokens/s of the busiest minute."""
    pairs = zip(load.prompt_tokens, load.generated_tokens, strict=True)
    return max(weighted_tokens(into, out) for into, out in pairs) / MINUTE_S
