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
from functools import lru_cache

from clorefleet.domain.download import BYTES_PER_MBIT, EFFICIENCY, UNKNOWN_DISK_MB_S, UNKNOWN_LINE_MBIT_S
from clorefleet.domain.money import Currency, Money, Rate, worst_rate_factor
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
class Billing:
    """How the market bills in one currency, whatever the offer."""

    currency: Currency
    is_spot: bool
    fee_percent: Decimal
    with_fee: Decimal
    """A price times this is what is paid."""
    fee_name: str
    fee_mark: Mark
    fee_source: str
    creation_fee: Decimal
    """In the currency."""
    creation_usd: Decimal
    usd_per_unit: Decimal
    rate_source: str
    balance: Decimal | None
    """What the wallet holds; None when nobody looked."""


def billings_of(market: MarketView, currencies: Iterable[Currency], *, is_spot: bool) -> tuple[Billing, ...]:
    """In those currencies that somebody says the worth of."""
    found = []
    for currency in currencies:
        worth = usd_per_unit(currency, market)
        if worth is None:
            continue
        unit, source = worth
        percent, creation = market.fees.percent(currency, is_spot=is_spot), market.fees.creation(currency)
        found.append(
            Billing(
                currency=currency,
                is_spot=is_spot,
                fee_percent=percent,
                with_fee=1 + percent / 100,
                fee_name=f"renter's fee, {percent.normalize():f} %",
                fee_mark=Mark.PUBLISHED if market.fees.source == "market" else Mark.ASSUMED,
                fee_source=market.fees.source,
                creation_fee=creation,
                creation_usd=creation * unit,
                usd_per_unit=unit,
                rate_source=source,
                balance=market.balance(currency),
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Tariff:
    """An offer's price in one currency, as it is billed."""

    billed: Rate
    billing: Billing
    lacking: Money | None
    server_usd: Decimal
    """A day, without fee."""
    running_usd: Decimal
    """A day, with fee."""

    @property
    def first_day_usd(self) -> Decimal:
        """As `Price.first_day_usd`."""
        first_day = self.running_usd + self.billing.creation_usd
        return first_day * worst_rate_factor(self.billing.currency)


def _tariff(offer: Offer, billing: Billing) -> Tariff | None:
    billed = offer.price_in(billing.currency, is_spot=billing.is_spot)
    if billed is None or billed.amount <= 0:
        return None
    lacking = None
    if billing.balance is not None:
        need = billed.amount * billing.with_fee * FIRST_HOURS / 24 + billing.creation_fee
        if billing.balance < need:
            lacking = Money(need - billing.balance, billing.currency)
    server = billed.amount * billing.usd_per_unit
    # Multiplied in the order in which `Price` does it: a budget is held against the same last digit.
    running = billed.amount * billing.with_fee * billing.usd_per_unit
    return Tariff(billed, billing, lacking, server, running)


def usd_per_unit(currency: Currency, market: MarketView) -> tuple[Decimal, str] | None:
    """What one unit is worth, and who says so; None when nobody does."""
    if currency is Currency.USD:
        return Decimal(1), "USD"
    rate = market.rates.of_currency(currency)
    return None if rate is None else (rate.usd_per_unit, rate.source)


def price_of(
    offer: Offer,
    start: StartUp,
    speed: Speed,
    billings: Iterable[Billing],
    *,
    budget_usd_per_day: Decimal | None = None,
    load_tokens_per_day: int | None = None,
    hosted: HostedPrice | None = None,
) -> Price | None:
    """The cheapest way to pay that the wallets can bear; where none can, the cheapest and what is lacking.

    Of ways within the budget, if there are any. None when the offer has no price in the currency of any of
    `billings`.
    """
    most = Decimal("inf") if budget_usd_per_day is None else budget_usd_per_day
    ways, spread = [], _Spread.of(offer, start)
    for billing in billings:
        tariff = _tariff(offer, billing)
        if tariff is not None:
            parts = _parts(tariff, spread)
            ways.append((tariff, parts, sum(parts, Decimal(0))))
    if not ways:
        return None
    tariff, parts, total = min(
        ways, key=lambda way: (way[0].first_day_usd > most, way[0].lacking is not None, way[2])
    )
    words = _words(start, tariff, spread)
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
    _, copies = load_of(speed, load_tokens_per_day)
    capacity, _ = load_of(speed, None)
    break_even, billing = _break_even(total, hosted), tariff.billing
    return Price(
        billed=tariff.billed,
        is_spot=billing.is_spot,
        all_in_usd_per_day=Rate.per_day(total),
        terms=terms,
        usd_per_million_tokens=usd_per_million(total, speed, load_tokens_per_day),
        copies_for_load=copies,
        break_even_tokens_per_day=break_even,
        is_break_even_in_reach=break_even is not None and break_even <= capacity,
        lacking=tariff.lacking,
        fee_percent=billing.fee_percent,
        creation_fee=billing.creation_fee,
        usd_per_unit=billing.usd_per_unit,
        rate_source=billing.rate_source,
    )


def usd_per_million(usd_per_day: Decimal, speed: Speed, load_tokens_per_day: int | None) -> Decimal | None:
    """Output tokens, at this load on as many servers as it takes; without a load, always busy."""
    load, copies = load_of(speed, load_tokens_per_day)
    return (usd_per_day * copies / load * _MILLION).quantize(_STEP, ROUND_UP) if load else None


def load_of(speed: Speed, load_tokens_per_day: int | None) -> tuple[Decimal, int]:
    """Output tokens a day that are paid for, and the servers it takes; without a load, as many as one can."""
    capacity = _tokens_per_day(speed.throughput_tokens_per_s or speed.decode_tokens_per_s)
    load = capacity if load_tokens_per_day is None else Decimal(load_tokens_per_day)
    return load, max(1, math.ceil(load / capacity)) if capacity else 1


@lru_cache(maxsize=4096)
def _tokens_per_day(tokens_per_s: float) -> Decimal:
    return Decimal(str(tokens_per_s)) * _DAY_S


@dataclass(frozen=True, slots=True)
class _Spread:
    """What an order's one-time costs are spread over, and the time that bills without serving."""

    per_day: Decimal
    """Lives in a day."""
    life_text: str
    download_s: int
    load_s: int
    total_s: int
    """Whole seconds, rounded up."""
    downtime: Decimal
    """A share."""

    @classmethod
    def of(cls, offer: Offer, start: StartUp) -> _Spread:
        life_s, text = _life(offer)
        return cls(
            per_day=Decimal(_DAY_S) / life_s,
            life_text=text,
            download_s=math.ceil(start.download_s),
            load_s=math.ceil(start.load_s),
            total_s=math.ceil(start.total_s),
            downtime=_downtime(offer),
        )


def _parts(tariff: Tariff, spread: _Spread) -> tuple[Decimal, ...]:
    """USD per day, each rounded up to a millionth of a dollar: their sum is the total."""
    running, creation, per_day = tariff.running_usd, tariff.billing.creation_usd, spread.per_day
    parts = [
        tariff.server_usd,
        running - tariff.server_usd,
        creation * per_day,
        running * spread.download_s / _DAY_S * per_day,
        running * spread.load_s / _DAY_S * per_day,
        Decimal(0),
        running * spread.downtime,
    ]
    if tariff.billing.is_spot:
        each = running * spread.total_s / _DAY_S + creation
        parts.append(each * SPOT_INTERRUPTIONS_PER_DAY)
    return tuple([part.quantize(_STEP, ROUND_UP) for part in parts])


def _words(start: StartUp, tariff: Tariff, spread: _Spread) -> Iterator[tuple[str, Mark, str]]:
    """Name, mark and source of each of `_parts`."""
    billing, life = tariff.billing, spread.life_text
    rate = f"the offer: {tariff.billed}"
    if billing.currency is not Currency.USD:
        rate += f" at {billing.usd_per_unit.normalize():f} USD ({billing.rate_source})"
    yield "server", Mark.PUBLISHED, rate
    yield billing.fee_name, billing.fee_mark, billing.fee_source
    yield f"creation fee, {life}", billing.fee_mark, billing.fee_source
    yield f"paid download, {life}", Mark.ASSUMED, start.download_text
    yield f"paid boot and load, {life}", Mark.ASSUMED, start.load_text
    yield "minimum rental", Mark.ASSUMED, "none: a renter may cancel at any time"
    yield "expected loss by downtime", Mark.ASSUMED, f"away {spread.downtime:.2%} of the time"
    if billing.is_spot:
        often = f"{SPOT_INTERRUPTIONS_PER_DAY} a day, each a new start and creation fee"
        yield "expected interruptions", Mark.ASSUMED, often


def _downtime(offer: Offer) -> Decimal:
    """The share of the time that the server is away."""
    return Decimal(0) if offer.reliability is None else 1 - offer.reliability


def _life(offer: Offer) -> tuple[int, str]:
    """Seconds over which an order's one-time costs are spread, and the words for it. An order that ends with
    its first second, or before, serves nobody and has no plan."""
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
    def brought_s(self) -> float:
        """Until weights and image are there."""
        return self.download_s + self.image_s

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
