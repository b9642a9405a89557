"""One life: a world on virtual time, from the first wish to the last bill.

First the safety phase: wishes, ticks and incidents, with every invariant judged after each tick and at each
effect. Then the faults stop and the liveness phase asks that the fleet becomes what is wanted, stays so, ends
when told, and that the ledger is the bill.

`World` holds the parts together: the `Agenda` of what happens when, the `Turns` of the processes, the `User`,
the `Accidents`, the `Market` and the `Judge`.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256

from clorefleet.domain.money import Currency, Rate
from clorefleet.domain.order import OrderList, RentRequest
from clorefleet.fleet.audit import Violation
from clorefleet.simulation.accidents import Accidents
from clorefleet.simulation.agenda import Agenda
from clorefleet.simulation.by_hand import FAULTS, Hand, stop_all
from clorefleet.simulation.choice import Chooser
from clorefleet.simulation.clock import ProcessClock, TrueTime
from clorefleet.simulation.dice import Dice
from clorefleet.simulation.faults import KINDS, Incident, Switches, Way
from clorefleet.simulation.house import MemoryHouse, SqliteHouse
from clorefleet.simulation.judge import Broken, Judge
from clorefleet.simulation.listening import heard
from clorefleet.simulation.market import Caller, Market, TrueOrder
from clorefleet.simulation.nodes import KeyFolder, Nodes
from clorefleet.simulation.planted import HARMLESS, Bug
from clorefleet.simulation.process import Home, Killed, Process
from clorefleet.simulation.scenario import DAY_S, RATES, Host, Scenario, Wish
from clorefleet.simulation.turns import Turns
from clorefleet.simulation.user import User

CONVERGE_WITHIN_S = 30 * 3600.0
"""Longer than the wait for the next midnight, when a day's budget begins afresh (L1, L4)."""
STOPPED_BY_HAND = 0.3
"""Of all lives: they end by `stop --all` without a store."""
FAULTY_BY_HAND = 0.4
"""Of those, in which one of its faults strikes meanwhile."""
STEADY_FOR_S = 6 * 3600.0
END_WITHIN_S = 2 * 3600.0
TRACE_LINES_KEPT = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one life came to."""

    seed: int
    trace_hash: str
    violation: Violation | None
    last_lines: tuple[str, ...]
    ticks: int
    eventful_ticks: int
    fired: Counter[str]
    simulated_s: float
    is_on_sqlite: bool
    orders: int

    @property
    def faults(self) -> int:
        """Distinct strikes: details such as the boundary of a kill are not counted again."""
        return sum(count for fault, count in self.fired.items() if fault in KINDS)


def live(scenario: Scenario, bug: Bug | None = None) -> Outcome:
    """Live one life to its end or to its first violation."""
    world = World(scenario, bug)
    violation = None
    with heard(world.judge):
        try:
            world.live()
        except Broken as broken:
            violation = broken.violation
            world.trace(f"broken {violation}")
        finally:
            world.close()
    return world.outcome(violation)


class World:
    def __init__(self, scenario: Scenario, bug: Bug | None) -> None:
        self.scenario = scenario
        self.bug = bug
        self.time = TrueTime(scenario.began_at)
        self.dice = Dice(scenario.seed)
        self.choose = Chooser()
        self._hash = sha256()
        self._lines: deque[str] = deque(maxlen=TRACE_LINES_KEPT)
        self._ids = itertools.count(1)
        self.switches = Switches(self.trace)
        self.user = User(self)
        self.turns = Turns(self)
        self._accidents = Accidents(self)
        self.agenda = Agenda(
            self.time,
            happen=self._happen,
            take_turn=self.turns.take,
            run_errand=self._accidents.run_errand,
        )
        self.market = Market(
            scenario,
            self.time,
            self.dice,
            self.switches,
            self.agenda.pass_time,
            self.trace,
            self._judge_rent,
            self._judge_cancel,
            self._judge_list,
            lambda caller, request: self.judge.asked(_as_process(caller), request),
            self._judge_bid,
        )
        self.homes = [self.make_home("main", on_sqlite=scenario.is_on_sqlite)]
        self.judge = Judge(self)
        happenings: tuple[Wish | Incident, ...] = (*scenario.wishes, *scenario.incidents)
        for happening in happenings:
            self.agenda.expect(happening)

    # -- what its parts need of it

    def now_s(self) -> float:
        return self.time.now_s

    def make_clock(self, offset_s: float) -> ProcessClock:
        return ProcessClock(self.time, self.agenda.pass_time, offset_s=offset_s)

    def make_home(self, name: str, *, on_sqlite: bool) -> Home:
        house = SqliteHouse() if on_sqlite else MemoryHouse()
        return Home(name, house, Nodes(self.market, self.agenda.note_change), [KeyFolder(name)])

    def suspend(self, process: Process, seconds: float) -> None:
        """The machine sleeps in the middle of a tick; everybody else goes on."""
        self.trace(f"{process.name} is suspended for {seconds:.0f} s")
        process.is_suspended = True
        self.turns.call_standby(process)
        self.agenda.run_until(self.time.now_s + seconds)
        process.is_suspended = False
        self.trace(f"{process.name} goes on")
        if not process.is_alive:
            raise Killed("while it was suspended")

    def trace(self, line: str) -> None:
        full = f"{self.time.now_s:.3f} {line}"
        self._hash.update(full.encode("utf-8", "replace"))
        self._lines.append(full)

    def new_id(self) -> str:
        return f"l{next(self._ids)}"

    def outcome(self, violation: Violation | None) -> Outcome:
        return Outcome(
            seed=self.scenario.seed,
            trace_hash=self._hash.hexdigest()[:16],
            violation=violation,
            last_lines=tuple(self._lines),
            ticks=self.turns.ticks,
            eventful_ticks=self.turns.eventful_ticks,
            fired=self.switches.fired,
            simulated_s=self.time.now_s,
            is_on_sqlite=self.scenario.is_on_sqlite,
            orders=len(self.market.orders),
        )

    def close(self) -> None:
        for home in self.homes:
            if isinstance(home.house, SqliteHouse):
                home.house.close()

    def _happen(self, happening: Wish | Incident) -> None:
        if isinstance(happening, Wish):
            self.user.wish(self.homes[0], happening)
            return
        self.trace(
            f"incident {happening.fault} {happening.count} {happening.lasts_s:.0f} {happening.arg:.3f}"
        )
        if KINDS[happening.fault].way is not Way.ONCE:
            self.switches.throw(happening)
            if happening.lasts_s:
                self.agenda.note_change(happening.at_s + happening.lasts_s)
        self._accidents.strike(happening)

    # -- a whole life

    def live(self) -> None:
        self.turns.start(self.homes[0], offset_s=self.scenario.clock_offset_s)
        self.agenda.plan_errand("back up", self.scenario.ends_s / 5)
        self.agenda.plan_errand("tidy", 6 * 3600)
        self.agenda.run_until(self.scenario.ends_s)
        self._calm()
        self._converge()
        self._stay()
        self._stop()
        self.judge.last_bills()

    def _calm(self) -> None:
        """No more faults; the user mends what only a user can mend."""
        self.trace("the faults stop")
        self.switches.calm()
        self.agenda.drop_happenings()
        if self.agenda.has_errand("restore"):
            self._accidents.run_errand("restore")  # what is torn is mended first
        self.agenda.drop_errand("restore")
        self.turns.bunched.clear()
        self.market.prices.clear()
        self.market.taken_until_s.clear()
        self.market.end_rivals(all_of_them=True)
        self.market.rates = dict(RATES)
        self.market.extra_hosts = tuple(
            Host(900 + number, Currency.USD, Decimal("1.1"), None, 60 * DAY_S, 30, 60, 30)
            for number in range(14)
        )
        for order in self.market.orders:
            order.listed_from_s = order.hidden_until_s = 0
        for home in self.homes:
            for process in home.processes:
                process.clock.stalled_at_s = None
                if process.store is not None:
                    process.store.is_torn = False
                process.deaths_to_come = 0
            self.user.tidy(home)
            self.user.wish_again(home)
            self.user.raise_budgets(home)
            for process in home.processes:
                self.agenda.plan_turn(process, self.time.now_s + 1)

    def _converge(self) -> None:
        deadline_s = self.time.now_s + CONVERGE_WITHIN_S
        self.agenda.run_until(self.time.now_s + 120)
        for _ in self.agenda.steps(deadline_s):
            if all(self.judge.why_not_converged(home) == "" for home in self.homes):
                return
        why = "; ".join(filter(None, map(self.judge.why_not_converged, self.homes)))
        if why:
            raise Broken(
                Violation("L1", "fleet", f"not what is wanted after {CONVERGE_WITHIN_S:.0f} s: {why}")
            )

    def _stay(self) -> None:
        orders = len(self.market.orders)
        lost = self.switches.fired["A17 time up"]
        self.agenda.run_until(self.time.now_s + STEADY_FOR_S)
        # A host that is not what it says is given back: the fleet cannot know before.
        made = sum(order.host.is_honest for order in self.market.orders[orders:])
        lost = self.switches.fired["A17 time up"] - lost
        if made > lost:
            raise Broken(Violation("L1", "fleet", f"{made} servers were rented although all was well"))
        for home in self.homes:
            self.judge.no_old_doubts(home)

    def _stop(self) -> None:
        if self.dice.unit("stop all") < STOPPED_BY_HAND:
            self._stop_by_hand()
        for home in self.homes:
            self.user.stop(home)
        for _ in self.agenda.steps(self.time.now_s + END_WITHIN_S):
            if not any(self.judge.has_open(home) for home in self.homes):
                return
        self.judge.all_ended()

    def _stop_by_hand(self) -> None:
        """The user ends all spending while nothing of the fleet can run (L6); it finds out afterwards."""
        self.trace("all is stopped by hand")
        for home in self.homes:
            for process in home.processes:
                process.end()
                self.agenda.plan_turn(process, self.time.now_s + 3600)
        for fault, count in FAULTS:
            if self.dice.unit("stop all", fault) < FAULTY_BY_HAND:
                self.switches.throw(Incident(self.time.now_s, fault, count))
        edge = HARMLESS.hand if self.bug is None else self.bug.hand
        for violation in stop_all(self.market, self.make_clock(0), self.trace, edge=edge):
            raise Broken(violation)
        self.switches.calm()

    # -- effects, judged

    def _judge_rent(self, caller: Caller, request: RentRequest, order: TrueOrder) -> None:
        self.judge.rent(_as_process(caller), request, order)

    def _judge_cancel(self, caller: Caller, order: TrueOrder) -> None:
        if not isinstance(caller, Hand):
            self.judge.cancel(_as_process(caller), order)

    def _judge_bid(self, caller: Caller, order: TrueOrder, desired: Rate) -> None:
        self.judge.bid(_as_process(caller), order, desired)

    def _judge_list(self, caller: Caller, listed: OrderList) -> None:
        if not isinstance(caller, Hand):
            self.judge.heard_list(_as_process(caller), listed)


def _as_process(caller: Caller) -> Process:
    if not isinstance(caller, Process):
        raise TypeError("only processes rent and cancel")
    return caller
