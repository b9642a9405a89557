"""What a fleet file would change, which way each change moves the spending, and what may be done without
asking. Pure.

Two ways lead from a file to the store, and money is the difference between them:

- `clorefleet apply` shows every change with its cost, asks, and does all of it.
- The daemon *follows* an edited file by itself, but only what can do nothing but spend less: a lower
  ceiling, fewer replicas, `enabled = false`. A deployment that is missing from the file is not stopped by
  that: half a file, as an editor may leave it for a moment, must not end what people use. Everything else
  waits for `apply`. And only what the edit changed: `clorefleet scale` and `budget` set what the file does
  not say, until its next `apply`, and another comment in it says nothing about that.

Deployments that `clorefleet deploy` made are not the file's: one of the same name is a conflict, resolved
only by being told (`apply --take NAME`), and those that the file does not name are never touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from clorefleet.domain.deployment import Deployment, Desired, Origin
from clorefleet.domain.fleet_file import DeploymentWish, FleetFile
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.money import Budget
from clorefleet.domain.plan import Requirement


class Kind(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    STOP = "stop"
    CEILING = "ceiling"
    """The fleet's own budget."""
    CONFLICT = "conflict"
    """The name belongs to a deployment that `clorefleet deploy` made."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that changes; `lowers` is true when it can do nothing but lower spending."""

    key: str
    before: str
    after: str
    lowers: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    kind: Kind
    deployment_id: DeploymentId | None
    """None for the fleet's budget."""
    differences: tuple[Difference, ...]
    after: Deployment | None = None
    """As it would be stored."""
    before: Deployment | None = None

    @property
    def lowers(self) -> bool:
        """True when all of it can do nothing but lower spending."""
        return bool(self.differences) and all(each.lowers for each in self.differences)


@dataclass(frozen=True, slots=True)
class Changes:
    """All that a file would change, in the file's order, stops last."""

    changes: tuple[Change, ...]
    fleet_budget: Budget | None
    """The fleet's ceiling afterwards."""

    @property
    def conflicts(self) -> tuple[Change, ...]:
        return tuple(each for each in self.changes if each.kind is Kind.CONFLICT)


def changes(
    file: FleetFile,
    stored: Iterable[Deployment],
    fleet_budget: Budget | None,
    *,
    now: datetime,
    taken: frozenset[str] = frozenset(),
) -> Changes:
    """What `apply` of `file` would do.

    Args:
        fleet_budget: the ceiling in force; a file that names none leaves it.
        taken: names of `deploy`'s deployments that the file may take over.
    """
    known = {each.deployment_id: each for each in stored}
    found = []
    if file.budget is not None and file.budget != fleet_budget:
        found.append(_ceiling(fleet_budget, file.budget))
    for wish in file.deployments:
        before = known.get(wish.deployment_id)
        if before is None:
            # A deployment that is disabled from the start is nothing yet.
            if wish.is_enabled:
                made = _made(wish, now)
                found.append(Change(Kind.CREATE, wish.deployment_id, _all_of(made), made))
            continue
        is_foreign = before.origin is Origin.COMMAND and before.desired is Desired.RUNNING
        if is_foreign and wish.deployment_id not in taken:
            found.append(Change(Kind.CONFLICT, wish.deployment_id, (), before=before))
            continue
        after = _updated(before, wish, now)
        differences = _differences(before, after)
        if differences:
            found.append(Change(Kind.UPDATE, wish.deployment_id, differences, after, before))
    named = {wish.deployment_id for wish in file.deployments}
    for deployment in known.values():
        is_ours = deployment.origin is Origin.FILE and deployment.desired is Desired.RUNNING
        if is_ours and deployment.deployment_id not in named:
            gone = Difference("enabled", "yes", "not in the file any more")
            after = replace(deployment, desired=Desired.STOPPED, note="", has_given_up=False)
            found.append(Change(Kind.STOP, deployment.deployment_id, (gone,), after, deployment))
    return Changes(tuple(found), file.budget or fleet_budget)


def followed(
    file: FleetFile,
    stored: Iterable[Deployment],
    fleet_budget: Budget | None,
    *,
    said: FleetFile | None = None,
) -> Changes:
    """The part of an edited file that can do nothing but lower spending, of the file's own deployments.

    Args:
        said: the file before it was edited; None where nobody knows, so that all of it counts.
    """
    found = []
    is_new = said is None or file.budget != said.budget
    if is_new and file.budget is not None and fleet_budget is not None and file.budget != fleet_budget:
        lower = _ceiling(fleet_budget, file.budget)
        if lower.lowers:
            found.append(lower)
    wishes = {wish.deployment_id: wish for wish in file.deployments}
    earlier = {} if said is None else {wish.deployment_id: wish for wish in said.deployments}
    for before in stored:
        wish = wishes.get(before.deployment_id)
        if wish is None or before.origin is not Origin.FILE or before.desired is not Desired.RUNNING:
            continue
        after = _lowered(before, wish, earlier.get(before.deployment_id))
        if after != before:
            differences = _differences(before, after)
            found.append(Change(Kind.UPDATE, before.deployment_id, differences, after, before))
    ceiling = found[0] if found and found[0].kind is Kind.CEILING else None
    return Changes(tuple(found), file.budget if ceiling else fleet_budget)


def _ceiling(before: Budget | None, after: Budget) -> Change:
    lowers = before is None or _is_at_most(after, before)
    return Change(
        Kind.CEILING, None, (Difference("budget", str(before) if before else "none", str(after), lowers),)
    )


def _is_at_most(one: Budget, other: Budget) -> bool:
    return one.per_day.amount <= other.per_day.amount


def _made(wish: DeploymentWish, now: datetime) -> Deployment:
    return Deployment(
        deployment_id=wish.deployment_id,
        requirement=wish.requirement,
        replicas=wish.replicas,
        desired=Desired.RUNNING if wish.is_enabled else Desired.STOPPED,
        created_at=now,
        replicas_max=wish.replicas_max,
        schedule=wish.schedule,
        scale=wish.scale,
        idle=wish.idle,
        consolidate=wish.consolidate,
        origin=Origin.FILE,
    )


def _updated(before: Deployment, wish: DeploymentWish, now: datetime) -> Deployment:
    wished = _made(wish, now)
    after = replace(
        wished,
        created_at=before.created_at,
        attempts_max=before.attempts_max,
        attempts_since=before.attempts_since,
        note=before.note,
        has_given_up=before.has_given_up,
        start_up_estimate=before.start_up_estimate,
    )
    is_other = replace(after, desired=before.desired, origin=before.origin) != before
    starts = after.desired is Desired.RUNNING and before.desired is Desired.STOPPED
    if starts or (before.has_given_up and is_other):
        after = replace(after, note="", has_given_up=False, attempts_since=now)
    if after.desired is Desired.STOPPED:
        after = replace(after, note="", has_given_up=False)
    return after


def _lowered(before: Deployment, wish: DeploymentWish, said: DeploymentWish | None) -> Deployment:
    """`before` with what `wish` lowers of it, where it is not what was `said` before."""
    after = before
    own, other = before.requirement.budget, wish.requirement.budget
    is_new = said is None or other != said.requirement.budget
    if is_new and own is not None and other is not None and own != other and _is_at_most(other, own):
        after = replace(after, requirement=replace(after.requirement, budget=other))
    if said is None or (wish.replicas, wish.replicas_max) != (said.replicas, said.replicas_max):
        bounds = before.bounds
        most = min(bounds.replicas_max, max(wish.replicas, wish.replicas_max or 0))
        least = min(bounds.replicas_min, wish.replicas)
        if (least, most) != (bounds.replicas_min, bounds.replicas_max):
            after = replace(after, replicas=least, replicas_max=most if most > least else None)
    if not wish.is_enabled and (said is None or said.is_enabled):
        after = replace(after, desired=Desired.STOPPED, note="", has_given_up=False)
    return after


# -- in words

_FIELDS = {
    "model": "model",
    "checkpoints": "weights",
    "objective": "prefer",
    "precisions": "precisions",
    "min_context_tokens": "min_context",
    "min_decode_tokens_per_s": "min_speed",
    "min_reliability": "min_reliability",
    "countries": "countries",
    "gpu": "gpu",
    "spot": "spot",
    "spot_only": "spot only",
}


def _differences(before: Deployment, after: Deployment) -> tuple[Difference, ...]:
    found = []
    if before.origin is not after.origin:
        found.append(Difference("kept by", "clorefleet deploy", "this file"))
    if before.desired is not after.desired:
        stops = after.desired is Desired.STOPPED
        found.append(Difference("enabled", "yes" if stops else "no", "no" if stops else "yes", stops))
    old, new = before.requirement, after.requirement
    for field, key in _FIELDS.items():
        one, other = getattr(old, field), getattr(new, field)
        if one != other:
            found.append(Difference(key, _shown(one), _shown(other)))
    if old.budget != new.budget:
        lowers = old.budget is None or (new.budget is not None and _is_at_most(new.budget, old.budget))
        found.append(Difference("budget", _shown(old.budget), _shown(new.budget), lowers))
    one, other = before.bounds, after.bounds
    if one != other:
        lowers = other.replicas_min <= one.replicas_min and other.replicas_max <= one.replicas_max
        found.append(Difference("replicas", _replicas(before), _replicas(after), lowers))
    for key in ("schedule", "scale", "idle", "consolidate"):
        one, other = getattr(before, key), getattr(after, key)
        if one != other:
            found.append(Difference(key, _policy(before, key), _policy(after, key)))
    return tuple(found)


def _all_of(made: Deployment) -> tuple[Difference, ...]:
    """A new deployment, line by line."""
    requirement = made.requirement
    found = [
        ("model", requirement.model),
        ("budget", _shown(requirement.budget)),
        ("replicas", _replicas(made)),
    ]
    default = Requirement(requirement.model)
    for field, key in _FIELDS.items():
        if key != "model" and getattr(requirement, field) != getattr(default, field):
            found.append((key, _shown(getattr(requirement, field))))
    policies = ("schedule", "scale", "idle", "consolidate")
    found += [(key, _policy(made, key)) for key in policies if getattr(made, key) is not None]
    return tuple(Difference(key, "", text) for key, text in found)


def _replicas(deployment: Deployment) -> str:
    bounds = deployment.bounds
    if bounds.replicas_min == bounds.replicas_max:
        return str(bounds.replicas_min)
    return f"{bounds.replicas_min} to {bounds.replicas_max}"


def _policy(deployment: Deployment, key: str) -> str:
    if key == "schedule" and deployment.schedule is not None:
        schedule = deployment.schedule
        names = [window.name for window in schedule.windows] + [each.name for each in schedule.exceptions]
        return f"{', '.join(names) or 'no windows'} ({schedule.zone})"
    if key == "scale" and deployment.scale is not None:
        return f"to {deployment.scale.target:.0%} of capacity"
    if key == "idle" and deployment.idle is not None:
        minutes = deployment.idle.after / timedelta(minutes=1)
        return f"down to {deployment.idle.floor} after {minutes:g} min"
    if key == "consolidate" and deployment.consolidate is not None:
        return f"to a cheaper server where that earns its cost and {deployment.consolidate.margin:.0%} of it"
    return "none"


def _shown(value: object) -> str:
    if value is None or value == () or value == "":
        return "any"
    if isinstance(value, tuple):
        return ", ".join(str(each) for each in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
