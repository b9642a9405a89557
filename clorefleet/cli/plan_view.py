"""A plan report as tables: the best plans, and always those that nothing beats on price and speed."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from clorefleet.cli.output import note, say, table, usd

if TYPE_CHECKING:
    from clorefleet.domain.plan import Plan, PlanReport

SHOWN_PLANS = 8
SHOWN_FRONT = 8
SHOWN_REFUSALS = 6


class _Column(NamedTuple):
    heading: str
    cell: Callable[[Plan], object]
    is_number: bool = False


def _columns(*, wide: bool) -> list[_Column]:
    from clorefleet.planner.cost import start_up_of

    def reliability(plan: Plan) -> str:
        return "?" if plan.offer.reliability is None else f"{plan.offer.reliability:.2f}"

    narrow = [
        _Column("SERVER", lambda plan: plan.offer.server_id, True),
        _Column("GPUS", lambda plan: plan.offer.gpu_summary[: 40 if wide else 17]),
        _Column("SETUP", lambda plan: _setup(plan, 40 if wide else 19)),
        _Column("CTX", lambda plan: f"{plan.setup.context_tokens // 1024}k", True),
        _Column("TOK/S*", _speed, True),
        _Column("USD/DAY", lambda plan: _daily(plan, marks_coins=not wide), True),
    ]
    if not wide:
        return [*narrow, _Column("REL", reliability, True)]
    return [
        *narrow,
        _Column(
            "PAID IN", lambda plan: f"{plan.price.billed.currency}{' spot' if plan.price.is_spot else ''}"
        ),
        _Column("USD/MTOK", _per_million, True),
        _Column("STREAMS", lambda plan: plan.setup.concurrency, True),
        _Column("TOGETHER", lambda plan: f"{plan.speed.throughput_tokens_per_s or 0:.0f}", True),
        _Column("START", lambda plan: f"{start_up_of(plan.offer, plan.setup).total_s / 60:.0f} min", True),
        _Column("REL", reliability, True),
        _Column("CC", lambda plan: plan.offer.country or "?"),
        _Column("OWNER", lambda plan: plan.offer.owner_id or "?", True),
        _Column("CPU", lambda plan: plan.offer.cpu_model[:32]),
    ]


def _setup(plan: Plan, width: int) -> str:
    return f"{plan.setup.checkpoint}/{plan.setup.engine}"[:width]


def _speed(plan: Plan) -> str:
    from clorefleet.domain.recipe import Mark

    measured = "m" if plan.speed.mark is Mark.MEASURED else ""
    return f"{plan.speed.decode_tokens_per_s:.1f}{measured}"


def _daily(plan: Plan, *, marks_coins: bool) -> str:
    mark = "c" if marks_coins and plan.price.billed.currency != "USD" else ""
    return f"{usd(plan.price.all_in_usd_per_day.amount)}{mark}"


def _per_million(plan: Plan) -> str:
    value = plan.price.usd_per_million_tokens
    return "?" if value is None else usd(value)


def show(report: PlanReport, *, wide: bool = False) -> None:
    budget = report.requirement.budget
    if budget is None:
        note("No budget given: everything that fits is shown.")
    elif not budget.period_was_stated:
        note(f"The budget is read as {budget}.")
    columns = _columns(wide=wide)
    best = report.plans[:SHOWN_PLANS]
    _table(report, best, columns, wide=wide)
    front = [each for each in report.plans if each.key in report.pareto and each not in best]
    if front:
        say()
        say("And these, than which nothing is both cheaper and faster:")
        _table(report, _spread(front), columns, wide=wide)
    say()
    _say_legend(report)
    show_refusals(report)


def _spread(front: list[Plan]) -> list[Plan]:
    """Some of a long front, evenly, with both ends."""
    if len(front) <= SHOWN_FRONT:
        return front
    return [front[round(i * (len(front) - 1) / (SHOWN_FRONT - 1))] for i in range(SHOWN_FRONT)]


def _table(
    report: PlanReport, plans: tuple[Plan, ...] | list[Plan], columns: list[_Column], *, wide: bool
) -> None:
    def mark(plan: Plan) -> str:
        first = "→" if plan is report.plans[0] else ""
        return f"{first}{'+' if plan.key in report.pareto else '!' if plan.price.lacking else ''}"

    table(
        ("", *(column.heading for column in columns)),
        [(mark(plan), *(column.cell(plan) for column in columns)) for plan in plans],
        right=tuple(i + 1 for i, column in enumerate(columns) if column.is_number),
        wide=wide,
    )


def _say_legend(report: PlanReport) -> None:
    from clorefleet.domain.recipe import Mark

    note("* one stream, predicted. USD/day is all in: fees, paid start-up and expected loss included.")
    if any(plan.speed.mark is Mark.MEASURED for plan in report.plans):
        note("m corrected by what replicas of yours measured; `--explain` says which.")
    if coins := sorted({plan.price.billed.currency for plan in report.plans} - {"USD"}):
        note(f"c billed in {' or '.join(coins)}: USD at the present rate, which moves.")
    note("+ nothing that fits is both cheaper and faster.")
    lacking = [plan for plan in report.plans if plan.price.lacking is not None]
    if lacking:
        note(
            f"! {len(lacking)} plan(s) come last because the wallet cannot pay their first hours; "
            f"server {lacking[0].offer.server_id} would need {lacking[0].price.lacking} more."
        )
    best = report.plans[0]
    for reason in best.reasons:
        note(f"Server {best.offer.server_id} is {reason}.")
    rest = len(report.plans) - SHOWN_PLANS
    if rest > 0:
        note(f"{rest} more plan(s); {report.offers_seen} offers seen.")


def show_refusals(report: PlanReport) -> None:
    # What the record of servers takes away is said however few they are.
    shown = [
        refusal
        for rank, refusal in enumerate(report.refusals)
        if rank < SHOWN_REFUSALS or refusal.code == "excluded"
    ]
    for refusal in shown:
        note(f"  {refusal.count:>5} offers not taken: {refusal.text}")


def show_replicas(report: PlanReport, replicas: int) -> None:
    """Which servers several copies would take, whose they are, and what all cost together."""
    from clorefleet.cli.plan import picks

    taken = picks(report, replicas)
    say()
    owners = {plan.offer.owner_id for plan in taken if plan.offer.owner_id is not None}
    total = sum((plan.price.all_in_usd_per_day.amount for plan in taken), Decimal(0))
    first = sum((plan.price.first_day_usd for plan in taken), Decimal(0))
    servers = ", ".join(str(plan.offer.server_id) for plan in taken)
    say(f"{len(taken)} replicas: servers {servers}; {len(owners)} known owner(s); {usd(total)}/day in all.")
    if len(taken) < replicas:
        say(f"No more than {len(taken)} servers fit; {replicas} are wanted.")
    ranked = [plan for plan in report.plans[: len(taken)] if plan not in taken]
    if ranked:
        passed = ", ".join(str(plan.offer.server_id) for plan in ranked)
        say(f"Passed over: server {passed}. One owner's servers fail together; others cost little more.")
    budget = report.requirement.budget
    if budget is not None and first > budget.per_day.amount:
        say(f"The budget of {budget} does not carry all of them: their first day costs up to {usd(first)}.")


def show_arithmetic(plan: Plan) -> None:
    from clorefleet.config.recipes import find_recipe, load_recipes
    from clorefleet.planner.explain import explain
    from clorefleet.planner.gpus import load_gpus

    for section in explain(plan, find_recipe(plan.setup.model, load_recipes()), load_gpus()):
        say()
        say(section.title)
        for sentence in section.sentences:
            say(f"  {sentence}")
        if section.terms:
            table(
                ("PART", "VALUE", "UNIT", "MARK", "SOURCE"),
                [(t.name, f"{t.value:,.4g}", t.unit, t.mark, t.source) for t in section.terms],
                right=(1,),
                indent=2,
            )
