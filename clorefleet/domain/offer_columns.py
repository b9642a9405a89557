"""Offers as columns: what sorting out thousands of them needs, as floats, never as money.

What is told here is near the truth and says how near; an exact `Offer` decides wherever that is not enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from clorefleet.domain.money import Currency
from clorefleet.domain.offer import MarketRates, Offer, OfferedGpu

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Flags = NDArray[np.bool_]

COLUMN_CURRENCIES = (Currency.USD, Currency.CLORE, Currency.BITCOIN)
"""The order of the price columns."""


@dataclass(frozen=True, slots=True, eq=False)
class OfferColumns:
    """One entry per *free* server, in the answer's order; nan is for what is missing or cannot be.

    `*_of` are indices into the list of distinct values of the same name.
    """

    all_ids: Ints
    """Of every server, rented ones too; 0 where it is odd."""
    rented: Ints
    """Positions of the rented servers."""
    free: Ints
    """Positions of the others: where in the sequence of offers the exact one is."""
    is_odd: Flags
    """Nothing is told of these: look at the exact offer."""
    ids: Ints
    gpu_kinds: list[tuple[OfferedGpu, ...]]
    gpu_of: Ints
    band_low: Floats
    """Usual prices of such GPUs, USD per day."""
    band_high: Floats
    cpus: list[str]
    cpu_of: Ints
    cudas: list[tuple[int, int] | None]
    cuda_of: Ints
    countries: list[str]
    country_of: Ints
    is_on_gigaspot: Flags
    ram_bytes: Floats
    """Within two bytes."""
    disk_bytes: Floats
    """Within two bytes."""
    disk_mb_s: Floats
    down_mbit_s: Floats
    reliability: Floats
    life_s: Floats
    """Longest rental, within a second."""
    on_demand: Floats
    """Shape (free servers, 3): per day in each of `COLUMN_CURRENCIES` that is priced and allowed."""
    read_spot: Callable[[], tuple[Floats, Flags]]
    """Least bids in the same form, and which servers' are odd. Read only by those who bid."""


@runtime_checkable
class BulkOffers(Protocol):
    """A sequence of offers that has columns too."""

    rates: MarketRates
    columns: OfferColumns

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Offer: ...
