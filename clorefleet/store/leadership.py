"""Who may act: one row, a token that only grows, an expiry, and a beat.

A daemon takes the leadership when nobody holds it, when the holder's time is up, or when it held it
itself. Every write of a daemon checks the token in its own transaction (`Store.write`), so that a
daemon that slept through its expiry can write nothing once another has taken over.

Where several machines share a store, their clocks are not compared: who stands by (`Standby`) takes over
when the leader's beat has stood still for `LEADERSHIP_TTL_S` of its own monotonic time. A leader whose
process was killed, paused or cut off from the store stops beating; one whose wall clock stalls or jumps
does not.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from clorefleet.clock import Clock
from clorefleet.store.database import FencingToken, Store
from clorefleet.store.queries import Leadership

LEADERSHIP_TTL_S = 90
"""Longer than any pause between two beats; a killed daemon on the same machine is replaced at once by its
lock file."""
BEAT_EVERY_S = 15
STANDBY_LOOKS_EVERY_S = 5
TAKEOVER_S_MAX = LEADERSHIP_TTL_S + STANDBY_LOOKS_EVERY_S
"""From the leader's last beat to the next daemon's first tick, at most."""


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
            tx.sum_up()
        beat = 0 if leader is None else leader.beat + 1
        tx.put_leadership(Leadership(number, holder, _expiry(now), beat))
        return FencingToken(number, holder)


def renew(store: Store, token: FencingToken, *, now: datetime) -> None:
    """Stay the leader.

    Raises:
        LostLeadership: it is too late.
    """
    with store.write(token) as tx:
        leader = tx.leadership()
        beat = 0 if leader is None else leader.beat + 1
        tx.put_leadership(Leadership(token.number, token.holder, _expiry(now), beat))


def release(store: Store, token: FencingToken, *, now: datetime) -> None:
    """Let the next one begin at once."""
    with store.write(token) as tx:
        tx.put_leadership(Leadership(token.number + 1, "", now))


def _expiry(now: datetime) -> datetime:
    return now + timedelta(seconds=LEADERSHIP_TTL_S)


class Standby:
    """Waits for the leadership without trusting anybody's wall clock. One per waiting process."""

    def __init__(
        self, store: Store, holder: str, *, clock: Clock, patience_s: float = LEADERSHIP_TTL_S
    ) -> None:
        self._store, self._holder = store, holder
        self._clock, self._patience_s = clock, patience_s
        self._seen: tuple[int, int] | None = None
        self._seen_at_s = 0.0

    def try_to_lead(self) -> FencingToken | None:
        """One look. The token, when the leader let go or its beat has stood still for long enough."""
        with self._store.write() as tx:
            leader = tx.leadership()
            if leader is not None and leader.holder and not self._is_silent(leader):
                return None
            number, beat = (0, 0) if leader is None else (leader.token, leader.beat)
            expires_at = _expiry(self._clock.now())
            tx.put_leadership(Leadership(number + 1, self._holder, expires_at, beat + 1))
            tx.sum_up()
            return FencingToken(number + 1, self._holder)

    def _is_silent(self, leader: Leadership) -> bool:
        now_s = self._clock.monotonic_s()
        if self._seen != (leader.token, leader.beat):
            self._seen, self._seen_at_s = (leader.token, leader.beat), now_s
        return now_s - self._seen_at_s >= self._patience_s
