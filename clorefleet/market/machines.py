"""What a record tells of its machine, which stays the same from answer to answer: each text is read once.

Prices and who rents move with every answer; GPUs, memory, disk, line and rules hardly ever. `Machines` keeps
columns of what was read, a row for each text, so that a later answer only looks its texts up. The columns may
claim less than they know, never more: a machine with any field of an unusual type is odd.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar, cast

import msgspec
import numpy as np

from clorefleet.domain.offer import OfferedGpu
from clorefleet.domain.offer_columns import COLUMN_CURRENCIES
from clorefleet.market import convert, wire
from clorefleet.market.number_columns import Flags, Floats, Ints, NumberColumn
from clorefleet.market.price_band import band_of_server

K = TypeVar("K")
V = TypeVar("V")
NO_RAW = msgspec.Raw(b"")
Number = float | str | None
_Text = msgspec.Raw | bytes
_PARTS = 5
_BATCH = 256
"""Machines that are read together: enough to read each soon, few enough for the processor's cache."""
_SEPARATOR = b"\0"
"""It is in no JSON."""
_TEXT_BYTES_MAX = 64 << 20
"""Of all texts that are kept, those of one more answer excepted: about 80,000 machines."""


class _Net(msgspec.Struct, gc=False, frozen=True):
    cc: str | None = None
    down: Number = math.nan


_NO_NET = _Net()


class _Specs(msgspec.Struct, gc=False, frozen=True):
    """What is missing has a default that is shared; only what is `null` is None."""

    cpu: str | None = None
    ram: Number = math.nan
    disk: str | None = None
    disk_speed: Number = math.nan
    gpu: str | None = None
    gpuram: msgspec.Raw = NO_RAW
    gpus: msgspec.Raw = NO_RAW
    net: _Net | None = _NO_NET


_NO_SPECS = _Specs()
_all_specs_decoder = msgspec.json.Decoder(list[_Specs | None])
_specs_decoder = msgspec.json.Decoder(_Specs | None)
_json_decoder = msgspec.json.Decoder(float_hook=wire.exact)


@dataclass(frozen=True, slots=True, eq=False)
class MachineColumns:
    """An entry for each row that was asked for; `*_of` are indices into the lists of `Machines`."""

    ram_gib: Floats
    disk_gb: Floats
    disk_mb_s: Floats
    down_mbit_s: Floats
    is_odd: Flags
    """Nothing of the machine is told for certain."""
    gpu_of: Ints
    cpu_of: Ints
    cuda_of: Ints
    country_of: Ints
    coins_of: Ints
    gigaspot_of: Ints


class Machines:
    """Rows in the order in which their texts were first met. Any thread may add to them."""

    def __init__(self) -> None:
        self._rows: dict[bytes, int] = {}
        self._lock = Lock()
        self._text_bytes = 0
        self._numbers: Floats = np.empty((256, 4))
        self._odd: Flags = np.empty(256, dtype=bool)
        self._kinds: Ints = np.empty((256, 6), dtype=np.int64)
        self.gpus = _Kinds(_gpu_kind)
        self.cpus: _Kinds[str | None, str] = _Kinds(lambda name: convert.cpu_name(wire.text(name)))
        self.cudas: _Kinds[bytes, tuple[int, int] | None] = _Kinds(lambda raw: wire.version(json_of(raw)))
        self.countries: _Kinds[str | None, str] = _Kinds(lambda code: convert.country_code(wire.text(code)))
        self.coins = _Kinds(_allowed_coins)
        """What may be paid with, of `COLUMN_CURRENCIES`."""
        self.gigaspot: _Kinds[bytes, bool] = _Kinds(lambda raw: wire.is_on_gigaspot(json_of(raw)))
        self._bands: list[tuple[float, float]] = []

    @property
    def is_full(self) -> bool:
        return self._text_bytes > _TEXT_BYTES_MAX

    def __len__(self) -> int:
        return len(self._rows)

    def known_rows_of(self, texts: Iterable[bytes]) -> list[int | None]:
        """Of each text (`text_of`); None for what is to be added."""
        return list(map(self._rows.get, texts))

    def add(self, texts: Sequence[bytes]) -> list[int]:
        """Rows of machines that were not known."""
        with self._lock:
            new = [text for text in dict.fromkeys(texts) if text not in self._rows]
            for begin in range(0, len(new), _BATCH):
                self._add(new[begin : begin + _BATCH])
        return list(map(self._rows.__getitem__, texts))

    def _add(self, texts: list[bytes]) -> None:
        begin = len(self._rows)
        end = begin + len(texts)
        while end > len(self._odd):
            # Copies: those who read columns do so without the lock.
            self._numbers, self._odd, self._kinds = map(_doubled, (self._numbers, self._odd, self._kinds))
        parts = [text.split(_SEPARATOR) for text in texts]
        parts = [each if len(each) == _PARTS else [b"0", b"", b"", b"", b""] for each in parts]
        raws, coins, listed, cudas, gigaspots = zip(*parts, strict=True)
        read = _read_specs(raws)
        specs = [each or _NO_SPECS for each in read]
        nets = [each.net or _NO_NET for each in specs]
        odd = np.array([each is None for each in read])
        numbers: tuple[list[Any], ...] = (
            [each.ram for each in specs],
            _disks_gb([each.disk for each in specs]),
            [each.disk_speed for each in specs],
            [each.down for each in nets],
        )
        for number, values in enumerate(numbers):
            column = NumberColumn()
            column.add(values)
            self._numbers[begin:end, number], unusual = column.read()
            odd |= unusual
        self._odd[begin:end] = odd
        gpus = [(each.gpu, bytes(each.gpuram), bytes(each.gpus)) for each in specs]
        for number, kinds in enumerate(
            (
                self.gpus.numbers_of(zip(gpus, listed, strict=True)),
                self.cpus.numbers_of(each.cpu for each in specs),
                self.cudas.numbers_of(cudas),
                self.countries.numbers_of(each.cc for each in nets),
                self.coins.numbers_of(coins),
                self.gigaspot.numbers_of(gigaspots),
            )
        ):
            self._kinds[begin:end, number] = kinds
        self._text_bytes += sum(map(len, texts))
        # Last: who finds a row looks at it at once.
        self._rows.update(zip(texts, range(begin, end), strict=True))

    def columns(self, rows: Ints) -> MachineColumns:
        numbers, kinds = self._numbers[rows].T.copy(), self._kinds[rows].T.copy()
        return MachineColumns(
            ram_gib=numbers[0],
            disk_gb=numbers[1],
            disk_mb_s=numbers[2],
            down_mbit_s=numbers[3],
            is_odd=self._odd[rows],
            gpu_of=kinds[0],
            cpu_of=kinds[1],
            cuda_of=kinds[2],
            country_of=kinds[3],
            coins_of=kinds[4],
            gigaspot_of=kinds[5],
        )

    def bands(self) -> tuple[Floats, Floats]:
        """Usual prices of each of `gpus`, USD per day: the least and the most."""
        with self._lock:
            for kind in self.gpus.values[len(self._bands) :]:
                band = band_of_server(tuple(gpu.name for gpu in kind))
                self._bands.append((float(band.low), float(band.high)))
            low, high = np.array(self._bands or np.empty((0, 2))).T
        return low, high


def text_of(specs: _Text, coins: _Text, gpus: _Text, cuda: _Text, gigaspot: _Text) -> bytes:
    """What tells a machine from others: the parts of its record that seldom change, as they are spelled."""
    return _SEPARATOR.join((specs, coins, gpus, cuda, gigaspot))


class MachineMemo:
    """The machines of earlier answers, begun anew where they have become too many."""

    def __init__(self) -> None:
        self._machines = Machines()

    def machines(self) -> Machines:
        if self._machines.is_full:
            self._machines = Machines()
        return self._machines


class _Kinds(Generic[K, V]):
    """Values that are few: each is made once of what stands for it, and equal ones are one."""

    def __init__(self, make: Callable[[K], V]) -> None:
        self.values: list[V] = []
        self._make = make
        self._of_value: dict[V, int] = {}
        self._of_key: dict[K, int] = {}

    def numbers_of(self, keys: Iterable[K]) -> list[int]:
        known, numbers = self._of_key, []
        for key in keys:
            number = known.get(key)
            if number is None:
                number = known[key] = self._number_of(self._make(key))
            numbers.append(number)
        return numbers

    def _number_of(self, value: V) -> int:
        number = self._of_value.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


def _doubled(values: Any) -> Any:
    return np.concatenate([values, np.empty_like(values)])


def json_of(text: bytes | msgspec.Raw) -> wire.Json:
    """`wire.parse`, sooner, of a part of a JSON document; None for no text."""
    if not text:
        return None
    try:
        return cast(wire.Json, _json_decoder.decode(text))
    except msgspec.MsgspecError:  # a number of thousands of digits
        return wire.parse(bytes(text))


def _read_specs(raws: Iterable[bytes]) -> list[_Specs | None]:
    """None for those with a field of an unusual type."""
    texts = [raw or b"null" for raw in raws]
    try:
        read = _all_specs_decoder.decode(b"[" + b",".join(texts) + b"]")
    except msgspec.ValidationError:
        return [_read_one(text) for text in texts]
    return [_NO_SPECS if each is None else each for each in read]


def _read_one(text: bytes) -> _Specs | None:
    try:
        return _specs_decoder.decode(text) or _NO_SPECS
    except msgspec.ValidationError:
        return None


_GpuKey = tuple[tuple[str | None, bytes, bytes], bytes]


def _gpu_kind(key: _GpuKey) -> tuple[OfferedGpu, ...]:
    (described, vram, each), listed = key
    specs = wire.read_specs({"gpu": described, "gpuram": json_of(vram), "gpus": json_of(each)})
    return convert.offered_gpus(specs, wire.strings(json_of(listed), limit=wire.GPUS_MAX + 1))


def _allowed_coins(raw: bytes) -> tuple[bool, ...]:
    coins = wire.strings(json_of(raw), limit=wire.COINS_MAX)
    return tuple(convert.NAME_OF[currency] in coins for currency in COLUMN_CURRENCIES)


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
