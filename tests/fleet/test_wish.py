"""Stop, and keep so many: what becomes of a deployment by one word or one number."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from clorefleet.domain.deployment import Desired, Origin, ScalePolicy
from clorefleet.domain.errors import BadInput, BudgetExceeded
from clorefleet.domain.money import Currency, ExchangeRate, Rate
from clorefleet.domain.plan import Objective
from clorefleet.fleet.wish import REPLICAS_MAX, check_budget, means, more_usd_per_day, scaled, stopped
from tests.fleet.builders import NOW, deployment, lease, plan


def test_a_stopped_deployment_keeps_everything_but_its_trouble():
    before = deployment(note="nothing fits", has_given_up=True)
    after = stopped(before)
    assert after == replace(before, desired=Desired.STOPPED, note="", has_given_up=False)


@pytest.mark.parametrize(
    ("most", "replicas", "most_after"), [(None, 3, None), (4, 2, 4), (4, 6, 6), (4, 4, 4)]
)
def test_the_most_that_load_may_ask_for_is_never_below_what_is_kept(most, replicas, most_after):
    after = scaled(deployment(replicas_max=most), replicas, now=NOW)
    assert (after.replicas, after.replicas_max) == (replicas, most_after)


def test_another_number_lets_what_had_given_up_try_again():
    after = scaled(deployment(note="nothing fits", has_given_up=True), 2, now=NOW)
    assert (after.note, after.has_given_up, after.attempts_since) == ("", False, NOW)


@pytest.mark.parametrize("replicas", [0, -1, REPLICAS_MAX + 1])
def test_numbers_that_cannot_be_kept_are_refused(replicas: int):
    with pytest.raises(BadInput):
        scaled(deployment(), replicas, now=NOW)


def test_a_stopped_deployment_is_not_scaled():
    with pytest.raises(BadInput, match="is stopped"):
        scaled(deployment(desired=Desired.STOPPED), 2, now=NOW)


@pytest.mark.parametrize(("most", "replicas"), [(1, 2), (REPLICAS_MAX + 1, 2), (0, 1)])
def test_a_maximum_below_what_is_kept_or_above_the_limit_is_refused(most: int, replicas: int):
    with pytest.raises(BadInput, match="cannot be kept"):
        scaled(deployment(scale=ScalePolicy()), replicas, now=NOW, replicas_max=most)


def test_a_maximum_says_nothing_where_load_is_not_followed():
    with pytest.raises(BadInput, match="does not follow its load"):
        scaled(deployment(), 1, now=NOW, replicas_max=4)


def test_a_lower_maximum_is_kept_as_asked():
    after = scaled(deployment(scale=ScalePolicy(), replicas_max=8), 2, now=NOW, replicas_max=3)
    assert (after.replicas, after.replicas_max) == (2, 3)


# -- what is said before


def said(before, replicas: int, *leases, most: int | None = None) -> str:
    return " ".join(means(before, scaled(before, replicas, now=NOW, replicas_max=most), leases))


def test_more_cost_as_much_each_as_what_runs_and_never_more_than_the_budget():
    before = deployment()
    words = said(before, 3, lease())
    assert "2 more, at about $2.10 a day each [estimated" in words and "$4.20 a day more" in words
    assert "Never above its budget of $16/day" in words
    assert more_usd_per_day(before, scaled(before, 3, now=NOW), [lease()]) == Decimal("4.2")


def test_more_of_what_a_coin_pays_cost_as_the_coin_is_worth_now():
    price = replace(plan().price, billed=Rate.per_day(200, Currency.CLORE), usd_per_unit=Decimal("0.02"))
    held = [lease(plan=replace(plan(), price=price))]
    doubled = [ExchangeRate(Currency.CLORE, Decimal("0.04"), NOW, "test")]
    before, after = deployment(), scaled(deployment(), 2, now=NOW)
    assert more_usd_per_day(before, after, held) == Decimal("4.2")
    assert more_usd_per_day(before, after, held, doubled) == Decimal("8.4")
    assert "$8.40 a day more" in " ".join(means(before, after, held, doubled))


def test_without_a_running_one_no_price_is_made_up():
    words = said(deployment(), 2)
    assert "nothing runs now that a price could be taken from" in words and "estimated" not in words
    assert more_usd_per_day(deployment(), deployment(replicas=2), []) is None


def test_fewer_say_who_goes_and_nothing_of_a_budget():
    words = said(deployment(replicas=3), 1, lease())
    assert "2 fewer: those farthest along stay" in words and "budget" not in words


def test_a_higher_maximum_is_told_with_the_budget_that_holds_it():
    words = said(deployment(scale=ScalePolicy(), replicas_max=2), 1, lease(), most=4)
    assert "Load may ask for 4 at most, 2 before." in words and "budget" in words


def test_what_a_fleet_file_keeps_is_said_to_be_set_again():
    assert "`clorefleet apply` sets the file's number again" in said(deployment(origin=Origin.FILE), 2)


def test_more_at_once_than_the_circuit_breaker_allows_is_told_with_what_goes_on():
    before = deployment(budget="100/day")
    assert "until `clorefleet budget --resume`" in said(before, 14, lease())
    assert "--resume" not in said(before, 13, lease())


# -- what the budget cannot hold


def test_more_than_the_budget_holds_is_refused_with_the_budget_that_would():
    """$13.65 a day with the fee, within $16: there is no room for a second."""
    before = deployment()
    held = [lease(plan=plan(usd_per_day="13"))]
    with pytest.raises(
        BudgetExceeded, match=r"2 replicas do not fit in the budget of \$16/day; about \$27.30"
    ):
        check_budget(before, scaled(before, 2, now=NOW), held)


def test_a_coin_counts_at_its_worst_admissible_rate_as_a_rent_counts_it():
    price = replace(plan().price, billed=Rate.per_day(375, Currency.CLORE), usd_per_unit=Decimal("0.02"))
    held = [lease(plan=replace(plan(), price=price))]
    before = deployment()
    check_budget(before, before, held)
    with pytest.raises(BudgetExceeded):  # twice $7.875 is below 16, twice $8.27 is not
        check_budget(before, scaled(before, 2, now=NOW), held)


def test_what_the_budget_holds_and_what_nobody_can_price_is_not_refused():
    before = deployment()
    check_budget(before, scaled(before, 7, now=NOW), [lease()])
    check_budget(before, scaled(before, 16, now=NOW), [])
    fast = deployment()
    fast = replace(fast, requirement=replace(fast.requirement, objective=Objective.SPEED))
    check_budget(fast, scaled(fast, 2, now=NOW), [lease(plan=plan(usd_per_day="13"))])
    many = deployment(replicas=3)
    check_budget(many, scaled(many, 2, now=NOW), [lease(plan=plan(usd_per_day="13"))])
