"""What is committed and spent is read from sums, and is what the whole ledger says, to the last digit."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.domain.guard import FleetGuard
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId
from clorefleet.domain.ledger import LedgerSegment, counted, settled_totals, switched
from clorefleet.domain.money import Currency, Rate
from clorefleet.fleet.counting import close_count, put_count
from clorefleet.fleet.spending import load_ledger_totals, load_spending
from clorefleet.simulation.memory_store import MemoryStore
from clorefleet.store import leadership, statements
from clorefleet.store.database import Store, open_store
from clorefleet.store.queries import Transaction
from tests.fleet.builders import NOW, minutes
from tests.fleet.world import VirtualClock

NAMES = ("tiny", "large")
RATES = {
    Currency.USD: Decimal(1),
    Currency.CLORE: Decimal("0.0213"),
    Currency.BITCOIN: Decimal("91234.5678901"),
}
STEPS = st.tuples(
    st.sampled_from(("counted", "spent", "repriced", "ended", "settled", "reopened")),
    st.integers(0, 4),
    st.integers(1, 10**10),
)


def begin(number: int, *, lease_id: str = "") -> LedgerSegment:
    """An order's first line; order 3 is given to two leases (A21)."""
    currency = list(RATES)[number % 3]
    return LedgerSegment(
        lease_id=LeaseId(lease_id or f"l{number}"),
        deployment_id=DeploymentId(NAMES[number % 2]),
        order_id=OrderId(min(number, 3)),
        price=Rate.per_day(Decimal(number + 1) / RATES[currency], currency),
        is_spot=False,
        fee_percent=Decimal("1.25"),
        creation_fee=Decimal("0.00000012"),
        usd_per_unit=RATES[currency],
        rate_source="test",
        started_at=NOW,
    )


def change(tx: Transaction, step: str, number: int, amount: Decimal, now: datetime) -> None:
    first = begin(number)
    mine = tuple(each for each in tx.order_segments(first.order_id) if each.lease_id == first.lease_id)
    if not mine:
        put_count(tx, first.order_id, (first,))
        return
    match step:
        case "counted":
            put_count(tx, first.order_id, counted(mine, amount))
        case "spent":
            if len(mine) == 1:
                tx.note_spends([(first.order_id, replace(mine[0], market_spend=amount))])
        case "repriced":
            rate = first.usd_per_unit * 2
            price = first.price * 2
            put_count(
                tx, first.order_id, switched(mine, now, price=price, usd_per_unit=rate, rate_source="x")
            )
        case "ended":
            close_count(tx, first.order_id, first.lease_id, ended_at=now, settled=None, now=now)
        case "settled":
            close_count(tx, first.order_id, first.lease_id, ended_at=now, settled=amount, now=now)
        case "reopened":
            from clorefleet.domain.ledger import reopened

            put_count(tx, first.order_id, reopened(mine))


def live(store: Store, steps: list[tuple[str, int, int]]) -> datetime:
    now = NOW
    for step, number, units in steps:
        now += minutes(7)
        with store.write() as tx:
            change(tx, step, number, Decimal(units) / 10**8, now)
    return now


def assert_sums_are_the_ledger(store: Store, now: datetime) -> None:
    with store.read() as tx:
        everything = tx.segments()
        assert set(tx.settled_totals()) >= set(settled_totals(everything))
        assert all(not each.amount for each in set(tx.settled_totals()) - set(settled_totals(everything)))
        for currency, total in load_ledger_totals(tx, now).items():
            whole = [each.charged(now) for each in everything if each.price.currency is currency]
            assert total == sum(whole, Decimal(0))
        spending = load_spending(tx, now)
    for name, spent in spending.fleet.deployment_spent_total_usd.items():
        whole_usd = sum((each.cost_usd(now) for each in everything if each.deployment_id == name), Decimal(0))
        assert abs(spent - whole_usd) <= Decimal("1E-18"), "a sum of 28 digits rounds by its order"


def totals_wanted() -> FleetGuard:
    return FleetGuard(
        total_usd=Decimal(500), deployment_totals_usd={DeploymentId(name): Decimal(100) for name in NAMES}
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_sums_of_what_is_settled_are_those_of_the_whole_ledger_whatever_happened(
    tmp_path_factory, steps: list[tuple[str, int, int]]
):
    folder: Path = tmp_path_factory.mktemp("sums")
    for store in (open_store(f"sqlite:///{folder / 'fleet.db'}"), MemoryStore()):
        with store.write() as tx:
            tx.put_guard(totals_wanted())
        now = live(store, steps)
        assert_sums_are_the_ledger(store, now + timedelta(hours=3))
        if not isinstance(store, MemoryStore):
            store.dispose()


def test_a_bill_that_is_opened_again_is_counted_once():
    store = MemoryStore()
    now = live(
        store, [("counted", 1, 1), ("settled", 1, 5 * 10**8), ("reopened", 1, 1), ("settled", 1, 7 * 10**8)]
    )
    with store.read() as tx:
        assert load_ledger_totals(tx, now) == {begin(1).price.currency: Decimal(7)}


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else open_store(f"sqlite:///{tmp_path / 'fleet.db'}")


def spent_of_totals(store: Store, now: datetime) -> dict[str, Decimal]:
    with store.read() as tx:
        return dict(load_spending(tx, now).fleet.deployment_spent_total_usd)


def test_a_total_of_a_deployment_counts_what_is_spent_from_when_it_is_set(store: Store):
    """What runs across that moment is shared out, and of two deployments each has its own moment."""
    hours = [NOW + timedelta(hours=each) for each in (1, 20, 40)]
    cheap, dear = begin(0), replace(begin(3), order_id=OrderId(9))  # $1 and $4 a day, with 1.25 % fee
    gone = replace(begin(0), lease_id=LeaseId("l9"), order_id=OrderId(8), ended_at=hours[0])
    with store.write() as tx:
        for each in (cheap, dear, gone):
            put_count(tx, each.order_id, (replace(each, creation_fee=Decimal(0)),))
        tx.put_guard(
            FleetGuard()
            .with_total_of(cheap.deployment_id, Decimal(5), now=hours[1])
            .with_total_of(dear.deployment_id, Decimal(5), now=hours[0])
        )
    a_day = Decimal("1.0125") / 24
    assert spent_of_totals(store, hours[1]) == {"tiny": 0, "large": 4 * 19 * a_day}
    assert spent_of_totals(store, hours[2]) == {"tiny": 20 * a_day, "large": 4 * 39 * a_day}


def test_a_total_that_was_stored_without_its_moment_counts_the_whole_life_as_before(store: Store):
    with store.write() as tx:
        put_count(tx, OrderId(0), (replace(begin(0), creation_fee=Decimal(0)),))
        tx.put_guard(FleetGuard(deployment_totals_usd={DeploymentId("tiny"): Decimal(5)}))
    assert spent_of_totals(store, NOW + timedelta(days=1)) == {"tiny": Decimal("1.0125")}


@pytest.mark.parametrize("way", ["the lock file", "the beat that stood still"])
def test_who_takes_over_sums_the_ledger_anew(tmp_path: Path, way: str):
    """A daemon of an older version, which knows nothing of sums, settled bills meanwhile: the ceilings would
    have let that much more be spent for good."""
    store = open_store(f"sqlite:///{tmp_path / 'fleet.db'}")
    leadership.acquire(store, "old", now=NOW)
    now = live(store, [("counted", 1, 5), ("ended", 1, 1), ("settled", 1, 70_000_000)])
    with store.write() as tx:
        assert [each.amount for each in tx.settled_totals() if each.amount] == [Decimal("0.7")]
        tx.session.execute(statements.DROP_TOTALS)
    if way == "the lock file":
        assert leadership.acquire(store, "new", now=now, force=True)
    else:
        assert leadership.Standby(store, "new", clock=VirtualClock(now), patience_s=0).try_to_lead()
    assert_sums_are_the_ledger(store, now)
    with store.read() as tx:
        assert [each.amount for each in tx.settled_totals()] == [Decimal("0.7")]
