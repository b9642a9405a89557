"""What the judge excuses, because no fleet could know better: an order that the list hid, one that a lost
store had known, and one whose key is on a machine that is down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clorefleet.domain.lease import Lease, Phase
from clorefleet.simulation.market import TrueOrder
from clorefleet.simulation.process import Home, Process

if TYPE_CHECKING:
    from clorefleet.simulation.life import World

_DAY_S = 86_400


class Excuses:
    def __init__(self, world: World) -> None:
        self._world = world

    def may_be_foreign(self, home: Home, order: TrueOrder, lease: Lease | None) -> bool:
        """Not made by this fleet, or nobody could tell: the market made it twice, the store that knew of it
        is lost, or it showed up after its rent was given up and its server never let our key in."""
        if order.asked_by != home.fleet_name or order.is_duplicate or lease is None:
            return True
        if lease.order_id is not None and lease.order_id != order.order_id:
            return True  # of two orders that the market made of one request, the lease holds the other
        was_disowned = lease.ordered_at is not None and lease.order_id is None
        return was_disowned and self.is_excused(home, order, lease)

    def _is_unlike(self, home: Home, order: TrueOrder, lease: Lease) -> bool:
        """Who had to judge it without its key saw that it is not what was asked for, and disowned it."""
        if lease.lease_id not in home.nodes.met_without_key or lease.order_id is not None:
            return False
        return order.price.amount > lease.plan.price.billed.amount or not self._is_of_its_time(order, lease)

    def _is_of_its_time(self, order: TrueOrder, lease: Lease) -> bool:
        """As far as the market's own times tell, which may be minutes off (D4)."""
        if lease.asked_at_market is None:
            return False
        asked_s = (lease.asked_at_market - self._world.time.began_at).total_seconds()
        limits = self._world.scenario.limits
        return abs(order.created_s - asked_s) <= limits.order_ct_skew.total_seconds()

    def could_be_ours(self, process: Process, order: TrueOrder) -> bool:
        """Somebody else's order that nobody can tell from the fleet's own: of what was asked for, on a server
        whose rent was in doubt, and which let nobody in for the time of waiting. Where the key would be on
        another machine nothing can be known of that: then its price and time have to be right too."""
        home, limits = process.home, self._world.scenario.limits
        with home.house.open().read() as tx:
            leases = [each for each in tx.open_leases() if (each.order_id, each.server_id) == order.key]
        waited_s = self._world.now_s() - order.created_s
        has_waited = waited_s >= limits.phase[Phase.WAITING].total_seconds() or self.is_day_unsure(process)
        return has_waited and any(
            not lease.is_proven
            and order.is_spot == lease.plan.price.is_spot
            and order.image == lease.image
            and (
                self._is_alike(order, lease)
                if lease.lease_id in home.nodes.met_without_key
                else not home.nodes.lets_in(order)
            )
            for lease in leases
        )

    def _is_alike(self, order: TrueOrder, lease: Lease) -> bool:
        approved = lease.plan.price.billed
        return (
            order.price.currency is approved.currency
            and order.price.amount <= approved.amount
            and self._is_of_its_time(order, lease)
        )

    def is_excused(self, home: Home, order: TrueOrder, lease: Lease) -> bool:
        """The list hid the order, so that its lease was closed by the rules; or nobody could tell it for
        ours."""
        return not lease.is_open and (order.was_hidden or self._is_unlike(home, order, lease))

    def is_day_unsure(self, process: Process) -> bool:
        """After a jump of the clock, or a loss of the books, "today" means different things."""
        now_s = self._world.now_s()
        return process.home.has_lost_memory or now_s - process.has_jumped_s < 2 * _DAY_S

    def is_spent_today_unsure(self, home: Home) -> bool:
        """Also after a jump of the other machine's clock, which wrote when orders began and ended."""
        return any(self.is_day_unsure(process) for process in home.processes)
