"""What happened, in the order it happened, for the user to read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from clorefleet.domain.identity import DeploymentId, LeaseId


@dataclass(frozen=True, slots=True)
class Event:
    at: datetime
    name: str
    """A stable identifier, for instance `order_rented`."""
    text: str
    deployment_id: DeploymentId | None = None
    lease_id: LeaseId | None = None
