"""A glance at the store sees what the store says; where it cannot, the store is opened."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from clorefleet.domain.guard import FleetGuard, WalletReading
from clorefleet.domain.host import HostFault
from clorefleet.domain.identity import DeploymentId, OrderId, ServerId
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.money import Currency, ExchangeRate, Money, parse_budget
from clorefleet.domain.usage import UsageHour
from clorefleet.domain.wanted import Wanted
from clorefleet.store.database import open_store
from clorefleet.store.glance import Look, NotForAGlance, deployment_names, glance, look
from tests.fleet.builders import NOW, deployment, lease, order

QUESTIONS = (
    "deployments", "open_leases", "leases", "segments", "unsettled_segments", "settled_usd", "phases",
    "usage", "host_faults", "coin_rates", "wanted", "guard", "wallet_readings", "strange_orders",
)  # fmt: skip
SINCE = ("leases", "segments", "phases", "usage", "host_faults")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with something in every table that is looked at."""
    found = f"sqlite:///{tmp_path / 'fleet.db'}"
    serving = lease(LeaseState.ORDERED, Phase.SERVING, order_id=OrderId(7), measured_tokens_per_s=3.5)
    ended = lease(
        LeaseState.ENDED,
        Phase.SERVING,
        lease_id="l-old",
        order_id=OrderId(6),
        created_at=NOW - timedelta(hours=5),
        ended_at=NOW - timedelta(hours=4),
    )
    segment = LedgerSegment(
        lease_id=serving.lease_id,
        deployment_id=serving.deployment_id,
        order_id=OrderId(7),
        price=serving.plan.price.billed,
        is_spot=False,
        fee_percent=Decimal("5"),
        creation_fee=Decimal("0.1"),
        usd_per_unit=Decimal("1"),
        rate_source="test",
        started_at=NOW,
        market_spend=Decimal("0.12345678"),
    )
    reading = WalletReading(
        Money.usd("12.5"), NOW, Decimal(1), Decimal(2), Decimal(13), NOW - timedelta(hours=3), Decimal(0)
    )
    with open_store(found).write() as tx:
        tx.put_deployment(replace(deployment(str(serving.deployment_id)), attempts_since=NOW))
        tx.put_lease(serving)
        tx.put_lease(ended)
        tx.put_order_segments(OrderId(7), (segment,))
        over = replace(
            segment,
            lease_id=ended.lease_id,
            order_id=OrderId(6),
            started_at=ended.created_at,
            ended_at=ended.ended_at,
            settled_at=NOW,
        )
        tx.put_order_segments(OrderId(6), (over,))
        tx.put_wanted(serving.deployment_id, Wanted(2, "load", NOW + timedelta(hours=1)), now=NOW)
        tx.put_guard(FleetGuard(parse_budget("40/day"), Decimal(500), NOW, {DeploymentId("d"): Decimal(9)}))
        tx.put_wallet_readings([reading])
        tx.note_foreign(order(901, 8), usd_per_day=Decimal("2.4"), now=NOW - timedelta(days=1))
        tx.note_foreign(order(902, 9), usd_per_day=None, now=NOW - timedelta(minutes=1))
        tx.note_foreign(order(901, 8), usd_per_day=None, now=NOW)
        tx.put_tick(now=NOW, orders_read_at=NOW, trouble="")
        tx.add_usage(
            UsageHour(serving.lease_id, hour, "m", hour, 3, 1, 0, 10, 20, waits=(1,) * 10)
            for hour in (NOW - timedelta(hours=5), NOW)
        )
        for at in (NOW - timedelta(hours=5), NOW):
            tx.add_host_fault(HostFault(ServerId(7), at, "unreachable", Decimal("0.5")))
        tx.put_coin_rates([ExchangeRate(Currency.CLORE, Decimal("0.0123"), NOW, "test")])
    return found


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_glance_sees_what_the_store_says(url: str, question: str):
    with open_store(url).read() as tx:
        told = getattr(tx, question)()
    with glance(url) as found:
        seen = getattr(found, question)()
    assert seen == told and told


@pytest.mark.parametrize("question", SINCE)
@pytest.mark.parametrize("hours_ago", [0, 1, 4, 6])
def test_a_glance_leaves_out_what_the_store_leaves_out(url: str, question: str, hours_ago: int):
    since = NOW - timedelta(hours=hours_ago)
    with open_store(url).read() as tx:
        told, everything = getattr(tx, question)(since=since), getattr(tx, question)()
    with glance(url) as found:
        assert getattr(found, question)(since=since) == told
    assert len(told) < len(everything) or hours_ago >= 4


def test_settled_and_unsettled_are_the_whole_ledger(url: str):
    with glance(url) as found:
        whole = sum(each.cost_usd(NOW) for each in found.segments())
        changing = sum(each.cost_usd(NOW) for each in found.unsettled_segments())
        assert len(found.unsettled_segments()) == 1
        assert sum(found.settled_usd().values()) + changing == whole


def test_one_deployment_and_its_segments_are_found_by_name(url: str):
    with glance(url) as found:
        [wish] = found.deployments()
        assert found.deployment(wish.deployment_id) == wish
        assert len(found.segments(wish.deployment_id)) == 2
        assert found.deployment(DeploymentId("none")) is None and not found.segments(DeploymentId("none"))


def test_a_store_of_another_revision_is_opened_instead(url: str):
    with sqlite3.connect(url.removeprefix("sqlite:///")) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(NotForAGlance), glance(url):
        pass


def test_what_cannot_be_read_at_a_glance_is_asked_of_the_store(url: str):
    asked: list[str] = []

    def ask(found: Look) -> int:
        asked.append(type(found).__name__)
        if len(asked) == 1:
            raise ValueError("a value of another shape")
        return len(found.deployments())

    assert look(url, ask) == 1
    assert asked == ["Glance", "Transaction"]


def test_a_look_at_no_store_makes_one(tmp_path: Path):
    assert look(f"sqlite:///{tmp_path / 'new.db'}", lambda found: found.deployments()) == ()


def test_completion_reads_names_and_never_makes_a_store(url: str, tmp_path: Path):
    assert len(deployment_names(url)) == 1
    missing = tmp_path / "none.db"
    assert deployment_names(f"sqlite:///{missing}") == () and not missing.exists()


def test_only_what_the_last_reading_showed_is_strange_and_a_reading_that_failed_forgets_nothing(url: str):
    with open_store(url).write() as tx:
        [shown] = tx.strange_orders()
        assert (shown.order_id, shown.first_seen_at) == (OrderId(901), NOW - timedelta(days=1))
        assert shown.usd_per_day == Decimal("2.4"), "what was known of its price stays"
        tx.put_tick(now=NOW + timedelta(minutes=1), orders_read_at=None, trouble="no answer")
        assert tx.strange_orders() == (shown,)
    assert look(url, lambda found: found.strange_orders()) == (shown,)
