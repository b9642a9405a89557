"""S7: no gap, overlap or negative interval, also across clock jumps; the final sum is the market's own."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from clorefleet.domain.identity import DeploymentId, LeaseId, OrderId
from clorefleet.domain.ledger import LedgerSegment, closed, counted, faults_of, reopened, switched
from clorefleet.domain.money import Rate
from clorefleet.sandbox import billing
from tests.fleet.builders import NOW, minutes

FIRST = LedgerSegment(
    lease_id=LeaseId("l1"),
    deployment_id=DeploymentId("tiny"),
    order_id=OrderId(3),
    price=Rate.per_day("2.16"),
    is_spot=True,
    fee_percent=Decimal("1.25"),
    creation_fee=Decimal("0.1"),
    usd_per_unit=Decimal(1),
    rate_source="test",
    started_at=NOW,
)
jumps = st.integers(-2 * 86_400, 2 * 86_400)
prices = st.decimals("0.01", "99", places=6)
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("price"), jumps, prices),
        st.tuples(st.just("spend"), jumps, prices),
        st.tuples(st.just("close"), jumps, st.none()),
        st.tuples(st.just("reopen"), jumps, st.none()),
    ),
    max_size=12,
)


@given(happenings, prices)
def test_whatever_happens_and_wherever_the_clock_jumps_the_intervals_are_sound(events, bill):
    segments, now = (FIRST,), NOW
    for what, jump_s, value in events:
        now += timedelta(seconds=jump_s)
        if what == "price":
            segments = switched(
                segments, now, price=Rate.per_day(value), usd_per_unit=Decimal(1), rate_source="test"
            )
        elif what == "spend":
            segments = counted(segments, value)
        elif what == "close":
            segments = closed(segments, ended_at=now, settled=None, now=now)
        else:
            segments = reopened(segments)
        assert faults_of(segments) == ()
        assert all(each.estimate(now).amount >= 0 for each in segments)
    segments = closed(segments, ended_at=now, settled=bill, now=now)
    assert faults_of(segments) == ()
    assert sum(each.cost(now).amount for each in segments) == bill
    assert all(each.cost(now).amount >= 0 for each in segments)


@given(
    st.lists(st.tuples(st.integers(1, 4000), prices), min_size=1, max_size=6),
    st.decimals("0", "10", places=2),
)
def test_our_own_count_is_the_simulated_markets_bill(stretches, fee_percent):
    """Known beginning and end: the count differs from the bill by rounding alone, a unit per segment."""
    segments, at = (replace(FIRST, price=Rate.per_day(stretches[0][1]), fee_percent=fee_percent),), NOW
    billed, minute = [], 0
    for length, price in stretches:
        if billed:
            segments = switched(
                segments, at, price=Rate.per_day(price), usd_per_unit=Decimal(1), rate_source="test"
            )
        billed.append(billing.Segment(minute * 60, price))
        at, minute = at + minutes(length), minute + length
    segments = closed(segments, ended_at=at, settled=None, now=at)
    bill = billing.bill_for(minute * 60, billed, fee_percent=fee_percent, creation_fee=Decimal("0.1"))
    ours = sum(each.estimate(at).amount for each in segments)
    assert abs(ours - bill.total) <= Decimal("0.00000001") * 2 * len(stretches)
    if len(stretches) == 1:
        assert ours == bill.total


@given(st.lists(st.integers(0, 900), max_size=5), st.integers(0, 1800))
def test_each_minute_and_the_creation_fee_belong_to_exactly_one_segment(cuts_s, length_s):
    """Wherever a boundary falls, also inside a minute."""
    segments = (FIRST,)
    for cut_s in sorted(cuts_s):
        segments = switched(
            segments,
            NOW + timedelta(seconds=cut_s),
            price=Rate.per_day("2.16"),
            usd_per_unit=Decimal(1),
            rate_source="test",
        )
    end = NOW + timedelta(seconds=max([length_s, *cuts_s]))
    whole = closed((FIRST,), ended_at=end, settled=None, now=end)[0].estimate(end).amount
    parts = closed(segments, ended_at=end, settled=None, now=end)
    assert abs(sum(each.estimate(end).amount for each in parts) - whole) <= Decimal("0.00000001") * 2 * len(
        parts
    )


def test_a_rate_stays_with_its_segment():
    """B3: what was spent before a coin jumped keeps the rate it was spent at."""
    segments = switched(
        (FIRST,), NOW + minutes(60), price=FIRST.price, usd_per_unit=Decimal(10), rate_source="jumped"
    )
    first, second = closed(
        segments, ended_at=NOW + minutes(120), settled=Decimal("0.4"), now=NOW + minutes(120)
    )
    assert first.usd_per_unit == 1 and second.usd_per_unit == 10
    assert first.cost(NOW).amount + second.cost(NOW).amount == Decimal("0.4")


def test_a_settled_bill_is_not_counted_over():
    settled = closed((FIRST,), ended_at=NOW + minutes(5), settled=Decimal("0.42"), now=NOW + minutes(6))
    assert counted(settled, Decimal(9)) == settled
    assert settled[0].drift == Decimal("0.42") - settled[0].estimate(NOW).amount


def test_the_faults_of_a_broken_ledger_are_named():
    early = replace(FIRST, ended_at=NOW + minutes(5))
    late = replace(FIRST, started_at=NOW + minutes(6))
    assert faults_of((early, late)) and faults_of((replace(FIRST, ended_at=NOW - minutes(1)),))
