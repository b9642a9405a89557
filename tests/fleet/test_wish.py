"""Stop, and keep so many: what becomes of a deployment by one word or one number."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clorefleet.domain.deployment import Desired
from clorefleet.domain.errors import BadInput
from clorefleet.fleet.wish import REPLICAS_MAX, scaled, stopped
from tests.fleet.builders import NOW, deployment


def test_a_stopped_deployment_keeps_everything_but_its_trouble():
    before = deployment(note="nothing fits", has_given_up=True)
    after = stopped(before)
    assert after == replace(before, desired=Desired.STOPPED, note="", has_given_up=False)


@pytest.mark.parametrize(
    ("most", "replicas", "most_after"), [(None, 3, None), (4, 2, 4), (4, 6, 6), (4, 4, 4)]
)
def test_the_most_that_load_may_ask_for_is_never_below_what_is_kept(most, replicas, most_after):
    after = scaled(deployment(replicas_max=most), replicas, now=NOW)
    assert (after.replicas, after.replicas_max) == (replicas, most_after)


def test_another_number_lets_what_had_given_up_try_again():
    after = scaled(deployment(note="nothing fits", has_given_up=True), 2, now=NOW)
    assert (after.note, after.has_given_up, after.attempts_since) == ("", False, NOW)


@pytest.mark.parametrize("replicas", [0, -1, REPLICAS_MAX + 1])
def test_numbers_that_cannot_be_kept_are_refused(replicas: int):
    with pytest.raises(BadInput):
        scaled(deployment(), replicas, now=NOW)


def test_a_stopped_deployment_is_not_scaled():
    with pytest.raises(BadInput, match="is stopped"):
        scaled(deployment(desired=Desired.STOPPED), 2, now=NOW)
