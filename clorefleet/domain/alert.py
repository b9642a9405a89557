"""What a user is told without asking, and by which way. Values; no secret is ever in them, only where it
is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from clorefleet.domain.identity import DeploymentId


class AlertKind(StrEnum):
    FAILURE = "failure"
    """A server failed, a deployment gave up, renting was stopped, the fleet file cannot be read."""
    BUDGET = "budget"
    """A share of a day's ceiling is spent."""
    REDUNDANCY = "redundancy"
    """Fewer replicas serve than are wanted, after all of them did; and when they serve again."""
    READY = "ready"
    """All wanted replicas of a deployment serve."""
    REPORT = "report"
    """A cost report that is due; it goes where `[report]` says, whatever a channel is `on`."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing to tell. `key` names it for good: what was told under a key is never told again."""

    key: str
    kind: AlertKind
    at: datetime
    text: str
    """Harmless and without secrets: controls are stripped where it is made."""
    deployment_id: DeploymentId | None = None


class DeliveryState(StrEnum):
    WAITING = "waiting"
    SENDING = "sending"
    """Written before it is sent. Found like this by another process, nobody knows whether it went out."""
    SENT = "sent"
    FAILED = "failed"
    """Given up after `attempts` tries."""
    UNKNOWN = "unknown"
    """It may have gone out, and is not sent again: at most once."""


UNFINISHED = frozenset({DeliveryState.WAITING, DeliveryState.SENDING})


@dataclass(frozen=True, slots=True)
class Delivery:
    """One alert to one channel."""

    alert: Alert
    channel: str
    state: DeliveryState
    attempts: int
    next_at: datetime
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a deployment's replicas were like when it was last looked at."""

    is_complete: bool
    """All that were wanted served."""
    serving: int
    """How many served when it was last complete."""


@dataclass(frozen=True, slots=True)
class Lookout:
    """How far alerts have been made, so that none is made twice and none is missed."""

    event_id: int
    standings: Mapping[DeploymentId, Standing] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    """Names of those that listened then."""


@dataclass(frozen=True, slots=True)
class SecretPlace:
    """Where a secret is kept: an environment variable, or a file that only its owner can read."""

    env: str = ""
    file: str = ""

    @property
    def is_given(self) -> bool:
        return bool(self.env or self.file)


@dataclass(frozen=True, slots=True)
class Webhook:
    name: str
    kinds: frozenset[AlertKind]
    url: str = ""
    """Treated as a secret in whatever is shown: many services put their token into it."""
    url_place: SecretPlace = SecretPlace()
    """Instead of `url`."""


class MailSecurity(StrEnum):
    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"
    """Only to this machine itself."""


@dataclass(frozen=True, slots=True)
class Email:
    name: str
    kinds: frozenset[AlertKind]
    host: str
    port: int
    security: MailSecurity
    sender: str
    recipients: tuple[str, ...]
    user: str = ""
    password: SecretPlace = SecretPlace()


@dataclass(frozen=True, slots=True)
class Command:
    """A program that gets the alert as JSON on its standard input. Never a shell."""

    name: str
    kinds: frozenset[AlertKind]
    argv: tuple[str, ...]


Channel = Webhook | Email | Command


@dataclass(frozen=True, slots=True)
class NotifyPolicy:
    channels: tuple[Channel, ...] = ()
    budget_percents: tuple[int, ...] = (80, 100)
    """Shares of a day's ceiling at which is told."""
