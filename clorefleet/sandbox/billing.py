"""What the simulated market charges, to the last unit, so that a client's ledger can reproduce it.

The rule, in full:

- An order's time is counted from `ct`, an integer of simulated unix seconds, in intervals of a minute, or
  of a second where `charge_interval_s` says so. Each is charged when it is complete, at the price in
  force then. One that is not complete when the order ends is never charged.
- rent after s charged seconds = sum of (price per day of each) / 86400, an exact fraction, rounded once to
  8 decimals, half to even. fee = that same exact fraction x fee percent / 100, rounded likewise. Both are
  rounded as running totals, so no error builds up.
- The creation fee is charged with minute 10; an order that ends before it pays none.
- `spend` = rent + fee + creation fee. `wallets.balance` = all credits - all `spend` in that currency.
  Both are computed from the same orders at the same instant and so agree at all times.
- An order ends at `ct + mrl`, or at a cancel, at the last whole interval before. It also ends
  at the instant of the first interval that the wallet cannot pay; that one is not charged, so a balance never
  goes below zero. When several orders of one wallet meet the same instant, the youngest end first.
- A spot order that waits for its machine is not charged: its price is 0 for that time.

[assumed] by the project: that `spend` includes fee and creation fee, and the granularity of a minute.
The real service publishes neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from typing import Protocol

CREATION_FEE_S = 600
_DAY_S = 86_400
_QUANTUM = Decimal("0.00000001")
_CENT = Fraction(1, 100)


@dataclass(frozen=True, slots=True)
class Segment:
    """From how many charged seconds on (0 = the start) which price per day is in force."""

    from_s: int
    price_per_day: Decimal


@dataclass(frozen=True, slots=True)
class Bill:
    """What one order was charged up to an instant, in its currency."""

    charged_s: int
    rent: Decimal
    fee: Decimal
    creation_fee: Decimal

    @property
    def total(self) -> Decimal:
        return self.rent + self.fee + self.creation_fee


def bill_for(
    charged_s: int, segments: Sequence[Segment], *, fee_percent: Decimal, creation_fee: Decimal
) -> Bill:
    """The bill for the first `charged_s` seconds under `segments`, which are in order of `from_s`."""
    exact = Fraction(0)
    for segment, following in zip(segments, [*segments[1:], None], strict=True):
        end_s = charged_s if following is None else min(charged_s, following.from_s)
        exact += Fraction(segment.price_per_day) * max(0, end_s - segment.from_s) / _DAY_S
    return Bill(
        charged_s=charged_s,
        rent=_rounded(exact),
        fee=_rounded(exact * Fraction(fee_percent) * _CENT),
        creation_fee=creation_fee if charged_s >= CREATION_FEE_S else Decimal(0),
    )


def _rounded(exact: Fraction) -> Decimal:
    """Half to even at 8 decimals, computed on integers so that no context precision interferes."""
    return Decimal(round(exact * 10**8)).scaleb(-8).quantize(_QUANTUM, ROUND_HALF_EVEN)


class Charged(Protocol):
    """What the wallet needs to know of a live order."""

    def bill_at(self, now_s: float) -> Bill: ...


def first_unpayable_s(
    live: Sequence[Charged], available: Decimal, *, after_s: int, until_s: int
) -> int | None:
    """The first whole second in (after_s, until_s] at which `live` orders were charged more than `available`.

    All orders are of one currency. Charges only grow with time, so the instant is found by halving. None
    when the wallet holds out.
    """

    def is_short(at_s: int) -> bool:
        return sum((order.bill_at(at_s).total for order in live), Decimal(0)) > available

    if not live or after_s >= until_s or not is_short(until_s):
        return None
    low, high = after_s, until_s
    while high - low > 1:
        middle = (low + high) // 2
        if is_short(middle):
            high = middle
        else:
            low = middle
    return high
