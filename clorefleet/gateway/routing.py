"""Which replica takes a request. Values and counts; no network here."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Route:
    """A replica that serves, and the UNIX socket in front of its tunnel."""

    lease_id: str
    model: str
    socket: Path


class RoutingTable:
    """The serving replicas and what each has under way. Thread-safe: the daemon writes, the gateway reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._routes: tuple[Route, ...] = ()
        self._in_flight: dict[str, int] = {}

    def replace(self, routes: Iterable[Route]) -> None:
        """From now on exactly these are chosen. Requests under way on others finish."""
        with self._lock:
            self._routes = tuple(routes)
            kept = {route.lease_id for route in self._routes}
            self._in_flight = {
                lease_id: count for lease_id, count in self._in_flight.items() if count or lease_id in kept
            }

    def models(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(dict.fromkeys(route.model for route in self._routes))

    def routes(self) -> tuple[Route, ...]:
        with self._lock:
            return self._routes

    def take(self, model: str, *, excluding: frozenset[str] = frozenset()) -> Route | None:
        """The least loaded replica of `model`, counted as loaded by one more; None when there is none."""
        with self._lock:
            candidates = [
                route for route in self._routes if route.model == model and route.lease_id not in excluding
            ]
            if not candidates:
                return None
            chosen = min(
                candidates, key=lambda route: (self._in_flight.get(route.lease_id, 0), route.lease_id)
            )
            self._in_flight[chosen.lease_id] = self._in_flight.get(chosen.lease_id, 0) + 1
            return chosen

    def give_back(self, lease_id: str) -> None:
        """A request on the replica has ended."""
        with self._lock:
            self._in_flight[lease_id] = max(0, self._in_flight.get(lease_id, 0) - 1)

    def in_flight(self, lease_id: str) -> int:
        with self._lock:
            return self._in_flight.get(lease_id, 0)
