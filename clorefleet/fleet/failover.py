"""After a failure: whether to try again here, what the next plan leaves out, what to tell at the end. Pure.

A failed replica is blamed on its host, on its driver, on its GPUs, on its image or on its weights
(`domain.failure`). The host goes to the record of servers (`HostFault`); everything else becomes an
`Exclusion` for this deployment alone, until its `deploy` is repeated.

With a hedge, two servers are rented for one empty replica, where the budget carries both, and the one that is
not ready first is given back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from decimal import Decimal

from clorefleet.domain.deployment import Deployment
from clorefleet.domain.failure import (
    NO_RETRY_HELPS,
    NOBODY_FAILED,
    Cause,
    Correction,
    Exclusion,
    blames_host,
    exclusion_of,
)
from clorefleet.domain.identity import LeaseId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.money import format_usd
from clorefleet.domain.node import NodeView
from clorefleet.domain.plan import Plan
from clorefleet.domain.text import clean_line
from clorefleet.fleet.action import Advance, GiveBack, StartWork
from clorefleet.fleet.limits import FleetLimits
from clorefleet.fleet.slots import is_held

TRIED_SHOWN_MAX = 8
_ADVICE = {
    Cause.OUT_OF_VRAM: "a smaller --precision, less --context, or --gpu with more memory",
    Cause.OUT_OF_VRAM_RUNNING: "less --context, or --gpu with more memory",
    Cause.NO_KV_MEMORY: "less --context, or --gpu with more memory",
    Cause.CONTEXT_TOO_LONG: "less --context, or --gpu with more memory",
    Cause.OUT_OF_RAM: "a smaller --precision",
    Cause.DRIVER_TOO_OLD: "--engine llama.cpp, whose image needs an older driver, or a higher budget",
    Cause.GPU_UNSUPPORTED: "--engine llama.cpp, or --gpu with a newer GPU",
    Cause.ENGINE_TOO_OLD: "another --engine, or a recipe with a newer image",
    Cause.BAD_FLAG: "another --engine, or a recipe with another image",
    Cause.BAD_CHECKPOINT: "another --precision",
    Cause.LOCAL_WEIGHTS: "the files that the recipe's repo names on this machine",
    Cause.UPLOAD_BROKE: "a faster or steadier line of this machine, or weights from a hub",
    Cause.PACKAGE_NOT_FOUND: "another --engine, or a recipe whose packages the index has",
    Cause.BUILD_NEEDED: "another --engine, or a recipe with another base image",
    Cause.UNAUTHORISED: "another --precision, whose repository is open",
    Cause.NOT_FOUND: "another --precision, or the recipe's repository",
    Cause.TOO_SLOW: "a lower --min-speed, or a higher budget",
    Cause.SLOW_DOWNLOAD: "a smaller --precision, or a higher budget",
    Cause.TOOK_TOO_LONG: "a smaller --precision, or a higher budget",
    Cause.TOOL_CALLS_DROPPED: "another --engine",
    Cause.NO_THINKING: "another --engine",
}
_BEFORE_LAUNCH = (Phase.INSTALLING, Phase.SYNCING)
_OTHERWISE = "a higher budget or --min-reliability, which reaches other hosts"


def restart(lease: Lease, view: NodeView, limits: FleetLimits) -> Iterator[Advance | StartWork | GiveBack]:
    """A job ended that should run, or failed: again where that may help, corrected where that may cure it,
    else the server is given back."""
    why = _why(view)
    phase = lease.phase if lease.phase in _BEFORE_LAUNCH else Phase.LAUNCHING
    correction = view.correction if phase is Phase.LAUNCHING else None
    if correction in lease.corrections:
        correction = None
    allowed = limits.job_attempts if phase in _BEFORE_LAUNCH else limits.launches
    # A corrected launch is another one, not the same once more.
    alike = lease.launches - (_corrected_launches(lease) if phase is Phase.LAUNCHING else 0)
    if correction is None and (alike >= allowed or view.job_cause in NO_RETRY_HELPS):
        times = "once" if lease.launches <= 1 else f"{lease.launches} times"
        cause = view.job_cause or Cause.UNKNOWN
        yield GiveBack(
            lease.lease_id,
            f"{lease.phase} failed {times}: {why}",
            blocks_host=blames_host(cause, lease.plan.setup),
            cause=cause,
        )
        return
    if lease.phase in (Phase.VERIFYING, Phase.SERVING):
        yield Advance(lease.lease_id, Phase.LAUNCHING, why)
    if correction is Correction.FETCH_AGAIN:
        # Killed between these two, the next tick finds the first download done and the launch dead again.
        yield Advance(lease.lease_id, Phase.SYNCING, f"{why}; all files are verified again")
        yield StartWork(lease.lease_id, Phase.SYNCING, 1, "damaged files are fetched again", correction)
        return
    if correction is not None:
        why = f"{why}; now with {correction.replace('_', ' ')}"
    yield StartWork(lease.lease_id, phase, lease.launches + 1, why, correction)


def _corrected_launches(lease: Lease) -> int:
    """Of the present count of launches, those that differed from the one before. Fetching again began the
    count anew."""
    made = lease.corrections
    if Correction.FETCH_AGAIN in made:
        made = made[made.index(Correction.FETCH_AGAIN) + 1 :]
    return len(made)


def verified(lease: Lease, view: NodeView, limits: FleetLimits) -> Advance | GiveBack:
    """It passed the checks. Its speed decides whether it serves, serves as degraded, or goes back."""
    predicted, floor = lease.plan.speed.decode_tokens_per_s, lease.plan.min_tokens_per_s
    speed, how = _comparable_speed(view)
    reason, degraded = "it answered what it was asked", ""
    if speed is not None:
        told = f"{speed:.1f} tok/s {how}, {predicted:.1f} predicted"
        is_far_below = speed < predicted * limits.give_back_share
        if is_far_below or speed < floor * limits.floor_tolerance:
            text = f"it is too slow: {told}" + ("" if is_far_below else f", and at least {floor:.1f} wanted")
            return GiveBack(lease.lease_id, text, blocks_host=True, cause=Cause.TOO_SLOW)
        if speed < max(predicted * limits.degraded_share, floor):
            degraded = told
        reason += f"; degraded: {told}" if degraded else f"; {told}"
    return Advance(
        lease.lease_id,
        Phase.SERVING,
        reason,
        measured_tokens_per_s=view.measured_tokens_per_s,
        measured_together_tokens_per_s=view.measured_together_tokens_per_s,
        measured_streams=view.measured_streams,
        engine_is_simulated=view.engine_is_simulated,
        degraded=degraded,
    )


def _comparable_speed(view: NodeView) -> tuple[float | None, str]:
    """What may be held against the prediction, and how it was had; None where nothing may."""
    if view.simulated_tokens_per_s is not None:
        return view.simulated_tokens_per_s, "simulated"
    return (view.measured_tokens_per_s if view.speed_is_comparable else None), "measured"


def _why(view: NodeView) -> str:
    job = view.job
    if view.job_diagnosis:
        why = view.job_diagnosis
    elif job is None:
        why = view.trouble or "the job ended"
    else:
        code = f" (exit code {job.exit_code})" if job.exit_code is not None else ""
        why = f"the job was {job.state}{code}"
    # The log goes with the server: its end is all that will be left of it.
    last = next((line for line in reversed(job.log_tail) if line), "") if job is not None else ""
    if last and last not in why:
        why = f"{why} (its last words: {clean_line(last, max_chars=200)})"
    return why


# -- the next plan


def is_counted(lease: Lease, deployment: Deployment, now: datetime) -> bool:
    """True for a lease made since the user last said `deploy`. One from the future was made before our clock
    was set back, and before that word: counting it would give up at once, and again after each `deploy`."""
    since = deployment.attempts_since or deployment.created_at
    return lease.deployment_id == deployment.deployment_id and since <= lease.created_at <= now


def failures(deployment: Deployment, leases: Iterable[Lease], now: datetime) -> tuple[Lease, ...]:
    """Its leases that failed since its attempts are counted, oldest first."""
    mine = [
        lease
        for lease in leases
        if lease.cause is not None and lease.cause not in NOBODY_FAILED and is_counted(lease, deployment, now)
    ]
    return tuple(sorted(mine, key=lambda lease: (lease.created_at, lease.lease_id)))


def exclusions(deployment: Deployment, leases: Iterable[Lease], now: datetime) -> tuple[Exclusion, ...]:
    """What those failures tell about other servers."""
    return _exclusions(failures(deployment, leases, now))


def _exclusions(failed: Iterable[Lease]) -> tuple[Exclusion, ...]:
    found = (
        exclusion_of(lease.cause, lease.plan.offer, lease.plan.setup, cuda_found=lease.cuda_found)
        for lease in failed
        if lease.cause is not None
    )
    return tuple(dict.fromkeys(each for each in found if each is not None))


def would_fail_again(
    deployment: Deployment, leases: Iterable[Lease], now: datetime
) -> Callable[[Plan], bool]:
    """Of a plan: an exclusion covers it, or the same weights and image failed on the same server."""
    known = failures(deployment, leases, now)
    excluded = _exclusions(known)
    failed = {(lease.server_id, lease.plan.setup.image, lease.plan.setup.checkpoint) for lease in known}

    def fails(plan: Plan) -> bool:
        return (plan.offer.server_id, plan.setup.image, plan.setup.checkpoint) in failed or any(
            each.matches(plan.offer, plan.setup) for each in excluded
        )

    return fails


def tried(
    deployment: Deployment, leases: Iterable[Lease], segments: Iterable[LedgerSegment], now: datetime
) -> str:
    """What was tried, what it cost, and what to change; "" when nothing failed."""
    failed = failures(deployment, leases, now)
    if not failed:
        return ""
    costs = {lease.lease_id: Decimal(0) for lease in failed}
    for segment in segments:
        if segment.lease_id in costs:
            costs[segment.lease_id] += segment.cost_usd(now)
    lines = [
        f"server {lease.server_id} ({lease.plan.offer.gpu_summary}, {lease.plan.setup.checkpoint} in "
        f"{lease.plan.setup.engine}, ${format_usd(costs[lease.lease_id])}): {_short(lease.reason)}"
        for lease in failed[-TRIED_SHOWN_MAX:]
    ]
    left_out = len(failed) - len(lines)
    if left_out:
        lines.insert(0, f"{left_out} earlier ones")
    last = failed[-1].cause
    change = _OTHERWISE if last is None else _ADVICE.get(last, _OTHERWISE)
    return (
        f"Tried for ${format_usd(sum(costs.values(), Decimal(0)))} in all: {'; '.join(lines)}. "
        f"What may help: {change}."
    )


def _short(reason: str) -> str:
    return clean_line(reason, max_chars=160).rstrip(".")


# -- hedging


def hedge_slots(deployment: Deployment, leases: Iterable[Lease]) -> list[int]:
    """Slots for which a second server may be rented: one is under way, and none is ready."""
    if not deployment.requirement.hedge:
        return []
    living: dict[int, list[Lease]] = {}
    for lease in leases:
        if is_held(lease):
            living.setdefault(lease.slot, []).append(lease)
    return [
        slot
        for slot, there in sorted(living.items())
        if len(there) == 1 and there[0].phase is not Phase.SERVING and there[0].state is LeaseState.ORDERED
    ]


def why_superseded(lease: Lease, leases: Iterable[Lease]) -> str:
    """Another server of the same slot is ready: this one is not needed; "" while it is. `leases` are at least
    those of its slot.

    Where both are ready, exactly one is kept, however close they were: the one that answers, then the one
    that was ready first. A server that was rented to follow another is not a hedge: see `moves`.
    """
    is_late = any(
        other.deployment_id == lease.deployment_id
        and other.slot == lease.slot
        and other.lease_id not in (lease.lease_id, lease.replaces)
        and other.replaces != lease.lease_id
        and other.phase is Phase.SERVING
        and is_held(other)
        and (lease.phase is not Phase.SERVING or _readiness(other) < _readiness(lease))
        for other in leases
    )
    return "the other of two servers was ready first" if is_late else ""


def _readiness(lease: Lease) -> tuple[bool, datetime, LeaseId]:
    return lease.unhealthy_since is not None, lease.phase_since, lease.lease_id
