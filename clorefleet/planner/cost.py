"""What a plan costs, all in: USD per day, in parts that sum exactly to the total.

    server + renter's fee + (creation fee + paid start-up) / expected life + expected losses

Seconds and tokens are predictions and floats; every amount of money is a Decimal made from the offer's own
text, and each part is rounded up once, to a millionth of a dollar.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_UP, Decimal

from clorefleet.domain.download import BYTES_PER_MBIT, EFFICIENCY, UNKNOWN_DISK_MB_S, UNKNOWN_LINE_MBIT_S
from clorefleet.domain.money import Currency, Money, Rate
from clorefleet.domain.offer import MarketView, Offer
from clorefleet.domain.plan import Price, Speed, Term
from clorefleet.domain.recipe import EngineName, HostedPrice, Mark
from clorefleet.domain.setup import Setup
from clorefleet.planner.fit import IMAGE_BYTES

CURRENCIES = (Currency.USD, Currency.CLORE, Currency.BITCOIN)
"""Of equal prices, the first is paid in."""
EXPECTED_LIFE_S = 86_400
"""Over which one-time costs are spread [assumed]: a day, so that a short use is not made to look cheap. Less
where the market ends the order sooner."""
FIRST_HOURS = Decimal(2)
"""A wallet with less than these cost would end the order before the model serves [assumed]."""
SPOT_INTERRUPTIONS_PER_DAY = Decimal(1)
"""How often another bid takes a spot server [assumed]: no figure is published. Each costs a new start."""
INPUT_PER_OUTPUT = 3
"""Input tokens that a hosted API bills for each output token [assumed], for the break-even load."""
BOOT_S = 180.0
"""From the order to SSH [assumed]."""
WARM_UP_S = {
    EngineName.LLAMACPP: 20.0,
    EngineName.SGLANG: 300.0,
    EngineName.VLLM: 300.0,
    EngineName.KTRANSFORMERS: 300.0,
}
"""Graph capture and kernel compilation after the weights are loaded: 2 to 10 minutes [assumed]."""
_STEP = Decimal("0.000001")
_DAY_S = 86_400
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Tariff:
    """One way to pay for a server: a currency, its price, and all that the market adds."""

    billed: Rate
    is_spot: bool
    fee_percent: Decimal
    creation_fee: Decimal
    """In the billed currency."""
    usd_per_unit: Decimal
    rate_source: str
    lacking: Money | None
    server_usd: Decimal
    """A day, without fee."""
    running_usd: Decimal
    """A day, with fee."""
    creation_usd: Decimal


def _tariff(offer: Offer, market: MarketView, currency: Currency, *, is_spot: bool) -> Tariff | None:
    billed = offer.price_in(currency, is_spot=is_spot)
    if billed is None or billed.amount <= 0:
        return None
    worth = usd_per_unit(currency, market)
    if worth is None:
        return None
    unit, source = worth
    percent = market.fees.percent(currency, is_spot=is_spot)
    creation = market.fees.creation(currency)
    with_fee = 1 + percent / 100
    balance = market.balance(currency)
    lacking = None
    if balance is not None:
        need = billed.amount * with_fee * FIRST_HOURS / 24 + creation
        lacking = None if balance >= need else Money(need - balance, currency)
    server = billed.amount * unit
    return Tariff(
        billed, is_spot, percent, creation, unit, source, lacking, server, server * with_fee, creation * unit
    )


def usd_per_unit(currency: Currency, market: MarketView) -> tuple[Decimal, str] | None:
    """What one unit is worth, and who says so; None when nobody does."""
    if currency is Currency.USD:
        return Decimal(1), "USD"
    rate = market.rates.of_currency(currency)
    return None if rate is None else (rate.usd_per_unit, rate.source)


def price_of(
    offer: Offer,
    setup: Setup,
    speed: Speed,
    market: MarketView,
    *,
    is_spot: bool,
    currencies: Iterable[Currency] = CURRENCIES,
    load_tokens_per_day: int | None = None,
    hosted: HostedPrice | None = None,
) -> Price | None:
    """The cheapest way to pay that the wallets can bear; where none can, the cheapest and what is lacking.

    None when the offer has no price in any of `currencies` at a known rate.
    """
    start, ways = start_up_of(offer, setup), []
    for currency in currencies:
        tariff = _tariff(offer, market, currency, is_spot=is_spot)
        if tariff is not None:
            parts = _parts(offer, start, tariff)
            ways.append((tariff, parts, sum(parts, Decimal(0))))
    if not ways:
        return None
    tariff, parts, total = min(ways, key=lambda way: (way[0].lacking is not None, way[2]))
    words = _words(offer, start, market, tariff)
    terms = tuple(
        Term(name, part, "USD/day", mark, source)
        for (name, mark, source), part in zip(words, parts, strict=True)
    )
    return _price(tariff, terms, total, speed, load_tokens_per_day, hosted)


def _price(
    tariff: Tariff,
    terms: tuple[Term, ...],
    total: Decimal,
    speed: Speed,
    load_tokens_per_day: int | None,
    hosted: HostedPrice | None,
) -> Price:
    load, copies = load_of(speed, load_tokens_per_day)
    capacity, _ = load_of(speed, None)
    break_even = _break_even(total, hosted)
    return Price(
        billed=tariff.billed,
        is_spot=tariff.is_spot,
        all_in_usd_per_day=Rate.per_day(total),
        terms=terms,
        usd_per_million_tokens=(total * copies / load * _MILLION).quantize(_STEP, ROUND_UP) if load else None,
        copies_for_load=copies,
        break_even_tokens_per_day=break_even,
        is_break_even_in_reach=break_even is not None and break_even <= capacity,
        lacking=tariff.lacking,
        fee_percent=tariff.fee_percent,
        creation_fee=tariff.creation_fee,
        usd_per_unit=tariff.usd_per_unit,
        rate_source=tariff.rate_source,
    )


def load_of(speed: Speed, load_tokens_per_day: int | None) -> tuple[Decimal, int]:
    """Output tokens a day that are paid for, and the servers it takes; without a load, as many as one can."""
    capacity = Decimal(str(speed.throughput_tokens_per_s or speed.decode_tokens_per_s)) * _DAY_S
    load = capacity if load_tokens_per_day is None else Decimal(load_tokens_per_day)
    return load, max(1, math.ceil(load / capacity)) if capacity else 1


def _parts(offer: Offer, start: StartUp, tariff: Tariff) -> tuple[Decimal, ...]:
    """USD per day, each rounded up to a millionth of a dollar: their sum is the total."""
    running, (life_s, _) = tariff.running_usd, _life(offer)
    per_day = Decimal(_DAY_S) / life_s
    parts = [
        tariff.server_usd,
        running - tariff.server_usd,
        tariff.creation_usd * per_day,
        _paid_usd(start.download_s, running) * per_day,
        _paid_usd(start.load_s, running) * per_day,
        Decimal(0),
        running * _downtime(offer),
    ]
    if tariff.is_spot:
        each = _paid_usd(start.total_s, running) + tariff.creation_usd
        parts.append(each * SPOT_INTERRUPTIONS_PER_DAY)
    return tuple(part.quantize(_STEP, ROUND_UP) for part in parts)


def _words(
    offer: Offer, start: StartUp, market: MarketView, tariff: Tariff
) -> Iterator[tuple[str, Mark, str]]:
    """Name, mark and source of each of `_parts`."""
    fees_mark, fees, (_, life) = _fees_mark(market), market.fees.source, _life(offer)
    rate = f"the offer: {tariff.billed}"
    if tariff.billed.currency is not Currency.USD:
        rate += f" at {tariff.usd_per_unit.normalize():f} USD ({tariff.rate_source})"
    yield "server", Mark.PUBLISHED, rate
    yield f"renter's fee, {tariff.fee_percent.normalize():f} %", fees_mark, fees
    yield f"creation fee, {life}", fees_mark, fees
    yield f"paid download, {life}", Mark.ASSUMED, start.download_text
    yield f"paid boot and load, {life}", Mark.ASSUMED, start.load_text
    yield "minimum rental", Mark.ASSUMED, "none: a renter may cancel at any time"
    yield "expected loss by downtime", Mark.ASSUMED, f"away {_downtime(offer):.2%} of the time"
    if tariff.is_spot:
        often = f"{SPOT_INTERRUPTIONS_PER_DAY} a day, each a new start and creation fee"
        yield "expected interruptions", Mark.ASSUMED, often


def _downtime(offer: Offer) -> Decimal:
    """The share of the time that the server is away."""
    return Decimal(0) if offer.reliability is None else 1 - offer.reliability


def _life(offer: Offer) -> tuple[int, str]:
    """Seconds over which an order's one-time costs are spread, and the words for it."""
    longest = offer.max_rental_s
    if longest is None or not 0 < longest < EXPECTED_LIFE_S:
        return EXPECTED_LIFE_S, "over a day"
    return longest, f"over its {longest / 3600:g} h at most"


def _break_even(total_usd_per_day: Decimal, hosted: HostedPrice | None) -> int | None:
    """Output tokens a day for which the hosted API would ask as much."""
    if hosted is None:
        return None
    each = hosted.usd_per_million_output + INPUT_PER_OUTPUT * hosted.usd_per_million_input
    if each <= 0:
        return None
    return int((total_usd_per_day / each * _MILLION).to_integral_value(ROUND_CEILING))


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
    line_bytes_s = (float(offer.down_mbit_s or 0) or UNKNOWN_LINE_MBIT_S) * EFFICIENCY * BYTES_PER_MBIT
    return StartUp(
        download_s=setup.checkpoint_bytes / min(line_bytes_s, disk_bytes_s),
        image_s=IMAGE_BYTES[setup.engine] / line_bytes_s,
        disk_s=setup.checkpoint_bytes / disk_bytes_s,
        warm_up_s=WARM_UP_S[setup.engine],
    )


def _paid_usd(seconds: float, running_usd: Decimal) -> Decimal:
    """Time that bills without serving. Whole seconds, rounded up."""
    return running_usd * math.ceil(seconds) / _DAY_S


def _fees_mark(market: MarketView) -> Mark:
    return Mark.PUBLISHED if market.fees.source == "market" else Mark.ASSUMED
