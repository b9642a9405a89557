"""`adopt`: an order is taken over only by a deployment that keeps it, and within a ceiling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from clorefleet.cli import adopt as adopting
from clorefleet.cli.context import options
from clorefleet.config.profile import Profile
from clorefleet.daemon import process
from clorefleet.domain.deployment import Desired
from clorefleet.domain.errors import BadBudget, BadInput, BudgetExceeded, DaemonError
from clorefleet.domain.guard import FleetGuard
from clorefleet.domain.identity import LeaseId, OrderId
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.money import parse_budget
from clorefleet.domain.plan import PlanReport
from clorefleet.store import leadership
from tests.fleet.builders import deployment, lease, order, plan
from tests.fleet.world import World

ORPHAN = OrderId(950)


@dataclass
class Account:
    """A daemon that runs, and an order on server 99 that nothing here explains and our key opens."""

    world: World
    daemon: list[str]
    """What happened to it."""

    def adopt(self, budget: str = "", name: str = "", model: str = "smollm2-135m") -> None:
        adopting.adopt(order_id=ORPHAN, model=model, name=name, budget=budget, yes=True)

    def runs_on(self, ticks: int = 20) -> set[OrderId]:
        """The live orders after the daemon has gone on for a while."""
        self.world.start()
        self.world.tick(ticks)
        return {each.order_id for each in self.world.market.live}

    def is_as_before(self) -> bool:
        with self.world.store.read() as tx:
            return all(each.order_id != ORPHAN for each in tx.leases())


@pytest.fixture
def lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    world = World(tmp_path)
    account = Account(world, ["runs"])
    leadership.release(world.store, world.token, now=world.clock.now())
    world.market.orders[ORPHAN] = order(ORPHAN, 99, created_at=world.clock.now())
    world.market.visible_from[ORPHAN] = world.clock.now()
    world.nodes.prepared.add(LeaseId("old"))
    profile = Profile("default", tmp_path)
    connection = SimpleNamespace(profile=profile, clock=world.clock)
    nodes = SimpleNamespace(look=world.nodes.look, close=lambda: None)

    def stop(folder: Path) -> bool:
        did_run = account.daemon[-1] == "runs"
        account.daemon += ["stopped"] * did_run
        return did_run

    def planner(requirement, view):
        return PlanReport(requirement, (plan(99),), (), (), 1)

    patches: dict[str, Callable[..., object]] = {
        "clorefleet.config.profile.connect": lambda *_: connection,
        "clorefleet.config.profile.store_url": lambda *_: f"sqlite:///{world.store.file}",
        "clorefleet.wiring.make_market": lambda *_: world.market,
        "clorefleet.wiring.make_planner": lambda *_: planner,
        "clorefleet.wiring.make_nodes": lambda *_: nodes,
        "clorefleet.node.keys.kept_keys": lambda *_: world.nodes.kept_keys(),
    }
    for name, instead in patches.items():
        monkeypatch.setattr(name, instead)
    monkeypatch.setattr(type(options), "profile", lambda self: profile)
    monkeypatch.setattr(process, "stop", stop)
    monkeypatch.setattr(process, "ensure_running", lambda *_: account.daemon.append("runs"))
    return account


def test_an_adopted_order_is_kept_by_a_new_deployment(lost: Account):
    lost.adopt("12/day")
    assert lost.daemon == ["runs", "stopped", "runs"]
    assert lost.runs_on() == {ORPHAN} and lost.world.leases()[0].phase is Phase.SERVING


def test_a_new_deployment_needs_a_ceiling(lost: Account):
    """What fails is replaced: without one, at any price."""
    with pytest.raises(BadInput, match="without a budget") as refused:
        lost.adopt()
    assert "--budget" in refused.value.remedy and lost.is_as_before() and lost.daemon == ["runs"]
    lost.adopt("12/day")
    lost.world.plans = (plan(11, "900.0"),)
    lost.world.start()
    lost.world.tick(12)
    lost.world.market.cancel(ORPHAN)  # its host ends it
    assert lost.runs_on() == set(), "a replacement above the budget"


def test_a_deployment_that_is_there_needs_no_budget_and_keeps_its_own(lost: Account, capsys):
    lost.world.wish(name="tiny", budget="16/day")
    lost.adopt("12/day", name="tiny")
    assert "keeps its own budget of $16/day" in capsys.readouterr().err
    assert lost.runs_on() == {ORPHAN}


FULL = lease(LeaseState.ORDERED, Phase.SERVING, order_id=OrderId(901))


@pytest.mark.parametrize(
    ("changes", "held", "why"),
    [
        ({"desired": Desired.STOPPED}, (), "is stopped"),
        ({"requirement": replace(deployment().requirement, model="glm-5.1")}, (), "serves glm-5.1, not"),
        ({}, (FULL,), "has the 1 replica"),
    ],
)
def test_a_deployment_that_would_give_the_order_back_takes_none(lost: Account, changes, held, why):
    lost.world.wish(**changes)
    with lost.world.store.write() as tx:
        for each in held:
            tx.put_lease(each)
    with pytest.raises(BadInput, match=why) as refused:
        lost.adopt(name="tiny")
    assert "--name" in refused.value.remedy and lost.is_as_before() and lost.daemon == ["runs"]


@pytest.mark.parametrize("whose", ["budget of “smollm2-135m”", "fleet's budget"])
def test_an_order_that_would_pass_a_ceiling_is_not_adopted(lost: Account, whose):
    """It would be given back in the next tick, and its data lost."""
    if whose.startswith("fleet"):
        with lost.world.store.write() as tx:
            tx.put_guard(FleetGuard(per_day=parse_budget("1/day")))
    with pytest.raises(BudgetExceeded, match=whose):
        lost.adopt("1/day" if whose.startswith("budget") else "12/day")
    assert lost.is_as_before() and lost.daemon == ["runs"]


def stopped_meanwhile(lost: Account) -> None:
    lost.world.wish(name="smollm2-135m", desired=Desired.STOPPED)


def led_by_another(lost: Account) -> None:
    assert leadership.acquire(lost.world.store, "another machine", now=lost.world.clock.now())


@pytest.mark.parametrize(
    ("meanwhile", "error"), [(stopped_meanwhile, BadInput), (led_by_another, DaemonError)]
)
@pytest.mark.parametrize("ran", ["runs", "stopped"])
def test_a_daemon_that_stepped_aside_goes_on_also_where_nothing_came_of_it(
    lost: Account, monkeypatch, meanwhile, error, ran
):
    """Else nobody would watch what bills."""
    lost.daemon[:] = [ran]
    monkeypatch.setattr(adopting, "confirm", lambda *_, **__: meanwhile(lost))
    with pytest.raises(error):
        lost.adopt("12/day")
    assert lost.daemon[-1] == ran and lost.is_as_before()
    if error is BadInput:
        assert leadership.acquire(lost.world.store, "the daemon", now=lost.world.clock.now()), "let go of"


def test_a_slip_is_told_before_anything_is_done(lost: Account):
    with pytest.raises(BadBudget):
        lost.adopt("12/dya")
    with pytest.raises(BadInput, match="cannot name"):
        lost.adopt("12/day", name="My model")
    assert lost.daemon == ["runs"]
