"""What the market asked for a GPU at one time, or over a while: the price history's rows. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class PriceSnapshot:
    """The free offers of one kind of GPU. USD per GPU and day as offered, without the renter's fee.

    Attributes:
        at: when it was read; of a row of several readings the beginning of its hour or day (UTC).
        lasts: zero for one reading; an hour or a day for what was thinned.
        readings: how many it stands for.
        offers: servers that were free; of several readings their mean, rounded.
        least: the least that was seen; the others are nearest-rank percentiles over servers, and of several
            readings the median of theirs.
    """

    gpu: str
    is_spot: bool
    at: datetime
    offers: int
    least: Decimal
    p10: Decimal
    p25: Decimal
    median: Decimal
    p75: Decimal
    p90: Decimal
    lasts: timedelta = timedelta(0)
    readings: int = 1
