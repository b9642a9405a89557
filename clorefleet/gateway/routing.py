"""Which replica takes a request. Values, counts and one lock; no network here.

A backend is *ready* when it is healthy and not draining. Prompts that begin alike prefer one of the ready
ones, chosen by a hash of the beginning and the lease id (rendezvous hashing: when replicas come or go, only
their own share moves): its cache has the beginning. Where that one has more under way than the least
loaded by `AFFINITY_SLACK` or more, or nothing is known of the beginning, the least loaded takes the request,
the first by lease id where several are equal. A backend that could not be reached *rests* for a moment: it is
taken only when no other is there. Without that a dead replica, always the least loaded, would attract
every request until the daemon notices.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from clorefleet.clock import Clock, SystemClock

AFFINITY_SLACK = 3
"""Requests that a warm cache is worth waiting behind. Assumed: a few decode side by side at little loss."""
REST_S = 5.0
"""How long an unreachable backend is passed over. About one tick: then the daemon has looked at it."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A replica and how it is reached: the UNIX socket of its tunnel, or a URL on this machine.

    `in_flight` is what the table counted when it gave the value out; the table takes none in.
    """

    lease_id: str
    model: str
    uds_path: Path | None = None
    base_url: str | None = None
    is_draining: bool = False
    in_flight: int = 0
    healthy: bool = True

    def __post_init__(self) -> None:
        if (self.uds_path is None) == (self.base_url is None):
            raise ValueError(f"backend {self.lease_id} needs a socket or a URL, and not both")

    @property
    def is_ready(self) -> bool:
        return self.healthy and not self.is_draining

    @property
    def address(self) -> tuple[str, str]:
        """What its connections belong to: the same lease at another place is another upstream."""
        return self.lease_id, str(self.uds_path or self.base_url)


@dataclass(frozen=True, slots=True)
class Starting:
    """The model is wanted and no replica of it is ready; `reason` is for the user."""

    reason: str
    ready_in_s: float | None = None
    """As far as it is known, in real seconds."""


@dataclass(frozen=True, slots=True)
class NoSuchModel:
    known: tuple[str, ...]


def choose(
    backends: Iterable[Backend], model: str, *, resting: frozenset[str], beginning: str = ""
) -> Backend | None:
    """The ready backend of `model` for one more request; a resting one only when there is no other."""
    ready = [backend for backend in backends if backend.model == model and backend.is_ready]
    awake = [backend for backend in ready if backend.lease_id not in resting] or ready
    least = min(awake, key=lambda each: (each.in_flight, each.lease_id), default=None)
    if least is None or not beginning:
        return least
    warm = max(awake, key=lambda each: _affinity(beginning, each.lease_id))
    return warm if warm.in_flight < least.in_flight + AFFINITY_SLACK else least


def _affinity(beginning: str, lease_id: str) -> bytes:
    return blake2b(beginning.encode("utf-8", "replace"), key=lease_id.encode()[:64], digest_size=8).digest()


class RoutingTable:
    """The backends of the moment and what each has under way.

    Thread-safe: the daemon replaces the backends from its thread, the gateway takes from its own.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._backends: tuple[Backend, ...] = ()
        self._wanted: dict[str, Starting] = {}
        self._in_flight: dict[str, int] = {}
        self._rests_until_s: dict[str, float] = {}
        self._on_replaced: Callable[[], None] | None = None

    def set_backends(self, backends: Iterable[Backend]) -> None:
        """From now on exactly these are chosen. Requests under way on others finish."""
        with self._lock:
            self._backends = tuple(backends)
            present = {backend.lease_id for backend in self._backends}
            self._rests_until_s = {
                lease_id: until_s for lease_id, until_s in self._rests_until_s.items() if lease_id in present
            }
            on_replaced = self._on_replaced
        if on_replaced is not None:
            on_replaced()

    def set_wanted(self, reasons: Mapping[str, Starting]) -> None:
        """The models that the fleet is to serve, each with the reason why it may not be ready yet."""
        with self._lock:
            self._wanted = dict(reasons)

    def when_replaced(self, callback: Callable[[], None] | None) -> None:
        """Called after each `set_backends`, on the thread that called it."""
        with self._lock:
            self._on_replaced = callback

    def backends(self) -> tuple[Backend, ...]:
        with self._lock:
            return self._counted()

    def ready_models(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(dict.fromkeys(each.model for each in self._backends if each.is_ready))

    def take(
        self, model: str, *, excluding: frozenset[str] = frozenset(), beginning: str = ""
    ) -> Backend | None:
        """The backend for one more request, counted with it; None when none is ready.

        Whoever takes gives back, once.
        """
        with self._lock:
            now_s = self._clock.monotonic_s()
            resting = frozenset(each for each, until_s in self._rests_until_s.items() if until_s > now_s)
            candidates = [each for each in self._counted() if each.lease_id not in excluding]
            chosen = choose(candidates, model, resting=resting, beginning=beginning)
            if chosen is not None:
                self._in_flight[chosen.lease_id] = chosen.in_flight + 1
            return chosen

    def give_back(self, lease_id: str) -> None:
        """A request on the backend has ended; the backend itself may be gone already."""
        with self._lock:
            left = self._in_flight[lease_id] - 1
            if left:
                self._in_flight[lease_id] = left
            else:
                del self._in_flight[lease_id]

    def rest(self, lease_id: str) -> None:
        """The backend could not be reached just now."""
        with self._lock:
            if any(each.lease_id == lease_id for each in self._backends):
                self._rests_until_s[lease_id] = self._clock.monotonic_s() + REST_S

    def in_flight(self, lease_id: str) -> int:
        with self._lock:
            return self._in_flight.get(lease_id, 0)

    def why_not_ready(self, model: str) -> Starting | NoSuchModel:
        """Why `take` gave nothing: it will come, or nobody asked for it."""
        with self._lock:
            if model in self._wanted:
                return self._wanted[model]
            own = [each for each in self._backends if each.model == model]
            if any(not each.is_draining for each in own):
                return Starting("its replica is starting")
            if own:
                return Starting("its replica is being given back")
            known = tuple(dict.fromkeys([*(each.model for each in self._backends), *self._wanted]))
            # Before the first replica serves, nothing says which models will come.
            return NoSuchModel(known) if known else Starting("no replica serves yet")

    def _counted(self) -> tuple[Backend, ...]:
        return tuple(
            replace(each, in_flight=self._in_flight.get(each.lease_id, 0)) for each in self._backends
        )
