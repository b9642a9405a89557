"""Other renters: who has which server at what time.

Each server alternates between free and rented. The lengths are drawn from a stream of its own, so
the answer for a server at a time follows from the seed alone, whatever was asked before and however
often the sandbox was restarted. Times are whole simulated seconds since the sandbox's first start.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass

from clorefleet.sandbox.catalogue import MarketServer

_HOUR_S = 3600.0
_SHORTEST_S = 900.0
_STEPS_MAX = 200_000
"""Bound on the changes of one server that are ever computed: many simulated years."""
_SPOT_TENANT_RATE = 0.3
_FREE_AT_START_S = 24 * _HOUR_S
"""A placed server stays free for at least this long."""


@dataclass(frozen=True, slots=True)
class Tenancy:
    """Another renter's stay on one server."""

    since_s: float
    until_s: float
    spot_bid_factor: float | None
    """None for an on-demand renter; else the bid as a multiple of the server's least bid."""

    @property
    def is_spot(self) -> bool:
        return self.spot_bid_factor is not None


class _Timeline:
    """Change times of one server; even indices are starts of tenancies."""

    def __init__(self, server: MarketServer, seed: int, churn: float) -> None:
        self._rng = random.Random(f"{seed}:occupancy:{server.id}")
        self._free_mean_s = server.mean_free_h * _HOUR_S / churn
        self._rented_mean_s = server.mean_rented_h * _HOUR_S / churn
        rented_share = self._rented_mean_s / (self._rented_mean_s + self._free_mean_s)
        if server.is_free_at_start:
            first_s = _FREE_AT_START_S + self._length_s(self._free_mean_s)
        elif self._rng.random() < rented_share:
            first_s = -1.0
        else:
            first_s = self._length_s(self._free_mean_s)
        self._changes_s = [first_s]
        self._bids: list[float | None] = [self._bid()]

    def _length_s(self, mean_s: float) -> float:
        return float(round(max(_SHORTEST_S, self._rng.expovariate(1 / mean_s))))

    def _bid(self) -> float | None:
        return round(self._rng.uniform(1.0, 1.35), 3) if self._rng.random() < _SPOT_TENANT_RATE else None

    def _extend_past(self, time_s: float) -> None:
        while self._changes_s[-1] <= time_s or len(self._changes_s) % 2 == 1:
            if len(self._changes_s) >= _STEPS_MAX:
                raise OverflowError("a server's simulated history is longer than the sandbox computes")
            if len(self._changes_s) % 2 == 1:
                self._changes_s.append(self._changes_s[-1] + self._length_s(self._rented_mean_s))
            else:
                self._changes_s.append(self._changes_s[-1] + self._length_s(self._free_mean_s))
                self._bids.append(self._bid())

    def at(self, time_s: float) -> Tenancy | None:
        self._extend_past(time_s)
        index = bisect_right(self._changes_s, time_s) - 1
        if index < 0 or index % 2 == 1:
            return None
        return Tenancy(self._changes_s[index], self._changes_s[index + 1], self._bids[index // 2])

    def next_change_s(self, time_s: float) -> float:
        self._extend_past(time_s)
        return self._changes_s[bisect_right(self._changes_s, time_s)]


class Occupancy:
    def __init__(self, servers: dict[int, MarketServer], *, seed: int, churn: float) -> None:
        """`churn` scales how often others come and go; 0 freezes the state at the start."""
        if churn < 0:
            raise ValueError("churn is not negative")
        self._is_frozen = churn == 0
        self._timelines = {
            server_id: _Timeline(server, seed, churn or 1.0) for server_id, server in servers.items()
        }
        self._forced: dict[int, Tenancy] = {}

    def force(self, server_id: int, tenancy: Tenancy) -> None:
        """Put another renter on a server by hand."""
        self._forced[server_id] = tenancy

    def at(self, server_id: int, time_s: float) -> Tenancy | None:
        """The other renter present at `time_s`, or None."""
        forced = self._forced.get(server_id)
        if forced is not None and forced.since_s <= time_s < forced.until_s:
            return forced
        return self._timelines[server_id].at(0.0 if self._is_frozen else time_s)

    def next_change_s(self, server_id: int, time_s: float) -> float:
        """The first time after `time_s` at which the answer of `at` may change; infinity if never."""
        own = float("inf") if self._is_frozen else self._timelines[server_id].next_change_s(time_s)
        forced = self._forced.get(server_id)
        if forced is None:
            return own
        return min([own, *(edge for edge in (forced.since_s, forced.until_s) if edge > time_s)])

    def rented_ids(self, time_s: float) -> frozenset[int]:
        return frozenset(server_id for server_id in self._timelines if self.at(server_id, time_s) is not None)
