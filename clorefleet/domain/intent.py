"""What is durably written before an effect that costs, stops or exposes; and how it came out.

    intent (durable) -> effect -> outcome: done | refused | unknown

`unknown` is an outcome: the request may have taken effect. A rent in doubt locks its slot and its
server until the market's order list has been read back after the doubt plus a grace period.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from clorefleet.domain.identity import DeploymentId, IntentId, LeaseId
from clorefleet.domain.money import Rate


class Effect(StrEnum):
    """All effects there are: what costs, stops or exposes. Each passes `Executor._through`, and each is
    killed at each `Boundary` by `tests/fleet/test_kill_points.py`, which takes both lists from here."""

    RENT = "rent"
    CANCEL = "cancel"
    SPOT_PRICE = "spot_price"
    START_JOB = "start_job"
    ROUTE = "route"
    """Requests of users begin or cease to reach a replica."""


class Boundary(StrEnum):
    """The places around an effect at which a process may die."""

    BEFORE_INTENT = "before intent"
    AFTER_INTENT = "after intent"
    AFTER_EFFECT = "after effect"
    AFTER_RECORD = "after record"


KILL_POINTS = tuple((effect, boundary) for effect in Effect for boundary in Boundary)
"""Every place at which dying must be harmless."""


class IntentState(StrEnum):
    OPEN = "open"
    """Written; the effect may or may not have been tried."""
    UNKNOWN = "unknown"
    """Tried; nobody knows how it came out."""
    DONE = "done"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Intent:
    intent_id: IntentId
    effect: Effect
    lease_id: LeaseId
    deployment_id: DeploymentId
    state: IntentState
    created_at: datetime
    doubted_at: datetime | None = None
    """When it became unknown; the grace period runs from here."""
    worst_case_usd_per_day: Rate | None = None
    """For a rent: counted against the budget while the intent is open or unknown."""
    detail: str = ""
    finished_at: datetime | None = None

    @property
    def is_in_doubt(self) -> bool:
        return self.state in (IntentState.OPEN, IntentState.UNKNOWN)
