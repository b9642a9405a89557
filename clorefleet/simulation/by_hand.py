"""What the user does without the fleet: end all spending with nothing but the key and the order list (L6).

The rules are those of `clorefleet stop --all` where the store is broken: every order is taken, nobody's
records are asked. The code that ends them is the real one. The market lies and stumbles meanwhile; a user
who is told that the list cannot be read, or who still sees orders in it, says it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from clorefleet.domain.errors import MarketError
from clorefleet.fleet.audit import Violation
from clorefleet.fleet.edges import Market as Edge
from clorefleet.fleet.sweep import all_live, end_orders
from clorefleet.market.rent import RentProtocol
from clorefleet.simulation.clock import ProcessClock
from clorefleet.simulation.desk import Desk
from clorefleet.simulation.market import Market

FAULTS = (("A1", 2), ("A4", 1), ("A7", 1), ("A14", 2), ("A15", 1), ("A16", 1), ("A22", 1))
"""What may strike meanwhile, and how often."""
RUNS_MAX = 8
"""More often than all of these together can spoil a run."""
_PAUSE_S = 30.0


class Hand:
    """The user at a terminal: neither a fleet nor a process of one."""

    name = "user"
    fleet_name = "user"
    calls = 0

    def at(self, boundary: str) -> None:
        """Nobody kills it."""


def stop_all(
    market: Market, clock: ProcessClock, trace: Callable[[str], None], *, edge: Callable[[Edge], Edge]
) -> Iterator[Violation]:
    """L6: afterwards no order bills. `edge` is where a planted bug goes in."""
    hand = edge(RentProtocol(Desk(market, Hand(), clock_offset_s=lambda: 0.0), clock=clock))
    for _ in range(RUNS_MAX):
        try:
            listed = all_live(hand, sleep=clock.sleep)
            if not listed.live() and not listed.unreadable:
                break
            end_orders(hand, listed.live(), sleep=clock.sleep, tell=trace)
        except MarketError as error:
            trace(f"the list cannot be read: {error.what[:100]}")
        clock.sleep(_PAUSE_S)
    left = [order.order_id for order in market.live()]
    if left:
        yield Violation("L6", f"orders {left}", "still bill after all was stopped without a store")
