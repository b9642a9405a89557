"""All that is kept about money and time, read once: what cost reports are made of. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from clorefleet.domain.deployment import Deployment
from clorefleet.domain.guard import FleetGuard, WalletReading
from clorefleet.domain.host import HostFault
from clorefleet.domain.identity import LeaseId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.money import ExchangeRate
from clorefleet.domain.usage import UsageHour


@dataclass(frozen=True, slots=True)
class PhaseEntry:
    """From `at` on, the replica on this lease was in `phase`."""

    lease_id: LeaseId
    phase: Phase
    at: datetime


@dataclass(frozen=True, slots=True)
class Books:
    """One reading of the store.

    Attributes:
        segments: of whole orders, in order of time.
        leases: every lease that a segment names, where the store still has it; others may be there too.
        phases: in order of time. What happened before phases were recorded is missing, never guessed.
        usage: by lease and hour, as counted at the gateway.
        since: orders that ended before are left out; None when nothing is.
    """

    segments: tuple[LedgerSegment, ...] = ()
    leases: Mapping[LeaseId, Lease] = field(default_factory=dict)
    phases: tuple[PhaseEntry, ...] = ()
    usage: tuple[UsageHour, ...] = ()
    faults: tuple[HostFault, ...] = ()
    deployments: tuple[Deployment, ...] = ()
    guard: FleetGuard = field(default_factory=FleetGuard)
    wallets: tuple[WalletReading, ...] = ()
    rates: tuple[ExchangeRate, ...] = ()
    since: datetime | None = None
