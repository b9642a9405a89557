"""What the user wants kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from clorefleet.domain.errors import BadInput
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.plan import Requirement
from clorefleet.domain.schedule import Bounds, Schedule

DEPLOYMENT_NAME_MAX = 48
_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-_")


def parse_deployment_name(text: str) -> DeploymentId:
    """
    Raises:
        BadInput: it cannot name a deployment.
    """
    if not text or len(text) > DEPLOYMENT_NAME_MAX or set(text) - _NAME_CHARS or text[0] in ".-_":
        raise BadInput(
            f"“{text[:60]}” cannot name a deployment.",
            remedy="Use lower-case letters, digits, and . - _ inside; at most 48.",
        )
    return DeploymentId(text)


class Desired(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"


class Origin(StrEnum):
    """Who wrote the wish down, and so who may change it."""

    COMMAND = "command"
    """`clorefleet deploy`: a fleet file never touches it without being told."""
    FILE = "file"
    """`clorefleet apply` of a fleet file."""


@dataclass(frozen=True, slots=True)
class ScalePolicy:
    """How load moves the number of replicas between the deployment's bounds."""

    target: Decimal = Decimal("0.9")
    """Share of a replica's measured capacity that is used at most, on average. Waits mostly ask for less:
    how much less is worked out from the number of requests a replica serves at once."""
    time_to_first_token_max: timedelta | None = None
    """What 99 of 100 requests may wait for a place at an engine; None means ten seconds."""
    up_after: timedelta = timedelta(minutes=1)
    """How long more must have been needed before more are started."""
    down_after: timedelta = timedelta(minutes=10)
    """How long fewer must have sufficed before one is given back."""
    forecast: bool = False
    """Start ahead of a load that came at this time in earlier weeks."""


@dataclass(frozen=True, slots=True)
class IdlePolicy:
    """When replicas that nobody uses are given back."""

    after: timedelta
    """No request and no token for this long."""
    floor: int = 0
    """Replicas that stay all the same."""


@dataclass(frozen=True, slots=True)
class ConsolidatePolicy:
    """When a replica moves to a cheaper server."""

    margin: Decimal = Decimal("0.5")
    """A move must save its own cost, and this share of it more."""
    saving_least: Decimal = Decimal("0.05")
    """Share of the running price; less is noise of the market."""
    cooldown: timedelta = timedelta(hours=6)
    """Between two moves of a deployment."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model, its constraints, a ceiling on spending, and how many replicas to keep when."""

    deployment_id: DeploymentId
    requirement: Requirement
    replicas: int
    """Kept when neither schedule nor load says otherwise; the least that load may scale down to."""
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
    replicas_max: int | None = None
    """The most that load may scale up to; None means `replicas`."""
    schedule: Schedule | None = None
    scale: ScalePolicy | None = None
    idle: IdlePolicy | None = None
    consolidate: ConsolidatePolicy | None = None
    """None: a replica stays where it is as long as it serves."""
    origin: Origin = Origin.COMMAND
    woken_at: datetime | None = None
    """When the user last asked for a deployment that slept: for a while that counts like a request."""
    start_up_estimate: timedelta | None = None
    """From rent to serving, by the plan that was shown when this was approved; None where none was."""

    @property
    def bounds(self) -> Bounds:
        """Where no window of the schedule says otherwise."""
        return Bounds(self.replicas, max(self.replicas, self.replicas_max or 0))

    @property
    def model(self) -> str:
        return self.requirement.model
