"""Keep the prices of the market answers that the tick reads anyway, and read them where it reads none.

The tick hands over its reading and goes on. Beside it, one in a while is summed up and written; what is old
is thinned once a day. While the fleet needs no offers its tick reads none: then one request an hour is made
for the history's sake, by the leader alone, behind whatever else waits for its turn. Also while nothing is
deployed: whether now is a good time is asked before there is a deployment.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from clorefleet.clock import Clock
from clorefleet.domain.errors import MarketError
from clorefleet.domain.offer import MarketView
from clorefleet.domain.text import clean_line
from clorefleet.planner.gpus import GpuTable
from clorefleet.planner.prices import RAW_KEPT, price_snapshots, thinned
from clorefleet.store.database import FencingToken, Store

log = logging.getLogger("clorefleet.daemon")

KEPT_EVERY = timedelta(minutes=15)
READ_AFTER = timedelta(hours=1)
"""Without a reading of the tick, one is made; and tried again after as long where it fails."""
THINNED_EVERY = timedelta(days=1)


class PriceKeeper:
    """`note` is called by the tick, `run` beside it."""

    def __init__(
        self,
        store: Store,
        token: Callable[[], FencingToken | None],
        clock: Clock,
        gpus: GpuTable,
        *,
        read: Callable[[], MarketView],
    ) -> None:
        """
        Args:
            read: a request to the market; raises `MarketError`.
        """
        self._store = store
        self._token = token
        self._clock = clock
        self._gpus = gpus
        self._read = read
        self._lock = threading.Lock()
        self._seen: MarketView | None = None
        self._kept_at: datetime | None = None
        self._asked_at: datetime | None = None
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
        if view is None and self._is_quiet(now):
            view = self._read_now(now)
        if view is not None:
            found = price_snapshots(view, self._gpus)
            with self._store.write(token) as tx:
                tx.add_prices(found)
            self._kept_at = view.read_at
        if self._thinned_at is None or abs(now - self._thinned_at) >= THINNED_EVERY:
            with self._store.write(token) as tx:
                tx.replace_prices(now - RAW_KEPT, thinned(tx.prices(until=now - RAW_KEPT), now=now))
            self._thinned_at = now

    def _is_quiet(self, now: datetime) -> bool:
        """Nothing was kept for long, by this daemon or by what ran before it."""
        if self._kept_at is None:
            with self._store.read() as tx:
                self._kept_at = tx.last_price_at()
        known = (at for at in (self._kept_at, self._asked_at) if at is not None)
        return all(abs(now - at) >= READ_AFTER for at in known)

    def _read_now(self, now: datetime) -> MarketView | None:
        self._asked_at = now
        try:
            return self._read()
        except MarketError as error:
            log.warning("prices_not_read why=%s", clean_line(error.what))
            return None
