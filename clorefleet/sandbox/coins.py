"""The three currencies of the market by their wire names, how fine their prices are, and coin rates."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

BITCOIN = "bitcoin"
CLORE = "CLORE-Blockchain"
USD = "USD-Blockchain"
COINS = (BITCOIN, CLORE, USD)

_PRICE_QUANTUM = {BITCOIN: Decimal("0.00000001"), CLORE: Decimal("0.0001"), USD: Decimal("0.01")}
_BITCOIN_USD = (85_000, 105_000)
_CLORE_USD = (0.007, 0.013)
_RATE_QUANTUM = {BITCOIN: Decimal("0.01"), CLORE: Decimal("0.000001"), USD: Decimal("1")}


def price_in(coin: str, amount: Decimal) -> Decimal:
    """`amount` of `coin` per day at the fineness in which prices are listed; never zero."""
    quantum = _PRICE_QUANTUM[coin]
    return max(amount.quantize(quantum, ROUND_HALF_EVEN), quantum)


@dataclass(frozen=True, slots=True)
class CoinRates:
    """USD per unit of each coin at one instant."""

    usd: Mapping[str, Decimal]

    @classmethod
    def at_start(cls, seed: int) -> CoinRates:
        rng = random.Random(f"{seed}:coin rates")
        return cls(
            {
                BITCOIN: Decimal(rng.randint(*_BITCOIN_USD)),
                CLORE: _rate(CLORE, rng.uniform(*_CLORE_USD)),
                USD: Decimal(1),
            }
        )

    def to_usd(self, coin: str, amount: Decimal) -> Decimal:
        return amount * self.usd[coin]

    def from_usd(self, coin: str, amount_usd: Decimal) -> Decimal:
        """A listed price in `coin` worth `amount_usd`."""
        return price_in(coin, amount_usd / self.usd[coin])

    def scaled(self, coin: str, factor: Decimal) -> CoinRates:
        """The same rates with one coin worth `factor` times as much; USD stays 1."""
        if coin == USD:
            raise ValueError("the rate of USD is 1")
        return CoinRates({**self.usd, coin: _rate(coin, self.usd[coin] * factor)})

    def drifted(self, seed: int, step: int, per_step: float) -> CoinRates:
        """One step of a seeded random walk; `per_step` is the typical relative move."""
        rng = random.Random(f"{seed}:coin drift:{step}")
        moved = {
            coin: _rate(coin, float(rate) * (1 + rng.gauss(0, per_step)))
            for coin, rate in self.usd.items()
            if coin != USD
        }
        return CoinRates({**self.usd, **moved})


def _rate(coin: str, value: float | Decimal) -> Decimal:
    quantum = _RATE_QUANTUM[coin]
    return max(Decimal(value).quantize(quantum, ROUND_HALF_EVEN), quantum)


def wire_number(amount: Decimal) -> float | int:
    """The JSON number that reads back as exactly `amount`.

    A float prints the shortest text that identifies it, so up to 15 significant digits survive. More
    would silently lose money between `spend` and `wallets`; that is refused.
    """
    if amount == amount.to_integral_value() and abs(amount) < 10**15:
        return int(amount)
    number = float(amount)
    if Decimal(repr(number)) != amount:
        raise ValueError(f"{amount} has more digits than a JSON number keeps")
    return number
