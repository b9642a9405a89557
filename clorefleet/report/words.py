"""Amounts, sizes and durations as people read them: the same in the terminal and in the browser."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

from clorefleet.domain.money import Currency, Period, Rate

GIB = 1 << 30
_COIN_UNIT = Decimal("0.00000001")


def usd(amount: Decimal, places: int = 2) -> str:
    return f"{'-' if amount < 0 else ''}${abs(amount):,.{places}f}"


def hourly(price: Rate) -> str:
    """A price as billed; a coin's to the market's eight places, since what was divided has no last digit."""
    rate = price.per(Period.HOUR)
    if rate.currency is not Currency.USD:
        rate = replace(rate, amount=rate.amount.quantize(_COIN_UNIT))
    return str(rate)


def gib(amount_bytes: int | None) -> str:
    return "?" if amount_bytes is None else f"{amount_bytes / GIB:.0f} GiB"


def age(duration: timedelta) -> str:
    seconds = max(0, int(duration.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7_200:
        return f"{seconds // 60} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days"
