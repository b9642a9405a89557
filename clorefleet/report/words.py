"""Amounts, sizes and durations as people read them: the same in the terminal and in the browser."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

GIB = 1 << 30


def usd(amount: Decimal, places: int = 2) -> str:
    return f"{'-' if amount < 0 else ''}${abs(amount):,.{places}f}"


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
