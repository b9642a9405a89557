"""How many replicas are wanted, and which leases make them up."""

from __future__ import annotations

from datetime import timedelta

import pytest

from clorefleet.domain.deployment import Desired, IdlePolicy, ScalePolicy
from clorefleet.domain.identity import DeploymentId, LeaseId, ServerId
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.money import parse_budget
from clorefleet.domain.plan import Requirement
from clorefleet.domain.schedule import Bounds, Schedule, Window, daily_at
from clorefleet.domain.wanted import IdleDecision, LoadDecision, Wanted
from clorefleet.fleet.action import GiveBack, NoteWanted, Rent
from clorefleet.fleet.reconcile import reconcile
from clorefleet.fleet.slots import empty_slots, surplus
from clorefleet.fleet.wanted import as_wished, wanted
from tests.fleet.builders import NOW, deployment, lease, order, orders, plan, report, snapshot

NOON_TO_THREE = Window("lunch", daily_at(12 * 60), Bounds(3, 3), until_minute=15 * 60)
IN_WINDOW = Schedule("UTC", (NOON_TO_THREE,))
IDLE = IdlePolicy(timedelta(minutes=20))
SCALED = ScalePolicy()
UNUSED = IdleDecision(True, "no request for 20 min")

CASES = {
    "what the user asked for": ({"replicas": 2}, {}, 2),
    "nothing of a stopped deployment": ({"desired": Desired.STOPPED}, {}, 0),
    "what the window in force says": ({"schedule": IN_WINDOW}, {}, 3),
    "load between the bounds": (
        {"scale": SCALED, "replicas_max": 4},
        {"load": LoadDecision(3, "12 requests wait")},
        3,
    ),
    "never above the upper bound": (
        {"scale": SCALED, "replicas_max": 4},
        {"load": LoadDecision(9, "12 requests wait")},
        4,
    ),
    "never below the lower bound": (
        {"scale": SCALED, "replicas": 2, "replicas_max": 4},
        {"load": LoadDecision(0, "quiet")},
        2,
    ),
    "what is held while the load is unknown": ({"scale": SCALED, "replicas_max": 4}, {"held": 3}, 3),
    "the lower bound where load has no say": ({"replicas_max": 4}, {"load": LoadDecision(3, "busy")}, 1),
    "the floor when nobody uses it": ({"idle": IDLE, "replicas": 2}, {"idle": UNUSED}, 0),
    "no idle rule, no idleness": ({"replicas": 2}, {"idle": UNUSED}, 2),
    "a window is not idled away": ({"idle": IDLE, "schedule": IN_WINDOW}, {"idle": UNUSED}, 3),
}


@pytest.mark.parametrize(("changes", "said", "replicas"), CASES.values(), ids=CASES)
def test_wanted(changes: dict, said: dict, replicas: int):
    found = wanted(deployment(**changes), NOW, **said)
    assert found.replicas == replicas and found.reason


def test_of_too_many_leases_the_one_that_serves_is_kept_though_its_slot_is_higher():
    serving = lease(phase=Phase.SERVING, lease_id=LeaseId("b"), slot=1)
    starting = lease(phase=Phase.SYNCING, lease_id=LeaseId("a"), slot=0)
    assert surplus((starting, serving), 1) == (starting,)


@pytest.mark.parametrize(
    ("slots", "count", "empty"),
    [((), 2, [0, 1]), ((1,), 2, [0]), ((0, 1), 2, []), ((0, 1, 2), 1, []), ((5,), 3, [0, 1])],
)
def test_the_lowest_free_slots_are_filled_up_to_the_wanted_number(slots: tuple, count: int, empty: list):
    held = [lease(phase=Phase.SERVING, lease_id=LeaseId(str(slot)), slot=slot) for slot in slots]
    assert empty_slots(held, count) == empty


def test_a_server_that_is_leaving_fills_no_slot():
    leaving = lease(LeaseState.ENDING, Phase.DRAINING)
    assert empty_slots((leaving,), 1) == [0] and surplus((leaving,), 0) == ()


TINY = DeploymentId("tiny")


def test_reconcile_gives_back_what_is_no_longer_wanted_and_says_why():
    serving = lease(phase=Phase.SERVING)
    none = Wanted(0, "no request for 20 min")
    actions = reconcile(snapshot(leases=(serving,), orders=orders(order()), wanted={TINY: none}))
    assert GiveBack(serving.lease_id, "0 replica(s) are wanted: no request for 20 min") in actions
    assert NoteWanted(TINY, none) in actions


def test_reconcile_rents_up_to_what_is_wanted_now():
    serving = lease(phase=Phase.SERVING)
    two = Wanted(2, "window “day”")
    actions = reconcile(
        snapshot(
            leases=(serving,),
            orders=orders(order()),
            plans={TINY: report(plan(8))},
            wanted={TINY: two},
            wanted_before={TINY: two},
        )
    )
    [rent] = [each for each in actions if isinstance(each, Rent)]
    assert (rent.slot, rent.plan.offer.server_id) == (1, ServerId(8))
    assert not any(isinstance(each, NoteWanted) for each in actions)


def test_a_server_of_another_model_is_given_back():
    serving = lease(phase=Phase.SERVING)
    other = deployment(requirement=Requirement("glm-5.1", parse_budget("16/day")))
    actions = reconcile(snapshot(deployments=(other,), leases=(serving,), orders=orders(order())))
    assert GiveBack(serving.lease_id, "the deployment runs glm-5.1 now") in actions


# -- between a wish and the tick that reads it


STOPPED_THEN = wanted(deployment(desired=Desired.STOPPED), NOW)
LOADED_THEN = Wanted(3, "12 requests wait")


@pytest.mark.parametrize(
    ("wish", "last", "shown"),
    [
        pytest.param({"replicas": 2}, STOPPED_THEN, Wanted(2, "you asked for 2"), id="started again"),
        pytest.param(
            {"replicas": 2}, Wanted(1, "you asked for 1"), Wanted(2, "you asked for 2"), id="scaled"
        ),
        pytest.param({"idle": IDLE}, STOPPED_THEN, None, id="started again with an idle rule"),
        pytest.param({"scale": SCALED}, LOADED_THEN, LOADED_THEN, id="as load had it"),
        pytest.param({"scale": SCALED, "desired": Desired.STOPPED}, LOADED_THEN, STOPPED_THEN, id="stopped"),
        pytest.param({}, None, None, id="new"),
    ],
)
def test_what_is_shown_as_wanted_never_contradicts_what_is_wished_now(wish, last, shown):
    wished = deployment(**wish)
    known = {} if last is None else {wished.deployment_id: last}
    assert as_wished([wished], known, NOW).get(wished.deployment_id) == shown
