"""The daemon's loop in a process of its own: signals at any moment, and a tick that hangs."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

STORM = 4000
"""Signals in a row: the main thread is interrupted at any place of its own doing many times over."""

DAEMON = textwrap.dedent("""
    import os, sys, threading, types
    from datetime import UTC, datetime
    from clorefleet.clock import SystemClock
    from clorefleet.daemon.metrics import TickCounts
    from clorefleet.daemon.service import Pace, Service
    from clorefleet.fleet.loop import TickResult
    from clorefleet.simulation.memory_store import MemoryStore
    from clorefleet.store import leadership
    from clorefleet.store.leadership import Standby

    def tick(token):
        print("tick", os.getpid(), flush=True)
        if hangs_once and not os.path.exists(hangs_once):
            open(hangs_once, "w").close()
            threading.Event().wait()
        return TickResult((), "", is_busy=False, look_at=None)

    hangs_once = sys.argv[1]
    store, clock = MemoryStore(), SystemClock()
    fleet = types.SimpleNamespace(store=store, clock=clock, tick=tick)
    token = leadership.acquire(store, "p", now=datetime.now(UTC), force=True)
    service = Service(
        fleet, token, Pace(busy_s=3600, quiet_s=3600), Standby(store, "p", clock=clock),
        ended=threading.Event(), counts=TickCounts(clock.now()), tick_s_max=3600 if not hangs_once else 0.5,
    )
    service.obey_signals()
    service.run_until_ended()
""")


@contextmanager
def running(*, hangs_once: str = "") -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """The daemon, and what it prints: "tick PID" for each tick. `hangs_once`: a file, made by the tick that
    hangs; the next does not."""
    child = subprocess.Popen(
        [sys.executable, "-c", DAEMON, hangs_once], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        yield child, child.stdout
    finally:
        child.kill()
        child.communicate()


def test_a_storm_of_wakes_leaves_a_daemon_that_ticks_and_ends() -> None:
    with running() as (daemon, printed):
        tick = f"tick {daemon.pid}\n"
        assert printed.readline() == tick
        for _ in range(STORM):
            daemon.send_signal(signal.SIGUSR1)
        assert printed.readline() == tick
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0


def test_a_daemon_whose_tick_hangs_begins_anew_in_the_same_process(tmp_path: Path) -> None:
    """Whoever guards its pid, a supervisor or a command, sees no end of it; the log tells where it hung."""
    with running(hangs_once=str(tmp_path / "hung")) as (daemon, printed):
        tick = f"tick {daemon.pid}\n"
        assert [printed.readline(), printed.readline()] == [tick, tick]
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(60) == 0
        assert daemon.stderr is not None
        assert "in tick" in daemon.stderr.read()
