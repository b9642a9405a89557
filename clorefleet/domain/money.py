"""Money, rates of money, and budgets.

Rules: amounts are `Decimal`, never float. Two currencies never mix without an `ExchangeRate`, which
has a time and a source. The market quotes per day; budgets may come per hour, day or month. A rate
therefore carries its period, and `Rate.per` converts. Rounding is left to whoever prints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from enum import Enum, StrEnum
from typing import Self

from clorefleet.domain.errors import BadBudget


class Currency(StrEnum):
    USD = "USD"
    CLORE = "CLORE"
    BITCOIN = "BTC"


class Period(Enum):
    """A billing period; the value is its length in seconds."""

    HOUR = 3600
    DAY = 86_400
    MONTH = 31 * 86_400
    """The longest month, so that a monthly budget holds in every month."""

    @property
    def word(self) -> str:
        return self.name.lower()


class CurrencyMismatch(TypeError):
    """Two currencies were added or compared: a bug, never a user's error."""


@dataclass(frozen=True, slots=True)
class Money:
    """An amount in one currency."""

    amount: Decimal
    currency: Currency

    def __post_init__(self) -> None:
        if not isinstance(self.amount, Decimal):
            raise TypeError(f"money needs a Decimal, not {type(self.amount).__name__}")
        if not self.amount.is_finite():
            raise ValueError("money must be finite")

    @classmethod
    def zero(cls, currency: Currency) -> Self:
        return cls(Decimal(0), currency)

    @classmethod
    def usd(cls, amount: str | int | Decimal) -> Self:
        return cls(Decimal(amount), Currency.USD)

    def _same(self, other: Money) -> None:
        if self.currency is not other.currency:
            raise CurrencyMismatch(f"{self.currency} and {other.currency} do not mix without a rate")

    def __add__(self, other: Money) -> Money:
        self._same(other)
        return Money(self.amount + other.amount, self.currency)

    def __sub__(self, other: Money) -> Money:
        self._same(other)
        return Money(self.amount - other.amount, self.currency)

    def __mul__(self, factor: Decimal | int) -> Money:
        return Money(self.amount * factor, self.currency)

    def __lt__(self, other: Money) -> bool:
        self._same(other)
        return self.amount < other.amount

    def __le__(self, other: Money) -> bool:
        self._same(other)
        return self.amount <= other.amount

    def __gt__(self, other: Money) -> bool:
        return other < self

    def __ge__(self, other: Money) -> bool:
        return other <= self

    def __str__(self) -> str:
        if self.currency is Currency.USD:
            return f"${format_usd(self.amount)}"
        return f"{self.amount.normalize():f} {self.currency}"


def format_usd(amount: Decimal) -> str:
    """Cents, or four places below a dollar-cent's reach; always rounded up, against the reader's hope."""
    places = Decimal("0.01") if abs(amount) >= 1 or amount == 0 else Decimal("0.0001")
    return f"{amount.quantize(places, ROUND_CEILING):,f}"


@dataclass(frozen=True, slots=True)
class Rate:
    """Money per period."""

    amount: Decimal
    currency: Currency
    period: Period

    def __post_init__(self) -> None:
        if not isinstance(self.amount, Decimal):
            raise TypeError(f"a rate needs a Decimal, not {type(self.amount).__name__}")
        if not self.amount.is_finite() or self.amount < 0:
            raise ValueError("a rate must be finite and not negative")

    @classmethod
    def per_day(cls, amount: Decimal | str | int, currency: Currency = Currency.USD) -> Self:
        return cls(Decimal(amount), currency, Period.DAY)

    def per(self, period: Period) -> Rate:
        if period is self.period:
            return self
        return Rate(self.amount * period.value / self.period.value, self.currency, period)

    def for_seconds(self, seconds: Decimal | int) -> Money:
        """What this rate costs over `seconds`."""
        return Money(self.amount_for(seconds), self.currency)

    def amount_for(self, seconds: Decimal | int) -> Decimal:
        """The same as an amount in the rate's own currency."""
        return self.amount * seconds / self.period.value

    def __mul__(self, factor: Decimal | int) -> Rate:
        return Rate(self.amount * factor, self.currency, self.period)

    def __add__(self, other: Rate) -> Rate:
        if self.currency is not other.currency:
            raise CurrencyMismatch(f"{self.currency} and {other.currency} do not mix without a rate")
        return Rate(self.amount + other.per(self.period).amount, self.currency, self.period)

    def __le__(self, other: Rate) -> bool:
        if self.currency is not other.currency:
            raise CurrencyMismatch(f"{self.currency} and {other.currency} do not mix without a rate")
        return self.per(Period.DAY).amount <= other.per(Period.DAY).amount

    def __str__(self) -> str:
        return f"{Money(self.amount, self.currency)}/{self.period.word}"


@dataclass(frozen=True, slots=True)
class ExchangeRate:
    """What one unit of a currency is worth in USD, when, and who says so."""

    currency: Currency
    usd_per_unit: Decimal
    as_of: datetime
    source: str

    def to_usd(self, money: Money) -> Money:
        if money.currency is not self.currency:
            raise CurrencyMismatch(f"a rate of {self.currency} cannot convert {money.currency}")
        return Money(money.amount * self.usd_per_unit, Currency.USD)

    def rate_to_usd(self, rate: Rate) -> Rate:
        if rate.currency is not self.currency:
            raise CurrencyMismatch(f"a rate of {self.currency} cannot convert {rate.currency}")
        return Rate(rate.amount * self.usd_per_unit, Currency.USD, rate.period)


UsdPerUnit = Mapping[Currency, Decimal]
"""The present rates of coins; a missing one stands for the rate at the time of the rent."""
AS_RENTED: UsdPerUnit = {}
"""Each coin as it was at the time of the rent."""
COIN_RATE_MARGIN = Decimal("0.05")
"""How far a coin may rise after a rent before anything has to be given back [assumed: a usual day's move]."""


def worst_rate_factor(currency: Currency) -> Decimal:
    """By how much what is billed in `currency` may come to cost more USD: budgets are held against that."""
    return Decimal(1) if currency is Currency.USD else 1 + COIN_RATE_MARGIN


@dataclass(frozen=True, slots=True)
class Budget:
    """A ceiling on spending, in USD per period, never a target."""

    ceiling: Rate
    period_was_stated: bool = field(default=True, compare=False)
    """False when the user wrote a bare number, which is read as per day, and told so."""

    @property
    def per_day(self) -> Rate:
        return self.ceiling.per(Period.DAY)

    def __str__(self) -> str:
        return f"${self.ceiling.amount.normalize():f}/{self.ceiling.period.word}"


THOUSANDS = r"[1-9][0-9]{0,2}(?:,[0-9]{3})+"
"""Digits that commas part. Any other comma may be meant as a point: left out, it multiplies a ceiling."""
_COMMA = re.compile(r"[0-9]\s*,")
_BUDGET = re.compile(
    rf"""^\s*(?:\$|usd\s*)?\s*
        (?P<amount>(?:{THOUSANDS}|[0-9][0-9_]*)(?:\.[0-9]+)?|\.[0-9]+)\s*(?:usd|\$)?\s*
        (?:(?:/|\bper\b|\ba\b|\bp)\s*(?P<period>[a-z]+))?\s*$""",
    re.IGNORECASE | re.VERBOSE,
)
_PERIODS = {
    "h": Period.HOUR, "hr": Period.HOUR, "hour": Period.HOUR,
    "d": Period.DAY, "day": Period.DAY,
    "mo": Period.MONTH, "month": Period.MONTH,
}  # fmt: skip
_BUDGET_MAX_USD = Decimal(10_000_000)
_BUDGET_TEXT_MAX = 64


def parse_budget(text: str) -> Budget:
    """Read `16/day`, `$16/day`, `0.7/hour`, `500/month` or `16` (per day).

    Raises:
        BadBudget: for anything else, and for zero, negative or absurd amounts.
    """
    match = _BUDGET.match(text) if len(text) <= _BUDGET_TEXT_MAX else None
    if match is None:
        why = "it is not an amount of USD with a period"
        if _COMMA.search(text[:_BUDGET_TEXT_MAX]):
            why = "a comma parts thousands (1,000), and a point the cents (0.50)"
        raise BadBudget(text[:_BUDGET_TEXT_MAX], why)
    word = match["period"]
    period = Period.DAY if word is None else _PERIODS.get(word.lower())
    if period is None:
        raise BadBudget(text, f"“{word}” is not a period I know (hour, day, month)")
    try:
        amount = Decimal(match["amount"].replace(",", "").replace("_", ""))
    except InvalidOperation as error:  # pragma: no cover - the pattern admits only digits
        raise BadBudget(text, "the amount is not a number") from error
    if amount <= 0:
        raise BadBudget(text, "a budget must be more than zero")
    if amount > _BUDGET_MAX_USD:
        raise BadBudget(text, f"it is above {_BUDGET_MAX_USD:,} USD, which must be a slip")
    return Budget(Rate(amount, Currency.USD, period), period_was_stated=word is not None)
