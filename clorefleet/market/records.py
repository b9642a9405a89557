"""What the market tells beyond offers, orders, wallets and fees. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from clorefleet.domain.identity import ServerId
from clorefleet.domain.money import Money, Rate


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
