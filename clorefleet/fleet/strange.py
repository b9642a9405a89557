"""Orders on the account that nothing here explains, and what to tell of them. Pure.

None of them is ever ended without being named: it may be another fleet's, or the user's own. One kind may be
ours all the same: the order of a rent that was given up, or of another machine's, which no key here could
open (`Cause.UNPROVEN`). Its user has to hear of it, with its price and the command that ends it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from clorefleet.domain.failure import Cause
from clorefleet.domain.identity import OrderId, ServerId
from clorefleet.domain.lease import Lease
from clorefleet.domain.money import Period, Rate
from clorefleet.domain.order import Order, StrangeOrder
from clorefleet.fleet.limits import DEFAULT_LIMITS


def lease_it_may_be_of(order: Order | StrangeOrder, leases: Iterable[Lease]) -> Lease | None:
    """The last lease whose order could not be told from somebody else's, where that was on this server.

    What came after the lease was closed is another order. A listed order has its time from the market's
    clock, a remembered one from ours: each is compared by its own, since the two may lie hours apart.
    """
    found = [
        lease
        for lease in leases
        if lease.cause is Cause.UNPROVEN
        and lease.server_id == order.server_id
        and _was_there_before_the_end(order, lease)
    ]
    return max(found, key=lambda lease: lease.created_at, default=None)


def _was_there_before_the_end(order: Order | StrangeOrder, lease: Lease) -> bool:
    """False for a lease that has not ended. Where it is not known, an order may have been."""
    ended_at = lease.ended_at
    if ended_at is None:
        return False
    if isinstance(order, StrangeOrder):
        return order.first_seen_at <= ended_at
    if order.created_at is None:
        return True
    if lease.asked_at_market is not None:
        # How long it lasted is all that our clock is asked for; one that was set back meanwhile tells less.
        ended_at = lease.asked_at_market + max(timedelta(0), ended_at - lease.created_at)
    return order.created_at <= ended_at + DEFAULT_LIMITS.order_ct_skew


def told(order: StrangeOrder, leases: Iterable[Lease]) -> str:
    """What a user reads of it: its price, whose it may be, and the next command."""
    return told_of(order, lease_it_may_be_of(order, leases))


def told_of(order: StrangeOrder, lease: Lease | None) -> str:
    """As `told`, where it is known of which lease the order may be."""
    known = order.usd_per_day
    price = None if known is None else str(Rate.per_day(known).per(Period.HOUR))
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
