"""The price history: what one reading of the market says, how old rows are thinned, and whether now is cheap.

The tenth percentile is what is compared over time: a renter takes a cheap server, and the cheapest one alone
may be an offer that nobody should take. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from clorefleet.domain.offer import MarketView, Offer
from clorefleet.domain.offer_columns import BulkOffers
from clorefleet.domain.price import PriceSnapshot
from clorefleet.planner.gpus import GpuTable

RAW_KEPT = timedelta(days=7)
HOURLY_KEPT = timedelta(days=90)
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_PLACES = Decimal("0.0001")
SHORT_READINGS = 20
SHORT_SPAN = timedelta(days=2)
"""With fewer readings, or over less time, nothing is called cheap or dear."""


def price_snapshots(view: MarketView, gpus: GpuTable) -> tuple[PriceSnapshot, ...]:
    """By GPU, on-demand before spot. Mixed rigs, unknown GPUs and flagged offers say nothing of a price."""
    found: dict[tuple[str, bool], list[Decimal]] = {}
    for offer in _free(view):
        if offer.is_rented or offer.flags or not offer.gpus or offer.is_mixed:
            continue
        model = gpus.find(offer.gpus[0].name, offer.gpus[0].claimed_vram_gib)
        if model is None:
            continue
        for is_spot in (False, True):
            price = _usd_per_gpu(view, offer, is_spot=is_spot)
            if price is not None:
                found.setdefault((model.name, is_spot), []).append(price)
    return tuple(
        _snapshot(gpu, is_spot, sorted(prices), view.read_at)
        for (gpu, is_spot), prices in sorted(found.items())
    )


def _free(view: MarketView) -> Iterator[Offer]:
    """Of a large answer only these are read exactly."""
    offers = view.offers
    if isinstance(offers, BulkOffers):
        return (offers[int(index)] for index in offers.columns.free)
    return iter(offers)


def _usd_per_gpu(view: MarketView, offer: Offer, *, is_spot: bool) -> Decimal | None:
    """The cheapest way to pay."""
    prices = (view.rates.to_usd(rate) for rate in (offer.spot if is_spot else offer.on_demand))
    least = min((rate.amount for rate in prices if rate is not None and rate.amount > 0), default=None)
    return None if least is None else (least / offer.gpu_count).quantize(_PLACES)


def _snapshot(gpu: str, is_spot: bool, prices: Sequence[Decimal], at: datetime) -> PriceSnapshot:
    return PriceSnapshot(
        gpu=gpu,
        is_spot=is_spot,
        at=at,
        offers=len(prices),
        least=prices[0],
        p10=nearest_rank(prices, 10),
        p25=nearest_rank(prices, 25),
        median=nearest_rank(prices, 50),
        p75=nearest_rank(prices, 75),
        p90=nearest_rank(prices, 90),
    )


def nearest_rank(ordered: Sequence[Decimal], percent: int) -> Decimal:
    """The least value that `percent` of all do not exceed: always one that was there."""
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]


# -- thinning


def thinned(rows: Iterable[PriceSnapshot], *, now: datetime) -> tuple[PriceSnapshot, ...]:
    """Single readings for a week, hours for three months, days afterwards. Thinning twice changes nothing."""
    buckets: dict[tuple[str, bool, datetime, timedelta], list[PriceSnapshot]] = {}
    for row in rows:
        length = max(row.lasts, _length_at(row.at, now))
        buckets.setdefault((row.gpu, row.is_spot, _begin(row.at, length), length), []).append(row)
    kept = (_merged(mine, begin, length) for (_, _, begin, length), mine in buckets.items())
    return tuple(sorted(kept, key=lambda row: (row.at, row.gpu, row.is_spot)))


def _length_at(at: datetime, now: datetime) -> timedelta:
    """By whole buckets: one is thinned only when all of it is old enough."""
    if now - _begin(at, _DAY) > HOURLY_KEPT + _DAY:
        return _DAY
    return _HOUR if now - _begin(at, _HOUR) > RAW_KEPT + _HOUR else timedelta(0)


def _begin(at: datetime, length: timedelta) -> datetime:
    if length == _HOUR:
        return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) if length == _DAY else at


def _merged(rows: list[PriceSnapshot], begin: datetime, length: timedelta) -> PriceSnapshot:
    first = rows[0]
    if len(rows) == 1 and first.lasts == length:
        return first
    readings = sum(row.readings for row in rows)

    def middle(values: Iterable[Decimal]) -> Decimal:
        return nearest_rank(sorted(values), 50)

    return PriceSnapshot(
        gpu=first.gpu,
        is_spot=first.is_spot,
        at=begin,
        offers=round(sum(row.offers * row.readings for row in rows) / readings),
        least=min(row.least for row in rows),
        p10=middle(row.p10 for row in rows),
        p25=middle(row.p25 for row in rows),
        median=middle(row.median for row in rows),
        p75=middle(row.p75 for row in rows),
        p90=middle(row.p90 for row in rows),
        lasts=length,
        readings=readings,
    )


# -- is now a good time?


class Verdict(StrEnum):
    CHEAP = "cheap"
    USUAL = "usual"
    DEAR = "dear"
    UNKNOWN = "too little history to say"


@dataclass(frozen=True, slots=True)
class Standing:
    """Now among what was seen.

    Attributes:
        share_cheaper: of the readings before, the share whose tenth percentile lay below the present one;
            equal ones count half. None without any.
        readings, span: what it rests on.
        least, median, most: of the tenth percentiles before; None without any.
    """

    now: PriceSnapshot
    share_cheaper: float | None
    readings: int
    span: timedelta
    least: Decimal | None
    median: Decimal | None
    most: Decimal | None

    @property
    def verdict(self) -> Verdict:
        if self.share_cheaper is None or self.readings < SHORT_READINGS or self.span < SHORT_SPAN:
            return Verdict.UNKNOWN
        if self.share_cheaper <= 0.25:
            return Verdict.CHEAP
        return Verdict.USUAL if self.share_cheaper < 0.75 else Verdict.DEAR


def standing(now: PriceSnapshot, rows: Iterable[PriceSnapshot], *, since: datetime) -> Standing:
    """`rows` of the same GPU and kind; those before `since`, and the present one, do not count."""
    before = [row for row in rows if since <= row.at < now.at]
    readings = sum(row.readings for row in before)
    cheaper = sum(row.readings for row in before if row.p10 < now.p10)
    equal = sum(row.readings for row in before if row.p10 == now.p10)
    seen = sorted(row.p10 for row in before)
    return Standing(
        now=now,
        share_cheaper=(cheaper + equal / 2) / readings if readings else None,
        readings=readings,
        span=now.at - min((row.at for row in before), default=now.at),
        least=seen[0] if seen else None,
        median=nearest_rank(seen, 50) if seen else None,
        most=seen[-1] if seen else None,
    )


def by_hour(rows: Iterable[PriceSnapshot]) -> tuple[Decimal, ...]:
    """The tenth percentile for each hour from the first row to the last; hours without one keep the last
    price."""
    ordered = sorted(rows, key=lambda row: row.at)
    if not ordered:
        return ()
    last_of = {_begin(row.at, _HOUR): row.p10 for row in ordered}
    hour, end = _begin(ordered[0].at, _HOUR), _begin(ordered[-1].at, _HOUR)
    prices = [last_of[hour]]
    while (hour := hour + _HOUR) <= end:
        prices.append(last_of.get(hour, prices[-1]))
    return tuple(prices)
