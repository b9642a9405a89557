"""How many replicas of a deployment are wanted now, and why. Pure; the one place that weighs the reasons.

In order of rank:

1. A stopped deployment wants none.
2. The *bounds* come from the schedule's window in force, else from the deployment itself.
3. *Load* chooses between the bounds. While it cannot say (no metrics yet, a daemon that has just started)
   what is held stays, within the bounds: not knowing is no reason to start or stop anything.
4. *Idle* lowers the deployment's own minimum to the policy's floor. It never lowers a window's: who names
   an hour wants the replicas to be there before the first request comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from clorefleet.domain.deployment import Deployment, Desired
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.schedule import Bounds
from clorefleet.domain.wanted import IdleDecision, LoadDecision, Wanted
from clorefleet.fleet.schedule import Scheduled, StartUp, scheduled

_NO_START_UP = StartUp()
_ASKED_TO_STOP = "you asked to stop"


def bounds_of(
    deployment: Deployment, now: datetime, *, held: int = 0, start_up: StartUp = _NO_START_UP
) -> Scheduled:
    """The bounds that load may move between at `now`."""
    if deployment.schedule is None:
        return Scheduled(deployment.bounds, "", None)
    return scheduled(deployment.schedule, deployment.bounds, now, start_up=start_up, held=held)


def wanted(
    deployment: Deployment,
    now: datetime,
    *,
    held: int = 0,
    load: LoadDecision | None = None,
    idle: IdleDecision | None = None,
    start_up: StartUp = _NO_START_UP,
) -> Wanted:
    """What is wanted at `now`.

    Args:
        held: replicas that serve or may come to serve.
        load: None while nothing can be said about load; ignored without a scale policy.
        idle: None while nothing can be said about use; ignored without an idle policy.
        start_up: how long a start takes, and the dip that is not worth a stop.
    """
    if deployment.desired is Desired.STOPPED:
        return Wanted(0, _ASKED_TO_STOP)
    if _is_wish_alone(deployment):
        return Wanted(deployment.replicas, f"you asked for {deployment.replicas}")
    in_force = bounds_of(deployment, now, held=held, start_up=start_up)
    bounds = in_force.bounds
    is_idle = deployment.idle is not None and idle is not None and idle.is_idle
    if is_idle and deployment.idle is not None and idle is not None and not in_force.reason:
        floor = min(deployment.idle.floor, bounds.replicas_min)
        return Wanted(floor, idle.reason, in_force.until)
    if bounds.replicas_min == bounds.replicas_max or deployment.scale is None:
        return Wanted(bounds.replicas_min, in_force.reason or _asked(bounds), in_force.until)
    if load is None:
        replicas = bounds.clamped(held)
        return Wanted(replicas, in_force.reason or "the load is not known yet", in_force.until)
    replicas = bounds.clamped(load.replicas)
    reason = load.reason
    if replicas > load.replicas:
        reason = in_force.reason or f"at least {bounds.replicas_min} are kept"
    elif replicas < load.replicas:
        reason = f"{load.reason}; at most {bounds.replicas_max} are allowed"
    return Wanted(replicas, reason, in_force.until)


def as_wished(
    deployments: Iterable[Deployment], last: Mapping[DeploymentId, Wanted], now: datetime
) -> dict[DeploymentId, Wanted]:
    """What was last found to be wanted, for whoever shows it before the next tick has read a newer wish;
    without the deployments of which nothing is known that still holds."""
    found = (
        (each.deployment_id, _as_wished(each, last.get(each.deployment_id), now)) for each in deployments
    )
    return {name: wanted for name, wanted in found if wanted is not None}


def _as_wished(deployment: Deployment, last: Wanted | None, now: datetime) -> Wanted | None:
    if last is None:
        return None
    if deployment.desired is Desired.STOPPED or _is_wish_alone(deployment):
        return wanted(deployment, now)
    return None if last.reason == _ASKED_TO_STOP else last


def _is_wish_alone(deployment: Deployment) -> bool:
    return deployment.schedule is None and deployment.scale is None and deployment.idle is None


def asleep(deployment: Deployment, last: Wanted | None, now: datetime) -> bool:
    """Whether it rests because nobody used it, so that asking for it wakes it; `last` is what was last found
    to be wanted. A schedule that holds it down, and bounds of none, are not woken from."""
    may_sleep = deployment.idle is not None or (deployment.scale is not None and deployment.replicas == 0)
    if not may_sleep or deployment.desired is Desired.STOPPED or last is None or last.replicas > 0:
        return False
    return bounds_of(deployment, now).bounds.replicas_max > 0


def _asked(bounds: Bounds) -> str:
    return f"you asked for {bounds.replicas_min}"
