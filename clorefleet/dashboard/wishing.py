"""Stop and scale: what the user is told before saying yes, and the writing down of the wish.

The page that asks names what it asked about (`before`): a wish about a deployment that has changed since is
refused, so that nobody confirms what they did not see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from clorefleet.domain.deployment import Deployment, Origin
from clorefleet.domain.errors import BadInput
from clorefleet.domain.event import Event
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.money import Money
from clorefleet.fleet.budget import committed_usd_per_day
from clorefleet.fleet.wish import means, scaled, stopped
from clorefleet.store.database import Store
from clorefleet.store.queries import Transaction

Change = Callable[[Deployment], Deployment]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, with what it means for the money."""

    deployment_id: str
    before: str
    """Names the wish as it was when this was asked."""
    lines: tuple[str, ...]
    replicas: int
    """As wished now, or as chosen."""
    replicas_before: int


def name_of(wish: Deployment) -> str:
    """Different for any two wishes that differ in what stop and scale depend on."""
    seen = (wish.desired, wish.replicas, wish.replicas_max, wish.requirement.budget, wish.origin)
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def ask_stop(tx: Transaction, name: str) -> Question | None:
    """None where there is no such deployment."""
    wish = tx.deployment(DeploymentId(name))
    if wish is None:
        return None
    leases = _open_leases(tx, wish)
    hourly = committed_usd_per_day(leases, tx.coin_rates()) / 24
    serving = sum(lease.phase is Phase.SERVING for lease in leases)
    lines = [
        f"{_servers(len(leases))} given back, {serving} of which {'serves' if serving == 1 else 'serve'} now."
        if leases
        else "Nothing is rented for it now.",
        f"That ends {Money.usd(hourly)} an hour once the market's list shows the orders gone.",
        "Weights and data on the servers are lost; starting again means renting and downloading again.",
    ]
    if wish.origin is Origin.FILE:
        lines.append("It is kept by a fleet file: `clorefleet apply` would start it again.")
    return Question(wish.deployment_id, name_of(wish), tuple(lines), wish.replicas, wish.replicas)


def ask_scale(tx: Transaction, name: str, replicas: int, *, now: datetime) -> Question | None:
    """
    Raises:
        BadInput: so many cannot be kept.
    """
    wish = tx.deployment(DeploymentId(name))
    if wish is None:
        return None
    after = scaled(wish, replicas, now=now)
    lines = means(wish, after, _open_leases(tx, wish), tx.coin_rates())
    return Question(wish.deployment_id, name_of(wish), lines, replicas, wish.replicas)


def wish_stop(store: Store, name: str, before: str, *, now: datetime) -> None:
    """
    Raises:
        BadInput: it is gone, or has changed since it was asked about; nothing was written.
    """
    _write(store, name, before, stopped, "stop_wished", "Stop was asked for in the dashboard.", now=now)


def wish_scale(store: Store, name: str, before: str, replicas: int, *, now: datetime) -> None:
    """
    Raises:
        BadInput: as above, or so many cannot be kept.
    """
    text = f"{replicas} replica(s) were asked for in the dashboard."
    _write(store, name, before, lambda wish: scaled(wish, replicas, now=now), "scale_wished", text, now=now)


def _write(
    store: Store, name: str, before: str, change: Change, event: str, text: str, *, now: datetime
) -> None:
    with store.write() as tx:
        wish = tx.deployment(DeploymentId(name))
        if wish is None or name_of(wish) != before:
            raise BadInput(
                "The deployment has changed since this was asked.",
                remedy="Look at it again, then decide.",
                money="Nothing was changed.",
            )
        after = change(wish)
        if after == wish:
            return
        tx.put_deployment(after)
        tx.add_event(Event(now, event, f"{name}: {text}", wish.deployment_id))


def _open_leases(tx: Transaction, wish: Deployment) -> list[Lease]:
    return [lease for lease in tx.open_leases() if lease.deployment_id == wish.deployment_id]


def _servers(count: int) -> str:
    return "1 server is" if count == 1 else f"{count} servers are"
