"""What a transaction of the journal refuses or leaves alone, whatever the decision before it said."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from clorefleet.domain.errors import BudgetExceeded
from clorefleet.domain.identity import DeploymentId, IntentId, LeaseId, OrderId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.money import Money
from clorefleet.fleet.action import End, Rent
from clorefleet.fleet.journal import Journal
from tests.fleet.builders import NOW, deployment, lease, order, plan
from tests.fleet.world import World

L1, L2 = LeaseId("l1"), LeaseId("l2")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def journal(world: World) -> Journal:
    return Journal(world.store, world.token)


def intended(server_id: int, name: str = "tiny") -> Lease:
    return lease(
        LeaseState.INTENT,
        Phase.RENTING,
        lease_id=L2,
        intent_id=IntentId("l2-rent"),
        deployment_id=DeploymentId(name),
        server_id=server_id,
    )


def put(world: World, *leases: Lease) -> None:
    with world.store.write() as tx:
        for name in ("tiny", "other"):
            tx.put_deployment(deployment(name))
        for each in leases:
            tx.put_lease(each)


@pytest.mark.parametrize("state", [LeaseState.INTENT, LeaseState.ORDERED, LeaseState.ENDING])
def test_a_server_that_any_deployment_holds_is_not_rented_by_another(
    world: World, journal: Journal, state: LeaseState
):
    """S2: both planned it from the same offers; an order that shows up there must be one lease's."""
    phase = {LeaseState.INTENT: Phase.RENTING, LeaseState.ENDING: Phase.DRAINING}.get(state, Phase.WAITING)
    put(world, lease(state, phase, server_id=7, deployment_id=DeploymentId("other")))
    with pytest.raises(BudgetExceeded, match="Server 7 has an order or a rent in doubt already"):
        journal.begin_rent(Rent(DeploymentId("tiny"), 0, plan(7), "empty"), intended(7), now=NOW)
    with world.store.read() as tx:
        assert tx.lease(L2) is None and tx.doubtful_intents() == ()
    journal.begin_rent(Rent(DeploymentId("tiny"), 0, plan(8), "empty"), intended(8), now=NOW)
    with world.store.read() as tx:
        assert tx.lease(L2) is not None and len(tx.doubtful_intents()) == 1


def test_a_server_is_free_again_once_its_lease_has_ended(world: World, journal: Journal):
    put(world, lease(LeaseState.ENDED, Phase.ENDED, server_id=7, deployment_id=DeploymentId("other")))
    journal.begin_rent(Rent(DeploymentId("tiny"), 0, plan(7), "empty"), intended(7), now=NOW)
    with world.store.read() as tx:
        assert tx.lease(L2) is not None


def test_the_end_of_an_order_leaves_the_count_of_a_new_one_with_its_number_alone(
    world: World, journal: Journal
):
    """A21, S7: the old bill was shared out over both, and the new order was no longer counted."""
    put(world, intended(7))
    first = journal.adopt(replace(intended(7), lease_id=L1), order(900, 7), "listed", now=NOW)
    leaving = journal.begin_cancel(first, OrderId(900), "too slow", now=NOW)
    later = NOW + timedelta(minutes=5)
    journal.adopt(intended(8), order(900, 8, spend=Money.usd("0.02")), "listed", now=later)
    journal.end(leaving, End(L1, OrderId(900), Decimal("0.50"), "too slow"), now=later)
    with world.store.read() as tx:
        counts = {each.lease_id: each for each in tx.segments()}
    assert counts[L1].settled_at is not None and counts[L1].market_spend == Decimal("0.50")
    assert counts[L2].ended_at is None and counts[L2].market_spend == Decimal("0.02")
