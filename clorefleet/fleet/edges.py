"""The edges of the fleet: what it needs of a market, of nodes and of a gateway. Small on purpose.

The real ones are `clorefleet.market.rent`, `clorefleet.node.operator` and `clorefleet.gateway.service`; the
simulation has its own. Every method is either in `READINGS`, or an effect: then only the executor may call
it, between the intent and the record. `tests/fleet/test_kill_points.py` holds both to be complete.
"""

from __future__ import annotations

from typing import Protocol

from clorefleet.domain.identity import LeaseId, OrderId, ServerId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.money import Rate
from clorefleet.domain.node import Backend, Credentials, NodeView
from clorefleet.domain.offer import MarketView
from clorefleet.domain.order import Order, OrderList, RentRequest, Wallet
from clorefleet.domain.outcome import CancelOutcome, RentOutcome, SpotPriceOutcome
from clorefleet.domain.plan import PlanReport, Requirement
from clorefleet.domain.spot import SpotMarket


class Market(Protocol):
    def fetch_view(self) -> MarketView: ...

    def fetch_orders(self, *, include_completed: bool = False) -> OrderList: ...

    def fetch_wallets(self) -> tuple[Wallet, ...]: ...

    def fetch_spot_market(self, server_id: ServerId) -> SpotMarket:
        """
        Raises:
            MarketError: it could not be read.
        """
        ...

    def rent(self, request: RentRequest) -> RentOutcome:
        """Costs money. Never raises for an answer of the market: every answer is an outcome."""
        ...

    def cancel(self, order_id: OrderId, *, issue: str = "") -> CancelOutcome:
        """Stops money. Never raises for an answer of the market."""
        ...

    def set_spot_price(self, order_id: OrderId, desired: Rate, *, current: Rate) -> SpotPriceOutcome:
        """Changes what an order costs: its bid, per day in the order's currency. Never raises for an
        answer."""
        ...


class Planner(Protocol):
    def __call__(self, requirement: Requirement, market: MarketView) -> PlanReport: ...


class Nodes(Protocol):
    def prepare(self, lease_id: LeaseId) -> Credentials:
        """Make, or find again, the key pair and nonce of a lease."""
        ...

    def look(self, lease: Lease, order: Order) -> NodeView:
        """One bounded look at what the lease's phase asks for. Troubles are in the view, not raised."""
        ...

    def start_work(self, lease: Lease, phase: Phase, attempt: int) -> None:
        """Start the phase's job on the node; a second call with the same attempt changes nothing.

        Raises:
            NodeError: it could not be started; trying again is safe.
        """
        ...

    def backend(self, lease: Lease) -> Backend | None:
        """The way to a serving replica, or None while its tunnel is down."""
        ...

    def forget(self, lease_id: LeaseId) -> None:
        """Close the session and delete the lease's key: its order has ended."""
        ...

    def kept_keys(self) -> frozenset[LeaseId]:
        """The leases whose key is on this machine."""
        ...

    def key_place(self) -> str:
        """Names the folder that keys are made and kept in, and no other folder on any machine."""
        ...


class SetRoutes(Protocol):
    def __call__(self, backends: tuple[Backend, ...], /) -> None:
        """Requests reach exactly these replicas from now on. Local to this process: it dies with it."""
        ...


READINGS: dict[type, frozenset[str]] = {
    Market: frozenset({"fetch_view", "fetch_orders", "fetch_wallets", "fetch_spot_market"}),
    Nodes: frozenset({"prepare", "look", "backend", "forget", "kept_keys", "key_place"}),
}
"""What may be called outside an effect: it costs, stops and exposes nothing. `prepare` and `forget` make and
delete a lease's key on this machine; `backend` keeps a tunnel up to a replica that no route leads to yet."""
