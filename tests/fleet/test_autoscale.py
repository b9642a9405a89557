"""How many replicas the load needs: up early, down late, and why."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.domain.load import LoadSample
from clorefleet.fleet.autoscale import Load, ScaleRule, StartCost, decide
from clorefleet.fleet.demand import Minutes, demand_of, learned
from clorefleet.fleet.forecast import BUCKET_S, Forecast, bucket_of
from clorefleet.planner.capacity import ReplicaCapacity
from tests.fleet.builders import NOW

CAPACITY = ReplicaCapacity(1000, 32)
RULE = ScaleRule(8)
DAY = timedelta(days=1)
TEN_MINUTES = StartCost(600, Decimal(12), Decimal("0.1"))
TOKENS = 200.0


def sample(minutes_ago: int, tokens_per_s: float, **changes: object) -> LoadSample:
    values: dict[str, object] = {
        "requests": round(tokens_per_s * 60 / TOKENS),
        "generated_tokens": round(tokens_per_s * 60),
        "serving": 2,
    }
    return LoadSample(NOW - timedelta(minutes=minutes_ago), 60, **(values | changes))  # type: ignore[arg-type]


def load(*rates: float, have: int = 2, age: timedelta = DAY, **changes: object) -> Load:
    """`rates`: of the last minutes, oldest first; what was before went on as the first of them."""
    whole = [rates[0]] * (200 - len(rates)) + list(rates)
    samples = [sample(200 - i, rate) for i, rate in enumerate(whole)]
    values: dict[str, object] = {
        "minutes": Minutes.of(samples),
        "capacity": CAPACITY,
        "start": TEN_MINUTES,
        "ages": (age,) * have,
        "tokens_per_request": TOKENS,
    }
    return Load(**(values | changes))  # type: ignore[arg-type]


def wanted(the_load: Load, rule: ScaleRule = RULE) -> int:
    return decide(rule, the_load, now=NOW).wanted


def test_a_steady_load_that_two_carry_keeps_two():
    assert wanted(load(1200)) == 2


def test_more_is_needed_for_some_time_before_more_is_rented():
    assert wanted(load(1000, 2500)) == 2
    assert wanted(load(1200, *[4000] * 20)) > 2


def test_a_burst_shorter_than_a_start_is_no_reason_to_start():
    """Over before the server could help."""
    assert wanted(load(900, *[2500] * 2, *[900] * 3)) == 2


def test_a_rise_is_followed_to_where_it_will_be_when_a_server_serves():
    rising = [900 + 25 * minute for minute in range(30)]
    decision = decide(RULE, load(900, *rising), now=NOW)
    assert decision.wanted > 2 and "if it goes on rising" in decision.reason


def test_a_server_is_kept_until_keeping_it_has_cost_what_a_start_would():
    """Start-up of 10 min and a fee that pays for 12 min more: 22 min."""
    assert TEN_MINUTES.break_even == timedelta(minutes=22)
    still_kept = decide(RULE, load(1200, *[300] * 25), now=NOW)
    assert still_kept.wanted == 2 and "starting another costs $0.1834" in still_kept.reason
    assert wanted(load(1200, *[300] * 40)) == 1


def test_what_is_dear_to_start_is_kept_longer():
    """An hour and a half of weights: fewer must suffice for as long as that."""
    dear = StartCost(5400, Decimal(12))
    assert wanted(load(1200, *[300] * 60, start=dear)) == 2


def test_a_minimum_rental_is_used_up():
    bound = StartCost(600, Decimal(12), minimum_rental_s=3 * 3600)
    assert wanted(load(1200, *[300] * 60, start=bound)) == 2


def test_nothing_is_given_back_right_after_a_start():
    decision = decide(RULE, load(300, have=2, age=timedelta(minutes=5)), now=NOW)
    assert decision.wanted == 2 and "the last was started only 5 min ago" in decision.reason


def test_a_load_that_was_watched_too_shortly_gives_nothing_back():
    decision = decide(RULE, load(300, minutes=Minutes.of(sample(i, 300) for i in (3, 2, 1))), now=NOW)
    assert decision.wanted == 2 and "watched for 3 of" in decision.reason


def test_what_waits_counts_though_it_is_not_served():
    """Two replicas do 2,000 tokens a second however many are asked for."""
    full = [sample(200 - i, 1990, waiting=600) for i in range(200)]
    assert wanted(load(1990, minutes=Minutes.of(full))) > 2


def test_a_first_byte_that_is_late_while_all_places_are_taken_asks_for_one_more():
    late = [sample(200 - i, 1000, first_byte_s=30.0, running=64) for i in range(200)]
    decision = decide(RULE, load(1000, minutes=Minutes.of(late)), now=NOW)
    assert decision.wanted == 3 and "answers begin after more than 10 s" in decision.reason


def test_a_late_first_byte_with_places_free_is_a_long_prompt_and_no_queue():
    late = [sample(200 - i, 1000, first_byte_s=30.0, running=5) for i in range(200)]
    assert wanted(load(1000, minutes=Minutes.of(late))) == 2


def test_a_request_that_found_no_replica_wants_one():
    asleep = [sample(i, 0, serving=0) for i in range(60, 1, -1)]
    samples = [*asleep, sample(1, 0, serving=0, turned_away=1)]
    assert wanted(load(0, minutes=Minutes.of(samples), have=0)) == 1


def test_the_maximum_holds_and_is_named():
    decision = decide(ScaleRule(3), load(9000), now=NOW)
    assert decision.wanted == 3


def test_a_target_share_asks_for_more_replicas_than_the_slo_alone():
    assert wanted(load(1500, have=1), ScaleRule(8, target=0.5)) > wanted(load(1500, have=1))


def test_replicas_that_did_more_than_was_predicted_are_known_to():
    fast = [sample(i, 3000) for i in range(60, 0, -1)]
    assert learned(CAPACITY, Minutes.of(fast)) == ReplicaCapacity(1500, 32, is_measured=True)


def test_replicas_that_did_less_while_a_queue_stood_are_known_to():
    slow = [sample(i, 600, waiting=9) for i in range(60, 0, -1)]
    assert learned(CAPACITY, Minutes.of(slow)).tokens_per_s == pytest.approx(300)


def test_an_idle_replica_says_nothing_of_what_it_could_do():
    assert learned(CAPACITY, Minutes.of(sample(i, 50) for i in range(60, 0, -1))) == CAPACITY


def test_minutes_that_are_forgotten_change_nothing_of_what_the_others_say():
    made = Minutes.of(sample(i, 100.0 * (i % 7), waiting=i % 3) for i in range(300, 0, -1))
    before = demand_of(made, TOKENS, watched=60, width=10), learned(CAPACITY, made)
    made.forget_before(150)
    assert len(made.samples) == len(made.unmet) == 150
    assert (demand_of(made, TOKENS, watched=60, width=10), learned(CAPACITY, made)) == before


# -- with a forecast


def foresee(by_bucket: dict[int, float]) -> Forecast:
    """`by_bucket`: demand by quarters of an hour from now; 900 elsewhere."""
    week = 7 * 86_400 // BUCKET_S
    here = bucket_of(NOW)
    past = {here - week + step: by_bucket.get(step, 900.0) for step in range(-100, 200)}
    return Forecast(past, here, 1.0, 0.0)


def test_a_start_begins_a_start_up_before_the_load_comes():
    coming = foresee({1: 2600, 2: 2600})
    near = decide(RULE, load(900, forecast=coming, start=StartCost(1200, Decimal(12))), now=NOW)
    assert near.wanted > 2 and "as in earlier weeks" in near.reason
    assert wanted(load(900, forecast=foresee({9: 2600}))) <= 2


def test_a_server_that_will_be_needed_before_it_could_be_started_again_is_kept():
    soon_again = foresee({1: 1500})
    assert wanted(load(1500, *[300] * 40, forecast=soon_again)) == 2


def test_a_server_that_will_not_be_needed_is_given_back_before_the_break_even():
    quiet = foresee(dict.fromkeys(range(-2, 100), 200.0))
    dear = StartCost(5400, Decimal(12))
    assert wanted(load(1500, *[200] * 75, forecast=quiet, start=dear)) == 1
    assert wanted(load(1500, *[200] * 75, start=dear)) == 2


def test_demand_is_steady_where_the_load_is():
    steady = demand_of(Minutes.of(sample(i, 500) for i in range(120, 0, -1)), TOKENS, watched=60, width=10)
    assert steady.variation == pytest.approx(0) and steady.rising_to(3600) == pytest.approx(500)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(0, 20_000), min_size=0, max_size=80),
    st.integers(0, 8),
    st.integers(1, 8),
    st.floats(60, 10_000),
)
def test_the_count_is_always_between_none_and_the_maximum(
    rates: list[float], have: int, most: int, ready_s: float
):
    samples = [sample(len(rates) - i, rate) for i, rate in enumerate(rates)]
    the_load = load(0, minutes=Minutes.of(samples), have=have, start=StartCost(ready_s, Decimal(5)))
    decision = decide(ScaleRule(most), the_load, now=NOW)
    assert 0 <= decision.wanted <= most and decision.reason
    assert decide(ScaleRule(most), the_load, now=NOW) == decision
