"""What the marketplace shows: servers that can be rented, and at what price."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from clorefleet.domain.identity import OwnerId, ServerId
from clorefleet.domain.money import Currency, ExchangeRate, Rate
from clorefleet.domain.order import Wallet


@dataclass(frozen=True, slots=True)
class OfferedGpu:
    """One GPU as the offer names it. Claims, not facts: the probe on the node decides."""

    name: str
    """The market's text, cleaned, without count and without "NVIDIA"."""
    claimed_vram_gib: Decimal | None = None


def gpu_summary(gpus: Iterable[OfferedGpu]) -> str:
    """For instance `8x RTX 4090`, or `2x RTX 3090 + 1x RTX 3060` for a mixed rig."""
    counts: dict[str, int] = {}
    for gpu in gpus:
        counts[gpu.name] = counts.get(gpu.name, 0) + 1
    return " + ".join(f"{n}x {name}" for name, n in counts.items())


@dataclass(frozen=True, slots=True)
class OfferFlag:
    """Something about an offer that makes it untrustworthy or unusable, with a sentence for the user."""

    code: str
    """`price_out_of_band`, `no_price`, `gpu_unknown`, `specs_missing`, `cuda_unknown`, `gigaspot`."""
    text: str


@dataclass(frozen=True, slots=True)
class Offer:
    """A server on the market. Every price is a `Rate` per day for the whole server, fees not included."""

    server_id: ServerId
    owner_id: OwnerId | None
    gpus: tuple[OfferedGpu, ...]
    """One entry per GPU; mixed rigs have differing names."""
    cpu_model: str
    cores: int | None
    threads: int | None
    ram_bytes: int | None
    disk_free_bytes: int | None
    disk_mb_s: Decimal | None
    """None when the market has not measured it."""
    down_mbit_s: Decimal | None
    up_mbit_s: Decimal | None
    country: str
    """ISO country code, or "" when unknown."""
    cuda_version: tuple[int, int] | None
    """The driver's CUDA version, compared by part."""
    reliability: Decimal | None
    """Fraction 0..1 of time the host was up. A new server starts at 0."""
    rating: Decimal | None
    rating_count: int
    max_rental_s: int | None
    is_rented: bool
    pcie_generation: int | None
    pcie_width: int | None
    on_demand: tuple[Rate, ...]
    """One per currency that is both priced and allowed."""
    spot: tuple[Rate, ...]
    """Least bids, likewise."""
    usd_per_day: Rate | None = None
    """The market's own USD figure for the on-demand price, where it gives one."""
    flags: tuple[OfferFlag, ...] = ()

    @property
    def gpu_count(self) -> int:
        return len(self.gpus)

    @property
    def is_mixed(self) -> bool:
        return len({gpu.name for gpu in self.gpus}) > 1

    @property
    def gpu_summary(self) -> str:
        return gpu_summary(self.gpus)

    def price_in(self, currency: Currency, *, is_spot: bool) -> Rate | None:
        prices = self.spot if is_spot else self.on_demand
        return next((rate for rate in prices if rate.currency is currency), None)


@dataclass(frozen=True, slots=True)
class MarketRates:
    """Coin rates in USD at one reading of the market."""

    rates: tuple[ExchangeRate, ...]

    @classmethod
    def of(cls, rates: Iterable[ExchangeRate]) -> MarketRates:
        return cls(tuple(rates))

    def of_currency(self, currency: Currency) -> ExchangeRate | None:
        for rate in self.rates:
            if rate.currency is currency:
                return rate
        return None

    def to_usd(self, rate: Rate) -> Rate | None:
        """The rate in USD, or None when the market gave no rate for its currency."""
        if rate.currency is Currency.USD:
            return rate
        found = self.of_currency(rate.currency)
        return None if found is None else found.rate_to_usd(rate)


@dataclass(frozen=True, slots=True)
class RenterFees:
    """What the market adds to a price, by currency."""

    on_demand_percent: tuple[tuple[Currency, Decimal], ...]
    spot_percent: tuple[tuple[Currency, Decimal], ...]
    creation_fee: tuple[tuple[Currency, Decimal], ...]
    """Once per order, charged when the order is older than ten minutes."""
    source: str
    """`market` when read from the service, `assumed` when the documented defaults were taken."""

    def percent(self, currency: Currency, *, is_spot: bool) -> Decimal:
        table = self.spot_percent if is_spot else self.on_demand_percent
        return _of_currency(table, currency)

    def creation(self, currency: Currency) -> Decimal:
        return _of_currency(self.creation_fee, currency)


def _of_currency(table: tuple[tuple[Currency, Decimal], ...], currency: Currency) -> Decimal:
    for each, amount in table:
        if each is currency:
            return amount
    return Decimal(0)


DOCUMENTED_FEES = RenterFees(
    # 5 % and 1.25 % on top: docs.clore.ai; 0.10 USD creation fee: the most a public client accepts.
    # The coin figures are unknown and therefore zero here; `market` values replace all of them.
    on_demand_percent=tuple((currency, Decimal(5)) for currency in Currency),
    spot_percent=tuple((currency, Decimal("1.25")) for currency in Currency),
    creation_fee=((Currency.USD, Decimal("0.1")),),
    source="assumed",
)


@dataclass(frozen=True, slots=True)
class MarketView:
    """One reading of the market: all that the planner needs of it."""

    offers: Sequence[Offer]
    rates: MarketRates
    fees: RenterFees
    read_at: datetime
    wallets: tuple[Wallet, ...] | None = None
    """What can be paid with; None when nobody looked."""

    def balance(self, currency: Currency) -> Decimal | None:
        """What the wallet of `currency` holds, 0 without one; None when nobody looked."""
        if self.wallets is None:
            return None
        held = (each.balance for each in self.wallets if each.currency is currency)
        return sum((balance.amount for balance in held if balance is not None), Decimal(0))
