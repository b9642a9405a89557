"""What the market tells beyond offers, orders, wallets and fees. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from clorefleet.domain.identity import OrderId, ServerId
from clorefleet.domain.money import Money, Rate
from clorefleet.domain.offer import MarketRates


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


@dataclass(frozen=True, slots=True)
class HostedServer:
    """One of the account's own servers. Read only: clorefleet changes nothing on the hosting side."""

    name: str
    server_id: ServerId | None
    is_connected: bool
    is_online: bool | None
    visibility: str
    on_demand: tuple[Rate, ...]
    spot: tuple[Rate, ...]
    max_rental_s: int | None
    rental_status: int | None
    """0 = not rented [assumed]; other values are unknown."""
    gpu_summary: str


@dataclass(frozen=True, slots=True)
class ProofOfHolding:
    """CLORE held, which lowers the renter's fee."""

    total_clore: Decimal
    free_clore: Decimal | None


@dataclass(frozen=True, slots=True)
class GigaspotNotice:
    """Where the gigaspot market is. The snapshot itself is a public file on another host: not fetched."""

    user_id: int | None
    snapshot_url: str
    usd_per_clore: Decimal | None
    creation_fees: tuple[Money, ...]
