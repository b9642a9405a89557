"""What an order costs, written down: the ledger's segments inside a transaction of the journal."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from decimal import Decimal

from clorefleet.domain.identity import LeaseId, OrderId
from clorefleet.domain.lease import Lease
from clorefleet.domain.ledger import LedgerSegment, Segments, closed, reopened
from clorefleet.domain.order import Order
from clorefleet.store.queries import Transaction


def only_spend_differs(before: LedgerSegment, after: LedgerSegment) -> bool:
    return all(getattr(before, name) == getattr(after, name) for name in _BESIDE_SPEND)


_BESIDE_SPEND = tuple(each.name for each in fields(LedgerSegment) if each.name != "market_spend")


def open_count(tx: Transaction, lease: Lease, order: Order, started_at: datetime) -> None:
    """The order bills: begin to count, or count on where it was counted before."""
    mine = _of_lease(tx.order_segments(order.order_id), lease.lease_id)
    put_count(tx, order.order_id, reopened(mine) if mine else (_segment_of(lease, order, started_at),))


def close_count(
    tx: Transaction,
    order_id: OrderId,
    lease_id: LeaseId,
    *,
    ended_at: datetime,
    settled: Decimal | None,
    now: datetime,
) -> None:
    mine = _of_lease(tx.order_segments(order_id), lease_id)
    put_count(tx, order_id, closed(mine, ended_at=ended_at, settled=settled, now=now))


def _of_lease(segments: Segments, lease_id: LeaseId) -> Segments:
    return tuple(each for each in segments if each.lease_id == lease_id)


def put_count(tx: Transaction, order_id: OrderId, counted: Segments) -> None:
    """One lease's segments anew. A market may give an old number to a new order (A21): what another lease's
    order of that number cost stays as it is."""
    anew = iter(counted)
    lease_ids = {each.lease_id for each in counted}
    existing = tx.order_segments(order_id)
    kept = [next(anew) if each.lease_id in lease_ids else each for each in existing]
    tx.put_order_segments(order_id, (*kept, *anew))


def _segment_of(lease: Lease, order: Order, started_at: datetime) -> LedgerSegment:
    price = lease.plan.price
    fee = order.creation_fee
    return LedgerSegment(
        lease_id=lease.lease_id,
        deployment_id=lease.deployment_id,
        order_id=order.order_id,
        price=order.price,
        is_spot=order.is_spot,
        fee_percent=price.fee_percent,
        creation_fee=price.creation_fee if fee is None else fee.amount,
        usd_per_unit=price.usd_per_unit,
        rate_source=price.rate_source,
        started_at=started_at,
        market_spend=order.spend.amount,
    )
