"""Reading the books in one transaction, for reports."""

from __future__ import annotations

from datetime import datetime, timedelta

from clorefleet.domain.books import Books
from clorefleet.domain.usage import hour_of
from clorefleet.store.glance import Look

USED_BEFORE_IT_ENDED = timedelta(hours=1)
"""Hours of usage begin before what is asked for."""


def load_books(tx: Look, *, since: datetime | None = None) -> Books:
    """Everything, or what belongs to the orders that had not ended by `since`: those whole."""
    segments = tx.segments(since=since)
    named = {segment.lease_id for segment in segments}
    leases = {lease.lease_id: lease for lease in tx.leases(since=since) if lease.lease_id in named}
    if since is not None:
        # A lease that was made before and has not ended is in no list of what ended since.
        leases |= {lease.lease_id: lease for lease in tx.open_leases() if lease.lease_id in named}
    begun = min((segment.started_at for segment in segments), default=None)
    return Books(
        segments=segments,
        leases=leases,
        phases=tx.phases(since=since),
        usage=()
        if begun is None
        else tuple(
            each for each in tx.usage(since=hour_of(begun - USED_BEFORE_IT_ENDED)) if each.lease_id in named
        ),
        faults=tx.host_faults(since=since),
        deployments=tx.deployments(),
        guard=tx.guard(),
        wallets=tx.wallet_readings(),
        rates=tx.coin_rates(),
        since=since,
    )
