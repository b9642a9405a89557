"""What is committed and spent, as the store says: for the snapshot, and again inside a rent's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.lease import Lease
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.money import Currency, ExchangeRate
from clorefleet.fleet.budget import FleetSpending, midnight_utc, spent_since
from clorefleet.store.queries import Transaction


@dataclass(frozen=True, slots=True)
class Spending:
    fleet: FleetSpending
    today_usd: Mapping[DeploymentId, Decimal]
    """Since midnight UTC, of each deployment."""
    segments: tuple[LedgerSegment, ...]
    """Of all orders that run, or ran today; whole orders."""
    rates: tuple[ExchangeRate, ...]
    """What coins were last known to be worth."""


def load_spending(
    tx: Transaction, now: datetime, *, open_leases: tuple[Lease, ...] | None = None
) -> Spending:
    """Reads what ran today; where a total ceiling needs it, the sums of what was settled before."""
    midnight = midnight_utc(now)
    guard, rates = tx.guard(), tx.coin_rates()
    segments = tx.segments(since=midnight)
    today = _by_deployment(segments, midnight, now)
    totals: dict[DeploymentId, Decimal] = {}
    total = Decimal(0)
    if guard.deployment_totals_usd or guard.total_usd is not None:
        spent = _spent_usd(tx, now)
        for name in guard.deployment_totals_usd:
            begun = guard.deployment_totals_since.get(name)
            totals[name] = spent.get(name, Decimal(0))
            if begun is not None:
                totals[name] = spent_since(tx.segments(name, since=begun), begun, now)
        since = guard.total_since
        total = sum(spent.values(), Decimal(0))
        if since is not None:
            total = spent_since(tx.segments(since=since), since, now)
    fleet = FleetSpending(
        guard=guard,
        open_leases=tx.open_leases() if open_leases is None else open_leases,
        spent_today_usd=sum(today.values(), Decimal(0)),
        spent_total_usd=total,
        deployment_spent_total_usd=totals,
        usd_per_unit={rate.currency: rate.usd_per_unit for rate in rates},
    )
    return Spending(fleet, today, segments, rates)


def load_ledger_totals(tx: Transaction, now: datetime) -> Mapping[Currency, Decimal]:
    """All that the ledger counts, by billed currency: what is settled by its sums."""
    totals: dict[Currency, Decimal] = {}
    for each in tx.settled_totals():
        totals[each.currency] = totals.get(each.currency, Decimal(0)) + each.amount
    for segment in tx.running_segments():
        currency = segment.price.currency
        totals[currency] = totals.get(currency, Decimal(0)) + segment.charged(now)
    return totals


def _by_deployment(
    segments: Iterable[LedgerSegment], since: datetime, now: datetime
) -> Mapping[DeploymentId, Decimal]:
    spent: dict[DeploymentId, Decimal] = {}
    for segment in segments:
        cost = spent_since([segment], since, now)
        spent[segment.deployment_id] = spent.get(segment.deployment_id, Decimal(0)) + cost
    return spent


def _spent_usd(tx: Transaction, now: datetime) -> Mapping[DeploymentId, Decimal]:
    """Over each deployment's whole life."""
    spent: dict[DeploymentId, Decimal] = {}
    for each in tx.settled_totals():
        spent[each.deployment_id] = spent.get(each.deployment_id, Decimal(0)) + each.usd
    for segment in tx.running_segments():
        before = spent.get(segment.deployment_id, Decimal(0))
        spent[segment.deployment_id] = before + segment.cost_usd(now)
    return spent
