"""Renting at the approved price, although the service's price guard is unreliable.

`create_order` takes `required_price`: rent only while the on-demand price is still this. Public clients
of the live service saw it refused with code 1 even at the listed price, and code 1 elsewhere means that
the order may exist all the same. So a guard's refusal is a doubt, and this is the way out of it:

    1. Read the order list, and remember which orders are on the server.
    2. Rent with the guard. Anything but code 1 is the answer.
    3. Code 1: read the order list for a short window. A new order on that server with that image is ours:
       rented.
    4. None: read the offers again. Only if the server is still free at no more than the approved price,
       rent once without the guard. Accepted is rented.
    5. Anything else stays unknown: the journal keeps slot and server locked until its own, longer grace
       has passed.

Why a window of seconds is safe in step 3, when orders were seen to show up 50 s late: a late order of the
first attempt makes the server taken, so the second attempt is refused, and that refusal is reported as
unknown rather than as "gone". A server has one on-demand tenant, so there cannot be two orders for it. The
window only spares a needless second call. Were the market to break that rule, the sweep would find the
second order.

The unguarded order is made at the price of the moment. Whoever adopts it checks `is_price_acceptable`
and cancels it otherwise; a cancel within ten minutes costs minutes of rent and no creation fee.

Spot orders carry their price as the bid, need no guard, and pass straight through.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from clorefleet.clock import Clock
from clorefleet.domain.errors import MarketError, OutcomeUnknown
from clorefleet.domain.identity import OrderId, ServerId
from clorefleet.domain.money import Period, Rate
from clorefleet.domain.offer import MarketView, Offer
from clorefleet.domain.order import Order, OrderList, RentRequest, Wallet, is_same_image
from clorefleet.domain.outcome import (
    CancelOutcome,
    Rented,
    RentOutcome,
    RentRefused,
    RentUnknown,
    SpotPriceOutcome,
    SpotPriceRefused,
    SpotPriceSet,
    SpotPriceUnknown,
)
from clorefleet.domain.spot import SpotMarket

READ_BACK_WINDOW_S = 8.0
READ_BACK_PAUSE_S = 2.0
READ_BACKS_MAX = 6


def is_price_acceptable(order: Order, approved: Rate, tolerance: Decimal = Decimal(0)) -> bool:
    """Whether an order may be kept: same currency, told, and at most `approved` x (1 + `tolerance`).

    A price of zero is one that the market did not tell: it proves nothing, so it is not acceptable.
    """
    price = order.price.per(Period.DAY)
    if price.currency is not approved.currency or price.amount <= 0:
        return False
    return price.amount <= approved.per(Period.DAY).amount * (1 + tolerance)


def find_new_order(orders: OrderList, request: RentRequest, known: frozenset[OrderId]) -> Order | None:
    """The live order that `request` made: on its server, with its image and kind, and not there before."""
    return next(
        (
            order
            for order in orders.live()
            if order.server_id == request.server_id
            and is_same_image(order.image, request.image)
            and order.is_spot == request.is_spot
            and order.order_id not in known
        ),
        None,
    )


@dataclass(frozen=True, slots=True)
class TryUnguarded:
    """The server is still free at no more than the approved price."""


@dataclass(frozen=True, slots=True)
class StayInDoubt:
    reason: str


def after_guard_refusal(offers: Iterable[Offer], request: RentRequest) -> TryUnguarded | StayInDoubt:
    """Step 4, as a pure decision: may the rent be tried once more, without the guard?"""
    found = next((offer for offer in offers if offer.server_id == request.server_id), None)
    if found is None or found.is_rented:
        return StayInDoubt("the server is no longer free: it may be ours")
    price = found.price_in(request.approved_price.currency, is_spot=False)
    if price is None:
        return StayInDoubt("the server no longer has a price in the approved currency")
    if not price <= request.approved_price:
        return StayInDoubt(f"the price is now {price}, above the approved {request.approved_price}")
    return TryUnguarded()


class GuardedRenting(Protocol):
    """What the protocol needs of a market."""

    def fetch_view(self) -> MarketView: ...

    def fetch_orders(self, *, include_completed: bool = False) -> OrderList: ...

    def fetch_wallets(self) -> tuple[Wallet, ...]: ...

    def fetch_spot_market(self, server_id: ServerId) -> SpotMarket: ...

    def rent(self, request: RentRequest, *, with_required_price: bool = True) -> RentOutcome: ...

    def cancel(self, order_id: OrderId, *, issue: str = "") -> CancelOutcome: ...

    def set_spot_price(self, order_id: OrderId, desired: Rate, *, current: Rate) -> None: ...


class RentProtocol:
    """A market whose `rent` follows the protocol above. All else is the market's own."""

    def __init__(
        self, market: GuardedRenting, *, clock: Clock, read_back_window_s: float = READ_BACK_WINDOW_S
    ) -> None:
        self._market = market
        self._clock = clock
        self._window_s = read_back_window_s

    def fetch_view(self) -> MarketView:
        return self._market.fetch_view()

    def fetch_orders(self, *, include_completed: bool = False) -> OrderList:
        return self._market.fetch_orders(include_completed=include_completed)

    def fetch_wallets(self) -> tuple[Wallet, ...]:
        return self._market.fetch_wallets()

    def fetch_spot_market(self, server_id: ServerId) -> SpotMarket:
        return self._market.fetch_spot_market(server_id)

    def cancel(self, order_id: OrderId, *, issue: str = "") -> CancelOutcome:
        return self._market.cancel(order_id, issue=issue)

    def set_spot_price(self, order_id: OrderId, desired: Rate, *, current: Rate) -> SpotPriceOutcome:
        """The client raises; the fleet wants every answer as an outcome."""
        try:
            self._market.set_spot_price(order_id, desired, current=current)
        except OutcomeUnknown as error:
            return SpotPriceUnknown(error.what)
        except MarketError as error:
            return SpotPriceRefused(error)
        return SpotPriceSet()

    def rent(self, request: RentRequest) -> RentOutcome:
        """Costs money. At most two `create_order` calls, the second only where the first made nothing."""
        if request.is_spot:
            return self._market.rent(request, with_required_price=False)
        try:
            known = frozenset(order.order_id for order in self._market.fetch_orders().orders)
        except MarketError as error:
            return RentRefused(error)
        first = self._market.rent(request, with_required_price=True)
        if not (isinstance(first, RentUnknown) and first.was_price_guard):
            return first
        try:
            order = self._read_back(request, known)
            if order is not None:
                return Rented(order.order_id)
            decision = after_guard_refusal(self._market.fetch_view().offers, request)
        except MarketError as error:
            return RentUnknown(f"{first.reason}; and the market could not be read back: {error.what}")
        if isinstance(decision, StayInDoubt):
            return RentUnknown(f"{first.reason}; {decision.reason}", was_price_guard=True)
        match self._market.rent(request, with_required_price=False):
            case RentRefused(refusal):
                # Certain about the second attempt only: the first may be why.
                return RentUnknown(f"{first.reason}; tried again without the price guard: {refusal.what}")
            case outcome:
                return outcome

    def _read_back(self, request: RentRequest, known: frozenset[OrderId]) -> Order | None:
        """Look for the order until the window is over; at least once, and a bounded number of times.

        Raises:
            MarketError: the list could not be read.
        """
        ends_s = self._clock.monotonic_s() + self._window_s
        for _ in range(READ_BACKS_MAX):
            order = find_new_order(self._market.fetch_orders(), request, known)
            if order is not None or self._clock.monotonic_s() >= ends_s:
                return order
            self._clock.sleep(READ_BACK_PAUSE_S)
        return None
