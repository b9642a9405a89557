"""The demand to come, from the same hours of earlier weeks."""

from __future__ import annotations

from datetime import timedelta

import pytest

from clorefleet.domain.load import LoadSample
from clorefleet.fleet.forecast import BUCKET_S, bucket_of, buckets, forecast
from tests.fleet.builders import NOW

HERE = bucket_of(NOW)
DAY = 86_400 // BUCKET_S
WEEK = 7 * DAY


def test_without_a_day_of_past_there_is_no_forecast():
    assert forecast({HERE - 1: 5.0, HERE - 2: 5.0}, NOW) is None


def test_yesterday_stands_in_until_a_week_has_passed():
    past = {HERE - DAY + step: float(step) for step in range(DAY)}
    made = forecast(past, NOW)
    assert made is not None and made.demand(HERE) == 0.0


def test_the_latest_week_counts_most():
    past = {HERE - WEEK: 100.0, HERE - 2 * WEEK: 200.0}
    made = forecast(past, NOW)
    assert made is not None and made.demand(HERE) == pytest.approx((100 + 0.5 * 200) / 1.5)


def test_a_day_that_is_busier_than_its_like_raises_the_next_hours_and_not_the_next_day():
    past = {HERE - WEEK + step: 100.0 for step in range(-8, 120)}
    past |= {HERE - step: 150.0 for step in range(1, 6)}
    made = forecast(past, NOW)
    assert made is not None
    assert made.demand(HERE) == pytest.approx(150)
    assert 100 < made.demand(HERE + 8) < 140
    assert made.demand(HERE + DAY) == pytest.approx(100, rel=0.01)


def test_a_gap_in_the_past_is_no_forecast_of_nothing():
    past = {HERE - WEEK: 100.0}
    made = forecast(past, NOW)
    assert made is not None and made.most_within(0, 3600, now=NOW) is None


def test_minutes_become_quarters_of_an_hour():
    start = NOW.replace(minute=0)
    samples = [
        LoadSample(start + timedelta(minutes=i), 60, requests=1, generated_tokens=60 * i) for i in range(15)
    ]
    assert buckets(samples) == {bucket_of(start): pytest.approx(7.0)}
