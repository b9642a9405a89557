"""When a deployment may sleep: nobody has used it for as long as its rule says. Pure.

Use is what really happened, seen from two sides: requests at the gateway (under way, ended, turned away) and
the engine's own counters (running, waiting, tokens), which also show somebody who reaches it by another way.
A sight that is missing proves nothing: while an engine that did tell its counters does not, it is not idle.
A replica that still starts is not idle either: what was paid for its weights would be lost.

What sleeps keeps its wish: a request, a window of its schedule, or `deploy` wakes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from clorefleet.domain.identity import LeaseId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.load import LoadSample
from clorefleet.domain.node import NodeView
from clorefleet.domain.wanted import IdleDecision, Wanted

_UNTIL_ASKED = "the next request starts it again"


@dataclass(frozen=True, slots=True)
class Use:
    """What is seen of the use of one deployment.

    Attributes:
        last_used: the last request or token, else since when it serves; None without a replica.
        starting: replicas that do not serve yet.
        untold: slots of replicas whose engine told its counters before and does not now.
    """

    last_used: datetime | None
    starting: int = 0
    untold: tuple[int, ...] = ()


def use_seen(lease: Lease, view: NodeView, *, now: datetime) -> Lease | None:
    """`lease` with what this look shows of its use; None where it shows nothing new.

    A counter that fell means an engine that was started anew, which is no use by itself.
    """
    if lease.phase is not Phase.SERVING:
        return None
    tokens = view.engine_tokens
    has_counted = tokens is not None and lease.engine_tokens is not None and tokens > lease.engine_tokens
    is_used = bool(view.in_flight or view.engine_running or view.engine_waiting) or has_counted
    seen = replace(
        lease,
        used_at=now if is_used else lease.used_at or lease.phase_since,
        engine_tokens=lease.engine_tokens if tokens is None else tokens,
    )
    return None if seen == lease else seen


def use_of(leases: Iterable[Lease], views: Mapping[LeaseId, NodeView], samples: Iterable[LoadSample]) -> Use:
    """`leases`: those of the deployment that serve or may come to serve."""
    held = tuple(leases)
    serving = [lease for lease in held if lease.phase is Phase.SERVING]
    untold = [
        lease.slot
        for lease in serving
        if lease.engine_tokens is not None and views.get(lease.lease_id, NodeView()).engine_tokens is None
    ]
    times = [max(lease.used_at or lease.phase_since, lease.phase_since) for lease in serving]
    if serving:
        times += [each.started_at + timedelta(seconds=each.length_s) for each in samples if each.is_used]
    return Use(max(times, default=None), len(held) - len(serving), tuple(untold))


def decide(after: timedelta, use: Use, *, now: datetime) -> IdleDecision:
    """Whether the deployment is idle, and in either case the words for `status`."""
    if use.starting:
        return IdleDecision(False, f"{use.starting} replica(s) still start")
    if use.last_used is None:
        return IdleDecision(False, "no replica runs")
    if use.untold:
        slots = ", ".join(map(str, use.untold))
        return IdleDecision(False, f"replica {slots} does not tell its counters, so nothing proves it idle")
    idle_for = now - use.last_used
    if idle_for < after:  # also where the clock was set back
        shown = max(idle_for, timedelta(0))
        return IdleDecision(False, f"unused for {_span(shown)}; given back after {_span(after)}")
    return IdleDecision(True, f"no request and no token for {_span(after)}; {_UNTIL_ASKED}")


def is_sleep(wanted: Wanted | None) -> bool:
    """Whether none are wanted for want of use: what the user stopped, or a window holds down, does not sleep,
    and begins again without being asked for. Known by its reason, which is all that is written down of it."""
    return wanted is not None and wanted.replicas == 0 and wanted.reason.endswith(_UNTIL_ASKED)


def why_useless(lease: Lease, *, has_given_up: bool) -> str:
    """Why a server of a deployment that gave up is given back: it bills, and nobody waits for it. "" =
    keep."""
    is_on_its_way = lease.state is LeaseState.ORDERED and lease.phase not in (Phase.SERVING, Phase.DRAINING)
    return "its deployment gave up, and it does not serve" if has_given_up and is_on_its_way else ""


def _span(duration: timedelta) -> str:
    seconds = duration.total_seconds()
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
