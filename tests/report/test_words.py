"""Amounts as people read them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from clorefleet.domain.money import Currency, Rate
from clorefleet.report.words import hourly


@pytest.mark.parametrize(
    ("per_day", "currency", "shown"),
    [
        ("28.7845", Currency.CLORE, "1.19935417 CLORE/hour"),
        ("24", Currency.CLORE, "1 CLORE/hour"),
        ("0.00001", Currency.BITCOIN, "0.00000042 BTC/hour"),
        ("13.02", Currency.USD, "$0.5425/hour"),
    ],
)
def test_an_hours_price_has_no_digits_that_only_came_of_a_division(per_day, currency, shown):
    assert hourly(Rate.per_day(Decimal(per_day), currency)) == shown
