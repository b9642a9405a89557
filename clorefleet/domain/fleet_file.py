"""What a fleet file says, as values. `config/fleet_file.py` reads it, `fleet/change.py` compares it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from clorefleet.domain.alert import NotifyPolicy
from clorefleet.domain.deployment import ConsolidatePolicy, IdlePolicy, ScalePolicy
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.money import Budget
from clorefleet.domain.plan import Requirement
from clorefleet.domain.report_policy import ReportPolicy
from clorefleet.domain.schedule import Schedule


@dataclass(frozen=True, slots=True)
class DeploymentWish:
    """One `[deployments.NAME]`."""

    deployment_id: DeploymentId
    requirement: Requirement
    """With a budget: nothing is rented without a ceiling."""
    replicas: int = 1
    replicas_max: int | None = None
    schedule: Schedule | None = None
    scale: ScalePolicy | None = None
    idle: IdlePolicy | None = None
    consolidate: ConsolidatePolicy | None = None
    is_enabled: bool = True


@dataclass(frozen=True, slots=True)
class FleetFile:
    name: str
    """Path, as it is shown in messages."""
    digest: str
    """SHA-256 of the text, hexadecimal."""
    budget: Budget | None
    """Ceiling over all deployments together; None leaves the fleet's ceiling as it is."""
    deployments: tuple[DeploymentWish, ...]
    notify: NotifyPolicy
    report: ReportPolicy | None = None
    """None: no report is sent by itself."""


@dataclass(frozen=True, slots=True)
class AppliedFile:
    """Which file the user last approved. Its text is not kept: it may name places of secrets."""

    path: str
    digest: str
    applied_at: datetime
