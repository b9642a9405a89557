"""`clorefleet scale`: keep another number of replicas of a deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import confirm, note, print_json, say

if TYPE_CHECKING:
    from datetime import datetime

    from clorefleet.domain.deployment import Deployment
    from clorefleet.store.database import Store

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def scale(
    name: str = typer.Argument(..., help="A deployment."),
    replicas: int = typer.Argument(..., help="Replicas to keep where neither schedule nor load says more."),
    replicas_max: int | None = typer.Option(
        None, "--max", help="The most that load may ask for; default: as it was."
    ),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
) -> None:
    """Keep another number of replicas of a deployment.

    Says what that costs and asks, then leaves it to the daemon: more are rented within the budget, and fewer
    are given back once their requests are done. To keep none, stop it.

    Examples:

      clorefleet scale smollm2-135m 2 --sandbox

      clorefleet scale glm-5.1 1 --max 4
    """
    from clorefleet.cli.deployment import find_deployment
    from clorefleet.config.profile import clock_of, connect, store_url
    from clorefleet.daemon import process
    from clorefleet.fleet.wish import check_budget, means, more_usd_per_day, scaled
    from clorefleet.store.database import open_store

    profile = options.profile()
    now = clock_of(profile).now()
    store = open_store(store_url(profile))
    with store.read() as tx:
        before = find_deployment(tx, name, money="Nothing was changed.")
        leases = [lease for lease in tx.open_leases() if lease.deployment_id == name]
        rates = tx.coin_rates()
    after = scaled(before, replicas, now=now, replicas_max=replicas_max)
    check_budget(before, after, leases, rates)
    lines = means(before, after, leases, rates)
    if after != before:
        confirm(
            f"Keep {_number(after)} of {name}? {' '.join(lines)}",
            yes=yes or profile.is_sandbox,
            what="Scaling",
            otherwise="It stays as it was.",
        )
        connect(profile)  # a daemon could not work without a key: told before anything is written
        _write(store, before, after, now)
        process.ensure_running(profile.name, profile.state_dir)
        process.wake(profile.state_dir)
    if options.as_json:
        budget = after.requirement.budget
        print_json(
            {
                "deployment_id": name,
                "replicas_before": before.replicas,
                "replicas": after.replicas,
                "replicas_max": after.bounds.replicas_max,
                "usd_per_day_more_estimated": more_usd_per_day(before, after, leases, rates),
                "budget": None if budget is None else str(budget),
                "means": list(lines),
            }
        )
        return
    if after == before:
        note(f"{name} keeps {_number(before)} already.")
        return
    say(f"{name}: {_number(after)} will be kept.")
    if yes or profile.is_sandbox:  # else they were in the question
        for line in lines:
            note(f"  {line}")
    note(f"Watch: clorefleet status{profile.flag}")


def _number(deployment: Deployment) -> str:
    least, most = deployment.bounds.replicas_min, deployment.bounds.replicas_max
    if least == most:
        return "1 replica" if least == 1 else f"{least} replicas"
    return f"{least} to {most} replicas"


def _write(store: Store, before: Deployment, after: Deployment, now: datetime) -> None:
    """
    Raises:
        BadInput: it has changed since it was asked about.
    """
    from clorefleet.cli.deployment import check_unchanged
    from clorefleet.domain.event import Event

    name = before.deployment_id
    with store.write() as tx:
        check_unchanged(tx, name, before)
        tx.put_deployment(after)
        tx.add_event(Event(now, "scale_wished", f"{name}: {_number(after)} were asked for.", name))
