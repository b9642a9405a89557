"""A simulated market with a clock that only tests move, and nothing on disk or on the network."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from clorefleet.sandbox.catalogue import Catalogue, MarketServer
from clorefleet.sandbox.clock import SandboxClock
from clorefleet.sandbox.coins import COINS, USD, CoinRates
from clorefleet.sandbox.faults import FaultBoard
from clorefleet.sandbox.market import EffectKind, Market
from clorefleet.sandbox.occupancy import Occupancy
from clorefleet.sandbox.records import Records
from clorefleet.sandbox.reply import Reply
from clorefleet.sandbox.settings import SandboxSettings

EPOCH_S = 1_790_000_000
MINUTE_S = 60
HOUR_S = 3600
DAY_S = 86_400
QUIET = SandboxSettings(
    Path("/nowhere"),
    server_count=400,
    churn=0.0,
    required_price_refusal_rate=0.0,
    order_id_rate=0.0,
    list_lag_real_s=0.0,
    cancel_linger_polls=0,
)
"""No surprises: each test adds the one that it is about."""


class World:
    def __init__(self, records: Records | None = None, now_s: float = EPOCH_S, **changes: Any) -> None:
        self.settings = replace(QUIET, **changes)
        self.real_s = 1000.0
        self.clock = SandboxClock(
            base_unix_s=now_s, real_unix=lambda: self.real_s, monotonic=lambda: self.real_s
        )
        self.records = records or Records()
        self.faults = FaultBoard(self.settings.seed, self.settings.faults)
        rates = CoinRates.at_start(self.settings.seed)
        catalogue = Catalogue.of_seed(
            self.settings.seed, server_count=self.settings.server_count, rates=rates
        )
        self.occupancy = Occupancy(catalogue.servers, seed=self.settings.seed, churn=self.settings.churn)
        self.market = Market(
            self.settings,
            catalogue=catalogue,
            occupancy=self.occupancy,
            clock=self.clock,
            records=self.records,
            faults=self.faults,
            epoch_s=EPOCH_S,
        )

    def after(self, seconds: float) -> World:
        self.clock.advance(seconds)
        self.market.settle()
        return self

    def free(self, index: int = 0) -> MarketServer:
        """A server of a middling price that anybody may rent in any currency and way."""
        return [
            server
            for server in self.market.catalogue.servers.values()
            if self.occupancy.at(server.id, 0.0) is None
            and not server.is_offline
            and not server.on_gigaspot
            and server.spot_usd is not None
            and Decimal(1) < server.spot_usd < server.on_demand_usd < Decimal(30)
            and set(server.rentable_coins) == set(COINS)
        ][index]

    def body(self, server: MarketServer, **changes: Any) -> dict[str, Any]:
        return {
            "renting_server": server.id,
            "type": "on-demand",
            "currency": USD,
            "image": "cloreai/ubuntu22.04-cuda12",
            "ports": {"22": "tcp"},
            **changes,
        }

    def create(self, server: MarketServer, **changes: Any) -> Reply:
        self.market.settle()
        return self.market.create_order(self.body(server, **changes))

    def rent(self, server: MarketServer, **changes: Any) -> int:
        """The id of the order that this makes."""
        before = set(self.market.orders)
        assert self.create(server, **changes).payload["code"] == 0
        (order_id,) = set(self.market.orders) - before
        return order_id

    def bid(self, server: MarketServer, factor: str = "1", **changes: Any) -> int:
        price = (server.spot[USD] * Decimal(factor)).quantize(Decimal("0.01"))
        return self.rent(server, type="spot", spotprice=price, **changes)

    def listed(self, *, with_completed: bool = False) -> dict[int, dict[str, Any]]:
        self.market.settle()
        answer = self.market.my_orders(with_completed=with_completed).payload
        return {order["id"]: order for order in answer["orders"]}

    def balance(self, coin: str = USD) -> Decimal:
        self.market.settle()
        return self.market.balance(coin, self.clock.now_s())

    def boots(self) -> list[tuple[EffectKind, int]]:
        return [(effect.kind, effect.order_id) for effect in self.market.take_effects()]
