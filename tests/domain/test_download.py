"""How long weights take, and whence: estimates over offers."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clorefleet.domain.download import estimate, is_sibling_faster, sibling_bytes_per_s
from clorefleet.domain.node import Measured
from tests.fleet.builders import offer, plan
from tests.fleet.test_reconcile import FACTS

SETUP = replace(plan().setup, checkpoint_bytes=105_000_000_000)
NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
FAST = offer(down_mbit_s=Decimal(1000), up_mbit_s=Decimal(1000), disk_mb_s=Decimal(2000))


def test_the_estimate_says_how_much_how_long_until_when_and_by_whose_line():
    text = estimate(replace(FAST, disk_free_bytes=2 * 10**12), SETUP).text(NOON)
    assert text == (
        "105.0 GB of weights, about 20 min by its offered line, until 12:20 UTC; 2,000 GB of disk free"
    )


def test_what_was_measured_replaces_what_was_offered():
    measured = replace(FACTS, measured=Measured(download_mbit_s=100.0), disk_free_bytes=10**12)
    found = estimate(FAST, SETUP, measured)
    assert (found.line, round(found.seconds)) == ("measured", 8400)
    assert "2.3 h by its measured line" in found.text() and "1,000 GB" in found.text()
    simulated = replace(measured, measured=Measured(download_mbit_s=100.0, is_simulated=True))
    assert "simulated line" in estimate(FAST, SETUP, simulated).text()


def test_a_slow_disk_holds_a_fast_line_back():
    slow = replace(FAST, disk_mb_s=Decimal(10))
    assert estimate(slow, SETUP).bytes_per_s == 10e6


def test_weights_of_this_machine_promise_no_hour():
    text = estimate(FAST, replace(SETUP, repo="file:///models/mine")).text(NOON)
    assert "from this machine" in text and "min" not in text and "until" not in text


@given(up=st.integers(0, 10_000), down=st.integers(1, 10_000), relay=st.floats(0, 1e9), hub=st.floats(1, 1e9))
def test_a_sibling_is_never_faster_than_the_narrowest_part_of_its_way(
    up: int, down: int, relay: float, hub: float
):
    sibling, new = offer(up_mbit_s=Decimal(up)), offer(down_mbit_s=Decimal(down))
    rate = sibling_bytes_per_s(sibling, new, relay)
    assert rate <= relay and rate <= up * 125_000 and rate <= down * 125_000
    if is_sibling_faster(hub, rate):
        assert rate > hub


@pytest.mark.parametrize(
    ("sibling", "relay"), [(offer(up_mbit_s=None), 1e9), (FAST, 0.0)], ids=["line unknown", "relaying is off"]
)
def test_a_way_that_nobody_knows_or_wants_is_not_taken(sibling, relay: float):
    assert not is_sibling_faster(1.0, sibling_bytes_per_s(sibling, FAST, relay))
