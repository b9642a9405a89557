"""The spot market of one server, as the market tells it. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from clorefleet.domain.identity import OrderId, ServerId
from clorefleet.domain.money import Rate
from clorefleet.domain.offer import MarketRates

LOWERING_INTERVAL = timedelta(seconds=600)
"""Between two reductions of one order's bid: docs.clore.ai, `can_lower_every_600_seconds`."""


@dataclass(frozen=True, slots=True)
class SpotBid:
    order_id: OrderId
    price: Rate
    """Per day, in the bid's own currency."""
    is_active: bool
    """It holds the machine now [assumed]."""
    is_mine: bool


@dataclass(frozen=True, slots=True)
class SpotMarket:
    """The spot auction of one server."""

    server_id: ServerId
    exists: bool
    bids: tuple[SpotBid, ...]
    min_prices: tuple[Rate, ...]
    """Least bid per day, by currency."""
    rates: MarketRates
    """The market's own coin rates: the most direct source there is."""
    is_online: bool | None
    read_at: datetime
