"""What the user does: her wishes, and how she mends what only a user can mend."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.money import Budget, Rate
from clorefleet.domain.plan import Requirement
from clorefleet.simulation.choice import IMAGE
from clorefleet.simulation.process import Home, Process
from clorefleet.simulation.scenario import Wish, WishKind

if TYPE_CHECKING:
    from clorefleet.simulation.life import World


class User:
    def __init__(self, world: World) -> None:
        self._world = world
        self._wishes: dict[tuple[str, str], Wish] = {}
        """The last of each deployment that is to run, by fleet and name."""

    def deployments(self, home: Home) -> tuple[Deployment, ...]:
        with home.house.open().read() as tx:
            return tx.deployments()

    def put(self, home: Home, deployment: Deployment) -> None:
        with home.house.open().write() as tx:
            tx.put_deployment(deployment)

    def wish(self, home: Home, wish: Wish) -> None:
        self._world.trace(f"wish {wish}")
        if wish.kind is not WishKind.STOP:
            self._wishes[home.fleet_name, wish.deployment] = wish
        else:
            self._wishes.pop((home.fleet_name, wish.deployment), None)
        store = home.house.open()
        now = self._at_hand(home).clock.now()
        with store.write() as tx:
            current = tx.deployment(DeploymentId(wish.deployment))
            if current is None:
                if wish.kind in (WishKind.STOP, WishKind.ORDER_BY_HAND):
                    return
                current = Deployment(
                    DeploymentId(wish.deployment),
                    requirement_of(wish.budget_usd_per_day, spot=wish.spot),
                    wish.replicas,
                    Desired.RUNNING,
                    now,
                )
            match wish.kind:
                case WishKind.STOP:
                    current = replace(current, desired=Desired.STOPPED)
                case WishKind.SCALE:
                    current = replace(current, replicas=wish.replicas)
                case WishKind.BUDGET:
                    current = replace(
                        current, requirement=requirement_of(wish.budget_usd_per_day, spot=wish.spot)
                    )
                case _:
                    current = replace(
                        current,
                        desired=Desired.RUNNING,
                        replicas=wish.replicas,
                        requirement=requirement_of(wish.budget_usd_per_day, spot=wish.spot),
                        attempts_since=now,
                        has_given_up=False,
                        note="",
                    )
            tx.put_deployment(current)
        self._world.turns.wake(home)

    @staticmethod
    def _at_hand(home: Home) -> Process:
        """She is at the machine whose daemon acts: by another's clock, an hour behind, what was tried before
        would count after a repeated `deploy` too."""
        return next((each for each in home.processes if each.is_alive), home.processes[0])

    def wish_again(self, home: Home) -> None:
        """The user sees what is gone, has given up, or runs although she stopped it (a restored store knows
        nothing of that), and says it once more."""
        for deployment in self.deployments(home):
            if (home.fleet_name, deployment.deployment_id) not in self._wishes:
                self.put(home, replace(deployment, desired=Desired.STOPPED))
        for (fleet_name, _), wish in sorted(self._wishes.items()):
            if fleet_name == home.fleet_name:
                self.wish(home, replace(wish, kind=WishKind.DEPLOY, budget_usd_per_day=60))

    def tidy(self, home: Home) -> None:
        """The user looks: says go on where renting was stopped, and ends by hand what `status` reports as
        foreign and she knows to be clorefleet's."""
        with home.house.open().write() as tx:
            guard = tx.guard()
            if guard.is_stopped:
                now = home.processes[0].clock.now()
                tx.put_guard(replace(guard, stopped_at=None, stopped_because="", resumed_at=now))
                self._world.trace(f"renting goes on, it was stopped: {guard.stopped_because}")
        with home.house.open().read() as tx:
            leases = {f"{home.fleet_name}/{lease.lease_id}": lease for lease in tx.leases()}
        for order in self._world.market.live():
            if order.asked_by != home.fleet_name:
                continue
            if self._world.judge.excuses.may_be_foreign(home, order, leases.get(order.nonce)):
                self._world.market.end(order, self._world.time.now_s, "ended by the user's hand")

    def order_by_hand(self, arg: float) -> None:
        free = [host for host in self._world.market.hosts() if self._world.market.is_free(host)]
        if free:
            host = free[int(arg * len(free))]
            price = self._world.market.price_of(host, is_spot=False)
            if price is not None:
                self._world.switches.note("B8")
                self._world.market.make_order(
                    host,
                    price=Rate.per_day(price, host.currency),
                    is_spot=False,
                    image=IMAGE if arg * 10 % 1 < 0.5 else "cloreai/jupyter",
                    asked_by="user",
                    nonce="",
                )

    def repeat_wishes(self, home: Home) -> None:
        """What is to run is deployed anew where the store may have forgotten it."""
        for wish in [w for (name, _), w in self._wishes.items() if name == home.fleet_name]:
            self.wish(home, replace(wish, kind=WishKind.DEPLOY))

    def lower_budget(self, home: Home) -> bool:
        """Of one running deployment, below what it burns; False where none runs."""
        running = [each for each in self.deployments(home) if each.desired is Desired.RUNNING]
        if running:
            self.put(home, replace(running[0], requirement=requirement_of(1, spot=False)))
        return bool(running)

    def raise_budgets(self, home: Home) -> None:
        """So that nothing but the fleet itself decides whether it becomes what is wanted."""
        for deployment in self.deployments(home):
            if deployment.desired is Desired.RUNNING:
                self.put(home, replace(deployment, requirement=requirement_of(60, spot=False)))

    def stop(self, home: Home) -> None:
        for deployment in self.deployments(home):
            self.put(home, replace(deployment, desired=Desired.STOPPED))
        self._world.turns.wake(home)


def requirement_of(usd_per_day: int, *, spot: bool) -> Requirement:
    return Requirement("simulated", Budget(Rate.per_day(usd_per_day)), spot=spot)
