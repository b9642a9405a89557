"""`clorefleet adopt`: take over an order that this machine's records have lost."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import confirm, note, print_json, say, usd
from clorefleet.cli.progress import working

if TYPE_CHECKING:
    from clorefleet.config.profile import Connection
    from clorefleet.domain.deployment import Deployment
    from clorefleet.domain.identity import LeaseId
    from clorefleet.domain.lease import Lease
    from clorefleet.domain.order import Order
    from clorefleet.domain.plan import Plan, Requirement
    from clorefleet.fleet.edges import Market
    from clorefleet.store.database import Store
    from clorefleet.store.queries import Transaction

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def adopt(
    order_id: int = typer.Argument(..., metavar="ORDER", help="The market's number of the order."),
    model: str = typer.Option(..., "--model", "-m", help="What it shall serve."),
    name: str = typer.Option("", "--name", help="The deployment; default: the model's name."),
    budget: str = typer.Option("", "--budget", help="Daily budget of a new deployment, which needs one."),
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
    from clorefleet.cli.plan import check_model
    from clorefleet.config.profile import connect, store_url
    from clorefleet.domain.deployment import Deployment, Desired, parse_deployment_name
    from clorefleet.domain.errors import BadInput
    from clorefleet.domain.money import parse_budget
    from clorefleet.domain.plan import Requirement
    from clorefleet.fleet.sweep import lease_of
    from clorefleet.store.database import open_store
    from clorefleet.wiring import make_market

    requirement = check_model(Requirement(model, parse_budget(budget) if budget else None))
    deployment_id = parse_deployment_name(name or requirement.model)
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
    requirement = replace(requirement, spot=order.is_spot)
    wish = Deployment(deployment_id, requirement, 1, Desired.RUNNING, connection.clock.now())
    with store.read() as tx:
        leases = tx.leases()
    holder = lease_of(order, leases)
    if holder is not None and holder.is_open:
        raise BadInput(
            f"Order {order_id} is known already: it serves {holder.deployment_id}.",
            remedy=f"`clorefleet status{profile.flag}` shows it.",
        )
    with store.read() as tx:
        into, _ = _place(tx, wish, order)
    if budget and into.requirement.budget != requirement.budget:
        note(f"{deployment_id} keeps its own budget of {into.requirement.budget}.")
    with working("Planning for its server") as progress:
        plan = _plan_for(connection, market, order, requirement)
        with store.read() as tx:
            _place(tx, wish, order, plan)
        progress.what = "Trying the keys of this machine"
        lease_id = _find_key(connection, order, plan, leases)
    question = (
        f"Order {order_id} (server {order.server_id}, {order.price}) shall serve {deployment_id} as "
        f"{plan.setup.checkpoint} on {plan.setup.engine}, about {usd(plan.price.running_usd_per_day)}/day?"
    )
    confirm(question, yes=yes or profile.is_sandbox, what="Adopting", otherwise="Nothing was changed.")
    _take_over(connection, store, order, plan, lease_id, wish)
    if options.as_json:
        print_json({"order_id": order_id, "lease_id": lease_id, "deployment_id": deployment_id})
    else:
        say(
            f"Order {order_id} serves {deployment_id} from now on; "
            f"`clorefleet status{profile.flag}` follows it."
        )


def _plan_for(connection: Connection, market: Market, order: Order, requirement: Requirement) -> Plan:
    """The plan that the order's own server would get if it were free, at the price it bills.

    Raises:
        NothingFits: the model does not run there.
    """
    from clorefleet.domain.errors import NothingFits
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
    report = make_planner(connection)(replace(requirement, budget=None), replace(view, offers=tuple(offers)))
    plans = [*report.plans, *report.over_budget]
    same_image = [plan for plan in plans if plan.setup.image == order.image]
    if not plans:
        why = report.refusals[0].text if report.refusals else "the market no longer lists the server"
        raise NothingFits(
            f"{requirement.model} cannot be planned on server {order.server_id}: {why}.",
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


# -- where it goes


def _place(
    tx: Transaction, wish: Deployment, order: Order, plan: Plan | None = None
) -> tuple[Deployment, int]:
    """The deployment that takes the order over, and the order's slot there.

    What the daemon would give back at once is refused: who adopts an order wants to keep it.

    Args:
        wish: the deployment as it is made where there is none of that name.
        plan: None while it is not known what the order would cost there.

    Raises:
        BadInput: a new deployment without a budget; one that does not want the order.
        BudgetExceeded: it would pass a ceiling.
    """
    from clorefleet.domain.errors import BadInput
    from clorefleet.fleet.slots import slots_held

    name, money = wish.deployment_id, f"Nothing was changed; the order bills {order.price}."
    found = tx.deployment(name)
    mine = tuple(each for each in tx.open_leases() if each.deployment_id == name)
    taken = {each.slot for each in mine}
    slot = next(number for number in range(len(taken) + 1) if number not in taken)
    if found is None and wish.requirement.budget is None:
        raise BadInput(
            f"“{name}” would be a new deployment without a budget, and a server that fails is replaced.",
            remedy="Say how much that may cost, for instance --budget 12/day.",
            money=money,
        )
    why = "" if found is None else _why_not_wanted(tx, found, wish, len(slots_held(mine)))
    if why:
        raise BadInput(
            f"“{name}” {why}: the order would be given back at once.",
            remedy="Give it a deployment of its own: add --name NAME --budget 12/day. "
            f"`clorefleet sweep --end {order.order_id}` ends it instead.",
            money=money,
        )
    into = replace(wish, replicas=slot + 1) if found is None else found
    if plan is not None:
        _check_ceilings(tx, into, order, plan, money)
    return into, slot


def _why_not_wanted(tx: Transaction, found: Deployment, wish: Deployment, held: int) -> str:
    from clorefleet.domain.deployment import Desired

    if found.desired is Desired.STOPPED:
        return "is stopped"
    if found.model != wish.model:
        return f"serves {found.model}, not {wish.model}"
    last = tx.wanted().get(found.deployment_id)
    follows = (found.schedule, found.scale, found.idle) != (None, None, None)
    wanted = last.replicas if follows and last is not None else found.replicas
    if held >= wanted:
        return "wants no replica now" if wanted == 0 else f"has the {wanted} replica(s) that it wants"
    return ""


def _check_ceilings(tx: Transaction, into: Deployment, order: Order, plan: Plan, money: str) -> None:
    """
    Raises:
        BudgetExceeded: with what is held already it would cost more a day than a ceiling allows.
    """
    from clorefleet.domain.errors import BudgetExceeded
    from clorefleet.domain.identity import LeaseId
    from clorefleet.fleet.budget import committed_usd_per_day
    from clorefleet.fleet.sweep import adopted_lease

    name = into.deployment_id
    lease = adopted_lease(order, plan, LeaseId("adopted"), name, slot=0, now=into.created_at)
    held = tx.open_leases()
    mine = tuple(each for each in held if each.deployment_id == name)
    for whose, ceiling, leases in (
        (f"the budget of “{name}”", into.requirement.budget, mine),
        ("the fleet's budget", tx.guard().per_day, held),
    ):
        rate = committed_usd_per_day([*leases, lease], tx.coin_rates())
        if ceiling is not None and rate > ceiling.per_day.amount:
            raise BudgetExceeded(
                f"With this order {usd(rate)}/day would be spent, above {whose}, {ceiling}: the order would "
                "be given back at once.",
                remedy=f"Allow more, or end it: clorefleet sweep --end {order.order_id}",
                money=money,
            )


# -- taking it over


def _take_over(
    connection: Connection, store: Store, order: Order, plan: Plan, lease_id: LeaseId, wish: Deployment
) -> None:
    """Written by whoever leads, so the daemon steps aside for it; whatever comes, it goes on afterwards.

    Raises:
        DaemonError: another machine leads.
        BadInput: the deployment has changed meanwhile, and does not want the order any more.
        BudgetExceeded: it would pass a ceiling by now.
    """
    from clorefleet.daemon import process

    profile = connection.profile
    had_daemon = process.stop(profile.state_dir)
    try:
        _write(connection, store, order, plan, lease_id, wish)
    except BaseException:
        if had_daemon:  # else nobody would watch what runs
            process.ensure_running(profile.name, profile.state_dir)
        raise
    process.ensure_running(profile.name, profile.state_dir)


def _write(
    connection: Connection, store: Store, order: Order, plan: Plan, lease_id: LeaseId, wish: Deployment
) -> None:
    """As the leader, who lets go of it in any case: the daemon would have to wait for it."""
    import os

    from clorefleet.domain.errors import DaemonError
    from clorefleet.fleet.journal import Journal
    from clorefleet.fleet.sweep import adopted_lease
    from clorefleet.store import leadership

    now = connection.clock.now()
    token = leadership.acquire(store, f"adopt:{os.getpid()}", now=now)
    if token is None:
        raise DaemonError(
            "Another daemon leads this store.",
            remedy="Adopt on its machine, or stop it there first.",
            money=f"Nothing was changed; the order bills {order.price}.",
        )
    try:
        with store.write(token) as tx:
            into, slot = _place(tx, wish, order, plan)
            if tx.deployment(into.deployment_id) is None:
                tx.put_deployment(into)
        lease = adopted_lease(order, plan, lease_id, into.deployment_id, slot=slot, now=now)
        Journal(store, token).adopt_orphan(lease, order, now=now)
    finally:
        leadership.release(store, token, now=now)
