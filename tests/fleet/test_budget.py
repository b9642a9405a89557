"""The ceiling holds, whatever the past and whatever is in doubt."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from clorefleet.domain.guard import FleetGuard
from clorefleet.domain.host import HostFault
from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId, ServerId
from clorefleet.domain.lease import LeaseState
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.money import Currency, ExchangeRate, Rate, parse_budget
from clorefleet.fleet import budget
from tests.fleet.builders import NOW, deployment, lease, minutes, plan


def refused(the_plan, *, held=(), spent="0", ceiling="16/day", now=NOW):
    return budget.refusal(
        deployment(budget=ceiling), the_plan, open_leases=held, spent_today_usd=Decimal(spent), now=now
    )


def test_fee_and_creation_fee_count_against_the_ceiling():
    # 15.14 x 1.05 + 0.10 = 15.997; 15.15 x 1.05 + 0.10 = 16.0075
    assert refused(plan(1, "15.14")) is None
    assert refused(plan(1, "15.15")).is_lasting


def test_what_may_still_bill_counts_at_its_full_rate():
    assert refused(plan(1, "8"), held=[lease(plan=plan(2, "8"))]).is_lasting is False
    assert refused(plan(1, "7"), held=[lease(plan=plan(2, "8"))]) is None


def test_an_order_billed_above_its_plan_counts_at_the_billed_price():
    dear = lease(plan=plan(2, "5"), price=Rate.per_day("12"))
    assert refused(plan(1, "4"), held=[dear]) is not None


def test_money_burnt_today_is_not_there_any_more():
    assert refused(plan(1, "15"), spent="9") is not None  # noon: 15.75/2 + 9 + 0.1 > 16
    assert refused(plan(1, "15"), spent="8") is None


@given(
    prices=st.lists(st.decimals("0.01", "20", places=2), max_size=4),
    wanted=st.decimals("0.01", "20", places=2),
    spent=st.decimals("0", "20", places=4),
    minute=st.integers(0, 24 * 60 - 1),
)
def test_an_allowed_rent_never_lets_the_day_pass_the_ceiling(prices, wanted, spent, minute):
    now = NOW.replace(hour=0, minute=0) + timedelta(minutes=minute)
    held = [lease(plan=plan(10 + i, str(price)), ordered_at=now) for i, price in enumerate(prices)]
    allowed = refused(plan(1, str(wanted)), held=held, spent=str(spent), now=now) is None
    rate = sum((p * Decimal("1.05") for p in prices), wanted * Decimal("1.05"))
    rest_of_day = Decimal(24 * 60 - minute) / Decimal(24 * 60)
    worst = spent + rate * rest_of_day + Decimal("0.1") * (1 + len(prices))
    if allowed:
        assert worst <= 16 and rate <= 16


def segment(start: datetime, end: datetime | None, market_spend: str | None = None) -> LedgerSegment:
    return LedgerSegment(
        lease_id=LeaseId("l1"),
        deployment_id=DeploymentId("tiny"),
        order_id=OrderId(1),
        price=Rate.per_day("14.4"),
        is_spot=False,
        fee_percent=Decimal(0),
        creation_fee=Decimal(0),
        usd_per_unit=Decimal(1),
        rate_source="test",
        started_at=start,
        ended_at=end,
        market_spend=None if market_spend is None else Decimal(market_spend),
    )


def test_a_segment_over_midnight_counts_by_its_share():
    midnight = budget.midnight_utc(NOW)
    over = segment(midnight - minutes(60), midnight + minutes(60))
    assert budget.spent_since([over], midnight, NOW) == Decimal("0.6")


def test_what_the_market_charged_beyond_our_count_is_shared_out_over_midnight_alike():
    midnight = budget.midnight_utc(NOW)
    dear = replace(segment(midnight - minutes(60), midnight + minutes(60), "2.4"), settled_at=NOW)
    assert budget.spent_since([dear], midnight, NOW) == Decimal("1.2")


def test_a_creation_fee_counts_on_the_day_that_minute_ten_falls_into():
    midnight = budget.midnight_utc(NOW)
    for before, expected in ((3, "0.7"), (30, "0.6")):
        over = replace(
            segment(midnight - minutes(before), midnight + minutes(60)), creation_fee=Decimal("0.1")
        )
        assert budget.spent_since([over], midnight, NOW) == Decimal(expected)


def test_an_hour_before_midnight_that_was_not_charged_takes_nothing_off_today():
    """It waited unseen until then; the bill is one figure."""
    midnight = budget.midnight_utc(NOW)
    over = replace(segment(midnight - minutes(60), midnight + minutes(60), "0.6"), settled_at=NOW)
    assert budget.spent_since([over], midnight, NOW) == Decimal("0.6")
    # A part of the order that lies in today alone got what was left of the bill.
    part = replace(
        segment(midnight + minutes(60), midnight + minutes(120), "0.1"),
        order_started_at=midnight - minutes(60),
        settled_at=NOW,
    )
    assert budget.spent_since([part], midnight, NOW) == Decimal("0.6")


def test_the_larger_of_our_count_and_the_markets_counter_is_shown_while_it_runs():
    running = segment(NOW - minutes(60), None, "0.9")
    assert running.cost_usd(NOW) == Decimal("0.9")
    assert segment(NOW - minutes(60), None, "0.1").cost_usd(NOW) == Decimal("0.6")


@given(jump=st.integers(-10_000_000, 10_000_000))
def test_a_clock_that_jumps_never_makes_a_negative_bill(jump):
    """D1."""
    assert segment(NOW, None).estimate(NOW + timedelta(seconds=jump)).amount >= 0


def test_midnight_is_utc_also_for_a_clock_in_another_zone():
    from datetime import timezone

    elsewhere = datetime(2026, 11, 25, 1, 0, tzinfo=timezone(timedelta(hours=3)))
    assert budget.midnight_utc(elsewhere) == datetime(2026, 11, 24, tzinfo=UTC)


# -- the fleet's ceilings


def fleet(*held, per_day=None, total=None, today="0", spent="0", rates=None, own_total=None):
    guard = FleetGuard(
        per_day=parse_budget(per_day) if per_day else None,
        total_usd=None if total is None else Decimal(total),
        deployment_totals_usd={} if own_total is None else {DeploymentId("tiny"): Decimal(own_total)},
    )
    return budget.FleetSpending(
        guard=guard,
        open_leases=tuple(held),
        spent_today_usd=Decimal(today),
        spent_total_usd=Decimal(spent),
        deployment_spent_total_usd={DeploymentId("tiny"): Decimal(spent)},
        usd_per_unit=rates or {},
    )


def asked(the_plan, spending, *, ceiling="16/day"):
    return budget.refusal(
        deployment(budget=ceiling),
        the_plan,
        open_leases=(),
        spent_today_usd=Decimal(0),
        now=NOW,
        fleet=spending,
    )


def test_other_deployments_count_against_the_fleets_ceiling():
    other = lease(plan=plan(2, "8"), deployment_id=DeploymentId("other"), lease_id=LeaseId("l2"))
    assert asked(plan(1, "9"), fleet(other, per_day="20/day")) is None
    assert "fleet" in asked(plan(1, "12"), fleet(other, per_day="20/day")).text


def test_a_total_ceiling_refuses_what_it_would_not_carry_for_an_hour():
    assert asked(plan(1, "12"), fleet(total="10", spent="9.2")) is None
    assert asked(plan(1, "12"), fleet(total="10", spent="9.5")).is_lasting
    assert asked(plan(1, "12"), fleet(own_total="10", spent="9.5")).is_lasting


def in_clore(number=1, per_day="150", usd_per_unit="0.1"):
    return plan(
        number,
        billed=Rate.per_day(per_day, Currency.CLORE),
        usd_per_unit=Decimal(usd_per_unit),
        creation_fee=Decimal(0),
    )


def test_what_is_committed_follows_a_coin_whose_rate_is_told():
    """100 CLORE x 1.05 fee, at $0.1 when it was rented."""
    mine = lease(plan=in_clore(per_day="100"), price=Rate.per_day(100, Currency.CLORE))
    for now, usd in (("0.2", "21"), ("0.05", "5.25")):
        rates = [ExchangeRate(Currency.CLORE, Decimal(now), NOW, "test")]
        assert budget.committed_usd_per_day([mine], rates) == Decimal(usd)
    assert budget.committed_usd_per_day([mine]) == Decimal("10.5")


def test_a_coins_worst_admissible_rate_is_what_counts():
    """150 CLORE x 1.05 fee x $0.1 = $15.75, and 5 % more at the worst: above 16."""
    assert asked(in_clore(per_day="150"), fleet()).is_lasting
    assert asked(in_clore(per_day="145"), fleet()) is None  # 15.225 x 1.05 = 15.99
    assert asked(in_clore(per_day="145"), fleet(rates={Currency.CLORE: Decimal("0.101")})).is_lasting


def over(spending, *, ceiling="16/day", today="0", now=NOW):
    return budget.overspending(
        [deployment(budget=ceiling)],
        spent_today_usd={DeploymentId("tiny"): Decimal(today)},
        fleet=spending,
        now=now,
    )


def held(number, usd="4", **changes):
    return lease(
        plan=plan(number, usd),
        lease_id=LeaseId(f"l{number}"),
        created_at=NOW - minutes(100 - number),
        **changes,
    )


def test_a_lowered_budget_gives_back_the_newest_and_no_more_than_needed():
    """B9."""
    assert over(fleet(held(1), held(2), held(3))) == {}
    assert set(over(fleet(held(1), held(2), held(3)), ceiling="9/day")) == {"l3"}
    assert set(over(fleet(held(1), held(2), held(3)), ceiling="3/day")) == {"l1", "l2", "l3"}


def test_a_coin_that_jumps_gives_back_what_the_ceiling_no_longer_carries():
    """B3."""
    mine = lease(plan=in_clore(per_day="100"), price=Rate.per_day(100, Currency.CLORE))
    assert over(fleet(mine)) == {}
    assert set(over(fleet(mine, rates={Currency.CLORE: Decimal(1)}))) == {"l1"}


def test_a_total_is_never_reached_because_ending_takes_time():
    ending = fleet(held(1, "96"), total="10", spent="9.2")  # $4.2 an hour, $1.05 in the lead of 15 min
    assert set(over(ending, ceiling="200/day")) == {"l1"}
    assert over(fleet(held(1, "96"), total="10", spent="8.9"), ceiling="200/day") == {}


@given(
    usd=st.decimals("0.5", "15", places=2),
    minute=st.integers(0, 24 * 60 - 1),
)
def test_what_was_allowed_is_never_given_back_by_the_day_alone(usd, minute):
    """No flapping: a rent within the ceiling at midnight is within it at each later minute."""
    midnight = NOW.replace(hour=0, minute=0)
    now = midnight + timedelta(minutes=minute)
    mine = lease(plan=plan(1, str(usd)), ordered_at=midnight, created_at=midnight)
    fee = Decimal("0.1") if minute >= 10 else Decimal(0)
    burnt = usd * Decimal("1.05") * minute / 1440 + fee
    if refused(plan(1, str(usd)), now=midnight) is None:
        assert over(fleet(mine), today=str(burnt), now=now) == {}


def test_the_breaker_counts_rents_that_cost_and_hosts_that_failed():
    rents = [held(number, state=LeaseState.ENDED) for number in range(1, 14)]
    assert "13 servers" in budget.why_stop_renting(
        [replace(each, created_at=NOW - minutes(5)) for each in rents], (), FleetGuard(), NOW
    )
    assert (
        budget.why_stop_renting(
            [replace(each, created_at=NOW - minutes(61)) for each in rents], (), FleetGuard(), NOW
        )
        == ""
    )
    refused_ones = [replace(each, state=LeaseState.REFUSED, created_at=NOW) for each in rents]
    assert budget.why_stop_renting(refused_ones, (), FleetGuard(), NOW) == ""
    faults = [HostFault(ServerId(n), NOW - minutes(n), "bad", Decimal(0)) for n in range(1, 10)]
    assert "9 hosts" in budget.why_stop_renting((), faults, FleetGuard(), NOW)
    assert budget.why_stop_renting((), faults, FleetGuard(resumed_at=NOW), NOW) == ""


def test_a_clock_that_was_set_back_neither_trips_the_breaker_for_a_day_nor_switches_it_off():
    """D1."""
    ahead = NOW + minutes(24 * 60)
    before = [HostFault(ServerId(n), ahead - minutes(n), "bad", Decimal(0)) for n in range(1, 10)]
    assert budget.why_stop_renting((), before, FleetGuard(), NOW) == ""
    after = [HostFault(ServerId(n), NOW - minutes(n), "bad", Decimal(0)) for n in range(1, 10)]
    assert "9 hosts" in budget.why_stop_renting((), after, FleetGuard(resumed_at=ahead), NOW)
    # Two machines' clocks differ: a "go on" of the other one counts.
    assert budget.why_stop_renting((), after, FleetGuard(resumed_at=NOW + minutes(1)), NOW) == ""
