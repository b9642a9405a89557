"""Idle is what nobody uses, seen from the gateway and from the engine; what cannot be seen is not idle."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from clorefleet.domain.identity import LeaseId
from clorefleet.domain.lease import Lease, LeaseState, Phase
from clorefleet.domain.load import LoadSample
from clorefleet.domain.node import NodeView
from clorefleet.fleet.idle import decide, use_of, use_seen, why_useless
from tests.fleet.builders import NOW, lease

HALF_AN_HOUR = timedelta(minutes=30)
AN_HOUR_AGO = NOW - timedelta(hours=1)
SEEN = {LeaseId("l1"): NodeView(engine_tokens=500)}


def serving(**changes: object) -> Lease:
    values: dict[str, object] = {"phase_since": AN_HOUR_AGO, "engine_tokens": 500}
    return lease(LeaseState.ORDERED, Phase.SERVING, **(values | changes))


def test_nobody_for_as_long_as_the_rule_says_is_idle():
    found = decide(HALF_AN_HOUR, use_of([serving()], SEEN, []), now=NOW)
    assert found.is_idle and "no request and no token for 30 min" in found.reason


@pytest.mark.parametrize(
    "sample",
    [
        LoadSample(NOW - timedelta(minutes=5), 60, requests=1),
        LoadSample(NOW - timedelta(minutes=5), 60, generated_tokens=9),
        LoadSample(NOW - timedelta(minutes=5), 60, running=1),
    ],
)
def test_any_use_in_the_time_keeps_it(sample: LoadSample):
    found = decide(HALF_AN_HOUR, use_of([serving()], SEEN, [sample]), now=NOW)
    assert not found.is_idle and found.reason == "unused for 4 min; given back after 30 min"


def test_one_used_replica_keeps_all():
    used = serving(lease_id=LeaseId("l2"), slot=1, used_at=NOW - timedelta(minutes=1))
    views = SEEN | {LeaseId("l2"): NodeView(engine_tokens=500)}
    assert not decide(HALF_AN_HOUR, use_of([serving(), used], views, []), now=NOW).is_idle


def test_a_replica_that_starts_is_not_idle():
    starting = lease(LeaseState.ORDERED, Phase.SYNCING, phase_since=AN_HOUR_AGO)
    found = decide(HALF_AN_HOUR, use_of([starting], {}, []), now=NOW)
    assert not found.is_idle and found.reason == "1 replica(s) still start"


def test_an_engine_that_no_longer_tells_is_not_proved_idle():
    found = decide(HALF_AN_HOUR, use_of([serving()], {}, []), now=NOW)
    assert not found.is_idle and "nothing proves it idle" in found.reason


def test_an_engine_that_never_told_is_judged_by_the_gateway_alone():
    silent = serving(engine_tokens=None)
    assert decide(HALF_AN_HOUR, use_of([silent], {LeaseId("l1"): NodeView()}, []), now=NOW).is_idle


def test_a_clock_that_was_set_back_makes_nothing_idle():
    later = serving(used_at=NOW + timedelta(days=1))
    assert not decide(HALF_AN_HOUR, use_of([later], SEEN, []), now=NOW).is_idle


def test_the_time_begins_when_it_serves():
    just_now = serving(phase_since=NOW - timedelta(minutes=1))
    assert not decide(HALF_AN_HOUR, use_of([just_now], SEEN, []), now=NOW).is_idle


@pytest.mark.parametrize(
    "view",
    [
        NodeView(engine_tokens=501),
        NodeView(engine_tokens=500, engine_running=1),
        NodeView(engine_tokens=500, engine_waiting=1),
        NodeView(engine_tokens=500, in_flight=1),
        NodeView(in_flight=1),
    ],
)
def test_each_sign_of_use_is_seen(view: NodeView):
    seen = use_seen(serving(), view, now=NOW)
    assert seen is not None and seen.used_at == NOW


def test_an_engine_that_was_started_anew_was_not_used_by_that():
    seen = use_seen(serving(used_at=AN_HOUR_AGO), NodeView(engine_tokens=0), now=NOW)
    assert seen is not None and seen.used_at == AN_HOUR_AGO and seen.engine_tokens == 0


def test_a_look_that_shows_nothing_new_changes_nothing():
    before = serving(used_at=AN_HOUR_AGO)
    assert use_seen(before, NodeView(engine_tokens=500), now=NOW) is None
    assert use_seen(replace(before, phase=Phase.LAUNCHING), NodeView(in_flight=1), now=NOW) is None


def test_servers_on_their_way_for_a_deployment_that_gave_up_are_given_back():
    assert why_useless(lease(LeaseState.ORDERED, Phase.SYNCING), has_given_up=True)
    assert not why_useless(lease(LeaseState.ORDERED, Phase.SYNCING), has_given_up=False)
    assert not why_useless(serving(), has_given_up=True)
