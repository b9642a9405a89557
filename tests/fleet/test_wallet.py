"""A user hears of a low wallet in time."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from clorefleet.domain.guard import WalletReading
from clorefleet.domain.money import Money
from clorefleet.fleet.wallet import wallet_warning
from tests.fleet.builders import NOW


def test_a_low_wallet_is_warned_about_before_the_market_ends_the_orders():
    reading = WalletReading(Money.usd(3), NOW, Decimal(0), Decimal(8), Decimal(3), NOW, Decimal(0))
    assert "9.0 hours" in wallet_warning(reading)
    assert wallet_warning(replace(reading, balance=Money.usd(30))) == ""
    assert wallet_warning(replace(reading, burn_per_day=Decimal(0))) == ""
