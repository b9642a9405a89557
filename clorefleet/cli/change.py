"""What `diff` and `apply` share: the changes of a fleet file, each with its cost, in words and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clorefleet.cli.output import note, say, usd
from clorefleet.cli.progress import working

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clorefleet.cli.progress import Progress
    from clorefleet.config.profile import Connection
    from clorefleet.domain.deployment import Deployment
    from clorefleet.domain.fleet_file import AppliedFile, FleetFile
    from clorefleet.domain.lease import Lease
    from clorefleet.domain.money import ExchangeRate
    from clorefleet.domain.offer import MarketView
    from clorefleet.domain.plan import Plan, PlanReport
    from clorefleet.fleet.change import Change, Changes
    from clorefleet.fleet.edges import Planner
    from clorefleet.store.database import Store
    from clorefleet.store.queries import Transaction

AHEAD = timedelta(days=7)
_MARKS = {"create": "+", "update": "~", "stop": "-", "ceiling": "~", "conflict": "!"}


@dataclass(frozen=True, slots=True)
class Priced:
    """One change and what it costs; estimates from the market as it is now."""

    change: Change
    plan: Plan | None = None
    no_plan: str = ""
    """Why nothing would be rented now."""
    burning_usd_per_day: Decimal = Decimal(0)
    """What the deployment's servers cost now."""
    does_not_fit: str = ""
    """That the budget does not hold as many replicas as are wished for; "" where it does."""


def file_path(given: Path | None, applied: AppliedFile | None) -> Path:
    """The file that is meant: the one given, else ./fleet.toml, else the one last applied."""
    from clorefleet.config.fleet_file import DEFAULT_NAME

    here = Path(DEFAULT_NAME)
    if given is not None:
        return given
    return Path(applied.path) if applied is not None and not here.exists() else here


def changes_in(
    tx: Transaction, file: FleetFile, *, now: datetime, taken: frozenset[str] = frozenset()
) -> Changes:
    from clorefleet.fleet.change import changes

    return changes(file, tx.deployments(), tx.guard().per_day, now=now, taken=taken)


def priced(connection: Connection, store: Store, found: Changes) -> tuple[Priced, ...]:
    """Ask the market and the planner what each change would rent. Rents nothing."""
    from clorefleet.wiring import make_market, make_planner

    with store.read() as tx:
        leases, rates = tx.open_leases(), tx.coin_rates()
    rents = [each for each in found.changes if _rents(each)]
    with working("Reading the market"):
        view = make_market(connection).fetch_view() if rents else None
    plan = make_planner(connection) if rents else None
    with working("Planning") as progress:
        return _planned(found, leases, rates, view, plan, progress)


def _planned(
    found: Changes,
    leases: tuple[Lease, ...],
    rates: tuple[ExchangeRate, ...],
    view: MarketView | None,
    plan: Planner | None,
    progress: Progress,
) -> tuple[Priced, ...]:
    from clorefleet.fleet.budget import committed_usd_per_day

    result: list[Priced] = []
    for change in found.changes:
        progress.fraction = len(result) / len(found.changes)
        burning = committed_usd_per_day(_leases_of(change, leases), rates)
        if view is None or plan is None or change.after is None or not _rents(change):
            result.append(Priced(change, burning_usd_per_day=burning))
            continue
        report = plan(change.after.requirement, view)
        best = report.plans[0] if report.plans else None
        after = change.after if best is None else _estimated(change.after, best)
        why = "" if best else _why_none(report)
        held = () if _is_other_model(change) else _leases_of(change, leases)
        result.append(
            Priced(replace(change, after=after), best, why, burning, _too_many(after, report, held))
        )
    return tuple(result)


def _leases_of(change: Change, leases: tuple[Lease, ...]) -> list[Lease]:
    return [each for each in leases if each.deployment_id == change.deployment_id]


def _rents(change: Change) -> bool:
    """True for a change after which something may be rented."""
    from clorefleet.domain.deployment import Desired

    after = change.after
    return after is not None and after.desired is Desired.RUNNING and not change.lowers


def _estimated(deployment: Deployment, plan: Plan) -> Deployment:
    from clorefleet.planner.cost import start_up_of

    start = start_up_of(plan.offer, plan.setup)
    return replace(deployment, start_up_estimate=timedelta(seconds=round(start.total_s)))


def _too_many(after: Deployment, report: PlanReport, held: Sequence[Lease]) -> str:
    """By what runs and the cheapest that could be rented beside it: less would not hold them."""
    from clorefleet.fleet.budget import committed_usd_per_day
    from clorefleet.fleet.wish import does_not_fit

    budget = after.requirement.budget
    more = after.bounds.replicas_min - len(held)
    prices = sorted(plan.price.running_usd_per_day for plan in report.plans)[: max(0, more)]
    if budget is None or more <= 0 or after.bounds.replicas_min < 2 or not prices:
        return ""
    needed = committed_usd_per_day(held) + sum(prices, Decimal(0)) / len(prices) * more
    too_few = needed > budget.per_day.amount
    return does_not_fit(after.bounds.replicas_min, budget, needed) if too_few else ""


def check_budgets(found: Sequence[Priced]) -> None:
    """
    Raises:
        BudgetExceeded: a budget does not hold the replicas that are wished for; told at once, rather than
            kept as a wish that waits without end.
    """
    from clorefleet.domain.errors import BudgetExceeded

    told = [f"{each.change.deployment_id}: {each.does_not_fit}" for each in found if each.does_not_fit]
    if told:
        raise BudgetExceeded(
            " ".join(told),
            remedy="Give it the budget or fewer replicas in the file, then apply it again.",
            money="Nothing was changed and nothing was rented.",
        )


def _why_none(report: PlanReport) -> str:
    if report.over_budget:
        need = report.over_budget[0].price.first_day_usd
        return f"nothing fits this budget now; the cheapest that fits otherwise needs {usd(need)}/day"
    if report.refusals:
        return f"nothing fits now: {report.refusals[0].text}"
    return "nothing on the market fits now"


def show(found: tuple[Priced, ...], now: datetime) -> None:
    for each in found:
        change = each.change
        name = change.deployment_id or "the fleet"
        words = {
            "create": "is new",
            "update": "changes",
            "stop": "is stopped: it is not in the file any more",
            "ceiling": "changes",
            "conflict": "was made by `clorefleet deploy` and is left alone; "
            f"`clorefleet apply --take {name}` gives it to the file",
        }
        say(f"{_MARKS[change.kind]} {name} {words[change.kind]}")
        if change.kind != "stop":
            for line in change.differences:
                say(f"    {line.key}: {f'{line.before} → ' if line.before else ''}{line.after}")
        for line_text in cost_lines(each, now):
            say(f"    {line_text}")


def cost_lines(each: Priced, now: datetime) -> list[str]:
    lines = []
    if each.burning_usd_per_day:
        lines.append(f"runs now at {usd(each.burning_usd_per_day)}/day")
    if each.no_plan:
        lines.append(f"{each.no_plan}; it would wait until something does")
    if each.does_not_fit:
        lines.append(f"{each.does_not_fit.rstrip('.')} [estimated]")
    plan, after = each.plan, each.change.after
    if plan is None or after is None:
        return lines
    price = plan.price.running_usd_per_day
    lines.append(
        f"best plan now: server {plan.offer.server_id} ({plan.offer.gpu_summary}), "
        f"{plan.setup.checkpoint} on {plan.setup.engine}, {usd(price)}/day while it runs"
    )
    least, most = week_usd(after, price, now)
    week = usd(least) if least == most else f"{usd(least)} to {usd(most)}"
    budget = after.requirement.budget
    lines.append(f"next 7 days at that price: {week} [estimated]; never above {budget}")
    if _is_other_server(each.change):
        lines.append("servers that run stay as they are; this holds for those that are rented from now on")
    if _is_other_model(each.change):
        lines.append("the model changes: its servers are given back and others rented")
    return lines


def week_usd(after: Deployment, usd_per_day: Decimal, now: datetime) -> tuple[Decimal, Decimal]:
    """What the bounds ask for in the next days at a price, at least and at most; never above the budget."""
    from clorefleet.fleet.schedule import replica_days

    budget = after.requirement.budget
    cap = budget.per_day.amount * AHEAD.days if budget else None
    days = replica_days(after.schedule, after.bounds, now, now + AHEAD)
    least, most = (amount * usd_per_day for amount in days)
    return (least, most) if cap is None else (min(least, cap), min(most, cap))


_OF_SERVER = frozenset(
    {
        "prefer",
        "precisions",
        "weights",
        "min_context",
        "min_speed",
        "min_reliability",
        "countries",
        "gpu",
        "spot",
        "spot only",
    }
)


def _is_other_server(change: Change) -> bool:
    return change.kind == "update" and any(line.key in _OF_SERVER for line in change.differences)


def _is_other_model(change: Change) -> bool:
    return change.kind == "update" and any(line.key == "model" for line in change.differences)


def say_ceiling(found: Changes, store: Store) -> Decimal | None:
    """Print and return the most that the fleet can spend a day afterwards; None where there is no bound."""
    from clorefleet.domain.deployment import Desired

    with store.read() as tx:
        known = {each.deployment_id: each for each in tx.deployments()}
    known |= {each.after.deployment_id: each.after for each in found.changes if each.after is not None}
    running = [each for each in known.values() if each.desired is Desired.RUNNING]
    budgets = [each.requirement.budget for each in running]
    total = None if None in budgets else sum((b.per_day.amount for b in budgets if b), Decimal(0))
    if found.fleet_budget is not None:
        ceiling = found.fleet_budget.per_day.amount
        total = ceiling if total is None else min(total, ceiling)
    if total is None:
        note("Afterwards nothing bounds what a day can cost: a deployment has no budget.")
    else:
        say(f"Afterwards all of it together can cost at most {usd(total)} a day.")
    return total


def document(found: tuple[Priced, ...], changes: Changes, now: datetime) -> dict[str, Any]:
    def one(each: Priced) -> dict[str, Any]:
        change, plan, after = each.change, each.plan, each.change.after
        price = None if plan is None else plan.price.running_usd_per_day
        week = None if price is None or after is None else week_usd(after, price, now)
        return {
            "kind": change.kind,
            "deployment_id": change.deployment_id,
            "lowers_spending": change.lowers,
            "differences": [
                {"key": line.key, "before": line.before, "after": line.after, "lowers_spending": line.lowers}
                for line in change.differences
            ],
            "best_server_id": None if plan is None else plan.offer.server_id,
            "usd_per_day_estimated": price,
            "week_usd_least_estimated": None if week is None else week[0],
            "week_usd_most_estimated": None if week is None else week[1],
            "budget": None
            if after is None or after.requirement.budget is None
            else str(after.requirement.budget),
            "no_plan": each.no_plan,
            "burning_usd_per_day": each.burning_usd_per_day,
        }

    return {
        "changes": [one(each) for each in found],
        "fleet_budget": None if changes.fleet_budget is None else str(changes.fleet_budget),
    }
