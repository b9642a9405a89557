"""The ceiling holds, whatever the past and whatever is in doubt."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId
from clorefleet.domain.ledger import LedgerSegment
from clorefleet.domain.money import Rate
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
