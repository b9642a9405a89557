"""What we remember of a server beyond one lease: its faults, and the user's word on it.

A server is *left out* of plans while it is blocked by the user, or for some days after a fault. Unblocking
forgives what was before it. The record is kept for good; leaving out is a rule over it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from clorefleet.domain.identity import ServerId


@dataclass(frozen=True, slots=True)
class HostFault:
    """One bad experience with a server."""

    server_id: ServerId
    at: datetime
    reason: str
    cost_usd: Decimal
    """What the lease had cost until then."""


class Verdict(StrEnum):
    BLOCKED = "blocked"
    UNBLOCKED = "unblocked"


@dataclass(frozen=True, slots=True)
class HostVerdict:
    """The user's word on a server; the latest counts."""

    server_id: ServerId
    verdict: Verdict
    at: datetime
    reason: str = ""


def left_out(
    faults: Iterable[HostFault], verdicts: Iterable[HostVerdict], *, since: datetime
) -> frozenset[ServerId]:
    """Servers that plans leave out: blocked, or with a fault not older than `since` and not forgiven.

    `verdicts` are in the order in which they were given.
    """
    latest = {verdict.server_id: verdict for verdict in verdicts}
    servers = {key for key, verdict in latest.items() if verdict.verdict is Verdict.BLOCKED}
    for fault in faults:
        verdict = latest.get(fault.server_id)
        if fault.at >= since and (verdict is None or fault.at > verdict.at):
            servers.add(fault.server_id)
    return frozenset(servers)
