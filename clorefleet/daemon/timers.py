"""When what the daemon does besides its tick is done, and how jumps of the wall clock are noticed.

APScheduler plans by the wall clock. A clock that is set back an hour would leave every job an hour in the
future, and a machine that slept wakes with jobs of long ago. `ClockWatch` compares the wall clock with the
monotonic one; on a jump everything is planned anew from the present. Nothing is missed or done twice by
that: jobs look at what is the case now, and no job stands for one particular moment.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from clorefleet.clock import Clock

log = logging.getLogger("clorefleet.daemon")

JUMP_MIN = timedelta(seconds=5)
"""Less than this is the clock being kept right, or a busy machine."""


@dataclass(frozen=True, slots=True)
class SideJob:
    """Something done beside the tick, in a thread of its own: a slow one delays neither ticks nor other
    jobs."""

    name: str
    every: timedelta
    run: Callable[[], None]


class ClockWatch:
    """How far the wall clock jumped since it was last asked."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wall = clock.now()
        self._monotonic_s = clock.monotonic_s()

    def jump(self) -> timedelta:
        """The jump since the last call; zero where both clocks went on together.

        Positive after a suspend, during which the monotonic clock stands still, and when the clock was set
        forward.
        """
        wall, monotonic_s = self._clock.now(), self._clock.monotonic_s()
        jump = (wall - self._wall) - timedelta(seconds=monotonic_s - self._monotonic_s)
        self._wall, self._monotonic_s = wall, monotonic_s
        return jump if abs(jump) >= JUMP_MIN else timedelta(0)


def pause_until_next(
    now: datetime, *, pace_s: float, look_at: datetime | None, clock_factor: float = 1.0
) -> float:
    """Seconds until the next tick: the pace, or less where a schedule changes before.

    Args:
        look_at: when the clock alone changes what is wanted, on the fleet's clock.
        clock_factor: how much faster than real time that clock runs.
    """
    if look_at is None:
        return pace_s
    until_s = (look_at - now).total_seconds() / clock_factor
    return min(pace_s, max(0.0, until_s))


def guarded(job: SideJob) -> Callable[[], None]:
    """The job, its faults logged: a side job never ends the daemon."""

    def run() -> None:
        try:
            job.run()
        except Exception:
            log.exception("side_job_failed job=%s", job.name)

    return run


def alone(run: Callable[[], None]) -> Callable[[], None]:
    """`run`, and nothing where it is under way already: what is due meanwhile is done by the next run."""
    lock = threading.Lock()

    def run_alone() -> None:
        if lock.acquire(blocking=False):
            try:
                run()
            finally:
                lock.release()

    return run_alone
