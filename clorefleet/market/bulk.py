"""The whole `marketplace` answer at once: columns to sort offers out by, and each offer exactly when asked.

A reading has thousands of servers, of which a plan needs a few dozen in full. `OfferTable` decodes only what
sorting out needs, as floats in columns, and keeps the answer's bytes. `table[i]` reads one record again with
`wire` and `convert`, the tolerant and exact way, so no amount of money ever is one of these floats.

Rules: the columns may claim less than they know, never more. A record with any field of an unusual type is
marked `is_odd` and says nothing in the columns. `tests/market/test_bulk.py` holds both readings equal.
"""

from __future__ import annotations

import gc
import math
import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from itertools import compress, count
from typing import Any, TypeVar, cast, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from clorefleet.domain.money import Currency, ExchangeRate
from clorefleet.domain.offer import MarketRates, Offer, OfferedGpu
from clorefleet.domain.offer_columns import COLUMN_CURRENCIES, OfferColumns
from clorefleet.market import convert, wire
from clorefleet.market.price_band import band_of_server

NO_RAW = msgspec.Raw(b"")
_Number = float | str | None
_SAME = 1e-12
"""Relative: two floats nearer than this may stand for decimals in either order."""
_FLOAT_MIN, _FLOAT_MAX = 1e-28, 1e16
"""Beyond these `wire` may not believe a number."""
_ID_MAX = 10**17
"""From here on `wire` may not believe an id."""
_MRL_HOURS_MAX = 87_000.0
T = TypeVar("T")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
_Column = tuple[Floats, Flags]
"""Numbers, nan where there is none, and which are odd."""


class _Net(msgspec.Struct, gc=False, frozen=True):
    cc: str | None = None
    down: _Number = math.nan


class _Coins(msgspec.Struct, gc=False, frozen=True):
    usd: _Number = msgspec.field(default=math.nan, name="USD-Blockchain")
    clore: _Number = msgspec.field(default=math.nan, name="CLORE-Blockchain")
    btc: _Number = msgspec.field(default=math.nan, name="bitcoin")


class _Usd(msgspec.Struct, gc=False, frozen=True):
    clore: _Number = msgspec.field(default=math.nan, name="on_demand_clore")
    btc: _Number = msgspec.field(default=math.nan, name="on_demand_btc")


_NO_NET, _NO_COINS, _NO_USD = _Net(), _Coins(), _Usd()


class _Price(msgspec.Struct, gc=False, frozen=True):
    on_demand: _Coins | None = _NO_COINS
    usd: _Usd | None = _NO_USD
    spot: msgspec.Raw = NO_RAW


class _Specs(msgspec.Struct, gc=False, frozen=True):
    cpu: str | None = None
    ram: _Number = math.nan
    disk: str | None = None
    disk_speed: _Number = math.nan
    gpu: str | None = None
    gpuram: msgspec.Raw = NO_RAW
    gpus: msgspec.Raw = NO_RAW
    net: _Net | None = _NO_NET


_NO_PRICE, _NO_SPECS = _Price(), _Specs()


class _Server(msgspec.Struct, gc=False, frozen=True):
    """What is missing has a default that is shared; only what is `null` is None."""

    id: int | float | str | None = None
    owner: msgspec.Raw = NO_RAW
    mrl: _Number = math.nan
    price: _Price | None = _NO_PRICE
    rented: bool | None = True
    specs: _Specs | None = _NO_SPECS
    reliability: _Number = math.nan
    allowed_coins: msgspec.Raw = NO_RAW
    gpu_array: msgspec.Raw = NO_RAW
    cuda_version: str | None = None
    gigaspot: msgspec.Raw = NO_RAW


class _Answer(msgspec.Struct, gc=False):
    servers: list[_Server]
    code: int | float | str | None = None


class _RawAnswer(msgspec.Struct):
    servers: list[msgspec.Raw]
    code: int | float | str | None = None


_answer_decoder = msgspec.json.Decoder(_Answer)
_raw_decoder = msgspec.json.Decoder(_RawAnswer)
_server_decoder = msgspec.json.Decoder(_Server)
_NO_SERVER = _Server()


def table_of_answer(body: bytes, *, read_at: datetime, needs_code: bool = True) -> OfferTable | None:
    """None for an answer that only the tolerant way reads: no list of servers, no code 0, not strict JSON."""
    was_enabled = gc.isenabled()
    gc.disable()  # hundreds of thousands of small objects, none of them in a cycle
    try:
        return _table(body, read_at, needs_code)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    finally:
        if was_enabled:
            gc.enable()


def _table(body: bytes, read_at: datetime, needs_code: bool) -> OfferTable | None:
    if not body.isascii():
        body.decode("utf-8")  # fields that are skipped below are not looked at
    try:
        answer = _answer_decoder.decode(body)
        rows: list[_Server | None] = list(answer.servers)
        code = answer.code
    except msgspec.ValidationError:
        raw_answer = _raw_decoder.decode(body)
        rows = [_row(raw) for raw in raw_answer.servers]
        code = raw_answer.code
    if (needs_code and (type(code) is not int or code != 0)) or len(rows) > wire.RECORDS_MAX:
        return None
    return OfferTable(body, rows, read_at)


def _row(raw: msgspec.Raw) -> _Server | None:
    try:
        return _server_decoder.decode(raw)
    except msgspec.ValidationError:
        return None


class OfferTable(Sequence[Offer]):
    """All readable servers of one answer, in its order."""

    def __init__(self, body: bytes, rows: list[_Server | None], read_at: datetime) -> None:
        self._body = body
        self._start = _address(body)
        self._raws: list[msgspec.Raw] | None = None
        self._exact: dict[int, Offer] = {}
        self.skipped = 0
        self._positions: Ints
        self._rows: list[_Server]
        self._odd: Flags
        self._read(rows, read_at)

    def _read(self, rows: list[_Server | None], read_at: datetime) -> None:
        whole = [_NO_SERVER if row is None else row for row in rows]
        try:
            ids = _array("q", [row.id for row in whole])
        except (TypeError, OverflowError):
            ids = np.zeros(len(whole), dtype=np.int64)
            for i, row in enumerate(whole):
                if type(row.id) is int and row.id < _ID_MAX:
                    ids[i] = row.id
        odd = (ids <= 0) | (ids >= _ID_MAX)
        self._positions = np.arange(len(whole))
        if odd.any():
            readable = ~odd
            for i in np.flatnonzero(odd).tolist():
                readable[i] = self._has_id(i)
            self._positions = np.flatnonzero(readable)
            self.skipped = int((~readable).sum())
            odd, ids = odd[readable], ids[readable]
            whole = [whole[i] for i in self._positions.tolist()]
        self._rows = whole
        self._odd = odd
        prices = _whole([row.price for row in whole], _NO_PRICE)
        coins = _Prices(prices)
        self.rates = _Rates(self, coins, odd, read_at).found
        self.columns = _columns(whole, prices, coins, np.where(odd, 0, ids), odd, self.rates)

    # -- exact offers

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Offer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Offer, ...]: ...
    def __getitem__(self, index: int | slice) -> Offer | tuple[Offer, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index not in self._exact:
            self._exact[index] = convert.offer(self.server(index), self.rates)
        return self._exact[index]

    def __iter__(self) -> Iterator[Offer]:
        return (self[i] for i in range(len(self)))

    def server(self, index: int) -> wire.WireServer:
        """One record, read the tolerant way."""
        near = None if self._odd[index] else self._rows[index].owner
        found = self._record(int(self._positions[index]), near)
        server = wire.read_server(found)
        if server is None:
            raise AssertionError("a record without an id is in no table")
        return server

    def _has_id(self, position: int) -> bool:
        return wire.read_server(self._record(position, None)) is not None

    def _record(self, position: int, owner: msgspec.Raw | None) -> wire.Fields:
        """The record at `position`: by the place of its owner, which usually follows its id, the first field;
        else by reading the list again."""
        if owner is not None and owner is not NO_RAW and self._raws is None:
            at = _address(owner) - self._start
            start = self._body.rfind(b"{", max(0, at - 80), at) if 0 < at < len(self._body) else -1
            if start >= 0 and _BEFORE_OWNER.fullmatch(self._body, start, at):
                return self._parse_one(start)
        if self._raws is None:
            self._raws = _raw_decoder.decode(self._body).servers
        return wire.fields(wire.parse(bytes(self._raws[position])))

    def _parse_one(self, start: int) -> wire.Fields:
        """The object that begins at `start`. Its end is looked for in growing pieces."""
        size = 4096
        while True:
            piece = self._body[start : start + size]
            found = wire.parse_first(piece)
            if found is not None:
                return wire.fields(found)
            if start + size >= len(self._body):
                raise AssertionError("the answer was read whole, and now a record of it has no end")
            size *= 8


def _address(buffer: bytes | msgspec.Raw) -> int:
    """Where its bytes lie in memory. A `Raw` is a view of the answer, and does not tell its offset."""
    view = np.frombuffer(buffer, dtype=np.uint8)
    return int(view.__array_interface__["data"][0])


_BEFORE_OWNER = re.compile(rb'\{\s*"id"\s*:\s*[0-9]+\s*,\s*"owner"\s*:\s*')


# -- coin rates


class _Prices:
    """On-demand prices of all servers, and what the market says they are worth in USD."""

    def __init__(self, prices: list[_Price]) -> None:
        self.on_demand = _whole([price.on_demand for price in prices], _NO_COINS)
        usd = _whole([price.usd for price in prices], _NO_USD)
        self.clore = _numbers([coins.clore for coins in self.on_demand])
        self.btc = _numbers([coins.btc for coins in self.on_demand])
        self.usd_of_clore = _numbers([coins.clore for coins in usd])
        self.usd_of_btc = _numbers([coins.btc for coins in usd])


class _Rates:
    """`convert.coin_rates`, whose medians are found among floats and read exactly."""

    def __init__(self, table: OfferTable, prices: _Prices, odd: Flags, read_at: datetime) -> None:
        self._table, self._prices, self._odd = table, prices, odd
        self.found = self._of(read_at)

    def _of(self, read_at: datetime) -> MarketRates:
        rates = [ExchangeRate(Currency.USD, Decimal(1), read_at, "one USD is one USD")]
        prices = self._prices
        for currency, listed, shown, name, usd_name in (
            (Currency.BITCOIN, prices.btc, prices.usd_of_btc, "bitcoin", "on_demand_btc"),
            (Currency.CLORE, prices.clore, prices.usd_of_clore, "CLORE-Blockchain", "on_demand_clore"),
        ):
            ratios = self._ratios(listed, shown, name, usd_name)
            if ratios is None:
                # Too few conversions shown, or too odd an answer: the plain way, over all records.
                return convert.coin_rates(map(self._table.server, range(len(self._table))), read_at=read_at)
            middle, count = ratios
            source = f"marketplace: median of {count} USD figures"
            rates.append(ExchangeRate(currency, middle, read_at, source))
        return MarketRates.of(rates)

    def _ratios(
        self, listed_column: _Column, shown_column: _Column, name: str, usd_name: str
    ) -> tuple[Decimal, int] | None:
        (listed, is_odd), (shown, is_odd_too) = listed_column, shown_column
        exact: dict[int, Decimal] = {}

        def ratio(i: int) -> Decimal | None:
            server = self._table.server(i)
            price, usd = server.on_demand.get(name), server.usd.get(usd_name)
            return usd / price if price is not None and price > 0 and usd is not None and usd > 0 else None

        with np.errstate(divide="ignore", invalid="ignore"):
            approximate = shown / listed
        unsure = self._odd | is_odd | is_odd_too
        for i in np.flatnonzero(unsure).tolist():
            value = ratio(i)
            if value is not None:
                exact[i] = value
        index = np.flatnonzero((listed > 0) & (shown > 0) & ~unsure)
        count = len(index) + len(exact)
        if count < convert.RATE_SAMPLES_MIN:
            return None
        keys = np.concatenate(
            [approximate[index], np.fromiter(map(float, exact.values()), float, len(exact))]
        )
        rows = np.concatenate([index, np.fromiter(exact, np.int64, len(exact))])
        middle = np.partition(keys, (count // 2 - 1, count // 2))

        def at(rank: int) -> Decimal:
            """The exact ratio of this rank, by ranking exactly those that floats cannot tell apart."""
            low, high = middle[rank] * (1 - _SAME), middle[rank] * (1 + _SAME)
            positions = rows[(keys >= low) & (keys <= high)].tolist()
            near = [exact[i] if i in exact else ratio(i) for i in positions]
            return sorted(each for each in near if each is not None)[rank - int((keys < low).sum())]

        if count % 2:
            return at(count // 2), count
        return (at(count // 2 - 1) + at(count // 2)) / 2, count


# -- columns


def _columns(
    rows: list[_Server], prices: list[_Price], coins: _Prices, ids: Ints, odd: Flags, rates: MarketRates
) -> OfferColumns:
    """Of free servers only: of others nothing more is asked."""
    try:
        is_free = _array("b", [row.rented for row in rows]) == 0
    except TypeError:
        is_free = np.array([row.rented is False for row in rows], dtype=bool)
    is_free |= odd
    free = np.flatnonzero(is_free)
    kept = list(compress(rows, is_free))
    specs = _whole([row.specs for row in kept], _NO_SPECS)
    net = _whole([each.net for each in specs], _NO_NET)
    strange = odd[free].copy()

    def column(values: list[_Number]) -> Floats:
        numbers, unusual = _numbers(values)
        np.logical_or(strange, unusual, out=strange)
        return numbers

    def of_free(column: _Column) -> Floats:
        numbers, unusual = column
        np.logical_or(strange, unusual[free], out=strange)
        return numbers[free]

    allowed, allowed_of = _kinds(_texts([row.allowed_coins for row in kept]), _allowed_coins)
    may_pay = np.asarray(allowed or np.zeros((0, 3)), dtype=bool).reshape(-1, 3)[allowed_of]
    in_usd = column([each.usd for each in compress(coins.on_demand, is_free)])
    on_demand = np.stack([in_usd, of_free(coins.clore), of_free(coins.btc)], axis=1)
    on_demand = np.where((on_demand > 0) & may_pay, on_demand, np.nan)
    described = zip(
        [each.gpu for each in specs],
        _texts([each.gpuram for each in specs]),
        _texts([each.gpus for each in specs]),
        _texts([row.gpu_array for row in kept]),
        strict=True,
    )
    gpu_kinds, gpu_of = _distinct(*_kinds(described, _gpu_kind))
    cpus, cpu_of = _kinds([each.cpu for each in specs], lambda cpu: convert.cpu_name(wire.text(cpu)))
    cudas, cuda_of = _kinds([row.cuda_version for row in kept], wire.version)
    countries, country_of = _kinds(
        [each.cc for each in net], lambda code: convert.country_code(wire.text(code))
    )
    gigaspot, gigaspot_of = _kinds(_texts([row.gigaspot for row in kept]), _is_on_gigaspot)
    ram_gib = column([each.ram for each in specs])
    disk_gb = _disks_gb([each.disk for each in specs])
    strange |= np.isneginf(disk_gb)
    reliability = column([row.reliability for row in kept])
    mrl_hours = column([row.mrl for row in kept])
    disk_mb_s = column([each.disk_speed for each in specs])
    down_mbit_s = column([each.down for each in net])
    bands = [band_of_server([gpu.name for gpu in gpus]) for gpus in gpu_kinds]
    on_gigaspot = np.asarray(gigaspot, dtype=bool)[gigaspot_of] if gigaspot else np.zeros(len(kept), bool)

    def read_spot() -> tuple[Floats, Flags]:
        bids, unusual = _spot([price.spot for price in compress(prices, is_free)])
        return np.where((bids > 0) & may_pay & ~on_gigaspot[:, None], bids, np.nan), unusual

    return OfferColumns(
        all_ids=ids,
        rented=np.flatnonzero(~is_free),
        free=free,
        is_odd=strange,
        ids=ids[free],
        gpu_kinds=gpu_kinds,
        gpu_of=gpu_of,
        band_low=np.asarray([float(band.low) for band in bands])[gpu_of] if bands else np.zeros(0),
        band_high=np.asarray([float(band.high) for band in bands])[gpu_of] if bands else np.zeros(0),
        cpus=cpus,
        cpu_of=cpu_of,
        cudas=cudas,
        cuda_of=cuda_of,
        countries=countries,
        country_of=country_of,
        is_on_gigaspot=on_gigaspot,
        ram_bytes=_in_range(ram_gib, convert.RAM_GIB_MAX) * (1 << 30),
        disk_bytes=_in_range(disk_gb, convert.DISK_GB_MAX) * 1e9,
        disk_mb_s=_positive(disk_mb_s),
        down_mbit_s=_positive(down_mbit_s),
        reliability=np.where((reliability >= 0) & (reliability <= 1), reliability, np.nan),
        life_s=_in_range(mrl_hours, _MRL_HOURS_MAX) * 3600.0,
        on_demand=on_demand,
        read_spot=read_spot,
    )


def _array(typecode: str, values: list[Any]) -> NDArray[Any]:
    """Numbers, and nothing else: `array` takes neither None nor texts, which numpy would."""
    return np.frombuffer(array(typecode, values), dtype=typecode)


def _whole(parts: list[T | None], missing: T) -> list[T]:
    """`missing` in the place of what is null."""
    if all(parts):
        return cast(list[T], parts)
    return [missing if part is None else part for part in parts]


def _texts(raws: list[msgspec.Raw]) -> list[bytes]:
    """The bytes of each, of all at once: a call for each takes ten times as long."""
    texts = b"\0".join(raws).split(b"\0")
    return texts if len(texts) == len(raws) else list(map(bytes, raws))


def _numbers(values: list[_Number]) -> _Column:
    """Numbers as floats, nan for what is missing, and which of them `wire` must judge."""
    try:
        numbers, unusual = _array("d", values), np.zeros(len(values), dtype=bool)
    except TypeError:
        numbers = np.array([value if isinstance(value, float) else math.nan for value in values], dtype=float)
        unusual = np.fromiter((isinstance(value, str) for value in values), bool, len(values))
    size = np.abs(numbers)
    unusual |= (size > 0) & ((size < _FLOAT_MIN) | (size > _FLOAT_MAX))
    return np.where(unusual, math.nan, numbers), unusual


def _kinds(keys: Iterable[Any], make: Callable[[Any], T]) -> tuple[list[T], Ints]:
    """Each distinct key made into a value once, and which of the values each row has."""
    numbers: defaultdict[Any, int] = defaultdict(count().__next__)
    kind_of = _array("q", list(map(numbers.__getitem__, keys)))
    return [make(key) for key in numbers], kind_of


def _distinct(values: list[T], value_of: Ints) -> tuple[list[T], Ints]:
    """The same with equal values told once."""
    kinds, kind_of = _kinds(values, lambda value: value)
    return kinds, kind_of[value_of]


def _allowed_coins(raw: bytes) -> tuple[bool, ...]:
    coins = wire.strings(wire.parse(raw) if raw else None, limit=wire.COINS_MAX)
    return tuple(convert.NAME_OF[currency] in coins for currency in COLUMN_CURRENCIES)


@lru_cache(maxsize=8192)
def _gpu_kind(key: tuple[str | None, bytes, bytes, bytes]) -> tuple[OfferedGpu, ...]:
    described, vram, each, listed = key
    return convert.offered_gpus(
        wire.read_specs(
            {
                "gpu": described,
                "gpuram": wire.parse(vram) if vram else None,
                "gpus": wire.parse(each) if each else None,
            }
        ),
        wire.strings(wire.parse(listed) if listed else None, limit=wire.GPUS_MAX + 1),
    )


def _is_on_gigaspot(raw: bytes) -> bool:
    return wire.is_on_gigaspot(wire.parse(raw) if raw else None)


def _spot(raws: list[msgspec.Raw]) -> tuple[Floats, Flags]:
    """Least bids. Few read them, so they are decoded apart."""
    read: list[_Coins] = []
    odd = np.zeros(len(raws), dtype=bool)
    for i, raw in enumerate(raws):
        try:
            coins = _coins_decoder.decode(raw) if len(bytes(raw)) else None
        except msgspec.ValidationError:
            coins, odd[i] = None, True
        read.append(coins or _NO_COINS)
    found = []
    for name in ("usd", "clore", "btc"):
        numbers, unusual = _numbers([getattr(each, name) for each in read])
        odd |= unusual
        found.append(numbers)
    return np.stack(found, axis=1), odd


_coins_decoder = msgspec.json.Decoder(_Coins | None)
_DISK_TAIL_MAX = 13
_USUAL_SIZES = re.compile(r"(?:[0-9]{1,7}(?:\.[0-9]{1,4})?GB\n)*")


def _disks_gb(texts: list[str | None]) -> Floats:
    """`_disk_gb` of each. Where all are of the usual form, with one look at all of them."""
    joined = "".join([f"{(text or '').rpartition(' ')[2]}\n" for text in texts])
    if _USUAL_SIZES.fullmatch(joined):
        numbers = joined.split("GB\n")[:-1]
        if len(numbers) == len(texts):
            return np.array(list(map(float, numbers)), dtype=float)
    return np.array(list(map(_disk_gb, texts)), dtype=float)


def _disk_gb(text: str | None) -> float:
    """`wire.disk_gb` for the usual form, `MODEL 456.0399GB`; nan for none; -inf where that must be asked."""
    if text is None:
        return math.nan
    tail = text[text.rfind(" ") + 1 :]
    number = tail[:-2]
    if (
        tail[-2:] == "GB"
        and len(tail) < _DISK_TAIL_MAX
        and number.isascii()
        and number.replace(".", "", 1).isdigit()
        and number[0] != "."
        and number[-1] != "."
    ):
        value = float(number)
        if value < 1e8:
            return value
    found = wire.disk_gb(text)
    return -math.inf if found is not None else math.nan


def _in_range(values: Floats, limit: float) -> Floats:
    return np.where((values > 0) & (values <= limit), values, np.nan)


def _positive(values: Floats) -> Floats:
    return np.where(values > 0, values, np.nan)
