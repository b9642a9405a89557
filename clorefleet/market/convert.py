"""Wire records to the fleet's own values. Here the marketplace's spelling and oddities end.

Rules: every price becomes a `Rate` per day for the whole server. Text is made harmless and bounded. An
offer that cannot be trusted is kept and flagged with a sentence, never silently dropped: the user may
ask why. Nothing here reads a clock or a network; the time of the reading is passed in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from statistics import median

from clorefleet.domain.identity import OrderId, OwnerId, ServerId
from clorefleet.domain.money import Currency, ExchangeRate, Money, Rate
from clorefleet.domain.offer import (
    DOCUMENTED_FEES,
    MarketRates,
    Offer,
    OfferedGpu,
    OfferFlag,
    RenterFees,
)
from clorefleet.domain.order import NO_SERVER, Order, SshAddress, Wallet
from clorefleet.domain.spot import SpotBid, SpotMarket
from clorefleet.domain.text import clean_line
from clorefleet.market import wire
from clorefleet.market.price_band import band_of_server
from clorefleet.market.records import HostedServer

CURRENCY_OF: Mapping[str, Currency] = {
    "bitcoin": Currency.BITCOIN,
    "CLORE-Blockchain": Currency.CLORE,
    "USD-Blockchain": Currency.USD,
}
NAME_OF: Mapping[Currency, str] = {currency: name for name, currency in CURRENCY_OF.items()}
"""The service's names of currencies, as wallets, prices and orders spell them."""
_USD_KEY = {
    Currency.BITCOIN: "on_demand_btc",
    Currency.CLORE: "on_demand_clore",
    Currency.USD: "on_demand_usd",
}

GPU_NAME_CHARS_MAX = 60
CPU_CHARS_MAX = 80
IMAGE_CHARS_MAX = 512
DISAGREEMENT_MAX = Decimal("1.15")
"""One price more than 15 % above another of the same server: one of them is a slip or bait."""
BID_MAX = 10**8
"""A day, in any currency. A least bid above it is no price: the cost of a plan has no digits for it."""
RATE_SAMPLES_MIN = 3
"""Servers that must agree on a coin's rate before it is believed."""
_GIB = 1 << 30
_GB = 10**9
_HOUR_S = 3600
_YEARS = (2000, 2200)
"""In which an order may have been made."""
RAM_GIB_MAX = 65_536
DISK_GB_MAX = 10_000_000
_SSH_PORT = 22
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_COUNTRY = re.compile(r"[A-Za-z]{2}")
_COUNTED_GPU = re.compile(r"\s*([0-9]{1,18})\s*x\s+(\S.*)", re.IGNORECASE)


@lru_cache(maxsize=4096)
def _clean(raw: str, max_chars: int) -> str:
    """Hardware names repeat thousands of times in one reading."""
    return clean_line(raw, max_chars=max_chars)


_MAKER = re.compile(r"\b(?:NVIDIA|GeForce)\b|\((?:R|TM)\)", re.IGNORECASE)


@lru_cache(maxsize=4096)
def gpu_name(raw: str) -> str:
    """`NVIDIA GeForce RTX 4090` is `RTX 4090`."""
    return " ".join(_MAKER.sub(" ", _clean(raw, GPU_NAME_CHARS_MAX)).split())


def gpu_names(described: str, listed: tuple[str, ...]) -> tuple[str, ...]:
    """One name per GPU, from `8x NVIDIA GeForce RTX 3060 Ti` and `gpu_array`.

    The described count is the most reliable one. A mixed rig is described without its models, so its
    names are the listed ones. Without either, or with an absurd count, there are none.
    """
    names = tuple(gpu_name(name) for name in listed)
    match = _COUNTED_GPU.fullmatch(described)
    count = int(match[1]) if match else len(names) or (1 if described.strip() else 0)
    if not 0 < count <= wire.GPUS_MAX or len(names) > wire.GPUS_MAX:
        return ()
    model = gpu_name(match[2] if match else described)
    if "mixed" in model.lower() or len(set(names)) > 1:
        return names
    return (model or names[0],) * count if model or names else ()


def _rates_per_day(prices: Mapping[str, Decimal], allowed: Iterable[str] | None = None) -> tuple[Rate, ...]:
    """Prices above zero, in currencies that are known and allowed, in a stable order."""
    coins = set(prices) if allowed is None else set(prices).intersection(allowed)
    return tuple(
        Rate.per_day(prices[name], currency)
        for currency, name in NAME_OF.items()
        if name in coins and prices[name] > 0
    )


# -- coin rates


def coin_rates(servers: Iterable[wire.WireServer], *, read_at: datetime) -> MarketRates:
    """USD per coin, by the market's own conversion of its listed prices: the median over all servers.

    Where the market shows no conversion, the USD prices that hosts typed are taken instead; a single
    host can type anything, so either way several must exist, and the median ignores the odd ones.
    """
    shown: dict[Currency, list[Decimal]] = {Currency.BITCOIN: [], Currency.CLORE: []}
    typed: dict[Currency, list[Decimal]] = {Currency.BITCOIN: [], Currency.CLORE: []}
    for server in servers:
        for currency in shown:
            price = server.on_demand.get(NAME_OF[currency])
            if price is None or price <= 0:
                continue
            usd = server.usd.get(_USD_KEY[currency])
            if usd is not None and usd > 0:
                shown[currency].append(usd / price)
            host_usd = server.original_usd.get(NAME_OF[currency])
            if host_usd is not None and host_usd > 0:
                typed[currency].append(host_usd / price)
    rates = [ExchangeRate(Currency.USD, Decimal(1), read_at, "one USD is one USD")]
    for currency in shown:
        for samples, what in ((shown[currency], "USD figures"), (typed[currency], "hosts' USD prices")):
            if len(samples) >= RATE_SAMPLES_MIN:
                source = f"marketplace: median of {len(samples)} {what}"
                rates.append(ExchangeRate(currency, median(samples), read_at, source))
                break
    return MarketRates.of(rates)


def told_rates(usd_rates: Mapping[str, Decimal], *, read_at: datetime) -> MarketRates:
    """`currency_rates_in_usd` of a spot market."""
    return MarketRates.of(
        ExchangeRate(CURRENCY_OF[name], rate, read_at, "spot_marketplace")
        for name, rate in usd_rates.items()
        if name in CURRENCY_OF and rate > 0
    )


# -- offers


def offer(server: wire.WireServer, rates: MarketRates) -> Offer:
    return with_prices(without_prices(server), server, server, rates)


def without_prices(server: wire.WireServer) -> Offer:
    """All of an offer that does not change from hour to hour."""
    specs = server.specs
    gpus = offered_gpus(specs, server.gpu_array)
    ram_bytes = _bytes(specs.ram_gb, _GIB, limit=RAM_GIB_MAX)
    disk_bytes = _bytes(specs.disk_gb, _GB, limit=DISK_GB_MAX)
    return Offer(
        server_id=ServerId(server.id),
        owner_id=None if server.owner is None else OwnerId(server.owner),
        gpus=gpus,
        cpu_model=cpu_name(specs.cpu),
        cores=specs.cores,
        threads=specs.threads,
        ram_bytes=ram_bytes,
        disk_free_bytes=disk_bytes,
        disk_mb_s=_positive(specs.disk_mb_s),
        down_mbit_s=_positive(specs.down_mbit_s),
        up_mbit_s=_positive(specs.up_mbit_s),
        country=country_code(specs.country),
        cuda_version=server.cuda_version,
        reliability=_fraction(server.reliability),
        rating=server.rating if server.rating_count else None,
        rating_count=server.rating_count,
        max_rental_s=_seconds(server.mrl_hours, _HOUR_S),
        is_rented=server.is_rented,
        pcie_generation=specs.pcie_generation,
        pcie_width=specs.pcie_width,
        on_demand=(),
        spot=(),
        flags=tuple(_spec_flags(server, gpus, ram_bytes, disk_bytes)),
    )


def with_prices(bare: Offer, server: wire.WireServer, prices: wire.WirePrices, rates: MarketRates) -> Offer:
    """`bare`, which is `server` without prices, at `prices`."""
    on_demand = _rates_per_day(prices.on_demand, server.allowed_coins)
    # A spot order on such a server is refused by name.
    bids = {} if server.is_on_gigaspot else prices.spot
    spot = _rates_per_day({coin: bid for coin, bid in bids.items() if bid <= BID_MAX}, server.allowed_coins)
    usd = _usd_figure(prices)
    names = tuple(gpu.name for gpu in bare.gpus)
    return replace(
        bare,
        on_demand=on_demand,
        spot=spot,
        usd_per_day=None if usd is None else Rate.per_day(usd),
        flags=(*_price_flags(on_demand, prices, rates, names), *bare.flags),
    )


def cpu_name(raw: str) -> str:
    return _clean(raw, CPU_CHARS_MAX)


def country_code(raw: str) -> str:
    """Two letters, upper case; "" for anything else."""
    return raw.upper() if _COUNTRY.fullmatch(raw) else ""


def offered_gpus(specs: wire.WireSpecs, listed: tuple[str, ...]) -> tuple[OfferedGpu, ...]:
    """One per GPU, from how the server is described and from `listed`, its `gpu_array`."""
    return _gpus(gpu_names(specs.gpu, listed or tuple(kind for kind, _ in specs.gpus)), specs)


def _gpus(names: tuple[str, ...], specs: wire.WireSpecs) -> tuple[OfferedGpu, ...]:
    """`gpuram` is of one GPU. On a mixed rig it is that of an unknown one, so each GPU's own is needed."""
    own = [memory for _, memory in specs.gpus] if len(specs.gpus) == len(names) else []
    if own:
        return tuple(OfferedGpu(name, _positive(vram)) for name, vram in zip(names, own, strict=True))
    vram = None if len(set(names)) > 1 else _positive(specs.gpu_vram_gb)
    return tuple(OfferedGpu(name, vram) for name in names)


def _usd_figure(prices: wire.WirePrices) -> Decimal | None:
    """The market's conversion; for prices in USD it is the price itself."""
    for currency in (Currency.USD, Currency.CLORE, Currency.BITCOIN):
        for figure in (prices.usd.get(_USD_KEY[currency]), prices.original_usd.get(NAME_OF[currency])):
            if figure is not None and figure > 0:
                return figure
    return None


def _price_flags(
    on_demand: tuple[Rate, ...], prices: wire.WirePrices, rates: MarketRates, names: tuple[str, ...]
) -> Iterable[OfferFlag]:
    if not on_demand:
        yield OfferFlag("no_price", "It has no on-demand price in a currency that it accepts.")
        return
    worth = {rate.currency: usd.amount for rate in on_demand if (usd := rates.to_usd(rate)) is not None}
    shown = [prices.usd.get(_USD_KEY[rate.currency]) for rate in on_demand]
    figures = [*worth.values(), *(usd for usd in shown if usd is not None and usd > 0)]
    if figures and max(figures) > min(figures) * DISAGREEMENT_MAX:
        yield OfferFlag(
            "prices_disagree",
            f"Its prices differ by currency: worth ${min(figures):.2f} to ${max(figures):.2f} a day.",
        )
    if names and worth:
        band = band_of_server(names)
        for amount in (min(worth.values()), max(worth.values())):
            if amount not in band:
                yield OfferFlag(
                    "price_out_of_band",
                    f"${amount:.2f} a day is outside ${band.low:.2f} to ${band.high:.2f}, usual for such: "
                    "perhaps a price per hour, or a slip.",
                )
                return


def _spec_flags(
    server: wire.WireServer, gpus: tuple[OfferedGpu, ...], ram_bytes: int | None, disk_bytes: int | None
) -> Iterable[OfferFlag]:
    missing = [
        what for what, is_there in (("GPUs", gpus), ("RAM", ram_bytes), ("disk", disk_bytes)) if not is_there
    ]
    if missing:
        yield OfferFlag("specs_missing", f"The market does not tell its {' and '.join(missing)}.")
    if server.cuda_version is None:
        yield OfferFlag("cuda_unknown", "The market does not tell its driver's CUDA version.")
    if server.is_on_gigaspot:
        yield OfferFlag("gigaspot", "It is on gigaspot, where it may be taken at other rules than here.")


# -- orders


def order(raw: wire.WireOrder) -> Order:
    """An order, whatever is missing of it but its id.

    An order that is left out would look ended, and it bills. So a missing server reads as `NO_SERVER`, and a
    missing price or an unknown currency as 0 USD, which is never taken for what it costs.
    """
    currency = CURRENCY_OF.get(raw.currency)
    price = raw.price if currency is not None and raw.price is not None and raw.price >= 0 else Decimal(0)
    currency = currency or Currency.USD
    names = gpu_names(raw.gpu, raw.gpu_array)
    return Order(
        order_id=OrderId(raw.id),
        server_id=NO_SERVER if raw.server is None else ServerId(raw.server),
        owner_id=None if raw.owner is None else OwnerId(raw.owner),
        price=Rate.per_day(price, currency),
        spend=Money(raw.spend or Decimal(0), currency),
        creation_fee=None if raw.creation_fee is None else Money(raw.creation_fee, currency),
        created_at=_instant(raw),
        max_rental_s=_seconds(raw.mrl_s, 1),
        image=_clean(raw.image, IMAGE_CHARS_MAX),
        is_spot=raw.is_spot,
        is_expired=raw.is_expired,
        is_online=raw.is_online,
        ssh=_ssh_address(raw),
        container_state=raw.container_state,
        gpu_summary=_summary(names),
    )


def orders(raw: Iterable[wire.WireOrder]) -> tuple[Order, ...]:
    """Each order once. Of two records of one order, a live one wins: it is the one that costs.

    A number alone does not make an order: where the market gave one anew, the record that ended on another
    server is the only one that tells its final bill.
    """
    found: dict[tuple[OrderId, ServerId], Order] = {}
    for each in map(order, raw):
        key = each.order_id, each.server_id
        seen = found.get(key)
        if seen is None or (seen.is_expired and not each.is_expired):
            found[key] = each
    return tuple(found.values())


def _ssh_address(raw: wire.WireOrder) -> SshAddress | None:
    hosts = tuple(host for host in raw.hosts if _HOST.fullmatch(host))
    port = raw.ports.get(_SSH_PORT)
    return SshAddress(hosts, port) if hosts and port is not None else None


def _instant(raw: wire.WireOrder) -> datetime | None:
    """None also for a time that no order can have: what reckons with it would leave the calendar."""
    try:
        if raw.created_unix_s is not None:
            told = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=float(raw.created_unix_s))
        elif raw.created_text:
            told = datetime.fromisoformat(raw.created_text)
        else:
            return None
        told = told.replace(tzinfo=UTC) if told.tzinfo is None else told.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return told if _YEARS[0] <= told.year <= _YEARS[1] else None


# -- wallets, fees, spot, hosting


def wallets(raw: Iterable[wire.WireWallet]) -> tuple[Wallet, ...]:
    return tuple(
        Wallet(currency, None if each.balance is None else Money(each.balance, currency))
        for each in raw
        if (currency := CURRENCY_OF.get(each.name)) is not None
    )


def fees(raw: wire.WireFees) -> RenterFees:
    """The market's figures; documented ones stand in for what is missing, and the source then says so."""
    on_demand: dict[Currency, Decimal] = {}
    spot: dict[Currency, Decimal] = {}
    creation: dict[Currency, Decimal] = {}
    is_whole = True
    for name, currency in CURRENCY_OF.items():
        for table, told, documented in (
            (on_demand, raw.on_demand_percent, DOCUMENTED_FEES.percent(currency, is_spot=False)),
            (spot, raw.spot_percent, DOCUMENTED_FEES.percent(currency, is_spot=True)),
        ):
            percent = told.get(name)
            is_usable = percent is not None and 0 <= percent <= 100
            is_whole &= is_usable
            table[currency] = percent if is_usable and percent is not None else documented
        told_fees = [
            fee
            for table in (raw.on_demand_creation, raw.spot_creation)
            if (fee := table.get(name)) is not None
        ]
        is_whole &= bool(told_fees)
        # One figure for both kinds of order: the higher, against us.
        creation[currency] = (
            max((*told_fees, Decimal(0))) if told_fees else DOCUMENTED_FEES.creation(currency)
        )
    return RenterFees(
        on_demand_percent=tuple(on_demand.items()),
        spot_percent=tuple(spot.items()),
        creation_fee=tuple(creation.items()),
        source="market" if is_whole else "assumed",
    )


def spot_market(raw: wire.WireSpotMarket, server_id: ServerId, *, read_at: datetime) -> SpotMarket:
    return SpotMarket(
        server_id=server_id,
        exists=raw.exists,
        bids=tuple(
            SpotBid(OrderId(bid.order_id), Rate.per_day(bid.price, currency), bid.is_active, bid.is_mine)
            for bid in raw.bids.records
            if (currency := CURRENCY_OF.get(bid.currency)) is not None
            and bid.price is not None
            and bid.price >= 0
        ),
        min_prices=_rates_per_day(raw.min_prices),
        rates=told_rates(raw.usd_rates, read_at=read_at),
        is_online=raw.is_online,
        read_at=read_at,
    )


def hosted_server(raw: wire.WireHostedServer) -> HostedServer:
    names = gpu_names(raw.gpu, raw.gpu_array)
    return HostedServer(
        name=_clean(raw.name, GPU_NAME_CHARS_MAX),
        server_id=None if raw.id is None else ServerId(raw.id),
        is_connected=raw.is_connected,
        is_online=raw.is_online,
        visibility=_clean(raw.visibility, 20),
        on_demand=_rates_per_day(raw.on_demand, raw.allowed_coins),
        spot=_rates_per_day(raw.spot, raw.allowed_coins),
        max_rental_s=_seconds(raw.mrl_hours, _HOUR_S),
        rental_status=raw.rental_status,
        gpu_summary=_summary(names),
    )


# -- numbers


def _summary(names: tuple[str, ...]) -> str:
    return " + ".join(f"{names.count(name)}x {name}" for name in dict.fromkeys(names))


def _positive(value: Decimal | None) -> Decimal | None:
    return value if value is not None and value > 0 else None


def _fraction(value: Decimal | None) -> Decimal | None:
    return value if value is not None and 0 <= value <= 1 else None


def _bytes(value: Decimal | None, unit_bytes: int, *, limit: int) -> int | None:
    """RAM is told in GiB (a 32 GB machine shows 31.2); disk is taken as GB of 10^9, the smaller reading. Less
    than a byte is not told."""
    size = int(value * unit_bytes) if value is not None and 0 < value <= limit else 0
    return size or None


_SECONDS_MAX = 10 * 366 * 86_400


def _seconds(value: Decimal | None, unit_s: int) -> int | None:
    return int(value * unit_s) if value is not None and 0 < value * unit_s <= _SECONDS_MAX else None
