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
from collections.abc import Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from itertools import compress
from typing import Any, TypeVar, cast, overload

import msgspec
import numpy as np

from clorefleet.domain.money import Currency, ExchangeRate
from clorefleet.domain.offer import MarketRates, Offer
from clorefleet.domain.offer_columns import OfferColumns
from clorefleet.market import convert, wire
from clorefleet.market.machines import NO_RAW, MachineMemo, Machines, Number, json_of, text_of
from clorefleet.market.number_columns import Flags, Floats, Ints, NumberColumn, of_array

_SAME = 1e-12
"""Relative: two floats nearer than this may stand for decimals in either order."""
_ID_MAX = 10**17
"""From here on `wire` may not believe an id."""
_NOT_KNOWN = -1
_MRL_HOURS_MAX = 87_000.0
T = TypeVar("T")
_Column = tuple[Floats, Flags]
"""Numbers, nan where there is none, and which are odd."""


class _Coins(msgspec.Struct, gc=False, frozen=True):
    usd: Number = msgspec.field(default=math.nan, name="USD-Blockchain")
    clore: Number = msgspec.field(default=math.nan, name="CLORE-Blockchain")
    btc: Number = msgspec.field(default=math.nan, name="bitcoin")


class _Usd(msgspec.Struct, gc=False, frozen=True):
    clore: Number = msgspec.field(default=math.nan, name="on_demand_clore")
    btc: Number = msgspec.field(default=math.nan, name="on_demand_btc")


_NO_COINS, _NO_USD = _Coins(), _Usd()


class _Price(msgspec.Struct, gc=False, frozen=True):
    on_demand: _Coins | None = _NO_COINS
    usd: _Usd | None = _NO_USD


_NO_PRICE = _Price()


class _Server(msgspec.Struct, gc=False, frozen=True):
    """What is missing has a default that is shared; only what is `null` is None."""

    id: int | float | str | None = None
    mrl: Number = math.nan
    price: _Price | None = _NO_PRICE
    rented: bool | None = True
    reliability: Number = math.nan
    specs: msgspec.Raw = NO_RAW
    allowed_coins: msgspec.Raw = NO_RAW
    gpu_array: msgspec.Raw = NO_RAW
    cuda_version: msgspec.Raw = NO_RAW
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


def table_of_answer(
    body: bytes, *, read_at: datetime, needs_code: bool = True, memo: MachineMemo | None = None
) -> OfferTable | None:
    """None for an answer that only the tolerant way reads: no list of servers, no code 0, not strict JSON.

    `memo` keeps what is read of machines from one answer to the next; it changes nothing but the time taken.
    """
    machines = (memo or MachineMemo()).machines()
    was_enabled = gc.isenabled()
    gc.disable()  # hundreds of thousands of small objects, none of them in a cycle
    try:
        if not body.isascii():
            body.decode("utf-8")  # fields that are skipped below are not looked at
        try:
            return _table(_Pieces.of_cut(body), machines, read_at, needs_code)
        except msgspec.MsgspecError:
            return _table(_Pieces.of_whole(body), machines, read_at, needs_code)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    finally:
        if was_enabled:
            gc.enable()


def _table(pieces: _Pieces, machines: Machines, read_at: datetime, needs_code: bool) -> OfferTable | None:
    if needs_code and (type(pieces.code) is not int or pieces.code != 0):
        return None
    reading = _Reading(machines)
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

    def record(self, number: int, ids: Ints, row: int) -> bytes:
        """The record in this row of a piece that has these ids, looked for near its share of the piece.

        That is sooner done than reading the piece once more. A record may have others within, and with the id
        of one of ours. So it is empty, and the piece has to be read, unless nothing else near has this id and
        what comes next has the next row's. What is found may be no JSON.
        """
        is_last = number == len(self) - 1
        text, begin = (self._end, 1) if is_last else (self._body, self._cuts[number])
        end = len(text) - 1 if is_last else self._cuts[number + 1] - 1
        near = begin + (end - begin) * row // len(ids)
        low, high = max(begin, near - _NEAR_BYTES), min(end, near + _NEAR_BYTES)
        name = b'"id":%d' % int(ids[row])  # of other numbers as well that begin so, which is rare
        found = text.find(name, low, high) - 1
        if found < begin or text.find(name, found + len(name), high) >= 0:
            return b""
        start = b"{%b," % name if found == begin else b"},{%b," % name
        if not text.startswith(start, max(begin, found - 2)):
            return b""
        seam = text.find(_PLAIN_SEAM, found, end)
        if seam < 0:
            return text[found:end] if row == len(ids) - 1 else b""
        if row == len(ids) - 1 or not text.startswith(b"%d," % int(ids[row + 1]), seam + len(_PLAIN_SEAM)):
            return b""
        return text[found : seam + 1]


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
                readable[i] = wire.read_server(wire.fields(json_of(self._record(i)))) is not None
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
            self._exact[index] = _offer(self._record(int(self._positions[index])), self.rates)
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
                found = self._pieces.record(number, ids, position - begin)
                if _split(found).id == server_id:
                    return found
            self._opened = (number, _raws_decoder.decode(self._pieces[number]))
        return bytes(self._opened[1][position - self._begins[number]])

    def prices(self, index: int) -> wire.WirePrices:
        """Those of one record, which has an id."""
        record = self._record(int(self._positions[index]))
        return wire.read_prices(json_of(_split(record).price))

    def read_bids(self) -> list[msgspec.Raw]:
        """The least bids of every server, unread."""
        bids: list[msgspec.Raw] = []
        for piece in self._pieces:
            rows = _rows(piece, _biddings_decoder, _bidding_decoder)
            prices = [(row or _NOT_BIDDING).price for row in rows]
            bids.extend((price or _NO_BIDS).spot for price in prices)
        return [bids[i] for i in self._positions.tolist()]


class _Split(msgspec.Struct, gc=False, frozen=True):
    """A record's part that changes with every answer, and what tells it from others."""

    id: int | float | str | None = None
    price: msgspec.Raw = NO_RAW


_NO_SPLIT = _Split()
_split_decoder = msgspec.json.Decoder(_Split)
_BARE_MAX = 1024
"""Records that are kept without prices, from one answer to the next: those of good offers come again."""


def _offer(record: bytes, rates: MarketRates) -> Offer:
    """A record that has an id, read the tolerant and exact way."""
    price = bytes(_split(record).price)
    before, found, after = record.partition(b'"price":' + price)
    if not found or not price.startswith(b"{"):
        return convert.offer(_readable(record), rates)
    # Nothing else of a record is read by that name, so whichever is found may go.
    server, bare = _without_prices(b'%b"price":null%b' % (before, after))
    return convert.with_prices(bare, server, wire.read_prices(json_of(price)), rates)


def _split(record: bytes) -> _Split:
    """Without both where it is no record."""
    try:
        return _split_decoder.decode(record)
    except msgspec.MsgspecError:
        return _NO_SPLIT


@lru_cache(maxsize=_BARE_MAX)
def _without_prices(record: bytes) -> tuple[wire.WireServer, Offer]:
    server = _readable(record)
    return server, convert.without_prices(server)


def _readable(record: bytes) -> wire.WireServer:
    server = wire.read_server(wire.fields(json_of(record)))
    if server is None:
        raise AssertionError("a record without an id is in no table")
    return server


# -- reading piece by piece


class _Reading:
    """What columns are made of. The last ones have free and odd servers only: of others no more is asked."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.begins: list[int] = []
        self._ids, self._free = array("q"), array("b")
        self.clore, self.btc, self.usd_of_clore, self.usd_of_btc = (NumberColumn() for _ in range(4))
        self.usd, self.mrl, self.reliability = (NumberColumn() for _ in range(3))
        self._machine_rows = array("q")
        self._new_machines: list[bytes] = []

    def __len__(self) -> int:
        return len(self._ids)

    def ids_and_odd(self) -> tuple[Ints, Flags]:
        """Ids, and 0 of the servers that are odd as a whole."""
        ids = of_array(self._ids)
        odd = (ids <= 0) | (ids >= _ID_MAX)
        return np.where(odd, 0, ids), odd

    def is_free(self) -> Flags:
        is_free: Flags = of_array(self._free) != 0
        return is_free

    def machine_rows(self) -> Ints:
        """Of each free or odd server."""
        rows: Ints = of_array(self._machine_rows).astype(np.int64)
        rows[rows == _NOT_KNOWN] = self.machines.add(self._new_machines)
        return rows

    def add(self, read: list[_Server | None]) -> None:
        self.begins.append(len(self))
        servers = _whole(read, _NO_SERVER)
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
        for_rent = list(compress(servers, free))
        self.mrl.add([server.mrl for server in for_rent])
        self.reliability.add([server.reliability for server in for_rent])
        texts = [
            text_of(each.specs, each.allowed_coins, each.gpu_array, each.cuda_version, each.gigaspot)
            for each in for_rent
        ]
        rows = self.machines.known_rows_of(texts)
        try:
            self._machine_rows.fromlist(cast(list[int], rows))
        except TypeError:  # it takes no None, and then nothing
            self._machine_rows.extend(_NOT_KNOWN if row is None else row for row in rows)
            self._new_machines.extend(text for text, row in zip(texts, rows, strict=True) if row is None)

    def _add_ids(self, servers: list[_Server]) -> None:
        ids: list[Any] = [server.id for server in servers]
        try:
            self._ids.fromlist(ids)
        except (TypeError, OverflowError):
            self._ids.extend(each if type(each) is int and 0 < each < _ID_MAX else 0 for each in ids)


def _whole(parts: list[T | None], missing: T) -> list[T]:
    """`missing` in the place of what is null."""
    if all(parts):
        return cast(list[T], parts)
    return [missing if part is None else part for part in parts]


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
            ratios = self._ratios(listed.read(), shown.read(), name, usd_name)
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
            prices = self._table.prices(i)
            price, usd = prices.on_demand.get(name), prices.usd.get(usd_name)
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

    def column(numbers: NumberColumn) -> Floats:
        values, unusual = numbers.read()
        np.logical_or(strange, unusual[left], out=strange)
        return values[left]

    def of_all(numbers: NumberColumn) -> Floats:
        values, unusual = numbers.read()
        np.logical_or(strange, unusual[readable][free], out=strange)
        return values[readable][free]

    machines = reading.machines
    machine = machines.columns(reading.machine_rows()[left])
    np.logical_or(strange, machine.is_odd, out=strange)
    may_pay = np.array(machines.coins.values or np.zeros((0, 3)), dtype=bool)[machine.coins_of]
    on_demand = np.stack([column(reading.usd), of_all(reading.clore), of_all(reading.btc)], axis=1)
    on_demand = np.where((on_demand > 0) & may_pay, on_demand, np.nan)
    on_gigaspot = np.array(machines.gigaspot.values, dtype=bool)[machine.gigaspot_of]
    ram_bytes = _in_range(machine.ram_gib, convert.RAM_GIB_MAX) * (1 << 30)
    disk_bytes = _in_range(machine.disk_gb, convert.DISK_GB_MAX) * 1e9
    for sizes in (ram_bytes, disk_bytes):
        np.logical_or(strange, np.abs(sizes - 1) <= _SAME, out=strange)
    reliability, mrl_hours = column(reading.reliability), column(reading.mrl)
    band_low, band_high = machines.bands()

    def read_spot() -> tuple[Floats, Flags]:
        bids, unusual = _spot(list(compress(table.read_bids(), is_free)))
        unusual |= (np.abs(bids - convert.BID_MAX) <= _SAME * convert.BID_MAX).any(axis=1)
        is_bid = (bids > 0) & (bids <= convert.BID_MAX) & may_pay & ~on_gigaspot[:, None]
        return np.where(is_bid, bids, np.nan), unusual

    return OfferColumns(
        all_ids=ids,
        rented=np.flatnonzero(~is_free),
        free=free,
        is_odd=strange,
        ids=ids[free],
        gpu_kinds=list(machines.gpus.values),
        gpu_of=machine.gpu_of,
        band_low=band_low[machine.gpu_of],
        band_high=band_high[machine.gpu_of],
        cpus=list(machines.cpus.values),
        cpu_of=machine.cpu_of,
        cudas=list(machines.cudas.values),
        cuda_of=machine.cuda_of,
        countries=list(machines.countries.values),
        country_of=machine.country_of,
        is_on_gigaspot=on_gigaspot,
        ram_bytes=np.where(ram_bytes >= 1, ram_bytes, np.nan),
        disk_bytes=np.where(disk_bytes >= 1, disk_bytes, np.nan),
        disk_mb_s=_positive(machine.disk_mb_s),
        down_mbit_s=_positive(machine.down_mbit_s),
        reliability=np.where((reliability >= 0) & (reliability <= 1), reliability, np.nan),
        life_s=_in_range(mrl_hours, _MRL_HOURS_MAX) * 3600.0,
        on_demand=on_demand,
        read_spot=read_spot,
    )


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
        numbers = NumberColumn()
        numbers.add([getattr(each, name) for each in read])
        column, unusual = numbers.read()
        odd |= unusual
        found.append(column)
    return np.stack(found, axis=1), odd


def _in_range(values: Floats, limit: float) -> Floats:
    return np.where((values > 0) & (values <= limit), values, np.nan)


def _positive(values: Floats) -> Floats:
    return np.where(values > 0, values, np.nan)
