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
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
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
    mrl: _Number = math.nan
    price: _Price | None = _NO_PRICE
    rented: bool | None = True
    specs: _Specs | None = _NO_SPECS
    reliability: _Number = math.nan
    allowed_coins: msgspec.Raw = NO_RAW
    gpu_array: msgspec.Raw = NO_RAW
    cuda_version: str | None = None
    gigaspot: msgspec.Raw = NO_RAW


class _Bids(msgspec.Struct, gc=False, frozen=True):
    spot: msgspec.Raw = NO_RAW


_NO_BIDS = _Bids()


class _Bidding(msgspec.Struct, gc=False, frozen=True):
    """A server once more, for its least bids."""

    price: _Bids | None = _NO_BIDS


class _Tail(msgspec.Struct, gc=False):
    """An answer, or the end of one."""

    servers: list[msgspec.Raw]
    code: int | float | str | None = None


_NO_SERVER, _NOT_BIDDING = _Server(), _Bidding()
_tail_decoder = msgspec.json.Decoder(_Tail)
_raws_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_servers_decoder, _server_decoder = msgspec.json.Decoder(list[_Server]), msgspec.json.Decoder(_Server)
_biddings_decoder, _bidding_decoder = msgspec.json.Decoder(list[_Bidding]), msgspec.json.Decoder(_Bidding)
_coins_decoder = msgspec.json.Decoder(_Coins | None)


def table_of_answer(body: bytes, *, read_at: datetime, needs_code: bool = True) -> OfferTable | None:
    """None for an answer that only the tolerant way reads: no list of servers, no code 0, not strict JSON."""
    was_enabled = gc.isenabled()
    gc.disable()  # hundreds of thousands of small objects, none of them in a cycle
    try:
        if not body.isascii():
            body.decode("utf-8")  # fields that are skipped below are not looked at
        try:
            return _table(_Pieces.of_cut(body), read_at, needs_code)
        except msgspec.MsgspecError:
            return _table(_Pieces.of_whole(body), read_at, needs_code)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    finally:
        if was_enabled:
            gc.enable()


def _table(pieces: _Pieces, read_at: datetime, needs_code: bool) -> OfferTable | None:
    if needs_code and (type(pieces.code) is not int or pieces.code != 0):
        return None
    reading = _Reading()
    for number in range(len(pieces)):
        reading.add(_rows(pieces[number], _servers_decoder, _server_decoder))
        if len(reading) > wire.RECORDS_MAX:
            return None
    return OfferTable(pieces, reading, read_at)


def _rows(piece: bytes, all_decoder: Any, one_decoder: Any) -> list[Any]:
    """The records of a piece; None for one with a field of an unusual type."""

    try:
        return cast(list[Any], all_decoder.decode(piece))
    except msgspec.ValidationError:
        return [_read(one_decoder, raw, None) for raw in _raws_decoder.decode(piece)]


def _read(decoder: Any, raw: msgspec.Raw, otherwise: object) -> Any:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError:
        return otherwise


# -- pieces


_PIECE_BYTES = 1 << 17
"""Its objects stay in the processor's cache while columns are made of them: twice as fast as all at once."""
_HEAD = re.compile(rb'\s*\{\s*"servers"\s*:\s*\[')
_NEAR_BYTES = 1 << 13
_PLAIN_SEAM = b'},{"id":'
_SEAM = re.compile(rb'\}\s*(,)\s*\{\s*"id"\s*:')


class _Pieces(Sequence[bytes]):
    """The list of servers, cut between records: each piece is a list of its own.

    A seam, `},{"id":`, can be in no text of valid JSON, where its quote would be escaped. Within a record,
    or in another list of the answer, it leaves a piece that is no list, which raises `msgspec.DecodeError`
    when it is read. Pieces that are all read therefore mean what the whole would.
    """

    def __init__(self, body: bytes, cuts: list[int], end: bytes, code: object) -> None:
        self._body, self._cuts, self._end, self.code = body, cuts, end, code

    @classmethod
    def of_whole(cls, body: bytes) -> _Pieces:
        tail = _tail_decoder.decode(body)
        return cls(body, [], b"[" + b",".join(tail.servers) + b"]", tail.code)

    @classmethod
    def of_cut(cls, body: bytes) -> _Pieces:
        head = _HEAD.match(body)
        if head is None:
            return cls.of_whole(body)
        cuts = [head.end()]
        while seam := _SEAM.search(body, cuts[-1] + _PIECE_BYTES):
            cuts.append(seam.end(1))
        last = body[cuts[-1] :]
        if b'"servers"' in last:  # told twice, of which the last would count
            return cls.of_whole(body)
        tail = _tail_decoder.decode(b'{"servers":[' + last)
        return cls(body, cuts, b"[" + b",".join(tail.servers) + b"]", tail.code)

    def __len__(self) -> int:
        return max(1, len(self._cuts))

    @overload
    def __getitem__(self, number: int) -> bytes: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[bytes]: ...
    def __getitem__(self, number: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if number >= len(self):
            raise IndexError(number)
        if number == len(self) - 1:
            return self._end
        return b"[%b]" % self._body[self._cuts[number] : self._cuts[number + 1] - 1]

    def record(self, number: int, server_id: int, share: float) -> bytes:
        """The record of a piece that begins with this id, looked for near its `share` of the piece.

        That is sooner done than reading the piece once more. Empty where it is not found. Where a record has
        others within, what is found may be no JSON.
        """
        is_last = number == len(self) - 1
        text, begin = (self._end, 1) if is_last else (self._body, self._cuts[number])
        end = len(text) - 1 if is_last else self._cuts[number + 1] - 1
        near = begin + int((end - begin) * share)
        start = b'{"id":%d,' % server_id
        found = text.find(start, max(begin, near - _NEAR_BYTES), min(end, near + _NEAR_BYTES))
        if found < 0 or (found > begin and text[found - 2 : found] != b"},"):
            return b""
        seam = text.find(_PLAIN_SEAM, found, end)
        return text[found : end if seam < 0 else seam + 1]


class OfferTable(Sequence[Offer]):
    """All readable servers of one answer, in its order."""

    def __init__(self, pieces: _Pieces, reading: _Reading, read_at: datetime) -> None:
        self._pieces, self._begins = pieces, reading.begins
        self._opened: tuple[int, list[msgspec.Raw]] = (-1, [])
        self._exact: dict[int, Offer] = {}
        ids, odd = reading.ids_and_odd()
        self._ids = ids
        self._positions = np.arange(len(ids))
        self.skipped = 0
        if odd.any():
            readable = ~odd
            for i in np.flatnonzero(odd).tolist():
                readable[i] = _server(self._record(i)) is not None
            self._positions = np.flatnonzero(readable)
            self.skipped = len(ids) - len(self._positions)
        self._odd = odd[self._positions]
        self.rates = _Rates(self, reading, read_at).found
        self.columns = _columns(self, reading, ids)

    # -- exact offers

    def __len__(self) -> int:
        return len(self._positions)

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
            record = self._record(int(self._positions[index]))
            self._exact[index] = _offer(
                record, tuple((rate.currency, rate.usd_per_unit) for rate in self.rates.rates)
            )
        return self._exact[index]

    def __iter__(self) -> Iterator[Offer]:
        return (self[i] for i in range(len(self)))

    def server(self, index: int) -> wire.WireServer:
        """One record, read the tolerant way."""
        return _readable(self._record(int(self._positions[index])))

    def _record(self, position: int) -> bytes:
        number = bisect_right(self._begins, position) - 1
        if self._opened[0] != number:
            begin, end = self._begins[number], [*self._begins, len(self._ids)][number + 1]
            ids, server_id = self._ids[begin:end], int(self._ids[position])
            if np.count_nonzero(ids == server_id) == 1:
                found = self._pieces.record(number, server_id, (position - begin) / len(ids))
                server = _server(found)
                if server is not None and server.id == server_id:
                    return found
            self._opened = (number, _raws_decoder.decode(self._pieces[number]))
        return bytes(self._opened[1][position - self._begins[number]])

    def read_bids(self) -> list[msgspec.Raw]:
        """The least bids of every server, unread."""
        bids: list[msgspec.Raw] = []
        for piece in self._pieces:
            rows = _rows(piece, _biddings_decoder, _bidding_decoder)
            prices = [(row or _NOT_BIDDING).price for row in rows]
            bids.extend((price or _NO_BIDS).spot for price in prices)
        return [bids[i] for i in self._positions.tolist()]


_EXACT_MAX = 1024
"""Records that are kept as they were read, from one answer to the next: those of good offers come again."""


@lru_cache(maxsize=_EXACT_MAX)
def _server(record: bytes) -> wire.WireServer | None:
    """A record, read the tolerant way; None for one without an id, or for what is no record."""
    try:
        return wire.read_server(wire.fields(wire.parse(record)))
    except wire.NotJson:
        return None


def _readable(record: bytes) -> wire.WireServer:
    server = _server(record)
    if server is None:
        raise AssertionError("a record without an id is in no table")
    return server


@lru_cache(maxsize=_EXACT_MAX)
def _offer(record: bytes, worth: tuple[tuple[Currency, Decimal], ...]) -> Offer:
    """Of `MarketRates` an offer takes nothing but what each currency is worth."""
    rates = (ExchangeRate(currency, usd, _NO_TIME, "") for currency, usd in worth)
    return convert.offer(_readable(record), MarketRates.of(rates))


_NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)


# -- reading piece by piece


class _Numbers:
    """A column of floats, nan for what is missing."""

    def __init__(self) -> None:
        self._values, self._texts = array("d"), array("q")

    def add(self, values: list[Any]) -> None:
        try:
            self._values.fromlist(values)
        except TypeError:  # it takes neither None nor texts, and then nothing
            at = len(self._values)
            self._texts.extend(at + i for i, value in enumerate(values) if isinstance(value, str))
            self._values.extend(value if isinstance(value, float) else math.nan for value in values)

    def column(self) -> _Column:
        """And which of them `wire` must judge."""
        numbers = _of_array(self._values)
        unusual = np.zeros(len(numbers), dtype=bool)
        unusual[_of_array(self._texts)] = True
        size = np.abs(numbers)
        unusual |= (size > 0) & ((size < _FLOAT_MIN) | (size > _FLOAT_MAX))
        return np.where(unusual, math.nan, numbers), unusual


class _Kinds:
    """A column of values that are few: their numbers, in the order in which they came."""

    def __init__(self) -> None:
        self._numbers: defaultdict[Any, int] = defaultdict(count().__next__)
        self._of = array("q")

    def add(self, keys: Iterable[Any]) -> None:
        self._of.fromlist(list(map(self._numbers.__getitem__, keys)))

    def column(self, make: Callable[[Any], T]) -> tuple[list[T], Ints]:
        """Each distinct key made into a value once, and which of the values each row has."""
        return [make(key) for key in self._numbers], _of_array(self._of)

    @staticmethod
    def joint(columns: Sequence[_Kinds], make: Callable[[tuple[Any, ...]], T]) -> tuple[list[T], Ints]:
        """The same of columns taken together. Numbers are put together sooner than texts."""
        keys = [list(each._numbers) for each in columns]
        sizes = tuple(max(1, len(each)) for each in keys)
        if math.prod(sizes) > np.iinfo(np.int64).max:
            rows = zip(
                *(map(known.__getitem__, each._of) for known, each in zip(keys, columns, strict=True)),
                strict=True,
            )
            together = _Kinds()
            together.add(rows)
            return together.column(make)
        code = np.ravel_multi_index([_of_array(each._of).astype(np.int64) for each in columns], sizes)
        present, value_of = np.unique(code, return_inverse=True)
        parts = np.unravel_index(present, sizes)
        found = zip(
            *(map(known.__getitem__, part.tolist()) for known, part in zip(keys, parts, strict=True)),
            strict=True,
        )
        return list(map(make, found)), value_of


class _Reading:
    """What columns are made of. The last ones have free and odd servers only: of others no more is asked."""

    def __init__(self) -> None:
        self.begins: list[int] = []
        self._ids, self._odd, self._free = array("q"), array("q"), array("b")
        self.clore, self.btc, self.usd_of_clore, self.usd_of_btc = (_Numbers() for _ in range(4))
        self.usd, self.mrl, self.reliability = _Numbers(), _Numbers(), _Numbers()
        self.ram, self.disk, self.disk_speed, self.down = (_Numbers() for _ in range(4))
        self.allowed_coins, self.gigaspot = _Kinds(), _Kinds()
        self.gpu, self.gpuram, self.each_gpu, self.gpu_array = (_Kinds() for _ in range(4))
        self.cpu, self.cuda_version, self.country = _Kinds(), _Kinds(), _Kinds()

    def __len__(self) -> int:
        return len(self._ids)

    def ids_and_odd(self) -> tuple[Ints, Flags]:
        """Ids, and 0 of the servers that are odd as a whole."""
        ids = _of_array(self._ids)
        odd = (ids <= 0) | (ids >= _ID_MAX)
        return np.where(odd, 0, ids), odd

    def is_free(self) -> Flags:
        is_free: Flags = _of_array(self._free) != 0
        return is_free

    def add(self, rows: list[_Server | None]) -> None:
        self.begins.append(len(self))
        servers = _whole(rows, _NO_SERVER)
        self._add_ids(servers)
        ids = self._ids[self.begins[-1] :]
        free = [
            server.rented is False or not 0 < number < _ID_MAX
            for server, number in zip(servers, ids, strict=True)
        ]
        self._free.fromlist(cast(list[int], free))
        prices = _whole([server.price for server in servers], _NO_PRICE)
        coins = _whole([price.on_demand for price in prices], _NO_COINS)
        usd = _whole([price.usd for price in prices], _NO_USD)
        self.clore.add([each.clore for each in coins])
        self.btc.add([each.btc for each in coins])
        self.usd_of_clore.add([each.clore for each in usd])
        self.usd_of_btc.add([each.btc for each in usd])
        self.usd.add([each.usd for each in compress(coins, free)])
        self._add_free(list(compress(servers, free)))

    def _add_ids(self, servers: list[_Server]) -> None:
        ids: list[Any] = [server.id for server in servers]
        try:
            self._ids.fromlist(ids)
        except (TypeError, OverflowError):
            self._ids.extend(each if type(each) is int and 0 < each < _ID_MAX else 0 for each in ids)

    def _add_free(self, servers: list[_Server]) -> None:
        specs = _whole([server.specs for server in servers], _NO_SPECS)
        net = _whole([each.net for each in specs], _NO_NET)
        self.mrl.add([server.mrl for server in servers])
        self.reliability.add([server.reliability for server in servers])
        self.ram.add([each.ram for each in specs])
        self.disk.add(_disks_gb([each.disk for each in specs]))
        self.disk_speed.add([each.disk_speed for each in specs])
        self.down.add([each.down for each in net])
        self.allowed_coins.add(_texts([server.allowed_coins for server in servers]))
        self.gigaspot.add(_texts([server.gigaspot for server in servers]))
        self.cpu.add([each.cpu for each in specs])
        self.cuda_version.add([server.cuda_version for server in servers])
        self.country.add([each.cc for each in net])
        self.gpu.add([each.gpu for each in specs])
        self.gpuram.add(_texts([each.gpuram for each in specs]))
        self.each_gpu.add(_texts([each.gpus for each in specs]))
        self.gpu_array.add(_texts([server.gpu_array for server in servers]))


def _of_array(values: array[Any]) -> NDArray[Any]:
    return np.frombuffer(values, dtype=values.typecode) if values else np.zeros(0, dtype=values.typecode)


def _whole(parts: list[T | None], missing: T) -> list[T]:
    """`missing` in the place of what is null."""
    if all(parts):
        return cast(list[T], parts)
    return [missing if part is None else part for part in parts]


def _texts(raws: list[msgspec.Raw]) -> list[bytes]:
    """The bytes of each, of all at once: a call for each takes ten times as long."""
    texts = b"\0".join(raws).split(b"\0")
    return texts if len(texts) == len(raws) else list(map(bytes, raws))


# -- coin rates


class _Rates:
    """`convert.coin_rates`, whose medians are found among floats and read exactly."""

    def __init__(self, table: OfferTable, reading: _Reading, read_at: datetime) -> None:
        self._table = table
        self.found = self._of(reading, read_at)

    def _of(self, reading: _Reading, read_at: datetime) -> MarketRates:
        rates = [ExchangeRate(Currency.USD, Decimal(1), read_at, "one USD is one USD")]
        for currency, listed, shown, name, usd_name in (
            (Currency.BITCOIN, reading.btc, reading.usd_of_btc, "bitcoin", "on_demand_btc"),
            (Currency.CLORE, reading.clore, reading.usd_of_clore, "CLORE-Blockchain", "on_demand_clore"),
        ):
            ratios = self._ratios(listed.column(), shown.column(), name, usd_name)
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
        readable = self._table._positions
        (listed, is_odd), (shown, is_odd_too) = (
            (numbers[readable], unusual[readable]) for numbers, unusual in (listed_column, shown_column)
        )
        exact: dict[int, Decimal] = {}

        def ratio(i: int) -> Decimal | None:
            server = self._table.server(i)
            price, usd = server.on_demand.get(name), server.usd.get(usd_name)
            return usd / price if price is not None and price > 0 and usd is not None and usd > 0 else None

        with np.errstate(divide="ignore", invalid="ignore"):
            approximate = shown / listed
        unsure = self._table._odd | is_odd | is_odd_too
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


def _columns(table: OfferTable, reading: _Reading, all_ids: Ints) -> OfferColumns:
    readable = np.zeros(len(all_ids), dtype=bool)
    readable[table._positions] = True
    was_free = reading.is_free()
    left = readable[was_free]
    """Of the columns' rows those that have an id."""
    is_free = was_free[readable]
    free = np.flatnonzero(is_free)
    ids, strange = all_ids[readable], table._odd[free].copy()

    def column(numbers: _Numbers) -> Floats:
        values, unusual = numbers.column()
        np.logical_or(strange, unusual[left], out=strange)
        return values[left]

    def of_all(numbers: _Numbers) -> Floats:
        values, unusual = numbers.column()
        np.logical_or(strange, unusual[readable][free], out=strange)
        return values[readable][free]

    def kinds(values: _Kinds, make: Callable[[Any], T]) -> tuple[list[T], Ints]:
        found, kind_of = values.column(make)
        return found, kind_of[left]

    allowed, allowed_of = kinds(reading.allowed_coins, _allowed_coins)
    may_pay = np.asarray(allowed or np.zeros((0, 3)), dtype=bool).reshape(-1, 3)[allowed_of]
    on_demand = np.stack([column(reading.usd), of_all(reading.clore), of_all(reading.btc)], axis=1)
    on_demand = np.where((on_demand > 0) & may_pay, on_demand, np.nan)
    each_kind, kind_of = _Kinds.joint(
        (reading.gpu, reading.gpuram, reading.each_gpu, reading.gpu_array), _gpu_kind
    )
    gpu_kinds, gpu_of = _distinct(each_kind, kind_of[left])
    cpus, cpu_of = kinds(reading.cpu, lambda cpu: convert.cpu_name(wire.text(cpu)))
    cudas, cuda_of = kinds(reading.cuda_version, wire.version)
    countries, country_of = kinds(reading.country, lambda code: convert.country_code(wire.text(code)))
    gigaspot, gigaspot_of = kinds(reading.gigaspot, _is_on_gigaspot)
    on_gigaspot = np.asarray(gigaspot, dtype=bool)[gigaspot_of] if gigaspot else np.zeros(len(free), bool)
    ram_gib, disk_gb = column(reading.ram), column(reading.disk)
    reliability, mrl_hours = column(reading.reliability), column(reading.mrl)
    disk_mb_s, down_mbit_s = column(reading.disk_speed), column(reading.down)
    bands = [band_of_server([gpu.name for gpu in gpus]) for gpus in gpu_kinds]

    def read_spot() -> tuple[Floats, Flags]:
        bids, unusual = _spot(list(compress(table.read_bids(), is_free)))
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


def _distinct(values: list[T], value_of: Ints) -> tuple[list[T], Ints]:
    """The same with equal values told once."""
    kinds = _Kinds()
    kinds.add(values)
    found, kind_of = kinds.column(lambda value: value)
    return found, kind_of[value_of]


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
        numbers = _Numbers()
        numbers.add([getattr(each, name) for each in read])
        column, unusual = numbers.column()
        odd |= unusual
        found.append(column)
    return np.stack(found, axis=1), odd


_DISK_TAIL_MAX = 13
_USUAL_SIZES = re.compile(r"(?:[0-9]{1,7}(?:\.[0-9]{1,4})?GB\n)*")


def _disks_gb(texts: list[str | None]) -> list[float]:
    """`_disk_gb` of each. Where all are of the usual form, with one look at all of them."""
    tails = [text[text.rfind(" ") + 1 :] if text else "" for text in texts]
    joined = "\n".join([*tails, ""])
    if _USUAL_SIZES.fullmatch(joined):
        numbers = joined.split("GB\n")[:-1]
        if len(numbers) == len(texts):
            return list(map(float, numbers))
    return list(map(_disk_gb, texts))


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
