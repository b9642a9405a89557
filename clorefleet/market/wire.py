"""Tolerant reading of the service's JSON: any text in, records of plain values out.

Rules: numbers are `Decimal` or `int` made from the text, never float. A field of an unexpected type reads
as missing; unknown fields are ignored. A record without its id is skipped and counted, and spoils nothing
else. Nothing here knows what a value means for the fleet: that is `convert`. Text is as the service sent
it; `convert` makes it harmless.

Plain functions, because almost every field may be missing, null, or of another type: a schema would be
one validator per field, and 3,500 records must decode in a fraction of a second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Generic, TypeVar

RECORDS_MAX = 100_000
"""Records read of one list; the market had 3,500 servers in 2024."""
SAMPLES_MAX = 3
"""Unreadable records of which the log gets a glimpse."""
NUMBER_CHARS_MAX = 40
GPUS_MAX = 64
"""GPUs believed of one server. More is a slip or an attack on our memory."""
HOSTS_MAX = 8
COINS_MAX = 16
_EXPONENT_MAX = 18
"""Amounts of 10^18 and more, or finer than 10^-30, are no amounts."""
_EXPONENT_MIN = -30
_NESTING_MAX = 4
_TEXT_MAX = 4096

Json = object
"""Any JSON value, before it is looked at."""
Fields = Mapping[str, Json]
T = TypeVar("T")


class NotJson(ValueError):
    """The body is not JSON: cut, empty, HTML, not UTF-8, or nested beyond reason."""


def parse(body: bytes) -> Json:
    """The JSON value of `body`, numbers exact.

    Raises:
        NotJson: for anything else.
    """
    try:
        return json.loads(
            body.decode("utf-8"), parse_float=exact, parse_int=_whole, parse_constant=lambda _: None
        )
    except (ValueError, RecursionError) as error:
        raise NotJson(type(error).__name__) from error


def exact(text: str) -> Decimal | None:
    """None for a number that is too extreme to be meant."""
    try:
        return _bounded(Decimal(text))
    except InvalidOperation:
        return None


def _whole(text: str) -> int | None:
    # A few thousand digits make `int` raise, which would spoil the whole document for one field.
    return int(text) if len(text) <= NUMBER_CHARS_MAX else None


def _bounded(value: Decimal) -> Decimal | None:
    if not value.is_finite():
        return None
    if not value:
        return Decimal(0)
    # `adjusted` is the exponent of the first digit; the texts are short, so the last one is near.
    return value if _EXPONENT_MIN < value.adjusted() < _EXPONENT_MAX else None


_decoder = json.JSONDecoder(parse_float=exact, parse_int=_whole, parse_constant=lambda _: None)


# -- values


def number(value: Json) -> Decimal | None:
    """A number, also one written as a string."""
    if isinstance(value, Decimal):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return _bounded(Decimal(value))
    if isinstance(value, str) and len(value) <= NUMBER_CHARS_MAX:
        try:
            return _bounded(Decimal(value.strip()))
        except InvalidOperation:
            return None
    return None


def whole(value: Json) -> int | None:
    """A whole number; `12`, `"12"` and `12.0` are the same one."""
    found = number(value)
    return None if found is None or found != found.to_integral_value() else int(found)


def identifier(value: Json) -> int | None:
    """A positive whole number, as all ids of the service are; int or text."""
    found = whole(value)
    return found if found is not None and found > 0 else None


def flag(value: Json) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    return None


def text(value: Json) -> str:
    return value[:_TEXT_MAX] if isinstance(value, str) else ""


def fields(value: Json) -> Fields:
    """An object; anything else reads as an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def amounts(value: Json) -> dict[str, Decimal]:
    """Currency -> number, without entries that are no number."""
    out: dict[str, Decimal] = {}
    for coin, raw in fields(value).items():
        amount = number(raw)
        if amount is not None and len(out) < COINS_MAX:
            out[coin] = amount
    return out


def strings(value: Json, *, limit: int) -> tuple[str, ...]:
    """Texts of an array that may be nested, or of a lone text; blanks stripped, empty ones left out."""
    out: list[str] = []

    def walk(item: Json, depth: int) -> None:
        if len(out) >= limit:
            return
        if isinstance(item, str):
            if stripped := item[:_TEXT_MAX].strip():
                out.append(stripped)
        elif isinstance(item, list) and depth < _NESTING_MAX:
            for inner in item:
                walk(inner, depth + 1)

    walk(value, 0)
    return tuple(out)


_DISK = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*GB\s*$", re.IGNORECASE)
_DISK_TAIL_CHARS = 40


def disk_gb(value: Json) -> Decimal | None:
    """`"XrayDisk 512GB SSD 449.8229GB"` is 449.8229: the last number before the final GB."""
    if not isinstance(value, str):
        return None
    match = _DISK.search(value[-_DISK_TAIL_CHARS:])
    return None if match is None else Decimal(match[1])


def cores_and_threads(value: Json) -> tuple[int | None, int | None]:
    """`"12/24"` is 12 cores with 24 threads; `"12"` says nothing of threads."""
    raw = str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value)
    cores, _, threads = raw.partition("/")
    return identifier(cores), identifier(threads)


def version(value: Json) -> tuple[int, int] | None:
    """`"12.10"` by part, so that it is above `"12.9"`. Numbers keep their text, so they work as well."""
    raw = str(value) if isinstance(value, Decimal | int) and not isinstance(value, bool) else text(value)
    match = re.fullmatch(r"\s*([0-9]{1,3})(?:\.([0-9]{1,3}))?(?:\.[0-9]{1,6})?\s*", raw)
    return None if match is None else (int(match[1]), int(match[2] or 0))


def port_map(value: Json) -> dict[int, int]:
    """Container port -> public port, from `["22:1380"]` or `{"22": 1380}`."""
    pairs: Iterable[tuple[Json, Json]]
    if isinstance(value, dict):
        pairs = value.items()
    else:
        pairs = ((inner, outer) for inner, _, outer in (text(item).partition(":") for item in items(value)))
    out: dict[int, int] = {}
    for inner, outer in pairs:
        container, public = whole(inner), whole(outer)
        if container is not None and public is not None and 0 < public < 65_536 and 0 < container < 65_536:
            out.setdefault(container, public)
    return out


# -- lists of records


@dataclass(frozen=True, slots=True)
class Decoded(Generic[T]):
    """Readable records, and how many were not."""

    records: tuple[T, ...]
    skipped: int = 0
    samples: tuple[str, ...] = ()
    """Glimpses of the first skipped ones, as raw text: clean before printing."""


def decode_list(value: Json, read: Callable[[Fields], T | None]) -> Decoded[T]:
    """Read each object of a list; `read` gives None for one without its id."""
    records: list[T] = []
    skipped = 0
    samples: list[str] = []
    for raw in items(value)[:RECORDS_MAX]:
        record = read(raw) if isinstance(raw, dict) else None
        if record is not None:
            records.append(record)
            continue
        skipped += 1
        if len(samples) < SAMPLES_MAX:
            samples.append(f"{type(raw).__name__}({', '.join(map(str, list(fields(raw))[:12]))})")
    return Decoded(tuple(records), skipped, tuple(samples))


# -- marketplace


@dataclass(frozen=True, slots=True)
class WireSpecs:
    cpu: str
    cores: int | None
    threads: int | None
    ram_gb: Decimal | None
    disk_gb: Decimal | None
    disk_mb_s: Decimal | None
    gpu: str
    gpu_vram_gb: Decimal | None
    gpus: tuple[tuple[str, Decimal | None], ...]
    """Newer records: type and memory of each GPU."""
    country: str
    down_mbit_s: Decimal | None
    up_mbit_s: Decimal | None
    pcie_generation: int | None
    pcie_width: int | None


@dataclass(frozen=True, slots=True)
class WirePrices:
    on_demand: dict[str, Decimal]
    """Per day for the whole server, by the service's name of the currency."""
    spot: dict[str, Decimal]
    usd: dict[str, Decimal]
    """`on_demand_btc`, `on_demand_clore`, `on_demand_usd`, `spot`: the service's own conversion."""
    original_usd: dict[str, Decimal]
    """By currency: the on-demand price that the host typed in USD."""


@dataclass(frozen=True, slots=True)
class WireServer(WirePrices):
    id: int
    owner: int | None
    mrl_hours: Decimal | None
    is_rented: bool
    specs: WireSpecs
    reliability: Decimal | None
    allowed_coins: tuple[str, ...]
    rating: Decimal | None
    rating_count: int
    gpu_array: tuple[str, ...]
    cuda_version: tuple[int, int] | None
    is_on_gigaspot: bool


def read_specs(value: Json) -> WireSpecs:
    specs = fields(value)
    net = fields(specs.get("net"))
    cores, threads = cores_and_threads(specs.get("cpus"))
    return WireSpecs(
        cpu=text(specs.get("cpu")),
        cores=cores,
        threads=threads,
        ram_gb=number(specs.get("ram")),
        disk_gb=disk_gb(specs.get("disk")),
        disk_mb_s=number(specs.get("disk_speed")),
        gpu=text(specs.get("gpu")),
        gpu_vram_gb=number(specs.get("gpuram")),
        gpus=tuple(
            (text(gpu.get("type")), number(gpu.get("mem")))
            for gpu in map(fields, items(specs.get("gpus"))[:GPUS_MAX])
        ),
        country=text(net.get("cc")),
        down_mbit_s=number(net.get("down")),
        up_mbit_s=number(net.get("up")),
        pcie_generation=whole(specs.get("pcie_rev")),
        pcie_width=whole(specs.get("pcie_width")),
    )


def read_server(raw: Fields) -> WireServer | None:
    server_id = identifier(raw.get("id"))
    if server_id is None:
        return None
    prices, rating = read_prices(raw.get("price")), fields(raw.get("rating"))
    rented = flag(raw.get("rented"))
    return WireServer(
        id=server_id,
        owner=identifier(raw.get("owner")),
        mrl_hours=number(raw.get("mrl")),
        on_demand=prices.on_demand,
        spot=prices.spot,
        usd=prices.usd,
        original_usd=prices.original_usd,
        # Not told is taken as rented: a server that cannot be had costs us less than a failed rent.
        is_rented=True if rented is None else rented,
        specs=read_specs(raw.get("specs")),
        reliability=number(raw.get("reliability")),
        allowed_coins=strings(raw.get("allowed_coins"), limit=COINS_MAX),
        rating=number(rating.get("avg")),
        rating_count=max(0, whole(rating.get("cnt")) or 0),
        gpu_array=strings(raw.get("gpu_array"), limit=GPUS_MAX + 1),
        cuda_version=version(raw.get("cuda_version")),
        is_on_gigaspot=is_on_gigaspot(raw.get("gigaspot")),
    )


def read_prices(value: Json) -> WirePrices:
    price = fields(value)
    return WirePrices(
        on_demand=amounts(price.get("on_demand")),
        spot=amounts(price.get("spot")),
        usd=amounts(price.get("usd")),
        original_usd=_original_usd(price.get("original_usd")),
    )


def is_on_gigaspot(value: Json) -> bool:
    """`true`, or an object that does not say it is disabled."""
    return flag(value.get("enabled")) is not False if isinstance(value, dict) else flag(value) is True


def _original_usd(value: Json) -> dict[str, Decimal]:
    """By currency. Once it was flat, `{on_demand, spot}`, which names no currency and is left out."""
    return amounts({coin: fields(pair).get("on_demand") for coin, pair in fields(value).items()})


def read_marketplace(doc: Fields) -> Decoded[WireServer]:
    return decode_list(doc.get("servers"), read_server)


# -- orders


@dataclass(frozen=True, slots=True)
class WireOrder:
    id: int
    server: int | None
    owner: int | None
    price: Decimal | None
    currency: str
    spend: Decimal | None
    creation_fee: Decimal | None
    created_unix_s: Decimal | None
    created_text: str
    """Where the creation time came as text instead."""
    mrl_s: Decimal | None
    image: str
    is_spot: bool
    is_expired: bool
    is_online: bool | None
    hosts: tuple[str, ...]
    ports: dict[int, int]
    container_state: int | None
    gpu: str
    gpu_array: tuple[str, ...]


_ENDED_WORDS = frozenset({"expired", "completed", "terminated", "ended", "finished", "cancelled", "canceled"})


def read_order(raw: Fields) -> WireOrder | None:
    order_id = identifier(raw.get("id"))
    if order_id is None:
        order_id = identifier(raw.get("order_id"))
    if order_id is None:
        return None
    created = raw.get("ct") if raw.get("ct") is not None else raw.get("created_at")
    expired = flag(raw.get("expired"))
    if expired is None:
        # The SDK's spelling; no confirmed answer has it. It only counts where `expired` is silent.
        expired = text(raw.get("status")).strip().lower() in _ENDED_WORDS
    server = raw.get("si") if raw.get("si") is not None else raw.get("renting_server")
    return WireOrder(
        id=order_id,
        server=identifier(server),
        owner=identifier(raw.get("owner")),
        price=number(raw.get("price")),
        currency=text(raw.get("currency")),
        spend=number(raw.get("spend")),
        creation_fee=number(raw.get("creation_fee")),
        created_unix_s=number(created),
        created_text=text(created),
        mrl_s=number(raw.get("mrl")),
        image=text(raw.get("image")),
        is_spot=flag(raw.get("spot")) is True or text(raw.get("type")) == "spot",
        is_expired=expired,
        is_online=flag(raw.get("online")),
        hosts=strings(raw.get("pub_cluster"), limit=HOSTS_MAX),
        ports=port_map(raw.get("tcp_ports")),
        container_state=whole(raw.get("mon_container")),
        gpu=text(fields(raw.get("specs")).get("gpu")),
        gpu_array=strings(raw.get("gpu_array"), limit=GPUS_MAX + 1),
    )


def read_orders(doc: Fields) -> Decoded[WireOrder]:
    return decode_list(doc.get("orders"), read_order)


def read_created_order_id(doc: Fields) -> int | None:
    """The order id that `create_order` gives at times, in one of three known forms."""
    nested = fields(doc.get("order"))
    for candidate in (nested.get("id"), nested.get("order_id"), doc.get("order_id"), doc.get("id")):
        found = identifier(candidate)
        if found is not None:
            return found
    return None


# -- wallets, fees, spot


@dataclass(frozen=True, slots=True)
class WireWallet:
    name: str
    balance: Decimal | None


def read_wallet(raw: Fields) -> WireWallet | None:
    name = text(raw.get("name"))
    return WireWallet(name, number(raw.get("balance"))) if name else None


def read_wallets(doc: Fields) -> Decoded[WireWallet]:
    return decode_list(doc.get("wallets"), read_wallet)


@dataclass(frozen=True, slots=True)
class WireFees:
    """Percent of the price, base and extra together, and the fee once per order; by currency."""

    on_demand_percent: dict[str, Decimal]
    spot_percent: dict[str, Decimal]
    on_demand_creation: dict[str, Decimal]
    spot_creation: dict[str, Decimal]


def read_fees(doc: Fields) -> WireFees:
    percent, creation = fields(doc.get("renter_fees")), fields(doc.get("creation_fees"))

    def total(kind: str) -> dict[str, Decimal]:
        base = amounts(fields(percent.get(kind)).get("base"))
        extra = amounts(fields(percent.get(kind)).get("extra"))
        return {coin: share + extra.get(coin, Decimal(0)) for coin, share in base.items()}

    return WireFees(
        on_demand_percent=total("on_demand"),
        spot_percent=total("spot"),
        on_demand_creation=amounts(creation.get("on_demand")),
        spot_creation=amounts(creation.get("spot")),
    )


@dataclass(frozen=True, slots=True)
class WireBid:
    order_id: int
    price: Decimal | None
    currency: str
    is_active: bool
    is_mine: bool


@dataclass(frozen=True, slots=True)
class WireSpotMarket:
    exists: bool
    bids: Decoded[WireBid]
    usd_rates: dict[str, Decimal]
    min_prices: dict[str, Decimal]
    is_online: bool | None


def read_bid(raw: Fields) -> WireBid | None:
    found = identifier(raw.get("offer_id"))
    order_id = identifier(raw.get("order_id")) if found is None else found
    if order_id is None:
        return None
    return WireBid(
        order_id=order_id,
        price=number(raw.get("bid") if raw.get("bid") is not None else raw.get("price")),
        currency=text(raw.get("currency")),
        is_active=flag(raw.get("active")) is True,
        is_mine=flag(raw.get("my")) is True,
    )


def read_spot_market(doc: Fields) -> WireSpotMarket:
    market = fields(doc.get("market"))
    server = fields(market.get("server"))
    return WireSpotMarket(
        exists=flag(doc.get("exists")) is not False and bool(market),
        bids=decode_list(market.get("offers"), read_bid),
        usd_rates=amounts(market.get("currency_rates_in_usd")),
        min_prices=amounts(server.get("min_pricing")),
        is_online=flag(server.get("online")),
    )


# -- hosting side and the rest


@dataclass(frozen=True, slots=True)
class WireHostedServer:
    """`my_servers` and `server_config`. The `init_token` of an unconnected server is a secret: never read."""

    name: str
    id: int | None
    is_connected: bool
    is_online: bool | None
    visibility: str
    on_demand: dict[str, Decimal]
    spot: dict[str, Decimal]
    allowed_coins: tuple[str, ...]
    mrl_hours: Decimal | None
    rental_status: int | None
    gpu: str
    gpu_array: tuple[str, ...]


def read_hosted_server(raw: Fields) -> WireHostedServer | None:
    name = text(raw.get("name"))
    if not name:
        return None
    coins = (
        raw.get("allowed_coins") if raw.get("allowed_coins") is not None else raw.get("allowed_currencies")
    )
    least = raw.get("spot_pricing") if raw.get("spot_pricing") is not None else raw.get("min_spot_pricing")
    return WireHostedServer(
        name=name,
        id=identifier(raw.get("id")),
        is_connected=flag(raw.get("connected")) is True,
        is_online=flag(raw.get("online")),
        visibility=text(raw.get("visibility")),
        on_demand=amounts(raw.get("pricing")),
        spot=amounts(least),
        allowed_coins=strings(coins, limit=COINS_MAX),
        mrl_hours=number(raw.get("mrl")),
        rental_status=whole(raw.get("rental_status")),
        gpu=text(fields(raw.get("specs")).get("gpu")),
        gpu_array=strings(raw.get("gpu_array"), limit=GPUS_MAX + 1),
    )


def read_my_servers(doc: Fields) -> Decoded[WireHostedServer]:
    return decode_list(doc.get("servers"), read_hosted_server)
