"""The ceiling on spending. Pure; called by `reconcile` and again inside the transaction of each rent intent.

A budget of B per day is kept in two ways, both against us:

- the rates of everything that may bill at once (open leases, rents in doubt, orders not yet read as
  gone) and of the new plan never sum to more than B per day;
- what the ledger says was spent since midnight UTC, plus those rates until the next midnight, plus
  the creation fees that are still to come, is at most B.

So a failed host's minutes count, and a replacement waits until the old order is gone where the
budget does not carry both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from clorefleet.domain.deployment import Deployment
from clorefleet.domain.lease import Lease
from clorefleet.domain.ledger import CREATION_FEE_AFTER_S, LedgerSegment
from clorefleet.domain.money import format_usd
from clorefleet.domain.plan import Plan

_DAY_S = Decimal(86_400)


@dataclass(frozen=True, slots=True)
class BudgetRefusal:
    """Why a plan may not be rented now."""

    text: str
    is_lasting: bool
    """True when waiting does not help: the plan alone is above the ceiling."""


def midnight_utc(now: datetime) -> datetime:
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def spent_since(segments: Iterable[LedgerSegment], since: datetime, now: datetime) -> Decimal:
    """USD that the ledger counts between `since` and `now`, never less than the truth.

    A segment that began before `since` is charged by its share of time; its creation fee counts on
    the day that it was charged or may be charged.
    """
    total = Decimal(0)
    for segment in segments:
        cost = segment.cost_usd(now)
        if segment.started_at >= since:
            total += cost
            continue
        end = segment.ended_at or now
        if end <= since:
            continue
        length_s = Decimal(max(1, int((end - segment.started_at).total_seconds())))
        inside_s = Decimal(int((end - since).total_seconds()))
        total += cost * min(Decimal(1), inside_s / length_s)
    return total


def refusal(
    deployment: Deployment,
    plan: Plan,
    *,
    open_leases: Iterable[Lease],
    spent_today_usd: Decimal,
    now: datetime,
) -> BudgetRefusal | None:
    """None when the plan may be rented now; `open_leases` are the deployment's that may bill."""
    budget = deployment.requirement.budget
    if budget is None:
        return None
    ceiling = budget.per_day.amount
    if plan.price.first_day_usd > ceiling:
        return BudgetRefusal(
            f"the plan costs up to ${format_usd(plan.price.first_day_usd)} on its first day, "
            f"above the budget of {budget}",
            is_lasting=True,
        )
    committed = Decimal(0)
    fees_to_come = plan.price.creation_fee * plan.price.usd_per_unit
    for lease in open_leases:
        committed += running_usd_per_day(lease)
        if now - (lease.ordered_at or lease.created_at) < timedelta(seconds=CREATION_FEE_AFTER_S):
            fees_to_come += lease.plan.price.creation_fee * lease.plan.price.usd_per_unit
    rate = committed + plan.price.running_usd_per_day
    if rate > ceiling:
        return BudgetRefusal(
            f"${format_usd(committed)}/day is still committed to servers that are not confirmed as ended; "
            f"together with ${format_usd(plan.price.running_usd_per_day)}/day that passes {budget}",
            is_lasting=False,
        )
    remaining_s = Decimal(int((midnight_utc(now) + timedelta(days=1) - now).total_seconds()))
    worst_today = spent_today_usd + rate * remaining_s / _DAY_S + fees_to_come
    if worst_today > ceiling:
        return BudgetRefusal(
            f"${format_usd(spent_today_usd)} was spent since midnight UTC; with this plan the day "
            f"could reach ${format_usd(worst_today)}, above {budget}",
            is_lasting=False,
        )
    return None


def running_usd_per_day(lease: Lease) -> Decimal:
    """The worse of the approved and the billed price, with fee, in USD at the plan's rate."""
    planned = lease.plan.price.running_usd_per_day
    if lease.price is None:
        return planned
    price = lease.plan.price
    billed = lease.price.amount * (1 + price.fee_percent / 100) * price.usd_per_unit
    return max(planned, billed)
