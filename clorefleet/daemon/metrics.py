"""What the daemon tells of itself to machines: `/metrics` for Prometheus and `/healthz`, on loopback only.

Both are readable by every user of this machine, without a token, and hold nothing that would need one:
names of deployments, phases, counts, amounts of money, times. No key, token, address, prompt or host ever
is among them.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from clorefleet.clock import Clock
from clorefleet.domain.alert import DeliveryState
from clorefleet.domain.errors import DaemonError, StoreError
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.fleet.budget import committed_usd_per_day
from clorefleet.store.database import Store
from clorefleet.store.queries import Transaction

log = logging.getLogger("clorefleet.daemon")

_HOSTS = ("127.0.0.1", "localhost", "[::1]")
REQUEST_TIMEOUT_S = 10
DELIVERIES_COUNTED_MAX = 1_000


@dataclass(slots=True)
class TickCounts:
    """Kept by the daemon's loop, read here."""

    begun_at: datetime
    """When this process began, on the fleet's clock."""
    started: int = 0
    failed: int = 0
    last_took_s: float = 0.0
    clock_jumps: int = 0
    finished_at: datetime | None = None
    """When the last tick ended, on the fleet's clock; None before the first."""
    leads: bool = True
    """False while another daemon leads and this one stands by."""


@dataclass(frozen=True, slots=True)
class Health:
    is_well: bool
    text: str


SETTLED_BEFORE = timedelta(days=1)
"""Orders that ended and were settled before that are not read again."""


class LedgerSums:
    """What was spent by deployment, by the ledger. Only the first reading goes through all of it: the bill of
    an order that ended and was settled does not change any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settled: dict[tuple[OrderId, LeaseId], tuple[DeploymentId, Decimal]] = {}
        self._read_until: datetime | None = None

    def read(self, tx: Transaction, now: datetime) -> dict[DeploymentId, Decimal]:
        """USD by deployment."""
        with self._lock:
            since = self._read_until
            orders: dict[tuple[OrderId, LeaseId], list[LedgerSegment]] = {}
            for segment in tx.segments() if since is None else tx.segments(since=since):
                orders.setdefault((segment.order_id, segment.lease_id), []).append(segment)
            costs = dict(self._settled)
            until = now - SETTLED_BEFORE
            for key, segments in orders.items():
                cost = sum((each.cost_usd(now) for each in segments), Decimal(0))
                costs[key] = (segments[0].deployment_id, cost)
                ended = [each.ended_at for each in segments if each.ended_at is not None]
                is_open = len(ended) < len(segments)
                if not is_open and any(each.settled_at is None for each in segments):
                    until = min(until, *ended)  # its bill is still to come
                elif not is_open:
                    self._settled[key] = costs[key]
            self._read_until = until
        spent: dict[DeploymentId, Decimal] = {}
        for deployment_id, cost in costs.values():
            spent[deployment_id] = spent.get(deployment_id, Decimal(0)) + cost
        return spent


class FleetCollector(Collector):
    """Reads the store when asked. One short reading per scrape."""

    def __init__(self, store: Store, clock: Clock, counts: TickCounts) -> None:
        self._store = store
        self._clock = clock
        self._counts = counts
        self._ledger = LedgerSums()

    def collect(self) -> Iterator[Metric]:
        counts = self._counts
        yield _counter("clorefleet_ticks", "Ticks begun by this process.", counts.started)
        yield _counter("clorefleet_tick_failures", "Ticks that ended with a fault.", counts.failed)
        yield _counter("clorefleet_clock_jumps", "Jumps of the wall clock noticed.", counts.clock_jumps)
        yield _gauge("clorefleet_tick_duration_seconds", "How long the last tick took.", counts.last_took_s)
        yield _gauge(
            "clorefleet_leads", "1 while this daemon leads, 0 while it stands by.", int(counts.leads)
        )
        with self._store.read() as tx:
            yield from self._fleet(tx)

    def _fleet(self, tx: Transaction) -> Iterator[Metric]:
        now = self._clock.now()
        tick = tx.last_tick()
        if tick is not None:
            yield _gauge(
                "clorefleet_last_tick_timestamp_seconds",
                "End of the last tick.",
                tick.finished_at.timestamp(),
            )
            if tick.orders_read_at is not None:
                yield _gauge(
                    "clorefleet_orders_read_timestamp_seconds",
                    "Last reading of the market's order list.",
                    tick.orders_read_at.timestamp(),
                )
        guard = tx.guard()
        yield _gauge(
            "clorefleet_renting_stopped", "1 while the circuit breaker stops renting.", int(guard.is_stopped)
        )
        deployments, leases, wanted = tx.deployments(), tx.open_leases(), tx.wanted()
        names = [each.deployment_id for each in deployments]
        replicas = GaugeMetricFamily(
            "clorefleet_replicas", "Open leases by phase.", labels=["deployment", "phase"]
        )
        for name in names:
            phases = [lease.phase.value for lease in leases if lease.deployment_id == name]
            for phase in sorted(set(phases) | {"serving"}):
                replicas.add_metric([name, phase], phases.count(phase))
        yield replicas
        yield _by(
            "clorefleet_replicas_wanted",
            "Replicas wanted now.",
            {n: wanted[n].replicas for n in names if n in wanted},
        )
        burn, rates = dict.fromkeys(names, Decimal(0)), tx.coin_rates()
        for lease in leases:
            running = committed_usd_per_day([lease], rates)
            burn[lease.deployment_id] = burn.get(lease.deployment_id, Decimal(0)) + running
        yield _by("clorefleet_burn_usd_per_day", "Running rate of what may bill, with fee.", burn)
        budgets = {
            each.deployment_id: each.requirement.budget.per_day.amount
            for each in deployments
            if each.requirement.budget is not None
        }
        yield _by("clorefleet_budget_usd_per_day", "Ceiling of a day.", budgets)
        if guard.per_day is not None:
            yield _gauge(
                "clorefleet_fleet_budget_usd_per_day",
                "Ceiling over all deployments.",
                float(guard.per_day.per_day.amount),
            )
        spent = dict.fromkeys(names, Decimal(0)) | self._ledger.read(tx, now)
        total = CounterMetricFamily(
            "clorefleet_spent_usd", "Spent by the ledger since ever.", labels=["deployment"]
        )
        for name, amount in spent.items():
            total.add_metric([name], float(amount))
        yield total
        waiting = GaugeMetricFamily(
            "clorefleet_alerts", "Alerts on their way or not delivered.", labels=["state"]
        )
        for state in (DeliveryState.WAITING, DeliveryState.FAILED, DeliveryState.UNKNOWN):
            waiting.add_metric([state], len(tx.deliveries(state, limit=DELIVERIES_COUNTED_MAX)))
        yield waiting


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by(name: str, text: str, values: Any) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["deployment"])
    for deployment, value in values.items():
        family.add_metric([deployment], float(value))
    return family


def health(counts: TickCounts, now: datetime, *, late_after: timedelta) -> Health:
    """Well while ticks end in time. A daemon that has just started is given that time as well."""
    if not counts.leads:
        return Health(True, "standing by")
    if counts.finished_at is None:
        age = now - counts.begun_at
        text = f"no tick has ended since the start {int(age.total_seconds())} s ago"
        return Health(counts.failed == 0 and age <= late_after, text)
    age = now - counts.finished_at
    if age > late_after:
        return Health(False, f"the last tick ended {int(age.total_seconds())} s ago")
    return Health(True, "ticking")


class MetricsServer:
    """Answers on 127.0.0.1, in threads of its own; ended with `stop`."""

    def __init__(
        self, store: Store, clock: Clock, counts: TickCounts, *, preferred_port: int, late_after: timedelta
    ) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(FleetCollector(store, clock, counts))
        self._server = _listen(preferred_port, _handler(registry, clock, counts, late_after))
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(timeout=REQUEST_TIMEOUT_S)
        self._server.server_close()


def _listen(preferred_port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    for port in (preferred_port, 0):
        try:
            return ThreadingHTTPServer(("127.0.0.1", port), handler)
        except OSError as error:
            log.info("metrics_port_taken port=%s why=%s", port, error)
    raise DaemonError("No port is free for metrics.", remedy="Close what holds all ports of this machine.")


def _handler(
    registry: CollectorRegistry, clock: Clock, counts: TickCounts, late_after: timedelta
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S
        server_version = "clorefleet"
        sys_version = ""

        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            if host not in _HOSTS:
                # A web page that made its name point here must not read it (DNS rebinding).
                self._answer(403, "text/plain", b"only for this machine\n")
            elif self.path == "/metrics":
                try:
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                except StoreError as error:
                    self._answer(503, "text/plain", f"{error.what}\n".encode())
            elif self.path == "/healthz":
                found = health(counts, clock.now(), late_after=late_after)
                body = json.dumps({"ok": found.is_well, "text": found.text}).encode() + b"\n"
                self._answer(200 if found.is_well else 503, "application/json", body)
            else:
                self._answer(404, "text/plain", b"/metrics or /healthz\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Scrapes are no events."""

    return Handler
