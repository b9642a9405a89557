"""From what a tick observed to what load and use have to say about each deployment. Pure.

`autoscale` and `idle` decide; this gathers their inputs from leases, looks at nodes, counts of the gateway
and the minutes that were written down before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from clorefleet.domain.deployment import Deployment, Desired, ScalePolicy
from clorefleet.domain.identity import DeploymentId, LeaseId
from clorefleet.domain.lease import Lease, Phase
from clorefleet.domain.load import MINUTE_S, LoadSample, LoadTaken
from clorefleet.domain.node import NodeView
from clorefleet.domain.wanted import IdleDecision, LoadDecision, Wanted
from clorefleet.fleet import autoscale, idle
from clorefleet.fleet.autoscale import Load, ScaleRule, StartCost
from clorefleet.fleet.consolidate import running_usd_per_day
from clorefleet.fleet.demand import Minutes, mean_tokens_per_request
from clorefleet.fleet.forecast import forecast
from clorefleet.fleet.slots import held
from clorefleet.planner.capacity import ReplicaCapacity
from clorefleet.planner.mix import capacity_of

GAP_MINUTES_MAX = 3
"""A quiet daemon may skip a minute between two ticks: nothing came in it. After a longer gap nobody knows."""
TOKENS_PER_REQUEST = 300.0
"""Weighted, before a request was seen [assumed]: a thousand tokens in, 250 out."""
DEFAULT_WAIT_S = 10.0
WOKEN = "you asked for it"
WOKEN_LEAST = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Record:
    """What was written down of one deployment before this tick."""

    minutes: tuple[LoadSample, ...] = ()
    """Oldest first, no further back than `autoscale.WINDOW_MAX`."""
    past: Mapping[int, float] | None = None
    """Mean demand by bucket of `forecast`; None where no policy asks for it."""


def follows(deployment: Deployment) -> bool:
    """Whether load or use has a say: only then is anything written down."""
    return deployment.desired is Desired.RUNNING and (
        deployment.scale is not None or deployment.idle is not None
    )


def this_minute(
    deployments: Iterable[Deployment],
    leases: Sequence[Lease],
    views: Mapping[LeaseId, NodeView],
    taken: LoadTaken,
    *,
    now: datetime,
) -> dict[DeploymentId, LoadSample]:
    """What each deployment did since the last tick, as a part of the minute of `now`."""
    by_lease = {each.lease_id: each for each in taken.replicas}
    minute = now.replace(second=0, microsecond=0)
    samples: dict[DeploymentId, LoadSample] = {}
    told: set[str] = set()
    for deployment in deployments:
        if not follows(deployment):
            continue
        mine = [lease for lease in leases if lease.deployment_id == deployment.deployment_id]
        counts = [by_lease[lease.lease_id] for lease in mine if lease.lease_id in by_lease]
        looks = [views[lease.lease_id] for lease in mine if lease.lease_id in views]
        # A request names a model: the first deployment of it answers for those that found no replica.
        away = 0 if deployment.model in told else taken.turned_away.get(deployment.model, 0)
        told.add(deployment.model)
        waits = [(each.first_byte_s, each.requests) for each in counts if each.first_byte_s is not None]
        answered = sum(count for _, count in waits)
        samples[deployment.deployment_id] = LoadSample(
            started_at=minute,
            length_s=MINUTE_S,
            requests=sum(each.requests for each in counts),
            turned_away=away,
            prompt_tokens=sum(each.prompt_tokens for each in counts),
            generated_tokens=sum(each.generated_tokens for each in counts),
            running=sum(max(each.in_flight, each.engine_running or 0) for each in looks),
            waiting=sum(each.engine_waiting or 0 for each in looks),
            serving=sum(1 for lease in mine if lease.phase is Phase.SERVING),
            first_byte_s=sum(wait * count for wait, count in waits) / answered if answered else None,
        )
    return samples


def whole_minutes(minutes: Iterable[LoadSample], *, now: datetime) -> list[LoadSample]:
    """The minutes up to `now` that nobody missed, each of full length; the one that `now` lies in is not
    over."""
    result: list[LoadSample] = []
    step = timedelta(seconds=MINUTE_S)
    for each in minutes:
        if each.started_at + step > now:
            break
        missing = int((each.started_at - result[-1].started_at) / step) - 1 if result else 0
        if missing > GAP_MINUTES_MAX:
            result.clear()
        else:
            before = result[-1] if result else each
            result.extend(
                LoadSample(before.started_at + step * n, MINUTE_S, serving=before.serving)
                for n in range(1, missing + 1)
            )
        result.append(each)
    return result


def load_decision(
    deployment: Deployment,
    leases: Sequence[Lease],
    record: Record,
    current: LoadSample | None,
    *,
    start_up: timedelta,
    now: datetime,
) -> LoadDecision | None:
    """None where the deployment does not scale, or while nothing is known of its load."""
    if deployment.scale is None:
        return None
    mine = held(lease for lease in leases if lease.deployment_id == deployment.deployment_id)
    if not mine:
        is_asked = current is not None and current.turned_away > 0
        if is_asked:
            return LoadDecision(1, "a request found no replica")
        return LoadDecision(1, WOKEN) if is_woken(deployment, start_up, now) else None
    minutes = whole_minutes(record.minutes, now=now)
    if not minutes:
        return None
    load = Load(
        minutes=Minutes.of(minutes),
        capacity=_capacity(mine),
        start=_start_cost(mine, start_up),
        ages=tuple(max(timedelta(0), now - lease.created_at) for lease in mine),
        tokens_per_request=mean_tokens_per_request(minutes[-60:], TOKENS_PER_REQUEST),
        forecast=forecast(record.past, now) if record.past and deployment.scale.forecast else None,
    )
    decision = autoscale.decide(rule_of(deployment.scale, deployment.bounds.replicas_max), load, now=now)
    return LoadDecision(decision.wanted, decision.reason)


def rule_of(policy: ScalePolicy, replicas_max: int) -> ScaleRule:
    wait = policy.time_to_first_token_max
    return ScaleRule(
        replicas_max=max(1, replicas_max),
        slo_wait_s=DEFAULT_WAIT_S if wait is None else wait.total_seconds(),
        target=float(policy.target),
        up_after=policy.up_after,
        down_after=policy.down_after,
    )


def idle_decision(
    deployment: Deployment,
    leases: Sequence[Lease],
    views: Mapping[LeaseId, NodeView],
    record: Record,
    current: LoadSample | None,
    before: Wanted | None,
    *,
    start_up: timedelta,
    now: datetime,
) -> IdleDecision | None:
    """None where the deployment has no idle rule. What sleeps goes on sleeping until it is asked for."""
    if deployment.idle is None:
        return None
    mine = held(lease for lease in leases if lease.deployment_id == deployment.deployment_id)
    if current is not None and current.turned_away > 0:
        return IdleDecision(False, "a request asks for it")
    if is_woken(deployment, start_up, now) and not any(lease.phase is Phase.SERVING for lease in mine):
        return IdleDecision(False, WOKEN)
    if not mine and before is not None and idle.is_sleep(before):
        return IdleDecision(True, before.reason)
    samples = [*record.minutes, *([] if current is None else [current])]
    use = idle.use_of(mine, views, [each for each in samples if each.started_at <= now])
    return idle.decide(deployment.idle.after, use, now=now)


def is_woken(deployment: Deployment, start_up: timedelta, now: datetime) -> bool:
    """The user asked for it while it slept, and it has not had the time of two starts since."""
    woken_at = deployment.woken_at
    return woken_at is not None and timedelta(0) <= now - woken_at < max(2 * start_up, WOKEN_LEAST)


def _capacity(leases: Sequence[Lease]) -> ReplicaCapacity:
    """Of a mean replica: predicted at full batch, corrected by how its measured speed compares with the
    predicted one."""
    tokens, places, measured = 0.0, 0, True
    for lease in leases:
        speed = lease.plan.speed
        ratio = 1.0
        if lease.measured_tokens_per_s and speed.decode_tokens_per_s:
            ratio = lease.measured_tokens_per_s / speed.decode_tokens_per_s
        else:
            measured = False
        tokens += max(capacity_of(lease.plan) * ratio, lease.measured_together_tokens_per_s or 0.0, 1e-3)
        places += lease.plan.setup.concurrency
    return ReplicaCapacity(tokens / len(leases), max(1, places // len(leases)), is_measured=measured)


def _start_cost(leases: Sequence[Lease], start_up: timedelta) -> StartCost:
    """Of the dearest of those that run: the next one to give back, or like the next one to rent."""
    dearest = max(leases, key=running_usd_per_day)
    price = dearest.plan.price
    return StartCost(
        ready_after_s=start_up.total_seconds(),
        usd_per_day=max(running_usd_per_day(dearest), Decimal("0.0001")),
        once_usd=price.creation_fee * price.usd_per_unit,
    )
