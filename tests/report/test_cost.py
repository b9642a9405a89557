"""Cost reports reconcile to the ledger: whatever the grouping, the window, the time zone or the phases."""

from __future__ import annotations

from datetime import UTC, timedelta
from decimal import Decimal
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clorefleet.domain.books import Books
from clorefleet.domain.dimension import Dimension
from clorefleet.domain.identity import DeploymentId
from clorefleet.domain.lease import Phase
from clorefleet.domain.ledger import closed, counted, switched
from clorefleet.domain.money import Currency, Rate
from clorefleet.report.charges import Stage, charges, exact_cost_usd, exact_sum, midnight
from clorefleet.report.cost import rows_by
from clorefleet.report.cost_report import CostQuestion, cost_report
from tests.report.builders import DAY, at, books, entered, held, segment, used

BERLIN = ZoneInfo("Europe/Berlin")


def stages_of(given_books: Books, now_h: float) -> dict[Stage, tuple[Decimal, float]]:
    report = cost_report(given_books, CostQuestion((), UTC, "UTC"), now=at(now_h))
    return {stage: (usd, lasted / timedelta(hours=1)) for stage, (usd, lasted) in report.total.stages.items()}


def test_time_goes_to_the_stage_that_the_replica_was_in():
    one_dollar_an_hour = segment(0, 6)
    phases = (
        entered(Phase.RENTING, 0), entered(Phase.WAITING, 0.1), entered(Phase.SYNCING, 0.5),
        entered(Phase.SERVING, 1), entered(Phase.DRAINING, 5), entered(Phase.ENDED, 6),
    )  # fmt: skip
    found = stages_of(books([one_dollar_an_hour], held(), phases=phases, usage=(used(1), used(4))), 8)
    assert found == {
        Stage.BOOTSTRAP: (Decimal(1), 1), Stage.SERVING: (Decimal(2), 2),
        Stage.IDLE: (Decimal(2), 2), Stage.DRAINING: (Decimal(1), 1),
    }  # fmt: skip


def test_time_before_phases_were_recorded_is_not_guessed():
    found = stages_of(books([segment(0, 2)], held(), phases=(entered(Phase.SERVING, 1),)), 2)
    assert found == {Stage.UNRECORDED: (Decimal(1), 1), Stage.IDLE: (Decimal(1), 1)}


def test_an_engine_that_is_launched_again_is_bootstrap_again():
    phases = (entered(Phase.RENTING, 0), entered(Phase.SERVING, 1), entered(Phase.LAUNCHING, 2),
              entered(Phase.SERVING, 3))  # fmt: skip
    found = stages_of(books([segment(0, None)], held(), phases=phases, usage=(used(1), used(3))), 4)
    assert found == {Stage.BOOTSTRAP: (Decimal(2), 2), Stage.SERVING: (Decimal(2), 2)}


def test_the_creation_fee_belongs_to_the_day_of_minute_ten():
    late = segment(23.9, 48, per_day="0", creation_fee=Decimal("0.1"))
    rows = rows_by((Dimension.DAY,), charges(books([late]), now=at(48), zone=UTC), books([late]), zone=UTC)
    assert [(row.key, row.usd) for row in rows] == [
        (("2026-11-24",), Decimal(0)), (("2026-11-25",), Decimal("0.1"))
    ]  # fmt: skip


def test_days_are_those_of_the_asked_time_zone_and_clock_changes_make_them_25_hours():
    autumn = segment(-31 * 24, -28 * 24, per_day="24")  # 24 to 27 October 2026, UTC
    found = charges(books([autumn]), now=at(0), zone=BERLIN)
    rows = rows_by((Dimension.DAY,), found, books([autumn]), zone=BERLIN)
    assert [(row.key[0], row.lasted) for row in rows] == [
        ("2026-10-24", timedelta(hours=22)), ("2026-10-25", timedelta(hours=25)),
        ("2026-10-26", timedelta(hours=24)), ("2026-10-27", timedelta(hours=1)),
    ]  # fmt: skip


def test_dollars_per_million_tokens_is_all_that_was_spent_over_what_was_generated():
    report = cost_report(
        books([segment(0, 2)], held(), usage=(used(0, tokens=400_000), used(1, tokens=100_000))),
        CostQuestion((Dimension.DEPLOYMENT,), UTC, "UTC"),
        now=at(2),
    )
    [row] = report.rows
    assert (row.usd, row.used.generated_tokens, row.used.prompt_tokens) == (2, 500_000, 1_000_000)
    assert row.usd_per_million_tokens == 4


def test_a_group_without_tokens_has_no_price_per_token():
    report = cost_report(books([segment(0, 2)]), CostQuestion((Dimension.KIND,), UTC, "UTC"), now=at(2))
    [row] = report.rows
    assert (row.key, row.usd_per_million_tokens) == (("on-demand",), None)


def test_coins_are_counted_in_usd_at_the_rate_that_was_recorded_with_each_stretch():
    first = segment(0, None, per_day="240", currency=Currency.CLORE, usd_per_unit=Decimal("0.01"))
    both = switched(
        (first,), at(12), price=Rate.per_day("240", Currency.CLORE), usd_per_unit=Decimal("0.02"),
        rate_source="later",
    )  # fmt: skip
    report = cost_report(books(both), CostQuestion((Dimension.CURRENCY,), UTC, "UTC"), now=at(24))
    [row] = report.rows
    assert (row.key, row.amounts, row.usd) == (("CLORE",), {Currency.CLORE: 240}, Decimal("3.6"))


def test_the_plan_is_compared_with_what_the_order_cost():
    dearer = segment(0, 24, per_day="30", fee_percent=Decimal(5))
    promised = held(per_day="24", price_changes={"fee_percent": Decimal(5)})
    report = cost_report(books([dearer], promised), CostQuestion((), UTC, "UTC"), now=at(24))
    [kept] = report.kept
    assert (kept.planned_usd_per_day, kept.actual_usd_per_day) == (Decimal("25.2"), Decimal("31.5"))
    assert (report.total.planned_usd, report.total.usd) == (Decimal("25.2"), Decimal("31.5"))


def test_a_window_side_by_side_with_another_shares_nothing_with_it():
    everything = books([segment(0, 30)])
    parts = [
        cost_report(everything, CostQuestion((), UTC, "UTC", since, until), now=at(40)).total.usd
        for since, until in ((None, at(7.25)), (at(7.25), at(29)), (at(29), None))
    ]
    assert sum(parts) == 30 and parts[1] == Decimal("21.75")


def test_one_deployment_is_reported_beside_the_fleets_forecast():
    both = books([segment(0, None), segment(0, None, name="other", lease_id="l2", order_id=901)])
    question = CostQuestion((Dimension.DEPLOYMENT,), UTC, "UTC", deployment_id=DeploymentId("other"))
    report = cost_report(both, question, now=at(1))
    assert [row.key for row in report.rows] == [("other",)]
    assert [each.deployment_id for each in report.forecasts] == [None, "other"]


# -- properties

amounts = st.decimals("0.00000001", "900", places=8)
rates = st.sampled_from([Decimal(1), Decimal("0.00731"), Decimal(1) / Decimal(7), Decimal("68123.4") / 3])


@st.composite
def some_books(draw: st.DrawFn) -> Books:
    """Orders of several leases with price and rate changes, bills, phases and usage at any time."""
    segments, leases, phases, usage = [], [], [], []
    for index in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(-90_000, 90_000))
        lasted = draw(st.integers(0, 200_000))
        lease_id, name = f"l{index}", draw(st.sampled_from(["tiny", "other"]))
        mine = (
            segment(
                begin / 3600, None, per_day=str(draw(amounts)), lease_id=lease_id, order_id=900 + index,
                name=name, currency=draw(st.sampled_from(Currency)), is_spot=draw(st.booleans()),
                fee_percent=draw(st.sampled_from([Decimal(0), Decimal(5), Decimal("1.25")])),
                creation_fee=draw(st.sampled_from([Decimal(0), Decimal("0.1")])),
                usd_per_unit=draw(rates),
            ),
        )  # fmt: skip
        for moment in sorted(draw(st.lists(st.integers(0, lasted), max_size=3))):
            mine = switched(
                mine, at((begin + moment) / 3600), usd_per_unit=draw(rates), rate_source="moved",
                price=Rate.per_day(draw(amounts), mine[-1].currency),
            )  # fmt: skip
        if draw(st.booleans()):
            mine = counted(mine, draw(amounts))
        if draw(st.booleans()):
            settled = draw(st.none() | amounts)
            mine = closed(mine, ended_at=at((begin + lasted) / 3600), settled=settled, now=at(90))
        segments += mine
        if draw(st.booleans()):
            leases.append(held(lease_id, name, server_id=7 + index))
        times = sorted(draw(st.lists(st.integers(begin - 999, begin + lasted + 999), max_size=5)))
        names = st.sampled_from([Phase.WAITING, Phase.SERVING, Phase.LAUNCHING, Phase.DRAINING, Phase.ENDED])
        phases += [entered(draw(names), time / 3600, lease_id) for time in times]
        hours = draw(st.sets(st.integers(begin // 3600, (begin + lasted) // 3600), max_size=4))
        usage += [used(hour, lease_id=lease_id) for hour in hours]
    phases.sort(key=lambda each: each.at)
    return books(segments, *leases, phases=tuple(phases), usage=tuple(usage))


groupings = st.lists(st.sampled_from(Dimension), max_size=3, unique=True).map(tuple)
zones = st.sampled_from([UTC, BERLIN, ZoneInfo("Asia/Kathmandu"), ZoneInfo("America/Havana")])


@given(some_books(), groupings, zones)
def test_any_grouping_sums_to_the_ledgers_total_exactly(given_books, grouping, zone):
    now = at(90)
    total = exact_sum(exact_cost_usd(each, now) for each in given_books.segments)
    report = cost_report(given_books, CostQuestion(grouping, zone, "x"), now=now)
    assert exact_sum(row.usd for row in report.rows) == report.total.usd == total
    by_ledger = sum((each.cost_usd(now) for each in given_books.segments), Decimal(0))
    assert abs(total - by_ledger) < Decimal("1e-15")  # its products are rounded to 28 digits
    for currency in Currency:
        billed = exact_sum(
            each.cost(now).amount for each in given_books.segments if each.currency is currency
        )
        assert exact_sum(row.amounts.get(currency, Decimal(0)) for row in report.rows) == billed


@given(some_books(), zones)
def test_stages_partition_the_time_and_the_cost_of_each_segment(given_books, zone):
    now = at(90)
    found = charges(given_books, now=now, zone=zone)
    for each in given_books.segments:
        end = max(each.started_at, each.ended_at or now)
        mine = [charge for charge in found if charge.order_id == each.order_id
                and each.started_at <= charge.started_at and charge.ended_at <= end]  # fmt: skip
        assert mine[0].started_at == each.started_at
        assert all(earlier.ended_at == later.started_at for earlier, later in pairwise(mine))
        assert mine[-1].ended_at == end
        assert all(charge.amount >= 0 for charge in mine)
    lasted = sum((charge.lasted for charge in found), timedelta(0))
    assert lasted == sum(
        (max(timedelta(0), (each.ended_at or now) - each.started_at) for each in given_books.segments),
        timedelta(0),
    )
    for row in rows_by((Dimension.DEPLOYMENT,), found, given_books, zone=zone):
        assert exact_sum(usd for usd, _ in row.stages.values()) == row.usd


@given(some_books(), st.lists(st.integers(-30, 90), min_size=1, max_size=4, unique=True), zones)
def test_windows_side_by_side_sum_to_the_whole(given_books, hours, zone):
    now, edges = at(90), [None, *(at(hour) for hour in sorted(hours)), None]
    windows = [
        cost_report(given_books, CostQuestion((Dimension.DAY,), zone, "x", since, until), now=now)
        for since, until in pairwise(edges)
    ]
    whole = cost_report(given_books, CostQuestion((Dimension.DAY,), zone, "x"), now=now)
    assert exact_sum(window.total.usd for window in windows) == whole.total.usd
    assert sum(window.total.used.generated_tokens for window in windows) == (
        whole.total.used.generated_tokens
    )


@given(st.dates(DAY.date(), DAY.date() + timedelta(days=800)), zones)
def test_a_local_day_begins_where_its_date_begins(day, zone):
    begin = midnight(day, zone)
    assert begin.astimezone(zone).date() == day
    assert (begin - timedelta(microseconds=1)).astimezone(zone).date() == day - timedelta(days=1)


@pytest.mark.parametrize("dimension", Dimension)
def test_usage_and_charges_are_called_alike(dimension):
    given_books = books([segment(0, 1)], held(), phases=(entered(Phase.SERVING, 0),), usage=(used(0),))
    report = cost_report(given_books, CostQuestion((dimension,), UTC, "UTC"), now=at(1))
    [row] = report.rows
    assert (row.usd, row.used.requests) == (1, 1)
