"""Weeks of traffic, simulated: the same seed the same figures, every token accounted for, the optimum the
least."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.domain.deployment import IdlePolicy, ScalePolicy
from clorefleet.domain.errors import BadInput
from clorefleet.domain.load import PROMPT_TOKEN_WEIGHT
from clorefleet.fleet.autoscale import ScaleRule
from clorefleet.fleet.forecast import BUCKET_S, bucket_of
from clorefleet.planner.capacity import ReplicaCapacity
from clorefleet.simulation.traffic.compare import compare, scale_for
from clorefleet.simulation.traffic.market import read_prices, seeded, steady
from clorefleet.simulation.traffic.optimum import cheapest_constant, optimum
from clorefleet.simulation.traffic.policy import AlwaysOn, AsWritten, ByLoad
from clorefleet.simulation.traffic.queue import pass_minute
from clorefleet.simulation.traffic.replay import Service, Sight, replay
from clorefleet.simulation.traffic.trace import read_trace
from clorefleet.simulation.traffic.week import MINUTES_A_WEEK, Weeks, compose
from tests.fleet.builders import deployment

MONDAY = datetime(2026, 11, 2, tzinfo=UTC)
SERVICE = Service(ReplicaCapacity(400, 16), 1200, Decimal("0.1"), 10.0, 0.99, 8)
TWELVE = steady(Decimal(12))
SYNTHETIC = read_trace("synthetic")


def weeks(count: int = 1, *, seed: int = 1, profile: str = "office") -> Weeks:
    scale = scale_for(SYNTHETIC, SERVICE, 4)
    return compose(SYNTHETIC, weeks=count, scale=scale, profile=profile, seed=seed, begins_at=MONDAY)


def day(hourly: dict[int, int]) -> Weeks:
    """A day on which `hourly` requests a minute of 100 tokens come in each hour."""
    counts = tuple(hourly.get(minute // 60, 0) for minute in range(1440))
    return Weeks(MONDAY, counts, (0,) * 1440, tuple(100 * each for each in counts), "made up")


# -- traces


def test_both_kinds_of_columns_are_read(tmp_path: Path):
    instants, offsets = tmp_path / "a.csv", tmp_path / "b.csv"
    rows = [(second, 10, 5) for second in range(0, 130, 10)]
    instants.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        + "".join(f"2023-11-16 18:{15 + s // 60}:{s % 60:02}.6805900,{i},{o}\n" for s, i, o in rows)
    )
    offsets.write_text(
        "timestamp_ms,input_tokens,output_tokens\n" + "".join(f"{s * 1000},{i},{o}\n" for s, i, o in rows)
    )
    first, second = read_trace(str(instants)), read_trace(str(offsets))
    assert first.offsets_s == pytest.approx(second.offsets_s)
    assert first.prompt_tokens == second.prompt_tokens == (10,) * 13


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the columns of an empty file"),
        ("a,b,c\n1,2,3\n", "the columns a, b, c"),
        ("timestamp_ms,input_tokens,output_tokens\n0,x,3\n", "line 2 is no request"),
        ("timestamp_ms,input_tokens,output_tokens\n0,1,-3\n", "impossible"),
        ("timestamp_ms,input_tokens,output_tokens\nnan,1,3\n", "impossible"),
        ("timestamp_ms,input_tokens,output_tokens\n0,1,3\n", "less than a minute"),
    ],
)
def test_a_file_that_is_no_trace_says_what_is_wrong(tmp_path: Path, text: str, words: str):
    file = tmp_path / "t.csv"
    file.write_text(text)
    with pytest.raises(BadInput, match=words) as raised:
        read_trace(str(file))
    assert raised.value.what.startswith("t.csv")


def test_a_trace_that_is_not_there_is_told():
    with pytest.raises(BadInput, match="cannot be read"):
        read_trace("/nowhere/t.csv")


# -- weeks


def test_the_same_seed_gives_the_same_weeks_and_another_seed_others():
    assert weeks(seed=3) == weeks(seed=3)
    assert weeks(seed=3).requests != weeks(seed=4).requests


def test_nights_and_weekends_of_an_office_are_quiet_and_it_is_said_how_it_was_made():
    made = weeks()
    noon, night, sunday = (sum(made.requests[i : i + 60]) for i in (660, 180, 6 * 1440 + 660))
    assert noon > 5 * night and noon > 2 * sunday
    assert "assumed office profile" in made.how and "synthetic" in made.how and "seed 1" in made.how


# -- the queue


@settings(deadline=None)
@given(st.integers(0, 8), st.floats(0, 1e6), st.floats(0, 1e6))
def test_no_token_is_lost_or_made(serving: int, tokens: float, backlog: float):
    passed = pass_minute(
        serving, SERVICE.capacity, tokens=tokens, backlog_tokens=backlog, service_s=4, wait_s=10
    )
    assert 0 <= passed.late <= 1
    if serving:
        assert passed.served_tokens + passed.backlog_tokens == pytest.approx(tokens + backlog)
        assert passed.served_tokens <= serving * 400 * 60 * (1 + 1e-9)


# -- policies


def test_always_on_costs_its_price_and_nothing_else():
    outcome = replay(weeks(), AlwaysOn(3), SERVICE, TWELVE, seed=1)
    assert outcome.usd == 3 * 12 * 7 and outcome.starts == 0


def test_a_replay_is_the_same_twice():
    def once() -> object:
        return replay(weeks(), ByLoad(ScaleRule(8), SERVICE), SERVICE, TWELVE, seed=5)

    assert once() == once()


@pytest.mark.slow
def test_load_costs_less_than_always_on_where_it_varies():
    made = weeks(2)
    first = MINUTES_A_WEEK
    by_load = replay(made, ByLoad(ScaleRule(8), SERVICE), SERVICE, TWELVE, seed=1, measured_from=first)
    constant = cheapest_constant(made, SERVICE, late_max=1 - by_load.attained, measured_from=first)
    assert by_load.usd < Decimal(12) * constant * 7 * Decimal("0.75")
    assert by_load.attained > 0.95


def test_a_policy_sees_no_minute_before_it_is_over():
    looks = 0

    class Watching(AlwaysOn):
        def wanted(self, sight: Sight) -> int:
            nonlocal looks
            looks += 1
            assert all(
                each.started_at + timedelta(minutes=1) <= sight.now for each in sight.minutes.samples[-3:]
            )
            return 1

    replay(day({3: 2}), Watching(1), SERVICE, TWELVE, seed=1)
    assert looks > 1440


def test_of_the_weeks_before_only_a_day_is_lived_through_and_all_demand_is_known():
    made, sights = weeks(2), []

    class Watching(AlwaysOn):
        def wanted(self, sight: Sight) -> int:
            if not sights:
                sights.append((sight.now, dict(sight.past)))
            assert max(sight.past) < bucket_of(sight.now), "nothing of what is to come"
            return 1

    outcome = replay(made, Watching(1), SERVICE, TWELVE, seed=1, measured_from=MINUTES_A_WEEK)
    [(begins_at, past)] = sights
    assert begins_at == MONDAY + timedelta(days=6) and len(past) == 6 * 96
    assert sum(past.values()) * BUCKET_S == pytest.approx(
        sum(made.prompt_tokens[: 6 * 1440]) * PROMPT_TOKEN_WEIGHT + sum(made.generated_tokens[: 6 * 1440])
    )
    assert outcome.requests == sum(made.requests[MINUTES_A_WEEK:])


def test_a_deployment_of_a_file_sleeps_and_is_woken():
    wish = deployment(replicas=1, replicas_max=4, scale=ScalePolicy(), idle=IdlePolicy(timedelta(minutes=30)))
    outcome = replay(day({0: 5, 12: 5, 13: 5}), AsWritten(wish, SERVICE), SERVICE, TWELVE, seed=1)
    assert outcome.serving[10 * 60] == 0 and outcome.serving[13 * 60 + 30] >= 1
    assert 0 < outcome.turned_away < 5 * 60, "until the woken one serves"
    assert any("no request and no token" in reason for _, _, reason in outcome.reasons)


# -- the optimum


def test_foresight_starts_a_server_only_where_the_gap_is_longer_than_its_break_even():
    """Start: 20 min and $0.10, which is 32 min of the price. A gap of ten hours is left, one of none is
    not."""
    best = optimum(day({8: 60, 9: 60, 20: 60}), SERVICE, Decimal(12), late_max=0.0, replicas_min=0)
    assert best is not None and best.is_proven
    assert best.serving[8 * 60 + 5] == best.serving[9 * 60 + 5] > 0
    assert best.serving[15 * 60] == 0 and best.serving[20 * 60 + 5] > 0


@pytest.mark.slow
def test_no_policy_is_cheaper_than_the_bound_at_its_own_slo():
    made = weeks(2)
    first = MINUTES_A_WEEK + 4 * 1440
    for policy in (ByLoad(ScaleRule(8), SERVICE), AlwaysOn(5)):
        outcome = replay(made, policy, SERVICE, TWELVE, seed=1, measured_from=first)
        best = optimum(
            made,
            SERVICE,
            Decimal(12),
            late_max=1 - outcome.attained,
            measured_from=first,
            replicas_min=1,
            time_limit_s=60,
        )
        assert best is not None and (best.usd is None or best.bound_usd <= best.usd)
        assert best.bound_usd <= outcome.usd * Decimal("1.001")


# -- prices


def test_seeded_prices_are_the_same_twice_and_stay_near():
    first, second = (seeded(Decimal(10), hours=500, seed=7) for _ in range(2))
    assert first == second
    assert all(Decimal(5) < price < Decimal(20) for price in first.usd_per_day_by_hour)


def test_prices_of_a_file_are_read_and_bad_ones_told(tmp_path: Path):
    file = tmp_path / "p.csv"
    file.write_text("usd_per_day\n2.5\n3.5\n")
    assert read_prices(str(file)).mean == 3
    for bad in ("usd_per_day\n", "usd_per_day\n-1\n", "price\n1\n", "usd_per_day\nNaN\n"):
        file.write_text(bad)
        with pytest.raises(BadInput):
            read_prices(str(file))


@pytest.mark.slow
def test_policies_are_compared_over_the_same_weeks():
    found = compare(
        SYNTHETIC,
        SERVICE,
        TWELVE,
        weeks=1,
        scale=1.0,
        profile="office",
        seed=1,
        begins_at=MONDAY,
    )
    assert [each.policy for each in found.outcomes] == ["always on", "cron", "load", "load + forecast"]
    assert len({each.requests for each in found.outcomes}) == 1
