"""The state of the fleet in one value, for `status`, `deploy`'s watching and the gateway's own route."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from types import MappingProxyType

from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.download import estimate
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.lease import PHASE_ORDER, Lease, LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.wanted import Wanted


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    lease_id: str
    slot: int
    phase: Phase
    state: str
    """`degraded` where it serves slower than it should, `outbid` where another renter has its server, else
    its phase."""
    in_phase: timedelta
    server_id: int
    order_id: int | None
    gpus: str
    setup: str
    """For instance `q4_1 on llama.cpp`."""
    usd_per_day: Decimal
    """The running rate with fee; 0 for a spot order that waits for its server."""
    is_spot: bool
    outbid_since: datetime | None
    spent_usd: Decimal
    progress: str
    progress_fraction: float | None
    weights: str
    """Before and during the download: how large, how long and until when, as estimated; then ""."""
    predicted_tokens_per_s: float
    measured_tokens_per_s: float | None
    degraded: str
    """By how much it is slower than it should; "" where it is not, or nobody knows."""
    engine_is_simulated: bool
    reason: str
    is_cancel_pending: bool
    """A cancel was asked for and the market still lists the order: it bills."""
    cancel_attempts: int


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    deployment_id: str
    model: str
    desired: Desired
    state: str
    """`serving`, `starting`, `waiting`, `resting` (none wanted), `gave up`, `stopping` or `stopped`."""
    replicas: tuple[ReplicaStatus, ...]
    wanted_replicas: int
    wanted_reason: str
    """Why as many; as the last tick found it."""
    unused_for: timedelta | None
    """Since the last request or token, where an idle rule waits for it and all its replicas serve."""
    stops_in: timedelta | None
    """Until the idle rule gives replicas back, if nobody comes; None where it would give none."""
    budget: str
    usd_per_day: Decimal
    spent_usd: Decimal
    """Over the deployment's whole life, ended leases too."""
    note: str


@dataclass(frozen=True, slots=True)
class FleetStatus:
    at: datetime
    deployments: tuple[DeploymentStatus, ...]
    usd_per_day: Decimal
    spent_usd: Decimal


def fleet_status(
    deployments: Iterable[Deployment],
    open_leases: Iterable[Lease],
    segments: Iterable[LedgerSegment],
    *,
    now: datetime,
    wanted: Mapping[DeploymentId, Wanted] = MappingProxyType({}),
    settled_usd: Mapping[DeploymentId, Decimal] = MappingProxyType({}),
) -> FleetStatus:
    """
    Args:
        segments: the ledger's, or those whose cost may still change; then `settled_usd` is the others' cost.
        wanted: what the last tick found; without it a deployment wants what it says itself.
    """
    leases, ledger = tuple(open_leases), tuple(segments)
    rows = tuple(
        _deployment(
            each,
            leases,
            ledger,
            now,
            wanted.get(each.deployment_id),
            settled_usd.get(each.deployment_id, Decimal(0)),
        )
        for each in deployments
    )
    return FleetStatus(
        at=now,
        deployments=rows,
        usd_per_day=sum((row.usd_per_day for row in rows), Decimal(0)),
        spent_usd=sum((row.spent_usd for row in rows), Decimal(0)),
    )


def _deployment(
    deployment: Deployment,
    leases: tuple[Lease, ...],
    ledger: tuple[LedgerSegment, ...],
    now: datetime,
    wanted: Wanted | None,
    settled_usd: Decimal,
) -> DeploymentStatus:
    mine = [lease for lease in leases if lease.deployment_id == deployment.deployment_id]
    segments = [each for each in ledger if each.deployment_id == deployment.deployment_id]
    replicas = tuple(_replica(lease, segments, now) for lease in mine)
    budget = deployment.requirement.budget
    unused = _unused_for(deployment, mine, now)
    return DeploymentStatus(
        deployment_id=deployment.deployment_id,
        model=deployment.model,
        desired=deployment.desired,
        state=_state(deployment, mine, wanted),
        replicas=replicas,
        wanted_replicas=deployment.replicas if wanted is None else wanted.replicas,
        wanted_reason="" if wanted is None else wanted.reason,
        unused_for=unused,
        stops_in=None if unused is None or deployment.idle is None else deployment.idle.after - unused,
        budget=str(budget) if budget else "",
        usd_per_day=sum((each.usd_per_day for each in replicas), Decimal(0)),
        spent_usd=sum((each.cost_usd(now) for each in segments), settled_usd),
        note=deployment.note,
    )


def _unused_for(deployment: Deployment, leases: list[Lease], now: datetime) -> timedelta | None:
    """None where no idle rule would give a replica back, and once it has done so."""
    if deployment.idle is None or deployment.desired is not Desired.RUNNING:
        return None
    if len(leases) <= deployment.idle.floor or any(lease.phase is not Phase.SERVING for lease in leases):
        return None
    used_at = max(max(lease.used_at or lease.phase_since, lease.phase_since) for lease in leases)
    unused = max(timedelta(0), now - used_at)
    return unused if unused < deployment.idle.after else None


def _state(deployment: Deployment, leases: list[Lease], wanted: Wanted | None) -> str:
    if deployment.desired is Desired.STOPPED:
        return "stopping" if leases else "stopped"
    if any(lease.phase is Phase.SERVING for lease in leases):
        return "serving"
    if wanted is not None and wanted.replicas == 0:
        return "stopping" if leases else "resting"
    if leases:
        return "starting"
    if deployment.has_given_up:
        return "gave up"
    return "waiting" if deployment.note else "starting"


def _weights(lease: Lease) -> str:
    if PHASE_ORDER.index(lease.phase) > PHASE_ORDER.index(Phase.SYNCING):
        return ""
    begin = lease.phase_since if lease.phase is Phase.SYNCING else None
    return estimate(lease.plan.offer, lease.plan.setup).text(begin)


def _replica_state(lease: Lease) -> str:
    if lease.outbid_since is not None:
        return "outbid"
    return "degraded" if lease.degraded and lease.phase is Phase.SERVING else str(lease.phase)


def _replica(lease: Lease, segments: Iterable[LedgerSegment], now: datetime) -> ReplicaStatus:
    mine = [each for each in segments if each.lease_id == lease.lease_id]
    rate = sum((each.worst_case_usd_per_day() for each in mine if each.ended_at is None), Decimal(0))
    plan = lease.plan
    return ReplicaStatus(
        lease_id=lease.lease_id,
        slot=lease.slot,
        phase=lease.phase,
        state=_replica_state(lease),
        in_phase=now - lease.phase_since,
        server_id=lease.server_id,
        order_id=lease.order_id,
        gpus=plan.offer.gpu_summary,
        setup=f"{plan.setup.checkpoint} on {plan.setup.engine}",
        usd_per_day=rate if lease.outbid_since is not None else rate or plan.price.running_usd_per_day,
        is_spot=plan.price.is_spot,
        outbid_since=lease.outbid_since,
        spent_usd=sum((each.cost_usd(now) for each in mine), Decimal(0)),
        progress=lease.progress,
        progress_fraction=lease.progress_fraction,
        weights=_weights(lease),
        predicted_tokens_per_s=plan.speed.decode_tokens_per_s,
        measured_tokens_per_s=lease.measured_tokens_per_s,
        degraded=lease.degraded if lease.phase is Phase.SERVING else "",
        engine_is_simulated=lease.engine_is_simulated,
        reason=lease.reason,
        is_cancel_pending=lease.state is LeaseState.ENDING,
        cancel_attempts=lease.cancel_attempts,
    )
