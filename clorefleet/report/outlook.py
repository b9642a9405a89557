"""What the money will do: to the end of the month, against the ceilings, and how long wallets last. Pure.

Two plain forecasts stand side by side, and neither knows of schedules: what runs now runs on at its rate; and
the days to come are like the last seven.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal

from clorefleet.domain.books import Books
from clorefleet.domain.deployment import Desired
from clorefleet.domain.guard import WalletReading
from clorefleet.domain.identity import DeploymentId, OrderId
from clorefleet.domain.lease import Lease
from clorefleet.domain.money import Currency
from clorefleet.report.charges import Charge, exact_sum, midnight

RECENT = timedelta(days=7)
_DAY_S = 86_400
_ABOUT = timedelta(minutes=2)
"""The market's list and our ledger may differ for so long about whether an order is live."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the present month comes to; of the fleet where `deployment_id` is None.

    Attributes:
        running_usd_per_day: of the orders that bill now, with fee.
        recent_usd_per_day: mean of the last seven days, or of as many as there are; None without any.
        at_present_usd: spent, and what runs now until the month ends.
        at_recent_usd: spent, and days like the last ones until the month ends.
        ceiling_usd: the daily ceiling for every day of this month from its first one on; None without one,
            and for a deployment that is stopped: what it may still spend is nothing.
    """

    deployment_id: DeploymentId | None
    month: str
    ends_at: datetime
    spent_usd: Decimal
    running_usd_per_day: Decimal
    recent_usd_per_day: Decimal | None
    at_present_usd: Decimal
    at_recent_usd: Decimal | None
    ceiling_usd: Decimal | None

    @property
    def is_over(self) -> bool:
        """The month would pass what the ceilings allow: it cannot, they hold. Then less will run."""
        return self.ceiling_usd is not None and self.at_present_usd > self.ceiling_usd


@dataclass(frozen=True, slots=True)
class Runway:
    """How long one wallet lasts: the balance as last read, at what bills now; its USD at the last rate that
    was recorded."""

    currency: Currency
    balance: Decimal
    balance_usd: Decimal | None
    burn_per_day: Decimal
    """With fee: of the open leases, and of the account's other orders as they were when it was read."""
    runway_days: Decimal | None
    read_at: datetime
    usd_per_unit: Decimal | None
    rate_source: str
    drift: Decimal
    since: datetime


def begin_of_month(now: datetime, zone: tzinfo) -> datetime:
    return midnight(now.astimezone(zone).date().replace(day=1), zone)


def end_of_month(now: datetime, zone: tzinfo) -> datetime:
    day = now.astimezone(zone).date().replace(day=28) + timedelta(days=4)
    return midnight(day.replace(day=1), zone)


def reach_back(now: datetime, zone: tzinfo) -> datetime:
    """From when on charges are needed for `forecasts`."""
    return min(begin_of_month(now, zone), now - RECENT)


def forecasts(found: Iterable[Charge], books: Books, *, now: datetime, zone: tzinfo) -> tuple[Forecast, ...]:
    """Of the fleet first, then of each deployment that spent this month or bills now.

    Args:
        found: all charges from `reach_back` on, or more.
    """
    charges = tuple(found)
    running: dict[DeploymentId, list[Decimal]] = {}
    for segment in books.segments:
        if segment.ended_at is None:
            running.setdefault(segment.deployment_id, []).append(segment.worst_case_usd_per_day())
    begin, end = begin_of_month(now, zone), end_of_month(now, zone)
    guard = books.guard.per_day
    wishes = {each.deployment_id: each for each in books.deployments}

    def ceiling(name: DeploymentId | None, mine: list[Charge]) -> Decimal | None:
        if name is None:
            budget, wished = guard, list(wishes.values())
        else:
            wished = [wishes[name]] if name in wishes else []
            running_on = [each for each in wished if each.desired is Desired.RUNNING]
            budget = running_on[0].requirement.budget if running_on else None
        if budget is None:
            return None
        began = min([now, *(each.created_at for each in wished), *(each.started_at for each in mine)])
        first_day = midnight(began.astimezone(zone).date(), zone)
        return budget.per_day.amount * Decimal(round((end - max(begin, first_day)) / timedelta(days=1)))

    names = {charge.deployment_id for charge in charges if charge.started_at >= begin} | set(running)

    def one(name: DeploymentId | None) -> Forecast:
        mine = [each for each in charges if name is None or each.deployment_id == name]
        rates = [rate for key, each in running.items() if name in (None, key) for rate in each]
        return _forecast(name, mine, exact_sum(rates), ceiling(name, mine), now, zone)

    return (one(None), *map(one, sorted(names)))


def _forecast(
    name: DeploymentId | None,
    found: list[Charge],
    running: Decimal,
    ceiling: Decimal | None,
    now: datetime,
    zone: tzinfo,
) -> Forecast:
    begin, end = begin_of_month(now, zone), end_of_month(now, zone)
    left_days = Decimal(int((end - now).total_seconds())) / _DAY_S
    spent = exact_sum(each.usd for each in found if each.started_at >= begin)
    recent = _recent_usd_per_day(found, now)
    return Forecast(
        deployment_id=name,
        month=f"{now.astimezone(zone):%Y-%m}",
        ends_at=end,
        spent_usd=spent,
        running_usd_per_day=running,
        recent_usd_per_day=recent,
        at_present_usd=spent + running * left_days,
        at_recent_usd=None if recent is None else spent + recent * left_days,
        ceiling_usd=ceiling,
    )


def _recent_usd_per_day(found: list[Charge], now: datetime) -> Decimal | None:
    """Charges that straddle the beginning count by their share of time. None below a day of history: a
    first hour says nothing about a month."""
    since = now - RECENT
    first = min((each.started_at for each in found), default=now)
    span = now - max(first, since)
    if span < timedelta(days=1):
        return None
    recent = [each.usd * _share_after(each, since) for each in found if each.ended_at > since]
    return exact_sum(recent) * _DAY_S / Decimal(int(span.total_seconds()))


def _share_after(charge: Charge, since: datetime) -> Decimal:
    if charge.started_at >= since or not charge.lasted:
        return Decimal(1)
    inside = (charge.ended_at - since) / timedelta(seconds=1)
    return Decimal(int(inside)) / Decimal(max(1, int(charge.lasted.total_seconds())))


def runways(books: Books) -> tuple[Runway, ...]:
    rates = {each.currency: each for each in books.rates}

    def one(reading: WalletReading) -> Runway:
        rate = rates.get(reading.currency)
        per_unit = None if rate is None else rate.usd_per_unit
        if reading.currency is Currency.USD:
            per_unit = Decimal(1)
        burn = _committed_per_day(books.leases.values(), reading.currency) + _foreign_per_day(books, reading)
        return Runway(
            currency=reading.currency,
            balance=reading.balance.amount,
            balance_usd=None if per_unit is None else reading.balance.amount * per_unit,
            burn_per_day=burn,
            runway_days=None if burn <= 0 else reading.balance.amount / burn,
            read_at=reading.read_at.astimezone(UTC),
            usd_per_unit=per_unit,
            rate_source="" if rate is None else rate.source,
            drift=reading.drift,
            since=reading.day_read_at,
        )

    return tuple(one(each) for each in books.wallets)


def _committed_per_day(leases: Iterable[Lease], currency: Currency) -> Decimal:
    """What the open leases that are billed in `currency` take a day: the worse of approved and billed price,
    as ceilings count it."""
    total = Decimal(0)
    for lease in leases:
        price = lease.plan.price
        if lease.is_open and price.billed.currency is currency:
            billed = price.billed.amount if lease.price is None else lease.price.amount
            total += max(price.billed.amount, billed) * (1 + price.fee_percent / 100)
    return total


def _foreign_per_day(books: Books, reading: WalletReading) -> Decimal:
    """What orders that are not ours took when the wallet was read: its burn less what was ours then.

    A reading stays as it is when the daemon stops or nothing bills any more: what was ours in it says nothing
    of now. An order that began or ended about then counts as one that was in it.
    """
    if books.since is not None and reading.read_at < books.since:
        return Decimal(0)  # what was ours then is not in these books
    ours: dict[OrderId, Decimal] = {}
    for segment in books.segments:
        is_after = segment.started_at > reading.read_at + _ABOUT
        is_before = segment.ended_at is not None and segment.ended_at < reading.read_at - _ABOUT
        if segment.currency is reading.currency and not is_after and not is_before:
            per_day = segment.price.amount * (1 + segment.fee_percent / 100)
            ours[segment.order_id] = max(per_day, ours.get(segment.order_id, Decimal(0)))
    return max(Decimal(0), reading.burn_per_day - sum(ours.values(), Decimal(0)))
