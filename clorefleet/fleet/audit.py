"""What must always hold, in one place: the simulation, the tests and each of the daemon's ticks ask here.

Ids are those of the failure model. Everything is pure: values in, violations out.

- `audit` judges our records beside one reading of the market. The daemon calls it in each tick before it
  decides; a violation stops renting, never cancelling, and is shown by `status`. What a lagging list may
  show for a moment is a *suspicion*, and becomes a violation when as many readings in a row agree.
- `at_rent` and `at_cancel` judge one effect at the instant of it, and `of_bill` a bill; they need to know
  what the market really holds, so that only the simulation and the tests can ask them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise

from clorefleet.domain.identity import LeaseId, OrderId, ServerId
from clorefleet.domain.intent import Effect, Intent
from clorefleet.domain.lease import Lease, LeaseState
from clorefleet.domain.ledger import LedgerSegment, SettledTotal, settled_totals
from clorefleet.domain.money import Rate
from clorefleet.domain.order import OrderList
from clorefleet.fleet.limits import DEFAULT_LIMITS, FleetLimits
from clorefleet.fleet.slots import is_held
from clorefleet.fleet.snapshot import Snapshot

READINGS_TO_EXPLAIN = 4
"""Readings in a row after which an order must be leased, in doubt, or reported as foreign."""
READINGS_TO_END = 2
"""Readings in a row that must miss an order, where none shows it as ended."""
READINGS_TO_ACT = 3
"""Readings in a row after which what ought to be corrected (a price, a segment) must be."""
LEASES_MAX_PER_SLOT = 50
"""Open leases of one slot at once, those that are ending included: more is a loop that rents."""
_WANT_THEIR_SERVER = (LeaseState.INTENT, LeaseState.ORDERED)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Violation:
    invariant: str
    """`S1` to `S15` or `L1` to `L6`."""
    subject: str
    """What it is about, stable over readings: an order, a lease, a deployment."""
    text: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.subject}: {self.text}"


@dataclass(frozen=True, slots=True)
class _Suspicion:
    violation: Violation
    readings: int
    """Readings in a row that must agree; 1 for what no lag explains."""


@dataclass(frozen=True, slots=True)
class Audit:
    violations: tuple[Violation, ...] = ()
    suspicions: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """How many readings in a row have agreed, by invariant and subject."""


def audit(snapshot: Snapshot, before: Audit | None = None, limits: FleetLimits = DEFAULT_LIMITS) -> Audit:
    """The violations that this reading completes. `before` is the last reading's result."""
    counts = {} if before is None else before.suspicions
    agreed: dict[tuple[str, str], int] = {}
    violations = []
    for suspicion in _suspicions(snapshot, limits):
        key = (suspicion.violation.invariant, suspicion.violation.subject)
        agreed[key] = counts.get(key, 0) + 1
        if agreed[key] >= suspicion.readings:
            violations.append(suspicion.violation)
    if snapshot.orders is None:
        # No reading: what earlier ones agreed on is neither confirmed nor forgotten.
        agreed = {**counts, **agreed}
    return Audit(tuple(violations), agreed)


def _suspicions(snapshot: Snapshot, limits: FleetLimits) -> Iterator[_Suspicion]:
    yield from _one_lease_a_slot(snapshot)
    yield from (_Suspicion(each, 1) for each in of_servers(snapshot.leases))
    yield from _ledger_counts(snapshot)
    yield from _inert(snapshot)
    if snapshot.orders is not None:
        yield from _orders_explained(snapshot, snapshot.orders)
        yield from _ended_stays_ended(snapshot, snapshot.orders)
        yield from _prices_kept(snapshot, snapshot.orders, limits)


def _suspect(invariant: str, subject: object, text: str, readings: int = 1) -> _Suspicion:
    return _Suspicion(Violation(invariant, str(subject), text), readings)


# -- our records beside one reading


def _orders_explained(snapshot: Snapshot, orders: OrderList) -> Iterator[_Suspicion]:
    """S1: each billing order is leased, foreign and reported, or in doubt."""
    in_doubt: set[ServerId] | None = None
    for order in orders.live():
        if (order.order_id, order.server_id) in snapshot.leased_orders:
            continue  # as nearly all are
        if in_doubt is None:
            in_doubt = {lease.server_id for lease in snapshot.leases if lease.state is LeaseState.INTENT}
        if order.server_id in in_doubt or (order.order_id, order.server_id) in snapshot.foreign:
            continue
        text = f"bills {order.price} on server {order.server_id}, and nothing of ours explains it"
        yield _suspect("S1", f"order {order.order_id}", text, READINGS_TO_EXPLAIN)


def _one_lease_a_slot(snapshot: Snapshot) -> Iterator[_Suspicion]:
    """S2, S15: a slot has one lease that is not on its way out (two with a hedge, or where a spot server came
    back beside its replacement), an order has one lease."""
    slots = [(lease.deployment_id, lease.slot) for lease in snapshot.leases]
    # With its server: a number may be given anew while its old order's end cannot be read (A21).
    orders = [(lease.order_id, lease.server_id) for lease in snapshot.leases if lease.order_id is not None]
    if len(set(slots)) == len(slots) and len(set(orders)) == len(orders):
        return  # one lease each, as nearly always
    hedged = {each.deployment_id for each in snapshot.deployments if each.requirement.hedge}
    came_back = {(lease.deployment_id, lease.slot) for lease in snapshot.leases if lease.restarts}
    filling: Counter[tuple[str, int]] = Counter()
    held: Counter[tuple[str, int]] = Counter()
    by_order = Counter(orders)
    for lease in snapshot.leases:
        slot = (lease.deployment_id, lease.slot)
        held[slot] += 1
        if is_held(lease):
            filling[slot] += 1
    for (deployment_id, number), count in filling.items():
        may_be_two = deployment_id in hedged or (deployment_id, number) in came_back
        if count > (2 if may_be_two else 1):
            yield _suspect("S2", f"{deployment_id} slot {number}", f"{count} leases fill one slot")
    for (order_id, _), count in by_order.items():
        if count > 1:
            yield _suspect("S2", f"order {order_id}", f"{count} leases claim one order")
    for (deployment_id, number), count in held.items():
        if count > LEASES_MAX_PER_SLOT:
            yield _suspect("S15", f"{deployment_id} slot {number}", f"{count} leases are open for one slot")


def of_servers(leases: Iterable[Lease]) -> Iterator[Violation]:
    """S2: a server has one order, so that two leases that want one, of whichever deployments, would both take
    it for theirs. One that is ending may share it: a late order is ended beside its successor."""
    servers = [lease.server_id for lease in leases if lease.state in _WANT_THEIR_SERVER]
    if len(set(servers)) == len(servers):
        return
    for server_id, count in Counter(servers).items():
        if count > 1:
            yield Violation("S2", f"server {server_id}", f"{count} leases hold one server")


def _prices_kept(snapshot: Snapshot, orders: OrderList, limits: FleetLimits) -> Iterator[_Suspicion]:
    """S4: an order of ours above the approved price is being ended."""
    for lease in snapshot.leases:
        if lease.order_id is None or lease.state is not LeaseState.ORDERED or not lease.is_proven:
            continue  # what is not proven to be ours is not ended for its price either
        # A number may be given again (A21): on another server it is another order.
        order = orders.on_server(lease.order_id, lease.server_id)
        if order is None or order.is_expired:
            continue
        approved = lease.plan.price.billed
        if order.price.currency is approved.currency and (
            order.price.amount <= approved.amount
            or order.price.amount <= approved.amount * (1 + limits.price_tolerance)
        ):
            continue
        text = f"bills {order.price} where {approved} was approved"
        yield _suspect("S4", f"order {order.order_id}", text, READINGS_TO_ACT)


def _ended_stays_ended(snapshot: Snapshot, orders: OrderList) -> Iterator[_Suspicion]:
    """S6: no order of an ended lease is alive in the list."""
    strange = [
        order for order in orders.live() if (order.order_id, order.server_id) not in snapshot.leased_orders
    ]
    if not strange:
        return
    ended = {
        (lease.order_id, lease.server_id): lease
        for lease in snapshot.closed_leases
        if lease.order_id is not None and lease.state is LeaseState.ENDED
    }
    for order in strange:
        lease = ended.get((order.order_id, order.server_id))
        if lease is None:
            continue
        text = f"is alive in the list, and lease {lease.lease_id} counts as ended"
        yield _suspect("S6", f"order {order.order_id}", text, READINGS_TO_ACT)


def _ledger_counts(snapshot: Snapshot) -> Iterator[_Suspicion]:
    """S7: every open lease with an order is counted once, from its order on; nothing else is."""
    counting: dict[LeaseId, int] = {}
    for segment in snapshot.segments:
        if segment.ended_at is None:
            counting[segment.lease_id] = counting.get(segment.lease_id, 0) + 1
    ordered = {lease.lease_id for lease in snapshot.leases if lease.order_id is not None}
    for lease_id in sorted(ordered):
        count = counting.get(lease_id, 0)
        if count != 1:
            text = f"is counted by {count} open ledger segments"
            yield _suspect("S7", f"lease {lease_id}", text, READINGS_TO_ACT)
    for lease_id in sorted(counting.keys() - ordered):
        text = "is counted by the ledger, and has no order"
        yield _suspect("S7", f"lease {lease_id}", text, READINGS_TO_ACT)
    yield from (_Suspicion(each, 1) for each in of_segments(snapshot.segments))


def of_segments(segments: Iterable[LedgerSegment]) -> Iterator[Violation]:
    """S7: per order, the segments follow each other without gap, overlap or negative length."""
    by_order: dict[tuple[OrderId, LeaseId], list[LedgerSegment]] = {}
    for segment in segments:
        by_order.setdefault((segment.order_id, segment.lease_id), []).append(segment)
        if segment.ended_at is not None and segment.ended_at < segment.started_at:
            yield Violation("S7", f"order {segment.order_id}", "a ledger segment ends before it begins")
    for (order_id, _), chain in by_order.items():
        if len(chain) == 1:
            continue
        chain.sort(key=lambda each: each.started_at)
        for earlier, later in pairwise(chain):
            if earlier.ended_at != later.started_at:
                yield Violation("S7", f"order {order_id}", "two ledger segments overlap or leave a gap")


def of_totals(kept: Iterable[SettledTotal], segments: Iterable[LedgerSegment]) -> Iterator[Violation]:
    """S7: the sums that are kept are those of the settled segments, to the last digit."""
    found, true = ({each for each in sums if each.amount} for sums in (kept, settled_totals(segments)))
    for each in found ^ true:
        text = f"the sum kept in {each.currency} is not that of its settled segments"
        yield Violation("S7", str(each.deployment_id), text)


def _inert(snapshot: Snapshot) -> Iterator[_Suspicion]:
    """S14: no control character from outside is kept."""
    for lease in snapshot.leases:
        for name, text in (("reason", lease.reason), ("progress", lease.progress), ("image", lease.image)):
            if _CONTROL.search(text):
                yield _suspect("S14", f"lease {lease.lease_id}", f"its {name} holds control characters")
    for deployment in snapshot.deployments:
        if _CONTROL.search(deployment.note):
            yield _suspect("S14", deployment.deployment_id, "its note holds control characters")


def inert_text(subject: str, text: str, *, max_chars: int) -> Iterator[Violation]:
    """S14, S15 for one stored line."""
    if _CONTROL.search(text):
        yield Violation("S14", subject, "holds control characters")
    if len(text) > max_chars:
        yield Violation("S15", subject, f"is {len(text)} characters long, the bound is {max_chars}")


# -- one effect, at the instant of it


@dataclass(frozen=True, slots=True)
class RentFacts:
    """What is true at the instant at which the market makes an order for us."""

    lease: Lease | None
    """As it durably stands in the store."""
    intents: tuple[Intent, ...]
    """Of that lease, likewise."""
    token: int
    """The fencing token of the process that rents."""
    leader: int | None
    approved: Rate
    """As the request has it."""
    rivals: tuple[OrderId, ...]
    """Other live orders of the slot that nobody has begun to give back."""
    ceiling_usd_per_day: Decimal | None
    running_usd_per_day: Decimal
    """Of all live orders of the deployment, this one included."""
    worst_today_usd: Decimal
    """Billed since midnight, those rates until the next, and the fees to come."""


def at_rent(facts: RentFacts) -> Iterator[Violation]:
    """S2, S3, S4, S5, S8."""
    if facts.leader != facts.token:
        yield Violation("S8", "rent", f"token {facts.token} rented while {facts.leader} leads")
    lease = facts.lease
    if lease is None or not any(i.effect is Effect.RENT and i.is_in_doubt for i in facts.intents):
        yield Violation("S5", "rent", "an order was made without an open intent in the store")
        return
    subject = f"lease {lease.lease_id}"
    if facts.rivals:
        orders = ", ".join(map(str, facts.rivals))
        yield Violation("S2", subject, f"its slot was filled already, by {orders}")
    if facts.approved != lease.plan.price.billed:
        yield Violation("S4", subject, f"{facts.approved} was offered, {lease.plan.price.billed} approved")
    ceiling = facts.ceiling_usd_per_day
    if ceiling is None:
        return
    if facts.running_usd_per_day > ceiling:
        text = f"${facts.running_usd_per_day:.4f}/day runs, the budget is ${ceiling}/day"
        yield Violation("S3", subject, text)
    if facts.worst_today_usd > ceiling:
        text = f"today can reach ${facts.worst_today_usd:.4f}, the budget is ${ceiling}/day"
        yield Violation("S3", subject, text)


@dataclass(frozen=True, slots=True)
class BidFacts:
    """What is true at the instant at which an order's bid is changed."""

    lease: Lease | None
    """The one that holds the order, as it durably stands in the store."""
    intents: tuple[Intent, ...]
    """Of that lease, likewise."""
    order_id: OrderId
    desired: Rate
    is_ours: bool
    token: int
    leader: int | None
    ceiling_usd_per_day: Decimal | None
    running_usd_per_day: Decimal
    """Of all live orders of the deployment, this one at the new bid."""


def at_bid(facts: BidFacts) -> Iterator[Violation]:
    """S3, S4, S5, S8, S9."""
    subject = f"order {facts.order_id}"
    if not facts.is_ours:
        yield Violation("S9", subject, "its bid was changed, and it is not ours")
    if facts.leader != facts.token:
        yield Violation("S8", subject, f"token {facts.token} bid while {facts.leader} leads")
    lease = facts.lease
    if lease is None or not any(i.effect is Effect.SPOT_PRICE and i.is_in_doubt for i in facts.intents):
        yield Violation("S5", subject, "its bid was changed without an open intent in the store")
        return
    approved = lease.plan.price.billed
    if approved.currency is not facts.desired.currency or facts.desired.amount > approved.amount:
        yield Violation("S4", subject, f"{facts.desired} was bid, {approved} approved")
    ceiling = facts.ceiling_usd_per_day
    if ceiling is not None and facts.running_usd_per_day > ceiling:
        text = f"${facts.running_usd_per_day:.4f}/day runs with the new bid, the budget is ${ceiling}/day"
        yield Violation("S3", subject, text)


@dataclass(frozen=True, slots=True)
class CancelFacts:
    order_id: OrderId
    is_ours: bool
    """Made by this fleet, whatever our records say."""
    was_journalled: bool
    """A cancel intent for it is durable, or the store could not be written."""
    token: int
    leader: int | None


def at_cancel(facts: CancelFacts) -> Iterator[Violation]:
    """S9, S8, S5."""
    subject = f"order {facts.order_id}"
    if not facts.is_ours:
        yield Violation("S9", subject, "was cancelled, and it is not ours")
    if facts.leader != facts.token:  # before S5: whoever leads may have concluded the other's intent
        yield Violation("S8", subject, f"token {facts.token} cancelled while {facts.leader} leads")
    if not facts.was_journalled:
        yield Violation("S5", subject, "was cancelled without an intent, although the store can be written")


def at_end(order_id: OrderId, absences: int) -> Iterator[Violation]:
    """S6: the list showed the order ended, or readings in a row missed it; `absences` counts those."""
    if absences < READINGS_TO_END:
        yield Violation("S6", f"order {order_id}", f"counts as ended after {absences} readings without it")


def at_drop(lease_id: LeaseId, waited: timedelta, grace: timedelta) -> Iterator[Violation]:
    """S2: a rent in doubt keeps its slot until the grace has passed since the market was asked."""
    if waited < grace:
        text = f"was given up {waited.total_seconds():.0f} s after the market was asked"
        yield Violation("S2", f"lease {lease_id}", text)


def of_bill(
    order_id: OrderId, segments: Iterable[LedgerSegment], bill: Decimal, now: datetime
) -> Iterator[Violation]:
    """S7: the ledger of an ended and settled order is the market's bill to the last unit."""
    counted = sum((segment.charged(now) for segment in segments), Decimal(0))
    if counted != bill:
        yield Violation("S7", f"order {order_id}", f"the ledger has {counted}, the bill is {bill}")
