"""Which leases fill the wanted replicas, which are surplus, and which slots are empty. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from clorefleet.domain.lease import PHASE_ORDER, Lease, LeaseState, Phase
from clorefleet.domain.money import AS_RENTED, UsdPerUnit
from clorefleet.fleet.consolidate import running_usd_per_day


def is_held(lease: Lease) -> bool:
    """True for a lease that serves or may come to serve. One that was outbid waits for others to leave: its
    slot is empty meanwhile."""
    return lease.state in _MAY_SERVE and lease.phase is not Phase.DRAINING and lease.outbid_since is None


_MAY_SERVE = (LeaseState.INTENT, LeaseState.ORDERED)


def held(leases: Iterable[Lease], usd_per_unit: UsdPerUnit = AS_RENTED) -> tuple[Lease, ...]:
    """In the order in which they are kept: the farthest along first, among those the ones that answer, then
    the cheapest for what it generates.

    So that fewer replicas never means giving back the one that serves and keeping one that still starts, or
    the good one and keeping the dear one. `usd_per_unit`: what coins are worth now; else as at each rent.
    """
    return tuple(
        sorted(
            _counted(lease for lease in leases if is_held(lease)),
            key=lambda lease: (
                -PHASE_ORDER.index(lease.phase),
                lease.unhealthy_since is not None,
                _cost(lease, usd_per_unit),
                lease.slot,
            ),
        )
    )


def slots_held(leases: Iterable[Lease]) -> frozenset[int]:
    """Of one deployment, the slots of those that `held` would put in order."""
    return frozenset(lease.slot for lease in _counted(lease for lease in leases if is_held(lease)))


def _cost(lease: Lease, usd_per_unit: UsdPerUnit) -> Decimal:
    """USD a day for each token a second of one stream, measured where that was done."""
    speed = lease.measured_tokens_per_s or lease.plan.speed.decode_tokens_per_s
    return running_usd_per_day(lease, usd_per_unit) / Decimal(str(max(speed, 0.01)))


def _counted(leases: Iterable[Lease]) -> tuple[Lease, ...]:
    """A server that was rented to follow another one counts once that is on its way out."""
    present = tuple(leases)
    ids = {lease.lease_id for lease in present}
    return tuple(lease for lease in present if lease.replaces is None or lease.replaces not in ids)


def surplus(leases: Iterable[Lease], wanted: int, usd_per_unit: UsdPerUnit = AS_RENTED) -> tuple[Lease, ...]:
    """Of one deployment's leases, those beyond the wanted number. Two servers that are rented for one slot,
    of which the first to be ready is kept, count as one."""
    leases = tuple(leases)
    if len(leases) <= wanted:
        return ()
    kept = held(leases, usd_per_unit)
    slots = frozenset(tuple(dict.fromkeys(lease.slot for lease in kept))[:wanted])
    return tuple(lease for lease in kept if lease.slot not in slots)


def empty_slots(leases: Iterable[Lease], wanted: int) -> list[int]:
    """Of one deployment, the lowest free slots that bring what is held up to the wanted number."""
    filled = {lease.slot for lease in leases if is_held(lease)}
    free = (slot for slot in range(wanted + len(filled)) if slot not in filled)
    return [slot for slot, _ in zip(free, range(wanted - len(filled)), strict=False)]
