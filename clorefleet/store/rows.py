"""The domain's values as rows of the store, and back."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic_core import from_json
from sqlalchemy import Row

from clorefleet.domain.deployment import Deployment
from clorefleet.domain.event import Event
from clorefleet.domain.identity import DeploymentId, IntentId, LeaseId, OrderId
from clorefleet.domain.intent import Effect, Intent, IntentState
from clorefleet.domain.lease import Lease
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.load import MINUTE_S, LoadSample
from clorefleet.domain.money import Currency, Rate
from clorefleet.domain.plan import Plan
from clorefleet.domain.usage import UsageHour
from clorefleet.store import codec
from clorefleet.store.tables import EventRow, UsageRow

_PLAN_APART = frozenset({"plan"})
PLANS_KEPT = 2048
"""Plans that need not be read anew in each tick: more than a fleet has leases."""


def usage_of(row: UsageRow) -> UsageHour:
    return UsageHour(
        lease_id=LeaseId(row.lease_id),
        hour=row.hour,
        model=row.model,
        last_at=row.last_at,
        requests=row.requests,
        failures=row.failures,
        uncounted=row.uncounted,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        uncounted_events=row.uncounted_events,
        first_byte_s=row.first_byte_s,
        total_s=row.total_s,
        waits=tuple(row.waits),
    )


def load_of(row: Row[Any]) -> LoadSample:
    return LoadSample(
        started_at=row.minute,
        length_s=MINUTE_S,
        requests=row.requests,
        turned_away=row.turned_away,
        prompt_tokens=row.prompt_tokens,
        generated_tokens=row.generated_tokens,
        running=row.running,
        waiting=row.waiting,
        serving=row.serving,
        first_byte_s=row.first_byte_s,
    )


def deployment_of(row: Row[Any]) -> Deployment:
    columns = dict(row._mapping)
    del columns["model"]  # a copy of the requirement's, to query by
    policy = columns.pop("policy") or {}
    return codec.decode(Deployment, columns | policy)


def intent_of(row: Row[Any]) -> Intent:
    worst = row.worst_case_usd_per_day
    return Intent(
        intent_id=IntentId(row.intent_id),
        effect=Effect(row.effect),
        lease_id=LeaseId(row.lease_id),
        deployment_id=DeploymentId(row.deployment_id),
        state=IntentState(row.state),
        created_at=row.created_at,
        doubted_at=row.doubted_at,
        finished_at=row.finished_at,
        worst_case_usd_per_day=None if worst is None else Rate.per_day(worst),
        detail=row.detail,
    )


def lease_of(row: Row[Any]) -> Lease:
    return codec.decode(Lease, {**row.document, "plan": plan_of(row.plan)})


@lru_cache(maxsize=PLANS_KEPT)
def plan_of(text: str) -> Plan:
    """A plan is long, and the same in each tick."""
    return codec.decode(Plan, from_json(text))


def beliefs_of(lease: Lease) -> dict[str, Any]:
    """The columns of a lease that change after its intent."""
    return {
        "deployment_id": lease.deployment_id,
        "slot": lease.slot,
        "state": lease.state,
        "phase": lease.phase,
        "order_id": lease.order_id,
        "phase_since": lease.phase_since,
        "ended_at": lease.ended_at,
        "reason": lease.reason,
        "document": codec.encode(lease, without=_PLAN_APART),
    }


def segment_of(row: Row[Any]) -> LedgerSegment:
    return LedgerSegment(
        lease_id=LeaseId(row.lease_id),
        deployment_id=DeploymentId(row.deployment_id),
        order_id=OrderId(row.order_id),
        price=Rate.per_day(row.price_per_day, Currency(row.currency)),
        is_spot=row.is_spot,
        fee_percent=row.fee_percent,
        creation_fee=row.creation_fee,
        usd_per_unit=row.usd_per_unit,
        rate_source=row.rate_source,
        started_at=row.started_at,
        ended_at=row.ended_at,
        market_spend=row.market_spend,
        settled_at=row.settled_at,
        order_started_at=row.order_started_at,
    )


def columns_of_segment(segment: LedgerSegment) -> dict[str, Any]:
    return {
        "lease_id": segment.lease_id,
        "deployment_id": segment.deployment_id,
        "order_id": segment.order_id,
        "currency": segment.currency,
        "is_spot": segment.is_spot,
        "price_per_day": segment.price.amount,
        "fee_percent": segment.fee_percent,
        "creation_fee": segment.creation_fee,
        "usd_per_unit": segment.usd_per_unit,
        "rate_source": segment.rate_source,
        "started_at": segment.started_at,
        "ended_at": segment.ended_at,
        "market_spend": segment.market_spend,
        "settled_at": segment.settled_at,
        "order_started_at": segment.order_started_at,
    }


def event_of(row: EventRow) -> Event:
    return Event(
        at=row.at,
        name=row.name,
        text=row.text,
        deployment_id=DeploymentId(row.deployment_id) if row.deployment_id else None,
        lease_id=LeaseId(row.lease_id) if row.lease_id else None,
    )
