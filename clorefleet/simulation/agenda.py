"""What is to happen when, on virtual time: wishes and incidents, turns of processes, errands of the user.

Quiet time is skipped: from one thing that happens to the next.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator

from clorefleet.simulation.clock import TrueTime
from clorefleet.simulation.faults import Incident
from clorefleet.simulation.process import Process
from clorefleet.simulation.scenario import Wish


class Agenda:
    def __init__(
        self,
        time: TrueTime,
        *,
        happen: Callable[[Wish | Incident], None],
        take_turn: Callable[[Process], None],
        run_errand: Callable[[str], None],
    ) -> None:
        self._time = time
        self._happen, self._take_turn, self._run_errand = happen, take_turn, run_errand
        self._sequence = itertools.count()
        self._happenings: list[tuple[float, int, Wish | Incident]] = []
        self._turns: list[tuple[float, int, Process | str, int]] = []
        self._changes: list[float] = []

    # -- what is to come

    def expect(self, happening: Wish | Incident) -> None:
        heapq.heappush(self._happenings, (happening.at_s, next(self._sequence), happening))

    def plan_turn(self, process: Process, at_s: float) -> None:
        process.turn += 1
        heapq.heappush(self._turns, (at_s, next(self._sequence), process, process.turn))

    def plan_errand(self, errand: str, at_s: float) -> None:
        heapq.heappush(self._turns, (at_s, next(self._sequence), errand, 0))

    def has_errand(self, errand: str) -> bool:
        return any(turn[2] == errand for turn in self._turns)

    def drop_errand(self, errand: str) -> None:
        self._turns = [turn for turn in self._turns if turn[2] != errand]
        heapq.heapify(self._turns)

    def drop_happenings(self) -> None:
        self._happenings.clear()

    def note_change(self, at_s: float) -> None:
        """Something can be seen from `at_s` on that could not before."""
        heapq.heappush(self._changes, at_s)

    def next_change_s(self) -> float | None:
        """When something can be seen next that could not be before, as far as is known."""
        while self._changes and self._changes[0] <= self._time.now_s:
            heapq.heappop(self._changes)
        return self._changes[0] if self._changes else None

    # -- time goes on

    def pass_time(self, seconds: float) -> None:
        """Time goes on inside a tick: the user and the world do not wait for it."""
        self._time.now_s += seconds
        while self._happenings and self._happenings[0][0] <= self._time.now_s:
            if not _is_for_between_ticks(self._happenings[0][2]):
                break
            self._happen(heapq.heappop(self._happenings)[2])

    def run_until(self, end_s: float) -> None:
        for _ in self.steps(end_s):
            pass

    def steps(self, end_s: float) -> Iterator[None]:
        """All that happens until `end_s`, one thing at a time."""
        while True:
            happening_s = self._happenings[0][0] if self._happenings else float("inf")
            turn_s = self._turns[0][0] if self._turns else float("inf")
            if min(happening_s, turn_s) > end_s:
                break
            self._time.now_s = max(self._time.now_s, min(happening_s, turn_s))
            if happening_s <= turn_s:
                self._happen(heapq.heappop(self._happenings)[2])
            else:
                _, _, who, number = heapq.heappop(self._turns)
                if isinstance(who, str):
                    self._run_errand(who)
                elif who.is_suspended:
                    self.plan_turn(who, self._time.now_s + 60)
                elif number == who.turn:
                    self._take_turn(who)
            yield
        self._time.now_s = max(self._time.now_s, end_s)


def _is_for_between_ticks(happening: Wish | Incident) -> bool:
    return isinstance(happening, Wish) or happening.fault not in ("E4", "E5", "E6")
