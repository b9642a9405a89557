"""The turns of the processes: when each begins, ticks as the daemon's timer would have it, ends, stands by.

A process whose ticks change nothing looks ever more rarely, until the next thing that could happen.
"""

from __future__ import annotations

import traceback
from collections import Counter
from typing import TYPE_CHECKING

from clorefleet.domain.errors import ClorefleetError, LostLeadership
from clorefleet.fleet.action import Explain, NoteAbsence, NoteProgress, ReportForeign
from clorefleet.fleet.audit import Violation
from clorefleet.fleet.loop import TickResult
from clorefleet.simulation.judge import Broken
from clorefleet.simulation.nodes import KeyFolder
from clorefleet.simulation.process import Home, Killed, Process
from clorefleet.store import leadership

if TYPE_CHECKING:
    from clorefleet.simulation.life import World

TICKS_MAX = 6000
"""A life that needs more is a loop (L5)."""
_LONGEST_GAP_S = 3 * 3600.0
_LONGEST_BUSY_GAP_S = 600.0
_LONGEST_TROUBLE_GAP_S = 300.0
_LONGEST_DOUBT_GAP_S = 45.0
_GROWTH, _TROUBLE_GROWTH = 3.5, 1.5
"""By how much the gap grows with each tick that changes nothing, or cannot."""
_UNEVENTFUL = (NoteProgress, Explain, ReportForeign)


class Turns:
    def __init__(self, world: World) -> None:
        self._world = world
        self.ticks = self.eventful_ticks = 0
        self.bunched: Counter[str] = Counter()
        """Ticks that come at once, by process (D5)."""

    def start(self, home: Home, *, offset_s: float, key_folder: KeyFolder | None = None) -> Process:
        """`key_folder`: the first machine's, where none is given."""
        name = f"{home.fleet_name}{len(home.processes) + 1}"
        folder = key_folder or home.key_folders[0]
        process = Process(name, home, self._world, offset_s=offset_s, key_folder=folder)
        home.processes.append(process)
        self._world.agenda.plan_turn(process, self._world.time.now_s)
        return process

    def take(self, process: Process) -> None:
        if not process.is_alive:
            # Where a second machine shares the store, nobody can prove that the other is dead.
            if not self._begin(process):
                self._world.trace(f"{process.name} stands by")
                self._world.agenda.plan_turn(process, self._world.time.now_s + self._look_again_s(process))
                return
            self._world.trace(f"{process.name} leads with token {process.token}")
        self.ticks += 1
        if self.ticks > TICKS_MAX:
            raise Broken(Violation("L5", "fleet", f"more than {TICKS_MAX} ticks in one life"))
        result = self._tick(process)
        if process.is_alive and process.is_told_to_end:
            self._end_well(process)
        if not process.is_alive:
            delay_s = self._world.dice.between(1, 300, "restart", process.name, process.turn)
            delay_s = max(delay_s, self._stays_down_s(process))
            self._world.agenda.plan_turn(process, self._world.time.now_s + delay_s)
            self.call_standby(process)
        else:
            self._world.agenda.plan_turn(process, self._world.time.now_s + self._gap_s(process, result))
        self._world.judge.after_tick(process, result)

    def _stays_down_s(self, process: Process) -> float:
        """The first machine, where its keys are, for as long as another is to take over from it (C3k)."""
        home, now_s = process.home, self._world.now_s()
        down = self._world.switches.holds("C3k", now_s)
        if down is None or len(home.key_folders) == 1 or process.key_folder is not home.key_folders[0]:
            return 0.0
        return down.at_s + down.lasts_s - now_s

    def _look_again_s(self, standby: Process) -> float:
        """While another leads there is nothing to see; when it stops, `call_standby` says so."""
        others = (each for each in standby.home.processes if each is not standby)
        if any(each.is_alive and not each.is_suspended for each in others):
            return _LONGEST_GAP_S
        return self._world.dice.between(30, 300, standby.turn)

    def call_standby(self, silent: Process) -> None:
        for each in silent.home.processes:
            if each is not silent and not each.is_alive:
                self._world.agenda.plan_turn(
                    each, self._world.time.now_s + self._world.dice.between(1, 150, "standby", each.turn)
                )

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
        calls, fired = process.calls, self._world.switches.fired.total()
        try:
            result = fleet.tick(token)
        except Killed as death:
            self._world.trace(f"{process.name} is killed: {death}")
            self.eventful_ticks += 1
            process.end()
            return None
        except LostLeadership:
            self._world.trace(f"{process.name} has lost the leadership")
            self.eventful_ticks += 1
            process.end()
            return None
        except ClorefleetError as error:
            self._world.trace(f"{process.name} tick failed: {error.what[:200]}")
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
        if result.fault:
            raise Broken(Violation("L5", process.name, f"the tick crashed: {result.fault}"))
        self._world.judge.actions(process, result.actions)
        notable = [action for action in result.actions if not isinstance(action, _UNEVENTFUL)]
        for action in notable:
            self._world.trace(f"{process.name} {_told(action)}")
        if notable or result.trouble or self._world.switches.fired.total() > fired:
            self.eventful_ticks += 1
        self._world.judge.calls(process.calls - calls)
        return result

    def _gap_s(self, process: Process, result: TickResult | None) -> float:
        scenario = self._world.scenario
        if self.bunched[process.name]:
            self.bunched[process.name] -= 1
            return 0.01 if self.bunched[process.name] else 3600.0
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
        change_s = self._world.agenda.next_change_s()
        return gap_s if change_s is None else min(gap_s, max(base, change_s - self._world.now_s() + 0.1))

    def _end_well(self, process: Process) -> None:
        if process.token is not None and process.store is not None:
            try:
                leadership.release(process.store, process.token, now=process.clock.now())
            except ClorefleetError:
                self._world.trace(f"{process.name} could not release the leadership")
        self._world.trace(f"{process.name} ends as told")
        process.end()

    def wake(self, home: Home) -> None:
        for process in home.processes:
            if process.is_alive and not process.is_ticking and not process.is_suspended:
                process.uneventful = 0
                self._world.agenda.plan_turn(process, self._world.time.now_s + 0.2)


def _told(action: object) -> str:
    parts = [type(action).__name__]
    for name in ("lease_id", "slot", "order_id", "phase", "attempt", "absent_polls", "settled", "reason"):
        value = getattr(action, name, None)
        if value is not None:
            parts.append(f"{name}={str(value)[:120]}")
    return " ".join(parts)
