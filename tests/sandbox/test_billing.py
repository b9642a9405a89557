"""The charging rule of the simulated market, as a client's ledger would reproduce it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clorefleet.sandbox.billing import Bill, Segment, bill_for, first_unpayable_s
from clorefleet.sandbox.coins import wire_number

FIVE = Decimal(5)


def on_demand(minutes: int, price: str, *, creation: str = "0.1") -> Bill:
    price_per_day = Decimal(price)
    return bill_for(
        minutes * 60, [Segment(0, price_per_day)], fee_percent=FIVE, creation_fee=Decimal(creation)
    )


@pytest.mark.parametrize(
    ("minutes", "price", "rent", "fee", "creation"),
    [
        (0, "14.40", "0", "0", "0"),
        (1, "14.40", "0.01", "0.0005", "0"),
        (9, "14.40", "0.09", "0.0045", "0"),
        (10, "14.40", "0.10", "0.005", "0.1"),
        (1440, "3.9", "3.9", "0.195", "0.1"),
        (300, "14.24", "2.96666667", "0.14833333", "0.1"),
        (1, "0.00004120", "0.00000003", "0", "0"),
    ],
)
def test_bill_is_rent_by_the_minute_plus_fee_and_a_creation_fee_from_minute_ten(
    minutes: int, price: str, rent: str, fee: str, creation: str
) -> None:
    bill = on_demand(minutes, price)
    assert (bill.rent, bill.fee, bill.creation_fee) == (Decimal(rent), Decimal(fee), Decimal(creation))


def test_price_change_counts_from_where_it_is_told_and_a_pause_costs_nothing() -> None:
    segments = [Segment(0, Decimal("14.4")), Segment(3600, Decimal("0")), Segment(7200, Decimal("28.8"))]
    bills = [
        bill_for(charged_s, segments, fee_percent=Decimal(0), creation_fee=Decimal(0)).rent
        for charged_s in (3600, 7200, 7260)
    ]
    assert bills == [Decimal("0.6"), Decimal("0.6"), Decimal("0.62")]


@given(
    price=st.decimals("0.00000001", "900", places=8),
    charged_s=st.integers(0, 12_000_000),
    percent=st.sampled_from([Decimal("5"), Decimal("1.25"), Decimal("0")]),
)
def test_rounding_never_builds_up_however_long_an_order_runs(
    price: Decimal, charged_s: int, percent: Decimal
) -> None:
    bill = bill_for(charged_s, [Segment(0, price)], fee_percent=percent, creation_fee=Decimal(0))
    exact = Fraction(price) * charged_s / 86_400
    half_unit = Fraction(1, 2 * 10**8)
    assert abs(Fraction(bill.rent) - exact) <= half_unit
    assert abs(Fraction(bill.fee) - exact * Fraction(percent) / 100) <= half_unit


@given(amount=st.decimals("0", "9999999", places=8))
def test_wire_number_reads_back_as_the_same_amount(amount: Decimal) -> None:
    import json

    assert json.loads(json.dumps(wire_number(amount)), parse_float=Decimal, parse_int=Decimal) == amount


def test_wire_number_refuses_digits_that_json_would_lose() -> None:
    with pytest.raises(ValueError, match="more digits"):
        wire_number(Decimal("123456789012.12345678"))


@dataclass
class Steady:
    """Charges `per_minute` from second `start` on."""

    start: int
    per_minute: Decimal

    def bill_at(self, now_s: float) -> Bill:
        minutes = max(0, (int(now_s) - self.start) // 60)
        return Bill(minutes * 60, self.per_minute * minutes, Decimal(0), Decimal(0))


@pytest.mark.parametrize(
    ("available", "expected"),
    [("0.99", 60), ("1", 60 + 30), ("2", 120), ("3", 120 + 30), ("1000", None)],
)
def test_the_first_unpayable_second_is_that_of_the_minute_the_wallet_cannot_pay(
    available: str, expected: int | None
) -> None:
    orders = [Steady(0, Decimal(1)), Steady(30, Decimal(1))]
    assert first_unpayable_s(orders, Decimal(available), after_s=0, until_s=3600) == expected
