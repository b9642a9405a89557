"""Whose an order is, and the end of those that are ours: refusing to act is tested like acting."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from clorefleet.domain.deployment import Desired
from clorefleet.domain.errors import RateLimited
from clorefleet.domain.failure import Cause
from clorefleet.domain.identity import LeaseId, OrderId, ServerId
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.order import OrderList, StrangeOrder
from clorefleet.domain.outcome import CancelRefused
from clorefleet.fleet.strange import lease_it_may_be_of
from clorefleet.fleet.sweep import Standing, all_live, end_orders, explain_orders
from tests.fleet.builders import IMAGE, NOW, deployment, lease, order
from tests.fleet.test_reconcile import minutes
from tests.fleet.world import World

OURS = frozenset({IMAGE})
WANTED = (deployment(),)


def standing(the_order, *leases, wishes=WANTED, images=OURS):
    [finding] = explain_orders([the_order], leases=leases, deployments=wishes, images=images)
    return finding.standing


@pytest.mark.parametrize(
    ("held", "wishes", "expected"),
    [
        (lease(), (deployment(),), Standing.LEASED),
        (lease(), (deployment(desired=Desired.STOPPED),), Standing.LEFT_OVER),
        (lease(), (), Standing.LEFT_OVER),
        (lease(LeaseState.ENDED, Phase.ENDED), (deployment(),), Standing.LEFT_OVER),
        (lease(LeaseState.INTENT, Phase.RENTING), (deployment(),), Standing.IN_DOUBT),
    ],
)
def test_a_record_decides(held, wishes, expected):
    assert standing(order(), held, wishes=wishes) is expected


def test_a_number_that_was_given_again_is_not_the_order_of_an_old_lease():
    """A21: our order of that number was on another server."""
    old = lease(LeaseState.ENDED, Phase.ENDED, server_id=5)
    assert standing(order(image="somebody/else"), old) is Standing.FOREIGN
    assert standing(order(server_id=0), old) is Standing.LEFT_OVER, "the list does not tell the server"
    new = lease(LeaseState.ORDERED, Phase.SERVING, lease_id=LeaseId("l2"))
    for leases in ((old, new), (new, old)):
        assert standing(order(), *leases) is Standing.LEASED
        assert standing(order(server_id=0), *leases) is Standing.LEASED, "a closed lease says less"


def test_without_a_record_the_image_makes_it_likely_and_nothing_makes_it_certain():
    """E5, E6: the store is empty, or of yesterday."""
    assert standing(order()) is Standing.LIKELY
    assert standing(order(image="somebody/else")) is Standing.FOREIGN
    assert standing(order(), images=frozenset()) is Standing.FOREIGN


def test_a_rent_in_doubt_explains_only_its_own_server_image_and_kind():
    doubt = lease(LeaseState.INTENT, Phase.RENTING)
    assert standing(order(server_id=8), doubt) is Standing.LIKELY
    assert standing(order(image="somebody/else"), doubt) is Standing.FOREIGN
    assert standing(order(is_spot=True), doubt) is Standing.LIKELY


UNPROVEN = lease(
    LeaseState.ENDED,
    Phase.ENDED,
    order_id=None,
    cause=Cause.UNPROVEN,
    reason="its login key is on another machine",
    created_at=NOW - minutes(30),
    ended_at=NOW,
)


@pytest.mark.parametrize("ahead", [minutes(-60), minutes(0), minutes(60)])
def test_an_order_of_an_unproven_rent_is_told_by_the_markets_clock(ahead):
    """Ours was an hour behind: the order, of which the market says when it was made, seemed made later."""
    asked_at = UNPROVEN.created_at + ahead
    held = replace(UNPROVEN, asked_at_market=asked_at)
    ours = order(image="somebody/else", created_at=asked_at + minutes(1))
    assert standing(ours, held) is Standing.LIKELY
    assert standing(replace(ours, created_at=NOW + ahead + minutes(5)), held) is Standing.LIKELY
    assert standing(replace(ours, created_at=NOW + ahead + minutes(11)), held) is Standing.FOREIGN
    assert standing(replace(ours, created_at=None), held) is Standing.LIKELY
    assert standing(replace(ours, server_id=ServerId(8)), held) is Standing.FOREIGN
    assert standing(ours, replace(held, cause=None)) is Standing.FOREIGN
    assert standing(ours, replace(held, ended_at=None)) is Standing.FOREIGN


def test_where_the_market_did_not_tell_its_time_ours_has_to_do():
    ours = order(image="somebody/else", created_at=NOW + minutes(9))
    assert standing(ours, UNPROVEN) is Standing.LIKELY
    assert standing(replace(ours, created_at=NOW + minutes(11)), UNPROVEN) is Standing.FOREIGN


def test_a_clock_that_was_set_back_during_an_unproven_rent_hides_no_order_of_it():
    held = replace(UNPROVEN, asked_at_market=NOW, created_at=NOW, ended_at=NOW - minutes(40))
    ours = order(image="somebody/else", created_at=NOW + minutes(9))
    assert standing(ours, held) is Standing.LIKELY


def test_a_remembered_order_is_told_by_our_clock():
    """Both times are of the machine that remembers them."""
    held = replace(UNPROVEN, asked_at_market=NOW - minutes(600))
    seen = StrangeOrder(OrderId(900), ServerId(7), None, first_seen_at=NOW)
    assert lease_it_may_be_of(seen, [held]) is held
    assert lease_it_may_be_of(replace(seen, first_seen_at=NOW + minutes(1)), [held]) is None
    assert lease_it_may_be_of(seen, [replace(held, ended_at=None)]) is None


def test_an_age_protects_what_another_machine_may_just_have_made():
    [young] = explain_orders([order(created_at=NOW - minutes(30))], images=OURS)
    assert not young.is_older_than(timedelta(hours=2), NOW)
    assert young.is_older_than(timedelta(minutes=30), NOW)


def ended(world: World, **hazards: int):
    for name, count in hazards.items():
        setattr(world.hazards, name, count)
    return end_orders(
        world.market, world.market.live, sleep=world.clock.sleep, tell=lambda text: None, rounds_max=8
    )


def test_ending_reads_back_twice_and_survives_lost_and_lying_answers(tmp_path: Path):
    """A14, A16, L6: only the market is needed."""
    world = World(tmp_path)
    world.wish()
    world.tick(20)
    [live] = world.market.live
    result = ended(world, cancel_lost=2, cancel_lies=2)
    assert result.ended == (live.order_id,) and result.unending == () and world.market.live == []


def test_an_order_that_one_reading_misses_is_found_by_the_next(tmp_path: Path):
    """A22, A9: a stop that saw half of the list would leave the other half billing."""
    world = World(tmp_path)
    world.market.orders = {900: order(900), 901: order(901, server_id=8)}
    world.market.visible_from = {900: NOW, 901: NOW + timedelta(seconds=1)}
    found = all_live(world.market, sleep=world.clock.sleep).live()
    assert [each.order_id for each in found] == [OrderId(900), OrderId(901)]


def test_what_one_reading_could_not_read_is_told_whatever_the_next_one_reads(tmp_path: Path):
    """A10: the next one may lack the page that it was on."""
    world = World(tmp_path)
    readings = [OrderList((), NOW, unreadable=1), OrderList((order(900),), NOW)]
    world.market.fetch_orders = lambda: readings.pop()
    found = all_live(world.market, sleep=world.clock.sleep)
    assert found.unreadable == 1 and [each.order_id for each in found.live()] == [OrderId(900)]


def test_an_order_that_may_be_a_record_that_cannot_be_read_is_not_told_as_ended(tmp_path: Path):
    world = World(tmp_path)
    world.market.fetch_orders = lambda: OrderList((), NOW, unreadable=1)
    result = end_orders(world.market, [order(900)], sleep=world.clock.sleep, tell=lambda text: None)
    assert [each.last_answer for each in result.unending] == ["the list cannot be read whole"]


def test_what_will_not_end_is_named_with_its_price_and_attempts(tmp_path: Path):
    world = World(tmp_path)
    world.wish()
    world.tick(20)
    result = ended(world, cancel_lies=99)
    [unending] = result.unending
    assert unending.attempts == 8 and unending.price == "$0.0834/hour"
    assert unending.order_id == world.market.live[0].order_id


def test_a_used_up_request_limit_is_told_as_what_it_is_and_asked_again(tmp_path: Path):
    world, told = World(tmp_path), []
    world.wish()
    world.tick(20)
    fetch, cancel = world.market.fetch_orders, world.market.cancel
    limited = iter([True, False, True, False])

    def fetch_orders(**options):
        if next(limited, False):
            raise RateLimited("too many requests")
        return fetch(**options)

    def refused_once(order_id, **options):
        world.market.cancel = cancel
        return CancelRefused(RateLimited("too many requests"))

    world.market.fetch_orders, world.market.cancel = fetch_orders, refused_once
    result = end_orders(world.market, world.market.live, sleep=world.clock.sleep, tell=told.append)
    assert not result.unending and not world.market.live
    assert sum("request limit is used up" in each for each in told) == 3
    assert not any("refused" in each for each in told)


def test_only_the_named_orders_are_ended(tmp_path: Path):
    """S9."""
    world = World(tmp_path)
    world.market.orders = {900: order(900), 901: order(901, server_id=8, image="somebody/else")}
    world.market.visible_from = {900: NOW, 901: NOW}
    end_orders(
        world.market,
        [world.market.orders[900]],
        sleep=world.clock.sleep,
        tell=lambda text: None,
    )
    assert [each.order_id for each in world.market.live] == [OrderId(901)]


def test_an_order_that_has_the_number_of_an_ended_one_is_not_ended(tmp_path: Path):
    """A21, S9: a cancel names the number alone."""
    world = World(tmp_path)
    world.market.orders = {900: order(900, server_id=8)}
    world.market.visible_from = {900: NOW}
    result = end_orders(world.market, [order(900)], sleep=world.clock.sleep, tell=lambda text: None)
    assert result.ended == (OrderId(900),) and len(world.market.live) == 1
    untold = order(900, server_id=0)
    end_orders(world.market, [untold], sleep=world.clock.sleep, tell=lambda text: None)
    assert world.market.live == []


def test_the_daemon_tells_which_orders_will_not_end_until_they_do(tmp_path: Path):
    world = World(tmp_path)
    told = []
    object.__setattr__(world.fleet, "note_unending", told.append)
    world.wish()
    world.tick(20)
    world.wish(desired=Desired.STOPPED)
    world.hazards.cancel_lies = 6
    world.tick(14, every_s=20)
    assert any(told), "nobody was told"
    world.tick(20, every_s=20)
    assert told[-1] == () and world.market.live == []
