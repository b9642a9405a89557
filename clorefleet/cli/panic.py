"""`clorefleet stop --all`: end all spending with nothing but the key and the market's order list.

No store, daemon, configuration or plan is needed. What the store says is used when it can be read, to
tell our orders from others; when it cannot, every order is asked about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clorefleet.cli.context import options
from clorefleet.cli.output import confirm, note, print_json, say
from clorefleet.domain.errors import MarketError
from clorefleet.domain.identity import OrderId, ServerId
from clorefleet.domain.outcome import (
    AlreadyEnded,
    CancelAccepted,
    CancelOutcome,
    CancelRefused,
    CancelUnknown,
)

if TYPE_CHECKING:
    from clorefleet.config.profile import Profile
    from clorefleet.domain.order import Order
    from clorefleet.fleet.edges import Market

ROUNDS_MAX = 20
"""Each order is asked to end at most this often; the list is read between rounds."""
ROUND_PAUSE_S = 1.0
ABSENT_READINGS = 2
"""One reading without an order proves nothing."""


def stop_everything(profile: Profile, *, foreign: bool, yes: bool) -> None:
    """
    Raises:
        MarketError: the order list cannot be read, or an order is still there after all rounds.
    """
    from clorefleet.config.profile import connect
    from clorefleet.wiring import make_market

    connection = connect(profile)
    market = make_market(connection)
    ours = _stop_wishing(profile)
    live = market.fetch_orders().live()
    wanted = [order for order in live if foreign or ours is None or ours.explains(order)]
    left = [order for order in live if order not in wanted]
    for order in left:
        note(f"Left alone (not ours): order {order.order_id}, {order.gpu_summary}, {order.price}")
    if not wanted:
        say("No order of ours bills.")
        return
    for order in wanted:
        note(f"Order {order.order_id} on server {order.server_id}: {order.price}, {order.spend} so far")
    if not confirm(f"End {len(wanted)} order(s)?", yes=yes or profile.is_sandbox, what="Ending orders"):
        note("Nothing was ended.")
        return
    _end(market, {order.order_id for order in wanted}, connection.clock.sleep)
    if options.as_json:
        print_json({"ended": [order.order_id for order in wanted], "left": [o.order_id for o in left]})
    else:
        say(f"{len(wanted)} order(s) ended: the market lists none of them any more.")
    if left:
        note("Add --foreign to end the others too.")


@dataclass(frozen=True, slots=True)
class OurOrders:
    """What this profile's store says is ours."""

    orders: frozenset[OrderId]
    servers_in_doubt: frozenset[ServerId]
    """A rent of these was asked for and not yet seen: an order on one of them is taken for ours."""

    def explains(self, order: Order) -> bool:
        return order.order_id in self.orders or order.server_id in self.servers_in_doubt


def _stop_wishing(profile: Profile) -> OurOrders | None:
    """Write down that nothing is wanted, so that no daemon rents again; None when the store is broken."""
    from clorefleet.config.profile import store_url
    from clorefleet.domain.deployment import Desired
    from clorefleet.domain.errors import ClorefleetError
    from clorefleet.store.database import open_store

    try:
        with open_store(store_url(profile)).write() as tx:
            for deployment in tx.deployments():
                tx.put_deployment(replace(deployment, desired=Desired.STOPPED))
            leases = tx.leases()
    except (ClorefleetError, OSError, ValueError) as error:
        note(f"The store cannot be used ({error}): orders are ended without it.")
        return None
    return OurOrders(
        frozenset(lease.order_id for lease in leases if lease.order_id is not None),
        frozenset(lease.server_id for lease in leases if lease.is_open and lease.order_id is None),
    )


def _end(market: Market, wanted: set[OrderId], sleep: Callable[[float], None]) -> None:
    """Cancel and read back until the list shows none of them, twice in a row."""
    absent_readings = 0
    for _ in range(ROUNDS_MAX):
        listed = market.fetch_orders()
        live = {order.order_id for order in listed.live()} & wanted
        if not live:
            # A list with records that cannot be read may hold them still.
            absent_readings += 0 if listed.unreadable else 1
            if absent_readings >= ABSENT_READINGS:
                return
        else:
            absent_readings = 0
            for order_id in sorted(live):
                outcome = market.cancel(order_id)
                note(f"Order {order_id}: {_words(outcome)}")
        sleep(ROUND_PAUSE_S)
    raise MarketError(
        f"Orders {', '.join(map(str, sorted(live)))} are still in the market's list "
        f"after {ROUNDS_MAX} rounds.",
        remedy="Run the same command again, or end them on clore.ai.",
        money="They may still bill.",
    )


def _words(outcome: CancelOutcome) -> str:
    match outcome:
        case CancelAccepted():
            return "cancel accepted"
        case AlreadyEnded():
            return "already ended, says the market"
        case CancelRefused(error):
            return f"refused: {error.what}"
        case CancelUnknown(reason):
            return f"unknown: {reason}"
