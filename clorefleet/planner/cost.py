"""What a plan costs, all in: USD per day, in parts that sum exactly to the total."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal

from clorefleet.domain.money import Currency, Rate
from clorefleet.domain.offer import MarketView, Offer
from clorefleet.domain.plan import Price, Speed, Term
from clorefleet.domain.recipe import EngineName, Mark
from clorefleet.domain.setup import Setup
from clorefleet.planner.fit import IMAGE_BYTES

EXPECTED_LIFE_DAYS = Decimal(1)
"""Over which one-time costs are spread [assumed]: a day, so that a short use is not made to look cheap."""
BOOT_S = 180.0
"""From the order to SSH [assumed]."""
WARM_UP_S = {
    EngineName.LLAMACPP: 20.0,
    EngineName.SGLANG: 300.0,
    EngineName.VLLM: 300.0,
    EngineName.KTRANSFORMERS: 300.0,
}
"""Graph capture and kernel compilation after the weights are loaded: 2 to 10 minutes [assumed]."""
DOWNLOAD_EFFICIENCY = 0.7
"""Share of the offered line that a download reaches [assumed]."""
UNKNOWN_LINE_MBIT_S = 100.0
UNKNOWN_DISK_MB_S = 500.0
"""Where the market has not measured [assumed]."""
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
    start = start_up_of(offer, setup)
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
        _paid("paid download, over a day", start.download_s, running, start.download_text),
        _paid("paid boot and load, over a day", start.load_s, running, start.load_text),
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


@dataclass(frozen=True, slots=True)
class StartUp:
    """Seconds that are paid for before the first token. Predicted, so floats; money is made of them once."""

    download_s: float
    image_s: float
    disk_s: float
    warm_up_s: float

    @property
    def load_s(self) -> float:
        return BOOT_S + self.image_s + self.disk_s + self.warm_up_s

    @property
    def total_s(self) -> float:
        return self.download_s + self.load_s

    @property
    def download_text(self) -> str:
        return f"{self.download_s / 60:.0f} min at 70 % of the offered line, or at the disk's speed"

    @property
    def load_text(self) -> str:
        return (
            f"{BOOT_S / 60:.0f} min boot, {self.image_s / 60:.0f} image, {self.disk_s / 60:.0f} load, "
            f"{self.warm_up_s / 60:.0f} warm-up"
        )


def start_up_of(offer: Offer, setup: Setup) -> StartUp:
    """Predicted from the offer's line and disk; a slow disk holds back the download too."""
    disk_bytes_s = (float(offer.disk_mb_s or 0) or UNKNOWN_DISK_MB_S) * 1_000_000
    line_bytes_s = (float(offer.down_mbit_s or 0) or UNKNOWN_LINE_MBIT_S) * DOWNLOAD_EFFICIENCY * 125_000
    return StartUp(
        download_s=setup.checkpoint_bytes / min(line_bytes_s, disk_bytes_s),
        image_s=IMAGE_BYTES[setup.engine] / line_bytes_s,
        disk_s=setup.checkpoint_bytes / disk_bytes_s,
        warm_up_s=WARM_UP_S[setup.engine],
    )


def _paid(name: str, seconds: float, running: Decimal, source: str) -> Term:
    """Time that bills without serving, spread over the expected life. Whole seconds, rounded up."""
    value = running * math.ceil(seconds) / 86_400 / EXPECTED_LIFE_DAYS
    return _term(name, value, Mark.ASSUMED, source)


def _fees_mark(market: MarketView) -> Mark:
    return Mark.PUBLISHED if market.fees.source == "market" else Mark.ASSUMED


def _term(name: str, value: Decimal, mark: Mark, source: str) -> Term:
    """Rounded up to a millionth of a dollar: the parts then sum to the total, and never below the truth."""
    return Term(name, value.quantize(_STEP, ROUND_UP), "USD/day", mark, source)
