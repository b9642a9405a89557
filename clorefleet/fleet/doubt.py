"""What a reading says about intents in doubt. Pure.

A rent in doubt is resolved with its lease (`reconcile`): there the answer is an order or its absence, and
a slot is locked meanwhile. The others lock nothing, because repeating them is harmless; they are concluded
here so that the journal tells how each came out.
"""

from __future__ import annotations

from collections.abc import Iterator

from clorefleet.domain.intent import Effect, Intent, IntentState
from clorefleet.domain.lease import Lease
from clorefleet.domain.node import JobState
from clorefleet.fleet.action import Conclude
from clorefleet.fleet.snapshot import Snapshot


def conclusions(snapshot: Snapshot) -> Iterator[Conclude]:
    if not snapshot.intents:
        return
    leases = {lease.lease_id: lease for lease in (*snapshot.closed_leases, *snapshot.leases)}
    for intent in snapshot.intents:
        lease = leases.get(intent.lease_id)
        match intent.effect:
            case Effect.RENT:
                found = None
            case Effect.ROUTE:
                found = IntentState.DONE, "routes die with their process; the next one stated its own"
            case Effect.START_JOB:
                found = _job(snapshot, intent, lease)
            case Effect.CANCEL | Effect.SPOT_PRICE:
                found = _order(snapshot, intent, lease)
        if found is not None:
            yield Conclude(intent, *found)


def _job(snapshot: Snapshot, intent: Intent, lease: Lease | None) -> tuple[IntentState, str] | None:
    if lease is None or not lease.is_open:
        return IntentState.DONE, "the server was given back"
    if str(lease.job_id(lease.phase, max(1, lease.launches))) != str(intent.intent_id):
        return IntentState.DONE, "the work went on without it"
    view = snapshot.nodes.get(lease.lease_id)
    if view is None or view.job is None:
        return None
    if view.job.state is JobState.ABSENT:
        return IntentState.REFUSED, "the node knows no such job; it is started again"
    return IntentState.DONE, "the node has the job"


def _order(snapshot: Snapshot, intent: Intent, lease: Lease | None) -> tuple[IntentState, str] | None:
    if lease is None or not lease.is_open or lease.order_id is None:
        return IntentState.DONE, "the order has ended"
    orders = snapshot.orders
    if orders is None:
        return None
    # A tick reads the store before the list: whatever the clocks say, this list is younger than the doubt.
    order = orders.on_server(lease.order_id, lease.server_id)
    if order is None or order.is_expired:
        return None
    if intent.effect is Effect.SPOT_PRICE:
        return IntentState.DONE, f"the order list shows {order.price}"
    return IntentState.REFUSED, "the order is still listed; it is asked for again"
