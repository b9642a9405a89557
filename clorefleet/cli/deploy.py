"""`clorefleet deploy`: plan, ask, write down what is wanted, and watch the daemon bring it about."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import typer

from clorefleet.cli import requirement as wish
from clorefleet.cli.context import options
from clorefleet.cli.output import confirm, note, print_json, say, usd

if TYPE_CHECKING:
    from clorefleet.config.profile import Connection
    from clorefleet.domain.deployment import Deployment
    from clorefleet.domain.plan import Plan, PlanReport, Requirement
    from clorefleet.fleet.edges import Market
    from clorefleet.store.database import Store

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def deploy(
    model: wish.Model,
    budget: wish.Budget,
    prefer: wish.Prefer = "cost",
    precision: wish.Precisions = "",
    context: wish.Context = 0,
    min_speed: wish.MinSpeed = 0,
    min_reliability: wish.MinReliability = 0,
    gpu: wish.Gpu = "",
    country: wish.Country = "",
    spot: wish.Spot = False,
    replicas: int = typer.Option(1, "--replicas", min=1, max=16, help="Copies to keep."),
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
    from clorefleet.config.profile import connect
    from clorefleet.domain.deployment import parse_deployment_name
    from clorefleet.domain.money import parse_budget
    from clorefleet.store.database import open_store

    wishes = wish.Wishes(
        model, budget, prefer, precision, context, min_speed, min_reliability, gpu, country, spot
    )
    parse_budget(budget)  # also an empty one: nothing is rented without a ceiling
    requirement = check_model(wishes.requirement())
    deployment_id = parse_deployment_name(name or model)
    profile = options.profile()
    if profile.is_sandbox:
        _show_sandbox_start()
    connection = connect(profile)
    store = open_store(connection.store_url)
    existing = _existing(store, deployment_id)
    if existing is not None and _is_kept(existing):
        if not _continue(store, connection, existing, requirement, replicas, yes=yes):
            return
    elif not _begin(store, connection, requirement, deployment_id, replicas, yes=yes, dry_run=dry_run):
        return
    _run(store, connection, deployment_id, detach=detach)


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
            ("budget", old.budget, requirement.budget),
            ("preference", old.objective, requirement.objective),
            ("replicas", existing.replicas, replicas),
        )
        if before != after
    ] or ["other constraints"]
    raise BadInput(
        f"“{existing.deployment_id}” is already deployed with other wishes ({', '.join(differences)}).",
        remedy=f"`clorefleet stop {existing.deployment_id}` first, or give the new one a name: --name NAME.",
        money="Nothing was changed; what runs goes on.",
    )


def _continue(
    store: Store,
    connection: Connection,
    existing: Deployment,
    requirement: Requirement,
    replicas: int,
    *,
    yes: bool,
) -> bool:
    """Keep what is there, under another ceiling where one is given; false when the user said no.

    Raises:
        BadInput: it is deployed with wishes that a running server cannot take on.
    """
    _check_same_wish(existing, requirement, replicas)
    kept = existing
    old, new = existing.requirement.budget, requirement.budget
    if old != new:
        question = f"Change the budget of {existing.deployment_id} from {old} to {new}?"
        if not confirm(question, yes=yes or connection.profile.is_sandbox, what="Changing the budget"):
            note("The budget is as it was; what runs goes on.")
            return False
        note(f"The budget of {existing.deployment_id} is now {new}; it was {old}.")
        kept = replace(kept, requirement=requirement)
    note(f"{existing.deployment_id} is already deployed; nothing new is rented for it.")
    if existing.has_given_up:
        note("It had given up; it is tried again.")
        kept = replace(kept, note="", has_given_up=False, attempts_since=connection.clock.now())
    if kept != existing:
        with store.write() as tx:
            tx.put_deployment(kept)
    return True


# -- a new one


def _without_faulty(store: Store, connection: Connection, requirement: Requirement) -> Requirement:
    """For planning alone: the daemon leaves such servers out by itself, by the record of its day."""
    from clorefleet.fleet.limits import DEFAULT_LIMITS

    with store.read() as tx:
        faulty = tx.faulty_servers(since=connection.clock.now() - DEFAULT_LIMITS.host_fault_memory)
    return replace(requirement, excluded_servers=(*requirement.excluded_servers, *sorted(faulty)))


def _begin(
    store: Store,
    connection: Connection,
    requirement: Requirement,
    deployment_id: str,
    replicas: int,
    *,
    yes: bool,
    dry_run: bool,
) -> bool:
    """Plan, show, ask, and write the wish down; false when the user said no."""
    from clorefleet.cli.plan import nothing_fits, show_plans
    from clorefleet.domain.deployment import Deployment, Desired
    from clorefleet.domain.identity import DeploymentId
    from clorefleet.wiring import make_market, make_planner

    market = make_market(connection)
    report = make_planner(connection)(_without_faulty(store, connection, requirement), market.fetch_view())
    if not report.plans:
        raise nothing_fits(report)
    best = report.plans[0]
    _check_wallet(market, best, connection)
    if not options.as_json:
        show_plans(report)
        _say_worst_case(report, best, replicas)
    if dry_run:
        if options.as_json:
            from clorefleet.store.codec import encode

            print_json(encode(report))
        return False
    question = f"Rent server {best.offer.server_id} (or the next that fits) and keep it until you stop it?"
    # Simulated money needs no yes.
    if not confirm(question, yes=yes or connection.profile.is_sandbox, what="Renting"):
        note("Nothing was rented.")
        return False
    with store.write() as tx:
        tx.put_deployment(
            Deployment(
                deployment_id=DeploymentId(deployment_id),
                requirement=requirement,
                replicas=replicas,
                desired=Desired.RUNNING,
                created_at=connection.clock.now(),
            )
        )
    return True


def _say_worst_case(report: PlanReport, best: Plan, replicas: int) -> None:
    budget = report.requirement.budget
    first = best.price.first_day_usd * replicas
    say()
    say(
        f"Worst case: {usd(first)} on the first day, {usd(best.price.running_usd_per_day * replicas)}/day "
        f"after it, never above {budget}."
    )


WALLET_HOURS = Decimal(2)
"""Renting with less than this in the wallet would end before the model serves."""


def _check_wallet(market: Market, plan: Plan, connection: Connection) -> None:
    from clorefleet.domain.errors import OutOfFunds

    currency = plan.price.billed.currency
    balance = next(
        (w.balance.amount for w in market.fetch_wallets() if w.currency is currency and w.balance),
        Decimal(0),
    )
    price = plan.price
    hourly = price.billed.amount * (1 + price.fee_percent / 100) / 24
    need = hourly * WALLET_HOURS + price.creation_fee
    if balance < need:
        raise OutOfFunds(
            f"The {currency} wallet has {balance:.4f}; the best plan needs at least {need:.4f} {currency} "
            f"for its first {WALLET_HOURS} hours.",
            remedy=f"Add funds on clore.ai; `clorefleet wallet{connection.profile.flag}` shows the balances.",
            money="Nothing was rented.",
        )


# -- both


def _run(store: Store, connection: Connection, deployment_id: str, *, detach: bool) -> None:
    from clorefleet.cli.watch import watch_until_serving
    from clorefleet.daemon import process

    profile = connection.profile
    info, was_started = process.ensure_running(profile.name, profile.state_dir)
    if was_started:
        note(f"Started the daemon (pid {info.pid}); it guards the deployment and its budget.")
    process.wake(profile.state_dir)
    if detach:
        note(f"`clorefleet status{profile.flag} --watch` shows how it goes on.")
        return
    watch_until_serving(store, connection, deployment_id)
