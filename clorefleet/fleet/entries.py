"""What all entries of the journal share: the leader's transaction, intents by their ids, events."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from clorefleet.domain.event import Event
from clorefleet.domain.identity import IntentId
from clorefleet.domain.intent import Effect, Intent, IntentState
from clorefleet.domain.lease import Lease
from clorefleet.domain.money import Rate
from clorefleet.domain.text import clean_line
from clorefleet.store.database import FencingToken, Store
from clorefleet.store.queries import Transaction


class Entries:
    """Each public method of what builds on this is one transaction, or two around an effect."""

    def __init__(self, store: Store, token: FencingToken) -> None:
        self._store = store
        self._token = token

    def conclude(self, intent: Intent, state: IntentState, text: str, *, now: datetime) -> None:
        """How an intent came out, known by its answer or by a reading."""
        is_doubt = state in (IntentState.OPEN, IntentState.UNKNOWN)
        concluded = replace(
            intent,
            state=state,
            doubted_at=now if is_doubt else intent.doubted_at,
            finished_at=None if is_doubt else now,
            detail=f"{intent.detail}; {clean_line(text)}" if text else intent.detail,
        )
        with self._store.write(self._token) as tx:
            self._put(tx, concluded)
            if text:
                name = f"{intent.effect}_{state}"
                tx.add_event(Event(now, name, clean_line(text), intent.deployment_id, intent.lease_id))

    # -- inside a transaction

    def _put(self, tx: Transaction, intent: Intent) -> None:
        tx.put_intent(intent, fencing_token=self._token.number)

    def _open_intent(
        self,
        tx: Transaction,
        lease: Lease,
        effect: Effect,
        intent_id: IntentId,
        detail: str,
        *,
        worst_case_usd_per_day: Rate | None = None,
        now: datetime,
    ) -> Intent:
        intent = Intent(
            intent_id=intent_id,
            effect=effect,
            lease_id=lease.lease_id,
            deployment_id=lease.deployment_id,
            state=IntentState.OPEN,
            created_at=now,
            worst_case_usd_per_day=worst_case_usd_per_day,
            detail=detail,
        )
        self._put(tx, intent)
        return intent

    @staticmethod
    def _intent(tx: Transaction, lease: Lease, intent_id: IntentId) -> Intent | None:
        return next((i for i in tx.intents_of(lease.lease_id) if i.intent_id == intent_id), None)

    def _close_intent(
        self,
        tx: Transaction,
        lease: Lease,
        intent_id: IntentId,
        state: IntentState,
        now: datetime,
        detail: str = "",
    ) -> None:
        intent = self._intent(tx, lease, intent_id)
        if intent is not None and intent.is_in_doubt:
            self._put(tx, replace(intent, state=state, finished_at=now, detail=detail or intent.detail))

    @staticmethod
    def _event(tx: Transaction, lease: Lease, name: str, text: str, now: datetime) -> None:
        tx.add_event(Event(now, name, text, lease.deployment_id, lease.lease_id))
