"""Orders on the account that nothing here explains, and what to tell of them. Pure.

None of them is ever ended without being named: it may be another fleet's, or the user's own. One kind may be
ours all the same: the order of a rent that was given up, or of another machine's, which no key here could
open (`Cause.UNPROVEN`). Its user has to hear of it, with its price and the command that ends it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from clorefleet.domain.failure import Cause
from clorefleet.domain.identity import OrderId, ServerId
from clorefleet.domain.lease import Lease
from clorefleet.domain.money import Period, Rate
from clorefleet.domain.order import StrangeOrder


def lease_it_may_be_of(
    server_id: ServerId, made_at: datetime | None, leases: Iterable[Lease]
) -> Lease | None:
    """The last lease whose order could not be told from somebody else's, where that was on this server.

    A server has one order at a time: what was made after the lease was closed is another.
    """
    found = [
        lease
        for lease in leases
        if lease.cause is Cause.UNPROVEN
        and lease.server_id == server_id
        and lease.ended_at is not None
        and (made_at is None or made_at <= lease.ended_at)
    ]
    return max(found, key=lambda lease: lease.created_at, default=None)


def told(order: StrangeOrder, leases: Iterable[Lease]) -> str:
    """What a user reads of it: its price, whose it may be, and the next command."""
    known = order.usd_per_day
    price = None if known is None else str(Rate.per_day(known).per(Period.HOUR))
    lease = lease_it_may_be_of(order.server_id, order.first_seen_at, leases)
    return words(order.order_id, order.server_id, price, lease)


def words(order_id: OrderId, server_id: ServerId, price: str | None, lease: Lease | None) -> str:
    """`price` is per hour, without fee; None where it is not known here."""
    bills = f"Order {order_id} on server {server_id} bills{'' if price is None else f' {price}'}"
    if lease is None:
        return (
            f"{bills} and is left alone: nothing here explains it. `clorefleet sweep` says whose it may be."
        )
    return (
        f"{bills} and may be of a rent of {lease.deployment_id}: {lease.reason}. It is left alone; if it is "
        f"not yours by hand, `clorefleet sweep --end {order_id}` ends it."
    )
