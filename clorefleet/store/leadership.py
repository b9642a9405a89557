"""Who may act: one row, a token that only grows, and an expiry.

A daemon takes the leadership when nobody holds it, when the holder's time is up, or when it held it
itself. Every write of a daemon checks the token in its own transaction (`Store.write`), so that a
daemon that slept through its expiry can write nothing once another has taken over.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from clorefleet.store.database import FencingToken, Store
from clorefleet.store.tables import LeadershipRow

LEADERSHIP_TTL_S = 90
"""Longer than any tick; a killed daemon on the same machine is replaced at once by its lock file."""


def acquire(store: Store, holder: str, *, now: datetime, force: bool = False) -> FencingToken | None:
    """Become the leader, or None when another holds it.

    Args:
        holder: unique per process.
        force: true when the caller proved that the last holder is dead (the profile's lock file).
    """
    with store.write() as tx:
        session = tx.session
        row = session.get(LeadershipRow, 1, with_for_update=True)
        expires_at = now + timedelta(seconds=LEADERSHIP_TTL_S)
        if row is None:
            row = LeadershipRow(row_id=1, token=1, holder=holder, expires_at=expires_at)
        elif row.holder != holder:
            if row.expires_at > now and not force:
                return None
            row.token += 1
            row.holder = holder
        row.expires_at = expires_at
        session.add(row)
        return FencingToken(row.token, holder)


def renew(store: Store, token: FencingToken, *, now: datetime) -> None:
    """Stay the leader.

    Raises:
        LostLeadership: it is too late.
    """
    with store.write(token) as tx:
        row = tx.session.get(LeadershipRow, 1)
        if row is not None:
            row.expires_at = now + timedelta(seconds=LEADERSHIP_TTL_S)
            tx.session.add(row)


def release(store: Store, token: FencingToken, *, now: datetime) -> None:
    """Let the next one begin at once."""
    with store.write(token) as tx:
        row = tx.session.get(LeadershipRow, 1)
        if row is not None:
            row.expires_at = now
            row.holder = ""
            row.token += 1
            tx.session.add(row)
