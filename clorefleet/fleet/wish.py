"""The wishes that a user changes by one word or one number: stop this, keep so many. Pure.

A wish is written into the store without a fencing token; the daemon's next tick reads it and acts, behind the
same budget guard as any rent. Writing one rents and cancels nothing by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from clorefleet.domain.deployment import Deployment, Desired, Origin
from clorefleet.domain.errors import BadInput, BudgetExceeded
from clorefleet.domain.lease import Lease
from clorefleet.domain.money import Budget, ExchangeRate, Money, worst_rate_factor
from clorefleet.domain.plan import Objective
from clorefleet.fleet.budget import committed_usd_per_day, stops_renting

REPLICAS_MAX = 16


def stopped(deployment: Deployment) -> Deployment:
    """Everything of it is given back."""
    return replace(deployment, desired=Desired.STOPPED, note="", has_given_up=False)


def scaled(
    deployment: Deployment, replicas: int, *, now: datetime, replicas_max: int | None = None
) -> Deployment:
    """`replicas` are kept when neither schedule nor load says otherwise; the most that load may ask for is
    never below that.

    Args:
        replicas_max: the most that load may ask for; None: as it was.

    Raises:
        BadInput: it is stopped, or the numbers are none that may be kept.
    """
    if deployment.desired is Desired.STOPPED:
        raise BadInput(
            f"“{deployment.deployment_id}” is stopped.",
            remedy="`clorefleet deploy` starts it again, after showing what it would cost.",
            money="Nothing was changed.",
        )
    if not 1 <= replicas <= REPLICAS_MAX:
        raise BadInput(
            f"{replicas} replicas cannot be kept.",
            remedy=f"Choose 1 to {REPLICAS_MAX}; to keep none, stop it.",
            money="Nothing was changed.",
        )
    if replicas_max is not None:
        _check_most(deployment, replicas, replicas_max)
    most = deployment.replicas_max if replicas_max is None else replicas_max
    after = replace(deployment, replicas=replicas, replicas_max=None if most is None else max(most, replicas))
    if after == deployment or not deployment.has_given_up:
        return after
    return replace(after, note="", has_given_up=False, attempts_since=now)


def _check_most(deployment: Deployment, replicas: int, most: int) -> None:
    if deployment.scale is None:
        raise BadInput(
            f"“{deployment.deployment_id}” does not follow its load, so that it has no maximum.",
            remedy="Give it a `scale` table in a fleet file, or leave the maximum out.",
            money="Nothing was changed.",
        )
    if not replicas <= most <= REPLICAS_MAX:
        raise BadInput(
            f"At most {most} with at least {replicas} replicas cannot be kept.",
            remedy=f"Choose a maximum from {replicas} to {REPLICAS_MAX}.",
            money="Nothing was changed.",
        )


def more_usd_per_day(
    before: Deployment, after: Deployment, leases: Sequence[Lease], rates: Sequence[ExchangeRate] = ()
) -> Decimal | None:
    """What more replicas would cost at the mean price of its open `leases` [estimated]; None without any.

    Args:
        rates: what coins are worth now; else as when they were rented.
    """
    more = max(0, after.replicas - before.replicas)
    if not leases:
        return None
    return committed_usd_per_day(leases, rates) / len(leases) * more


def check_budget(
    before: Deployment, after: Deployment, leases: Sequence[Lease], rates: Sequence[ExchangeRate] = ()
) -> None:
    """Told at once, rather than kept as a wish that waits without end.

    Only where the cheapest is preferred: otherwise what runs says little of the least that another costs.

    Raises:
        BudgetExceeded: more replicas are wished for, and as many as that do not fit in the budget at the mean
            price of its open `leases`, coins at their worst admissible rate, as a rent counts them.
    """
    budget = after.requirement.budget
    if budget is None or not leases or after.replicas <= before.replicas:
        return
    if after.requirement.objective is not Objective.COST:
        return
    counted = sum((_counted_usd_per_day(each, rates) for each in leases), Decimal(0))
    needed = counted / len(leases) * max(after.replicas, len(leases))
    if needed > budget.per_day.amount:
        raise BudgetExceeded(
            f"{does_not_fit(after.replicas, budget, needed)} That is as what runs now [estimated].",
            remedy=f"`clorefleet deploy` with a higher --budget first, or fewer than {after.replicas}.",
            money="Nothing was changed and nothing was rented.",
        )


def does_not_fit(replicas: int, budget: Budget, needed_usd_per_day: Decimal) -> str:
    return (
        f"{replicas} replicas do not fit in the budget of {budget}; about "
        f"{Money.usd(needed_usd_per_day)}/day would hold them."
    )


def _counted_usd_per_day(lease: Lease, rates: Sequence[ExchangeRate]) -> Decimal:
    return committed_usd_per_day([lease], rates) * worst_rate_factor(lease.plan.price.billed.currency)


def means(
    before: Deployment, after: Deployment, leases: Sequence[Lease], rates: Sequence[ExchangeRate] = ()
) -> tuple[str, ...]:
    """What another number means for the money, in sentences, for whoever is asked about it."""
    difference = after.replicas - before.replicas
    estimate = more_usd_per_day(before, after, leases, rates)
    lines = []
    if difference > 0 and estimate is not None:
        lines.append(
            f"{difference} more, at about {Money.usd(estimate / difference)} a day each [estimated: as what "
            f"runs now]: {Money.usd(estimate)} a day more."
        )
    elif difference > 0:
        lines.append(f"{difference} more; nothing runs now that a price could be taken from.")
    elif difference < 0:
        lines.append(f"{-difference} fewer: those farthest along stay, the others are given back.")
    most_before, most = before.bounds.replicas_max, after.bounds.replicas_max
    if after.scale is not None and most != most_before:
        lines.append(f"Load may ask for {most} at most, {most_before} before.")
    if not lines:
        lines.append("That is what is wished now.")
    if difference > 0 or most > most_before:
        budget = after.requirement.budget
        lines.append(
            f"Never above its budget of {budget}: what would pass it is not rented."
            if budget
            else "It has no budget of its own: only the fleet's ceilings hold it."
        )
    stop = stops_renting(difference)
    if stop:
        lines.append(stop)
    if after.schedule is not None:
        lines.append("Its schedule goes first: in a window of it, the window's numbers hold.")
    if after.origin is Origin.FILE:
        lines.append("It is kept by a fleet file: the next `clorefleet apply` sets the file's number again.")
    return tuple(lines)
