"""What runs inside the daemon: the timer, the tick, the gateway, and a clean end.

The tick is the only thing that decides. The timer calls it every few seconds while something is under
way and rarely otherwise; a signal (SIGUSR1) calls it at once. SIGTERM lets the effect in hand finish.
Being killed loses nothing: the next daemon's first tick looks and goes on.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from logging.handlers import RotatingFileHandler

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from clorefleet import __version__
from clorefleet.clock import SystemClock
from clorefleet.config.places import make_private_dir, write_private_file
from clorefleet.config.profile import Profile, connect
from clorefleet.daemon import process, unending
from clorefleet.domain.errors import DaemonError, LostLeadership, StoreError
from clorefleet.domain.lease import Lease
from clorefleet.domain.money import Money
from clorefleet.fleet.budget import running_usd_per_day
from clorefleet.fleet.limits import DEFAULT_LIMITS, SANDBOX_LIMITS
from clorefleet.fleet.loop import Fleet
from clorefleet.store import leadership
from clorefleet.store.database import FencingToken, open_store
from clorefleet.store.leadership import Standby
from clorefleet.wiring import make_gateway, make_market, make_nodes, make_planner, startup_command

log = logging.getLogger("clorefleet.daemon")

LOG_BYTES_MAX = 5_000_000
LOG_FILES_MAX = 3
_TICK, _BEAT = "tick", "beat"
TICK_S_MAX = 600
"""A tick that is under way for longer counts as hung: this daemon stops beating, and another may lead."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between ticks: soon while something is under way, seldom when all is quiet."""

    busy_s: float
    quiet_s: float


REAL_PACE = Pace(busy_s=8, quiet_s=60)
"""The market advises 60 s and more for monitoring loops."""
SANDBOX_PACE = Pace(busy_s=0.5, quiet_s=4)


class Service:
    """The daemon's life, from lock to unlock. One tick at a time; each plans the next.

    Without the leadership it stands by: it looks whether the leader's beat stands still, and does nothing
    else. With it, a beat of its own shows that it lives, also while a tick waits long for the market.
    """

    def __init__(self, fleet: Fleet, token: FencingToken | None, pace: Pace, standby: Standby) -> None:
        self._fleet = fleet
        self._token = token
        self._pace = pace
        self._standby = standby
        self._tick_began_s = 0.0
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._is_ticking = False
        self._is_wanted = False
        """Somebody asked for a tick while one was under way."""
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(1), _BEAT: ThreadPoolExecutor(1)},
        )

    @property
    def token(self) -> FencingToken | None:
        """The leadership, while it is held."""
        return self._token

    def run_until_ended(self) -> None:
        """Tick until `end` is called, then wait for the tick in hand."""
        self._scheduler.start()
        self._plan_tick(0)
        self._scheduler.add_job(
            self._beat, IntervalTrigger(seconds=leadership.BEAT_EVERY_S), executor=_BEAT, coalesce=True
        )
        while not self._ended.wait(timeout=1.0):
            pass
        self._scheduler.shutdown(wait=True)

    def end(self) -> None:
        self._ended.set()

    def wake(self) -> None:
        """Tick now; after the one in hand, where one is."""
        with self._lock:
            self._is_wanted = True
            if self._is_ticking:
                return
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
        self._tick_began_s = time.monotonic()
        pause_s = self._pace.busy_s
        try:
            if self._token is None:
                self._token = self._standby.try_to_lead()
                if self._token is not None:
                    log.info("leading token=%s", self._token.number)
            if self._token is None:
                pause_s = leadership.STANDBY_LOOKS_EVERY_S
            else:
                leadership.renew(self._fleet.store, self._token, now=self._fleet.clock.now())
                is_busy = self._fleet.tick(self._token).is_busy
                pause_s = self._pace.busy_s if is_busy else self._pace.quiet_s
        except LostLeadership as error:
            self._step_back(error)
        except Exception:
            # The loop's boundary: log it, leave the durable state as it is, and look again.
            log.exception("tick_failed")
        with self._lock:
            self._is_ticking = False
            pause_s = 0.0 if self._is_wanted else pause_s
        self._plan_tick(pause_s)

    def _step_back(self, error: LostLeadership) -> None:
        """Another daemon acts: this one writes nothing, sends no request anywhere, and stands by."""
        log.error("leadership_lost why=%s", error.what)
        self._token = None
        self._fleet.routed.backends = None
        self._fleet.set_routes(())

    def _beat(self) -> None:
        """Show that this process lives. A tick that hangs is no life: then another may take over."""
        token = self._token
        if token is None or (self._is_ticking and time.monotonic() - self._tick_began_s > TICK_S_MAX):
            return
        try:
            leadership.renew(self._fleet.store, token, now=self._fleet.clock.now())
        except StoreError as error:
            # A lost leadership is met by the tick too, which steps back.
            log.warning("beat_missed why=%s", error.what)


def run(profile: Profile, *, foreground: bool = False) -> int:
    """Serve a profile until told to stop; the exit code.

    Raises:
        DaemonError: another daemon of this profile runs.
    """
    make_private_dir(profile.state_dir)
    os.umask(0o077)
    lock = process.take_lock(profile.state_dir)
    if lock is None:
        raise DaemonError(
            f"A daemon of profile “{profile.name}” already runs.",
            remedy=f"`clorefleet daemon status{profile.flag}` shows it.",
        )
    _log_to(profile, foreground=foreground)
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
    nodes = make_nodes(connection)
    fleet = Fleet(
        store=store,
        market=make_market(connection),
        nodes=nodes,
        planner=make_planner(connection),
        clock=connection.clock,
        set_routes=gateway.set_routes,
        in_flight=gateway.in_flight,
        startup_command=startup_command,
        usage=gateway.usage,
        note_unending=lambda leases: _note_unending(profile, leases),
        limits=(SANDBOX_LIMITS if profile.is_sandbox else DEFAULT_LIMITS).scaled(connection.time_factor),
    )
    standby = Standby(store, holder, clock=SystemClock())
    service = Service(fleet, token, SANDBOX_PACE if profile.is_sandbox else REAL_PACE, standby)
    signal.signal(signal.SIGTERM, lambda *_: service.end())
    signal.signal(signal.SIGINT, lambda *_: service.end())
    signal.signal(signal.SIGUSR1, lambda *_: service.wake())
    write_private_file(
        profile.state_dir / "daemon.json",
        json.dumps(
            {
                "pid": os.getpid(),
                "gateway_url": gateway.url,
                "started_at": datetime.now(UTC).isoformat(),
                "version": __version__,
            }
        ).encode(),
    )
    log.info("daemon_ready pid=%s gateway=%s leads=%s", os.getpid(), gateway.url, token is not None)
    try:
        service.run_until_ended()
    finally:
        (profile.state_dir / "daemon.json").unlink(missing_ok=True)
        gateway.stop()
        nodes.close()
        if service.token is not None:
            try:
                leadership.release(store, service.token, now=connection.clock.now())
            except StoreError as error:
                log.warning("leadership_not_released why=%s", error.what)
        store.dispose()
        log.info("daemon_ended")
        os.close(lock)
    return 0


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


def _log_to(profile: Profile, *, foreground: bool) -> None:
    """One event per line, bounded in size, readable by the owner alone."""
    handler: logging.Handler
    if foreground:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = RotatingFileHandler(
            profile.state_dir / process.LOG_NAME,
            maxBytes=LOG_BYTES_MAX,
            backupCount=LOG_FILES_MAX,
            encoding="utf-8",
        )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("clorefleet").setLevel(logging.INFO)
