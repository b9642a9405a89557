"""Who may act: one row, a token that only grows, and an expiry.

A daemon takes the leadership when nobody holds it, when the holder's time is up, or when it held it
itself. Every write of a daemon checks the token in its own transaction (`Store.write`), so that a
daemon that slept through its expiry can write nothing once another has taken over.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from clorefleet.store.database import FencingToken, Store
from clorefleet.store.queries import Leadership

LEADERSHIP_TTL_S = 90
"""Longer than any tick; a killed daemon on the same machine is replaced at once by its lock file."""


def acquire(store: Store, holder: str, *, now: datetime, force: bool = False) -> FencingToken | None:
    """Become the leader, or None when another holds it.

    Args:
        holder: unique per process.
        force: true when the caller proved that the last holder is dead (the profile's lock file).
    """
    with store.write() as tx:
        leader = tx.leadership()
        number = 1 if leader is None else leader.token
        if leader is not None and leader.holder != holder:
            if leader.expires_at > now and not force:
                return None
            number += 1
        tx.put_leadership(Leadership(number, holder, now + timedelta(seconds=LEADERSHIP_TTL_S)))
        return FencingToken(number, holder)


def renew(store: Store, token: FencingToken, *, now: datetime) -> None:
    """Stay the leader.

    Raises:
        LostLeadership: it is too late.
    """
    with store.write(token) as tx:
        tx.put_leadership(Leadership(token.number, token.holder, now + timedelta(seconds=LEADERSHIP_TTL_S)))


def release(store: Store, token: FencingToken, *, now: datetime) -> None:
    """Let the next one begin at once."""
    with store.write(token) as tx:
        tx.put_leadership(Leadership(token.number + 1, "", now))
