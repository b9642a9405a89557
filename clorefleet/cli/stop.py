"""`clorefleet stop`: end a deployment and everything it pays for."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import confirm, note, print_json, say, usd

if TYPE_CHECKING:
    from clorefleet.config.profile import Profile
    from clorefleet.store.database import Store

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def stop(
    name: str = typer.Argument("", help="A deployment."),
    all_: bool = typer.Option(False, "--all", help="End every order; needs only the key."),
    foreign: bool = typer.Option(
        False, "--foreign", help="With --all: orders that clorefleet did not make, too."
    ),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
) -> None:
    """Stop a deployment and everything it pays for.

    Ends when the market's own list shows the order gone, and prints the final bill.

    `--all` works without store, daemon or plan: it cancels by the market's order list. Orders that no
    record of this profile explains are listed and left alone unless --foreign is given.

    Examples:

      clorefleet stop smollm2-135m --sandbox

      clorefleet stop --all --yes
    """
    from clorefleet.domain.errors import BadInput

    profile = options.profile(needs_state=not all_)
    if all_:
        from clorefleet.cli.panic import stop_everything

        stop_everything(profile, foreign=foreign, yes=yes)
        return
    if not name:
        raise BadInput(
            "Which deployment?",
            remedy=f"`clorefleet status{profile.flag}` lists them; `clorefleet stop --all` ends all.",
        )
    _stop_one(profile, name, yes=yes)


def _stop_one(profile: Profile, name: str, *, yes: bool) -> None:
    from clorefleet.cli.deployment import find_deployment
    from clorefleet.cli.watch import watch_until_stopped
    from clorefleet.config.profile import connect, store_url
    from clorefleet.daemon import process
    from clorefleet.domain.deployment import Desired
    from clorefleet.fleet.budget import committed_usd_per_day
    from clorefleet.fleet.wish import stopped
    from clorefleet.store.database import open_store

    store = open_store(store_url(profile))
    with store.read() as tx:
        deployment = find_deployment(tx, name, money="Nothing was stopped.")
        leases = [lease for lease in tx.open_leases() if lease.deployment_id == name]
        rates = tx.coin_rates()
    if deployment.desired is Desired.STOPPED and not leases:
        note(f"{name} is stopped already; nothing of it bills.")
        _say_what_may_be_of_it(store, name)
        if options.as_json:
            _say_bill(name, _spent(store, name))
        return
    daily = committed_usd_per_day(leases, rates)
    question = f"Stop {name}? Its {len(leases)} server(s), at {usd(daily)}/day, are given back."
    confirm(question, yes=yes or profile.is_sandbox, what="Stopping", otherwise="It goes on.")
    with store.write() as tx:
        # As it is by now: what somebody lowered while this was asked stays lowered.
        tx.put_deployment(stopped(tx.deployment(deployment.deployment_id) or deployment))
    connection = connect(profile)
    process.ensure_running(profile.name, profile.state_dir)
    process.wake(profile.state_dir)
    try:
        total = watch_until_stopped(store, connection, name)
    except KeyboardInterrupt:
        note("")
        note("Stopped watching; the daemon goes on until the market shows the orders gone.")
        raise
    _say_bill(name, total)
    _say_what_may_be_of_it(store, name)


def _say_what_may_be_of_it(store: Store, name: str) -> None:
    from clorefleet.cli.status import strange_notes

    with store.read() as tx:
        notes = strange_notes(tx, name)
    for text in notes:
        note(text)


def _spent(store: Store, name: str) -> Decimal:
    from datetime import UTC, datetime

    from clorefleet.domain.identity import DeploymentId

    with store.read() as tx:
        segments = tx.segments(DeploymentId(name))
    # All of them have ended: the present moment changes none.
    return sum((each.cost_usd(datetime.now(UTC)) for each in segments), Decimal(0))


def _say_bill(name: str, total: Decimal) -> None:
    if options.as_json:
        print_json({"deployment_id": name, "state": "stopped", "spent_usd": total})
        return
    say(f"{name} is stopped: the market lists no order of it. It cost {usd(total, 4)} in all.")
