"""Money carries its currency, rates their period, and budgets are read strictly."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clorefleet.domain.errors import BadBudget
from clorefleet.domain.money import (
    Currency,
    CurrencyMismatch,
    ExchangeRate,
    Money,
    Period,
    Rate,
    parse_budget,
)


@pytest.mark.parametrize(
    "text, amount, period, was_stated",
    [
        ("16/day", "16", Period.DAY, True),
        ("$16/day", "16", Period.DAY, True),
        ("0.7/hour", "0.7", Period.HOUR, True),
        ("500/month", "500", Period.MONTH, True),
        ("16", "16", Period.DAY, False),
        ("16 usd per day", "16", Period.DAY, True),
        ("$1,000/mo", "1000", Period.MONTH, True),
        ("1,234,567.89/month", "1234567.89", Period.MONTH, True),
        ("1_000/day", "1000", Period.DAY, True),
        (" .5 / h ", "0.5", Period.HOUR, True),
    ],
)
def test_budgets_as_people_write_them(text: str, amount: str, period: Period, was_stated: bool):
    budget = parse_budget(text)
    assert budget.ceiling == Rate(Decimal(amount), Currency.USD, period)
    assert budget.period_was_stated is was_stated


@pytest.mark.parametrize(
    "text",
    ["", "free", "0", "0/day", "-3/day", "nan", "NaN/day", "inf", "1e5", "16/fortnight", "16/", "€16/day",
     "16/day/day", "1" * 200, "99999999999/day", "16\n/day; rm", "١٦/day"],
)  # fmt: skip
def test_nonsense_zero_negative_and_nan_are_refused_with_an_example(text: str):
    with pytest.raises(BadBudget) as caught:
        parse_budget(text)
    assert "16/day" in caught.value.remedy


@pytest.mark.parametrize(
    "text", ["0,50/day", "1,5/day", "16,00/day", "0,500/day", "1.000,50/day", "1,00,000", "1,"]
)
def test_a_comma_is_never_dropped_from_before_the_cents(text: str):
    """`0,50/day` was read as 50 USD a day."""
    with pytest.raises(BadBudget, match="a comma parts thousands") as caught:
        parse_budget(text)
    assert "16/day" in caught.value.remedy


def test_a_monthly_budget_holds_in_the_longest_month():
    assert parse_budget("310/month").per_day.amount == Decimal(10)


def test_an_hourly_price_is_never_taken_for_a_daily_one():
    hourly = Rate(Decimal(1), Currency.USD, Period.HOUR)
    assert hourly.per(Period.DAY).amount == 24
    assert not hourly <= Rate.per_day(23)


def test_two_currencies_never_mix_without_a_rate():
    coin, dollar = Money(Decimal(1), Currency.CLORE), Money.usd(1)
    for mix in (
        lambda: coin + dollar,
        lambda: coin < dollar,
        lambda: Rate.per_day(1, Currency.CLORE) + Rate.per_day(1),
    ):
        with pytest.raises(CurrencyMismatch):
            mix()
    rate = ExchangeRate(Currency.CLORE, Decimal("0.0095"), datetime.now(UTC), "test")
    assert rate.to_usd(coin) + dollar == Money.usd("1.0095")
    with pytest.raises(CurrencyMismatch):
        rate.to_usd(dollar)


@pytest.mark.parametrize("amount", [1.5, "2", None])
def test_floats_and_text_are_no_amounts(amount: object):
    with pytest.raises(TypeError):
        Money(amount, Currency.USD)  # type: ignore[arg-type]


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "-Infinity"])
def test_money_is_finite(amount: str):
    with pytest.raises(ValueError, match="finite"):
        Money(Decimal(amount), Currency.USD)


@given(st.decimals("0", "100000", places=8), st.integers(0, 10**7))
def test_seconds_of_a_rate_sum_to_the_rate_without_drift(amount: Decimal, seconds: int):
    rate = Rate.per_day(amount)
    whole = rate.for_seconds(seconds) + rate.for_seconds(86_400 - seconds % 86_400)
    assert abs(whole.amount - rate.for_seconds(seconds + 86_400 - seconds % 86_400).amount) < Decimal("1e-18")
