"""A glance at the store sees what the store says; where it cannot, the store is opened."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from clorefleet.domain.guard import FleetGuard, WalletReading
from clorefleet.domain.identity import DeploymentId, OrderId
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.money import Money, parse_budget
from clorefleet.domain.wanted import Wanted
from clorefleet.store.database import open_store
from clorefleet.store.glance import Look, NotForAGlance, deployment_names, glance, look
from tests.fleet.builders import NOW, deployment, lease

QUESTIONS = ("deployments", "open_leases", "segments", "wanted", "guard", "wallet_readings")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with something in every table that is looked at."""
    found = f"sqlite:///{tmp_path / 'fleet.db'}"
    serving = lease(LeaseState.ORDERED, Phase.SERVING, order_id=OrderId(7), measured_tokens_per_s=3.5)
    ended = lease(LeaseState.ENDED, Phase.SERVING, lease_id="l-old", ended_at=NOW)
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
        tx.put_wanted(serving.deployment_id, Wanted(2, "load", NOW + timedelta(hours=1)), now=NOW)
        tx.put_guard(FleetGuard(parse_budget("40/day"), Decimal(500), NOW, {DeploymentId("d"): Decimal(9)}))
        tx.put_wallet_readings([reading])
    return found


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_glance_sees_what_the_store_says(url: str, question: str):
    with open_store(url).read() as tx:
        told = getattr(tx, question)()
    with glance(url) as found:
        seen = getattr(found, question)()
    assert seen == told and told


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
