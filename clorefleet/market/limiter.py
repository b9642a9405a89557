"""How soon the next request may be made: by priority, across threads, and across processes.

The market allows one request a second per key, and one `create_order` in five on top. A margin is kept,
as authors of live clients do. A waiting cancel overtakes everything, since each second that it waits
costs money; order reads come next, since every decision needs them.

Theory. Each waiting thread holds a ticket. `first_in_line` picks, of the tickets whose time has come, the
best priority, then the oldest. Only the picked ticket may go; the others sleep until the next possible
moment and look again. Grants are counted from the start of requests, so a slow answer holds nobody up.

Two processes of one profile (a command and the daemon) share a stamp file under a file lock. It holds the
times of the last grants by the system's monotonic clock, which all processes of a machine share. Between
processes there is no priority: each looks again when the next turn opens, and the first one has it. When
the file cannot be used, or a suspended process holds it, the limit holds in this process alone, and the
market's code 5 does the rest.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from clorefleet.clock import Clock
from clorefleet.domain.errors import RateLimited, Refused
from clorefleet.domain.identity import OrderId
from clorefleet.domain.spot import LOWERING_INTERVAL

log = logging.getLogger("clorefleet.market")

GENERAL_INTERVAL_S = 1.1
CREATE_INTERVAL_S = 5.2
LOWERING_INTERVAL_S = LOWERING_INTERVAL.total_seconds()
WAIT_MAX_S = 180.0
"""A request that has not had its turn by then is given up."""
PAUSE_FIRST_S = 2.0
"""After a code 5 without a wish of the market; doubles with each further one."""
PAUSE_MAX_S = 60.0
_LOOK_AGAIN_S = 0.02
"""How long a ticket that was overtaken, or that found the file locked, waits before it looks again."""
SLOT_PATIENCE_S = 0.5
"""A lock that is held for longer than this belongs to a suspended process, which nobody waits for."""
_STAMPS_BYTES_MAX = 4096
_LOWERINGS_MAX = 256


class NoTurn(RateLimited):
    """The request waited as long as it may and was not sent. Waiting again at once would not help."""


class Priority(IntEnum):
    """Lower goes first."""

    CANCEL = 0
    ORDERS = 1
    RENT = 2
    READ = 3


@dataclass(frozen=True, slots=True)
class Ticket:
    number: int
    priority: Priority

    @property
    def is_create(self) -> bool:
        return self.priority is Priority.RENT


@dataclass(frozen=True, slots=True)
class Stamps:
    """Monotonic seconds: before which nothing, and before which no create, may go."""

    next_any_s: float = 0.0
    next_create_s: float = 0.0

    def opens_at(self, ticket: Ticket) -> float:
        return max(self.next_any_s, self.next_create_s) if ticket.is_create else self.next_any_s

    def later(self, other: Stamps) -> Stamps:
        return Stamps(max(self.next_any_s, other.next_any_s), max(self.next_create_s, other.next_create_s))


def first_in_line(waiting: Iterable[Ticket], stamps: Stamps, now_s: float) -> Ticket | None:
    """Of those whose time has come, the best priority, then the oldest."""
    ready = [ticket for ticket in waiting if stamps.opens_at(ticket) <= now_s]
    return min(ready, key=lambda ticket: (ticket.priority, ticket.number), default=None)


class FileSlot:
    """The stamps that processes of one profile share: a small private file, changed under its lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._has_warned = False
        self._held_since_s: float | None = None

    def take(self, ours: Stamps, ticket: Ticket, granted: Stamps, now_s: float) -> tuple[bool, Stamps] | None:
        """Take the turn if the stamps of all processes allow it.

        Returns whether it was taken and the stamps now in force, or None when the file cannot be used.

        Raises:
            BlockingIOError: another process holds the file at this moment.
        """

        def change(shared: Stamps) -> tuple[bool, Stamps]:
            merged = ours.later(shared)
            is_open = merged.opens_at(ticket) <= now_s
            return is_open, merged.later(granted) if is_open else merged

        return self._change(change, now_s)

    def postpone(self, stamps: Stamps, now_s: float) -> None:
        """Make the other processes wait as well.

        Raises:
            BlockingIOError: another process holds the file at this moment.
        """
        self._change(lambda shared: (True, stamps.later(shared)), now_s)

    def _change(
        self, change: Callable[[Stamps], tuple[bool, Stamps]], now_s: float
    ) -> tuple[bool, Stamps] | None:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                # Not waited for in here, where all threads of this process would wait as well.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._held_since_s = None
                is_to_write, stamps = change(_read_stamps(descriptor, now_s))
                if is_to_write:
                    _write_stamps(descriptor, stamps)
                return is_to_write, stamps
            finally:
                os.close(descriptor)
        except BlockingIOError:
            self._held_since_s = now_s if self._held_since_s is None else self._held_since_s
            if now_s - self._held_since_s < SLOT_PATIENCE_S:
                raise
            return None
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                log.warning("limit_not_shared why=%s", type(error).__name__)
            return None


def _read_stamps(descriptor: int, now_s: float) -> Stamps:
    """Anything unreadable counts as empty; a stamp beyond any possible pause is from before a reboot."""
    try:
        stored = json.loads(os.pread(descriptor, _STAMPS_BYTES_MAX, 0) or b"{}")
        stamps = Stamps(float(stored["next_any_s"]), float(stored["next_create_s"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Stamps()
    horizon_s = now_s + PAUSE_MAX_S + CREATE_INTERVAL_S
    if not (0 <= stamps.next_any_s <= horizon_s and 0 <= stamps.next_create_s <= horizon_s):
        return Stamps()
    return stamps


def _write_stamps(descriptor: int, stamps: Stamps) -> None:
    data = json.dumps({"next_any_s": stamps.next_any_s, "next_create_s": stamps.next_create_s}).encode()
    os.pwrite(descriptor, data, 0)
    os.ftruncate(descriptor, len(data))


@dataclass(slots=True)
class RequestLimiter:
    """One per API key. Thread-safe.

    The intervals are settable for tests; the defaults are the documented limits with a margin.
    """

    clock: Clock
    slot: FileSlot | None = None
    general_s: float = GENERAL_INTERVAL_S
    create_s: float = CREATE_INTERVAL_S
    lowering_s: float = LOWERING_INTERVAL_S
    """Of this machine's time; less where the market's clock runs faster."""
    wait_max_s: float = WAIT_MAX_S
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: dict[int, Ticket] = field(default_factory=dict)
    _stamps: Stamps = field(default_factory=Stamps)
    _next_number: int = 0
    _refusals_in_a_row: int = 0
    _lowered_at_s: dict[OrderId, float] = field(default_factory=dict)

    def wait_turn(self, priority: Priority) -> None:
        """Block until this request may be sent.

        Raises:
            NoTurn: its turn did not come within `wait_max_s`. Nothing was sent.
        """
        started_s = self.clock.monotonic_s()
        with self._lock:
            ticket = Ticket(self._next_number, priority)
            self._next_number += 1
            self._waiting[ticket.number] = ticket
        try:
            while (pause_s := self._try(ticket)) > 0:
                if self.clock.monotonic_s() + pause_s - started_s > self.wait_max_s:
                    raise NoTurn(
                        f"No turn within {self.wait_max_s:g} s under the market's request limit.",
                        retry_after_s=pause_s,
                        remedy="Try again; close other programs that use the same API key.",
                        money="Nothing was sent.",
                    )
                self.clock.sleep(pause_s)
        finally:
            with self._lock:
                self._waiting.pop(ticket.number, None)

    def _try(self, ticket: Ticket) -> float:
        """Take the turn and return 0, or return the seconds until looking again makes sense."""
        with self._lock:
            now_s = self.clock.monotonic_s()
            chosen = first_in_line(self._waiting.values(), self._stamps, now_s)
            if chosen is None or chosen.number != ticket.number:
                return max(self._stamps.opens_at(ticket) - now_s, _LOOK_AGAIN_S)
            granted = Stamps(now_s + self.general_s, now_s + self.create_s if ticket.is_create else 0.0)
            try:
                shared = None if self.slot is None else self.slot.take(self._stamps, ticket, granted, now_s)
            except BlockingIOError:
                return _LOOK_AGAIN_S
            is_taken, self._stamps = (True, self._stamps.later(granted)) if shared is None else shared
            if not is_taken:
                # Another process was faster.
                return max(self._stamps.opens_at(ticket) - now_s, _LOOK_AGAIN_S)
            del self._waiting[ticket.number]
            return 0.0

    def note_refused(self, retry_after_s: float | None) -> None:
        """The market answered code 5: everybody pauses, longer each time in a row."""
        with self._lock:
            own_s = PAUSE_FIRST_S * 2.0 ** min(self._refusals_in_a_row, 10)
            self._refusals_in_a_row += 1
            pause_s = min(max(own_s, retry_after_s or 0.0), PAUSE_MAX_S)
            now_s = self.clock.monotonic_s()
            self._stamps = stamps = self._stamps.later(Stamps(next_any_s=now_s + pause_s))
        if self.slot is not None:
            self._tell_others(self.slot, stamps, now_s)
        log.info("rate_limited pause_s=%.1f", pause_s)

    def _tell_others(self, slot: FileSlot, stamps: Stamps, now_s: float) -> None:
        while True:
            try:
                return slot.postpone(stamps, now_s)
            except BlockingIOError:
                self.clock.sleep(_LOOK_AGAIN_S)
                now_s = self.clock.monotonic_s()

    def note_served(self) -> None:
        """The market answered with anything but code 5."""
        self._refusals_in_a_row = 0

    def check_lowering(self, order_id: OrderId) -> None:
        """
        Raises:
            Refused: this order's price was lowered here less than 600 s ago. Nothing was sent.
        """
        with self._lock:
            lowered_at_s = self._lowered_at_s.get(order_id)
            now_s = self.clock.monotonic_s()
        left_s = 0.0 if lowered_at_s is None else lowered_at_s + self.lowering_s - now_s
        if left_s > 0:
            raise Refused(
                "The spot price was lowered less than 600 s ago.",
                reason="can-lower-every-600-seconds",
                remedy=f"Lower it again in {left_s:.0f} s.",
                money="Nothing was sent; the order keeps its price.",
            )

    def note_lowered(self, order_id: OrderId) -> None:
        with self._lock:
            self._lowered_at_s[order_id] = self.clock.monotonic_s()
            while len(self._lowered_at_s) > _LOWERINGS_MAX:
                self._lowered_at_s.pop(next(iter(self._lowered_at_s)))
