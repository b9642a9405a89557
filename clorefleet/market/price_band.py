"""What a GPU may plausibly cost per day, so that a price per hour taken for one per day is noticed.

The bands are assumed, wide on purpose, and narrower than a factor of 24 around what such a GPU costs: a
slip between hour and day falls outside on either side. A price outside is not wrong for certain; it is
left alone until a person looks.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, lru_cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class PriceBand:
    """USD per day of one GPU."""

    low: Decimal
    high: Decimal

    def __add__(self, other: PriceBand) -> PriceBand:
        return PriceBand(self.low + other.low, self.high + other.high)

    def __contains__(self, usd_per_day: Decimal) -> bool:
        return self.low <= usd_per_day <= self.high


@cache
def _table() -> tuple[tuple[tuple[str, PriceBand], ...], PriceBand]:
    """Bands by name, longest name first so that the most exact one is met first; and the default."""
    source = resources.files("clorefleet.data").joinpath("price_bands.json").read_text(encoding="utf-8")
    stored = json.loads(source)
    bands = sorted(
        (
            (_plain(name), PriceBand(Decimal(low), Decimal(high)))
            for name, (low, high) in stored["bands"].items()
        ),
        key=lambda entry: -len(entry[0]),
    )
    low, high = stored["unknown_gpu"]
    return tuple(bands), PriceBand(Decimal(low), Decimal(high))


@cache
def _plain_pattern() -> re.Pattern[str]:
    return re.compile(r"[^a-z0-9]+")


def _plain(name: str) -> str:
    return f" {_plain_pattern().sub(' ', name.lower()).strip()} "


@lru_cache(maxsize=1024)
def band_of(gpu_name: str) -> PriceBand:
    """The band of the longest known name that is part of `gpu_name`, by whole words."""
    bands, unknown = _table()
    plain = _plain(gpu_name)
    return next((band for name, band in bands if name in plain), unknown)


@lru_cache(maxsize=4096)
def band_of_server(gpu_names: tuple[str, ...]) -> PriceBand:
    """All GPUs together; the rest of a server is small beside them."""
    total = PriceBand(Decimal(0), Decimal(0))
    for name in gpu_names:
        total = total + band_of(name)
    return total
