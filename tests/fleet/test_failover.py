"""What a failure teaches the next plan, and what is told when there is none. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from clorefleet.domain.failure import NOBODY_FAILED, Cause, Correction, blames_host, exclusion_of
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId, ServerId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.money import Rate
from clorefleet.domain.node import Discrepancy, JobReport, JobState, NodeView
from clorefleet.domain.plan import Requirement
from clorefleet.domain.recipe import EngineName
from clorefleet.fleet import failover
from clorefleet.fleet.action import Action, Advance, Explain, GiveBack, Rent, StartWork
from clorefleet.fleet.limits import DEFAULT_LIMITS
from clorefleet.fleet.reconcile import reconcile
from tests.fleet.builders import (
    FACTS,
    NOW,
    deployment,
    lease,
    minutes,
    offer,
    order,
    orders,
    plan,
    report,
    snapshot,
)

L1 = LeaseId("l1")
DIED = JobReport(JobState.FAILED, exit_code=1, log_tail=("loading", "boom"))
SGLANG_IMAGE = "lmsysorg/sglang:v0.5.23"


def sglang_plan(server_id: int = 7, **changes: Any):
    base = plan(server_id)
    setup = replace(
        base.setup,
        engine=EngineName.SGLANG,
        checkpoint="fp8",
        image=SGLANG_IMAGE,
        **changes.pop("setup", {}),
    )
    return replace(base, setup=setup, offer=offer(server_id, **changes))


def failed(cause: Cause, server_id: int = 7, **changes: Any) -> Lease:
    base = lease(
        LeaseState.ENDED,
        Phase.ENDED,
        plan=changes.pop("plan", sglang_plan(server_id)),
        lease_id=LeaseId(f"f{server_id}"),
        order_id=OrderId(server_id),
        cause=cause,
        reason=f"it failed by {cause}",
        created_at=NOW - minutes(30),
        ended_at=NOW - minutes(20),
    )
    return replace(base, **changes)


def after(view: NodeView, **changes: Any) -> list[Action]:
    held = lease(**{"phase": Phase.LAUNCHING, "launches": 1, **changes})
    return list(failover.restart(held, view, DEFAULT_LIMITS))


# -- here once more, or not


@pytest.mark.parametrize(
    "cause", [Cause.DRIVER_TOO_OLD, Cause.BAD_FLAG, Cause.UNAUTHORISED, Cause.OUT_OF_VRAM]
)
def test_what_would_end_the_same_way_is_not_paid_for_twice(cause: Cause):
    [given] = after(NodeView(job=DIED, job_cause=cause, job_diagnosis="why"))
    assert isinstance(given, GiveBack) and given.cause is cause


def test_what_may_have_been_chance_is_tried_once_more():
    [again] = after(NodeView(job=DIED, job_cause=Cause.UNKNOWN))
    assert isinstance(again, StartWork) and again.attempt == 2 and again.correction is None


def test_an_install_that_was_killed_is_started_again_and_one_that_cannot_work_is_not():
    lost = NodeView(job=JobReport(JobState.LOST))
    [again] = after(lost, phase=Phase.INSTALLING)
    assert isinstance(again, StartWork) and (again.phase, again.attempt) == (Phase.INSTALLING, 2)
    [given] = after(lost, phase=Phase.INSTALLING, launches=DEFAULT_LIMITS.job_attempts)
    assert isinstance(given, GiveBack)
    for cause, is_hosts in ((Cause.PACKAGE_NOT_FOUND, False), (Cause.DISK_FULL, True)):
        view = NodeView(job=DIED, job_cause=cause, job_diagnosis="why")
        [given] = after(view, phase=Phase.INSTALLING)
        assert isinstance(given, GiveBack) and (given.cause, given.blocks_host) == (cause, is_hosts)


def test_packages_that_cannot_be_installed_leave_out_their_base_image_and_engine_alone():
    base = sglang_plan(8)
    base = replace(base, setup=replace(base.setup, image="cloreai/ubuntu22.04-cuda12"))
    for cause in (Cause.PACKAGE_NOT_FOUND, Cause.BUILD_NEEDED):
        assert matches(cause, base, base)
        assert not matches(cause, base, sglang_plan(8)), "the engine's own image may do"
        other = replace(base, setup=replace(base.setup, engine=EngineName.VLLM))
        assert not matches(cause, base, other)


DAMAGED = NodeView(job=DIED, job_cause=Cause.BAD_CHECKPOINT, correction=Correction.FETCH_AGAIN)


def test_weights_that_the_engine_finds_damaged_are_fetched_again_and_launched_once_more():
    back, begin = after(DAMAGED)
    assert isinstance(back, Advance) and back.phase is Phase.SYNCING
    assert isinstance(begin, StartWork) and begin.phase is Phase.SYNCING
    assert begin.correction is Correction.FETCH_AGAIN
    # The jobs of the second round are others than those of the first, for whoever looks after a crash.
    once, again = lease(), lease(corrections=(Correction.FETCH_AGAIN,))
    for phase in (Phase.SYNCING, Phase.LAUNCHING):
        assert once.job_id(phase, 1) != again.job_id(phase, 1)


def test_weights_that_stay_damaged_after_that_are_given_up_and_no_host_is_blamed():
    view = replace(DAMAGED, correction=None)
    [given] = after(view, corrections=(Correction.FETCH_AGAIN,))
    assert isinstance(given, GiveBack) and given.cause is Cause.BAD_CHECKPOINT and not given.blocks_host


def test_after_fetching_again_a_launch_has_its_usual_number_of_tries():
    made = (Correction.LOWER_MEMORY_FRACTION, Correction.FETCH_AGAIN)
    view = NodeView(job=DIED, job_cause=Cause.UNKNOWN)
    [again] = after(view, corrections=made, launches=1)
    assert isinstance(again, StartWork)
    [given] = after(view, corrections=made, launches=2)
    assert isinstance(given, GiveBack)


def test_a_correction_is_another_launch_and_is_told():
    view = NodeView(
        job=DIED,
        job_cause=Cause.OUT_OF_VRAM,
        correction=Correction.LOWER_MEMORY_FRACTION,
        job_diagnosis="too small",
    )
    [again] = after(view, launches=2)
    assert isinstance(again, StartWork) and again.correction is Correction.LOWER_MEMORY_FRACTION
    assert "lower memory fraction" in again.reason
    [given] = after(view, launches=3, corrections=(Correction.LOWER_MEMORY_FRACTION,))
    assert isinstance(given, GiveBack)


def test_the_number_of_launches_is_bounded_whatever_a_host_makes_us_believe():
    """S15: a host that always names another cause gets each correction once, and the plain tries."""
    held, launches = lease(phase=Phase.LAUNCHING, launches=1), 1
    for number in range(100):
        view = NodeView(
            job=DIED, job_cause=Cause.UNKNOWN, correction=tuple(Correction)[number % len(Correction)]
        )
        *_, step = failover.restart(held, view, DEFAULT_LIMITS)
        if isinstance(step, GiveBack):
            break
        assert isinstance(step, StartWork)
        launches += 1
        made = () if step.correction is None else (step.correction,)
        held = replace(held, launches=step.attempt, corrections=(*held.corrections, *made))
    # Fetching again starts the count of plain tries once more.
    assert launches <= 2 * DEFAULT_LIMITS.launches + len(Correction)


def test_a_serving_engine_that_dies_goes_back_to_launching_first():
    steps = after(NodeView(job=DIED), phase=Phase.SERVING)
    assert [type(step) for step in steps] == [Advance, StartWork]


# -- verified, degraded, too slow


def after_verify(measured: float | None, **changes: Any) -> Advance | GiveBack:
    """Of a plan that predicts 100 tok/s."""
    view = NodeView(answered=True, measured_tokens_per_s=measured, **{"speed_is_comparable": True, **changes})
    return failover.verified(lease(phase=Phase.VERIFYING), view, DEFAULT_LIMITS)


def test_a_replica_far_below_its_prediction_is_given_back_with_both_figures():
    given = after_verify(20.0)
    assert isinstance(given, GiveBack) and given.cause is Cause.TOO_SLOW and given.blocks_host
    assert "20.0 tok/s measured, 100.0 predicted" in given.reason


def test_one_somewhat_below_serves_and_is_called_degraded():
    step = after_verify(50.0, measured_together_tokens_per_s=120.0, measured_streams=4)
    assert isinstance(step, Advance) and step.phase is Phase.SERVING
    assert "degraded: 50.0 tok/s measured, 100.0 predicted" in step.reason
    assert (step.measured_tokens_per_s, step.measured_together_tokens_per_s) == (50, 120)
    assert step.measured_streams == 4


@pytest.mark.parametrize(
    "floor, measured, step, is_degraded",
    [
        (80.0, 60.0, GiveBack, False),  # below what was asked for by more than a short measurement errs
        (80.0, 70.0, Advance, True),  # a little below it
        (80.0, 85.0, Advance, False),
        (0.0, 50.0, Advance, True),
        (0.0, 65.0, Advance, False),
    ],
)
def test_a_replica_below_the_speed_that_was_asked_for_goes_back_and_one_just_below_is_degraded(
    floor: float, measured: float, step: type, is_degraded: bool
):
    """The plan predicts 100 tok/s; the floor is --min-speed, else the recipe's."""
    held = lease(phase=Phase.VERIFYING, plan=replace(plan(), min_tokens_per_s=floor))
    view = NodeView(answered=True, measured_tokens_per_s=measured, speed_is_comparable=True)
    found = failover.verified(held, view, DEFAULT_LIMITS)
    assert isinstance(found, step), found
    if isinstance(found, GiveBack):
        assert found.blocks_host and found.cause is Cause.TOO_SLOW and "at least 80.0 wanted" in found.reason
    else:
        assert bool(found.degraded) is is_degraded


def test_in_the_sandbox_what_the_simulated_hardware_would_do_decides_and_not_this_machine():
    busy = {"speed_is_comparable": False, "engine_is_simulated": True}
    assert isinstance(after_verify(3.0, simulated_tokens_per_s=95.0, **busy), Advance)
    given = after_verify(90.0, simulated_tokens_per_s=20.0, **busy)
    assert isinstance(given, GiveBack) and "20.0 tok/s simulated" in given.reason
    step = after_verify(90.0, simulated_tokens_per_s=50.0, **busy)
    assert isinstance(step, Advance) and "simulated" in step.degraded and step.measured_tokens_per_s == 90


def test_one_near_its_prediction_serves_with_predicted_beside_measured():
    step = after_verify(90.0)
    assert isinstance(step, Advance) and "degraded" not in step.reason and "100.0 predicted" in step.reason


@pytest.mark.parametrize("measured, changes", [(1.0, {"speed_is_comparable": False}), (None, {})])
def test_a_speed_that_says_nothing_of_the_server_decides_nothing(measured: float | None, changes: dict):
    assert isinstance(after_verify(measured, **changes), Advance)


@pytest.mark.parametrize(
    "cause, launches, step",
    [
        (Cause.WRONG_ANSWERS, 1, StartWork),
        (Cause.WRONG_ANSWERS, 2, GiveBack),
        (Cause.GPU_DEAD, 1, StartWork),
        (Cause.TOOL_CALLS_DROPPED, 1, GiveBack),
        (Cause.NO_THINKING, 1, GiveBack),
    ],
)
def test_an_engine_that_runs_and_fails_its_checks_is_not_served(cause: Cause, launches: int, step: type):
    """F16."""
    held = lease(phase=Phase.VERIFYING, launches=launches)
    running = JobReport(JobState.RUNNING)
    view = NodeView(job=running, is_healthy=True, answered=False, job_cause=cause, job_diagnosis="why")
    found = reconcile(snapshot(leases=(held,), orders=orders(order()), nodes={L1: view}))
    assert not any(isinstance(each, Advance) and each.phase is Phase.SERVING for each in found)
    assert step in {type(each) for each in found}


def test_a_check_that_only_did_not_come_through_is_asked_again():
    held = lease(phase=Phase.VERIFYING, launches=1)
    view = NodeView(job=JobReport(JobState.RUNNING), is_healthy=True, answered=False, trouble="timed out")
    found = reconcile(snapshot(leases=(held,), orders=orders(order()), nodes={L1: view}))
    assert {type(each).__name__ for each in found} == {"NoteProgress"}


# -- what the next plan leaves out


def matches(cause: Cause, failed_plan: Any, next_plan: Any) -> bool:
    found = exclusion_of(cause, failed_plan.offer, failed_plan.setup)
    return found is not None and found.matches(next_plan.offer, next_plan.setup)


def test_a_driver_that_is_too_old_excludes_its_like_by_cuda():
    bad = sglang_plan(7, cuda_version=(12, 8))
    assert matches(Cause.DRIVER_TOO_OLD, bad, sglang_plan(8, cuda_version=(12, 8)))
    assert matches(Cause.DRIVER_TOO_OLD, bad, sglang_plan(8, cuda_version=(12, 4)))
    assert matches(Cause.DRIVER_TOO_OLD, bad, sglang_plan(8, cuda_version=None))
    assert not matches(Cause.DRIVER_TOO_OLD, bad, sglang_plan(8, cuda_version=(13, 0)))
    assert not matches(Cause.DRIVER_TOO_OLD, bad, plan(8)), "another image asks for another driver"


def test_what_was_measured_of_a_driver_excludes_and_not_what_its_offer_claimed():
    """It was offered with CUDA 13.2, and its driver turned out to be one for 12.4."""
    gone = failed(Cause.DRIVER_TOO_OLD, plan=sglang_plan(7, cuda_version=(13, 2)), cuda_found=(12, 4))

    def is_out(cuda: tuple[int, int]) -> bool:
        return failover.would_fail_again(deployment(), (gone,), NOW)(sglang_plan(8, cuda_version=cuda))

    assert is_out((12, 4)) and is_out((12, 2)) and not is_out((12, 8)) and not is_out((13, 0))


def test_a_server_given_back_at_its_probe_leaves_what_was_found_in_its_record():
    found = Discrepancy("cuda", "13.2", "12.4", is_fatal=True)
    view = NodeView(facts=replace(FACTS, cuda_version=(12, 4)), discrepancies=(found,))
    held = lease(phase=Phase.PROBING)
    seen = snapshot(leases=(held,), nodes={held.lease_id: view}, orders=orders(order()))
    [given] = [each for each in reconcile(seen) if isinstance(each, GiveBack)]
    assert given.facts == view.facts and given.discrepancies == (found,)


def test_a_driver_that_tells_nothing_excludes_those_that_tell_nothing():
    bad = sglang_plan(7, cuda_version=None)
    assert matches(Cause.DRIVER_TOO_OLD, bad, sglang_plan(8, cuda_version=None))
    assert not matches(Cause.DRIVER_TOO_OLD, bad, sglang_plan(8, cuda_version=(13, 0)))


def test_a_shortage_of_memory_excludes_the_same_weights_on_the_same_gpus():
    bad, smaller = sglang_plan(7), sglang_plan(8, setup={})
    assert matches(Cause.OUT_OF_VRAM, bad, smaller)
    assert not matches(Cause.OUT_OF_VRAM, bad, plan(8)), "other weights"
    assert not matches(Cause.OUT_OF_VRAM, bad, sglang_plan(8, gpus=offer().gpus * 2)), "more GPUs"


def test_a_gated_repository_excludes_the_checkpoint_everywhere():
    assert matches(Cause.UNAUTHORISED, sglang_plan(7), sglang_plan(8, gpus=offer().gpus * 8))


@pytest.mark.parametrize(
    "cause", [Cause.NCCL, Cause.SHM_TOO_SMALL, Cause.GPU_DEAD, Cause.TOO_SLOW, Cause.UNKNOWN]
)
def test_a_fault_of_one_host_excludes_no_other(cause: Cause):
    assert exclusion_of(cause, offer(7), sglang_plan().setup) is None and blames_host(
        cause, sglang_plan().setup
    )


def test_an_image_under_a_moving_tag_is_the_hosts_fault_and_a_pinned_one_is_not():
    pinned, moving = sglang_plan().setup, plan().setup
    assert not blames_host(Cause.ENGINE_TOO_OLD, pinned) and blames_host(Cause.ENGINE_TOO_OLD, moving)
    assert exclusion_of(Cause.ENGINE_TOO_OLD, offer(), pinned) is not None
    assert exclusion_of(Cause.ENGINE_TOO_OLD, offer(), moving) is None


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_keeps_something_from_being_tried_again(cause: Cause):
    """Else the same plan would be rented for ever, at the user's cost."""
    gone = failed(cause)
    if cause in NOBODY_FAILED:
        assert failover.failures(deployment(), (gone,), NOW) == ()
    else:
        assert failover.would_fail_again(deployment(), (gone,), NOW)(gone.plan)


def test_a_repeated_deploy_forgets_what_was_learned():
    gone = failed(Cause.OUT_OF_VRAM)
    assert failover.exclusions(deployment(), (gone,), NOW)
    assert not failover.exclusions(deployment(attempts_since=NOW), (gone,), NOW)
    assert not failover.exclusions(deployment("other"), (gone,), NOW)


def test_the_next_rent_takes_the_plan_that_may_go_otherwise():
    bad = failed(Cause.DRIVER_TOO_OLD, plan=sglang_plan(7, cuda_version=(12, 8)))
    plans = {
        DeploymentId("tiny"): report(
            sglang_plan(8, cuda_version=(12, 8)), sglang_plan(9, cuda_version=(13, 0))
        )
    }
    [rent] = [
        step for step in reconcile(snapshot(closed_leases=(bad,), plans=plans)) if isinstance(step, Rent)
    ]
    assert rent.plan.offer.server_id == 9


# -- what is told at the end


def segment(server_id: int, hours: float) -> LedgerSegment:
    return LedgerSegment(
        lease_id=LeaseId(f"f{server_id}"),
        deployment_id=DeploymentId("tiny"),
        order_id=OrderId(server_id),
        price=Rate.per_day("24"),
        is_spot=False,
        fee_percent=Decimal(0),
        creation_fee=Decimal(0),
        usd_per_unit=Decimal(1),
        rate_source="test",
        started_at=NOW - timedelta(hours=hours),
        ended_at=NOW,
        market_spend=Decimal(0),
    )


def test_after_the_last_candidate_it_says_what_was_tried_what_it_cost_and_what_to_change():
    gone = (failed(Cause.NCCL, 7), failed(Cause.OUT_OF_VRAM, 8, created_at=NOW - minutes(10)))
    found = reconcile(
        snapshot(
            deployments=(deployment(attempts_max=2),),
            closed_leases=gone,
            attempts={DeploymentId("tiny"): 2},
            segments=(segment(7, 0.5), segment(8, 1)),
        )
    )
    [told] = [step for step in found if isinstance(step, Explain)]
    assert told.is_final
    for part in (
        "server 7",
        "server 8",
        "fp8 in sglang",
        "$0.50",
        "$1.00",
        "$1.50 in all",
        "a smaller --precision",
    ):
        assert part in told.text, told.text


def test_also_while_nothing_else_fits_the_tries_are_told():
    found = reconcile(
        snapshot(closed_leases=(failed(Cause.NCCL),), plans={DeploymentId("tiny"): report(sglang_plan(7))})
    )
    [told] = [step for step in found if isinstance(step, Explain)]
    assert not told.is_final and "server 7" in told.text


@pytest.mark.parametrize("cause", Cause)
def test_a_report_of_any_failure_is_one_bounded_line(cause: Cause):
    gone = tuple(failed(cause, number, reason="x" * 5000) for number in range(50))
    told = failover.tried(deployment(), gone, (), NOW)
    assert len(told) < 4000 and told.isprintable()


# -- two servers for one replica

HEDGED = deployment(requirement=replace(deployment().requirement, hedge=True))
POOR = replace(
    HEDGED, requirement=replace(HEDGED.requirement, budget=deployment(budget="3/day").requirement.budget)
)
PLANS = {DeploymentId("tiny"): report(plan(8))}


def hedged(**changes: Any) -> tuple[Action, ...]:
    base = {
        "deployments": (HEDGED,),
        "leases": (lease(phase=Phase.SYNCING),),
        "orders": orders(order()),
        "plans": PLANS,
    }
    return reconcile(snapshot(**{**base, **changes}))


def rents(actions: tuple[Action, ...]) -> list[Rent]:
    return [step for step in actions if isinstance(step, Rent)]


def test_a_hedge_rents_a_second_server_for_the_same_slot():
    [second] = rents(hedged())
    assert (second.slot, second.plan.offer.server_id) == (0, 8)


def test_without_the_wish_there_is_no_hedge():
    assert rents(hedged(deployments=(deployment(),))) == []
    assert not Requirement("m").hedge


@pytest.mark.parametrize(
    "name, changes",
    [
        ("the budget carries one only", {"deployments": (POOR,)}),
        ("the first already serves", {"leases": (lease(phase=Phase.SERVING),)}),
        ("the first is in doubt", {"leases": (lease(LeaseState.INTENT, Phase.RENTING),)}),
        ("the order list was not read", {"orders": None}),
        ("there is no other plan", {"plans": {DeploymentId("tiny"): report(plan(7))}}),
        ("the attempts are used up", {"attempts": {DeploymentId("tiny"): 5}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_hedge_waits_silently_while(name: str, changes: dict):
    actions = hedged(**changes)
    assert rents(actions) == []
    assert not any(isinstance(step, Explain) and step.text for step in actions)


def test_two_under_way_are_not_made_three():
    two = (lease(phase=Phase.SYNCING), second_lease(Phase.LAUNCHING))
    two_orders, plans = orders(order(), order(901, 8)), {DeploymentId("tiny"): report(plan(9))}
    assert rents(hedged(leases=two, orders=two_orders, plans=plans)) == []


def second_lease(phase: Phase) -> Lease:
    return lease(phase=phase, server_id=8, lease_id=LeaseId("l2"), order_id=OrderId(901))


def test_the_one_that_is_not_ready_first_is_given_back_and_blamed_for_nothing():
    two = (lease(phase=Phase.SYNCING), second_lease(Phase.SERVING))
    given = [
        step
        for step in hedged(leases=two, orders=orders(order(), order(901, 8)))
        if isinstance(step, GiveBack)
    ]
    assert [(step.lease_id, step.blocks_host, step.cause) for step in given] == [
        (L1, False, Cause.SUPERSEDED)
    ]


@pytest.mark.parametrize("first_is_silent", [False, True])
@pytest.mark.parametrize("apart", [minutes(0), minutes(1)])
def test_of_two_that_are_ready_in_one_tick_exactly_one_is_kept(apart, first_is_silent: bool):
    """Each waited for the other to be the late one, and both billed on."""
    first = lease(phase=Phase.SERVING, unhealthy_since=NOW if first_is_silent else None)
    second = replace(second_lease(Phase.SERVING), phase_since=first.phase_since + apart)
    steps = hedged(leases=(first, second), orders=orders(order(), order(901, 8)))
    given = [step for step in steps if isinstance(step, GiveBack)]
    assert [step.lease_id for step in given] == [L1 if first_is_silent else second.lease_id]
    assert given[0].cause is Cause.SUPERSEDED


def test_one_that_is_to_be_followed_is_no_hedge():
    follower = replace(second_lease(Phase.SERVING), replaces=L1)
    for one, other in ((follower, lease(phase=Phase.SERVING)), (lease(phase=Phase.SERVING), follower)):
        assert failover.why_superseded(one, (one, other)) == ""


def test_servers_tried_before_the_clock_was_set_back_are_not_counted_after_a_new_deploy():
    """D1: they lay in the future, so that each new `deploy` gave up at once."""
    gone = lease(
        LeaseState.ENDED, Phase.ENDED, cause=Cause.UNKNOWN, created_at=NOW + minutes(600), ended_at=NOW
    )
    again = deployment(attempts_since=NOW - minutes(1))
    assert failover.failures(again, (gone,), NOW) == ()


def test_a_replica_of_another_slot_supersedes_nobody():
    other = replace(second_lease(Phase.SERVING), slot=1)
    assert failover.why_superseded(lease(phase=Phase.SYNCING), (other,)) == ""
    assert ServerId(8) == other.server_id
