"""The cost report in one value, for the terminal, JSON, CSV and the page. Pure: books and a time in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal

from clorefleet.domain.books import Books
from clorefleet.domain.dimension import Dimension
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId
from clorefleet.domain.money import Currency
from clorefleet.report.charges import Charge, charges, exact_sum, first_segments, planned_usd_per_day
from clorefleet.report.cost import CostRow, rows_by, total_of
from clorefleet.report.outlook import Forecast, Runway, forecasts, reach_back, runways
from clorefleet.report.waste import Waste, waste


@dataclass(frozen=True, slots=True)
class CostQuestion:
    """What a report is asked for.

    Attributes:
        zone: in which days, weeks and months are counted; `zone_name` is how it is printed.
        since, until: the window; None is open.
        deployment_id: only this one; the fleet's forecast and the wallets stay.
    """

    by: tuple[Dimension, ...]
    zone: tzinfo
    zone_name: str
    since: datetime | None = None
    until: datetime | None = None
    deployment_id: DeploymentId | None = None


@dataclass(frozen=True, slots=True)
class Bill:
    """The ledger's line for one stretch of one order at one rate: the whole of it, whatever the window."""

    order_id: OrderId
    lease_id: LeaseId
    deployment_id: DeploymentId
    server_id: int | None
    gpus: str
    price: str
    """As billed, without fee."""
    price_per_day: Decimal
    currency: Currency
    is_spot: bool
    fee_percent: Decimal
    started_at: datetime
    ended_at: datetime | None
    lasted: timedelta
    state: str
    """`running`, `ended`, or `settled` once the market's final figure is known."""
    cost: Decimal
    estimate: Decimal
    market_spend: Decimal | None
    drift: Decimal | None
    usd_per_unit: Decimal
    rate_source: str
    cost_usd: Decimal
    reason_ended: str


@dataclass(frozen=True, slots=True)
class Kept:
    """What the plan of one lease promised, and what came of it; over the lease's charges in the window."""

    lease_id: LeaseId
    deployment_id: DeploymentId
    server_id: int
    gpus: str
    lasted: timedelta
    planned_usd: Decimal
    actual_usd: Decimal
    planned_usd_per_day: Decimal
    """Price and fee when it was rented."""
    actual_usd_per_day: Decimal | None
    """None below an hour: the creation fee alone would say nothing of a day."""
    all_in_usd_per_day: Decimal
    """The plan's, with start-up and expected losses spread over a day."""
    predicted_tokens_per_s: float
    measured_tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class CostReport:
    at: datetime
    question: CostQuestion
    total: CostRow
    rows: tuple[CostRow, ...]
    timeline_by: Dimension
    timeline: tuple[CostRow, ...]
    """By day; by month where there are more days than a plot can show."""
    kept: tuple[Kept, ...]
    waste: tuple[Waste, ...]
    forecasts: tuple[Forecast, ...]
    wallets: tuple[Runway, ...]
    bills: tuple[Bill, ...]
    unsettled_usd: Decimal
    """Of `total`, what may still change because the market's final bill is not known."""

    @property
    def is_empty(self) -> bool:
        """Nothing was charged or used in the window."""
        return not self.rows

    @property
    def wasted_usd(self) -> Decimal:
        return exact_sum(each.usd for each in self.waste)

    @property
    def settled_drift_usd(self) -> Decimal | None:
        """What settled bills are beyond our own count of minutes; None while none is settled."""
        found = [each.drift * each.usd_per_unit for each in self.bills if each.drift is not None]
        return exact_sum(found) if found else None


TIMELINE_DAYS_MAX = timedelta(days=62)
EARLIEST_DAY = timedelta(hours=1)
"""From which on a lease's cost says something about its cost a day."""


def books_since(question: CostQuestion, *, now: datetime) -> datetime | None:
    """From when on the books are needed for the question; None means all of them."""
    return None if question.since is None else min(question.since, reach_back(now, question.zone))


def cost_report(books: Books, question: CostQuestion, *, now: datetime) -> CostReport:
    """
    Args:
        books: from `books_since` on.
    """
    zone, since, until = question.zone, question.since, question.until
    reach = reach_back(now, zone)
    lately = charges(books, now=now, zone=zone, since=reach)
    asked = books if question.deployment_id is None else _only(books, question.deployment_id)
    found = charges(asked, now=now, zone=zone, since=since, until=until)
    usage = [
        each
        for each in asked.usage
        if (since is None or each.hour >= since) and (until is None or each.hour < until)
    ]
    timeline_by = _timeline_by(found)
    named = {charge.order_id for charge in found}
    open_orders = {each.order_id for each in asked.segments if each.settled_at is None}
    return CostReport(
        at=now,
        question=question,
        total=total_of(found, usage),
        rows=rows_by(question.by, found, asked, zone=zone, since=since, until=until),
        timeline_by=timeline_by,
        timeline=rows_by((timeline_by,), found, asked, zone=zone, since=since, until=until),
        kept=_kept(found, asked),
        waste=waste(found, asked),
        forecasts=tuple(
            each
            for each in forecasts(lately, books, now=now, zone=zone)
            if question.deployment_id in (None, each.deployment_id) or each.deployment_id is None
        ),
        wallets=runways(books),
        bills=_bills(asked, named, now),
        unsettled_usd=exact_sum(each.usd for each in found if each.order_id in open_orders),
    )


def _timeline_by(found: Sequence[Charge]) -> Dimension:
    span = found[-1].started_at - found[0].started_at if found else timedelta(0)
    return Dimension.DAY if span <= TIMELINE_DAYS_MAX else Dimension.MONTH


def _only(books: Books, deployment_id: DeploymentId) -> Books:
    segments = tuple(each for each in books.segments if each.deployment_id == deployment_id)
    leases = {each.lease_id for each in segments}
    return replace(
        books,
        segments=segments,
        usage=tuple(each for each in books.usage if each.lease_id in leases),
    )


def _bills(books: Books, orders: set[OrderId], now: datetime) -> tuple[Bill, ...]:
    found = []
    for segment in books.segments:
        if segment.order_id not in orders:
            continue
        lease = books.leases.get(segment.lease_id)
        found.append(
            Bill(
                order_id=segment.order_id,
                lease_id=segment.lease_id,
                deployment_id=segment.deployment_id,
                server_id=None if lease is None else lease.server_id,
                gpus="?" if lease is None else lease.plan.offer.gpu_summary,
                price=str(segment.price),
                price_per_day=segment.price.amount,
                currency=segment.currency,
                is_spot=segment.is_spot,
                fee_percent=segment.fee_percent,
                started_at=segment.started_at,
                ended_at=segment.ended_at,
                lasted=max(timedelta(0), (segment.ended_at or now) - segment.started_at),
                state="settled" if segment.settled_at else "ended" if segment.ended_at else "running",
                cost=segment.cost(now).amount,
                estimate=segment.estimate(now).amount,
                market_spend=segment.market_spend,
                drift=segment.drift,
                usd_per_unit=segment.usd_per_unit,
                rate_source=segment.rate_source,
                cost_usd=segment.cost_usd(now),
                reason_ended="" if lease is None else lease.reason,
            )
        )
    return tuple(found)


def _kept(found: Sequence[Charge], books: Books) -> tuple[Kept, ...]:
    by_lease: dict[LeaseId, list[Charge]] = {}
    for charge in found:
        by_lease.setdefault(charge.lease_id, []).append(charge)
    first, kept = first_segments(books.segments), []
    for lease_id, mine in by_lease.items():
        lease = books.leases.get(lease_id)
        if lease is None:
            continue
        total = total_of(mine)
        kept.append(
            Kept(
                lease_id=lease_id,
                deployment_id=lease.deployment_id,
                server_id=lease.server_id,
                gpus=lease.plan.offer.gpu_summary,
                lasted=total.lasted,
                planned_usd=total.planned_usd,
                actual_usd=total.usd,
                planned_usd_per_day=planned_usd_per_day(books, first[lease_id]),
                actual_usd_per_day=total.usd_per_day if total.lasted >= EARLIEST_DAY else None,
                all_in_usd_per_day=lease.plan.price.all_in_usd_per_day.amount,
                predicted_tokens_per_s=lease.plan.speed.decode_tokens_per_s,
                measured_tokens_per_s=lease.measured_tokens_per_s,
            )
        )
    return tuple(kept)
