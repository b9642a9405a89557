"""`clorefleet schedule`: when the number of replicas changes by the clock, and what that costs."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say, table, usd

if TYPE_CHECKING:
    from clorefleet.domain.deployment import Deployment
    from clorefleet.domain.lease import Lease
    from clorefleet.fleet.schedule import StartUp, Transition
    from clorefleet.store.queries import Transaction

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Show when the number of replicas changes by the clock.",
)
DAYS_MAX = 366


@app.callback()
def _schedule() -> None:
    """Show when the number of replicas changes by the clock."""


@app.command()
def show(
    name: str = typer.Argument("", help="A deployment; default: all that have a schedule."),
    days: int = typer.Option(7, "--days", min=1, max=DAYS_MAX, help="How far ahead."),
) -> None:
    """Show the next changes by the clock, and what each stretch costs.

    Costs are estimates: at the price of the server that runs, else of the last one. Where load or idleness
    move the number, they do so beside what is shown.

    Examples:

      clorefleet schedule show

      clorefleet schedule show chat --days 30 --json
    """
    from clorefleet.config.profile import clock_of, store_url
    from clorefleet.store.database import open_store

    profile = options.profile()
    now = clock_of(profile).now()
    until = now + timedelta(days=days)
    with open_store(store_url(profile)).read() as tx:
        chosen = _chosen(tx, name)
        shown = [(each, *_look(tx, each, now, until)) for each in chosen]
    if options.as_json:
        print_json([_document(*each, until) for each in shown])
        return
    if not shown:
        say("No deployment has a schedule. docs/fleet-toml.md shows how to write one.")
    for deployment, start_up, found, usd_per_day in shown:
        _print(deployment, start_up, found, usd_per_day, until)


def _chosen(tx: Transaction, name: str) -> list[Deployment]:
    from clorefleet.cli.deployment import no_deployment
    from clorefleet.domain.deployment import Desired
    from clorefleet.domain.errors import BadInput

    known = {each.deployment_id: each for each in tx.deployments() if each.desired is Desired.RUNNING}
    if not name:
        return [each for each in known.values() if each.schedule is not None]
    found = [each for each in known.values() if each.deployment_id == name]
    if not found:
        raise no_deployment(name, known)
    if found[0].schedule is None:
        raise BadInput(f"“{name}” has no schedule.", remedy="docs/fleet-toml.md shows how to write one.")
    return found


def _look(
    tx: Transaction, deployment: Deployment, now: datetime, until: datetime
) -> tuple[StartUp, tuple[Transition, ...], Decimal | None]:
    from clorefleet.fleet.budget import committed_usd_per_day
    from clorefleet.fleet.schedule import transitions
    from clorefleet.fleet.slots import held
    from clorefleet.fleet.start_up import MEASURED_MAX, start_up_of

    leases = tx.leases(deployment.deployment_id, since=now - timedelta(days=30))
    kept = held(leases)
    start_up = start_up_of(deployment, tx.start_ups(deployment.deployment_id, limit=MEASURED_MAX), leases)
    assert deployment.schedule is not None  # noqa: S101 - chosen by it
    found = transitions(
        deployment.schedule, deployment.bounds, now, until=until, start_up=start_up, held=len(kept)
    )
    priced: list[Lease] = [*kept, *reversed(leases)]
    return start_up, found, committed_usd_per_day(priced[:1], tx.coin_rates()) if priced else None


def _stretches(
    found: tuple[Transition, ...], usd_per_day: Decimal | None, until: datetime
) -> list[tuple[Transition, datetime, Decimal | None]]:
    rows = []
    for index, each in enumerate(found):
        end = found[index + 1].at if index + 1 < len(found) else until
        days = Decimal(int((end - each.at).total_seconds())) / 86_400
        rows.append((each, end, None if usd_per_day is None else each.replicas * days * usd_per_day))
    return rows


def _print(
    deployment: Deployment,
    start_up: StartUp,
    found: tuple[Transition, ...],
    usd_per_day: Decimal | None,
    until: datetime,
) -> None:
    from clorefleet.domain.duration import in_words
    from clorefleet.fleet.schedule import zone_of

    assert deployment.schedule is not None  # noqa: S101 - chosen by it
    zone = zone_of(deployment.schedule.zone)
    lead, source = start_up.lead, start_up.source
    if deployment.schedule.lead is not None:
        lead, source = deployment.schedule.lead, "as you wrote"
    say(f"{deployment.deployment_id} ({deployment.schedule.zone}); a start takes {in_words(lead)} ({source})")
    rows = _stretches(found, usd_per_day, until)
    table(
        ("FROM", "REPLICAS", "USD", "WHY"),
        [
            (
                f"{each.at.astimezone(zone):%a %d %b %H:%M}",
                each.replicas,
                "?" if cost is None else usd(cost),
                each.reason or "outside of all windows",
            )
            for each, _, cost in rows
        ],
        right=(1, 2),
    )
    total = sum((cost for _, _, cost in rows if cost is not None), Decimal(0))
    if usd_per_day is None:
        note("  No server ran yet, so that no price is known; `clorefleet plan` shows one.")
    else:
        end = f"{until.astimezone(zone):%a %d %b}"
        note(f"  {usd(total)} until {end} at {usd(usd_per_day)}/day each [estimated].")
    say()


def _document(
    deployment: Deployment,
    start_up: StartUp,
    found: tuple[Transition, ...],
    usd_per_day: Decimal | None,
    until: datetime,
) -> dict[str, Any]:
    return {
        "deployment_id": deployment.deployment_id,
        "lead_s": int(start_up.lead.total_seconds()),
        "lead_source": start_up.source,
        "usd_per_day_each_estimated": usd_per_day,
        "transitions": [
            {
                "at": each.at,
                "until": end,
                "replicas": each.replicas,
                "reason": each.reason,
                "usd_estimated": cost,
            }
            for each, end, cost in _stretches(found, usd_per_day, until)
        ],
    }
