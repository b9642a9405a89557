"""What replicas carry within an SLO, against known values of Erlang's formula."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clorefleet.planner.capacity import (
    ReplicaCapacity,
    demand_carried,
    erlang_c,
    late_share,
    load_carried,
)


@pytest.mark.parametrize(
    ("places", "load", "share"),
    [(1, 0.5, 0.5), (1, 0.9, 0.9), (2, 1.0, 1 / 3), (5, 4.0, 0.5541), (10, 8.0, 0.4092), (100, 80.0, 0.0196)],
)
def test_erlangs_c_formula_is_the_tables(places: int, load: float, share: float):
    """One place: C is the load itself. Two places at load 1: a third. The others: published tables."""
    assert erlang_c(places, load) == pytest.approx(share, rel=5e-3)


def _by_definition(places: int, load: float) -> float:
    below = sum(load**k / math.factorial(k) for k in range(places))
    full = load**places / math.factorial(places) * places / (places - load)
    return full / (below + full)


@given(st.integers(1, 60), st.floats(0.05, 0.98))
def test_the_recursion_agrees_with_the_definition(places: int, use: float):
    load = places * use
    assert erlang_c(places, load) == pytest.approx(_by_definition(places, load), rel=1e-6, abs=1e-8)


@given(st.integers(1, 300), st.floats(0, 400), st.floats(0.1, 100), st.floats(0, 60))
def test_a_share_is_between_none_and_all(places: int, load: float, service_s: float, wait_s: float):
    assert 0 <= late_share(places, load, service_s=service_s, wait_s=wait_s) <= 1


@given(st.integers(1, 128), st.floats(0.5, 60), st.floats(0, 30), st.floats(0, 0.8))
def test_what_is_carried_keeps_the_slo_and_a_little_more_does_not(
    places: int, service_s: float, wait_s: float, variation: float
):
    carried = load_carried(places, service_s=service_s, wait_s=wait_s, late_max=0.01)
    assert late_share(places, carried, service_s=service_s, wait_s=wait_s) <= 0.0101
    if carried * 1.02 + 0.01 < places:
        assert late_share(places, carried * 1.02 + 0.01, service_s=service_s, wait_s=wait_s) > 0.0099
    in_bursts = load_carried(places, service_s=service_s, wait_s=wait_s, late_max=0.01, variation=variation)
    assert in_bursts <= carried * 1.001 + places * 2e-4


def test_many_small_places_are_used_better_than_few_large_ones():
    """Which is why no fixed share of the capacity is the right target."""
    large = ReplicaCapacity(1000, 2)
    small = ReplicaCapacity(1000, 64)
    kwargs = {"tokens_per_request": 500.0, "wait_s": 1.0, "late_max": 0.01}
    assert demand_carried(1, large, **kwargs) < 500 < 700 < demand_carried(1, small, **kwargs)


def test_no_replica_carries_nothing():
    capacity = ReplicaCapacity(100, 1)
    assert demand_carried(0, capacity, tokens_per_request=1, wait_s=1, late_max=0.01) == 0
