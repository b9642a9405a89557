"""Make alerts of what happened since the last look, and bring them out: at most once each, by bounded tries.

    made        one transaction: the alerts, their deliveries, and how far was looked
    sending     written before an alert is sent
    (sending)   outside any transaction
    outcome     sent, waiting for another try, failed, or unknown

A process that dies between the last two leaves a delivery in `sending`. The next one does not know whether
it went out and lets it be: an alert too few after a crash is better than one that comes again and again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from clorefleet.clock import Clock
from clorefleet.domain.alert import Alert, Channel, Delivery, DeliveryState, Lookout, NotifyPolicy
from clorefleet.domain.secret import Secret, redacted
from clorefleet.domain.text import clean_line
from clorefleet.fleet import alerts
from clorefleet.fleet.spending import load_spending
from clorefleet.notify.channels import NotSent, Outcome, Sent, Unclear, send
from clorefleet.store.database import FencingToken, Store
from clorefleet.store.queries import Transaction

log = logging.getLogger("clorefleet.notify")

ATTEMPTS_MAX = 5
BACKOFF = (
    timedelta(seconds=15),
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=30),
)
"""Pauses after the first, second, ... try; about half an hour in all, in which a mail server is back."""
SENDS_A_RUN_MAX = 20
EVENTS_A_RUN_MAX = 1_000
KEPT = timedelta(days=30)
"""How long finished deliveries are remembered. Keys name a day or an event, so that none comes back later."""
FLOOD_MAX = 50
"""Deliveries that may wait for one channel; beyond it, alerts are counted in the log and dropped."""

Leadership = Callable[[], FencingToken | None]
"""The leadership of this process, while it is held."""
Send = Callable[[Channel, Alert], Outcome]


class Notifier:
    """One per daemon; `run` is called from time to time, never twice at once."""

    def __init__(
        self,
        store: Store,
        token: Leadership,
        clock: Clock,
        *,
        policy: Callable[[], NotifyPolicy | None],
        secrets: tuple[Secret, ...] = (),
        send: Send = send,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._token = token
        self._held: FencingToken | None = None
        self._clock = clock
        self._policy = policy
        self._secrets = secrets
        self._send = send
        self._is_ending = is_ending
        self._is_first = True
        self._told: set[str] = set()
        """Keys of today that need not be looked up again; the store knows all."""
        self._dropped_at: datetime | None = None

    def run(self) -> None:
        """Nothing while the policy is not known: no channels would mean that nobody listens.

        Raises:
            LostLeadership: another process acts now.
        """
        policy = self._policy()
        if policy is None:
            return
        held, self._held = self._held, self._token()
        if self._held is None:
            return
        if self._is_first or held != self._held:
            self._leave_unclear()
            self._is_first = False
        self._look(policy)
        self._deliver(policy)
        self._forget()

    # -- making

    def _look(self, policy: NotifyPolicy) -> None:
        now = self._clock.now()
        with self._store.read() as tx:
            before = tx.lookout()
            after, made = self._made(tx, before, policy, now)
        made = [alert for alert in made if alert.key not in self._told]
        if after == before and not made:
            return
        with self._store.write(self._held) as tx:
            waiting = tx.deliveries(DeliveryState.WAITING, limit=FLOOD_MAX * max(1, len(policy.channels)))
            for delivery in self._new(made, policy, before):
                queued = sum(1 for each in waiting if each.channel == delivery.channel)
                if queued >= FLOOD_MAX:
                    log.warning("alert_dropped channel=%s key=%s", delivery.channel, delivery.alert.key)
                    continue
                tx.add_delivery(delivery)
            tx.put_lookout(after)
        self._told |= {alert.key for alert in made}

    def _made(
        self, tx: Transaction, before: Lookout | None, policy: NotifyPolicy, now: datetime
    ) -> tuple[Lookout, list[Alert]]:
        names = tuple(sorted(channel.name for channel in policy.channels))
        newest = next((number for number, _ in tx.events(limit=1)), 0)
        # The first look tells nothing of what was before it, and neither does one after nobody listened.
        if before is None or not names:
            return Lookout(newest, before.standings if before else {}, names), []
        events = tx.events(after_id=before.event_id, limit=EVENTS_A_RUN_MAX)
        deployments, leases = tx.deployments(), tx.open_leases()
        spending = load_spending(tx, now, open_leases=leases)
        standings, changed = alerts.of_standings(deployments, leases, tx.wanted(), before.standings, now)
        made = [
            *alerts.of_events(events),
            *alerts.of_budgets(
                deployments,
                spending.today_usd,
                spending.fleet.guard.per_day,
                spending.fleet.spent_today_usd,
                policy.budget_percents,
                now,
            ),
            *changed,
        ]
        return Lookout(newest, standings, names), made

    def _new(self, made: list[Alert], policy: NotifyPolicy, before: Lookout | None) -> list[Delivery]:
        """Deliveries to the channels that listened already; one that is new hears what comes from now on."""
        listening = () if before is None else before.channels
        now = self._clock.now()
        return [
            Delivery(self._harmless(alert), channel.name, DeliveryState.WAITING, 0, now)
            for alert in made
            for channel in policy.channels
            if alert.kind in channel.kinds and channel.name in listening
        ]

    def _harmless(self, alert: Alert) -> Alert:
        return replace(
            alert, text=redacted(clean_line(alert.text, max_chars=alerts.TEXT_CHARS_MAX), self._secrets)
        )

    # -- sending

    def _leave_unclear(self) -> None:
        with self._store.read() as tx:
            interrupted = tx.deliveries(DeliveryState.SENDING)
        for delivery in interrupted:
            self._put(replace(delivery, state=DeliveryState.UNKNOWN, trouble="interrupted while it was sent"))

    def _deliver(self, policy: NotifyPolicy) -> None:
        """What is due. A channel that does not take one is left for this run: each try may take its whole
        time limit, while the other channels wait. So may the end of the daemon, which is not kept waiting."""
        channels = {channel.name: channel for channel in policy.channels}
        with self._store.read() as tx:
            waiting = tx.deliveries(DeliveryState.WAITING, limit=FLOOD_MAX * max(1, len(channels)))
        left: set[str] = set()
        sends = 0
        for delivery in waiting:
            if self._is_ending() or sends >= SENDS_A_RUN_MAX:
                return
            if delivery.next_at > self._clock.now() or delivery.channel in left:
                continue
            channel = channels.get(delivery.channel)
            if channel is None:
                gone = "its channel is not in the fleet file any more"
                self._put(replace(delivery, state=DeliveryState.FAILED, trouble=gone))
                continue
            sending = replace(delivery, state=DeliveryState.SENDING, attempts=delivery.attempts + 1)
            self._put(sending)
            outcome = self._send(channel, delivery.alert)
            sends += 1
            if not isinstance(outcome, Sent):
                left.add(channel.name)
            self._put(self._after(sending, outcome))

    def _after(self, delivery: Delivery, outcome: Outcome) -> Delivery:
        key, name = delivery.alert.key, delivery.channel
        match outcome:
            case Sent():
                log.info("alert_sent channel=%s key=%s", name, key)
                return replace(delivery, state=DeliveryState.SENT, trouble="")
            case Unclear(why):
                log.warning("alert_unclear channel=%s key=%s why=%s", name, key, why)
                return replace(delivery, state=DeliveryState.UNKNOWN, trouble=self._clean(why))
            case NotSent(why, may_retry):
                trouble = self._clean(why)
                log.warning(
                    "alert_not_sent channel=%s key=%s try=%s why=%s", name, key, delivery.attempts, trouble
                )
                if not may_retry or delivery.attempts >= ATTEMPTS_MAX:
                    return replace(delivery, state=DeliveryState.FAILED, trouble=trouble)
                pause = BACKOFF[min(delivery.attempts, len(BACKOFF)) - 1]
                return replace(
                    delivery, state=DeliveryState.WAITING, next_at=self._clock.now() + pause, trouble=trouble
                )

    def _clean(self, why: str) -> str:
        return redacted(clean_line(why), self._secrets)

    def _put(self, delivery: Delivery) -> None:
        with self._store.write(self._held) as tx:
            tx.put_delivery(delivery)

    def _forget(self) -> None:
        now = self._clock.now()
        if self._dropped_at is not None and abs(now - self._dropped_at) < timedelta(days=1):
            return
        with self._store.write(self._held) as tx:
            tx.drop_deliveries(before=now - KEPT)
        self._dropped_at = now
        self._told.clear()
