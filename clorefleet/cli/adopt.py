"""`clorefleet adopt`: take over an order that this machine's records have lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import confirm, print_json, say, usd
from clorefleet.cli.progress import working

if TYPE_CHECKING:
    from clorefleet.config.profile import Connection
    from clorefleet.domain.identity import DeploymentId, LeaseId
    from clorefleet.domain.lease import Lease
    from clorefleet.domain.order import Order
    from clorefleet.domain.plan import Plan
    from clorefleet.fleet.edges import Market
    from clorefleet.store.database import Store

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def adopt(
    order_id: int = typer.Argument(..., metavar="ORDER", help="The market's number of the order."),
    model: str = typer.Option(..., "--model", "-m", help="What it shall serve."),
    name: str = typer.Option("", "--name", help="The deployment; default: the model's name."),
    budget: str = typer.Option("", "--budget", help="For a new deployment: its daily budget."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
) -> None:
    """Take over an order that this machine's records have lost.

    For a store that was deleted or restored from an older backup. The order list says what bills; the key
    that opens the server proves that it is ours, and must still be in this machine's state folder. The
    work on the server is found as it was: weights that are there are not fetched again, an engine that
    runs is kept.

    Example:

      clorefleet adopt 602837 --model glm-4.7-flash --budget 12/day
    """
    from clorefleet.config.profile import connect, store_url
    from clorefleet.domain.errors import BadInput
    from clorefleet.store.database import open_store
    from clorefleet.wiring import make_market

    profile = options.profile()
    with working("Reading the list of orders"):
        connection = connect(profile)
        market = make_market(connection)
        order = next((each for each in market.fetch_orders().live() if each.order_id == order_id), None)
    if order is None:
        raise BadInput(
            f"The market lists no live order {order_id}.",
            remedy=f"`clorefleet sweep{profile.flag}` lists them.",
            money="Nothing was changed.",
        )
    store = open_store(store_url(profile))
    with store.read() as tx:
        leases = tx.leases()
    holder = next((each for each in leases if each.order_id == order_id and each.is_open), None)
    if holder is not None:
        raise BadInput(
            f"Order {order_id} is known already: it serves {holder.deployment_id}.",
            remedy=f"`clorefleet status{profile.flag}` shows it.",
        )
    with working("Planning for its server") as progress:
        plan = _plan_for(connection, market, order, model)
        progress.what = "Trying the keys of this machine"
        lease_id = _find_key(connection, order, plan, leases)
    question = (
        f"Order {order_id} (server {order.server_id}, {order.price}) shall serve {model} as "
        f"{plan.setup.checkpoint} on {plan.setup.engine}, about {usd(plan.price.running_usd_per_day)}/day?"
    )
    confirm(question, yes=yes or profile.is_sandbox, what="Adopting", otherwise="Nothing was changed.")
    deployment_id = _take_over(connection, store, order, plan, lease_id, name or model, budget)
    if options.as_json:
        print_json({"order_id": order_id, "lease_id": lease_id, "deployment_id": deployment_id})
    else:
        say(
            f"Order {order_id} serves {deployment_id} from now on; "
            f"`clorefleet status{profile.flag}` follows it."
        )


def _plan_for(connection: Connection, market: Market, order: Order, model: str) -> Plan:
    """The plan that the order's own server would get if it were free, at the price it bills.

    Raises:
        NothingFits: the model does not run there.
    """
    from dataclasses import replace

    from clorefleet.domain.errors import NothingFits
    from clorefleet.domain.plan import Requirement
    from clorefleet.wiring import make_planner

    view = market.fetch_view()
    offers = [
        replace(
            offer,
            is_rented=False,
            on_demand=() if order.is_spot else (order.price,),
            spot=(order.price,) if order.is_spot else (),
        )
        for offer in view.offers
        if offer.server_id == order.server_id
    ]
    requirement = Requirement(model, spot=order.is_spot)
    report = make_planner(connection)(requirement, replace(view, offers=tuple(offers)))
    plans = [*report.plans, *report.over_budget]
    same_image = [plan for plan in plans if plan.setup.image == order.image]
    if not plans:
        why = report.refusals[0].text if report.refusals else "the market no longer lists the server"
        raise NothingFits(
            f"{model} cannot be planned on server {order.server_id}: {why}.",
            remedy=f"`clorefleet sweep --end {order.order_id}{connection.profile.flag}` ends the order.",
            money=f"It bills {order.price}.",
        )
    return (same_image or plans)[0]


def _find_key(connection: Connection, order: Order, plan: Plan, leases: tuple[Lease, ...]) -> LeaseId:
    """The lease whose key opens the order's server: tried one after the other, each once.

    Raises:
        BadInput: none does.
    """
    from clorefleet.domain.errors import BadInput
    from clorefleet.fleet.sweep import adopted_lease
    from clorefleet.node.keys import kept_keys
    from clorefleet.wiring import make_nodes

    used = {lease.lease_id for lease in leases if lease.is_open}
    found = sorted(kept_keys(connection.profile.state_dir))
    nodes = make_nodes(connection)
    try:
        for candidate in found:
            if candidate in used:
                continue
            lease = adopted_lease(order, plan, candidate, "adopted", slot=0, now=connection.clock.now())
            view = nodes.look(lease, order)
            if view.host_key and not view.is_hostile:
                return candidate
    finally:
        nodes.close()
    raise BadInput(
        f"No key on this machine opens order {order.order_id}"
        + (f" ({len(found)} tried)." if found else ": there are none."),
        remedy=f"It can only be ended: clorefleet sweep --end {order.order_id}{connection.profile.flag}",
        money=f"It bills {order.price} until then.",
    )


def _take_over(
    connection: Connection, store: Store, order: Order, plan: Plan, lease_id: LeaseId, name: str, budget: str
) -> DeploymentId:
    """Written by whoever leads, so the daemon steps aside for it."""
    import os

    from clorefleet.daemon import process
    from clorefleet.domain.deployment import Deployment, Desired
    from clorefleet.domain.errors import DaemonError
    from clorefleet.domain.identity import DeploymentId
    from clorefleet.domain.money import parse_budget
    from clorefleet.domain.plan import Requirement
    from clorefleet.fleet.journal import Journal
    from clorefleet.fleet.sweep import adopted_lease
    from clorefleet.store import leadership

    profile, now = connection.profile, connection.clock.now()
    process.stop(profile.state_dir)
    token = leadership.acquire(store, f"adopt:{os.getpid()}", now=now)
    if token is None:
        raise DaemonError(
            "Another daemon leads this store.", remedy="Adopt on its machine, or stop it there first."
        )
    deployment_id = DeploymentId(name)
    with store.write(token) as tx:
        wish = tx.deployment(deployment_id)
        taken = {each.slot for each in tx.open_leases() if each.deployment_id == deployment_id}
        slot = next(number for number in range(len(taken) + 1) if number not in taken)
        if wish is None:
            ceiling = parse_budget(budget) if budget else None
            requirement = Requirement(plan.setup.model, ceiling, spot=order.is_spot)
            tx.put_deployment(Deployment(deployment_id, requirement, slot + 1, Desired.RUNNING, now))
    lease = adopted_lease(order, plan, lease_id, deployment_id, slot=slot, now=now)
    Journal(store, token).adopt_orphan(lease, order, now=now)
    leadership.release(store, token, now=now)
    process.ensure_running(profile.name, profile.state_dir)
    return deployment_id
