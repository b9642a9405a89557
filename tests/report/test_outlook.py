"""Forecasts to the end of the month, ceilings, and how long wallets last."""

from __future__ import annotations

from datetime import UTC, timedelta
from decimal import Decimal

from clorefleet.domain.deployment import Desired
from clorefleet.domain.guard import FleetGuard, WalletReading
from clorefleet.domain.lease import LeaseState, Phase
from clorefleet.domain.money import Currency, ExchangeRate, Money, parse_budget
from clorefleet.report.charges import charges
from clorefleet.report.outlook import forecasts, runways
from tests.fleet.builders import deployment
from tests.report.builders import DAY, at, books, held, segment


def forecast_of(given_books, now):
    return forecasts(charges(given_books, now=now, zone=UTC), given_books, now=now, zone=UTC)


def test_what_runs_now_runs_on_to_the_end_of_the_month():
    fleet, tiny = forecast_of(books([segment(0, None)], held()), at(24))  # 25 November: six days are left
    assert (fleet.month, fleet.spent_usd, fleet.running_usd_per_day) == ("2026-11", 24, 24)
    assert fleet.at_present_usd == 24 + 6 * 24 == tiny.at_present_usd
    assert fleet.ceiling_usd is None and tiny.ceiling_usd == 16 * 7


def test_what_has_ended_counts_for_the_recent_days_only():
    fleet, _ = forecast_of(books([segment(0, 24)], held()), at(48))
    assert fleet.running_usd_per_day == 0 and fleet.at_present_usd == 24
    assert fleet.recent_usd_per_day == 12 and fleet.at_recent_usd == 24 + 5 * 12


def test_recent_days_are_at_most_seven_and_a_charge_that_began_before_counts_by_its_share():
    fleet, _ = forecast_of(books([segment(-20 * 24, None)], held()), at(24))
    assert fleet.recent_usd_per_day == 24


def test_a_first_hour_says_nothing_about_a_month():
    fleet, _ = forecast_of(books([segment(0, None)], held()), at(1))
    assert fleet.recent_usd_per_day is None and fleet.at_recent_usd is None


def test_ceilings_count_from_a_deployments_first_day_or_the_months():
    def ceiling(begun_h: float, **changes):
        wish = deployment(created_at=at(begun_h), **changes)
        _, tiny = forecast_of(books([segment(max(begun_h, 120), None)], deployments=(wish,)), at(143))
        return tiny.ceiling_usd

    assert ceiling(24 * 5 + 9) == 16 * 2, "from the 29th on"
    assert ceiling(-24 * 90) == 16 * 30, "from the 1st on"
    assert ceiling(24 * 5 + 9, desired=Desired.STOPPED) is None


def test_the_fleets_ceiling_is_its_daily_one_for_every_day_of_the_month_since_its_first():
    guard = FleetGuard(per_day=parse_budget("25/day"))
    fleet, _ = forecast_of(books([segment(-24 * 20, None)], held(), guard=guard), at(24))
    assert fleet.ceiling_usd == 25 * 27 and not fleet.is_over
    guard = FleetGuard(per_day=parse_budget("10/day"))
    fleet, _ = forecast_of(books([segment(-24 * 20, None)], held(), guard=guard), at(24))
    assert fleet.is_over


def test_a_deployment_without_budget_has_no_ceiling():
    free = deployment(requirement=deployment().requirement.__class__("smollm2-135m"))
    _, tiny = forecast_of(books([segment(0, None)], held(), deployments=(free,)), at(24))
    assert tiny.ceiling_usd is None


def test_a_wallet_in_coins_is_worth_what_the_last_recorded_rate_says():
    reading = WalletReading(
        Money(Decimal(1000), Currency.CLORE), DAY, Decimal(0), Decimal(250), Decimal(1010), DAY, Decimal(0)
    )
    rate = ExchangeRate(Currency.CLORE, Decimal("0.01"), DAY, "market")
    [runway] = runways(books([], wallets=(reading,), rates=(rate,)))
    assert (runway.balance_usd, runway.runway_days, runway.drift) == (10, 4, 10)
    [unrated] = runways(books([], wallets=(reading,)))
    assert unrated.balance_usd is None and unrated.runway_days == 4


def test_a_wallet_lasts_at_what_is_committed_now_whatever_was_billed_when_it_was_read():
    """Read at hour 1, when an order of ours for 24 a day and another's for 6 were live."""
    reading = WalletReading(
        Money(Decimal(2000), Currency.USD), at(1), Decimal(0), Decimal(30), Decimal(2000), DAY, Decimal(0)
    )
    fee = {"price_changes": {"fee_percent": Decimal(25)}}
    new = held("l2", per_day="11.2", state=LeaseState.INTENT, phase=Phase.RENTING, **fee)
    gone = held(state=LeaseState.ENDED, phase=Phase.ENDED)

    def burns(segments, *leases, **changes):
        [runway] = runways(books(segments, *leases, wallets=(reading,), **changes))
        return runway.burn_per_day

    assert burns([segment(0, None)], held()) == 24 + 6
    assert burns([segment(0, 2)], gone, new) == 14 + 6, "the fee counts, and so does what has no ledger line"
    assert burns([segment(0, 2)], gone) == 6
    assert burns([segment(0, 1)], gone) == 6, "it ended in the minute in which the wallet was read"
    assert burns([segment(0, 1), segment(1, 2, per_day="20")], gone) == 6, "one order at two prices"
    assert burns([segment(0, 2, per_day="30")], gone) == 0
    assert burns([], since=at(1.5)) == 0, "the ledger of then was not read"
    [idle] = runways(books([segment(0, 2, per_day="30")], gone, wallets=(reading,)))
    assert idle.runway_days is None


def test_a_month_ends_in_the_asked_time_zone():
    from zoneinfo import ZoneInfo

    given_books, zone = books([segment(0, None)]), ZoneInfo("Europe/Berlin")
    now = at(24 * 6 + 23.5)  # 30 November, 23:30 UTC: December there
    fleet, *_ = forecasts(charges(given_books, now=now, zone=zone), given_books, now=now, zone=zone)
    assert fleet.month == "2026-12" and fleet.spent_usd == Decimal("0.5")
    assert fleet.ends_at == DAY.replace(month=12, day=31) + timedelta(hours=23)
