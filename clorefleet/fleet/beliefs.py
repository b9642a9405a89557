"""The journal's entries about what a tick read or found: none of them begins or ends an effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from clorefleet.domain.event import Event
from clorefleet.domain.guard import WalletReading
from clorefleet.domain.identity import DeploymentId, LeaseId
from clorefleet.domain.lease import Lease
from clorefleet.domain.ledger import Segments
from clorefleet.domain.money import ExchangeRate, Period
from clorefleet.domain.node import Discrepancy, NodeFacts
from clorefleet.domain.offer import MarketRates
from clorefleet.domain.order import Order
from clorefleet.domain.wanted import Wanted
from clorefleet.fleet import strange
from clorefleet.fleet.counting import only_spend_differs, put_count
from clorefleet.fleet.entries import Entries
from clorefleet.store.queries import Transaction


class Beliefs(Entries):
    def stop_renting(self, reason: str, *, now: datetime) -> None:
        """The circuit breaker: nothing more is rented until the user says go on."""
        with self._store.write(self._token) as tx:
            guard = tx.guard()
            if guard.is_stopped:
                return
            tx.put_guard(replace(guard, stopped_at=now, stopped_because=reason))
            tx.add_event(Event(now, "renting_stopped", f"Renting is stopped: {reason}."))

    def note_money(self, rates: Iterable[ExchangeRate], readings: Iterable[WalletReading]) -> None:
        """What a coin is worth, and what the wallets hold, as this tick read it."""
        with self._store.write(self._token) as tx:
            tx.put_coin_rates(rates)
            tx.put_wallet_readings(readings)

    def prune(self, *, before: datetime) -> None:
        with self._store.write(self._token) as tx:
            tx.prune(before=before)

    def record(
        self,
        leases: Iterable[Lease],
        events: Iterable[Event],
        *,
        now: datetime,
        ledger: Mapping[LeaseId, tuple[Segments, Segments]] | None = None,
        foreign: Iterable[Order] = (),
    ) -> None:
        """Beliefs that follow a reading and cost nothing: one transaction for all of a tick's.

        `ledger` has the segments of leases whose count changed: as they were, and as they are now. `foreign`
        are live orders that are not ours.
        """
        leases, events, ledger, foreign = tuple(leases), tuple(events), ledger or {}, tuple(foreign)
        if not (leases or events or ledger or foreign):
            return
        with self._store.write(self._token) as tx:
            tx.note_leases(leases)
            spends = []
            for before, after in ledger.values():
                order_id = after[-1].order_id
                if len(before) == len(after) == 1 and only_spend_differs(before[0], after[0]):
                    spends.append((order_id, after[0]))
                else:
                    put_count(tx, order_id, after)
            tx.note_spends(spends)
            for order in foreign:
                if note_strange(tx, order, now=now):
                    price = str(order.price.per(Period.HOUR))
                    text = strange.words(order.order_id, order.server_id, price, None)
                    tx.add_event(Event(now, "foreign_order", text))
            for event in events:
                tx.add_event(event)

    def record_facts(
        self, lease: Lease, facts: NodeFacts, discrepancies: tuple[Discrepancy, ...], *, now: datetime
    ) -> None:
        with self._store.write(self._token) as tx:
            tx.put_node_facts(lease, facts, discrepancies, now=now)

    def explain(
        self, deployment_id: DeploymentId, text: str, *, is_final: bool = False, now: datetime
    ) -> None:
        """A deployment's note, written when its words change."""
        with self._store.write(self._token) as tx:
            deployment = tx.deployment(deployment_id)
            if deployment is None or deployment.note == text:
                return
            tx.put_deployment(replace(deployment, note=text, has_given_up=is_final))
            if text:
                name = "deployment_gave_up" if is_final else "deployment_waits"
                tx.add_event(Event(now, name, text, deployment_id))

    def note_wanted(self, deployment_id: DeploymentId, wanted: Wanted, *, now: datetime) -> None:
        """What is wanted and why; an event where the number changed."""
        with self._store.write(self._token) as tx:
            before = tx.wanted().get(deployment_id)
            tx.put_wanted(deployment_id, wanted, now=now)
            if before is None or before.replicas != wanted.replicas:
                text = f"{deployment_id}: {wanted.replicas} replica(s) wanted: {wanted.reason}."
                tx.add_event(Event(now, "replicas_wanted", text, deployment_id))

    def record_start_up(self, lease: Lease, *, now: datetime) -> None:
        """A replica serves for the first time: how long that took is what later leads are made of."""
        with self._store.write(self._token) as tx:
            tx.put_start_up(lease, now - lease.created_at, now=now)


def note_strange(tx: Transaction, order: Order, *, now: datetime) -> bool:
    """Remember an order that nothing here explains, and what it bills; true when it is new to us."""
    usd = MarketRates.of(tx.coin_rates()).to_usd(order.price)
    usd_per_day = None if usd is None else usd.per(Period.DAY).amount
    return tx.note_foreign(order, usd_per_day=usd_per_day, now=now)
