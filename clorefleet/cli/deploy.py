"""`clorefleet deploy`: plan, ask, write down what is wanted, and watch the daemon bring it about."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import typer

from clorefleet.cli import requirement as wish
from clorefleet.cli.context import options
from clorefleet.cli.output import confirm, note, print_json, say, usd
from clorefleet.cli.progress import working

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from clorefleet.cli.ending import Ending
    from clorefleet.config.profile import Connection
    from clorefleet.domain.deployment import Deployment
    from clorefleet.domain.money import Currency
    from clorefleet.domain.offer import MarketView
    from clorefleet.domain.order import OrderList
    from clorefleet.domain.plan import Plan, PlanReport, Requirement
    from clorefleet.store.database import Store

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
@wish.takes_wishes("budget")
def deploy(
    wishes: wish.Wishes,
    copies: int | None = typer.Option(
        None, "--replicas", min=1, max=16, help="Copies to keep; default: 1, or as many as are kept already."
    ),
    name: str = typer.Option("", "--name", help="Name of the deployment; default: the model's."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    detach: bool = typer.Option(False, "--detach", "-d", help="Do not watch."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the plan and stop."),
) -> None:
    """Put a model on the cheapest server that fits, and keep it there.

    Shows the plan and asks once; with --sandbox the money is simulated and nothing is asked. Ctrl-C
    leaves the watching, not the deployment. The same command again continues, and never rents twice.

    Examples:

      clorefleet deploy smollm2-135m --budget 16/day --sandbox

      clorefleet deploy glm-5.1 --budget 1200/day --prefer speed --yes
    """
    from clorefleet.cli.plan import check_model
    from clorefleet.domain.deployment import parse_deployment_name
    from clorefleet.domain.money import parse_budget

    parse_budget(wishes.budget)  # also an empty one: nothing is rented without a ceiling
    requirement = check_model(wishes.requirement())
    deployment_id = parse_deployment_name(name or requirement.model)
    profile = options.profile()
    with _told_where_interrupted():
        if profile.is_sandbox:
            _show_sandbox_start()
        # A slip above is told without waiting for these.
        from clorefleet.config.profile import connect
        from clorefleet.store.database import open_store

        with working("Connecting"):
            connection = connect(profile)
            store = open_store(connection.store_url)
    existing = _existing(store, deployment_id)
    if existing is not None and _is_kept(existing):
        replicas = existing.replicas if copies is None else copies
        ending = _ended(store, connection, existing, requirement)
        if dry_run:
            _show_continued(store, connection, existing, requirement, replicas, ending)
            return
        kept = _continued(store, connection, existing, requirement, replicas, ending, yes=yes, dry_run=False)
        if kept != existing:
            _write(store, existing, kept, ending, now=connection.clock.now())
        old, new = existing.requirement.budget, kept.requirement.budget
        if old != new:
            note(f"The budget of {deployment_id} is now {new}; it was {old}.")
        # What serves now and is about to end is not shown as what answers.
        detach = detach or bool(ending)
    else:
        with _told_where_interrupted():
            begun = _begin(
                store, connection, requirement, deployment_id, copies or 1, existing, yes=yes, dry_run=dry_run
            )
        if begun is None:
            return
        _write(store, existing, begun, now=connection.clock.now())
    _run(store, connection, deployment_id, detach=detach)


@contextmanager
def _told_where_interrupted() -> Iterator[None]:
    """Before the wish is written down, Ctrl-C leaves nothing that costs: said, so that nobody has to look."""
    try:
        yield
    except KeyboardInterrupt:
        note("")
        note("Nothing was rented.")
        raise


def _show_sandbox_start() -> None:
    from clorefleet.config.profile import check_sandbox_parts
    from clorefleet.sandbox.assets import ensure_assets

    note("Sandbox: a simulated market with simulated money; nothing here is billed.")
    check_sandbox_parts()
    note(f"The small model that writes the words: {ensure_assets(progress=note).note}")


# -- a deployment that is there already


def _existing(store: Store, deployment_id: str) -> Deployment | None:
    from clorefleet.domain.identity import DeploymentId

    with store.read() as tx:
        return tx.deployment(DeploymentId(deployment_id))


def _is_kept(deployment: Deployment) -> bool:
    from clorefleet.domain.deployment import Desired

    return deployment.desired is Desired.RUNNING


def _check_same_wish(existing: Deployment, requirement: Requirement, replicas: int) -> None:
    from clorefleet.domain.errors import BadInput

    old = existing.requirement
    if replace(old, budget=requirement.budget) == requirement and existing.replicas == replicas:
        return  # a ceiling is moved while everything runs
    differences = [
        f"{label} {before} → {after}"
        for label, before, after in (
            ("model", old.model, requirement.model),
            ("weights", ", ".join(old.checkpoints) or "any", ", ".join(requirement.checkpoints) or "any"),
            ("budget", old.budget, requirement.budget),
            ("preference", old.objective, requirement.objective),
            ("replicas", existing.replicas, replicas),
        )
        if before != after
    ] or ["other constraints"]
    name = existing.deployment_id
    remedy = f"`clorefleet stop {name}` first, or give the new one a name: --name NAME."
    if replace(old, budget=requirement.budget) == requirement:
        remedy = f"Another number is kept by: clorefleet scale {name} {replicas}{options.profile().flag}"
    raise BadInput(
        f"“{name}” is already deployed with other wishes ({', '.join(differences)}).",
        remedy=remedy,
        money="Nothing was changed; what runs goes on.",
    )


def _ended(
    store: Store, connection: Connection, existing: Deployment, requirement: Requirement
) -> tuple[Ending, ...]:
    """What the daemon gives back once `existing` is kept within the budget of `requirement`."""
    from clorefleet.cli.ending import ended_by

    wish = replace(existing, requirement=replace(existing.requirement, budget=requirement.budget))
    with store.read() as tx:
        found = ended_by(tx, connection.clock.now(), wish=wish)
    return tuple(each for each in found if each.lease.deployment_id == existing.deployment_id)


def _continued(
    store: Store,
    connection: Connection,
    existing: Deployment,
    requirement: Requirement,
    replicas: int,
    ending: tuple[Ending, ...],
    *,
    yes: bool,
    dry_run: bool,
) -> Deployment:
    """What is there as it is to be kept, under another ceiling where one is given. Nothing is written.

    Args:
        ending: what that ceiling ends.

    Raises:
        BadInput: it is deployed with wishes that a running server cannot take on.
    """
    _check_same_wish(existing, requirement, replicas)
    for each in ending:
        note(each.text("would be" if dry_run else "is"))
    kept = existing
    old, new = existing.requirement.budget, requirement.budget
    if old != new and dry_run:
        note(f"The budget of {existing.deployment_id} would be {new}; it is {old}.")
        kept = replace(kept, requirement=requirement)
    elif old != new:
        question = f"Change the budget of {existing.deployment_id} from {old} to {new}?"
        confirm(
            question,
            yes=yes or connection.profile.is_sandbox,
            what="Changing the budget",
            otherwise="The budget is as it was; what runs goes on.",
        )
        kept = replace(kept, requirement=requirement)
    if _sleeps(store, existing, connection.clock.now()):
        woken = (
            "would be woken, and a server rented for it"
            if dry_run
            else "is woken, and a server is rented for it"
        )
        note(f"{existing.deployment_id} sleeps: it {woken}.")
        kept = replace(kept, woken_at=connection.clock.now())
    elif ending:
        note("Another is rented in place of what is given back only where one fits in the budget.")
    else:
        note(f"{existing.deployment_id} is already deployed; nothing new is rented for it.")
    if existing.has_given_up:
        note(
            "It had given up; it would be tried again." if dry_run else "It had given up; it is tried again."
        )
        kept = replace(kept, note="", has_given_up=False, attempts_since=connection.clock.now())
    return kept


def _show_continued(
    store: Store,
    connection: Connection,
    existing: Deployment,
    requirement: Requirement,
    replicas: int,
    ending: tuple[Ending, ...],
) -> None:
    """A dry run of what is deployed already: what would change, and the plan where there is one to show."""
    from clorefleet.domain.errors import BadInput

    try:
        kept = _continued(store, connection, existing, requirement, replicas, ending, yes=True, dry_run=True)
        may_rent = kept.has_given_up != existing.has_given_up or kept.woken_at != existing.woken_at
    except BadInput as refused:  # a plan is shown all the same: it is asked what that would cost
        note(f"{refused.what} Without --dry-run this is refused. {refused.remedy}")
        may_rent = True
    note("Nothing was changed: this is a dry run.")
    if options.as_json or may_rent:
        _begin(
            store, connection, requirement, existing.deployment_id, replicas, existing, yes=True, dry_run=True
        )


def _sleeps(store: Store, deployment: Deployment, now: datetime) -> bool:
    """Scaled to zero by load or idleness, not by its schedule."""
    from clorefleet.fleet.wanted import asleep

    with store.read() as tx:
        return asleep(deployment, tx.wanted().get(deployment.deployment_id), now)


# -- a new one


def _begin(
    store: Store,
    connection: Connection,
    requirement: Requirement,
    deployment_id: str,
    replicas: int,
    existing: Deployment | None,
    *,
    yes: bool,
    dry_run: bool,
) -> Deployment | None:
    """Plan, show, and ask; what is to be written down, None for a dry run. Nothing is written.

    Args:
        existing: what is there of that name, which was stopped; None for a new one.
    """
    from clorefleet.cli.deployment import check_renting
    from clorefleet.cli.plan import by_record, nothing_fits, picks, show_json
    from clorefleet.cli.plan_view import show, show_replicas
    from clorefleet.domain.deployment import Deployment, Desired
    from clorefleet.domain.identity import DeploymentId
    from clorefleet.fleet.budget import stops_renting
    from clorefleet.wiring import fetch_view_with_wallets, make_market, make_planner

    if not dry_run:
        with store.read() as tx:
            check_renting(tx.guard())
    market = make_market(connection)
    with working("Reading the market") as progress:
        view = fetch_view_with_wallets(market)
        progress.what = f"Planning on {len(view.offers):,} offers"
        report = make_planner(connection)(by_record(requirement, connection), view)
    if dry_run and options.as_json:
        show_json(report, replicas)
        return None
    if not report.plans:
        raise nothing_fits(report)
    taken = picks(report, replicas)
    _check_wallet(taken[0], connection)
    for plan in taken:
        _check_local_weights(plan)
    _warn_of_low_wallets(taken, view, market.fetch_orders())
    if not options.as_json:
        show(report)
        if replicas > 1:
            show_replicas(report, replicas)
        _say_worst_case(report, taken)
    if warning := stops_renting(replicas):
        note(warning)
    if dry_run:
        return None
    daily = sum((plan.price.running_usd_per_day for plan in taken), Decimal(0))
    servers = ", ".join(str(plan.offer.server_id) for plan in taken)
    question = (
        f"Rent server {servers} (or the next that fits) at {usd(daily)}/day, never above "
        f"{requirement.budget}, and keep it until you stop it?"
    )
    # Simulated money needs no yes.
    confirm(
        question,
        yes=yes or connection.profile.is_sandbox,
        what="Renting",
        otherwise="Nothing was rented.",
    )
    return Deployment(
        deployment_id=DeploymentId(deployment_id),
        requirement=requirement,
        replicas=replicas,
        desired=Desired.RUNNING,
        created_at=connection.clock.now(),
    )


def _say_worst_case(report: PlanReport, taken: tuple[Plan, ...]) -> None:
    from clorefleet.domain.download import estimate

    first = sum((plan.price.first_day_usd for plan in taken), Decimal(0))
    daily = sum((plan.price.running_usd_per_day for plan in taken), Decimal(0))
    say()
    best = taken[0]
    say(f"Before it serves: {estimate(best.offer, best.setup).text()}. Estimated.")
    say(
        f"Worst case of {'the first plan' if len(taken) == 1 else 'these plans'}: {usd(first)} on the first "
        f"day, {usd(daily)}/day after it. Where that cannot be rented, the next that fits is, which may cost "
        f"more: never above {report.requirement.budget}."
    )


def _check_local_weights(plan: Plan) -> None:
    """
    Raises:
        BadInput: the plan's weights are to come from this machine and are not there.
    """
    from fnmatch import fnmatchcase
    from pathlib import Path
    from urllib.parse import unquote, urlsplit

    from clorefleet.domain.download import LOCAL
    from clorefleet.domain.errors import BadInput

    setup = plan.setup
    if not setup.repo.startswith(LOCAL):
        return
    path = Path(unquote(urlsplit(setup.repo).path))
    names = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    if not path.is_file() and not any(
        fnmatchcase(name, pattern) for name in names for pattern in setup.files
    ):
        raise BadInput(
            f"{path} is no file, and no folder with a file like {', '.join(setup.files)}.",
            remedy=f"Check repo and files of the recipe “{setup.model}”.",
            money="Nothing was rented.",
        )


def _check_wallet(best: Plan, connection: Connection) -> None:
    """
    Raises:
        OutOfFunds: no plan can be paid from any wallet: those that can be come first.
    """
    from clorefleet.domain.errors import OutOfFunds
    from clorefleet.planner.cost import FIRST_HOURS

    lacking = best.price.lacking
    if lacking is not None:
        raise OutOfFunds(
            f"No wallet can pay the first {FIRST_HOURS} hours of any plan. The best one is paid in "
            f"{lacking.currency}, of which {lacking} more is needed.",
            remedy=f"Add funds on clore.ai; `clorefleet wallet{connection.profile.flag}` shows the balances.",
            money="Nothing was rented.",
        )


def _warn_of_low_wallets(taken: tuple[Plan, ...], view: MarketView, orders: OrderList) -> None:
    """Before anything is rented: what would be cut soon, with all that the account pays for already."""
    from clorefleet.fleet.limits import DEFAULT_LIMITS

    burn: dict[Currency, Decimal] = {}
    for order in orders.live():
        fee = view.fees.percent(order.currency, is_spot=order.is_spot)
        burn[order.currency] = burn.get(order.currency, Decimal(0)) + order.price.amount * (1 + fee / 100)
    planned = {plan.price.billed.currency for plan in taken}
    for plan in taken:
        price = plan.price
        daily = price.billed.amount * (1 + price.fee_percent / 100)
        burn[price.billed.currency] = burn.get(price.billed.currency, Decimal(0)) + daily
    for currency in planned:
        balance = view.balance(currency)
        low = Decimal(int(DEFAULT_LIMITS.low_wallet.total_seconds())) / 3600
        if balance is None or burn[currency] <= 0 or (hours := balance / burn[currency] * 24) >= low:
            continue
        note(
            f"With this the {currency} wallet lasts {hours:.1f} hours: at zero the market ends the orders "
            "and their data is lost. Add funds soon."
        )


# -- both


def _write(
    store: Store,
    before: Deployment | None,
    after: Deployment,
    ending: tuple[Ending, ...] = (),
    *,
    now: datetime,
) -> None:
    """
    Args:
        ending: what was told to end by it.

    Raises:
        BadInput: it has changed since it was asked about: a stop of meanwhile is not undone.
    """
    from clorefleet.cli.deployment import check_unchanged
    from clorefleet.cli.ending import check_seen, ended_by

    with store.write() as tx:
        check_unchanged(tx, after.deployment_id, before)
        if before is not None and _is_kept(before):  # what was stopped ends in any case
            found = ended_by(tx, now, wish=after)
            check_seen(ending, [each for each in found if each.lease.deployment_id == after.deployment_id])
        tx.put_deployment(after)


def _check_it_is_filled(store: Store, deployment_id: str) -> None:
    """
    Raises:
        BudgetExceeded: renting is stopped and a replica is missing.
    """
    from clorefleet.cli.deployment import check_renting, find_deployment

    with store.read() as tx:
        deployment = find_deployment(tx, deployment_id)
        held = sum(1 for lease in tx.open_leases() if lease.deployment_id == deployment_id)
        if held < deployment.replicas:
            check_renting(tx.guard())


def _run(store: Store, connection: Connection, deployment_id: str, *, detach: bool) -> None:
    from clorefleet.cli.watch import watch_until_serving
    from clorefleet.daemon import process

    profile = connection.profile
    with working("Starting the daemon"):
        info, was_started = process.ensure_running(profile.name, profile.state_dir)
    if was_started:
        note(f"Started the daemon (pid {info.pid}); it guards the deployment and its budget.")
    process.wake(profile.state_dir)
    if detach:
        _check_it_is_filled(store, deployment_id)
        if options.as_json:
            print_json({"deployment_id": deployment_id, "is_watched": False})
        note(f"`clorefleet status{profile.flag} --watch` shows how it goes on.")
        return
    watch_until_serving(store, connection, deployment_id)
