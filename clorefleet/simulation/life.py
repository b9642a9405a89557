"""One life: a world on virtual time, from the first wish to the last bill.

First the safety phase: wishes, ticks and incidents, with every invariant judged after each tick and at each
effect. Then the faults stop and the liveness phase asks that the fleet becomes what is wanted, stays so, ends
when told, and that the ledger is the bill. Quiet time is skipped: a process whose ticks change nothing looks
ever more rarely, until the next thing that could happen.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import traceback
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from hashlib import sha256

from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.errors import ClorefleetError, LostLeadership
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.money import Budget, Currency, Rate
from clorefleet.domain.order import OrderList, RentRequest
from clorefleet.domain.plan import Requirement
from clorefleet.fleet.action import Explain, NoteAbsence, NoteProgress, ReportForeign
from clorefleet.fleet.audit import Violation
from clorefleet.fleet.loop import TickResult
from clorefleet.simulation.by_hand import Hand, stop_all
from clorefleet.simulation.choice import IMAGE, Chooser
from clorefleet.simulation.clock import ProcessClock, TrueTime
from clorefleet.simulation.dice import Dice
from clorefleet.simulation.faults import KINDS, Incident, Switches, Way
from clorefleet.simulation.house import MemoryHouse, SqliteHouse
from clorefleet.simulation.judge import Broken, Judge
from clorefleet.simulation.market import Caller, Market, TrueOrder
from clorefleet.simulation.nodes import Nodes
from clorefleet.simulation.planted import Bug
from clorefleet.simulation.process import Home, Killed, Process
from clorefleet.simulation.scenario import DAY_S, RATES, Host, Scenario, Wish, WishKind
from clorefleet.store import leadership

TICKS_MAX = 6000
"""A life that needs more is a loop (L5)."""
CONVERGE_WITHIN_S = 30 * 3600.0
"""Longer than the wait for the next midnight, when a day's budget begins afresh (L1, L4)."""
STOPPED_BY_HAND = 0.3
"""Of all lives: they end by `stop --all` without a store."""
STEADY_FOR_S = 6 * 3600.0
END_WITHIN_S = 2 * 3600.0
_LONGEST_GAP_S = 3 * 3600.0
_LONGEST_BUSY_GAP_S = 600.0
_LONGEST_TROUBLE_GAP_S = 300.0
_GROWTH, _TROUBLE_GROWTH = 3.5, 1.5
"""By how much the gap grows with each tick that changes nothing, or cannot."""
_TIDY_AFTER_S = 1800.0
_BACKUP_EVERY_S = DAY_S
_UNEVENTFUL = (NoteProgress, Explain, ReportForeign)
_LONGEST_DOUBT_GAP_S = 45.0
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
    with _heard(world.judge):
        try:
            world.live()
        except Broken as broken:
            violation = broken.violation
            world.trace(f"broken {violation}")
        finally:
            world.close()
    return world.outcome(violation)


class _Listener(logging.Handler):
    """Hands the log to the judge: what is logged must be as harmless as what is stored."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self._judge = judge

    def emit(self, record: logging.LogRecord) -> None:
        self._judge.hear(record.getMessage())


_NOT_ASKED = ("logThreads", "logProcesses", "logMultiprocessing")
"""What `logging` finds out for each record unless it is told not to, as its documentation advises; nobody
reads it here."""


@contextmanager
def _heard(judge: Judge) -> Iterator[None]:
    logger = logging.getLogger("clorefleet")
    listener = _Listener(judge)
    before = (logger.propagate, logger.level)
    asked = {name: getattr(logging, name) for name in _NOT_ASKED}
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(listener)
    vars(logging).update(dict.fromkeys(_NOT_ASKED, False))
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.propagate, level = before
        logger.setLevel(level)
        vars(logging).update(asked)


class World:
    def __init__(self, scenario: Scenario, bug: Bug | None) -> None:
        self.scenario = scenario
        self.bug = bug
        self.time = TrueTime(scenario.began_at)
        self.dice = Dice(scenario.seed)
        self.choose = Chooser()
        self._hash = sha256()
        self._lines: deque[str] = deque(maxlen=TRACE_LINES_KEPT)
        self.switches = Switches(self.trace)
        self._sequence = itertools.count()
        self._happenings: list[tuple[float, int, Wish | Incident]] = []
        self._turns: list[tuple[float, int, Process | str, int]] = []
        self._changes: list[float] = []
        self._ids = itertools.count(1)
        self._bunched: Counter[str] = Counter()
        self._wishes: dict[tuple[str, str], Wish] = {}
        self._are_faults_on = True
        self.ticks = self.eventful_ticks = 0
        self.market = Market(
            scenario,
            self.time,
            self.dice,
            self.switches,
            self.pass_time,
            self.trace,
            self._judge_rent,
            self._judge_cancel,
            self._judge_list,
            lambda caller, request: self.judge.asked(_as_process(caller), request),
        )
        self.homes = [self._make_home("main", on_sqlite=scenario.is_on_sqlite)]
        self.judge = Judge(self)
        happenings: tuple[Wish | Incident, ...] = (*scenario.wishes, *scenario.incidents)
        for happening in happenings:
            self._expect(happening)

    # -- time

    def now_s(self) -> float:
        return self.time.now_s

    def make_clock(self, offset_s: float) -> ProcessClock:
        return ProcessClock(self.time, self.pass_time, offset_s=offset_s)

    def pass_time(self, seconds: float) -> None:
        """Time goes on inside a tick: the user and the world do not wait for it."""
        self.time.now_s += seconds
        while self._happenings and self._happenings[0][0] <= self.time.now_s:
            if not self._is_for_between_ticks(self._happenings[0][2]):
                break
            self._happen(heapq.heappop(self._happenings)[2])

    @staticmethod
    def _is_for_between_ticks(happening: Wish | Incident) -> bool:
        return isinstance(happening, Wish) or happening.fault not in ("E4", "E5", "E6")

    def note_change(self, at_s: float) -> None:
        """Something can be seen from `at_s` on that could not before."""
        heapq.heappush(self._changes, at_s)

    def _expect(self, happening: Wish | Incident) -> None:
        heapq.heappush(self._happenings, (happening.at_s, next(self._sequence), happening))

    def _plan_turn(self, process: Process, at_s: float) -> None:
        process.turn += 1
        heapq.heappush(self._turns, (at_s, next(self._sequence), process, process.turn))

    def _plan_errand(self, errand: str, at_s: float) -> None:
        heapq.heappush(self._turns, (at_s, next(self._sequence), errand, 0))

    def _has_errand(self, errand: str) -> bool:
        return any(turn[2] == errand for turn in self._turns)

    def run_until(self, end_s: float) -> None:
        for _ in self._steps(end_s):
            pass

    def _steps(self, end_s: float) -> Iterator[None]:
        """All that happens until `end_s`, one thing at a time."""
        while True:
            happening_s = self._happenings[0][0] if self._happenings else float("inf")
            turn_s = self._turns[0][0] if self._turns else float("inf")
            if min(happening_s, turn_s) > end_s:
                break
            self.time.now_s = max(self.time.now_s, min(happening_s, turn_s))
            if happening_s <= turn_s:
                self._happen(heapq.heappop(self._happenings)[2])
            else:
                _, _, who, number = heapq.heappop(self._turns)
                if isinstance(who, str):
                    self._run_errand(who)
                elif who.is_suspended:
                    self._plan_turn(who, self.time.now_s + 60)
                elif number == who.turn:
                    self._take_turn(who)
            yield
        self.time.now_s = max(self.time.now_s, end_s)

    def suspend(self, process: Process, seconds: float) -> None:
        """The machine sleeps in the middle of a tick; everybody else goes on."""
        self.trace(f"{process.name} is suspended for {seconds:.0f} s")
        process.is_suspended = True
        self._call_standby(process)
        self.run_until(self.time.now_s + seconds)
        process.is_suspended = False
        self.trace(f"{process.name} goes on")
        if not process.is_alive:
            raise Killed("while it was suspended")

    # -- the trace

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
            ticks=self.ticks,
            eventful_ticks=self.eventful_ticks,
            fired=self.switches.fired,
            simulated_s=self.time.now_s,
            is_on_sqlite=self.scenario.is_on_sqlite,
            orders=len(self.market.orders),
        )

    def close(self) -> None:
        for home in self.homes:
            if isinstance(home.house, SqliteHouse):
                home.house.close()

    # -- a whole life

    def live(self) -> None:
        self._start(self.homes[0], offset_s=self.scenario.clock_offset_s)
        self._plan_errand("back up", self.scenario.ends_s / 5)
        self._plan_errand("tidy", 6 * 3600)
        self.run_until(self.scenario.ends_s)
        self._calm()
        self._converge()
        self._stay()
        self._stop()
        self.judge.last_bills()

    def _calm(self) -> None:
        """No more faults; the user mends what only a user can mend."""
        self.trace("the faults stop")
        self._are_faults_on = False
        self.switches.calm()
        self._happenings.clear()
        if self._has_errand("restore"):
            self._run_errand("restore")  # what is torn is mended first
        self._turns = [turn for turn in self._turns if turn[2] != "restore"]
        heapq.heapify(self._turns)
        self._bunched.clear()
        self.market.prices.clear()
        self.market.taken_until_s.clear()
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
            self._tidy(home)
            self._wish_again(home)
            for deployment in self._deployments(home):
                if deployment.desired is Desired.RUNNING:
                    self._put(home, replace(deployment, requirement=_requirement(60, spot=False)))
            for process in home.processes:
                self._plan_turn(process, self.time.now_s + 1)

    def _converge(self) -> None:
        deadline_s = self.time.now_s + CONVERGE_WITHIN_S
        self.run_until(self.time.now_s + 120)
        for _ in self._steps(deadline_s):
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
        self.run_until(self.time.now_s + STEADY_FOR_S)
        made = len(self.market.orders) - orders
        lost = self.switches.fired["A17 time up"] - lost
        if made > lost:
            raise Broken(Violation("L1", "fleet", f"{made} servers were rented although all was well"))
        for home in self.homes:
            self.judge.no_old_doubts(home)

    def _stop(self) -> None:
        if self.dice.unit("stop all") < STOPPED_BY_HAND:
            self._stop_by_hand()
        for home in self.homes:
            for deployment in self._deployments(home):
                self._put(home, replace(deployment, desired=Desired.STOPPED))
            self._wake(home)
        for _ in self._steps(self.time.now_s + END_WITHIN_S):
            if not any(self.judge.has_open(home) for home in self.homes):
                return
        self.judge.all_ended()

    def _stop_by_hand(self) -> None:
        """The user ends all spending while nothing of the fleet can run (L6); it finds out afterwards."""
        self.trace("all is stopped by hand")
        for home in self.homes:
            for process in home.processes:
                process.end()
                self._plan_turn(process, self.time.now_s + 3600)
        for violation in stop_all(self.market, self.make_clock(0), self.trace):
            raise Broken(violation)

    # -- processes

    def _make_home(self, name: str, *, on_sqlite: bool) -> Home:
        house = SqliteHouse() if on_sqlite else MemoryHouse()
        return Home(name, house, Nodes(self.market, self.note_change))

    def _start(self, home: Home, *, offset_s: float) -> Process:
        process = Process(f"{home.fleet_name}{len(home.processes) + 1}", home, self, offset_s=offset_s)
        home.processes.append(process)
        self._plan_turn(process, self.time.now_s)
        return process

    def _take_turn(self, process: Process) -> None:
        if not process.is_alive:
            # Where a second machine shares the store, nobody can prove that the other is dead.
            if not self._begin(process):
                self.trace(f"{process.name} stands by")
                self._plan_turn(process, self.time.now_s + self._look_again_s(process))
                return
            self.trace(f"{process.name} leads with token {process.token}")
        self.ticks += 1
        if self.ticks > TICKS_MAX:
            raise Broken(Violation("L5", "fleet", f"more than {TICKS_MAX} ticks in one life"))
        result = self._tick(process)
        if process.is_alive and process.is_told_to_end:
            self._end_well(process)
        if not process.is_alive:
            delay_s = self.dice.between(1, 300, "restart", process.name, process.turn)
            self._plan_turn(process, self.time.now_s + delay_s)
            self._call_standby(process)
        else:
            self._plan_turn(process, self.time.now_s + self._gap_s(process, result))
        self.judge.after_tick(process, result)

    def _look_again_s(self, standby: Process) -> float:
        """While another leads there is nothing to see; when it stops, `_call_standby` says so."""
        others = (each for each in standby.home.processes if each is not standby)
        if any(each.is_alive and not each.is_suspended for each in others):
            return _LONGEST_GAP_S
        return self.dice.between(30, 300, standby.turn)

    def _call_standby(self, silent: Process) -> None:
        for each in silent.home.processes:
            if each is not silent and not each.is_alive:
                self._plan_turn(each, self.time.now_s + self.dice.between(30, 300, "standby", each.turn))

    @staticmethod
    def _begin(process: Process) -> bool:
        for other in process.home.processes:
            if other is not process:
                other.beat()
        try:
            return process.begin(force=len(process.home.processes) == 1)
        except ClorefleetError:
            return False

    def _tick(self, process: Process) -> TickResult | None:
        """As the daemon's timer does it; None when it failed or died."""
        fleet, token, store = process.fleet, process.token, process.store
        if fleet is None or token is None or store is None:
            return None
        process.is_ticking = True
        calls, fired = process.calls, self.switches.fired.total()
        try:
            leadership.renew(store, token, now=process.clock.now())
            result = fleet.tick(token)
        except Killed as death:
            self.trace(f"{process.name} is killed: {death}")
            self.eventful_ticks += 1
            process.end()
            return None
        except LostLeadership:
            self.trace(f"{process.name} has lost the leadership")
            self.eventful_ticks += 1
            process.end()
            return None
        except ClorefleetError as error:
            self.trace(f"{process.name} tick failed: {error.what[:200]}")
            self.eventful_ticks += 1
            return None
        except Broken:
            raise
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} at {where.name}:{where.lineno}"
            raise Broken(Violation("L5", process.name, f"the tick crashed: {text}")) from error
        finally:
            process.is_ticking = False
        self.judge.actions(process, result.actions)
        notable = [action for action in result.actions if not isinstance(action, _UNEVENTFUL)]
        for action in notable:
            self.trace(f"{process.name} {_told(action)}")
        if notable or result.trouble or self.switches.fired.total() > fired:
            self.eventful_ticks += 1
        self.judge.calls(process.calls - calls)
        return result

    def _gap_s(self, process: Process, result: TickResult | None) -> float:
        scenario = self.scenario
        if self._bunched[process.name]:
            self._bunched[process.name] -= 1
            return 0.01 if self._bunched[process.name] else 3600.0
        if result is None or result.trouble:
            # What holds for a while is met some times, and not at each tick of that while.
            process.troubled += 1
            return min(scenario.busy_s * _TROUBLE_GROWTH ** (process.troubled - 1), _LONGEST_TROUBLE_GAP_S)
        process.troubled = 0
        if any(not isinstance(action, (*_UNEVENTFUL, NoteAbsence)) for action in result.actions):
            process.uneventful = 0
            return scenario.busy_s
        process.uneventful += 1
        base, most = (
            (scenario.busy_s, _LONGEST_BUSY_GAP_S) if result.is_busy else (scenario.quiet_s, _LONGEST_GAP_S)
        )
        if any(isinstance(action, NoteAbsence) for action in result.actions):
            most = _LONGEST_DOUBT_GAP_S
        gap_s = min(base * _GROWTH**process.uneventful, most)
        now_s = self.time.now_s
        while self._changes and self._changes[0] <= now_s:
            heapq.heappop(self._changes)
        if self._changes:
            gap_s = min(gap_s, max(base, self._changes[0] - now_s + 0.1))
        return gap_s

    def _end_well(self, process: Process) -> None:
        if process.token is not None and process.store is not None:
            try:
                leadership.release(process.store, process.token, now=process.clock.now())
            except ClorefleetError:
                self.trace(f"{process.name} could not release the leadership")
        self.trace(f"{process.name} ends as told")
        process.end()

    def _wake(self, home: Home) -> None:
        for process in home.processes:
            if process.is_alive and not process.is_ticking and not process.is_suspended:
                process.uneventful = 0
                self._plan_turn(process, self.time.now_s + 0.2)

    # -- what the user does

    def _deployments(self, home: Home) -> tuple[Deployment, ...]:
        with home.house.open().read() as tx:
            return tx.deployments()

    def _put(self, home: Home, deployment: Deployment) -> None:
        with home.house.open().write() as tx:
            tx.put_deployment(deployment)

    def _wish(self, home: Home, wish: Wish) -> None:
        self.trace(f"wish {wish}")
        if wish.kind is not WishKind.STOP:
            self._wishes[home.fleet_name, wish.deployment] = wish
        else:
            self._wishes.pop((home.fleet_name, wish.deployment), None)
        store = home.house.open()
        now = home.processes[0].clock.now()
        with store.write() as tx:
            current = tx.deployment(DeploymentId(wish.deployment))
            if current is None:
                if wish.kind in (WishKind.STOP, WishKind.ORDER_BY_HAND):
                    return
                current = Deployment(
                    DeploymentId(wish.deployment),
                    _requirement(wish.budget_usd_per_day, spot=wish.spot),
                    wish.replicas,
                    Desired.RUNNING,
                    now,
                )
            match wish.kind:
                case WishKind.STOP:
                    current = replace(current, desired=Desired.STOPPED)
                case WishKind.SCALE:
                    current = replace(current, replicas=wish.replicas)
                case WishKind.BUDGET:
                    current = replace(
                        current, requirement=_requirement(wish.budget_usd_per_day, spot=wish.spot)
                    )
                case _:
                    current = replace(
                        current,
                        desired=Desired.RUNNING,
                        replicas=wish.replicas,
                        requirement=_requirement(wish.budget_usd_per_day, spot=wish.spot),
                        attempts_since=now,
                        has_given_up=False,
                        note="",
                    )
            tx.put_deployment(current)
        self._wake(home)

    def _wish_again(self, home: Home) -> None:
        """The user sees what is gone, has given up, or runs although she stopped it (a restored store knows
        nothing of that), and says it once more."""
        for deployment in self._deployments(home):
            if (home.fleet_name, deployment.deployment_id) not in self._wishes:
                self._put(home, replace(deployment, desired=Desired.STOPPED))
        for (fleet_name, _), wish in sorted(self._wishes.items()):
            if fleet_name == home.fleet_name:
                self._wish(home, replace(wish, kind=WishKind.DEPLOY, budget_usd_per_day=60))

    def _tidy(self, home: Home) -> None:
        """The user looks: says go on where renting was stopped, and ends by hand what `status` reports as
        foreign and she knows to be clorefleet's."""
        with home.house.open().write() as tx:
            guard = tx.guard()
            if guard.is_stopped:
                now = home.processes[0].clock.now()
                tx.put_guard(replace(guard, stopped_at=None, stopped_because="", resumed_at=now))
                self.trace(f"renting goes on, it was stopped: {guard.stopped_because}")
        with home.house.open().read() as tx:
            leases = {f"{home.fleet_name}/{lease.lease_id}": lease for lease in tx.leases()}
        for order in self.market.live():
            if order.asked_by != home.fleet_name:
                continue
            if self.judge.may_be_foreign(home, order, leases.get(order.nonce)):
                self.market.end(order, self.time.now_s, "ended by the user's hand")

    def _order_by_hand(self, arg: float) -> None:
        free = [host for host in self.market.hosts() if self.market.is_free(host)]
        if free:
            host = free[int(arg * len(free))]
            price = self.market.price_of(host, is_spot=False)
            if price is not None:
                self.switches.note("B8")
                self.market.make_order(
                    host,
                    price=Rate.per_day(price, host.currency),
                    is_spot=False,
                    image=IMAGE if arg * 10 % 1 < 0.5 else "cloreai/jupyter",
                    asked_by="user",
                    nonce="",
                )

    # -- what happens to the world

    def _happen(self, happening: Wish | Incident) -> None:
        if isinstance(happening, Wish):
            self._wish(self.homes[0], happening)
            return
        self.trace(
            f"incident {happening.fault} {happening.count} {happening.lasts_s:.0f} {happening.arg:.3f}"
        )
        if KINDS[happening.fault].way is not Way.ONCE:
            self.switches.throw(happening)
            if happening.lasts_s:
                self.note_change(happening.at_s + happening.lasts_s)
        self._strike(happening)

    def _strike(self, incident: Incident) -> None:
        """What an incident does to the world by itself."""
        home = self.homes[0]
        now_s = self.time.now_s
        mine = [order for order in self.market.live() if order.asked_by != "user"]
        match incident.fault:
            case "A9v" if mine:
                order = mine[int(incident.arg * len(mine))]
                order.hidden_until_s = now_s + incident.lasts_s
                self.switches.note("A9v")
            case "A17" if mine:
                self.switches.note("A17")
                self.market.end(mine[int(incident.arg * len(mine))], now_s, "the host ended it")
            case "B1":
                if incident.arg < 0.5:
                    for order in mine:
                        self.switches.note("B1")
                        self.market.end(order, now_s, "the wallet is empty")
            case "B3":
                currency = (Currency.CLORE, Currency.BITCOIN)[int(incident.arg * 2)]
                factor = Decimal(10) if incident.arg * 4 % 1 < 0.5 else Decimal("0.1")
                self.market.rates[currency] = RATES[currency] * factor
                self.switches.note("B3")
            case "B8":
                self._order_by_hand(incident.arg)
            case "B9":
                running = [d for d in self._deployments(home) if d.desired is Desired.RUNNING]
                if running:
                    self.switches.note("B9")
                    self._put(home, replace(running[0], requirement=_requirement(1, spot=False)))
            case "C3" if len(home.processes) == 1:
                self.switches.note("C3")
                self._start(home, offset_s=(incident.arg - 0.5) * 60)
            case "C4" if len(self.homes) == 1:
                self.switches.note("C4")
                other = self._make_home("other", on_sqlite=False)
                self.homes.append(other)
                self._start(other, offset_s=0)
                self._wish(other, Wish(now_s, WishKind.DEPLOY, "other", 2, 14))
            case "D1":
                self._jump(home, incident.arg)
            case "D3":
                for process in home.processes:
                    process.clock.stalled_at_s = now_s
                self.switches.note("D3")
                self._plan_errand("stall ends", now_s + incident.lasts_s)
            case "D5":
                self.switches.note("D5")
                self._bunched[home.processes[0].name] = 4
            case "E4":
                for process in home.processes:
                    if process.store is not None:
                        process.store.is_torn = True
                self._plan_errand("restore", now_s + 1800 * incident.arg)
            case "E5":
                self.switches.note("E5")
                self._run_errand("restore")
            case "E6":
                self.switches.note("E6")
                self._lose_memory(home)
                home.house.delete()
            case "F14":
                spot = [order for order in mine if order.is_spot]
                if spot:
                    self.switches.note("F14")
                    order = spot[int(incident.arg * len(spot))]
                    self.market.end(order, now_s, "outbid")
                    self.market.taken_until_s[order.host.server_id] = now_s + 3600
            case _:
                pass

    def _jump(self, home: Home, arg: float) -> None:
        jumps = (3600.0, -3600.0, 86_400.0, -86_400.0, 900.0, -900.0)
        for process in home.processes:
            process.clock.offset_s += jumps[int(arg * len(jumps))]
            process.has_jumped_s = self.time.now_s
        self.switches.note("D1")

    def _run_errand(self, errand: str) -> None:
        home = self.homes[0]
        match errand:
            case "back up":
                home.house.back_up()
                self._plan_errand("back up", self.time.now_s + _BACKUP_EVERY_S)
            case "tidy":
                for each in self.homes:
                    self._tidy(each)
                self._plan_errand("tidy", self.time.now_s + 6 * 3600)
            case "tidy once":
                self._tidy(home)
                for wish in [w for (name, _), w in self._wishes.items() if name == home.fleet_name]:
                    self._wish(home, replace(wish, kind=WishKind.DEPLOY))
            case "restore":
                self._lose_memory(home)
                home.house.restore()
            case "stall ends":
                for process in home.processes:
                    process.clock.stalled_at_s = None

    def _lose_memory(self, home: Home) -> None:
        """The store is replaced: nobody may have it open."""
        home.has_lost_memory = True
        self.judge.forget(home)
        for process in home.processes:
            process.end()
            self._plan_turn(process, self.time.now_s + 60)
        self._plan_errand("tidy once", self.time.now_s + _TIDY_AFTER_S)

    # -- effects, judged

    def _judge_rent(self, caller: Caller, request: RentRequest, order: TrueOrder) -> None:
        self.judge.rent(_as_process(caller), request, order)

    def _judge_cancel(self, caller: Caller, order: TrueOrder) -> None:
        if not isinstance(caller, Hand):
            self.judge.cancel(_as_process(caller), order)

    def _judge_list(self, caller: Caller, listed: OrderList) -> None:
        if not isinstance(caller, Hand):
            self.judge.heard_list(_as_process(caller), listed)


def _as_process(caller: Caller) -> Process:
    if not isinstance(caller, Process):
        raise TypeError("only processes rent and cancel")
    return caller


def _requirement(usd_per_day: int, *, spot: bool) -> Requirement:
    return Requirement("simulated", Budget(Rate.per_day(usd_per_day)), spot=spot)


def _told(action: object) -> str:
    parts = [type(action).__name__]
    for name in ("lease_id", "slot", "order_id", "phase", "attempt", "absent_polls", "settled", "reason"):
        value = getattr(action, name, None)
        if value is not None:
            parts.append(f"{name}={str(value)[:120]}")
    return " ".join(parts)
