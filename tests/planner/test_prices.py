"""The price history: what a reading says, what is kept of old ones, and when now is called cheap."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clorefleet.domain.money import Currency, ExchangeRate, Rate
from clorefleet.domain.offer import DOCUMENTED_FEES, MarketRates, MarketView, OfferedGpu, OfferFlag
from clorefleet.domain.price import PriceSnapshot
from clorefleet.planner.gpus import load_gpus
from clorefleet.planner.prices import (
    HOURLY_KEPT,
    RAW_KEPT,
    SHORT_READINGS,
    Verdict,
    by_hour,
    nearest_rank,
    price_snapshots,
    standing,
    thinned,
)
from tests.fleet.builders import offer

NOW = datetime(2026, 11, 24, 12, 7, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def view(*offers) -> MarketView:
    rate = ExchangeRate(Currency.CLORE, Decimal("0.01"), NOW, "test")
    return MarketView(offers, MarketRates.of([rate]), DOCUMENTED_FEES, NOW)


def read(*offers) -> dict[tuple[str, bool], PriceSnapshot]:
    return {(row.gpu, row.is_spot): row for row in price_snapshots(view(*offers), load_gpus())}


def priced(server_id: int, usd: str, gpus: int = 1, **changes):
    return offer(
        server_id,
        gpus=(OfferedGpu("RTX 4090", Decimal(24)),) * gpus,
        on_demand=(Rate.per_day(usd),),
        **changes,
    )


def row(p10: str = "1", at: datetime = NOW, **changes) -> PriceSnapshot:
    price = Decimal(p10)
    return PriceSnapshot("RTX 4090", False, at, 5, price, price, price, price, price, price, **changes)


# -- a reading


def test_prices_are_per_gpu_and_percentiles_are_offers_that_were_there():
    [found] = read(*(priced(i, str(2 * i), gpus=2) for i in range(1, 11))).values()
    assert (found.offers, found.least, found.p10, found.p25) == (10, 1, 1, 3)
    assert (found.median, found.p75, found.p90) == (5, 8, 9)


def test_the_cheapest_way_to_pay_counts_and_spot_stands_apart():
    coins = offer(
        1, on_demand=(Rate.per_day("3"), Rate.per_day("100", Currency.CLORE)), spot=(Rate.per_day("0.5"),)
    )
    found = read(coins)
    assert {key[1]: each.least for key, each in found.items()} == {False: Decimal(1), True: Decimal("0.5")}


@pytest.mark.parametrize(
    "silent",
    [
        priced(2, "0.01", is_rented=True),
        priced(2, "0.01", flags=(OfferFlag("price_out_of_band", "x"),)),
        offer(2, gpus=(OfferedGpu("RTX 4090"), OfferedGpu("RTX 3090")), on_demand=(Rate.per_day("0.01"),)),
        offer(2, gpus=(OfferedGpu("Abacus 9"),), on_demand=(Rate.per_day("0.01"),)),
        offer(2, on_demand=()),
    ],
    ids=["rented", "flagged", "mixed", "unknown", "unpriced"],
)
def test_what_cannot_be_rented_or_trusted_says_nothing(silent):
    [found] = read(priced(1, "2"), silent).values()
    assert (found.offers, found.least) == (1, 2)


@given(st.lists(st.decimals("0.01", "99", places=2), min_size=1, max_size=30), st.integers(1, 100))
def test_nearest_rank_is_the_least_value_that_so_many_do_not_exceed(values, percent):
    ordered = sorted(values)
    found = nearest_rank(ordered, percent)
    assert 100 * sum(value <= found for value in ordered) >= percent * len(ordered)
    assert 100 * sum(value < found for value in ordered) < percent * len(ordered)


# -- thinning


def test_readings_stay_for_a_week_hours_for_three_months_then_days():
    young = [row(at=NOW - timedelta(days=6, minutes=m)) for m in (0, 15)]
    older = [row(str(m), NOW.replace(minute=0) - 8 * DAY + timedelta(minutes=m)) for m in (1, 15, 30)]
    oldest = [row(at=NOW - 100 * DAY + h * HOUR, lasts=HOUR, readings=4) for h in (0, 3)]
    found = thinned([*oldest, *older, *young], now=NOW)
    assert [(each.lasts, each.readings) for each in found] == [
        (DAY, 8),
        (HOUR, 3),
        (0 * HOUR, 1),
        (0 * HOUR, 1),
    ]
    assert (found[1].least, found[1].p10) == (1, 15)
    assert found[0].at == (NOW - 100 * DAY).replace(hour=0, minute=0)


histories = st.lists(
    st.tuples(st.integers(0, 200 * 24 * 4), st.decimals("0.5", "9", places=2)), min_size=1, max_size=60,
    unique_by=lambda each: each[0],
).map(lambda found: [row(str(price), NOW - timedelta(minutes=15 * ago)) for ago, price in found])  # fmt: skip


@given(histories, st.integers(0, 100))
def test_thinning_loses_no_reading_and_no_low_and_twice_is_once(rows, days):
    once = thinned(rows, now=NOW)
    assert sum(each.readings for each in once) == len(rows)
    assert min(each.least for each in once) == min(each.least for each in rows)
    assert thinned(once, now=NOW) == once
    later = NOW + days * DAY
    assert sum(each.readings for each in thinned(once, now=later)) == len(rows)
    for each in once:
        age = NOW - each.at
        assert (each.lasts == DAY) == (age > HOURLY_KEPT + DAY)
        assert each.lasts == 0 * HOUR or age > RAW_KEPT


def test_gpus_and_kinds_are_thinned_apart():
    old = NOW - 30 * DAY
    rows = [row(at=old), replace(row(at=old), gpu="RTX 3090"), replace(row(at=old), is_spot=True)]
    assert len(thinned(rows, now=NOW)) == 3


# -- now


def history(*prices: str, every: timedelta = 6 * HOUR) -> list[PriceSnapshot]:
    """Oldest first, the last one `every` ago."""
    return [row(price, NOW - every * (len(prices) - index)) for index, price in enumerate(prices)]


@pytest.mark.parametrize(
    ("now", "verdict"), [("0.5", Verdict.CHEAP), ("2", Verdict.USUAL), ("5", Verdict.DEAR)]
)
def test_now_is_compared_with_what_was_seen(now, verdict):
    found = standing(row(now), history(*["1", "2", "3"] * 10), since=NOW - 30 * DAY)
    assert found.verdict is verdict
    assert (found.readings, found.least, found.median, found.most) == (30, 1, 2, 3)


def test_equal_prices_are_in_the_middle():
    assert standing(row("1"), history(*["1"] * 30), since=NOW - 30 * DAY).share_cheaper == 0.5


@pytest.mark.parametrize(
    "rows",
    [[], history(*["1"] * (SHORT_READINGS - 1)), history(*["1"] * 99, every=timedelta(minutes=15))],
    ids=["none", "few readings", "little time"],
)
def test_a_short_history_calls_nothing_cheap(rows):
    found = standing(row("0.1"), rows, since=NOW - 30 * DAY)
    assert found.verdict is Verdict.UNKNOWN and found.readings == len(rows)


def test_what_lies_before_the_window_does_not_count():
    found = standing(row("2"), history(*["1"] * 40), since=NOW - 5 * DAY)
    assert found.readings == 20


def test_hours_without_a_reading_keep_the_last_price():
    rows = [row("1", NOW), row("2", NOW + timedelta(minutes=5)), row("3", NOW + 3 * HOUR)]
    assert by_hour(rows) == (2, 2, 2, 3)
    assert by_hour([]) == ()
