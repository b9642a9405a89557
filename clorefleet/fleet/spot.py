"""What to bid for a spot server, and what to do when another renter has it. Pure.

- **First bid**: the least that has the machine now. A higher one would be paid every minute against rivals
  that nobody has seen.
- **Lower**: when the least bid that would keep the machine has fallen, by the market's step, at most once in
  its 600 s.
- **Raise**: only when outbid, and only while the higher bid costs less over the time that the server is
  expected to last than moving would: another server, its paid start and its creation fee.
- **Ceiling**: the same server's on-demand price in the same currency. Above it a server that nobody can take
  away would cost less. The budget is a second ceiling, kept by `budget` in the transaction of the intent.

What `active` in a spot market means is assumed (docs/market.md), so it never stands alone: a server that
answers us is ours, whatever the market says of the bid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import ROUND_UP, Decimal
from enum import Enum

from clorefleet.domain.failure import Cause
from clorefleet.domain.identity import DeploymentId, OrderId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.money import Currency, Rate, UsdPerUnit, format_usd
from clorefleet.domain.node import NodeView
from clorefleet.domain.offer import MarketRates
from clorefleet.domain.order import Order
from clorefleet.domain.plan import Plan, Term
from clorefleet.domain.recipe import Mark
from clorefleet.domain.spot import LOWERING_INTERVAL, SpotBid, SpotMarket
from clorefleet.fleet.consolidate import expected_life
from clorefleet.fleet.limits import FleetLimits
from clorefleet.planner.cost import start_up_of

OVERBID = Decimal("0.01")
"""By how much a rival is outbid. The docs do not say who wins among equal bids."""
LEAST_SAVING = Decimal("0.02")
"""Share of the bid that a reduction must save: each uses up the next 600 s [assumed]."""
STEP_ASSUMED = Decimal("0.1")
"""Largest reduction at once, as a share of the bid, until the market has told its own [assumed]."""
LOWERING_MARGIN = timedelta(seconds=30)
"""On top of the market's 600 s, which it counts from when it took the bid, on a clock of its own."""
OUTBIDS_MAX = 3
OUTBID_MEMORY = timedelta(hours=6)
"""After so many losses of a deployment within that time, on-demand servers go first [assumed]: each loss
costs a start, and more of them are to be expected."""
_PLACES = {Currency.USD: Decimal("0.0001")}
_COIN_PLACES = Decimal("0.00000001")


class Standing(Enum):
    """What is known about whether our bid has the machine."""

    HOLDS = "holds"
    OUTBID = "outbid"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Rebid:
    """Another bid and why; or why there is none."""

    desired: Rate | None
    reason: str


# -- what it takes


def winning_bid(market: SpotMarket, currency: Currency, *, own: OrderId | None = None) -> Rate | None:
    """The least bid per day that has the machine; None when that cannot be told."""
    floor = next((rate for rate in market.min_prices if rate.currency is currency), None)
    if floor is None:
        return None
    least = floor.amount
    for rival in rivals(market, own=own):
        amount = _amount_in(rival.price, currency, market.rates)
        if amount is None:
            return None
        least = max(least, amount * (1 + OVERBID))
    return Rate.per_day(least.quantize(_PLACES.get(currency, _COIN_PLACES), ROUND_UP), currency)


def rivals(market: SpotMarket, *, own: OrderId | None = None) -> tuple[SpotBid, ...]:
    return tuple(each for each in market.bids if not each.is_mine and each.order_id != own)


def _amount_in(price: Rate, currency: Currency, rates: MarketRates) -> Decimal | None:
    if price.currency is currency:
        return price.amount
    usd = rates.to_usd(price)
    if usd is None or currency is Currency.USD:
        return None if usd is None else usd.amount
    rate = rates.of_currency(currency)
    return None if rate is None or rate.usd_per_unit <= 0 else usd.amount / rate.usd_per_unit


def ceiling(plan: Plan) -> Rate | None:
    """The most that may be bid for the plan's server: its on-demand price, or what was approved where it has
    none in that currency."""
    billed = plan.price.billed
    return plan.offer.price_in(billed.currency, is_spot=False) or (billed if plan.price.is_spot else None)


# -- the first bid


def first_bid(plan: Plan, market: SpotMarket | None) -> Plan | None:
    """The plan at the bid that has the machine now; None where no bid within the ceiling has it.

    Without a reading of its spot market the listed least price stands.
    """
    if not plan.price.is_spot:
        return plan
    price = plan.price
    top = ceiling(plan)
    if top is None or not price.billed <= top:
        return None
    if market is None or not market.exists:
        return plan
    if market.is_online is False:
        return None
    needed = winning_bid(market, price.billed.currency)
    if needed is None or needed <= price.billed:
        return plan
    if not needed <= top:
        return None
    more = (needed.amount - price.billed.amount) * (1 + price.fee_percent / 100) * price.usd_per_unit
    term = Term("bid above the least price", more, "USD/day", Mark.PUBLISHED, "other bids for this server")
    raised = replace(
        price,
        billed=needed,
        all_in_usd_per_day=price.all_in_usd_per_day + Rate.per_day(more),
        terms=(*price.terms, term),
    )
    return replace(plan, price=raised)


def preferred(plans: Iterable[Plan], losses: int) -> tuple[Plan, ...]:
    """The order in which a replacement is looked for, after so many losses of the deployment lately: spot
    first, then on demand; and the other way round once spot was lost too often."""
    listed = tuple(plans)
    if not losses:
        return listed
    return tuple(sorted(listed, key=lambda plan: plan.price.is_spot is (losses >= OUTBIDS_MAX)))


def losses_lately(deployment_id: DeploymentId, leases: Iterable[Lease], now: datetime) -> int:
    """How often the deployment lost a spot server within `OUTBID_MEMORY`."""
    found = 0
    for lease in leases:
        if lease.deployment_id != deployment_id or not lease.plan.price.is_spot:
            continue
        if lease.cause is Cause.OUTBID:
            since = lease.outbid_since or lease.ended_at or lease.phase_since
        elif lease.outbid_since is not None or lease.restarts:
            since = lease.outbid_since or lease.phase_since
        else:
            continue
        found += abs(now - since) <= OUTBID_MEMORY
    return found


# -- while it is rented


def standing(
    lease: Lease,
    order: Order,
    view: NodeView | None,
    market: SpotMarket | None,
    *,
    now: datetime,
    limits: FleetLimits,
) -> Standing:
    """Whether the order has its machine. The market's word and the server's silence have to agree."""
    if view is not None and not view.trouble and (view.host_key or view.facts or view.job or view.is_healthy):
        return Standing.HOLDS
    if market is None or not market.exists:
        return Standing.UNKNOWN
    own = next((bid for bid in market.bids if bid.order_id == order.order_id), None)
    if own is None:
        return Standing.UNKNOWN
    if own.is_active:
        return Standing.HOLDS
    is_new = lease.phase in (Phase.RENTING, Phase.WAITING) and lease.outbid_since is None
    is_taken = any(bid.is_active for bid in rivals(market, own=order.order_id))
    if is_new and not is_taken and now - lease.phase_since < limits.outbid_patience:
        return Standing.UNKNOWN  # it may not have begun yet
    return Standing.OUTBID


def needs_look(
    lease: Lease,
    order: Order | None,
    view: NodeView | None,
    *,
    is_due: bool,
    is_due_while_outbid: bool,
) -> bool:
    """Whether this tick should read the spot market of the lease's server: seldom while all is well, as soon
    as the server is silent or the order looks stopped."""
    if order is None or order.is_expired or not lease.plan.price.is_spot:
        return False
    if lease.outbid_since is not None or lease.phase in (Phase.RENTING, Phase.WAITING):
        return is_due_while_outbid or is_due
    if order.ssh is None or order.is_online is False or order.container_state in (0, 1):
        return True
    is_silent = view is not None and (bool(view.trouble) or view.is_healthy is False)
    return is_due or is_silent


def lower_bid(lease: Lease, order: Order, market: SpotMarket, *, now: datetime, limits: FleetLimits) -> Rebid:
    """A reduction of the bid that keeps the machine, or why there is none."""
    current = order.price
    target = winning_bid(market, current.currency, own=order.order_id)
    if target is None:
        return Rebid(None, "what it takes to keep the server is not known")
    if current.amount - target.amount < current.amount * LEAST_SAVING:
        return Rebid(None, f"it takes {target} to keep the server")
    if lease.bid_at is not None and timedelta(0) <= now - lease.bid_at < limits.bid_settles:
        return Rebid(None, "the last bid is too new")
    if lease.lowered_at is not None and now - lease.lowered_at < LOWERING_INTERVAL + LOWERING_MARGIN:
        # A clock that was set back makes this wait longer, never shorter.
        return Rebid(None, "it was lowered less than 600 s ago")
    step = lease.bid_step_max
    if step is None or step <= 0:
        step = current.amount * STEP_ASSUMED
    places = _PLACES.get(current.currency, _COIN_PLACES)
    amount = max(target.amount, (current.amount - step).quantize(places, ROUND_UP))
    if amount >= current.amount:
        return Rebid(None, "the step that the market allows is too small")
    desired = Rate.per_day(amount, current.currency)
    return Rebid(desired, f"{target} is enough to keep the server now")


def raise_bid(
    lease: Lease,
    order: Order,
    market: SpotMarket,
    alternative: Plan | None,
    *,
    now: datetime,
    until: datetime | None,
    limits: FleetLimits,
    usd_per_unit: UsdPerUnit,
) -> Rebid:
    """A bid that has the machine again, where it costs less than moving; or why there is none.

    Args:
        usd_per_unit: present rates of coins, as the alternative's plan has them; at the rent its coin may
            have been worth more.
        alternative: the server that would replace it; None when there is none.
        until: when a schedule ends the replica, as far as that is known.
    """
    current = order.price
    desired = winning_bid(market, current.currency, own=order.order_id)
    if desired is None:
        return Rebid(None, "what it takes to have the server back is not known")
    if desired <= current:
        return Rebid(None, "no higher bid is known: it was taken on demand, or comes back by itself")
    is_recent = lease.bid_at is not None and timedelta(0) <= now - lease.bid_at < limits.spot_every
    if is_recent and lease.bid is not None and desired <= lease.bid:
        return Rebid(None, f"{lease.bid} was bid already")
    top = ceiling(lease.plan)
    if top is None or not desired <= top:
        return Rebid(None, f"it would take {desired}, above its on-demand price of {top}")
    if alternative is None:
        return Rebid(desired, "another renter bids more, and no other server is to be had")
    days = Decimal(int(expected_life(lease, lease.plan, now=now, until=until).total_seconds())) / 86_400
    price, other = lease.plan.price, alternative.price
    worth = usd_per_unit.get(desired.currency, price.usd_per_unit)
    stay = desired.amount * (1 + price.fee_percent / 100) * worth * days
    start_s = Decimal(int(start_up_of(alternative.offer, alternative.setup).total_s))
    move = (
        other.running_usd_per_day * (days + start_s / 86_400)
        + other.creation_fee * other.usd_per_unit
    )  # fmt: skip
    words = f"${format_usd(stay)} to stay, ${format_usd(move)} to move, over the time it is expected to last"
    if stay > move:
        return Rebid(None, f"another renter bids more, and moving costs less: {words}")
    return Rebid(desired, f"another renter bids more, and moving would cost more: {words}")
