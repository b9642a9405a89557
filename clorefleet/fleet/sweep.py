"""Compare the market's order list with what we know, end what should not bill, and read back that it has
ended.

The order list comes first, our records second, and they may be missing: a sweep works from another machine
with nothing but the key. What tells our orders from others then?

- For certain: a record. A lease with the order's id, or a rent in doubt for its server, image and kind.
- Likely: the image. The list echoes the image of an order; ours run images that the recipes name, which
others
  may use as well. The environment, in which each of our orders carries a nonce, is not known to be echoed,
  nor is the SSH key; logging in with a lease's key proves it, and needs that key (`clorefleet adopt`).

So without a record nothing is ended by itself. It is reported with its price, and ended when the user
names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.errors import RateLimited
from clorefleet.domain.identity import DeploymentId, IntentId, LeaseId, OrderId, ServerId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.money import Period
from clorefleet.domain.order import NO_SERVER, Order, OrderList
from clorefleet.domain.outcome import (
    AlreadyEnded,
    CancelAccepted,
    CancelOutcome,
    CancelRefused,
    CancelUnknown,
)
from clorefleet.domain.plan import Plan
from clorefleet.domain.text import clean_line
from clorefleet.fleet.edges import Market
from clorefleet.fleet.strange import lease_it_may_be_of

ROUNDS_MAX = 20
"""Each order is asked to end at most this often; the list is read between rounds."""
ROUND_PAUSE_S = 1.0
ABSENT_READINGS = 2
"""One reading without an order proves nothing."""


class Standing(StrEnum):
    """Whose an order is, as far as can be known."""

    LEASED = "leased"
    """An open lease has it: the daemon looks after it."""
    IN_DOUBT = "in doubt"
    """A rent was written down that can only have become this order: the daemon adopts it."""
    LEFT_OVER = "left over"
    """Ours for certain, and nothing wants it: its lease is closed, or its deployment was stopped or is
    gone."""
    LIKELY = "likely ours"
    """It runs an image that a recipe names, and no record here knows it; or it may be of a rent whose server
    no key here has opened."""
    FOREIGN = "foreign"
    """Nothing says that it is ours."""


@dataclass(frozen=True, slots=True)
class Finding:
    order: Order
    standing: Standing
    why: str
    deployment_id: DeploymentId | None = None

    def is_older_than(self, age: timedelta, now: datetime) -> bool:
        """An order whose age the market does not tell counts as old."""
        made = self.order.created_at
        return made is None or now - made >= age


def explain_orders(
    orders: Iterable[Order],
    *,
    leases: Iterable[Lease] = (),
    deployments: Iterable[Deployment] = (),
    images: frozenset[str] = frozenset(),
) -> tuple[Finding, ...]:
    """Every live order, with whose it is. Pure; `leases` are all that are remembered, closed ones too."""
    known = tuple(leases)
    wishes = {each.deployment_id: each.desired for each in deployments}
    return tuple(_explain(order, known, wishes, images) for order in orders if not order.is_expired)


def _explain(
    order: Order, leases: tuple[Lease, ...], wishes: Mapping[DeploymentId, Desired], images: frozenset[str]
) -> Finding:
    mine = lease_of(order, leases)
    if mine is None:
        mine = next((each for each in leases if _may_have_become(each, order)), None)
        if mine is not None:
            why = f"a rent of server {order.server_id} was asked for and not yet seen"
            return Finding(order, Standing.IN_DOUBT, why, mine.deployment_id)
        unproven = lease_it_may_be_of(order, leases)
        if unproven is not None:
            why = f"it may be of a rent of {unproven.deployment_id}: {unproven.reason}"
            return Finding(order, Standing.LIKELY, why, unproven.deployment_id)
        if order.image in images:
            return Finding(order, Standing.LIKELY, "it runs an image of clorefleet's recipes")
        return Finding(order, Standing.FOREIGN, "nothing here says that it is ours")
    if not mine.is_open:
        why = f"its lease is {mine.state}, and the order lives"
        return Finding(order, Standing.LEFT_OVER, why, mine.deployment_id)
    if wishes.get(mine.deployment_id) is not Desired.RUNNING:
        why = f"deployment {mine.deployment_id} is not wanted"
        return Finding(order, Standing.LEFT_OVER, why, mine.deployment_id)
    return Finding(order, Standing.LEASED, f"it serves {mine.deployment_id}", mine.deployment_id)


def lease_of(order: Order, leases: Iterable[Lease]) -> Lease | None:
    """The lease that has the order: an open one first, since a closed one does not show it unwanted."""
    found = [each for each in leases if is_order(order, each.order_id, each.server_id)]
    return next((each for each in found if each.is_open), found[0] if found else None)


def is_order(order: Order, order_id: OrderId | None, server_id: ServerId) -> bool:
    """By its number and its server: a market may give a number again, to somebody's order on another server.

    Where the list does not tell the server, the number has to do.
    """
    if order.order_id != order_id:
        return False
    return order.server_id == server_id or NO_SERVER in (order.server_id, server_id)


def _may_have_become(lease: Lease, order: Order) -> bool:
    return (
        lease.state is LeaseState.INTENT
        and lease.server_id == order.server_id
        and lease.plan.price.is_spot == order.is_spot
        and (not order.image or not lease.image or lease.image == order.image)
    )


def adopted_lease(
    order: Order, plan: Plan, lease_id: LeaseId, deployment_id: str, *, slot: int, now: datetime
) -> Lease:
    """The lease that explains an order found without records. Its work begins at the first phase; what is
    done already on the node is found there, since every job has the same id as before."""
    return Lease(
        lease_id=lease_id,
        deployment_id=DeploymentId(deployment_id),
        slot=slot,
        plan=plan,
        intent_id=IntentId(f"{lease_id}-rent"),
        state=LeaseState.ORDERED,
        phase=Phase.WAITING,
        created_at=order.created_at or now,
        phase_since=now,
        order_id=order.order_id,
        ordered_at=order.created_at or now,
        price=order.price,
        address=order.ssh,
        image=order.image,
    )


# -- ending


@dataclass(frozen=True, slots=True)
class Unending:
    """An order that still bills after every round of cancels."""

    order_id: OrderId
    price: str
    """Per hour, in the billed currency, without fee: as the market tells it."""
    attempts: int
    last_answer: str


@dataclass(frozen=True, slots=True)
class Ended:
    ended: tuple[OrderId, ...]
    unending: tuple[Unending, ...]


def all_live(market: Market, *, sleep: Callable[[float], None]) -> OrderList:
    """The orders that any of some readings shows as live: in one, a page may be missing, or the newest ones.

    Records that one of them could not read are not known to be among what another has read.

    Raises:
        MarketError: the order list cannot be read.
    """
    readings = [market.fetch_orders()]
    while len(readings) < ABSENT_READINGS:
        sleep(ROUND_PAUSE_S)
        readings.append(market.fetch_orders())
    found = {(each.order_id, each.server_id): each for listed in readings for each in listed.live()}
    unreadable = max(listed.unreadable for listed in readings)
    return OrderList(tuple(found.values()), readings[-1].read_at, unreadable=unreadable)


def end_orders(
    market: Market,
    wanted: Iterable[Order],
    *,
    sleep: Callable[[float], None],
    tell: Callable[[str], None],
    rounds_max: int = ROUNDS_MAX,
) -> Ended:
    """Cancel and read back until the list shows none of them, twice in a row. Needs nothing but the market.

    Where the market's request limit is used up, that is told, and asked again in the next round.

    Raises:
        MarketError: the order list cannot be read.
    """
    given = tuple(wanted)
    orders = {order.order_id: order for order in given}
    answers: dict[OrderId, str] = {}
    attempts = dict.fromkeys(orders, 0)
    absent_readings = 0
    live: set[OrderId] = set()
    for _ in range(rounds_max):
        try:
            listed = market.fetch_orders()
        except RateLimited:
            tell("The market's request limit is used up; the order list is read again in a moment.")
            sleep(ROUND_PAUSE_S)
            continue
        alike = [each for each in listed.live() if each.order_id in orders]
        live = {
            seen.order_id for seen in alike if any(is_order(seen, e.order_id, e.server_id) for e in given)
        }
        if not live:
            # A list with records that cannot be read may hold them still.
            absent_readings += 0 if listed.unreadable else 1
            if absent_readings >= ABSENT_READINGS:
                return Ended(tuple(orders), ())
        else:
            absent_readings = 0
            for order_id in sorted(live):
                attempts[order_id] += 1
                answers[order_id] = cancel_words(market.cancel(order_id))
                tell(f"Order {order_id}: {answers[order_id]}")
        sleep(ROUND_PAUSE_S)
    left = live or set(orders)
    unknown = "the list cannot be read whole"
    return Ended(
        tuple(order_id for order_id in orders if order_id not in left),
        tuple(
            Unending(
                order_id,
                hourly(orders[order_id]),
                attempts[order_id],
                answers.get(order_id, unknown) if order_id in live else unknown,
            )
            for order_id in sorted(left)
        ),
    )


def hourly(order: Order) -> str:
    return str(order.price.per(Period.HOUR))


def cancel_words(outcome: CancelOutcome) -> str:
    match outcome:
        case CancelAccepted():
            return "cancel accepted"
        case AlreadyEnded():
            return "already ended, says the market"
        case CancelRefused(RateLimited()):
            return "not taken yet: the market's request limit is used up; it is asked for again"
        case CancelRefused(error):
            return f"refused: {clean_line(error.what)}"
        case CancelUnknown(reason):
            return f"unknown: {clean_line(reason)}"
