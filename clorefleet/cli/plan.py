"""`clorefleet plan`: which setup would run, where, and at what price. Rents nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from clorefleet.cli import requirement as wish
from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say, table, usd

if TYPE_CHECKING:
    from clorefleet.domain.errors import NothingFits
    from clorefleet.domain.plan import Plan, PlanReport, Requirement

app = typer.Typer(rich_markup_mode=None, add_completion=False)
SHOWN_PLANS = 8
SHOWN_REFUSALS = 6


@app.command()
def plan(
    model: wish.Model,
    budget: wish.Budget = "",
    prefer: wish.Prefer = "cost",
    precision: wish.Precisions = "",
    context: wish.Context = 0,
    min_speed: wish.MinSpeed = 0,
    min_reliability: wish.MinReliability = 0,
    gpu: wish.Gpu = "",
    country: wish.Country = "",
    spot: wish.Spot = False,
    explain: bool = typer.Option(False, "--explain", help="Show the arithmetic of the best plan."),
) -> None:
    """Show which setup would run a model, where, and at what price.

    Rents nothing. Speeds are predictions and say so; prices are all in, per day.

    Examples:

      clorefleet plan glm-5.1 --budget 16/day --sandbox

      clorefleet plan glm-5.1 --budget 1200/day --prefer speed --explain --sandbox
    """
    from clorefleet.config.profile import connect
    from clorefleet.wiring import make_market, make_planner

    wishes = wish.Wishes(
        model, budget, prefer, precision, context, min_speed, min_reliability, gpu, country, spot
    )
    requirement = check_model(wishes.requirement())
    connection = connect(options.profile(), needs_key=False)
    report = make_planner(connection)(requirement, make_market(connection).fetch_view())
    if options.as_json:
        from clorefleet.store.codec import encode

        print_json(encode(report))
        if not report.plans:
            raise typer.Exit(3)
        return
    if not report.plans:
        raise nothing_fits(report)
    show_plans(report)
    if explain:
        _explain(report.plans[0])


def check_model(requirement: Requirement) -> Requirement:
    """
    Raises:
        UnknownModel: with the nearest names.
    """
    from clorefleet.config.recipes import find_recipe, load_recipes

    find_recipe(requirement.model, load_recipes())
    return requirement


def show_plans(report: PlanReport) -> None:
    if not report.requirement.budget:
        note("No budget given: everything that fits is shown.")
    elif not report.requirement.budget.period_was_stated:
        note(f"The budget is read as {report.requirement.budget}.")
    table(
        ("", "SERVER", "GPUS", "SETUP", "CONTEXT", "TOK/S*", "USD/DAY", "REL"),
        [
            (
                "→" if i == 0 else " ",
                each.offer.server_id,
                each.offer.gpu_summary[:24],
                f"{each.setup.checkpoint}/{each.setup.engine}",
                f"{each.setup.context_tokens // 1024}k",
                f"{each.speed.decode_tokens_per_s:.1f}",
                usd(each.price.all_in_usd_per_day.amount),
                "?" if each.offer.reliability is None else f"{each.offer.reliability:.2f}",
            )
            for i, each in enumerate(report.plans[:SHOWN_PLANS])
        ],
        right=(1, 4, 5, 6, 7),
    )
    note("* one stream, predicted. USD/day is all in: fees and paid start-up included.")
    rest = len(report.plans) - SHOWN_PLANS
    if rest > 0:
        note(f"{rest} more plan(s); {report.offers_seen} offers seen.")
    show_refusals(report)


def show_refusals(report: PlanReport) -> None:
    for refusal in report.refusals[:SHOWN_REFUSALS]:
        note(f"  {refusal.count:>5} offers not taken: {refusal.text}")


def nothing_fits(report: PlanReport) -> NothingFits:
    """Why there is no plan, what would fit, and what the budget does buy."""
    from clorefleet.domain.errors import NothingFits

    requirement = report.requirement
    lines = [f"No server on the market runs {requirement.model} as you want it."]
    if requirement.budget is not None and report.over_budget:
        lines[0] = f"Nothing runs {requirement.model} within {requirement.budget}."
        lines.append("Nearest above it:")
        lines.extend(f"  {_one_line(each)}" for each in report.over_budget[:3])
    lines.extend(f"  {refusal.count} offers: {refusal.text}" for refusal in report.refusals[:SHOWN_REFUSALS])
    lines.extend(report.advice)
    if report.over_budget:
        need = report.over_budget[0].price.first_day_usd
        remedy = f"A budget from {usd(need)}/day would do, or lower --context, --min-speed, --precision."
    else:
        remedy = "Loosen --gpu, --country, --min-reliability, --precision, --context or --min-speed."
    return NothingFits("\n".join(lines), remedy=remedy, money="Nothing was rented.")


def _one_line(plan: Plan) -> str:
    return (
        f"{usd(plan.price.all_in_usd_per_day.amount)}/day: {plan.setup.checkpoint} on {plan.setup.engine}, "
        f"server {plan.offer.server_id} ({plan.offer.gpu_summary}), "
        f"about {plan.speed.decode_tokens_per_s:.1f} tok/s predicted"
    )


def _explain(plan: Plan) -> None:
    from clorefleet.config.recipes import find_recipe, load_recipes
    from clorefleet.planner.explain import explain

    for section in explain(plan, find_recipe(plan.setup.model, load_recipes())):
        say()
        say(section.title)
        for sentence in section.sentences:
            say(f"  {sentence}")
        if section.terms:
            table(
                ("  PART", "VALUE", "UNIT", "MARK", "SOURCE"),
                [(f"  {t.name}", f"{t.value:,.4g}", t.unit, t.mark, t.source) for t in section.terms],
                right=(1,),
            )
