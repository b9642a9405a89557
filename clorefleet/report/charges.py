"""The ledger cut into charges: each the part of one lease's bill for one stretch of one stage on one day.

Nothing is lost or counted twice by the cutting: the charges of a segment add up to the segment's cost to
the last digit, and their times to its time. A bill is spread over its time as our own count of it grows
(whole minutes), scaled to what the market charged. The creation fee is a charge of its own, without length.

Sums are exact: they are made in a context wide enough for the digits of any coin rate.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import ROUND_DOWN, Context, Decimal, localcontext
from enum import StrEnum
from itertools import pairwise

from clorefleet.domain.books import Books, PhaseEntry
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId
from clorefleet.domain.lease import Phase
from clorefleet.domain.ledger import CREATION_FEE_AFTER_S, LedgerSegment
from clorefleet.domain.money import Currency

_EXACT = Context(prec=80)
_UNIT = Decimal("0.00000001")
_HOUR = timedelta(hours=1)
_DAY_S = 86_400
_ZERO = Decimal(0)


class Stage(StrEnum):
    """What a lease's time went to."""

    BOOTSTRAP = "bootstrap"
    """From the order to serving, and again where an engine was launched anew. The creation fee too: it is
    paid for a start, whatever the server does in minute ten."""
    SERVING = "serving"
    """Ready, in an hour in which the gateway sent it a request."""
    IDLE = "idle"
    """Ready, in an hour without any."""
    DRAINING = "draining"
    """Given up or given back, and not yet gone."""
    UNRECORDED = "unrecorded"
    """Before phases were recorded."""


_STAGES = {
    Phase.SERVING: Stage.SERVING,
    Phase.DRAINING: Stage.DRAINING,
    Phase.ENDED: Stage.DRAINING,
}


@dataclass(frozen=True, slots=True)
class Charge:
    """Part of one lease's bill; of one segment, one stage, one local day."""

    lease_id: LeaseId
    deployment_id: DeploymentId
    order_id: OrderId
    is_spot: bool
    currency: Currency
    stage: Stage
    started_at: datetime
    ended_at: datetime
    amount: Decimal
    """In the billed currency."""
    usd: Decimal
    """At the rate that the ledger recorded."""
    planned_usd: Decimal
    """What the plan said when the server was rented, for the same time."""

    @property
    def lasted(self) -> timedelta:
        return self.ended_at - self.started_at


def exact_sum(amounts: Iterable[Decimal]) -> Decimal:
    """Without rounding."""
    total = _ZERO
    for amount in amounts:
        total = _EXACT.add(total, amount)
    return total


def exact_cost_usd(segment: LedgerSegment, now: datetime) -> Decimal:
    """The segment's cost in USD without rounding: `LedgerSegment.cost_usd` to its 28 digits."""
    return _EXACT.multiply(segment.cost(now).amount, segment.usd_per_unit)


def charges(
    books: Books,
    *,
    now: datetime,
    zone: tzinfo,
    since: datetime | None = None,
    until: datetime | None = None,
) -> tuple[Charge, ...]:
    """All charges of the books, or those between `since` and `until`; by time.

    Days are those of `zone`. What lies outside the window is cut off, not dropped with what it belongs to.
    """
    phases: dict[LeaseId, list[PhaseEntry]] = {}
    for entry in books.phases:
        phases.setdefault(entry.lease_id, []).append(entry)
    used: dict[LeaseId, set[datetime]] = {}
    for hour in books.usage:
        if hour.requests or hour.failures:
            used.setdefault(hour.lease_id, set()).add(hour.hour)
    first = first_segments(books.segments)
    edges = [edge for edge in (since, until) if edge is not None]
    found: list[Charge] = []
    # As the ledger computes them, before anything is summed.
    costs = [segment.cost(now).amount for segment in books.segments]
    with localcontext(_EXACT):
        for segment, cost in zip(books.segments, costs, strict=True):
            if _is_outside(segment, since, until, now):
                continue
            planned = planned_usd_per_day(books, first[segment.lease_id])
            stages = _stages(phases.get(segment.lease_id, []), used.get(segment.lease_id, set()), now)
            found += (
                charge
                for charge in _cut(segment, cost, stages, planned, now=now, zone=zone, edges=edges)
                if _is_inside(charge, since, until)
            )
    return tuple(sorted(found, key=lambda each: (each.started_at, each.order_id, each.ended_at)))


def _is_outside(
    segment: LedgerSegment, since: datetime | None, until: datetime | None, now: datetime
) -> bool:
    """No charge of it can be in the window."""
    end = max(segment.started_at, segment.ended_at or now)
    return (since is not None and end < since) or (until is not None and segment.started_at >= until)


def _is_inside(charge: Charge, since: datetime | None, until: datetime | None) -> bool:
    """A window has its beginning and not its end, so that windows side by side share nothing."""
    return (since is None or charge.started_at >= since) and (until is None or charge.started_at < until)


def first_segments(segments: Sequence[LedgerSegment]) -> dict[LeaseId, LedgerSegment]:
    first: dict[LeaseId, LedgerSegment] = {}
    for segment in segments:
        first.setdefault(segment.lease_id, segment)
    return first


def planned_usd_per_day(books: Books, first: LedgerSegment) -> Decimal:
    """Price and fee as rented. A spot lease's plan follows its bids: there the first price is the plan's."""
    lease = books.leases.get(first.lease_id)
    if lease is None:
        return first.worst_case_usd_per_day()
    price = lease.plan.price
    if first.is_spot and price.billed.currency is first.currency:
        price = replace(price, billed=first.price)
    return price.running_usd_per_day


@dataclass(frozen=True, slots=True)
class _Stages:
    """A lease's stages by time: `stages[i]` holds from `at[i]` on."""

    at: list[datetime]
    stages: list[Stage]

    def during(self, instant: datetime) -> Stage:
        index = bisect_right(self.at, instant) - 1
        return Stage.UNRECORDED if index < 0 else self.stages[index]


def _stages(entries: Sequence[PhaseEntry], used: set[datetime], now: datetime) -> _Stages:
    """Ready time is serving or idle by the hour; neighbours of one stage become one."""
    at: list[datetime] = []
    stages: list[Stage] = []

    def begin(instant: datetime, stage: Stage) -> None:
        if at and at[-1] == instant:
            stages[-1] = stage
        elif not stages or stages[-1] is not stage:
            at.append(instant)
            stages.append(stage)

    for index, entry in enumerate(entries):
        stage = _STAGES.get(entry.phase, Stage.BOOTSTRAP)
        if stage is not Stage.SERVING:
            begin(entry.at, stage)
            continue
        end = entries[index + 1].at if index + 1 < len(entries) else max(now, entry.at)
        instant = entry.at
        while True:
            hour = instant.replace(minute=0, second=0, microsecond=0)
            begin(instant, Stage.SERVING if hour in used else Stage.IDLE)
            instant = hour + _HOUR
            if instant >= end:
                break
    return _Stages(at, stages)


def _cut(
    segment: LedgerSegment,
    cost: Decimal,
    stages: _Stages,
    planned_usd_per_day: Decimal,
    *,
    now: datetime,
    zone: tzinfo,
    edges: Iterable[datetime],
) -> Iterator[Charge]:
    begin = segment.started_at
    end = max(begin, segment.ended_at or now)
    cuts = [begin, *_midnights(begin, end, zone)]
    cuts += (at for at in (*stages.at, *edges) if begin < at < end)
    fee_at = segment.order_began_at + timedelta(seconds=CREATION_FEE_AFTER_S)
    has_fee = bool(segment.creation_fee) and begin < fee_at <= end
    if has_fee:
        cuts.append(fee_at)
    bounds = sorted({*cuts, end})
    if len(bounds) == 1:
        bounds = [begin, end]
    grown = _Growth(segment, end, cost)
    spent = _ZERO

    def charge(stage: Stage, earlier: datetime, later: datetime, amount: Decimal, planned: Decimal) -> Charge:
        return Charge(
            lease_id=segment.lease_id,
            deployment_id=segment.deployment_id,
            order_id=segment.order_id,
            is_spot=segment.is_spot,
            currency=segment.currency,
            stage=stage,
            started_at=earlier,
            ended_at=later,
            amount=amount,
            usd=amount * segment.usd_per_unit,
            planned_usd=planned,
        )

    for earlier, later in pairwise(bounds):
        up_to = cost if later == end else grown(later)
        fee = grown.fee if has_fee and later == fee_at else _ZERO
        planned = _planned_usd(planned_usd_per_day, earlier, later)
        yield charge(stages.during(earlier), earlier, later, up_to - spent - fee, planned)
        spent = up_to
    if has_fee:
        was_recorded = stages.during(fee_at) is not Stage.UNRECORDED
        planned = (segment.creation_fee * segment.usd_per_unit).quantize(_UNIT)
        stage = Stage.BOOTSTRAP if was_recorded else Stage.UNRECORDED
        yield charge(stage, fee_at, fee_at, grown.fee, planned)


class _Growth:
    """How much of a segment's cost had been charged at an instant inside it."""

    def __init__(self, segment: LedgerSegment, end: datetime, cost: Decimal) -> None:
        self._segment, self._end, self._cost = segment, end, cost
        self._counted = segment.counted_until(end)

    def __call__(self, at: datetime) -> Decimal:
        if self._counted > 0:
            share = self._cost * self._segment.counted_until(at) / self._counted
        else:
            # Charged before our first minute was full: by time, the only thing that is known.
            lasted = Decimal((self._end - self._segment.started_at) / timedelta(microseconds=1))
            passed = Decimal((at - self._segment.started_at) / timedelta(microseconds=1))
            share = self._cost * passed / lasted
        return share.quantize(_UNIT, ROUND_DOWN)

    @property
    def fee(self) -> Decimal:
        """The creation fee's part of the cost, of a segment that has it."""
        if self._counted <= 0:
            return _ZERO
        return (self._cost * self._segment.creation_fee / self._counted).quantize(_UNIT, ROUND_DOWN)


def _planned_usd(per_day: Decimal, begin: datetime, end: datetime) -> Decimal:
    seconds = Decimal(int((end - begin).total_seconds()))
    return (per_day * seconds / _DAY_S).quantize(_UNIT)


def _midnights(begin: datetime, end: datetime, zone: tzinfo) -> Iterator[datetime]:
    """Where local days begin, between both."""
    day = begin.astimezone(zone).date()
    while True:
        day += timedelta(days=1)
        at = midnight(day, zone)
        if at >= end:
            return
        if at > begin:
            yield at


def midnight(day: date, zone: tzinfo) -> datetime:
    """The instant at which a local day begins, in UTC; also on the days on which clocks change."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
