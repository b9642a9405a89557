"""Compare what the fleet believes with what is true, by the invariants of `clorefleet.fleet.audit`.

The judge sees both sides: the store, as it durably stands, and the market's true orders. It excuses only
what no fleet could know (`excuses`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from clorefleet.domain.deployment import Desired
from clorefleet.domain.identity import LeaseId, OrderId, ServerId
from clorefleet.domain.intent import Effect, IntentState
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.money import Rate
from clorefleet.domain.order import Order, OrderList, RentRequest
from clorefleet.domain.text import LINE_MAX_CHARS
from clorefleet.fleet.action import Action, DropRent, End
from clorefleet.fleet.audit import (
    READINGS_TO_END,
    Audit,
    BidFacts,
    CancelFacts,
    RentFacts,
    Violation,
    at_bid,
    at_cancel,
    at_drop,
    at_end,
    at_rent,
    audit,
    inert_text,
    of_bill,
    of_servers,
    of_totals,
)
from clorefleet.fleet.loop import TickResult, may_need_key
from clorefleet.fleet.snapshot import Snapshot
from clorefleet.simulation.excuses import Excuses
from clorefleet.simulation.faults import CANARY
from clorefleet.simulation.market import TrueOrder
from clorefleet.simulation.nodes import KeyFolder
from clorefleet.simulation.process import Home, Process

if TYPE_CHECKING:
    from clorefleet.simulation.life import World
    from clorefleet.store.queries import Transaction

CALLS_MAX_PER_TICK = 60
"""Market requests in one tick (S15): a reading of orders and offers, and the effects of a small fleet."""
EVENT_MAX_CHARS = 4 * LINE_MAX_CHARS
ENOUGH = READINGS_TO_END
SQLITE_JUDGED_EVERY = 5
"""Reading all rows back costs most of a life on SQLite."""
_DAY_S = 86_400


class Broken(BaseException):  # which the tick must not take for a fault of its own
    """An invariant does not hold: the life ends here."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(str(violation))
        self.violation = violation


class Judge:
    def __init__(self, world: World) -> None:
        self._world = world
        self.excuses = Excuses(world)
        self._audits: dict[str, Audit] = {}
        self._ticks = 0
        self._partial = 0
        """Lists with a page missing, so far."""
        self._heard: list[Violation] = []
        self._absences: dict[str, Counter[tuple[OrderId, ServerId]]] = {}
        self._asked_s: dict[str, float] = {}
        self._ceiling: dict[str, Decimal | None] = {}
        """By nonce: the budget in USD per day when the rent was asked for."""
        self._shown: dict[str, set[tuple[OrderId, ServerId]]] = {}
        """By fleet, orders of its own that a list told its store of in time: alive, or ended while their rent
        was in doubt. What they cost is to be in its ledger."""

    def _refuse(self, violations: Iterable[Violation]) -> None:
        for violation in violations:
            raise Broken(violation)

    def forget(self, home: Home) -> None:
        """The store was replaced: what was suspected of it is void, and what lists told it is lost."""
        self._audits.pop(home.fleet_name, None)
        self._shown.pop(home.fleet_name, None)

    def hear(self, line: str) -> None:
        """S10, S14, S15 in the log. Kept until the tick is over: a log call must not raise."""
        self._heard.extend(inert_text("log", line, max_chars=EVENT_MAX_CHARS))
        if CANARY in line:
            self._heard.append(Violation("S10", "log", "holds a secret"))

    # -- after each tick

    def after_tick(self, process: Process, result: TickResult | None) -> None:
        self._ticks += 1
        self._refuse(self._heard)
        fleet = process.fleet
        if fleet is not None and fleet.trail.last.violations and process.is_alive:
            self._own_audit(process, fleet.trail.last)
        if self._world.scenario.is_on_sqlite and self._ticks % SQLITE_JUDGED_EVERY:
            return
        home = process.home
        has_read = result is not None and not result.trouble
        if self._world.switches.holds("A8", self._world.now_s()):
            has_read = False
        # Nor is a reading with a page missing one: what it hid, no fleet could know.
        partial, self._partial = self._partial, self._world.switches.fired["A22"]
        has_read = has_read and partial == self._partial
        snapshot = self._truth(home, has_read=has_read)
        found = audit(snapshot, self._audits.get(home.fleet_name), self._world.scenario.limits)
        self._audits[home.fleet_name] = found
        self._refuse(found.violations)

    def _own_audit(self, process: Process, found: Audit) -> None:
        """The daemon's own audit must never cry without need: it would stop renting."""
        self._refuse(
            replace(violation, text=f"(by {process.name}'s own audit) {violation.text}")
            for violation in found.violations
        )

    def _truth(self, home: Home, *, has_read: bool) -> Snapshot:
        """Our records beside the true list: what the market shows of it now, and no lies."""
        world = self._world
        now_s = world.now_s()
        with home.house.open().read() as tx:
            deployments = tx.deployments()
            leases, open_leases = tx.leases(), tx.open_leases()
            segments = tx.segments()
            if world.scenario.is_on_sqlite:
                self._refuse(of_totals(tx.settled_totals(), segments))
            foreign = tx.foreign_orders(seen_since=world.time.began_at - timedelta(days=60))
        reported = {(order_id, server_id) for order_id, server_id, _ in foreign}
        shown = [
            order for order in world.market.live() if now_s >= max(order.listed_from_s, order.hidden_until_s)
        ]
        orders = OrderList(tuple(map(world.market.held_as, shown)), world.time.at(now_s))
        strange = [order for order in shown if order.key in reported]
        by_nonce = {f"{home.fleet_name}/{lease.lease_id}": lease for lease in leases} if strange else {}
        return Snapshot(
            now=world.time.at(now_s),
            deployments=deployments,
            leases=open_leases,
            attempts={},
            intents=(),
            orders=orders if has_read else None,
            segments=segments,
            closed_leases=tuple(lease for lease in leases if not lease.is_open),
            foreign=frozenset(
                order.key
                for order in strange
                if self.excuses.may_be_foreign(home, order, by_nonce.get(order.nonce))
            ),
        )

    # -- what the fleet was told, and what it made of it

    def heard_list(self, process: Process, listed: OrderList) -> None:
        """Count, for each order, the readings in a row that missed it and could have shown it."""
        shown = {(order.order_id, order.server_id): order for order in listed.orders}
        self._note_shown(process, shown)
        if process.is_renting or not self._leads(process):
            return  # read by the rent protocol, for its own question, or by who writes nothing of it any more
        absences = self._absences.setdefault(process.fleet_name, Counter())
        for order in self._world.market.orders:
            key = order.key
            record = shown.get(key)
            if record is None and not listed.unreadable:
                absences[key] += 1
            elif record is not None:
                absences[key] = ENOUGH if record.is_expired else 0

    @staticmethod
    def _leads(process: Process) -> bool:
        if len(process.home.processes) == 1:
            return True
        with process.home.house.open().read() as tx:
            leader = tx.leadership()
        return leader is None or process.token is None or leader.token == process.token.number

    def _note_shown(self, process: Process, listed: Mapping[tuple[OrderId, ServerId], Order]) -> None:
        noted = self._shown.setdefault(process.fleet_name, set())
        if listed.keys() <= noted:
            return
        for order in self._world.market.orders:
            key = order.key
            record = listed.get(key)
            if record is None or key in noted or order.asked_by != process.fleet_name:
                continue
            if not record.is_expired or self._is_in_doubt(process, order):
                noted.add(key)

    @staticmethod
    def _is_in_doubt(process: Process, order: TrueOrder) -> bool:
        lease_id = LeaseId(order.nonce.removeprefix(f"{process.fleet_name}/"))
        with process.home.house.open().read() as tx:
            lease = tx.lease(lease_id)
        return lease is not None and lease.state is LeaseState.INTENT

    def asked(self, process: Process, request: RentRequest) -> None:
        """S2, before the market can refuse what nobody should have asked for."""
        nonce = dict(request.env).get("CLOREFLEET_NONCE", "")
        self._asked_s[nonce] = self._world.now_s()
        with process.home.house.open().read() as tx:
            lease = tx.lease(LeaseId(nonce.removeprefix(f"{process.fleet_name}/")))
            deployment = None if lease is None else tx.deployment(lease.deployment_id)
            budget = None if deployment is None else deployment.requirement.budget
            self._ceiling[nonce] = None if budget is None else budget.per_day.amount
            self._refuse(of_servers(tx.open_leases()))

    def actions(self, process: Process, actions: Iterable[Action]) -> None:
        """S2, S6: nothing was concluded from less than the protocol asks for."""
        limits, now_s = self._world.scenario.limits, self._world.now_s()
        absences = self._absences.get(process.fleet_name, Counter())
        actions = tuple(actions)
        if not any(isinstance(action, (End, DropRent)) for action in actions):
            return
        with process.home.house.open().read() as tx:
            servers = {lease.lease_id: lease.server_id for lease in tx.leases()}
            accepted = {
                action.lease_id
                for action in actions
                if isinstance(action, DropRent)
                and any(
                    intent.effect is Effect.RENT and intent.state is IntentState.DONE
                    for intent in tx.intents_of(action.lease_id)
                )
            }
        for action in actions:
            if isinstance(action, End):
                key = (action.order_id, servers[action.lease_id])
                self._refuse(at_end(action.order_id, absences[key]))
            elif isinstance(action, DropRent) and process.has_jumped_s < now_s - 7200:
                asked_s = self._asked_s.get(f"{process.fleet_name}/{action.lease_id}")
                if asked_s is not None:
                    waited = timedelta(seconds=now_s - asked_s)
                    is_accepted = action.lease_id in accepted
                    grace = limits.accepted_grace if is_accepted else limits.doubt_grace
                    self._refuse(at_drop(action.lease_id, waited, grace))

    def calls(self, count: int) -> None:
        if count > CALLS_MAX_PER_TICK:
            self._refuse([Violation("S15", "tick", f"{count} requests to the market in one tick")])

    # -- at an effect

    def rent(self, process: Process, request: RentRequest, order: TrueOrder) -> None:
        with process.home.house.open().read() as tx:
            facts = self._rent_facts(tx, process, request, order)
        self._refuse(at_rent(facts))

    def _rent_facts(
        self, tx: Transaction, process: Process, request: RentRequest, order: TrueOrder
    ) -> RentFacts:
        world = self._world
        leases = {f"{process.fleet_name}/{lease.lease_id}": lease for lease in tx.leases()}
        lease = leases.get(order.nonce)
        leader = tx.leadership()
        running = Decimal(0)
        rivals = []
        worst_today = Decimal(0)
        for other in world.market.orders:
            held = leases.get(other.nonce)
            if held is None or lease is None or held.deployment_id != lease.deployment_id:
                continue
            if self.excuses.may_be_foreign(process.home, other, held):
                continue  # what it costs is in no ledger
            worst_today += self._worst_today(process, other, held)
            if not other.is_live or self.excuses.is_excused(process.home, other, held):
                continue
            running += _usd_per_day(other, held)
            if other is not order and held.slot == lease.slot and (_fills(held) or not held.is_open):
                rivals.append(other.order_id)
        return RentFacts(
            lease=lease,
            intents=() if lease is None else tx.intents_of(lease.lease_id),
            token=0 if process.token is None else process.token.number,
            leader=None if leader is None else leader.token,
            approved=request.approved_price,
            rivals=tuple(rivals),
            # Of the moment in which the rent was asked for: a budget that is lowered while the request is on
            # its way is kept by ending what it now forbids.
            ceiling_usd_per_day=self._ceiling.get(order.nonce),
            running_usd_per_day=running,
            worst_today_usd=Decimal(0) if self.excuses.is_spent_today_unsure(process.home) else worst_today,
        )

    def _worst_today(self, process: Process, order: TrueOrder, lease: Lease) -> Decimal:
        """What the order has cost and can still cost on the process's today, to the grain of charging."""
        now_s = self._world.now_s()
        clock = process.clock.now().astimezone(UTC)
        since_midnight_s = (clock - clock.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()
        midnight_s, next_s = now_s - since_midnight_s, now_s - since_midnight_s + _DAY_S
        until_s = next_s if order.ended_s is None else order.ended_s
        if order.is_live and self.excuses.is_excused(process.home, order, lease):
            until_s = now_s
        from_s = max(midnight_s, order.created_s)
        seconds = max(0.0, until_s - from_s - order.waited_s(from_s, min(now_s, until_s)) - 180)
        if seconds <= 0:
            return Decimal(0)
        price = lease.plan.price
        # The ledger values what a coin cost when it was spent; only the least of its rates is certain.
        least_worth = self._world.market.least_rates[price.billed.currency] / price.usd_per_unit
        least = min((amount for _, amount in order.bids if amount), default=order.price.amount)
        # What was bid before a raise may have been less: the cheaper of both is certain as well.
        share = min(Decimal(1), least / order.price.amount)
        cost = _usd_per_day(order, lease) * share * Decimal(seconds) / _DAY_S * min(Decimal(1), least_worth)
        if until_s - order.created_s >= 600 and order.created_s + 600 >= midnight_s:
            cost += price.creation_fee * price.usd_per_unit
        return cost

    def bid(self, process: Process, order: TrueOrder, desired: Rate) -> None:
        with process.home.house.open().read() as tx:
            leases = {f"{process.fleet_name}/{lease.lease_id}": lease for lease in tx.leases()}
            lease, leader = leases.get(order.nonce), tx.leadership()
            intents = () if lease is None else tx.intents_of(lease.lease_id)
            deployment = None if lease is None else tx.deployment(lease.deployment_id)
        running = Decimal(0)
        for other in self._world.market.live():
            held = leases.get(other.nonce)
            if held is None or lease is None or held.deployment_id != lease.deployment_id:
                continue
            if not other.is_duplicate and not self.excuses.is_excused(process.home, other, held):
                running += _usd_per_day(replace(other, price=desired) if other is order else other, held)
        budget = None if deployment is None else deployment.requirement.budget
        # A lower bid spends less, whatever the budget has become meanwhile.
        is_raised = order.price.amount < desired.amount
        facts = BidFacts(
            lease=lease,
            intents=intents,
            order_id=order.order_id,
            desired=desired,
            is_ours=order.asked_by == process.fleet_name,
            token=0 if process.token is None else process.token.number,
            leader=None if leader is None else leader.token,
            ceiling_usd_per_day=budget.per_day.amount if budget is not None and is_raised else None,
            running_usd_per_day=running,
        )
        self._refuse(at_bid(facts))

    def cancel(self, process: Process, order: TrueOrder) -> None:
        with process.home.house.open().read() as tx:
            leader = tx.leadership()
            intents = [
                intent
                for lease in tx.leases()
                if lease.order_id == order.order_id
                for intent in tx.intents_of(lease.lease_id)
            ]
        is_open = any(i.effect is Effect.CANCEL and i.is_in_doubt for i in intents)
        store = process.store
        facts = CancelFacts(
            order_id=order.order_id,
            is_ours=order.asked_by == process.fleet_name or self.excuses.could_be_ours(process, order),
            was_journalled=is_open or (store is not None and store.has_failed),
            token=0 if process.token is None else process.token.number,
            leader=None if leader is None else leader.token,
        )
        self._refuse(at_cancel(facts))

    # -- at the end

    def has_open(self, home: Home) -> bool:
        with home.house.open().read() as tx:
            if tx.open_leases() or tx.open_bills():
                return True
        return any(order.asked_by == home.fleet_name for order in self._world.market.live())

    def why_not_converged(self, home: Home) -> str:
        with home.house.open().read() as tx:
            deployments, leases, leader = tx.deployments(), tx.open_leases(), tx.leadership()
        token = None if leader is None else leader.token
        keys = [each.key_folder.keys for each in home.processes if each.token and each.token.number == token]
        if not keys:
            return f"nobody leads {home.fleet_name}"
        if any(lease.lease_id not in keys[0] for lease in leases):
            return f"{home.fleet_name} is led from a machine without all keys"
        for deployment in deployments:
            mine = [lease for lease in leases if lease.deployment_id == deployment.deployment_id]
            # One that is known not to answer is about to be replaced: that is not where it stays.
            serving = [
                lease for lease in mine if lease.phase is Phase.SERVING and lease.unhealthy_since is None
            ]
            wanted = deployment.replicas if deployment.desired is Desired.RUNNING else 0
            if len(serving) != wanted or len(mine) != wanted:
                phases = ", ".join(str(lease.phase) for lease in mine)
                return (
                    f"{home.fleet_name}/{deployment.deployment_id} wants {wanted}, "
                    f"has [{phases}] ({deployment.note})"
                )
        ours = {o.order_id for o in self._world.market.live() if o.asked_by == home.fleet_name}
        held = {lease.order_id for lease in leases}
        return "" if ours == held else f"orders {ours ^ held} are on one side only"

    def no_old_doubts(self, home: Home) -> None:
        with home.house.open().read() as tx:
            doubtful = tx.doubtful_intents()
        self._refuse(
            Violation("L2", f"intent {each.intent_id}", f"in doubt since {each.created_at}")
            for each in doubtful
        )

    def all_ended(self) -> None:
        for home in self._world.homes:
            live = [o.order_id for o in self._world.market.live() if o.asked_by == home.fleet_name]
            if live:
                self._refuse([Violation("L3", f"orders {live}", "still bill long after the stop")])
            with home.house.open().read() as tx:
                leases, unsettled = tx.open_leases(), tx.open_bills()
            if leases:
                text = f"still open after the stop, {leases[0].state}, {leases[0].phase}"
                self._refuse([Violation("L3", f"lease {leases[0].lease_id}", text)])
            if unsettled:
                numbers = [each.order_id for each in unsettled]
                self._refuse([Violation("S7", f"orders {numbers}", "ended and were never settled")])

    def last_bills(self) -> None:
        """S7 to the last unit, S10 and S14 in all that was kept, and no key of an ended order."""
        self.all_ended()
        for home in self._world.homes:
            with home.house.open().read() as tx:
                self._bills(home, tx)
                events = tx.events(limit=100_000)
                kept = repr((tx.deployments(), tx.leases(), tx.segments(), events))
                keys = sorted(key for folder in self._tidied(home) for key in folder.keys)
                useless = [key for key in keys if self._outlives(home, tx.lease(key))]
            if CANARY in kept:
                self._refuse([Violation("S10", home.fleet_name, "a secret is in the store")])
            for number, event in events:
                subject = f"event {number} {event.name}"
                self._refuse(inert_text(subject, event.text, max_chars=EVENT_MAX_CHARS))
            if useless and not home.has_lost_memory:
                self._refuse([Violation("S10", f"keys {', '.join(useless)}", "outlive their ended orders")])

    def _tidied(self, home: Home) -> list[KeyFolder]:
        """Where useless keys must be gone: a machine that stands by leaves its own as they are until it has
        led for as long as it takes to look for them."""
        if len(home.key_folders) == 1:
            return home.key_folders
        since_s = self._world.now_s() - self._world.scenario.limits.prune_every.total_seconds()
        return [each.key_folder for each in home.processes if each.is_alive and each.leads_since_s < since_s]

    def _outlives(self, home: Home, lease: Lease | None) -> bool:
        """By the clocks that wrote when the lease ended; the last look for keys may be a while ago."""
        limits = self._world.scenario.limits
        looks = [
            process.clock.now() - ago
            for process in home.processes
            for ago in (timedelta(0), limits.prune_every)
        ]
        return lease is None or not any(may_need_key(lease, look, limits) for look in looks)

    def _bills(self, home: Home, tx: Transaction) -> None:
        world = self._world
        now = world.time.at(world.now_s())
        by_lease = {f"{home.fleet_name}/{lease.lease_id}": lease for lease in tx.leases()}
        segments = tx.segments()
        for order in world.market.orders:
            lease = by_lease.get(order.nonce)
            if lease is None or order.asked_by != home.fleet_name:
                continue
            if lease.order_id != order.order_id and (order.is_duplicate or lease.order_id is not None):
                continue  # of two orders that the market made of one request, the lease holds the other
            counted = [each for each in segments if each.lease_id == lease.lease_id]
            is_counted = any(each.cost(now).amount for each in counted)
            was_shown = order.key in self._shown.get(home.fleet_name, ())
            is_excused = not was_shown or self.excuses.may_be_foreign(home, order, lease)
            if is_excused and lease.order_id is None and not is_counted:
                continue  # no list told of it in time; or it was disowned: reported as foreign
            self._refuse(of_bill(order.order_id, counted, world.market.bill(order), now))


def _fills(lease: Lease) -> bool:
    """One that was outbid waits beside its replacement."""
    return (
        lease.state in (LeaseState.INTENT, LeaseState.ORDERED)
        and lease.phase is not Phase.DRAINING
        and lease.outbid_since is None
    )


def _usd_per_day(order: TrueOrder, lease: Lease) -> Decimal:
    """At the approved price at most: a dearer order is S4's matter, and is ended."""
    price = lease.plan.price
    amount = min(order.price.amount, price.billed.amount)
    return amount * (1 + price.fee_percent / 100) * price.usd_per_unit
