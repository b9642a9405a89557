"""The edges of the fleet: what it needs of a market and of nodes. Small on purpose.

The real ones are `clorefleet.market.client` and `clorefleet.node.operator`; the simulation has its own.
"""

from __future__ import annotations

from typing import Protocol

from clorefleet.domain.identity import LeaseId, OrderId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.node import Backend, Credentials, NodeView
from clorefleet.domain.offer import MarketView
from clorefleet.domain.order import Order, OrderList, RentRequest, Wallet
from clorefleet.domain.outcome import CancelOutcome, RentOutcome
from clorefleet.domain.plan import PlanReport, Requirement


class Market(Protocol):
    def fetch_view(self) -> MarketView: ...

    def fetch_orders(self, *, include_completed: bool = False) -> OrderList: ...

    def fetch_wallets(self) -> tuple[Wallet, ...]: ...

    def rent(self, request: RentRequest) -> RentOutcome:
        """Costs money. Never raises for an answer of the market: every answer is an outcome."""
        ...

    def cancel(self, order_id: OrderId, *, issue: str = "") -> CancelOutcome:
        """Stops money. Never raises for an answer of the market."""
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
