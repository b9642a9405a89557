"""Small books to report on. Every builder takes only what its test is about."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from clorefleet.domain.books import Books, PhaseEntry
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.money import Currency, Rate
from clorefleet.domain.usage import UsageHour
from tests.fleet.builders import deployment, lease, plan

DAY = datetime(2026, 11, 24, tzinfo=UTC)


def at(hours: float) -> datetime:
    """Hours after the beginning of the first day."""
    return DAY + timedelta(hours=hours)


def segment(
    begin: float, end: float | None, *, per_day: str = "24", lease_id: str = "l1", order_id: int = 900,
    name: str = "tiny", currency: Currency = Currency.USD, **changes: Any,
) -> LedgerSegment:  # fmt: skip
    """From hour `begin` to hour `end`; without fees, where nothing else is said."""
    values = {
        "fee_percent": Decimal(0), "creation_fee": Decimal(0), "usd_per_unit": Decimal(1), "is_spot": False,
        "rate_source": "test", "ended_at": None if end is None else at(end),
    }  # fmt: skip
    return LedgerSegment(
        lease_id=LeaseId(lease_id),
        deployment_id=DeploymentId(name),
        order_id=OrderId(order_id),
        price=Rate.per_day(per_day, currency),
        started_at=at(begin),
        **(values | changes),
    )


def entered(phase: Phase, hours: float, lease_id: str = "l1") -> PhaseEntry:
    return PhaseEntry(LeaseId(lease_id), phase, at(hours))


def used(hours: float, *, tokens: int = 1000, requests: int = 1, lease_id: str = "l1") -> UsageHour:
    return UsageHour(
        LeaseId(lease_id), at(hours), "smollm2-135m", at(hours),
        requests=requests, prompt_tokens=tokens * 2, completion_tokens=tokens,
    )  # fmt: skip


def held(lease_id: str = "l1", name: str = "tiny", per_day: str = "24", **changes: Any) -> Lease:
    state, phase = changes.pop("state", LeaseState.ORDERED), changes.pop("phase", Phase.SERVING)
    price = {"fee_percent": Decimal(0), "creation_fee": Decimal(0), **changes.pop("price_changes", {})}
    return lease(
        state, phase, lease_id=LeaseId(lease_id), deployment_id=DeploymentId(name),
        plan=plan(changes.pop("server_id", 7), per_day, **price), **changes,
    )  # fmt: skip


def books(segments: Iterable[LedgerSegment], *leases: Lease, **changes: Any) -> Books:
    values = {"leases": {each.lease_id: each for each in leases}, "deployments": (deployment(),)}
    return Books(segments=tuple(segments), **(values | changes))
