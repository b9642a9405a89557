"""Real ticks on a real store against an awkward market: what holds after every accident."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from clorefleet.domain.deployment import Desired
from clorefleet.domain.errors import StoreError, UnknownModel
from clorefleet.domain.failure import Correction
from clorefleet.domain.host import CudaFound
from clorefleet.domain.identity import DeploymentId, ServerId
from clorefleet.domain.intent import Boundary, Effect
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.money import Currency, ExchangeRate, Money, Rate, parse_budget
from clorefleet.domain.node import NodeView
from clorefleet.domain.offer import MarketView
from clorefleet.domain.order import NO_SERVER, Order, OrderList, RentRequest, Wallet, is_same_image
from clorefleet.domain.plan import PlanReport, Requirement
from clorefleet.fleet.action import Action
from clorefleet.fleet.journal import Journal
from clorefleet.fleet.limits import DEFAULT_LIMITS
from clorefleet.fleet.loop import Fleet
from clorefleet.fleet.snapshot import Snapshot
from clorefleet.store.database import Store
from tests.fleet.builders import IMAGE, NOW, deployment, plan
from tests.fleet.world import OLD_DRIVER, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def serve(world: World, ticks: int = 40) -> None:
    world.wish()
    world.tick(ticks)


def stop(world: World, ticks: int = 30) -> None:
    world.wish(desired=Desired.STOPPED)
    world.tick(ticks)


def assert_serving_once(world: World) -> None:
    [lease] = world.leases()
    assert lease.phase is Phase.SERVING
    assert [order.order_id for order in world.market.live] == [lease.order_id]
    assert [backend.lease_id for backend in world.routes] == [lease.lease_id]


def assert_all_ended(world: World) -> None:
    assert world.market.live == [] and world.leases() == () and world.routes == ()
    assert world.ledger() == world.bill()
    with world.store.read() as tx:
        assert tx.doubtful_intents() == () and tx.open_bills() == ()


def test_a_wish_becomes_a_serving_replica_and_its_end_a_closed_ledger(world: World):
    serve(world, 12)
    assert_serving_once(world)
    stop(world)
    assert_all_ended(world)


def test_damaged_weights_are_fetched_again_on_the_same_server(world: World):
    world.nodes.damaged = {ServerId(7)}
    serve(world, 20)
    assert_serving_once(world)
    [lease] = world.leases()
    assert lease.server_id == 7 and lease.corrections == (Correction.FETCH_AGAIN,)
    jobs = [job.removeprefix(f"{lease.lease_id}-") for job in world.nodes.started]
    assert jobs == ["syncing-1", "launching-1", "syncing-again-1", "launching-again-1"]
    assert set(world.nodes.started.values()) == {1}
    stop(world)
    assert_all_ended(world)


@pytest.mark.parametrize("boundary", Boundary)
def test_a_daemon_that_dies_between_the_damage_and_the_second_download_loses_neither(
    world: World, boundary: Boundary
):
    """The step back is written down, its job perhaps not: the next finds the launch dead once more."""
    world.nodes.damaged = {ServerId(7)}
    world.wish()
    while not any("-launching-" in job for job in world.nodes.started):
        world.tick()
    world.hazards.kill_at = {(Effect.START_JOB, boundary)}
    world.tick(20)
    assert world.hazards.kill_at == set()
    assert_serving_once(world)
    [lease] = world.leases()
    assert lease.server_id == 7 and lease.corrections == (Correction.FETCH_AGAIN,)
    assert len(world.market.orders) == 1 and len(world.nodes.started) == 4


def test_what_the_probe_finds_of_a_driver_is_believed_by_the_plans_that_follow(world: World):
    """The server is given back at its probe; what was found there is kept all the same."""
    world.nodes.old_drivers = {ServerId(7)}
    asked: list[Requirement] = []
    plan_as_before = world._plan

    def watched(requirement: Requirement, view: MarketView) -> PlanReport:
        asked.append(requirement)
        return plan_as_before(requirement, view)

    world._plan = watched  # type: ignore[method-assign]
    world.start()
    serve(world, 30)
    [lease] = world.leases()
    assert lease.server_id == 8 and lease.phase is Phase.SERVING
    assert asked[0].cuda_found == ()
    assert asked[-1].cuda_found == (CudaFound(ServerId(7), (12, 2)),)
    with world.store.read() as tx:
        [gone] = [each for each in tx.leases(since=NOW) if each.server_id == 7]
        assert gone.cuda_found == (12, 2) and tx.discrepancies(gone.lease_id) == (OLD_DRIVER,)


def test_what_was_found_when_a_server_was_chosen_is_kept_for_looking_at(world: World):
    serve(world, 12)
    with world.store.read() as tx:
        [(name, planning)] = tx.plannings().items()
        [held] = tx.open_leases()
    assert name == held.deployment_id
    assert planning.options[0].key == held.plan.key and planning.options[0].rank == 1


def test_a_fleet_that_has_what_it_wants_does_nothing(world: World):
    serve(world)
    before = world.market.rent_calls
    world.tick(20)
    assert world.market.rent_calls == before == 1


@pytest.mark.parametrize("lag_s", [0, 20, 50])
@pytest.mark.parametrize("hazard", ["rent_lost_after", "rent_lost_before"])
def test_a_lost_answer_never_rents_twice(world: World, hazard: str, lag_s: int):
    """A1, A2, A9."""
    setattr(world.hazards, hazard, 1)
    world.hazards.list_lag = timedelta(seconds=lag_s)
    serve(world)
    assert_serving_once(world)
    assert len(world.market.orders) == 1


def test_an_order_that_appears_after_its_rent_was_given_up_is_ended(world: World):
    world.hazards.rent_lost_after = 1
    world.hazards.list_lag = timedelta(minutes=4)
    world.wish()
    world.tick(2)
    world.hazards.list_lag = timedelta(0)
    world.tick(60)
    assert_serving_once(world)
    assert len(world.market.orders) == 2
    stop(world)
    assert_all_ended(world)


def test_a_refused_rent_takes_the_next_plan_and_costs_nothing(world: World):
    world.hazards.rent_refused = 1
    serve(world)
    assert_serving_once(world)
    assert world.leases()[0].server_id == 8


def test_a_bad_host_is_given_back_and_the_next_one_serves(world: World):
    world.nodes.bad_servers = {ServerId(7)}
    serve(world)
    assert_serving_once(world)
    assert world.leases()[0].server_id == 8
    assert [order.server_id for order in world.market.live] == [8]


def test_when_all_hosts_are_bad_it_gives_up_with_nothing_rented(world: World):
    world.nodes.bad_servers = {ServerId(7), ServerId(8), ServerId(9)}
    serve(world, 120)
    assert world.market.live == [] and len(world.market.orders) == 3


@pytest.mark.parametrize("hazard, count", [("cancel_lost", 3), ("cancel_lies", 2), ("list_fails", 4)])
def test_a_stop_ends_all_orders_whatever_the_market_does(world: World, hazard: str, count: int):
    """A14, A15, A16, L3."""
    serve(world)
    setattr(world.hazards, hazard, count)
    stop(world, 60)
    assert_all_ended(world)


def test_an_order_that_the_market_ends_is_replaced(world: World):
    """A17."""
    serve(world)
    from dataclasses import replace

    [order] = world.market.live
    world.market.orders[order.order_id] = replace(order, is_expired=True)
    world.tick(30)
    assert_serving_once(world)
    assert len(world.market.orders) == 2


def test_a_foreign_order_is_never_touched(world: World):
    """S9."""
    world.market.rent(
        RentRequest(ServerId(55), is_spot=False, approved_price=plan().price.billed, image=IMAGE)
    )
    serve(world)
    stop(world)
    assert [order.server_id for order in world.market.live] == [55]


def test_the_committed_rate_never_passes_the_budget_while_failing_over(tmp_path: Path):
    """S3: replacements wait for the end of what they replace."""
    world = World(tmp_path, plans=tuple(plan(number, "14") for number in range(1, 5)))
    world.nodes.bad_servers = {ServerId(1), ServerId(2)}
    world.wish()
    for _ in range(80):
        world.tick()
        assert sum(order.price.amount for order in world.market.live) <= 16
    assert_serving_once(world)


def test_a_process_that_was_asked_to_end_begins_nothing_that_costs_and_still_cancels(tmp_path: Path):
    """C7: the effect in hand finishes; the rest is the next daemon's first tick."""
    world = World(tmp_path)
    world.wish()
    world.tick(12)
    assert len(world.market.live) == 1
    world.fleet = replace(world.fleet, is_ending=lambda: True)
    world.wish(desired=Desired.STOPPED)
    with world.store.write() as tx:
        tx.put_deployment(deployment("other", created_at=world.clock.now()))
    world.tick(6)
    assert world.market.live == [] and world.market.rent_calls == 1
    world.start()
    world.tick(1)
    assert world.market.rent_calls == 2


def test_a_reading_that_took_too_long_to_act_on_is_told(tmp_path: Path):
    """Two hundred servers that hang take their time; for what was read before, nothing is begun."""
    world = World(tmp_path)
    world.wish()
    world.tick(12)
    with world.store.write() as tx:
        tx.put_deployment(deployment("other", created_at=world.clock.now()))
    look = world.nodes.look

    def slow_look(lease: Lease, order: Order) -> NodeView:
        world.clock.sleep(world.fleet.limits.reading_life.total_seconds() + 1)
        return look(lease, order)

    world.nodes.look = slow_look  # type: ignore[method-assign]
    world.tick(1)
    assert world.market.rent_calls == 1
    with world.store.read() as tx:
        told = tx.last_tick()
    assert told is not None and "1 step was left to the next tick" in told.trouble
    world.nodes.look = look  # type: ignore[method-assign]
    world.tick(1)
    assert world.market.rent_calls == 2
    with world.store.read() as tx:
        told = tx.last_tick()
    assert told is not None and told.trouble == ""


@pytest.mark.parametrize("change", ["stopped", "a lower budget"])
def test_what_the_user_changes_while_a_rent_waits_for_its_turn_keeps_it_from_being_sent(
    world: World, change: str
):
    """The market takes one rent in five seconds; what came in between must not be rented and ended again."""
    world.wish()

    def changed() -> None:
        with world.store.write() as tx:
            before = tx.deployment(DeploymentId("tiny"))
            assert before is not None
            lower = replace(before.requirement, budget=parse_budget("1/day"))
            tx.put_deployment(
                replace(before, desired=Desired.STOPPED)
                if change == "stopped"
                else replace(before, requirement=lower)
            )

    world.market.before_rent = changed
    world.tick(3)
    assert world.market.rent_calls == 0
    assert world.leases() == ()


def test_nothing_is_rented_for_a_reading_that_is_an_hour_old(world: World):
    """A laptop that slept in the middle of a tick: offers and orders may have changed, and an order that came
    of it late could not be told from another fleet's by its time."""
    chosen = world.fleet.planner

    def slept(requirement: Requirement, view: MarketView) -> PlanReport:
        world.clock.sleep(3600)
        return chosen(requirement, view)

    world.wish()
    world.fleet = replace(world.fleet, planner=slept)
    world.tick()
    assert world.market.rent_calls == 0 and world.leases() == ()
    world.fleet = replace(world.fleet, planner=chosen)
    world.tick()
    assert world.market.rent_calls == 1


# -- a fault of ours


class Indigestible(Exception):
    """What nobody expected: a host's number that no float holds, a recipe that is not there."""


def indigestible(*_: object, **__: object) -> object:
    raise Indigestible


def stop_beside_a_fault(world: World) -> None:
    """Two deployments serve; what one of them sends from now on cannot be digested; both are stopped."""
    world.wish(deployment_id=DeploymentId("a"))
    world.wish(deployment_id=DeploymentId("b"))
    world.tick(30)
    assert [lease.phase for lease in world.leases()] == [Phase.SERVING] * 2


@pytest.mark.parametrize("where", ["look", "decide", "plan"])
def test_a_fault_of_ours_keeps_no_server_from_ending(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str
):
    """It comes back in each tick, since its cause does."""
    stop_beside_a_fault(world)
    if where == "look":
        world.nodes.look = indigestible
    elif where == "decide":
        decide = Fleet.decide

        def broken(fleet: Fleet, seen: Snapshot) -> tuple[Action, ...]:
            if any(view.is_healthy for view in seen.nodes.values()):
                raise Indigestible
            return decide(fleet, seen)

        monkeypatch.setattr(Fleet, "decide", broken)
    else:
        world.fleet = replace(world.fleet, planner=indigestible)
        world.wish(deployment_id=DeploymentId("c"))
    world.wish(deployment_id=DeploymentId("a"), desired=Desired.STOPPED)
    result = world.fleet.tick(world.token)
    assert result.fault == "Indigestible"
    with world.store.read() as tx:
        last = tx.last_tick()
    assert last is not None and "a fault in clorefleet (Indigestible; the log has it)" in last.trouble
    world.tick(30)
    [left] = world.leases()
    assert left.deployment_id == "b" and len(world.market.live) == 1


def test_beside_a_fault_of_ours_nothing_is_rented_and_what_sleeps_sleeps_on(world: World):
    serve(world, 12)
    world.nodes.look = indigestible
    world.wish(replicas=3)
    rents = world.market.rent_calls
    world.tick(20)
    assert world.market.rent_calls == rents
    assert len(world.leases()) == 1


def test_an_effect_that_fails_by_our_fault_keeps_no_other_from_happening(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    stop_beside_a_fault(world)
    bad = next(lease for lease in world.leases() if lease.deployment_id == "a")
    give_back = Journal.give_back

    def picky(journal: Journal, lease: Lease, *args: object, **more: object) -> object:
        if lease.lease_id == bad.lease_id:
            raise Indigestible
        return give_back(journal, lease, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "give_back", picky)
        for name in "ab":
            world.wish(deployment_id=DeploymentId(name), desired=Desired.STOPPED)
        assert world.fleet.tick(world.token).fault == "Indigestible"
        world.tick(30)
    assert [lease.lease_id for lease in world.leases()] == [bad.lease_id]
    world.tick(30)
    assert_all_ended(world)


# -- a disk that is full, a recipe that is gone, a list that spells otherwise


class FullDisk:
    """The store of a disk on which nothing more can be written, once it is full."""

    def __init__(self, store: Store) -> None:
        self._store, self.is_full = store, False

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def write(self, token: object = None) -> object:
        if self.is_full:
            raise StoreError("The disk is full.")
        return self._store.write(token)


@pytest.mark.parametrize("wallets", [(), (Wallet(Currency.USD, Money.usd(50)),)], ids=["-", "with a wallet"])
def test_on_a_full_disk_what_is_to_end_is_ended_all_the_same(world: World, wallets: tuple[Wallet, ...]):
    """E2: neither staying the leader nor what the wallet holds can be written then."""
    disk = FullDisk(world.store)
    world.store = disk
    world.start()
    serve(world, 12)
    world.wish(desired=Desired.STOPPED)
    world.market.hazards.cancel_lies = 1
    world.tick(3)
    assert [lease.state for lease in world.leases()] == [LeaseState.ENDING] and world.market.live
    world.market.fetch_wallets = lambda: wallets
    world.clock.sleep(600)
    disk.is_full = True
    with suppress(StoreError):
        world.tick()
    assert world.market.live == []


def test_a_deployment_whose_recipe_is_gone_is_no_trouble_of_another(world: World):
    serve(world, 12)
    planner = world.fleet.planner

    def knows_one(requirement: Requirement, view: MarketView) -> PlanReport:
        if requirement.model == "my-own":
            raise UnknownModel("my-own", ())
        return planner(requirement, view)

    world.fleet = replace(world.fleet, planner=knows_one)
    budget = parse_budget("16/day")
    world.wish(deployment_id=DeploymentId("mine"), requirement=Requirement("my-own", budget))
    world.wish(desired=Desired.STOPPED)
    world.tick(30)
    assert world.market.live == [] and world.leases() == ()
    with world.store.read() as tx:
        mine = tx.deployment(DeploymentId("mine"))
    assert mine is not None and "my-own" in mine.note


def told_otherwise(world: World, **changes: object) -> None:
    """From now on the market's list says this of each order."""
    told = world.market.fetch_orders

    def otherwise(**words: bool) -> OrderList:
        found = told(**words)
        nowhere = len(found.live()) if "server_id" in changes else 0
        orders = tuple(replace(each, **changes) for each in found.orders)
        return replace(found, orders=orders, unreadable=nowhere)

    world.market.fetch_orders = otherwise


def test_another_spelling_of_the_image_hides_no_order(world: World):
    told_otherwise(world, image=f"https://{IMAGE}")
    serve(world, 20)
    [lease] = world.leases()
    assert lease.phase is Phase.SERVING and world.market.rent_calls == 1


@pytest.mark.parametrize(
    ("told", "asked", "is_same"),
    [
        ("docker.io/vllm/vllm-openai:v1", "vllm/vllm-openai:v1", True),
        ("index.docker.io/library/debian", "debian:latest", True),
        ("vllm/vllm-openai:v1", "vllm/vllm-openai:v2", False),
        ("localhost:5000/debian", "debian", False),
        ("debian@sha256:00", "debian", False),
        ("", "debian", False),
    ],
)
def test_an_image_has_several_spellings(told: str, asked: str, is_same: bool):
    assert is_same_image(told, asked) == is_same_image(asked, told) == is_same


def test_orders_that_no_list_shows_as_ours_stop_the_renting(tmp_path: Path):
    """The market says yes each time; whatever its list makes of it bills, and no ceiling counts it."""
    world = World(tmp_path, tuple(plan(server) for server in range(7, 60)))
    told_otherwise(world, image="something/else:1")
    world.wish()
    world.tick(6 * 120, every_s=30)
    with world.store.read() as tx:
        guard = tx.guard()
    assert len(world.market.live) == DEFAULT_LIMITS.unseen_rents_per_window
    assert guard.is_stopped and "said yes to 2 rents" in guard.stopped_because


@pytest.mark.parametrize("is_held", [True, False])
def test_an_order_that_does_not_tell_its_server_proves_no_absence(world: World, is_held: bool):
    if is_held:
        serve(world, 12)
    told_otherwise(world, server_id=NO_SERVER)
    serve(world, 100)
    assert world.market.rent_calls == 1 and len(world.market.live) == 1
    assert len(world.leases()) == 1


def test_a_single_replica_with_a_request_under_way_is_in_use(world: World):
    serve(world, 12)
    world.fleet = replace(world.fleet, in_flight=lambda lease_id: 3)
    snapshot, _ = world.fleet.observer().observe()
    assert [view.in_flight for view in snapshot.nodes.values()] == [3]


def test_a_coin_rate_of_a_clock_that_was_ahead_is_not_fresh(world: World):
    """D1."""
    offered = plan(7)
    world.plans = (
        replace(
            offered,
            price=replace(
                offered.price, billed=Rate.per_day(100, Currency.CLORE), usd_per_unit=Decimal("0.02")
            ),
        ),
    )
    serve(world, 12)
    reads: list[MarketView] = []
    world.fleet = replace(world.fleet, note_view=reads.append)
    for ahead, is_read in ((timedelta(minutes=1), False), (timedelta(days=1), True)):
        rate = ExchangeRate(Currency.CLORE, Decimal("0.02"), world.clock.now() + ahead, "test")
        with world.store.write() as tx:
            tx.put_coin_rates([rate])
        world.tick()
        assert bool(reads) is is_read


def test_a_total_that_is_set_later_gives_nothing_back_for_what_was_spent_before(world: World):
    serve(world)
    world.clock.sleep(3 * 86_400)
    world.tick(2)
    assert world.ledger() > 6
    with world.store.write() as tx:
        tx.put_guard(tx.guard().with_total_of(DeploymentId("tiny"), Decimal(5), now=world.clock.now()))
    world.tick(12)
    assert len(world.market.live) == 1
    world.clock.sleep(3 * 86_400)
    world.tick(12)
    assert world.market.live == []


def test_more_replicas_than_attempts_are_all_rented(tmp_path: Path):
    """Those that start and those that serve are no failures: a deployment gave up over them."""
    world = World(tmp_path, tuple(plan(server, "0.1") for server in range(7, 30)))
    world.wish(replicas=8)
    world.tick(40)
    assert [lease.phase for lease in world.leases()] == [Phase.SERVING] * 8
    lost = world.market.live[0]
    world.market.cancel(lost.order_id)
    world.tick(40)
    assert [lease.phase for lease in world.leases()] == [Phase.SERVING] * 8
    assert lost.order_id not in {order.order_id for order in world.market.live}
