"""The ceilings on spending. Pure; called by `reconcile` and again inside the transaction of each rent intent.

There are four: per day and in total, of one deployment and of the fleet. A ceiling of B per day is kept in
two ways, both against us:

- the rates of everything that may bill at once (open leases, rents in doubt, orders not yet read as
  gone) and of the new plan never sum to more than B per day;
- what the ledger says was spent since midnight UTC, plus those rates until the next midnight, plus
  the creation fees that are still to come, is at most B.

So a failed host's minutes count, and a replacement waits until the old order is gone where the
budget does not carry both. Where the market bills in a coin, a rent is checked at the worst admissible
rate of that coin: the present one and `COIN_RATE_MARGIN` on top.

What was within the ceilings when it was rented can pass them later: the user lowers a budget, a coin jumps, a
total is used up. `overspending` then names the leases to give back, before the ceiling is passed.

The circuit breaker (`why_stop_renting`) is a ceiling on trouble: many rents, or many failed hosts, in a short
time mean that something is wrong that renting will not mend. Only the user ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from clorefleet.domain.deployment import Deployment
from clorefleet.domain.guard import FleetGuard
from clorefleet.domain.host import HostFault
from clorefleet.domain.identity import DeploymentId, LeaseId
from clorefleet.domain.lease import NO_ORDER_AFTER_YES, Lease, LeaseState, Phase
from clorefleet.domain.ledger import CREATION_FEE_AFTER_S, LedgerSegment
from clorefleet.domain.money import (
    Budget,
    Currency,
    ExchangeRate,
    UsdPerUnit,
    format_usd,
    worst_rate_factor,
)
from clorefleet.domain.plan import Plan
from clorefleet.fleet.limits import DEFAULT_LIMITS, FleetLimits

_DAY_S = Decimal(86_400)
_FIRST_STRETCH = timedelta(hours=1)
"""A rent that a total ceiling would end within this is not begun."""
_SLACK = timedelta(minutes=2)
"""The ledger counts whole minutes and shares a segment out over midnight by time; less than this is
rounding."""


@dataclass(frozen=True, slots=True)
class BudgetRefusal:
    """Why a plan may not be rented now."""

    text: str
    is_lasting: bool
    """True when waiting does not help: the plan alone is above the ceiling."""


@dataclass(frozen=True, slots=True)
class FleetSpending:
    """What all deployments together hold and have spent, under the ceilings that the user set for them."""

    guard: FleetGuard = field(default_factory=FleetGuard)
    open_leases: tuple[Lease, ...] = ()
    spent_today_usd: Decimal = Decimal(0)
    spent_total_usd: Decimal = Decimal(0)
    deployment_spent_total_usd: Mapping[DeploymentId, Decimal] = field(default_factory=dict)
    """For the deployments that have a total ceiling."""
    usd_per_unit: UsdPerUnit = field(default_factory=dict)


_ALONE = FleetSpending()


class _Ceiling(NamedTuple):
    """One scope's two ceilings, and what counts against them."""

    whose: str
    budget: Budget | None
    total_usd: Decimal | None
    open_leases: tuple[Lease, ...]
    spent_today_usd: Decimal
    spent_total_usd: Decimal
    usd_per_unit: UsdPerUnit

    @property
    def per_day_usd(self) -> Decimal | None:
        return None if self.budget is None else self.budget.per_day.amount

    @property
    def scope(self) -> str:
        return f"{self.whose} budget of {self.budget}"


def midnight_utc(now: datetime) -> datetime:
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def spent_since(segments: Iterable[LedgerSegment], since: datetime, now: datetime) -> Decimal:
    """USD that the ledger counts between `since` and `now`, never less than the truth.

    An order that ran over `since` is shared out as we count it, so that its creation fee belongs to the day
    that minute ten falls into. What the market charged beyond our count is shared alike. Where it settled for
    less (the order waited unseen), nobody tells on which day: nothing is taken off for that.
    """
    total = Decimal(0)
    for segment in segments:
        if segment.order_began_at >= since:
            total += segment.cost_usd(now)
        elif (segment.ended_at or now) > since:
            total += _charged_after(since, segment, now) * segment.usd_per_unit
    return total


def _charged_after(since: datetime, segment: LedgerSegment, now: datetime) -> Decimal:
    charged, counted = segment.charged(now), segment.estimate(now).amount
    if counted == 0:
        return charged
    return (counted - segment.counted_until(since)) * max(Decimal(1), charged / counted)


def refusal(
    deployment: Deployment,
    plan: Plan,
    *,
    open_leases: Iterable[Lease],
    spent_today_usd: Decimal,
    now: datetime,
    fleet: FleetSpending = _ALONE,
) -> BudgetRefusal | None:
    """None when the plan may be rented now; `open_leases` are the deployment's that may bill."""
    own = _own_ceiling(deployment, tuple(open_leases), spent_today_usd, fleet)
    for ceiling in (own, _fleet_ceiling(fleet)):
        found = _refusal_by(ceiling, plan, now)
        if found is not None:
            return found
    return None


def _own_ceiling(
    deployment: Deployment, leases: tuple[Lease, ...], spent_today_usd: Decimal, fleet: FleetSpending
) -> _Ceiling:
    return _Ceiling(
        whose="the",
        budget=deployment.requirement.budget,
        total_usd=fleet.guard.deployment_totals_usd.get(deployment.deployment_id),
        open_leases=leases,
        spent_today_usd=spent_today_usd,
        spent_total_usd=fleet.deployment_spent_total_usd.get(deployment.deployment_id, Decimal(0)),
        usd_per_unit=fleet.usd_per_unit,
    )


def _fleet_ceiling(fleet: FleetSpending) -> _Ceiling:
    return _Ceiling(
        whose="the fleet's",
        budget=fleet.guard.per_day,
        total_usd=fleet.guard.total_usd,
        open_leases=fleet.open_leases,
        spent_today_usd=fleet.spent_today_usd,
        spent_total_usd=fleet.spent_total_usd,
        usd_per_unit=fleet.usd_per_unit,
    )


def _refusal_by(ceiling: _Ceiling, plan: Plan, now: datetime) -> BudgetRefusal | None:
    worst = _worst_factor(plan, ceiling.usd_per_unit)
    rate_of_plan = plan.price.running_usd_per_day * worst
    fee_of_plan = plan.price.creation_fee * plan.price.usd_per_unit * worst
    if ceiling.total_usd is not None:
        first_stretch = rate_of_plan * _share_of_day(_FIRST_STRETCH) + fee_of_plan
        if ceiling.spent_total_usd + first_stretch > ceiling.total_usd:
            return BudgetRefusal(
                f"${format_usd(ceiling.spent_total_usd)} of the total of ${format_usd(ceiling.total_usd)} "
                "is spent; what is left does not carry an hour of this plan",
                is_lasting=True,
            )
    if ceiling.per_day_usd is None:
        return None
    if rate_of_plan + fee_of_plan > ceiling.per_day_usd:
        at_worst = "" if worst == 1 else " at the worst admissible coin rate"
        return BudgetRefusal(
            f"the plan costs up to ${format_usd(rate_of_plan + fee_of_plan)} on its first day{at_worst}, "
            f"above {ceiling.scope}",
            is_lasting=True,
        )
    committed = Decimal(0)
    fees_to_come = fee_of_plan
    for lease in ceiling.open_leases:
        factor = _worst_factor(lease.plan, ceiling.usd_per_unit)
        committed += running_usd_per_day(lease) * factor
        if now - (lease.ordered_at or lease.created_at) < timedelta(seconds=CREATION_FEE_AFTER_S):
            fees_to_come += lease.plan.price.creation_fee * lease.plan.price.usd_per_unit * factor
    rate = committed + rate_of_plan
    if rate > ceiling.per_day_usd:
        return BudgetRefusal(
            f"${format_usd(committed)}/day is committed to servers that run or are not confirmed as ended; "
            f"together with ${format_usd(rate_of_plan)}/day that passes {ceiling.scope}",
            is_lasting=False,
        )
    worst_today = ceiling.spent_today_usd + rate * _share_of_day(_until_midnight(now)) + fees_to_come
    if worst_today > ceiling.per_day_usd:
        return BudgetRefusal(
            f"${format_usd(ceiling.spent_today_usd)} was spent since midnight UTC; with this plan the day "
            f"could reach ${format_usd(worst_today)}, above {ceiling.scope}",
            is_lasting=False,
        )
    return None


def overspending(
    deployments: Iterable[Deployment],
    *,
    spent_today_usd: Mapping[DeploymentId, Decimal],
    fleet: FleetSpending,
    now: datetime,
    limits: FleetLimits = DEFAULT_LIMITS,
) -> Mapping[LeaseId, str]:
    """Leases that must be given back so that no ceiling is passed, each with the reason for the user.

    Of too high a rate, the newest go first and no more than needed; where a ceiling is used up, all go.
    """
    found: dict[LeaseId, str] = {}
    held: dict[DeploymentId, list[Lease]] = {}
    for lease in fleet.open_leases:
        held.setdefault(lease.deployment_id, []).append(lease)
    for deployment in deployments:
        mine = tuple(held.get(deployment.deployment_id, ()))
        spent = spent_today_usd.get(deployment.deployment_id, Decimal(0))
        found |= _overspent(_own_ceiling(deployment, mine, spent, fleet), now, limits)
    staying = tuple(lease for lease in fleet.open_leases if lease.lease_id not in found)
    return found | dict(_overspent(_fleet_ceiling(fleet)._replace(open_leases=staying), now, limits))


def _overspent(ceiling: _Ceiling, now: datetime, limits: FleetLimits) -> Mapping[LeaseId, str]:
    if (ceiling.per_day_usd is None and ceiling.total_usd is None) or not ceiling.open_leases:
        return {}
    rates = {each.lease_id: _present_rate(each, ceiling.usd_per_unit) for each in ceiling.open_leases}
    rate = sum(rates.values(), Decimal(0))
    if ceiling.total_usd is None and _is_far_below(ceiling, rate, limits):
        return {}
    # A lease that is leaving bills until it is gone; it is not asked to leave again.
    staying = [
        each
        for each in ceiling.open_leases
        if each.state is LeaseState.ORDERED and each.phase is not Phase.DRAINING
    ]
    if ceiling.total_usd is not None:
        ahead = ceiling.spent_total_usd + rate * _share_of_day(limits.stop_lead)
        if ahead > ceiling.total_usd:
            why = (
                f"${format_usd(ceiling.spent_total_usd)} of the total of "
                f"${format_usd(ceiling.total_usd)} is spent"
            )
            return {each.lease_id: why for each in staying}
    if ceiling.per_day_usd is None:
        return {}
    lead = min(limits.stop_lead, _until_midnight(now))
    ahead = ceiling.spent_today_usd + rate * (_share_of_day(lead) - _SLACK_SHARE)
    if ahead > ceiling.per_day_usd:
        why = (
            f"${format_usd(ceiling.spent_today_usd)} was spent since midnight UTC, "
            f"nearly all of {ceiling.scope}"
        )
        return {each.lease_id: why for each in staying}
    if rate <= ceiling.per_day_usd:
        return {}
    found: dict[LeaseId, str] = {}
    leaving = {each.lease_id for each in ceiling.open_leases} - {each.lease_id for each in staying}
    rate -= sum((rates[lease_id] for lease_id in leaving), Decimal(0))
    for lease in sorted(staying, key=lambda each: each.created_at, reverse=True):
        if rate <= ceiling.per_day_usd:
            break
        found[lease.lease_id] = f"${format_usd(rate)}/day passes {ceiling.scope}"
        rate -= rates[lease.lease_id]
    return found


def _is_far_below(ceiling: _Ceiling, rate: Decimal, limits: FleetLimits) -> bool:
    """Even where all of `stop_lead` lay before midnight; as nearly always, so that it is asked first."""
    per_day = ceiling.per_day_usd
    ahead = ceiling.spent_today_usd + rate * _share_of_day(limits.stop_lead)
    return per_day is not None and rate <= per_day and ahead <= per_day


def committed_usd_per_day(leases: Iterable[Lease], rates: Iterable[ExchangeRate] = ()) -> Decimal:
    """What they all cost, each at its worse price; a coin at what it is worth by `rates`, else as it was when
    the lease was rented."""
    usd_per_unit = {rate.currency: rate.usd_per_unit for rate in rates}
    return sum((_present_rate(lease, usd_per_unit) for lease in leases), Decimal(0))


def running_usd_per_day(lease: Lease) -> Decimal:
    """The worse of the approved and the billed price, with fee, in USD at the plan's rate."""
    price = lease.plan.price
    planned = price.running_usd_per_day
    if lease.price is None or lease.price.amount == price.billed.amount:
        return planned
    billed = lease.price.amount * (1 + price.fee_percent / 100) * price.usd_per_unit
    return max(planned, billed)


def _present_rate(lease: Lease, usd_per_unit: UsdPerUnit) -> Decimal:
    """USD per day at the present rate of the coin."""
    price = lease.plan.price
    present = usd_per_unit.get(price.billed.currency, price.usd_per_unit)
    return running_usd_per_day(lease) * (present / price.usd_per_unit)


def _worst_factor(plan: Plan, usd_per_unit: UsdPerUnit) -> Decimal:
    """By how much the plan's USD figures may grow: 1 where the market bills in USD."""
    currency = plan.price.billed.currency
    if currency is Currency.USD:
        return Decimal(1)
    risen = usd_per_unit.get(currency, plan.price.usd_per_unit) / plan.price.usd_per_unit
    return max(Decimal(1), risen) * worst_rate_factor(currency)


_SLACK_SHARE = Decimal(int(_SLACK.total_seconds())) / _DAY_S


def _until_midnight(now: datetime) -> timedelta:
    return midnight_utc(now) + timedelta(days=1) - now


def _share_of_day(duration: timedelta) -> Decimal:
    return Decimal(int(duration.total_seconds())) / _DAY_S


# -- the circuit breaker


def why_stop_renting(
    leases: Iterable[Lease],
    faults: Iterable[HostFault],
    guard: FleetGuard,
    now: datetime,
    limits: FleetLimits = DEFAULT_LIMITS,
) -> str:
    """Why nothing more should be rented until the user has looked; "" while all is usual.

    Refused rents cost nothing and do not count; one that no list showed after the market's yes does more.
    """
    if guard.is_stopped:
        return ""
    leases = tuple(leases)
    since, resumed_at = now - limits.breaker_window, guard.resumed_at
    # Clocks are set back. What lies ahead of ours was before that, and would count for as long as it lies
    # there; a "go on" that lies farther ahead than two machines differ must not switch the breaker off.
    if resumed_at is not None and resumed_at <= now + limits.breaker_window:
        since = max(since, resumed_at)
    rents = sum(
        1 for each in leases if since <= each.created_at <= now and each.state is not LeaseState.REFUSED
    )
    if rents > limits.rents_per_window:
        return (
            f"{rents} servers were rented within {_hours(limits.breaker_window)}, more than "
            f"{limits.rents_per_window}: if you did not ask for that many, something makes them fail"
        )
    unseen = sum(1 for each in leases if since <= each.created_at <= now and _is_unseen(each))
    if unseen >= limits.unseen_rents_per_window:
        return (
            f"the market said yes to {unseen} rents within {_hours(limits.breaker_window)}, and its list "
            "shows no order that is known to be of them: they may bill. `clorefleet sweep` shows what does"
        )
    failed = len({each.server_id for each in faults if since <= each.at <= now})
    if failed > limits.failed_hosts_per_window:
        return (
            f"{failed} hosts failed within {_hours(limits.breaker_window)}, more than "
            f"{limits.failed_hosts_per_window}: more rents would only cost more"
        )
    return ""


def stops_renting(more: int, limits: FleetLimits = DEFAULT_LIMITS) -> str:
    """What is said before `more` servers are asked for at once; "" where as many stop nothing."""
    if more <= limits.rents_per_window:
        return ""
    return (
        f"More than {limits.rents_per_window} rents within {_hours(limits.breaker_window)} stop renting: "
        "after them the rest waits until `clorefleet budget --resume`."
    )


def _is_unseen(lease: Lease) -> bool:
    return lease.refusal == NO_ORDER_AFTER_YES and lease.order_id is None


def _hours(duration: timedelta) -> str:
    hours = duration.total_seconds() / 3600
    return f"{hours:g} hour" + ("" if hours == 1 else "s")
