"""Accidents that whole simulated lives ran into, each as small as it can be told. See docs/simulation.md."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from clorefleet.domain.deployment import Desired
from clorefleet.domain.errors import MarketUnreachable
from clorefleet.domain.intent import Boundary, Effect
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.node import NodeView
from clorefleet.domain.order import Order, OrderList, RentRequest
from clorefleet.domain.outcome import RentOutcome
from tests.fleet.world import World

HOSTILE = "\x1b]52;c;eA==\x07\rfine\nlevel=INFO order_rented order=1"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def set_clock_aside(world: World, offset: timedelta) -> None:
    """The market's time goes on being the true one; ours is `offset` ahead of it."""
    true_orders = world.market.fetch_orders

    def fetch_orders(*, include_completed: bool = False) -> OrderList:
        listed = true_orders(include_completed=include_completed)
        return replace(
            listed,
            orders=tuple(replace(each, created_at=each.created_at - offset) for each in listed.orders),
            told_at=world.clock.now() - offset,
        )

    world.market.fetch_orders = fetch_orders


@pytest.mark.parametrize("offset", [timedelta(days=1), timedelta(days=-1)])
def test_a_clock_that_is_a_day_off_neither_rents_again_nor_gives_back_at_once(
    world: World, offset: timedelta
):
    """D1. Orders were not known as ours, and each new one seemed to have cost a day without serving."""
    set_clock_aside(world, offset)
    world.wish()
    world.tick(40)
    [lease] = world.leases()
    assert lease.phase is Phase.SERVING
    assert len(world.market.orders) == 1


@pytest.mark.parametrize("offset", [timedelta(days=1), timedelta(days=-1)])
def test_an_order_that_ended_unseen_is_in_the_ledger_although_our_clock_is_a_day_off(
    world: World, offset: timedelta
):
    """D1, F14, S7: outbid seconds after the rent. Its time alone told whose it was, by our clock."""
    set_clock_aside(world, offset)
    world.hazards.rent_lost_after = 1
    true_rent = world.market.rent

    def rent(request: RentRequest) -> RentOutcome:
        outcome = true_rent(request)
        world.clock.sleep(70)
        for order in world.market.live:
            world.market.orders[order.order_id] = replace(world.market._billed(order), is_expired=True)
        world.market.rent = true_rent
        return outcome

    world.market.rent = rent
    world.wish()
    world.tick(10)
    ended, _ = world.market.orders.values()
    assert ended.spend.amount > 0
    with world.store.read() as tx:
        [counted] = [each for each in tx.segments() if each.order_id == ended.order_id]
    assert counted.settled_at is not None
    assert counted.market_spend == ended.spend.amount


@pytest.mark.parametrize("boundary", list(Boundary))
def test_no_key_outlives_its_order_wherever_the_process_dies(world: World, boundary: Boundary):
    """C1, S10."""
    made: set[str] = set()
    prepare = world.nodes.prepare

    def counting_prepare(lease_id):
        made.add(lease_id)
        return prepare(lease_id)

    world.nodes.prepare = counting_prepare
    world.hazards.kill_at = {(Effect.RENT, boundary)}
    world.wish()
    world.tick(60)
    world.wish(desired=Desired.STOPPED)
    world.tick(40)
    assert world.market.live == []
    assert made <= world.nodes.forgotten


def test_the_count_of_an_order_that_ends_is_not_opened_again_by_its_last_news(world: World):
    """A17, S7: the reading that shows the end also has the last figure of the market's counter."""
    world.wish()
    world.tick(12)
    [order] = world.market.live
    world.wish(desired=Desired.STOPPED)
    true_orders = world.market.fetch_orders

    def with_completed(*, include_completed: bool = False) -> OrderList:
        return true_orders(include_completed=True)

    world.market.fetch_orders = with_completed
    world.clock.sleep(300)
    world.market.orders[order.order_id] = replace(world.market._billed(order), is_expired=True)
    world.tick(10)
    with world.store.read() as tx:
        assert [each.ended_at for each in tx.segments() if each.ended_at is None] == []
    assert world.ledger() == world.bill()


def test_hostile_words_of_a_host_or_the_market_are_harmless_in_log_and_store(
    world: World, caplog: pytest.LogCaptureFixture
):
    """G1, G3, S14."""
    caplog.set_level("INFO", "clorefleet")
    world.wish()
    world.tick(12)

    def look(lease: Lease, order: Order) -> NodeView:
        return NodeView(trouble=HOSTILE, is_healthy=False)

    def fetch_view():
        raise MarketUnreachable(HOSTILE)

    world.nodes.look = look
    world.market.fetch_view = fetch_view
    world.tick(60)
    with world.store.read() as tx:
        kept = [event.text for _, event in tx.events()] + [d.note for d in tx.deployments()]
    for text in (*kept, *(record.getMessage() for record in caplog.records)):
        assert text.isprintable(), text


def test_an_order_that_left_the_list_unasked_is_known_by_its_key_when_it_comes_back(world: World):
    """A9v, S9: it was taken from a doubtful rent, so only its key proves that it is ours to end."""
    world.wish()
    world.tick(2)
    [lease] = world.leases()
    with world.store.write() as tx:
        tx.put_lease(replace(lease, is_proven=False))
    is_hidden = True
    true_orders = world.market.fetch_orders

    def fetch_orders(*, include_completed: bool = False) -> OrderList:
        listed = true_orders(include_completed=include_completed)
        shown = tuple(each for each in listed.orders if not is_hidden or each.order_id != lease.order_id)
        return replace(listed, orders=shown)

    def look(lease: Lease, order: Order) -> NodeView:
        if lease.lease_id in world.nodes.forgotten:
            return NodeView(trouble="no key opens it")
        return NodeView(host_key="ssh-ed25519 HOST")

    world.market.fetch_orders = fetch_orders
    world.nodes.look = look
    world.tick(10)
    assert lease.lease_id not in {each.lease_id for each in world.leases()}
    is_hidden = False
    world.tick(20)
    assert lease.order_id not in {each.order_id for each in world.market.live}
    assert lease.lease_id in world.nodes.forgotten


def test_a_key_that_was_kept_for_an_order_that_never_came_back_is_deleted_however_long_one_slept(
    world: World,
):
    """S10: the daemon was down for days, longer than ended leases are looked at."""
    world.wish()
    world.tick(2)
    [lease] = world.leases()
    world.wish(desired=Desired.STOPPED)
    del world.market.orders[lease.order_id]
    world.tick(4)
    assert world.leases() == () and world.nodes.kept_keys() == {lease.lease_id}
    world.clock.sleep(5 * 86_400)
    world.start()
    world.tick(3)
    assert world.leases() == ()
    assert world.nodes.kept_keys() == frozenset()
