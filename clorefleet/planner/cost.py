"""What a plan costs, all in: USD per day, in parts that sum exactly to the total."""

from __future__ import annotations

from decimal import ROUND_UP, Decimal

from clorefleet.domain.money import Currency, Rate
from clorefleet.domain.offer import MarketView, Offer
from clorefleet.domain.plan import Price, Speed, Term
from clorefleet.domain.recipe import Mark
from clorefleet.domain.setup import Setup

EXPECTED_LIFE_DAYS = Decimal(1)
"""Over which one-time costs are spread [assumed]: a day, so that a short use is not made to look cheap."""
BOOT_S = Decimal(240)
"""From the order to SSH, engine start included: minutes [assumed]."""
DOWNLOAD_EFFICIENCY = Decimal("0.7")
"""Share of the offered line that a download reaches [assumed]."""
SLOWEST_MBIT_S = Decimal(100)
_STEP = Decimal("0.000001")


def price_of(
    offer: Offer,
    setup: Setup,
    speed: Speed,
    market: MarketView,
    *,
    is_spot: bool,
    currencies: tuple[Currency, ...],
) -> Price | None:
    """None when the offer cannot be paid in any of `currencies` at a known rate."""
    for currency in currencies:
        billed = offer.price_in(currency, is_spot=is_spot)
        if billed is None or billed.amount <= 0:
            continue
        unit = _usd_per_unit(currency, market)
        if unit is None:
            continue
        return _price(offer, setup, speed, market, billed, unit, is_spot=is_spot)
    return None


def _usd_per_unit(currency: Currency, market: MarketView) -> tuple[Decimal, str] | None:
    if currency is Currency.USD:
        return Decimal(1), "USD"
    rate = market.rates.of_currency(currency)
    return None if rate is None else (rate.usd_per_unit, rate.source)


def _price(
    offer: Offer,
    setup: Setup,
    speed: Speed,
    market: MarketView,
    billed: Rate,
    unit: tuple[Decimal, str],
    *,
    is_spot: bool,
) -> Price:
    usd_per_unit, rate_source = unit
    percent = market.fees.percent(billed.currency, is_spot=is_spot)
    creation = market.fees.creation(billed.currency)
    day = billed.amount * usd_per_unit
    running = day * (1 + percent / 100)
    line = max(SLOWEST_MBIT_S, offer.down_mbit_s or SLOWEST_MBIT_S) * DOWNLOAD_EFFICIENCY
    download_s = Decimal(setup.checkpoint_bytes * 8) / (line * 1_000_000)
    startup = running * (download_s + BOOT_S) / 86_400 / EXPECTED_LIFE_DAYS
    unreliable = running * (1 - offer.reliability) if offer.reliability is not None else Decimal(0)
    terms = (
        _term("server", day, Mark.PUBLISHED, "the offer"),
        _term(
            f"renter's fee, {percent.normalize():f} %", running - day, _fees_mark(market), market.fees.source
        ),
        _term(
            "creation fee, over a day",
            creation * usd_per_unit / EXPECTED_LIFE_DAYS,
            _fees_mark(market),
            market.fees.source,
        ),
        _term("paid start-up, over a day", startup, Mark.ASSUMED, "70 % of the offered line, 4 min of boot"),
        _term("expected loss by downtime", unreliable, Mark.ASSUMED, "the offer's reliability"),
    )
    total = sum((term.value for term in terms), Decimal(0))
    per_day = Decimal(str(speed.throughput_tokens_per_s or speed.decode_tokens_per_s)) * 86_400
    return Price(
        billed=billed,
        is_spot=is_spot,
        all_in_usd_per_day=Rate.per_day(total),
        terms=terms,
        usd_per_million_tokens=(total / per_day * 1_000_000).quantize(_STEP) if per_day else None,
        fee_percent=percent,
        creation_fee=creation,
        usd_per_unit=usd_per_unit,
        rate_source=rate_source,
    )


def _fees_mark(market: MarketView) -> Mark:
    return Mark.PUBLISHED if market.fees.source == "market" else Mark.ASSUMED


def _term(name: str, value: Decimal, mark: Mark, source: str) -> Term:
    """Rounded up to a millionth of a dollar: the parts then sum to the total, and never below the truth."""
    return Term(name, value.quantize(_STEP, ROUND_UP), "USD/day", mark, source)
