"""How many replicas are wanted, and what load and use have to say about it. Values; `fleet/wanted.py`
weighs them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Wanted:
    replicas: int
    reason: str
    """For the user; the same words as long as the same cause holds."""
    until: datetime | None = None
    """When the clock alone may change it; None where only a wish or load can."""


@dataclass(frozen=True, slots=True)
class NotReady:
    """Why a model that is to be served may have no replica, for the client that asks for it."""

    reason: str
    ready_in: timedelta | None = None
    """By the measured or estimated start-up; None where nobody knows."""


@dataclass(frozen=True, slots=True)
class LoadDecision:
    """How many replicas the load needs; the deployment's bounds are applied later."""

    replicas: int
    reason: str


@dataclass(frozen=True, slots=True)
class IdleDecision:
    """Whether nobody uses the deployment."""

    is_idle: bool
    reason: str
