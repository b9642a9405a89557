"""Everything a decision may look at, read once at the start of a tick. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from clorefleet.domain.deployment import Deployment
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId, ServerId
from clorefleet.domain.intent import Intent
from clorefleet.domain.lease import Lease
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.node import NodeView
from clorefleet.domain.order import OrderList
from clorefleet.domain.plan import PlanReport


@dataclass(frozen=True, slots=True)
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
    offers_trouble: str = ""
    """Why there are no plans, when the offers could not be read."""
    segments: tuple[LedgerSegment, ...] = ()
    closed_leases: tuple[Lease, ...] = ()
    """Ended or refused not long ago: their orders may still show up in a lagging list."""
    faulty_servers: frozenset[ServerId] = frozenset()
    refused_servers: Mapping[DeploymentId, frozenset[ServerId]] = field(default_factory=dict)
    """Servers whose rent was refused lately (taken by another, offline)."""
    pauses: Mapping[DeploymentId, str] = field(default_factory=dict)
    """Why a deployment must not rent for a while: an empty wallet, a refused key, too many refusals."""
    unsettled: tuple[OrderId, ...] = ()
    """Orders that ended and whose final bill is not known yet."""
    spent_today_usd: Mapping[DeploymentId, Decimal] = field(default_factory=dict)
    """Since midnight UTC, by our ledger."""

    def deployment(self, deployment_id: DeploymentId) -> Deployment | None:
        return next((d for d in self.deployments if d.deployment_id == deployment_id), None)
