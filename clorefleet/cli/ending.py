"""What a ceiling ends as soon as it is written down: told, and asked about, before it is.

The daemon gives servers back that a ceiling does not carry, without another question. So whoever lowers one
is told here which those are; `fleet/budget.overspending` is the daemon's own rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clorefleet.cli.output import usd

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from decimal import Decimal

    from clorefleet.domain.deployment import Deployment
    from clorefleet.domain.guard import FleetGuard
    from clorefleet.domain.lease import Lease
    from clorefleet.fleet.budget import FleetSpending
    from clorefleet.store.queries import Transaction


@dataclass(frozen=True, slots=True)
class Ending:
    """A server that is given back, and why."""

    lease: Lease
    usd_per_day: Decimal
    why: str

    def text(self, verb: str = "is") -> str:
        return (
            f"Server {self.lease.server_id} of {self.lease.deployment_id}, at {usd(self.usd_per_day)}/day, "
            f"{verb} given back: {self.why}."
        )


def ended_by(
    tx: Transaction, now: datetime, *, wish: Deployment | None = None, guard: FleetGuard | None = None
) -> tuple[Ending, ...]:
    """What the daemon gives back once `wish`, or `guard`, is what is stored."""
    from clorefleet.domain.deployment import Desired
    from clorefleet.fleet.budget import committed_usd_per_day, overspending
    from clorefleet.fleet.spending import load_spending

    spending = load_spending(tx, now)
    fleet = spending.fleet if guard is None else _under(spending.fleet, guard)
    known = {each.deployment_id: each for each in tx.deployments()}
    if wish is not None:
        known[wish.deployment_id] = wish
    running = [each for each in known.values() if each.desired is Desired.RUNNING]
    names = {each.deployment_id for each in running}
    found = overspending(running, spent_today_usd=spending.today_usd, fleet=fleet, now=now)
    return tuple(
        Ending(lease, committed_usd_per_day([lease], spending.rates), found[lease.lease_id])
        for lease in fleet.open_leases
        if lease.lease_id in found and lease.deployment_id in names
    )


def _under(fleet: FleetSpending, guard: FleetGuard) -> FleetSpending:
    """A total that is set anew counts from then: nothing is spent of it yet."""
    from dataclasses import replace
    from decimal import Decimal

    before, spent = fleet.guard, dict(fleet.deployment_spent_total_usd)
    for name, since in guard.deployment_totals_since.items():
        if since != before.deployment_totals_since.get(name):
            spent[name] = Decimal(0)
    is_new = guard.total_since != before.total_since
    return replace(
        fleet,
        guard=guard,
        spent_total_usd=Decimal(0) if is_new else fleet.spent_total_usd,
        deployment_spent_total_usd=spent,
    )


def check_seen(seen: Sequence[Ending], found: Sequence[Ending]) -> None:
    """In the transaction that writes: nobody confirms the end of what they did not see.

    Raises:
        BadInput: more would end than was told.
    """
    from clorefleet.domain.errors import BadInput

    told = {each.lease.lease_id for each in seen}
    more = [each for each in found if each.lease.lease_id not in told]
    if more:
        raise BadInput(
            f"Since this was asked, it has come to end more: {' '.join(each.text() for each in more)}",
            remedy="Type the same command again and look once more.",
            money="Nothing was changed by this.",
        )
