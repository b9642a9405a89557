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


@dataclass(frozen=True, slots=True)
class CudaFound:
    """What a server's driver really supported when it was probed: believed before what its offer claims."""

    server_id: ServerId
    version: tuple[int, int]


@dataclass(frozen=True, slots=True)
class HostRecord:
    """All that a plan takes from the record of servers."""

    left_out: frozenset[ServerId] = frozenset()
    cuda_found: tuple[CudaFound, ...] = ()


def newest_cuda(told: Iterable[tuple[int, object]]) -> tuple[CudaFound, ...]:
    """Of servers and versions as they are stored, oldest first; what is no version says nothing."""
    found = {}
    for server_id, version in told:
        if isinstance(version, (list, tuple)) and len(version) == 2:
            found[server_id] = CudaFound(ServerId(server_id), (int(version[0]), int(version[1])))
    return tuple(each for _, each in sorted(found.items()))


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
