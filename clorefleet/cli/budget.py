"""`clorefleet budget`: ceilings over the whole fleet, what counts against them, and the circuit breaker."""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import confirm, note, print_json, say, usd

if TYPE_CHECKING:
    from clorefleet.cli.ending import Ending
    from clorefleet.domain.guard import FleetGuard

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def budget(
    name: str = typer.Argument("", help="A deployment, for its --total; default: the fleet."),
    per_day: str = typer.Option("", "--per-day", metavar="AMOUNT", help="Ceiling on the fleet: 40/day."),
    total: str = typer.Option("", "--total", metavar="USD", help="Ceiling on all that is ever spent."),
    clear: bool = typer.Option(False, "--clear", help="Take the ceilings away."),
    resume: bool = typer.Option(False, "--resume", help="Rent again after the circuit breaker stopped it."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
) -> None:
    """Show or set the ceilings over the whole fleet.

    A deployment's own daily budget is set by `clorefleet deploy NAME --budget`. A total is counted from when
    it is set; what would pass a ceiling is not rented, and what runs is given back before a ceiling is
    passed. A ceiling that ends what runs at once says which servers, and asks. Renting stops by itself when
    many servers are rented or fail within an hour; --resume goes on.

    Examples:

      clorefleet budget --per-day 40/day --total 500

      clorefleet budget glm-5.1 --total 120

      clorefleet budget --resume
    """
    from clorefleet.cli.deployment import find_deployment
    from clorefleet.cli.ending import check_seen, ended_by
    from clorefleet.config.profile import clock_of, store_url
    from clorefleet.daemon import process
    from clorefleet.domain.errors import BadInput
    from clorefleet.domain.event import Event
    from clorefleet.domain.identity import DeploymentId
    from clorefleet.domain.money import parse_budget
    from clorefleet.fleet.budget import committed_usd_per_day
    from clorefleet.fleet.spending import load_spending
    from clorefleet.store.database import open_store

    profile = options.profile()
    if name and per_day:
        raise BadInput(
            "A deployment's daily budget is set by deploy.",
            remedy=f"Type: clorefleet deploy MODEL --budget {per_day}{profile.flag}",
        )
    now = clock_of(profile).now()
    store = open_store(store_url(profile))
    is_change = bool(per_day or total or clear or resume)
    if is_change:
        daily = parse_budget(per_day) if per_day else None
        amount = _usd(total) if total else None

        def changed(guard: FleetGuard) -> FleetGuard:
            if clear:
                guard = _without(guard, name)
            if daily is not None:
                guard = replace(guard, per_day=daily)
            if amount is not None and name:
                guard = guard.with_total_of(DeploymentId(name), amount, now=now)
            elif amount is not None:
                guard = replace(guard, total_usd=amount, total_since=now)
            if resume:
                guard = replace(guard, stopped_at=None, stopped_because="", resumed_at=now)
            return guard

        is_ceiling = daily is not None or amount is not None
        with store.read() as tx:
            if name:
                find_deployment(tx, name, money="Nothing was changed.")
            ending = ended_by(tx, now, guard=changed(tx.guard())) if is_ceiling else ()
        if ending:
            _ask(ending, yes=yes or profile.is_sandbox)
        with store.write() as tx:
            if name:
                find_deployment(tx, name, money="Nothing was changed.")
            guard = changed(tx.guard())
            if is_ceiling:
                check_seen(ending, ended_by(tx, now, guard=guard))
            tx.put_guard(guard)
            tx.add_event(Event(now, "budget_changed", _words(guard)))
        process.wake(profile.state_dir)
    with store.read() as tx:
        spending = load_spending(tx, now)
    guard, fleet = spending.fleet.guard, spending.fleet
    committed = committed_usd_per_day(fleet.open_leases, spending.rates)
    if options.as_json:
        print_json(
            {
                "per_day_usd": None if guard.per_day is None else guard.per_day.per_day.amount,
                "total_usd": guard.total_usd,
                "deployment_totals_usd": dict(guard.deployment_totals_usd),
                "committed_usd_per_day": committed,
                "spent_today_usd": fleet.spent_today_usd,
                "spent_total_usd": fleet.spent_total_usd if guard.total_usd is not None else None,
                "is_stopped": guard.is_stopped,
                "stopped_because": guard.stopped_because,
            }
        )
        return
    say(_words(guard))
    say(f"Committed now: {usd(committed)}/day; spent since midnight UTC: {usd(fleet.spent_today_usd, 4)}.")
    if guard.total_usd is not None:
        say(f"Spent of the total: {usd(fleet.spent_total_usd, 4)}.")
    if guard.is_stopped:
        note(f"Renting is stopped: {guard.stopped_because}. `clorefleet budget --resume` goes on.")


def _ask(ending: tuple[Ending, ...], *, yes: bool) -> None:
    for each in ending:
        note(each.text())
    daily = sum((each.usd_per_day for each in ending), Decimal(0))
    servers = "a server" if len(ending) == 1 else f"{len(ending)} servers"
    confirm(
        f"Set this ceiling? It ends {servers}, {usd(daily)}/day.",
        yes=yes,
        what="A ceiling that ends what runs",
        otherwise="The ceilings are as they were; what runs goes on.",
    )


def _words(guard: FleetGuard) -> str:
    parts = []
    if guard.per_day is not None:
        parts.append(f"{guard.per_day} for the fleet")
    if guard.total_usd is not None:
        parts.append(f"{usd(guard.total_usd)} in all")
    parts += [f"{usd(amount)} in all for {name}" for name, amount in guard.deployment_totals_usd.items()]
    return f"Ceilings: {', '.join(parts)}." if parts else "No ceilings over the fleet are set."


def _without(guard: FleetGuard, name: str) -> FleetGuard:
    if name:
        kept = {key: value for key, value in guard.deployment_totals_usd.items() if key != name}
        return replace(guard, deployment_totals_usd=kept)
    return replace(guard, per_day=None, total_usd=None, total_since=None)


def _usd(text: str) -> Decimal:
    from clorefleet.domain.errors import BadBudget
    from clorefleet.domain.money import THOUSANDS

    plain = text.strip().removeprefix("$")
    if "," in plain and not re.fullmatch(rf"{THOUSANDS}(?:\.[0-9]+)?", plain):
        raise BadBudget(text[:40], "a comma only parts thousands: write 1.5, or 1,500")
    try:
        amount = Decimal(plain.replace(",", ""))
    except InvalidOperation as error:
        raise BadBudget(text[:40], "it is not an amount of USD") from error
    if not amount.is_finite() or amount <= 0:
        raise BadBudget(text[:40], "it must be more than zero")
    return amount
