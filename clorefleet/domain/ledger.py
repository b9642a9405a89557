"""What was spent: segments of lease x rate, side by side without gap or overlap. Pure.

An order has one segment per stretch of time in which neither its price nor the coin's recorded rate
changed. All of an order's segments count the same minutes from the same origin, the order's own
creation time, so that each minute belongs to exactly one of them, wherever a boundary falls.

Two figures are kept apart on purpose. `estimate` is ours: whole minutes x rate, fee on top, creation fee with
minute ten (the market's documented rules; the grain of a minute is assumed), rounded once to the market's
8 decimals. `market_spend` is the market's own counter, handed out to an order's segments by `apportioned`.
While a lease runs, the larger of both is shown; once the list of completed orders has the order, its
figure is final. The difference between both is the `drift` that `clorefleet cost` shows.

The functions below turn an order's segments into its segments after something happened. A clock that jumps
backwards can make a segment short, never negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from itertools import pairwise

from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId, ServerId
from clorefleet.domain.money import Currency, Money, Rate

CHARGE_GRAIN_S = 60
CREATION_FEE_AFTER_S = 600
_CREATION_FEE_MINUTE = CREATION_FEE_AFTER_S // CHARGE_GRAIN_S
_QUANTUM = Decimal("0.00000001")
_EXACT = Context(prec=60)
"""Of sums that must not depend on their order: a bill at 1e-8 times a rate of 17 digits, and room."""


@dataclass(frozen=True, slots=True)
class LedgerSegment:
    lease_id: LeaseId
    deployment_id: DeploymentId
    order_id: OrderId
    price: Rate
    """Per day, in the billed currency, without fee."""
    is_spot: bool
    fee_percent: Decimal
    creation_fee: Decimal
    """In the billed currency. Counted by the segment that minute ten of the order falls into."""
    usd_per_unit: Decimal
    """Recorded when the segment was opened; it never changes afterwards."""
    rate_source: str
    started_at: datetime
    ended_at: datetime | None = None
    market_spend: Decimal | None = None
    settled_at: datetime | None = None
    order_started_at: datetime | None = None
    """From when the order's minutes are counted; None means `started_at`."""

    @property
    def currency(self) -> Currency:
        return self.price.currency

    def estimate(self, now: datetime) -> Money:
        """Our own count up to `now`, or to the end of the segment. Never negative, also if a clock jumps."""
        return Money(self._estimated(now), self.currency)

    def cost(self, now: datetime) -> Money:
        """The settled bill, or the larger of our estimate and the market's counter while it runs."""
        return Money(self.charged(now), self.currency)

    def cost_usd(self, now: datetime) -> Decimal:
        return self.charged(now) * self.usd_per_unit

    def charged(self, now: datetime) -> Decimal:
        """`cost` as an amount in the billed currency: a tick asks each segment for it several times."""
        if self.market_spend is None:
            return self._estimated(now)
        if self.settled_at is not None:
            return self.market_spend
        return max(self.market_spend, self._estimated(now))

    def _estimated(self, now: datetime) -> Decimal:
        return self.counted_until(self.ended_at or now)

    def counted_until(self, at: datetime) -> Decimal:
        """Our count up to an instant within the segment, in the billed currency; 0 before it."""
        origin = self.order_started_at
        first = 0 if origin is None else _whole_minutes(origin, self.started_at)
        last = max(first, _whole_minutes(origin or self.started_at, at))
        rent = self.price.amount_for((last - first) * CHARGE_GRAIN_S)
        total = _rounded(rent) + _rounded(rent * self.fee_percent / 100)
        if first < _CREATION_FEE_MINUTE <= last:
            total += self.creation_fee
        return total

    @property
    def drift(self) -> Decimal | None:
        """What the market charged beyond our own count, in the billed currency; None until settled."""
        if self.settled_at is None or self.market_spend is None:
            return None
        return self.market_spend - self.estimate(self.settled_at).amount

    @property
    def order_began_at(self) -> datetime:
        """From when the order's minutes are counted."""
        return self.order_started_at or self.started_at

    def worst_case_usd_per_day(self) -> Decimal:
        """The running rate with fee, in USD per day."""
        return self.price.amount * (1 + self.fee_percent / 100) * self.usd_per_unit


def _whole_minutes(origin: datetime, until: datetime) -> int:
    return max(0, int((until - origin).total_seconds())) // CHARGE_GRAIN_S


def _rounded(amount: Decimal) -> Decimal:
    """To the market's last unit, half to even, as its published bills are [assumed]."""
    return amount.quantize(_QUANTUM, ROUND_HALF_EVEN)


Segments = tuple[LedgerSegment, ...]
"""Those of one order, in order of time."""


@dataclass(frozen=True, slots=True)
class SettledTotal:
    """What the settled segments of one deployment cost in one currency, exactly."""

    deployment_id: DeploymentId
    currency: Currency
    amount: Decimal
    usd: Decimal
    """At the rates that were recorded with each segment."""


def settled_totals(segments: Iterable[LedgerSegment]) -> tuple[SettledTotal, ...]:
    """The sums of those that are settled."""
    return total_of((), segments)


def total_of(
    before: Iterable[SettledTotal], added: Iterable[LedgerSegment], removed: Iterable[LedgerSegment] = ()
) -> tuple[SettledTotal, ...]:
    """The sums after some segments came to them, and others were as they are no more."""
    sums = {(each.deployment_id, each.currency): (each.amount, each.usd) for each in before}
    for is_added, segments in ((True, added), (False, removed)):
        for each in segments:
            if each.settled_at is None or each.market_spend is None:
                continue
            key = (each.deployment_id, each.currency)
            amount, usd = sums.get(key, (Decimal(0), Decimal(0)))
            spend = each.market_spend if is_added else each.market_spend.copy_negate()
            worth = _EXACT.multiply(spend, each.usd_per_unit)
            sums[key] = _EXACT.add(amount, spend), _EXACT.add(usd, worth)
    return tuple(SettledTotal(*key, *found) for key, found in sums.items())


@dataclass(frozen=True, slots=True)
class OpenBill:
    """Of an order that ended: its final figure is not known. Its number may have been another order's before,
    or be another's by now; server and time say which one it is."""

    order_id: OrderId
    lease_id: LeaseId
    server_id: ServerId
    started_at: datetime


def in_order(segments: Iterable[LedgerSegment]) -> Segments:
    return tuple(sorted(segments, key=lambda each: (each.started_at, each.ended_at is None)))


def counted(segments: Segments, spend: Decimal) -> Segments:
    """The market's running counter for the order."""
    if not segments or segments[-1].settled_at is not None:
        return segments
    return apportioned(segments, spend)


def closed(segments: Segments, *, ended_at: datetime, settled: Decimal | None, now: datetime) -> Segments:
    """The count ends; `settled` is the completed order's own figure, or None until it is known."""
    if not segments:
        return segments
    last = segments[-1]
    if last.ended_at is None:
        segments = (*segments[:-1], replace(last, ended_at=max(ended_at, last.started_at)))
    if settled is None:
        return segments
    return tuple(replace(each, settled_at=now) for each in apportioned(segments, settled))


def reopened(segments: Segments) -> Segments:
    """The order bills after all: it is counted on as if it had never stopped."""
    open_again = tuple(replace(each, settled_at=None) for each in segments)
    return (*open_again[:-1], replace(open_again[-1], ended_at=None)) if open_again else open_again


def switched(
    segments: Segments, at: datetime, *, price: Rate, usd_per_unit: Decimal, rate_source: str
) -> Segments:
    """From `at` on another price, or another rate of the coin, is in force."""
    if not segments or segments[-1].ended_at is not None:
        return segments
    last = segments[-1]
    at = max(at, last.started_at)
    following = replace(
        last,
        price=price,
        usd_per_unit=usd_per_unit,
        rate_source=rate_source,
        started_at=at,
        market_spend=None,
        order_started_at=last.order_began_at,
    )
    if at == last.started_at:
        return (*segments[:-1], following)
    return (*segments[:-1], replace(last, ended_at=at), following)


def apportioned(segments: Segments, spend: Decimal) -> Segments:
    """The market's one figure for an order, handed out to its segments: the sum is `spend` to the last unit.

    Earlier segments take what we counted for them, as far as it goes; the last one takes the rest.
    """
    left, shares = spend, []
    for each in segments[:-1]:
        share = min(left, each._estimated(each.ended_at or each.started_at))
        shares.append(_with_spend(each, share))
        left -= share
    return (*shares, _with_spend(segments[-1], left))


def _with_spend(segment: LedgerSegment, spend: Decimal) -> LedgerSegment:
    return segment if segment.market_spend == spend else replace(segment, market_spend=spend)


def faults_of(segments: Sequence[LedgerSegment]) -> tuple[str, ...]:
    """S7: every gap, overlap, negative interval and second open end among one order's segments."""
    found = []
    for each in segments:
        if each.ended_at is not None and each.ended_at < each.started_at:
            found.append(f"order {each.order_id}: a segment ends before it begins, at {each.ended_at}")
    for earlier, later in pairwise(segments):
        if earlier.ended_at != later.started_at:
            found.append(f"order {later.order_id}: {earlier.ended_at} is followed by {later.started_at}")
    return tuple(found)
