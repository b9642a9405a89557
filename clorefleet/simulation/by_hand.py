"""What the user does without the fleet: end all spending with nothing but the key and the order list (L6).

The rules are those of `clorefleet stop --all` where the store is broken: every order is taken, nobody's
records are asked. The code that ends them is the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from clorefleet.fleet.audit import Violation
from clorefleet.fleet.sweep import end_orders
from clorefleet.market.rent import RentProtocol
from clorefleet.simulation.clock import ProcessClock
from clorefleet.simulation.market import Desk, Market


class Hand:
    """The user at a terminal: neither a fleet nor a process of one."""

    name = "user"
    fleet_name = "user"
    calls = 0

    def at(self, boundary: str) -> None:
        """Nobody kills it."""


def stop_all(market: Market, clock: ProcessClock, trace: Callable[[str], None]) -> Iterator[Violation]:
    """L6: afterwards no order bills."""
    edge = RentProtocol(Desk(market, Hand(), clock_offset_s=lambda: 0.0), clock=clock)
    end_orders(edge, edge.fetch_orders().live(), sleep=clock.sleep, tell=trace)
    left = [order.order_id for order in market.live()]
    if left:
        yield Violation("L6", f"orders {left}", "still bill after all was stopped without a store")
