"""What the daemon tells of itself: true, on loopback, and without anything that would need a token."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from clorefleet.daemon.metrics import LedgerSums, MetricsServer, TickCounts, health
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId
from clorefleet.domain.lease import Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.money import Rate
from clorefleet.domain.wanted import Wanted
from clorefleet.simulation.memory_store import MemoryStore
from tests.fleet.builders import NOW, deployment, lease
from tests.fleet.world import VirtualClock


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    store, clock = MemoryStore(), VirtualClock()
    counts = TickCounts(NOW, started=5, failed=1, finished_at=NOW)
    with store.write() as tx:
        tx.put_deployment(deployment())
        tx.put_lease(lease(phase=Phase.SERVING, host_key="ssh-ed25519 canary"))
        tx.put_wanted(DeploymentId("tiny"), Wanted(2, "window"), now=NOW)
        tx.put_tick(now=NOW, orders_read_at=NOW, trouble="")
    made = MetricsServer(store, clock, counts, preferred_port=0, late_after=timedelta(minutes=5))
    made.clock = clock
    made.start()
    yield made
    made.stop()


def values(server: MetricsServer) -> dict[tuple, float]:
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_prometheus_reads_ticks_replicas_and_money(server: MetricsServer):
    found = values(server)
    assert found["clorefleet_ticks_total",] == 5 and found["clorefleet_tick_failures_total",] == 1
    assert found["clorefleet_replicas", "serving", "tiny"] == 1
    assert found["clorefleet_replicas_wanted", "tiny"] == 2
    assert found["clorefleet_budget_usd_per_day", "tiny"] == 16
    assert found["clorefleet_burn_usd_per_day", "tiny"] == pytest.approx(2.1)
    assert found["clorefleet_last_tick_timestamp_seconds",] == NOW.timestamp()


def test_no_key_address_or_host_is_among_them(server: MetricsServer):
    text = httpx.get(f"{server.url}/metrics").text
    assert "canary" not in text and "127.0.0.1" not in text


def test_health_says_when_ticks_are_late(server: MetricsServer):
    assert httpx.get(f"{server.url}/healthz").json() == {"ok": True, "text": "ticking"}
    server.clock.sleep(301)
    answer = httpx.get(f"{server.url}/healthz")
    assert answer.status_code == 503 and "301 s ago" in answer.json()["text"]


@pytest.mark.parametrize(
    ("failed", "after", "is_well"), [(0, 0, True), (0, 5, True), (0, 6, False), (1, 0, False)]
)
def test_a_daemon_whose_first_tick_never_ends_is_not_well_for_ever(failed: int, after: int, is_well: bool):
    """It is given the same time as any tick, and none where a tick has failed."""
    counts = TickCounts(NOW, started=1, failed=failed)
    found = health(counts, NOW + timedelta(minutes=after), late_after=timedelta(minutes=5))
    assert found.is_well is is_well and "no tick has ended" in found.text


def test_a_daemon_that_stands_by_is_well_without_a_tick():
    counts = TickCounts(NOW, leads=False)
    assert health(counts, NOW + timedelta(days=1), late_after=timedelta(minutes=5)).is_well


def test_another_name_for_this_machine_is_refused(server: MetricsServer):
    """DNS rebinding: a page that points its name here reads nothing."""
    answer = httpx.get(f"{server.url}/metrics", headers={"Host": "evil.example"})
    assert answer.status_code == 403


def test_nothing_else_is_served_and_it_listens_on_loopback(server: MetricsServer):
    assert httpx.get(f"{server.url}/").status_code == 404
    assert server.url.startswith("http://127.0.0.1:")


def test_what_was_spent_is_the_ledger_and_settled_orders_are_read_once():
    store, sums, seen = MemoryStore(), LedgerSums(), []

    def put(order_id: int, *, ended_at=None, settled_at=None, spend="1") -> None:
        segment = LedgerSegment(
            LeaseId(f"l{order_id}"), DeploymentId("tiny"), OrderId(order_id), Rate.per_day(1), False,
            Decimal(0), Decimal(0), Decimal(1), "USD", NOW - timedelta(days=9), ended_at, Decimal(spend),
            settled_at,
        )  # fmt: skip
        with store.write() as tx:
            tx.put_order_segments(OrderId(order_id), (segment,))

    def read(now=NOW) -> Decimal:
        with store.read() as tx:
            whole = sum((each.cost_usd(now) for each in tx.segments()), Decimal(0))
            found = sums.read(_Watched(tx, seen), now)
            assert found == {DeploymentId("tiny"): whole}
            return whole

    long_ago = NOW - timedelta(days=5)
    put(1, ended_at=long_ago, settled_at=long_ago)
    put(2, ended_at=long_ago)
    put(3)
    read()
    put(2, ended_at=long_ago, settled_at=NOW, spend="2.5")
    read()
    put(1, spend="7")  # the market listed it alive again
    read(NOW + timedelta(hours=1))
    read(NOW + timedelta(days=3))
    assert seen[0] is None and None not in seen[1:], "all of the ledger is read once"


class _Watched:
    def __init__(self, tx, seen: list) -> None:
        self._tx, self._seen = tx, seen

    def segments(self, *, since=None):
        self._seen.append(since)
        return self._tx.segments(since=since)
