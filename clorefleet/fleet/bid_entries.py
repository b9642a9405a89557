"""The journal's entries about spot bids: intended, answered, lost and won back."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from clorefleet.domain.errors import BudgetExceeded
from clorefleet.domain.failure import Correction
from clorefleet.domain.identity import IntentId
from clorefleet.domain.intent import Effect, Intent, IntentState
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.money import Rate
from clorefleet.domain.plan import Plan
from clorefleet.fleet import budget
from clorefleet.fleet.action import SetSpotPrice
from clorefleet.fleet.entries import Entries
from clorefleet.fleet.spending import load_spending
from clorefleet.store.queries import Transaction


class BidEntries(Entries):
    def begin_spot_price(self, lease: Lease, action: SetSpotPrice, *, now: datetime) -> tuple[Lease, Intent]:
        """The intent to bid otherwise. A raise is approved from here on, so that it counts at its worst.

        Raises:
            BudgetExceeded: the new price would pass a ceiling; nothing was written.
        """
        price = lease.plan.price
        is_lower = action.desired != lease.price and action.desired <= (lease.price or price.billed)
        with self._store.write(self._token) as tx:
            approved = replace(
                lease, bid=action.desired, bid_at=now, lowered_at=now if is_lower else lease.lowered_at
            )
            if not action.desired <= price.billed:
                self._check_raise(tx, lease, action.desired, now)
                approved = replace(approved, plan=_at(lease.plan, action.desired))
            tx.put_lease(approved)
            asked = sum(each.effect is Effect.SPOT_PRICE for each in tx.intents_of(lease.lease_id))
            intent = self._open_intent(
                tx,
                lease,
                Effect.SPOT_PRICE,
                IntentId(f"{lease.lease_id}-bid-{asked + 1}"),
                f"{action.desired}: {action.reason}",
                worst_case_usd_per_day=Rate.per_day(budget.running_usd_per_day(approved)),
                now=now,
            )
            self._event(tx, lease, "spot_price_intended", f"Bidding {action.desired}: {action.reason}.", now)
        return approved, intent

    @staticmethod
    def _check_raise(tx: Transaction, lease: Lease, desired: Rate, now: datetime) -> None:
        deployment = tx.deployment(lease.deployment_id)
        if deployment is None:
            raise BudgetExceeded("The deployment is gone.")
        spending = load_spending(tx, now)
        others = tuple(each for each in spending.fleet.open_leases if each.lease_id != lease.lease_id)
        raised = _at(lease.plan, desired)
        refusal = budget.refusal(
            deployment,
            raised,
            open_leases=[each for each in others if each.deployment_id == lease.deployment_id],
            spent_today_usd=spending.today_usd.get(lease.deployment_id, Decimal(0)),
            now=now,
            fleet=replace(spending.fleet, open_leases=others),
        )
        if refusal is not None:
            raise BudgetExceeded(f"The bid stays: {refusal.text}.")

    def finish_spot_price(
        self,
        lease: Lease,
        intent: Intent,
        state: IntentState,
        text: str,
        *,
        approved_before: Rate,
        max_step: Decimal | None,
        now: datetime,
    ) -> Lease:
        """A refusal leaves the order's price, and with it what is approved, as they were."""
        was_lowered = lease.lowered_at is not None and lease.lowered_at == lease.bid_at
        told = replace(lease, bid_step_max=lease.bid_step_max if max_step is None else max_step)
        if state is IntentState.REFUSED:
            told = replace(told, plan=_at(lease.plan, approved_before))
        elif was_lowered:
            # The market counts its 600 s from when it took the bid, which was at most now.
            told = replace(told, bid_at=now, lowered_at=now)
        with self._store.write(self._token) as tx:
            tx.put_lease(told)
        self.conclude(intent, state, text, now=now)
        return told

    def approve_bid(self, lease: Lease, approved: Rate) -> Lease:
        """No more than this is approved from now on, so that the budget counts no more."""
        lower = replace(lease, plan=_at(lease.plan, approved))
        with self._store.write(self._token) as tx:
            tx.put_lease(lower)
        return lower

    def note_outbid(self, lease: Lease, since: datetime | None, reason: str, *, now: datetime) -> Lease:
        """A spot order lost its machine, or has it back: then its container starts anew there."""
        waiting = replace(
            lease.entered(Phase.WAITING, now),
            outbid_since=since,
            restarts=lease.restarts + (since is None),
            # Weights that were fetched anew are not fetched anew again.
            corrections=tuple(each for each in lease.corrections if each is not Correction.FETCH_AGAIN),
            launches=0,
            start_failures=0,
            unhealthy_since=None,
            progress=reason,
        )
        with self._store.write(self._token) as tx:
            tx.put_lease(waiting)
            name = "spot_outbid" if since is not None else "spot_returned"
            where = f"{lease.deployment_id}: order {lease.order_id} on server {lease.server_id}"
            self._event(tx, lease, name, f"{where}: {reason}.", now)
        return waiting


def _at(plan: Plan, billed: Rate) -> Plan:
    """The same plan at another approved price."""
    return replace(plan, price=replace(plan.price, billed=billed))
