"""`clorefleet plan`: which setup would run, where, and at what price. Rents nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clorefleet.cli import requirement as wish
from clorefleet.cli.context import options
from clorefleet.cli.output import print_json, say_verbatim, usd
from clorefleet.cli.progress import working

if TYPE_CHECKING:
    from clorefleet.config.profile import Connection
    from clorefleet.domain.errors import NothingFits
    from clorefleet.domain.offer import MarketView
    from clorefleet.domain.plan import Plan, PlanReport, Requirement

app = typer.Typer(rich_markup_mode=None, add_completion=False)
SHOWN_REFUSALS = 6
REPLICAS_MAX = 16


@app.command()
@wish.takes_wishes()
def plan(
    wishes: wish.Wishes,
    replicas: int = typer.Option(1, "--replicas", min=1, max=REPLICAS_MAX, help="Copies to plan for."),
    offers: str = typer.Option("", "--offers", help="Plan on a saved `marketplace` answer, offline."),
    explain: bool = typer.Option(False, "--explain", help="Show the arithmetic of the best plan."),
    wide: bool = typer.Option(False, "--wide", help="More columns than 80 characters hold."),
    plot: str = typer.Option("", "--plot", help="The front as FILE.png or .svg; - draws it here."),
    check_guide: bool = typer.Option(
        False, "--check-guide", help="Check a known guide's machines instead; needs no market."
    ),
) -> None:
    """Show which setup would run a model, where, and at what price.

    Rents nothing. Speeds are predictions and say so; prices are all in, per day. With --json, one
    document: docs/plan-json.md.

    Examples:

      clorefleet plan glm-5.1 --budget 16/day --sandbox

      clorefleet plan glm-5.1 --budget 1200/day --prefer speed --explain --sandbox

      clorefleet plan glm-5.1 --offers marketplace.json --plot -
    """
    from clorefleet.cli import plan_view, plot_front
    from clorefleet.config.profile import connect
    from clorefleet.wiring import make_planner

    requirement = check_model(wishes.requirement())
    if check_guide:
        _check_guide(requirement.model)
        return
    plot_front.check_target(plot)
    with working("Reading the market") as progress:
        connection = connect(options.profile(), needs_key=False)
        market = _saved(Path(offers)) if offers else _read(connection)
        progress.what = f"Planning on {len(market.offers):,} offers"
        report = make_planner(connection)(by_record(requirement, connection), market)
    if options.as_json:
        show_json(report, replicas)
        return
    if not report.plans:
        raise nothing_fits(report)
    plan_view.show(report, wide=wide)
    if replicas > 1:
        plan_view.show_replicas(report, replicas)
    if explain:
        plan_view.show_arithmetic(report.plans[0])
    if plot:
        plot_front.plot(report, plot)


def _check_guide(model: str) -> None:
    """docs/guide-check.md: a guide's machines for one model, each with our verdict and arithmetic."""
    from clorefleet.config.recipes import load_calibration_recipes
    from clorefleet.domain.errors import BadInput
    from clorefleet.planner import guide
    from clorefleet.planner.gpus import load_gpus

    if model.lower() != guide.MODEL:
        raise BadInput(
            f"The guide is about {guide.MODEL}, not {model[:60]}.",
            remedy=f"Type: `clorefleet plan {guide.MODEL} --check-guide`",
        )
    recipe = load_calibration_recipes()[guide.MODEL]
    if options.as_json:
        print_json(guide.document(recipe, load_gpus()))
        return
    say_verbatim(guide.page(recipe, load_gpus()), end="")


def check_model(requirement: Requirement) -> Requirement:
    """With the recipe's own name in place of the one that was typed, and the weights that it named.

    Raises:
        UnknownModel: with the nearest names.
        BadInput: the recipe has no such weights.
    """
    from clorefleet.config.model_name import find_model
    from clorefleet.config.recipes import load_recipes

    found = find_model(requirement.model, load_recipes())
    return replace(requirement, model=found.model, checkpoints=found.checkpoints)


def by_record(requirement: Requirement, connection: Connection) -> Requirement:
    """For a plan that is shown: without servers that failed or are blocked, and by what was measured on the
    others. The daemon does the same by itself, by the record of its day."""
    from clorefleet.fleet.limits import DEFAULT_LIMITS
    from clorefleet.store.host_record import read_host_record

    since = connection.clock.now() - DEFAULT_LIMITS.host_fault_memory
    record = read_host_record(connection.store_url, since=since)
    return replace(
        requirement,
        excluded_servers=(*requirement.excluded_servers, *sorted(record.left_out)),
        cuda_found=record.cuda_found,
    )


def _read(connection: Connection) -> MarketView:
    """The market now; with a key, what the wallets hold too."""
    from clorefleet.domain.errors import MarketError
    from clorefleet.wiring import fetch_view_with_wallets, make_market

    market = make_market(connection)
    if not connection.api_key.reveal():
        return market.fetch_view()
    try:
        return fetch_view_with_wallets(market)
    except MarketError:
        return market.fetch_view()  # a wrong key does not keep anyone from planning


def _saved(file: Path) -> MarketView:
    """
    Raises:
        BadInput: no such file, or not a `marketplace` answer.
    """
    from clorefleet.domain.errors import BadInput
    from clorefleet.market.saved import NotAnAnswer, view_of_saved_answer

    try:
        return view_of_saved_answer(file)
    except (OSError, NotAnAnswer) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(
            f"I cannot plan on {str(file)[:200]}: {what}.",
            remedy="Save one with: curl https://api.clore.ai/v1/marketplace -o marketplace.json",
        ) from error


def show_json(report: PlanReport, replicas: int) -> None:
    """One document on stdout; exit code 3 where there is no plan."""
    from clorefleet.config.recipes import find_recipe, load_recipes
    from clorefleet.domain.errors import ExitCode
    from clorefleet.planner.gpus import load_gpus
    from clorefleet.planner.hardware import hardware_of_offer
    from clorefleet.planner.request_capacity import capacity_of
    from clorefleet.report.plan_document import plan_document

    recipes, gpus = load_recipes(), load_gpus()

    def most(plan: Plan) -> tuple[int, int] | None:
        hardware = hardware_of_offer(plan.offer, gpus)
        if hardware is None:
            return None
        capacity = capacity_of(plan.setup, find_recipe(plan.setup.model, recipes), hardware)
        return capacity.context_tokens, capacity.requests

    print_json(plan_document(report, picks(report, replicas), capacity_of=most))
    if not report.plans:
        raise typer.Exit(ExitCode.NOTHING_FITS)


def picks(report: PlanReport, replicas: int) -> tuple[Plan, ...]:
    """The plans that `replicas` copies would take, as the daemon chooses them."""
    from clorefleet.planner.owners import spread

    return spread(report.plans, replicas)


def nothing_fits(report: PlanReport) -> NothingFits:
    """Why there is no plan, what would fit, and what the budget does buy."""
    from clorefleet.domain.errors import NothingFits
    from clorefleet.domain.money import COIN_RATE_MARGIN, format_usd

    requirement = report.requirement
    lines = [f"No server on the market runs {requirement.model} as you want it."]
    if requirement.budget is not None and report.over_budget:
        lines[0] = f"Nothing runs {requirement.model} within {requirement.budget}."
        lines.append("Nearest above it, all in:")
        lines.extend(f"  {_one_line(each)}" for each in report.over_budget[:3])
    lines.extend(f"  {refusal.count} offers: {refusal.text}" for refusal in report.refusals[:SHOWN_REFUSALS])
    if report.advice:
        lines.append("What would run:" if requirement.budget is None else "What the budget does buy:")
        lines.extend(f"  {sentence}" for sentence in report.advice)
    if report.over_budget:
        need = report.over_budget[0].price.first_day_usd
        remedy = (
            # Rounded up: a cent less would not do.
            f"A budget from ${format_usd(need)}/day would do: it is held against what the market bills (of a "
            f"coin, {COIN_RATE_MARGIN:.0%} above its rate), without the start-up and downtime that all-in "
            "figures add. Or lower --context, --min-speed, --precision."
        )
    else:
        remedy = "Loosen --gpu, --country, --min-reliability, --precision, --context or --min-speed."
    return NothingFits("\n".join(lines), remedy=remedy, money="Nothing was rented.")


def _one_line(plan: Plan) -> str:
    return (
        f"{usd(plan.price.all_in_usd_per_day.amount)}/day: {plan.setup.checkpoint} on {plan.setup.engine}, "
        f"server {plan.offer.server_id} ({plan.offer.gpu_summary}), "
        f"about {plan.speed.decode_tokens_per_s:.1f} tok/s predicted"
    )
