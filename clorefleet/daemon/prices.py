"""Keep the prices of the market answers that the tick reads anyway; no request is made for them.

The tick hands over its reading and goes on. Beside it, one in a while is summed up and written; what is old
is thinned once a day. While the fleet needs no offers it reads none, and the history has a gap.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from clorefleet.clock import Clock
from clorefleet.domain.offer import MarketView
from clorefleet.planner.gpus import GpuTable
from clorefleet.planner.prices import RAW_KEPT, price_snapshots, thinned
from clorefleet.store.database import FencingToken, Store

KEPT_EVERY = timedelta(minutes=15)
THINNED_EVERY = timedelta(days=1)


class PriceKeeper:
    """`note` is called by the tick, `run` beside it."""

    def __init__(
        self, store: Store, token: Callable[[], FencingToken | None], clock: Clock, gpus: GpuTable
    ) -> None:
        self._store = store
        self._token = token
        self._clock = clock
        self._gpus = gpus
        self._lock = threading.Lock()
        self._seen: MarketView | None = None
        self._kept_at: datetime | None = None
        self._thinned_at: datetime | None = None

    def note(self, view: MarketView) -> None:
        """Remember the newest reading, nothing more. An answer is large: it is let go when it was kept."""
        if self._kept_at is None or abs(view.read_at - self._kept_at) >= KEPT_EVERY:
            with self._lock:
                self._seen = view

    def run(self) -> None:
        """
        Raises:
            LostLeadership: another process acts now.
        """
        with self._lock:
            view, self._seen = self._seen, None
        token = self._token()
        if token is None:
            return
        now = self._clock.now()
        if view is not None:
            found = price_snapshots(view, self._gpus)
            with self._store.write(token) as tx:
                tx.add_prices(found)
            self._kept_at = view.read_at
        if self._thinned_at is None or abs(now - self._thinned_at) >= THINNED_EVERY:
            with self._store.write(token) as tx:
                tx.replace_prices(now - RAW_KEPT, thinned(tx.prices(until=now - RAW_KEPT), now=now))
            self._thinned_at = now
