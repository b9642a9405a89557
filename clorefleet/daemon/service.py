"""What runs inside the daemon: the timer, the tick, the gateway, and a clean end.

The tick is the only thing that decides. The timer calls it every few seconds while something is under
way and rarely otherwise; a signal (SIGUSR1) calls it at once. SIGTERM lets the effect in hand finish.
Being killed loses nothing: the next daemon's first tick looks and goes on. A tick that hangs is ended that
way, by the daemon itself: it begins anew in its own place.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from clorefleet import __version__
from clorefleet.clock import SystemClock
from clorefleet.config.places import make_private_dir, write_private_file
from clorefleet.config.profile import Profile, connect
from clorefleet.config.settings import load_settings
from clorefleet.daemon import process, unending
from clorefleet.daemon.fleet_file import FileFollower
from clorefleet.daemon.log import log_to
from clorefleet.daemon.metrics import MetricsServer, TickCounts
from clorefleet.daemon.prices import PriceKeeper
from clorefleet.daemon.timers import ClockWatch, SideJob, alone, guarded, pause_until_next
from clorefleet.domain.errors import DaemonError, LostLeadership, StoreError
from clorefleet.domain.lease import Lease
from clorefleet.domain.money import Money
from clorefleet.fleet.budget import running_usd_per_day
from clorefleet.fleet.limits import DEFAULT_LIMITS, SANDBOX_LIMITS
from clorefleet.fleet.loop import Fleet
from clorefleet.notify.notifier import Notifier
from clorefleet.notify.reports import Reporter
from clorefleet.planner.gpus import load_gpus
from clorefleet.store import leadership
from clorefleet.store.database import FencingToken, open_store
from clorefleet.store.leadership import Standby
from clorefleet.wiring import (
    gateway_token,
    make_gateway,
    make_market,
    make_nodes,
    make_planner,
    startup_command,
)

log = logging.getLogger("clorefleet.daemon")

METRICS_PORT = 8420
SANDBOX_METRICS_PORT = 8421
"""Preferred; any free port is taken where they are not."""
SIDE_WORKERS = 4
"""Threads for what is done beside the tick; more than there are jobs that may be slow."""
SIDE_END_S_MAX = 5.0
"""How long the end waits for what is under way beside the tick."""
LATE_AFTER_QUIET_TICKS = 5
"""Quiet pauses without a tick after which `/healthz` says that the daemon is not well."""
_TICK, _BEAT, _SIDE = "tick", "beat", "side"
TICK_S_MAX = 600
"""A tick that is under way, or overdue, for longer counts as hung: this daemon stops beating, another may
lead, and it begins anew itself."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between ticks: soon while something is under way, seldom when all is quiet."""

    busy_s: float
    quiet_s: float


REAL_PACE = Pace(busy_s=8, quiet_s=60)
"""The market advises 60 s and more for monitoring loops."""
SANDBOX_PACE = Pace(busy_s=0.5, quiet_s=4)


class _Beside(ThreadPoolExecutor):  # type: ignore[misc]  # APScheduler has no types
    """A mail server that takes its time does not keep the end waiting. What such a job would write afterwards
    is refused, as the leadership was given back: an alert that was being sent counts as unclear."""

    def shutdown(self, wait: bool = True) -> None:
        waiting = threading.Thread(target=super().shutdown, args=(wait,), name="side-jobs-end", daemon=True)
        waiting.start()
        waiting.join(SIDE_END_S_MAX)


class Service:
    """The daemon's life, from lock to unlock. One tick at a time; each plans the next.

    Without the leadership it stands by: it looks whether the leader's beat stands still, and does nothing
    else. With it, a beat of its own shows that it lives, also while a tick waits long for the market.
    """

    def __init__(
        self,
        fleet: Fleet,
        token: FencingToken | None,
        pace: Pace,
        standby: Standby,
        *,
        ended: threading.Event,
        counts: TickCounts,
        clock_factor: float = 1.0,
        tick_s_max: float = TICK_S_MAX,
    ) -> None:
        self._fleet = fleet
        self._tick_s_max = tick_s_max
        self._signals: SimpleQueue[int] = SimpleQueue()
        self._repeated: list[tuple[str, Callable[[], None], float]] = []
        self._beat_alone = alone(self._beat)
        self._clock_factor = clock_factor
        self._clock_watch = ClockWatch(SystemClock())
        self.counts = counts
        self._token = token
        self._pace = pace
        self._standby = standby
        self._hung_from_s = time.monotonic() + tick_s_max
        """From when on the tick that is due, or under way, counts as hung. Read without the lock, which what
        hangs may hold."""
        self._ended = ended
        self._lock = threading.Lock()
        self._is_ticking = False
        self._is_wanted = False
        """Somebody asked for a tick while one was under way."""
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={
                # One thread: a tick that is planned while one is in hand waits for its end.
                "default": ThreadPoolExecutor(1),
                _BEAT: ThreadPoolExecutor(2),
                _SIDE: _Beside(SIDE_WORKERS),
            },
            # With one instance at most, a run that is due while the last one still ends would be dropped, and
            # a job that is planned for one moment with it: the next tick, say. `alone` keeps others apart.
            job_defaults={"coalesce": True, "max_instances": 3, "misfire_grace_time": None},
        )

    @property
    def token(self) -> FencingToken | None:
        """The leadership, while it is held."""
        return self._token

    def beside_the_tick(self, *jobs: SideJob) -> None:
        """Done from the start on, each in its own rhythm. To be told before the service runs."""
        self._repeated += [(job.name, alone(guarded(job)), job.every.total_seconds()) for job in jobs]

    def run_until_ended(self) -> None:
        """Tick until `end` is called, then wait for the tick in hand, and not long for what is beside it."""
        self._scheduler.start()
        self._plan_tick(0)
        self._plan_others()
        while not self._ended.is_set():
            self._await_signal(timeout_s=1.0)
            jump = self._clock_watch.jump()
            if jump:
                self._after_jump(jump)
            if self._is_hung():
                log.critical("tick_hung s_max=%s: beginning anew", self._tick_s_max)
                begin_process_anew()
        self._stop_scheduler()

    def _stop_scheduler(self) -> None:
        # Shutting down waits for the jobs in hand while it holds the scheduler's lock. Who plans a tick now
        # has done so when this lock is free, and whoever comes later sees the end: nobody waits for that one.
        with self._lock:
            self._ended.set()
        # What is due in this moment would not be found any more by the scheduler's thread, which would die
        # of it.
        self._scheduler.remove_all_jobs()
        self._scheduler.shutdown(wait=True)

    def obey_signals(self) -> None:
        """SIGUSR1 asks for a tick, SIGTERM and SIGINT for the end.

        The handlers put the signal down and return. One that took a lock, even inside the scheduler's
        `Event.set`, could wait for ever for the main thread, which it interrupts while holding it;
        `SimpleQueue.put` is made to be called from there.
        """
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: self._signals.put(number))

    def _await_signal(self, *, timeout_s: float) -> None:
        try:
            number = self._signals.get(timeout=timeout_s)
        except Empty:
            return
        if number == signal.SIGUSR1:
            self.wake()
        else:
            self._ended.set()

    def _is_hung(self) -> bool:
        return time.monotonic() > self._hung_from_s

    def _plan_others(self) -> None:
        self._repeat(_BEAT, self._beat_alone, leadership.BEAT_EVERY_S, executor=_BEAT)
        for name, run, every_s in self._repeated:
            self._repeat(name, run, every_s, executor=_SIDE)

    def _repeat(self, name: str, run: Callable[[], None], every_s: float, *, executor: str) -> None:
        self._scheduler.add_job(
            run,
            IntervalTrigger(seconds=every_s, timezone=UTC),
            id=name,
            executor=executor,
            replace_existing=True,
            next_run_time=datetime.now(UTC),
        )

    def _after_jump(self, jump: timedelta) -> None:
        """Jobs are planned by the wall clock: all of them anew, from the present."""
        log.warning("clock_jumped by_s=%.0f", jump.total_seconds())
        self.counts.clock_jumps += 1
        self._plan_others()
        self.wake()

    def end(self) -> None:
        self._ended.set()
        self._signals.put(signal.SIGTERM)

    def wake(self) -> None:
        """Tick now; after the one in hand, where one is."""
        with self._lock:
            self._is_wanted = True
            if not self._is_ticking:
                self._plan_tick(0)

    def _plan_tick(self, pause_s: float) -> None:
        if self._ended.is_set():
            return
        at = datetime.now(UTC) + timedelta(seconds=pause_s)
        self._scheduler.add_job(
            self._tick, DateTrigger(at), id=_TICK, replace_existing=True, misfire_grace_time=None
        )

    def _tick(self) -> None:
        with self._lock:
            self._is_ticking, self._is_wanted = True, False
        began_s = time.monotonic()
        self._hung_from_s = began_s + self._tick_s_max
        pause_s = self._pace.busy_s
        self.counts.started += 1
        try:
            if self._token is None:
                self._token = self._standby.try_to_lead()
                if self._token is not None:
                    log.info("leading token=%s", self._token.number)
            if self._token is None:
                pause_s = leadership.STANDBY_LOOKS_EVERY_S
            else:
                result = self._fleet.tick(self._token)
                now = self._fleet.clock.now()
                self.counts.finished_at = now
                self.counts.failed += bool(result.fault)
                pause_s = pause_until_next(
                    now,
                    pace_s=self._pace.busy_s if result.is_busy else self._pace.quiet_s,
                    look_at=result.look_at,
                    clock_factor=self._clock_factor,
                )
        except LostLeadership as error:
            self._step_back(error)
        except Exception:
            # The loop's boundary: log it, leave the durable state as it is, and look again.
            log.exception("tick_failed")
            self.counts.failed += 1
        self.counts.last_took_s = time.monotonic() - began_s
        self.counts.leads = self._token is not None
        with self._lock:
            # Planned under the lock: a `wake` between would plan its tick first, and lose it to this one.
            self._is_ticking = False
            self._hung_from_s = time.monotonic() + pause_s + self._tick_s_max
            self._plan_tick(0.0 if self._is_wanted else pause_s)

    def _step_back(self, error: LostLeadership) -> None:
        """Another daemon acts: this one writes nothing, sends no request anywhere, and stands by."""
        log.error("leadership_lost why=%s", error.what)
        self._token = None
        self._fleet.routed.backends = None
        self._fleet.set_routes(())

    def _beat(self) -> None:
        """Show that this process lives. A tick that hangs is no life: then another may take over."""
        token = self._token
        if token is None or self._is_hung():
            return
        try:
            leadership.renew(self._fleet.store, token, now=self._fleet.clock.now())
        except StoreError as error:
            # A lost leadership is met by the tick too, which steps back.
            log.warning("beat_missed why=%s", error.what)


def run(profile: Profile, *, foreground: bool = False, as_json: bool | None = None) -> int:
    """Serve a profile until told to stop; the exit code.

    Raises:
        DaemonError: another daemon of this profile runs.
    """
    # Who sees the lock may signal at once; the first tick comes anyway.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    make_private_dir(profile.state_dir)
    os.umask(0o077)
    lock = process.take_lock(profile.state_dir)
    if lock is None:
        raise DaemonError(
            f"A daemon of profile “{profile.name}” already runs.",
            remedy=f"`clorefleet daemon status{profile.flag}` shows it.",
        )
    settings = load_settings()
    log_to(
        None if foreground else profile.state_dir / process.LOG_NAME,
        as_json=settings.log_format == "json" if as_json is None else as_json,
    )
    connection = connect(profile)
    store = open_store(connection.store_url)
    holder = f"{os.uname().nodename}:{os.getpid()}:{os.urandom(4).hex()}"
    # The lock proves that no other daemon of this machine lives; a store shared with other machines
    # must wait for the last leader's time to run out.
    is_own_store = store.file is not None and store.file.parent == profile.state_dir
    token = leadership.acquire(store, holder, now=connection.clock.now(), force=is_own_store)
    if token is None:
        log.info("standing_by takeover_s_max=%s", leadership.TAKEOVER_S_MAX)
    gateway = make_gateway(connection)
    gateway.start()
    pace = SANDBOX_PACE if profile.is_sandbox else REAL_PACE
    counts, ending = TickCounts(connection.clock.now()), threading.Event()
    metrics = MetricsServer(
        store,
        connection.clock,
        counts,
        preferred_port=SANDBOX_METRICS_PORT if profile.is_sandbox else METRICS_PORT,
        late_after=timedelta(seconds=pace.quiet_s * LATE_AFTER_QUIET_TICKS * connection.time_factor),
    )
    metrics.start()
    nodes = make_nodes(connection)
    market = make_market(connection)
    keeper = PriceKeeper(store, lambda: service.token, connection.clock, load_gpus(), read=market.fetch_view)
    fleet = Fleet(
        store=store,
        market=market,
        nodes=nodes,
        planner=make_planner(connection),
        clock=connection.clock,
        set_routes=gateway.set_routes,
        in_flight=gateway.in_flight,
        startup_command=startup_command,
        usage=gateway.usage,
        is_ending=ending.is_set,
        take_load=gateway.load.take,
        set_wanted=gateway.set_wanted,
        note_view=keeper.note,
        note_unending=lambda leases: _note_unending(profile, leases),
        limits=(SANDBOX_LIMITS if profile.is_sandbox else DEFAULT_LIMITS).scaled(connection.time_factor),
    )
    standby = Standby(store, holder, clock=SystemClock())
    service = Service(
        fleet, token, pace, standby, ended=ending, counts=counts, clock_factor=connection.time_factor
    )
    follower = FileFollower(store, lambda: service.token, connection.clock, wake=service.wake)
    secrets = (connection.api_key, gateway_token(connection))
    reporter = Reporter(
        store,
        lambda: service.token,
        connection.clock,
        policy=lambda: follower.report,
        secrets=secrets,
        flag=connection.profile.flag,
    )
    notifier = Notifier(
        store,
        lambda: service.token,
        connection.clock,
        policy=lambda: follower.notify,
        secrets=secrets,
        send=reporter.send,
        is_ending=ending.is_set,
    )
    service.beside_the_tick(
        SideJob("fleet_file", timedelta(seconds=3), follower.look),
        SideJob("alerts", timedelta(seconds=3), notifier.run),
        SideJob("reports", timedelta(seconds=20), reporter.run),
        SideJob("prices", timedelta(seconds=10), keeper.run),
    )
    gateway.when_wanted(service.wake)
    service.obey_signals()
    write_private_file(
        profile.state_dir / "daemon.json",
        json.dumps(
            {
                "pid": os.getpid(),
                "gateway_url": gateway.url,
                "started_at": datetime.now(UTC).isoformat(),
                "version": __version__,
                "metrics_url": metrics.url,
            }
        ).encode(),
    )
    log.info("daemon_ready pid=%s gateway=%s leads=%s", os.getpid(), gateway.url, token is not None)
    try:
        service.run_until_ended()
    finally:
        (profile.state_dir / "daemon.json").unlink(missing_ok=True)
        metrics.stop()
        gateway.stop()
        nodes.close()
        if service.token is not None:
            try:
                leadership.release(store, service.token, now=connection.clock.now())
            except StoreError as error:
                log.warning("leadership_not_released why=%s", error.what)
        store.dispose()
        log.info("daemon_ended")
        process.release_lock(lock)
    return 0


def begin_process_anew() -> None:
    """Where the tick's thread hangs: its place goes to the log, and this process becomes a new daemon.

    As after `kill -9`, the next first tick looks and goes on. The lock and all sockets are closed by the
    exec; a supervisor sees the same pid.
    """
    faulthandler.dump_traceback(all_threads=True)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - our own command line


def _note_unending(profile: Profile, leases: tuple[Lease, ...]) -> None:
    """For every command of this machine to show. Hourly with fee, as the ledger counts it."""
    unending.note(
        profile.state_dir,
        (
            unending.UnendingOrder(
                order_id=lease.order_id or 0,
                per_hour=str(Money.usd(running_usd_per_day(lease) / 24)) + "/hour",
                attempts=lease.cancel_attempts,
                why=lease.reason,
            )
            for lease in leases
        ),
    )
