"""How a request that costs or stops money came out. `unknown` is an outcome like the others."""

from __future__ import annotations

from dataclasses import dataclass

from clorefleet.domain.errors import MarketError
from clorefleet.domain.identity import OrderId


@dataclass(frozen=True, slots=True)
class Rented:
    """The market said yes. Its answer usually has no id: the order list will show the order."""

    order_id: OrderId | None = None


@dataclass(frozen=True, slots=True)
class RentRefused:
    """The market said no, for certain: nothing was rented."""

    error: MarketError


@dataclass(frozen=True, slots=True)
class RentUnknown:
    """There may be an order: only the order list can tell."""

    reason: str
    was_price_guard: bool = False
    """The answer is the one that the service is known to give to `required_price`."""


RentOutcome = Rented | RentRefused | RentUnknown


@dataclass(frozen=True, slots=True)
class CancelAccepted:
    """The market said yes; the order is ended when the order list shows it gone."""


@dataclass(frozen=True, slots=True)
class AlreadyEnded:
    """There is nothing to cancel, says the market; the order list has the last word."""


@dataclass(frozen=True, slots=True)
class CancelRefused:
    error: MarketError


@dataclass(frozen=True, slots=True)
class CancelUnknown:
    reason: str


CancelOutcome = CancelAccepted | AlreadyEnded | CancelRefused | CancelUnknown


@dataclass(frozen=True, slots=True)
class SpotPriceSet:
    """The market took the bid; the order list shows the price in force."""


@dataclass(frozen=True, slots=True)
class SpotPriceRefused:
    """The order keeps its price."""

    error: MarketError


@dataclass(frozen=True, slots=True)
class SpotPriceUnknown:
    """The order bills at the old or at the new price: the order list tells."""

    reason: str


SpotPriceOutcome = SpotPriceSet | SpotPriceRefused | SpotPriceUnknown
