"""`clorefleet sweep`: find orders that bill and that nothing wants. For cron, also on another machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import confirm, note, print_json, say, table
from clorefleet.cli.progress import working
from clorefleet.report.words import hourly

if TYPE_CHECKING:
    from clorefleet.config.profile import Connection, Profile
    from clorefleet.domain.deployment import Deployment
    from clorefleet.domain.lease import Lease
    from clorefleet.domain.order import Order
    from clorefleet.fleet.sweep import Finding
    from clorefleet.store.database import Store

app = typer.Typer(rich_markup_mode=None, add_completion=False)
_AGE = re.compile(r"(\d{1,4})\s*(s|m|min|h|d)")
_UNIT_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


@app.command()
def sweep(
    end: list[int] = typer.Option(
        [], "--end", metavar="ORDER", help="End this order, whoever made it. Can be repeated."
    ),
    end_likely: bool = typer.Option(
        False, "--end-likely", help="End all that run an image of our recipes and that no record explains."
    ),
    older_than: str = typer.Option(
        "0s", "--older-than", metavar="AGE", help="With --end-likely: only orders older than, e.g., 2h."
    ),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
) -> None:
    """Find orders that bill and that nothing wants, and end those that are ours for certain.

    Needs only the key. Works once and exits, so that cron on another machine can watch over a daemon that has
    died: there, with an empty store, no order is certainly ours, and none is ended unless you name it. What
    you name is your consent, and is recorded. Exit code 12 when orders bill that may be ours and that
    nothing explains, and when the list holds records that cannot be read.

    Examples:

      clorefleet sweep

      clorefleet sweep --end 602837

      clorefleet sweep --end-likely --older-than 6h --yes
    """
    from clorefleet.config.profile import connect
    from clorefleet.domain.errors import BadInput, ExitCode
    from clorefleet.fleet.sweep import Standing, explain_orders
    from clorefleet.wiring import make_market

    age = _age(older_than)
    profile = options.profile(needs_state=False)
    with working("Reading the list of orders"):
        connection = connect(profile)
        market = make_market(connection)
        orders = market.fetch_orders()
    records = _read_records(profile)
    from clorefleet.cli.panic import end_and_tell, recipe_images, unread

    findings = explain_orders(
        orders.live(), leases=records.leases, deployments=records.deployments, images=recipe_images()
    )
    _show(findings, is_whole=not orders.unreadable)
    if orders.unreadable:
        note(unread(orders))
    missing = set(end) - {finding.order.order_id for finding in findings}
    if missing:
        numbers = ", ".join(map(str, sorted(missing)))
        raise BadInput(
            f"The market lists no live order {numbers}.",
            remedy="Take the numbers from the table above.",
            money="Nothing was ended.",
        )
    now = connection.clock.now()
    named = [finding for finding in findings if finding.order.order_id in end]
    if end_likely:
        named += [
            finding
            for finding in findings
            if finding.standing is Standing.LIKELY
            and finding.is_older_than(age, now)
            and finding not in named
        ]
    certain = [finding for finding in findings if finding.standing is Standing.LEFT_OVER]
    if certain and records.is_guarded:
        note("A daemon guards this store; it ends what is left over.")
        certain = [finding for finding in certain if finding.order.order_id in end]
    to_end = [*certain, *(finding for finding in named if finding not in certain)]
    if to_end:
        prices = ", ".join(hourly(finding.order.price) for finding in to_end)
        question = f"End {len(to_end)} order(s), which bill {prices}? Their data is lost."
        confirm(question, yes=yes or profile.is_sandbox, what="Ending orders", otherwise="Nothing was ended.")
        _record_consent(records.store, named, connection)
        end_and_tell(connection, market, [finding.order for finding in to_end])
    orphans = [f for f in findings if f.standing is Standing.LIKELY and f not in to_end]
    if options.as_json:
        print_json(_document(findings, to_end, orphans) | {"unreadable": orders.unreadable})
    elif to_end:
        say(f"{len(to_end)} order(s) ended: the market lists none of them any more.")
    if orphans:
        note(
            f"{len(orphans)} order(s) may be ours and nothing here explains them. If no other machine's "
            "clorefleet made them: --end ORDER ends one; `clorefleet adopt ORDER --model M --budget 12/day` "
            "takes one over where its key is on this machine."
        )
    if orphans or orders.unreadable:
        raise typer.Exit(ExitCode.ORPHANS)


@dataclass(frozen=True, slots=True)
class _Records:
    """What this machine knows; empty where there is no store, or none that can be read."""

    store: Store | None
    leases: tuple[Lease, ...] = ()
    deployments: tuple[Deployment, ...] = ()
    is_guarded: bool = False


def _read_records(profile: Profile) -> _Records:
    from clorefleet.config.profile import store_url
    from clorefleet.daemon import process
    from clorefleet.domain.errors import ClorefleetError
    from clorefleet.store.database import open_store

    try:
        store = open_store(store_url(profile))
        with store.read() as tx:
            leases, deployments = tx.leases(), tx.deployments()
        is_guarded = process.running_pid(profile.state_dir) is not None
    except (ClorefleetError, OSError, ValueError) as error:
        note(f"The store cannot be used ({error}): nothing is known but the market's list.")
        return _Records(None)
    return _Records(store, leases, deployments, is_guarded)


def _record_consent(store: Store | None, named: list[Finding], connection: Connection) -> None:
    """The user named these orders; kept with the event, since a cancel of another's order needs a reason."""
    from clorefleet.domain.errors import StoreError
    from clorefleet.domain.event import Event

    if store is None or not named:
        return
    now = connection.clock.now()
    try:
        with store.write() as tx:
            for finding in named:
                tx.note_consent(finding.order.order_id, now=now)
                text = f"You asked to end order {finding.order.order_id} ({finding.standing}: {finding.why})."
                tx.add_event(Event(now, "consent_given", text))
    except StoreError as error:
        note(f"Your consent could not be recorded ({error.what}); the orders are ended all the same.")


def _show(findings: tuple[Finding, ...], *, is_whole: bool) -> None:
    if options.as_json:
        return
    if not findings:
        if is_whole:
            say("The market lists no live order: nothing bills.")
        return
    table(
        ("ORDER", "SERVER", "WHOSE", "PRICE", "SPENT", "WHY"),
        [
            (
                f.order.order_id,
                f.order.server_id,
                f.standing,
                hourly(f.order.price),
                f.order.spend,
                f.why,
            )
            for f in findings
        ],
        right=(0, 1, 3, 4),
    )


def _document(
    findings: tuple[Finding, ...], ended: list[Finding], orphans: list[Finding]
) -> dict[str, object]:
    def described(order: Order) -> dict[str, object]:
        return {
            "order_id": order.order_id,
            "server_id": order.server_id,
            "price_per_day": order.price.amount,
            "currency": order.currency,
            "spend": order.spend.amount,
            "image": order.image,
            "created_at": order.created_at,
        }

    return {
        "orders": [
            described(f.order) | {"standing": f.standing, "why": f.why, "is_ended": f in ended}
            for f in findings
        ],
        "orphans": [f.order.order_id for f in orphans],
    }


def _age(text: str) -> timedelta:
    from clorefleet.domain.errors import BadInput

    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise BadInput(f"“{text[:20]}” is not an age.", remedy="Write for instance 30min, 2h or 1d.")
    return timedelta(seconds=int(match[1]) * _UNIT_S[match[2]])
