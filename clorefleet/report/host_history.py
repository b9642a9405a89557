"""All that is remembered of each server, in one value. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from clorefleet.domain.host import HostFault, HostVerdict, Verdict, left_out
from clorefleet.domain.identity import ServerId
from clorefleet.domain.lease import Lease
from clorefleet.report.words import age


@dataclass(frozen=True, slots=True)
class HostHistory:
    server_id: ServerId
    leases: tuple[Lease, ...]
    """In order of time, as are the others."""
    faults: tuple[HostFault, ...]
    verdicts: tuple[HostVerdict, ...]
    is_left_out: bool
    """Plans do not take it."""

    @property
    def lost_usd(self) -> Decimal:
        """What the leases had cost that its faults ended."""
        return sum((fault.cost_usd for fault in self.faults), Decimal(0))

    @property
    def gpu_summary(self) -> str:
        return self.leases[-1].plan.offer.gpu_summary if self.leases else "?"

    def state(self, now: datetime, memory: timedelta) -> str:
        """Whether plans take it, and why not; `memory` is how long a fault counts."""
        if not self.is_left_out:
            return "take it"
        last = self.verdicts[-1] if self.verdicts else None
        if last is not None and last.verdict is Verdict.BLOCKED:
            return f"blocked by you{f': {last.reason}' if last.reason else ''}"
        left = self.faults[-1].at + memory - now
        return f"left out for {age(left)}: {self.faults[-1].reason}"


def host_histories(
    leases: Iterable[Lease],
    faults: Iterable[HostFault],
    verdicts: Iterable[HostVerdict],
    *,
    since: datetime,
) -> tuple[HostHistory, ...]:
    """By server, those with trouble first. Faults before `since` no longer keep a server out of plans."""
    leases, faults, verdicts = tuple(leases), tuple(faults), tuple(verdicts)
    out = left_out(faults, verdicts, since=since)
    of_leases: dict[ServerId, list[Lease]] = {}
    of_faults: dict[ServerId, list[HostFault]] = {}
    of_verdicts: dict[ServerId, list[HostVerdict]] = {}
    for lease in leases:
        of_leases.setdefault(lease.server_id, []).append(lease)
    for fault in faults:
        of_faults.setdefault(fault.server_id, []).append(fault)
    for verdict in verdicts:
        of_verdicts.setdefault(verdict.server_id, []).append(verdict)
    records = (
        HostHistory(
            server,
            tuple(of_leases.get(server, ())),
            tuple(of_faults.get(server, ())),
            tuple(of_verdicts.get(server, ())),
            server in out,
        )
        for server in {*of_leases, *of_faults, *of_verdicts}
    )
    return tuple(sorted(records, key=lambda each: (not each.is_left_out, -len(each.faults), each.server_id)))
