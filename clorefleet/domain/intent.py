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
    """All effects there are; a new one added here is killed at each of its boundaries by the tests."""

    RENT = "rent"
    CANCEL = "cancel"
    START_JOB = "start_job"
    ROUTE = "route"
    UNROUTE = "unroute"


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
