"""What the user wants kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.plan import Requirement


class Desired(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model, its constraints, a ceiling on spending, and how many replicas to keep."""

    deployment_id: DeploymentId
    requirement: Requirement
    replicas: int
    desired: Desired
    created_at: datetime
    attempts_max: int = 5
    """Rents that may be tried for one replica before the deployment stops trying and says why."""
    attempts_since: datetime | None = None
    """Attempts are counted from here: a repeated `deploy` of a deployment that gave up starts afresh."""
    note: str = ""
    """Why it does not run, where it does not."""
    has_given_up: bool = False
    """Nothing more is tried until the user says so."""

    @property
    def model(self) -> str:
        return self.requirement.model
