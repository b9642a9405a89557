"""How long a deployment's replicas take from rent to serving, and the dip that is not worth a stop. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from decimal import Decimal

from clorefleet.domain.deployment import Deployment
from clorefleet.domain.lease import Lease
from clorefleet.fleet.schedule import StartUp

MEASURED_MAX = 5
"""Latest measured starts that count: hosts differ, so that one start says little, and old ones less."""
ASSUMED = timedelta(minutes=30)
"""Where neither a start was measured nor a plan was shown [assumed]."""


def start_up_of(
    deployment: Deployment, measured: Sequence[timedelta], leases: Iterable[Lease] = ()
) -> StartUp:
    """The lead and the break-even of a deployment.

    Args:
        measured: its latest starts, any order; the slowest counts, since being late is what a lead is
        against. leases: its open leases, whose prices say how long a creation fee would pay the rent.
    """
    lead = lead_of(deployment, measured)
    if measured:
        source = f"the slowest of the last {len(measured)} measured start(s)"
    else:
        source = "assumed" if deployment.start_up_estimate is None else "estimated by the plan"
    return StartUp(lead, lead + fee_time(leases), source)


def lead_of(deployment: Deployment, measured: Sequence[timedelta]) -> timedelta:
    """From rent to serving: measured, else as the plan told, else assumed."""
    if measured:
        return max(measured)
    return ASSUMED if deployment.start_up_estimate is None else deployment.start_up_estimate


def fee_time(leases: Iterable[Lease]) -> timedelta:
    """How long the creation fee of the cheapest to restart would pay its rent: what a stop costs besides
    the lead."""
    times = [
        timedelta(days=float(price.creation_fee * price.usd_per_unit / price.running_usd_per_day))
        for price in (lease.plan.price for lease in leases)
        if price.running_usd_per_day > Decimal(0)
    ]
    return min(times, default=timedelta(0))
