"""Everything a decision may look at, read once at the start of a tick. Values only.

What a decision asks of each lease is answered from an index that is made once: going through all leases for
each of them is what a deployment of many replicas would feel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property

from clorefleet.domain.deployment import Deployment
from clorefleet.domain.guard import WalletReading
from clorefleet.domain.host import HostFault
from clorefleet.domain.identity import DeploymentId, IntentId, LeaseId, OrderId, ServerId
from clorefleet.domain.intent import Effect, Intent
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment, OpenBill
from clorefleet.domain.load import LoadSample
from clorefleet.domain.money import Currency, ExchangeRate
from clorefleet.domain.node import NodeView
from clorefleet.domain.offer import DOCUMENTED_FEES
from clorefleet.domain.order import OrderList, Wallet
from clorefleet.domain.plan import PlanReport
from clorefleet.domain.spot import SpotMarket
from clorefleet.domain.wanted import Wanted
from clorefleet.fleet.budget import FleetSpending, midnight_utc
from clorefleet.fleet.slots import is_held, surplus
from clorefleet.fleet.wanted import wanted


@dataclass(frozen=True)
class Snapshot:
    now: datetime
    deployments: tuple[Deployment, ...]
    leases: tuple[Lease, ...]
    """Open ones of all deployments."""
    attempts: Mapping[DeploymentId, int]
    """Rents tried per deployment since its count was started afresh, the open ones included."""
    intents: tuple[Intent, ...]
    """Those in doubt."""
    orders: OrderList | None
    """None when the market did not answer in this tick: nothing about orders may be decided."""
    nodes: Mapping[LeaseId, NodeView] = field(default_factory=dict)
    plans: Mapping[DeploymentId, PlanReport] = field(default_factory=dict)
    """For deployments that lack a replica; from this tick's reading of the offers."""
    spot_markets: Mapping[ServerId, SpotMarket] = field(default_factory=dict)
    """Of servers that are held or about to be bid for, where this tick read them."""
    unplanned: Mapping[DeploymentId, str] = field(default_factory=dict)
    """Deployments for which no plan could be made, each with the reason for the user."""
    offers_trouble: str = ""
    """Why there are no plans, when the offers could not be read."""
    segments: tuple[LedgerSegment, ...] = ()
    closed_leases: tuple[Lease, ...] = ()
    """Ended or refused not long ago: their orders may still show up in a lagging list."""
    faulty_servers: frozenset[ServerId] = frozenset()
    asked_servers: frozenset[ServerId] = frozenset()
    """Those that this same tick sets out to rent."""
    refused_servers: Mapping[DeploymentId, frozenset[ServerId]] = field(default_factory=dict)
    """Servers whose rent was refused lately (taken by another, offline)."""
    pauses: Mapping[DeploymentId, str] = field(default_factory=dict)
    """Why a deployment must not rent for a while: an empty wallet, a refused key, too many refusals."""
    unsettled: tuple[OpenBill, ...] = ()
    foreign: frozenset[tuple[OrderId, ServerId]] = frozenset()
    """Orders reported as not ours, each with its server: a market may give an old number anew."""
    violations: tuple[str, ...] = ()
    """Invariants that the audit found broken: while there is one, nothing is rented."""
    spent_today_usd: Mapping[DeploymentId, Decimal] = field(default_factory=dict)
    """Since midnight UTC, by our ledger."""
    wanted: Mapping[DeploymentId, Wanted] = field(default_factory=dict)
    """By schedule, load and use; a deployment that is missing here wants what it says itself."""
    start_ups: Mapping[DeploymentId, timedelta] = field(default_factory=dict)
    """From rent to serving: measured, else by the plan that was shown, else assumed."""
    wanted_before: Mapping[DeploymentId, Wanted] = field(default_factory=dict)
    """As last written down."""
    spending: FleetSpending = field(default_factory=FleetSpending)
    """Of all deployments together, with the ceilings that stand over them."""
    host_faults: tuple[HostFault, ...] = ()
    """Within the circuit breaker's window."""
    rates: tuple[ExchangeRate, ...] = ()
    """Of coins, where they were read in this tick."""
    wallets: tuple[Wallet, ...] | None = None
    """None where they were not due or not readable in this tick."""
    wallets_before: tuple[WalletReading, ...] = ()
    ledger_totals: Mapping[Currency, Decimal] = field(default_factory=dict)
    """All that the ledger counts by currency; only where `wallets` were read."""

    load: Mapping[DeploymentId, LoadSample] = field(default_factory=dict)
    """What was asked for since the last tick, of deployments that follow load or use."""
    is_prune_due: bool = False

    @property
    def locked_servers(self) -> frozenset[ServerId]:
        """Held by a lease or about to be, whatever the deployment: a server has one order, and an order that
        shows up there must be that lease's."""
        return self.asked_servers | {lease.server_id for lease in self.leases}

    @cached_property
    def leased_orders(self) -> frozenset[tuple[OrderId | None, ServerId]]:
        """Of the open leases, each order with its server."""
        return frozenset((lease.order_id, lease.server_id) for lease in self.leases)

    def wallet_readings(self) -> tuple[WalletReading, ...]:
        """What this tick read of the wallets, beside the first reading of the day."""
        if self.wallets is None:
            return ()
        fees = {each.order_id: each.fee_percent for each in self.segments}
        burn: dict[Currency, Decimal] = {}
        for order in () if self.orders is None else self.orders.live():
            fee = fees.get(order.order_id)
            if fee is None:
                fee = DOCUMENTED_FEES.percent(order.currency, is_spot=order.is_spot)
            daily = order.price.amount * (1 + fee / 100)
            burn[order.currency] = burn.get(order.currency, Decimal(0)) + daily
        before = {each.currency: each for each in self.wallets_before}
        midnight = midnight_utc(self.now)
        readings = []
        for wallet in self.wallets:
            if wallet.balance is None:
                continue
            ledger = self.ledger_totals.get(wallet.currency, Decimal(0))
            first = before.get(wallet.currency)
            if first is None or first.day_read_at < midnight:
                day = (wallet.balance.amount, self.now, ledger)
            else:
                day = (first.day_balance, first.day_read_at, first.day_ledger)
            readings.append(
                WalletReading(wallet.balance, self.now, ledger, burn.get(wallet.currency, Decimal(0)), *day)
            )
        return tuple(readings)

    def deployment(self, deployment_id: DeploymentId) -> Deployment | None:
        return self._deployments_by_id.get(deployment_id)

    @cached_property
    def _deployments_by_id(self) -> Mapping[DeploymentId, Deployment]:
        return {each.deployment_id: each for each in self.deployments}

    def wanted_of(self, deployment: Deployment) -> Wanted:
        return self.wanted.get(deployment.deployment_id) or wanted(deployment, self.now)

    def leases_of(self, deployment_id: DeploymentId) -> tuple[Lease, ...]:
        return self._leases_by_deployment.get(deployment_id, ())

    @cached_property
    def _leases_by_deployment(self) -> Mapping[DeploymentId, tuple[Lease, ...]]:
        """A tick asks for each lease; going through all of them each time is what a large fleet would
        feel."""
        found: dict[DeploymentId, list[Lease]] = {}
        for lease in self.leases:
            found.setdefault(lease.deployment_id, []).append(lease)
        return {deployment_id: tuple(leases) for deployment_id, leases in found.items()}

    def in_slot_of(self, lease: Lease) -> tuple[Lease, ...]:
        """The open leases of its slot, itself too."""
        return self._leases_by_slot.get((lease.deployment_id, lease.slot), ())

    @cached_property
    def _leases_by_slot(self) -> Mapping[tuple[DeploymentId, int], tuple[Lease, ...]]:
        found: dict[tuple[DeploymentId, int], list[Lease]] = {}
        for lease in self.leases:
            found.setdefault((lease.deployment_id, lease.slot), []).append(lease)
        return {slot: tuple(leases) for slot, leases in found.items()}

    def held_slots(self, deployment_id: DeploymentId) -> frozenset[int]:
        """Slots with a server that serves or may come to serve."""
        return self._held_slots.get(deployment_id, frozenset())

    @cached_property
    def _held_slots(self) -> Mapping[DeploymentId, frozenset[int]]:
        return {
            deployment_id: frozenset(lease.slot for lease in leases if is_held(lease))
            for deployment_id, leases in self._leases_by_deployment.items()
        }

    def is_surplus(self, lease: Lease) -> bool:
        """More replicas of its deployment are held than are wanted, and this is one of those to go."""
        return lease.lease_id in self._surplus

    @cached_property
    def _surplus(self) -> frozenset[LeaseId]:
        return frozenset(
            lease.lease_id
            for deployment in self.deployments
            for lease in surplus(
                self.leases_of(deployment.deployment_id),
                self.wanted_of(deployment).replicas,
                self.spending.usd_per_unit,
            )
        )

    def ready_follower_of(self, lease: Lease) -> Lease | None:
        """The lease that was rented to follow `lease`, once it serves and answers."""
        return self._ready_followers.get((lease.deployment_id, lease.lease_id))

    @cached_property
    def _ready_followers(self) -> Mapping[tuple[DeploymentId, LeaseId], Lease]:
        found: dict[tuple[DeploymentId, LeaseId], Lease] = {}
        for each in self.leases:
            is_ready = each.phase is Phase.SERVING and each.unhealthy_since is None and is_held(each)
            if each.replaces is not None and is_ready:
                found.setdefault((each.deployment_id, each.replaces), each)
        return found

    def in_doubt_on(self, server_id: ServerId) -> tuple[Lease, ...]:
        """Leases whose rent of that server is in doubt."""
        return self._in_doubt.get(server_id, ())

    @cached_property
    def _in_doubt(self) -> Mapping[ServerId, tuple[Lease, ...]]:
        return _by_server(each for each in self.leases if each.state is LeaseState.INTENT)

    def closed_on(self, server_id: ServerId) -> tuple[Lease, ...]:
        return self._closed_by_server.get(server_id, ())

    @cached_property
    def _closed_by_server(self) -> Mapping[ServerId, tuple[Lease, ...]]:
        return _by_server(self.closed_leases)

    def leases_with(self, order_id: OrderId, server_id: ServerId) -> tuple[Lease, ...]:
        """Open ones and closed ones that have, or had, that order."""
        return self._leases_by_order.get((order_id, server_id), ())

    @cached_property
    def _leases_by_order(self) -> Mapping[tuple[OrderId, ServerId], tuple[Lease, ...]]:
        found: dict[tuple[OrderId, ServerId], list[Lease]] = {}
        for lease in (*self.leases, *self.closed_leases):
            if lease.order_id is not None:
                found.setdefault((lease.order_id, lease.server_id), []).append(lease)
        return {key: tuple(leases) for key, leases in found.items()}

    def intent(self, intent_id: IntentId) -> Intent | None:
        """Of those in doubt."""
        return self._intents_by_id.get(intent_id)

    @cached_property
    def bids_in_doubt(self) -> frozenset[LeaseId]:
        return frozenset(each.lease_id for each in self.intents if each.effect is Effect.SPOT_PRICE)

    @cached_property
    def _intents_by_id(self) -> Mapping[IntentId, Intent]:
        return {intent.intent_id: intent for intent in reversed(self.intents)}

    def segments_of(self, lease_id: LeaseId) -> tuple[LedgerSegment, ...]:
        return self._segments_by_lease.get(lease_id, ())

    @cached_property
    def _segments_by_lease(self) -> Mapping[LeaseId, tuple[LedgerSegment, ...]]:
        found: dict[LeaseId, list[LedgerSegment]] = {}
        for segment in self.segments:
            found.setdefault(segment.lease_id, []).append(segment)
        return {lease_id: tuple(segments) for lease_id, segments in found.items()}


def _by_server(leases: Iterable[Lease]) -> Mapping[ServerId, tuple[Lease, ...]]:
    found: dict[ServerId, list[Lease]] = {}
    for lease in leases:
        found.setdefault(lease.server_id, []).append(lease)
    return {server_id: tuple(each) for server_id, each in found.items()}
