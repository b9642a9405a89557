"""What a server costs over the simulated weeks: seeded, or the hours that were seen.

A seeded price wanders around the plan's price by the hour and is drawn back to it (an Ornstein-Uhlenbeck
walk of the logarithm [assumed]). An order keeps the price it was made at: only the next one sees another.
"""

from __future__ import annotations

import csv
import math
import random
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from clorefleet.domain.errors import BadInput

DRAWN_BACK_A_DAY = 0.5
SPREAD = 0.10
"""Of the price in the long run [assumed]."""
_CENT = Decimal("0.0001")
_PRICE_MAX, _HOURS_MAX = Decimal(1_000_000), 100_000


@dataclass(frozen=True, slots=True)
class PriceHistory:
    usd_per_day_by_hour: tuple[Decimal, ...]
    """All in: with the renter's fee."""
    source: str

    def at_minute(self, minute: int) -> Decimal:
        return self.usd_per_day_by_hour[(minute // 60) % len(self.usd_per_day_by_hour)]

    @property
    def mean(self) -> Decimal:
        return sum(self.usd_per_day_by_hour, Decimal(0)) / len(self.usd_per_day_by_hour)


def steady(usd_per_day: Decimal) -> PriceHistory:
    return PriceHistory((usd_per_day,), "one price throughout")


def seeded(usd_per_day: Decimal, *, hours: int, seed: int) -> PriceHistory:
    """A walk around `usd_per_day`."""
    chance = random.Random(f"prices {seed}")  # noqa: S311 - seeded chance, not cryptography
    pull = DRAWN_BACK_A_DAY / 24
    step = SPREAD * math.sqrt(2 * pull)
    log, prices = 0.0, []
    for _ in range(max(1, hours)):
        log += -pull * log + chance.gauss(0.0, step)
        prices.append((usd_per_day * Decimal(str(math.exp(log)))).quantize(_CENT))
    return PriceHistory(tuple(prices), f"a seeded walk around the plan's price (seed {seed}, assumed)")


def seen(usd_per_gpu_day_by_hour: tuple[Decimal, ...], *, gpus: int, fee_percent: Decimal) -> PriceHistory:
    """The hours of the price history, for a server of `gpus`: played round and round."""
    whole = gpus * (1 + fee_percent / 100)
    hours = len(usd_per_gpu_day_by_hour)
    return PriceHistory(
        tuple((price * whole).quantize(_CENT) for price in usd_per_gpu_day_by_hour),
        f"{hours} hours of the price history, the tenth percentile for each GPU; gaps keep the last price",
    )


def read_prices(path: str) -> PriceHistory:
    """The hours that were seen: a CSV with a column `usd_per_day`, one row an hour, played round and round.

    Raises:
        BadInput: the file cannot be read, or has no such column or no price.
    """
    remedy = "It is a CSV whose first line names a column usd_per_day; one row an hour."
    prices: list[Decimal] = []
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                price = Decimal(row["usd_per_day"])
                if not price.is_finite() or not 0 < price <= _PRICE_MAX or len(prices) >= _HOURS_MAX:
                    raise BadInput(f"{path}: {price} in row {len(prices) + 2} is no price.", remedy=remedy)
                prices.append(price)
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, InvalidOperation) as error:
        raise BadInput(f"The prices in {path} cannot be read: {error!r}.", remedy=remedy) from error
    if not prices:
        raise BadInput(f"{path} holds no price.", remedy=remedy)
    return PriceHistory(tuple(prices), f"{len(prices)} hours of {Path(path).name}")
