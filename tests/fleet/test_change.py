"""What a fleet file would change; and what the daemon may follow without asking: only what spends less."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clorefleet.domain.alert import NotifyPolicy
from clorefleet.domain.deployment import Deployment, Desired, IdlePolicy, Origin, ScalePolicy
from clorefleet.domain.fleet_file import DeploymentWish, FleetFile
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.money import parse_budget
from clorefleet.domain.plan import Requirement
from clorefleet.domain.schedule import Bounds, Schedule, Window, daily_at
from clorefleet.fleet.change import Change, Kind, changes, followed
from tests.fleet.builders import NOW, deployment

DAY = Window("day", daily_at(480), Bounds(2, 2), until_minute=1080)


def wish(name: str = "tiny", budget: str = "16/day", **more: object) -> DeploymentWish:
    model = more.pop("model", "smollm2-135m")
    return DeploymentWish(DeploymentId(name), Requirement(model, parse_budget(budget)), **more)


def file(*wishes: DeploymentWish, budget: str = "") -> FleetFile:
    return FleetFile("f", "0", parse_budget(budget) if budget else None, wishes, NotifyPolicy())


def kept(**more: object) -> Deployment:
    return deployment(origin=Origin.FILE, **more)


def found(file_: FleetFile, *stored: Deployment, budget: str = "", **more: object) -> list[Change]:
    ceiling = parse_budget(budget) if budget else None
    return list(changes(file_, stored, ceiling, now=NOW, **more).changes)


def test_a_new_deployment_is_created_and_kept_by_the_file():
    [change] = found(file(wish()))
    assert change.kind is Kind.CREATE and change.after.origin is Origin.FILE
    assert change.after.desired is Desired.RUNNING and not change.lowers


def test_a_file_that_says_what_is_there_changes_nothing():
    assert found(file(wish()), kept()) == []


def test_applying_what_was_found_leaves_nothing_to_find():
    written = file(
        wish(replicas=2, scale=ScalePolicy(), replicas_max=3), wish("other", "3/day"), budget="9/day"
    )
    before = (kept(), kept(deployment_id=DeploymentId("gone")))
    applied = {each.deployment_id: each for each in before}
    for change in found(written, *before):
        if change.after is not None:
            applied[change.deployment_id] = change.after
    assert found(written, *applied.values(), budget="9/day") == []


@pytest.mark.parametrize(
    ("changed", "key", "before", "after"),
    [
        ({"budget": "20/day"}, "budget", "$16/day", "$20/day"),
        ({"replicas": 1, "replicas_max": 4}, "replicas", "1", "1 to 4"),
        ({"model": "glm-5.1"}, "model", "smollm2-135m", "glm-5.1"),
        ({"idle": IdlePolicy(timedelta(minutes=30))}, "idle", "none", "down to 0 after 30 min"),
        ({"schedule": Schedule("UTC", (DAY,))}, "schedule", "none", "day (UTC)"),
        ({"is_enabled": False}, "enabled", "yes", "no"),
    ],
)
def test_what_differs_is_named_as_in_the_file(changed: dict, key: str, before: str, after: str):
    [change] = found(file(wish(**changed)), kept())
    assert [(d.key, d.before, d.after) for d in change.differences] == [(key, before, after)]


def test_a_deployment_that_left_the_file_is_stopped():
    [change] = found(file(), kept())
    assert change.kind is Kind.STOP and change.after.desired is Desired.STOPPED


def test_what_deploy_made_is_never_touched_unless_the_user_says_so():
    made = deployment()
    assert found(file(), made) == []
    [conflict] = found(file(wish(budget="99/day")), made)
    assert conflict.kind is Kind.CONFLICT and conflict.after is None
    [taken] = found(file(wish(budget="99/day")), made, taken=frozenset({"tiny"}))
    assert taken.kind is Kind.UPDATE and taken.after.origin is Origin.FILE


def test_what_deploy_made_and_the_user_stopped_may_be_taken():
    [change] = found(file(wish()), deployment(desired=Desired.STOPPED))
    assert change.kind is Kind.UPDATE and change.after.desired is Desired.RUNNING


def test_a_deployment_that_gave_up_is_tried_afresh_when_its_wish_changes():
    gave_up = kept(note="5 servers were tried", has_given_up=True)
    assert found(file(wish()), gave_up) == []
    [change] = found(file(wish(budget="20/day")), gave_up)
    assert not change.after.has_given_up and change.after.attempts_since == NOW and change.after.note == ""


def test_the_fleets_ceiling_is_changed_by_name_and_left_where_the_file_names_none():
    [change] = found(file(budget="50/day"), budget="40/day")
    assert change.kind is Kind.CEILING and not change.lowers
    assert found(file(), budget="40/day") == []


# -- what the daemon follows by itself


def follow(file_: FleetFile, *stored: Deployment, budget: str = "") -> list[Change]:
    return list(followed(file_, stored, parse_budget(budget) if budget else None).changes)


@pytest.mark.parametrize(
    "edit",
    [
        {"budget": "20/day"},
        {"replicas": 3},
        {"replicas": 2, "replicas_max": 9},
        {"model": "glm-5.1"},
        {"schedule": Schedule("UTC", (DAY,))},
        {"scale": ScalePolicy()},
        {"idle": IdlePolicy(timedelta(minutes=5))},
    ],
)
def test_an_edit_that_may_spend_more_waits_for_apply(edit: dict):
    assert follow(file(wish(**{"replicas": 2} | edit)), kept(replicas=2)) == []


def test_an_edit_that_spends_less_is_followed():
    edit = wish(budget="3/day", replicas=1)
    [change] = follow(file(edit), kept(replicas=2))
    assert change.lowers and change.after.requirement.budget == parse_budget("3/day")
    assert change.after.bounds == Bounds(1, 1)


def test_of_a_mixed_edit_only_the_part_that_spends_less_is_followed():
    [change] = follow(file(wish(budget="99/day", replicas=1, model="glm-5.1")), kept(replicas=2))
    assert change.after == replace(kept(replicas=2), replicas=1)


def test_a_missing_deployment_is_not_stopped_and_a_new_one_not_started():
    assert follow(file(wish("new")), kept()) == []


def test_switching_off_is_followed_and_switching_on_is_not():
    [off] = follow(file(wish(is_enabled=False)), kept())
    assert off.after.desired is Desired.STOPPED
    assert follow(file(wish()), kept(desired=Desired.STOPPED)) == []


def test_what_deploy_made_is_not_followed():
    assert follow(file(wish(budget="1/day")), deployment()) == []


LOW = {"budget": "3/day", "replicas": 1, "is_enabled": False}
HIGH = {"budget": "16/day", "replicas": 2, "is_enabled": True}


@pytest.mark.parametrize(
    ("key", "followed_keys"),
    [
        ("budget", {"replicas", "enabled"}),
        ("replicas", {"budget", "enabled"}),
        ("is_enabled", {"budget", "replicas"}),
    ],
)
def test_what_the_file_said_before_is_not_followed_again(key: str, followed_keys: set):
    """Another command has raised it since."""
    said, edited = file(wish(**HIGH | {key: LOW[key]})), file(wish(**LOW))
    [change] = followed(edited, [kept(replicas=2)], None, said=said).changes
    assert {each.key for each in change.differences} == followed_keys
    assert followed(edited, [kept(replicas=2)], None, said=edited).changes == ()


def test_a_fleets_ceiling_that_the_file_named_before_is_not_followed_again():
    said = file(budget="30/day")
    assert followed(said, (), parse_budget("40/day"), said=said).changes == ()
    assert len(followed(said, (), parse_budget("40/day"), said=file(budget="35/day")).changes) == 1


def test_the_fleets_ceiling_is_followed_downwards_only():
    assert len(follow(file(budget="30/day"), budget="40/day")) == 1
    assert follow(file(budget="50/day"), budget="40/day") == []


_BOUNDS = st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted)
_WISHES = st.builds(
    lambda b, amount, on, model: wish(
        budget=f"{amount}/day", replicas=b[0], replicas_max=b[1] or None, is_enabled=on, model=model
    ),
    _BOUNDS,
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from(["smollm2-135m", "glm-5.1"]),
)


@given(_WISHES, _BOUNDS, st.integers(1, 40))
def test_following_never_raises_a_bound_or_a_ceiling(edit: DeploymentWish, bounds: list[int], amount: int):
    least, most = bounds
    before = kept(replicas=least, replicas_max=max(least, most), budget=f"{amount}/day")
    for change in follow(file(edit), before):
        after = change.after
        assert change.lowers
        assert after.bounds.replicas_min <= before.bounds.replicas_min
        assert after.bounds.replicas_max <= before.bounds.replicas_max
        assert after.requirement.budget.per_day.amount <= Decimal(amount)
        assert replace(after.requirement, budget=before.requirement.budget) == before.requirement
