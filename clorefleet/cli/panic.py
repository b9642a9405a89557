"""`clorefleet stop --all`: end all spending with nothing but the key and the market's order list.

No store, daemon, configuration or plan is needed. What the store says is used when it can be read, to
tell our orders from others; when it cannot, every order is asked about. A store that never knew a lease knows
nothing about the account either: then every order that runs an image of our recipes counts as ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import confirm, note, print_json, say
from clorefleet.cli.progress import working
from clorefleet.domain.errors import ClorefleetError, ConfigError, MarketError, RateLimited
from clorefleet.domain.identity import DeploymentId, ServerId
from clorefleet.report.words import hourly

if TYPE_CHECKING:
    from clorefleet.config.profile import Connection, Profile
    from clorefleet.domain.lease import Lease
    from clorefleet.domain.order import Order, OrderList
    from clorefleet.fleet.edges import Market
    from clorefleet.store.queries import Transaction


def stop_everything(profile: Profile, *, foreign: bool, yes: bool) -> None:
    """
    Raises:
        MarketError: the order list cannot be read, or an order is still there after all rounds.
        ConfigError: there is no key; or `config.toml` cannot be used, and no key is in the environment.
    """
    from clorefleet.wiring import make_market

    has_yes = yes or profile.is_sandbox
    stopped = None
    try:
        with working("Reading the list of orders"):
            connection, is_configured = _connect(profile)
            market = make_market(connection)
            ours = _read_records(connection.store_url)
            stopped = _stop_wishing(connection.store_url) if has_yes and ours is not None else None
            ours = stopped or ours
            listed = _live_orders(connection, market)
    except ClorefleetError as error:
        # What a flaw of the settings means for the key is said too.
        also = f" {error.money}" if type(error) is ConfigError and error.money else ""
        error.money = _nothing_ended(profile, is_store_stopped=stopped is not None) + also
        raise
    is_image_enough = ours is not None and (ours.knows_nothing or not is_configured)
    images = recipe_images() if is_image_enough else frozenset()
    if images and is_configured:
        note("No order was ever made from here: orders that run an image of clorefleet's recipes are taken.")
    live = listed.live()
    wanted = [
        order for order in live if foreign or ours is None or ours.explains(order) or order.image in images
    ]
    left = [order for order in live if order not in wanted]
    maybe = [] if ours is None else [order for order in left if ours.may_have_made(order)]
    for order in left:
        note(_left_alone(order, ours))
    if listed.unreadable:
        note(unread(listed))
    is_all_known = not maybe and not listed.unreadable
    document = {"left": [order.order_id for order in left], "unreadable": listed.unreadable}
    wished = () if ours is None else ours.wished
    for order in wanted:
        note(f"Order {order.order_id} on server {order.server_id}: {order.price}, {order.spend} so far")
    if wanted or wished:
        what = "Ending orders" if wanted else "Stopping deployments"
        confirm(_question(wanted, wished), yes=has_yes, what=what, otherwise="Nothing was ended.")
        # Before any order is cancelled: a daemon would rent another in its place.
        if not has_yes and ours is not None:
            stopped = _stop_wishing(connection.store_url)
        if wished and stopped is not None:
            note(f"Nothing is rented any more for: {', '.join(wished)}.")
    if not wanted:
        if options.as_json:
            print_json({"ended": []} | document)
        elif is_all_known:
            say("No order of ours bills.")
        _end_with(is_all_known)
        return
    end_and_tell(connection, market, wanted)
    if options.as_json:
        print_json({"ended": [order.order_id for order in wanted]} | document)
    else:
        say(f"{len(wanted)} order(s) ended: the market lists none of them any more.")
    if left:
        note("Add --foreign to end the others too.")
    _tell_daemon(profile)
    _end_with(is_all_known)


def _tell_daemon(profile: Profile) -> None:
    """One that runs reads the list now, and not when it is due: what it knows is what `status` shows."""
    from clorefleet.daemon import process

    with suppress(OSError):
        if process.running_pid(profile.state_dir) is not None:
            process.wake(profile.state_dir)
            note("`status` and `cost` follow once the daemon has read the list twice without them.")


def unread(listed: OrderList) -> str:
    """What a user reads of records that nobody could read: none of them was counted, left alone or ended."""
    return (
        f"{listed.unreadable} record(s) of the market's order list could not be read: each may be an order "
        "that bills. Run the same command again; if it stays so, look at your orders on clore.ai."
    )


def _connect(profile: Profile) -> tuple[Connection, bool]:
    """False where `config.toml` could not be used: what bills does not wait for it to be mended.

    Raises:
        ConfigError: so it is, and no key is in the environment.
    """
    from clorefleet.config.profile import connect, connect_by_environment

    try:
        return connect(profile), True
    except (ConfigError, OSError) as error:
        connection = connect_by_environment(profile)
        if connection is None:
            raise
        note(
            f"{error} The file is not used: the market is asked at {connection.market_url} with the key of "
            "the environment, and the store is this profile's own. Orders that run an image of clorefleet's "
            "recipes are taken too. If the file names another store, a daemon there may rent again: mend it, "
            "then type the same once more."
        )
        return connection, False


def _question(wanted: list[Order], wished: tuple[DeploymentId, ...]) -> str:
    names = ", ".join(wished)
    if not wanted:
        return f"No order of ours is listed. Stop {names}, so that nothing is rented for it any more?"
    stops = f", and stop {names}" if wished else ""
    return f"End {len(wanted)} order(s), which bill as above{stops}? The data on their servers is lost."


def _left_alone(order: Order, ours: OurOrders | None) -> str:
    from clorefleet.fleet.strange import words

    lease = None if ours is None else ours.may_have_made(order)
    if lease is not None:
        return words(order.order_id, order.server_id, hourly(order.price), lease)
    return f"Left alone (not ours): order {order.order_id}, {order.gpu_summary}, {hourly(order.price)}"


def _end_with(is_all_known: bool) -> None:
    """Not all has ended, where an order is left that may be ours, or a record that could not be read."""
    from clorefleet.domain.errors import ExitCode

    if not is_all_known:
        raise typer.Exit(ExitCode.ORPHANS)


def _nothing_ended(profile: Profile, *, is_store_stopped: bool) -> str:
    """Whoever types `stop --all` must not think that it is over: whatever failed, and however it says so."""
    daemon = " The daemon rents nothing more." if is_store_stopped else ""
    by_hand = "" if profile.is_sandbox else " To end it without clorefleet: your orders on https://clore.ai."
    return f"Nothing was ended: what runs goes on, and bills.{daemon}{by_hand}"


def _live_orders(connection: Connection, market: Market) -> OrderList:
    from clorefleet.fleet.sweep import all_live

    try:
        return all_live(market, sleep=connection.clock.sleep)
    except RateLimited as error:
        raise RateLimited(
            "The order list could not be read: the market's request limit is used up, perhaps by another "
            "program with the same key.",
            retry_after_s=error.retry_after_s,
            remedy="Run the same command again in a minute.",
        ) from error


def end_and_tell(connection: Connection, market: Market, wanted: Iterable[Order]) -> None:
    """End orders; those that will not end are shown by every command from now on.

    Raises:
        MarketError: the order list cannot be read, or an order is still there after all rounds.
    """
    from clorefleet.daemon import unending
    from clorefleet.fleet.sweep import ROUNDS_MAX, end_orders

    to_end = list(wanted)
    try:
        result = end_orders(market, to_end, sleep=connection.clock.sleep, tell=note)
    except MarketError as error:
        numbers = ", ".join(str(order.order_id) for order in to_end)
        error.money = f"Order(s) {numbers} may not have ended: each that has not goes on, and bills."
        error.remedy = "Run the same command again, or end them on clore.ai."
        raise
    still = [
        unending.UnendingOrder(each.order_id, each.price, each.attempts, each.last_answer)
        for each in result.unending
    ]
    try:
        unending.note(connection.profile.state_dir, still)
    except OSError as error:
        if still:
            note(f"No other command will tell of them: it cannot be written down ({error.strerror}).")
    if result.unending:
        numbers = ", ".join(str(each.order_id) for each in result.unending)
        prices = ", ".join(each.price for each in result.unending)
        raise MarketError(
            f"Orders {numbers} are still in the market's list after {ROUNDS_MAX} rounds of cancels. The last "
            f"answers: {'; '.join(sorted({each.last_answer for each in result.unending}))}.",
            remedy="Run the same command again, or end them on clore.ai.",
            money=f"They bill {prices}.",
        )


@dataclass(frozen=True, slots=True)
class OurOrders:
    """What this profile's store says is ours."""

    knows_nothing: bool
    """The store never knew a lease: it is new, or of another machine."""
    servers_in_doubt: frozenset[ServerId]
    """A rent of these was asked for and not yet seen: an order on one of them is taken for ours."""
    leases: tuple[Lease, ...]
    wished: tuple[DeploymentId, ...] = ()
    """The deployments that are to run: a daemon rents for them again."""

    def explains(self, order: Order) -> bool:
        from clorefleet.fleet.sweep import lease_of

        return order.server_id in self.servers_in_doubt or lease_of(order, self.leases) is not None

    def may_have_made(self, order: Order) -> Lease | None:
        """The lease of a rent whose order this may be; nothing here can tell."""
        from clorefleet.fleet.strange import lease_it_may_be_of

        return lease_it_may_be_of(order, self.leases)


def _read_records(store_url: str) -> OurOrders | None:
    """None when the store is broken."""
    from clorefleet.store.database import open_store

    try:
        with open_store(store_url).read() as tx:
            return _ours(tx)
    except (ClorefleetError, OSError, ValueError) as error:
        if _is_missing(store_url):
            note(f"There is no store, and none can be made ({error}).")
            return OurOrders(True, frozenset(), ())
        note(f"The store cannot be used ({error}): orders are ended without it.")
        return None


def _is_missing(store_url: str) -> bool:
    """No store was ever there; false where nobody can tell, as of a folder that may not be read."""
    from clorefleet.store.address import sqlite_file

    file = sqlite_file(store_url)
    try:
        return file is not None and not file.exists()
    except OSError:
        return False


def _stop_wishing(store_url: str) -> OurOrders | None:
    """Write down that nothing is wanted, so that no daemon rents again; None when that cannot be written.

    What is ours is read in the same transaction: no rent comes in between.
    """
    from clorefleet.domain.deployment import Desired
    from clorefleet.store.database import open_store

    try:
        with open_store(store_url).write() as tx:
            ours = _ours(tx)
            for deployment in tx.deployments():
                tx.put_deployment(replace(deployment, desired=Desired.STOPPED))
    except (ClorefleetError, OSError, ValueError) as error:
        note(f"The store cannot be written ({error}): a daemon that runs may rent again.")
        return None
    return ours


def _ours(tx: Transaction) -> OurOrders:
    from clorefleet.domain.deployment import Desired

    leases = tx.leases()
    return OurOrders(
        not leases,
        frozenset(lease.server_id for lease in leases if lease.is_open and lease.order_id is None),
        leases,
        tuple(each.deployment_id for each in tx.deployments() if each.desired is Desired.RUNNING),
    )


def recipe_images() -> frozenset[str]:
    """Every image that tells that an order may be ours; empty where the recipes cannot be read.

    Base images are left out: anybody's order may run one.
    """
    from clorefleet.config.recipes import load_recipes

    try:
        recipes = load_recipes().values()
    except (ClorefleetError, OSError, ValueError):
        return frozenset()
    supports = [support for recipe in recipes for support in recipe.engines]
    images = {image for each in supports for image in (each.image, *(v.image for v in each.variants))}
    return frozenset(images - {image for each in supports for image in each.base_images})
