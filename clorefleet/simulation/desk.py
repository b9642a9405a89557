"""One process's way to the simulated market, where answers are late, lost, cut and hostile."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from clorefleet.domain.errors import (
    BadAnswer,
    MarketError,
    MarketUnreachable,
    OfferGone,
    OutOfFunds,
    PriceMoved,
    RateLimited,
    Refused,
    WrongApiKey,
)
from clorefleet.domain.identity import OrderId, ServerId
from clorefleet.domain.money import Currency, Money, Rate
from clorefleet.domain.offer import MarketRates, MarketView
from clorefleet.domain.order import OrderList, RentRequest, Wallet
from clorefleet.domain.outcome import (
    AlreadyEnded,
    CancelAccepted,
    CancelOutcome,
    CancelRefused,
    CancelUnknown,
    Rented,
    RentOutcome,
    RentRefused,
    RentUnknown,
)
from clorefleet.domain.spot import SpotBid, SpotMarket
from clorefleet.simulation.faults import HOSTILE
from clorefleet.simulation.market import Caller, Market, TrueOrder

LOWERING_S = 600.0
TIMEOUT_S = 30.0
DRIP_S = 170.0
_RIVALS_FROM = 800_000
"""Numbers of other renters' orders."""
_WALLETS = tuple(Wallet(currency, Money(Decimal(10**6), currency)) for currency in Currency)


class Desk:
    """One process's connection to the market; every answer takes time and may be lost."""

    def __init__(self, market: Market, caller: Caller, *, clock_offset_s: Callable[[], float]) -> None:
        self._market = market
        self._caller = caller
        self._clock_offset_s = clock_offset_s

    def _wait(self) -> None:
        market = self._market
        market.calls += 1
        self._caller.calls += 1
        if market.switches.strikes("A19"):
            market.pass_time(DRIP_S)
        else:
            market.pass_time(market.dice.between(*market.scenario.answer_s, "answer", market.calls))

    def _trouble(self) -> MarketError | None:
        """What a request meets before the market has done anything."""
        switches, now_s = self._market.switches, self._market.time.now_s
        hostile = ""
        if switches.holds("A18", now_s):
            switches.note("A18")
            return WrongApiKey("the market refuses the key")
        if switches.holds("A6", now_s):
            switches.note("A6")
            return RateLimited("too many requests")
        if switches.strikes("G1"):
            hostile = HOSTILE
        elif switches.strikes("G4"):
            hostile = "x" * 100_000
        return BadAnswer(f"not JSON: {hostile}") if hostile else None

    def _read(self) -> None:
        self._caller.at("reading")
        self._wait()
        trouble = self._trouble()
        if trouble is not None:
            raise trouble
        if self._market.switches.strikes("A1"):
            self._market.pass_time(TIMEOUT_S)
            raise MarketUnreachable("no answer in time")
        if self._market.switches.strikes("A7"):
            raise BadAnswer("<html>502</html>")

    def fetch_view(self) -> MarketView:
        self._read()
        return self._market.view(clock_offset_s=self._clock_offset_s())

    def fetch_orders(self, *, include_completed: bool = False) -> OrderList:
        self._read()
        listed = self._market.listed(
            include_completed=include_completed, read_at_offset_s=self._clock_offset_s()
        )
        self._market.on_list(self._caller, listed)
        return listed

    def fetch_wallets(self) -> tuple[Wallet, ...]:
        self._read()
        return _WALLETS

    def rent(self, request: RentRequest, *, with_required_price: bool = True) -> RentOutcome:
        market, switches = self._market, self._market.switches
        if not request.is_timely():
            return RentRefused(MarketUnreachable("nothing was sent"))
        market.on_ask(self._caller, request)
        self._wait()
        trouble = self._trouble()
        if isinstance(trouble, BadAnswer):
            return RentUnknown(trouble.what)
        if trouble is not None:
            return RentRefused(trouble)
        if switches.strikes("A1"):
            market.pass_time(TIMEOUT_S)
            return RentUnknown("no answer in time")
        if switches.holds("B1", market.time.now_s):
            switches.note("B1")
            return RentRefused(OutOfFunds("not_enough_balance"))
        refused = switches.strikes("A11")
        if refused:
            return RentRefused(_refusal(refused.arg))
        host = next((each for each in market.hosts() if each.server_id == request.server_id), None)
        if host is None or not market.is_free(host):
            return RentRefused(OfferGone("server-already-rented"))
        if with_required_price and switches.strikes("A12", lambda incident: incident.arg < 0.5):
            market.about_to_rise.add(host.server_id)
            return RentUnknown("code 1", was_price_guard=True)
        if host.server_id in market.about_to_rise and not with_required_price:
            market.about_to_rise.discard(host.server_id)
            market.raise_price(host)
        elif not request.is_spot and switches.strikes("A12"):
            market.raise_price(host)
        price = market.price_of(host, is_spot=request.is_spot)
        if price is None:
            return RentRefused(OfferGone("no price"))
        if request.is_spot:
            if request.approved_price.amount < price:
                return RentRefused(Refused("the bid is too low", reason="too_low_price"))
            price = request.approved_price.amount
        elif with_required_price and price != request.approved_price.amount:
            return RentUnknown("code 1", was_price_guard=True)
        order = market.make_order(
            host,
            price=Rate.per_day(price, host.currency),
            is_spot=request.is_spot,
            image=request.image,
            asked_by=self._caller.fleet_name,
            nonce=dict(request.env).get("CLOREFLEET_NONCE", ""),
        )
        order.is_guarded = with_required_price
        if switches.strikes("A10d"):
            twin = market.make_order(
                host,
                price=order.price,
                is_spot=order.is_spot,
                image=order.image,
                asked_by=order.asked_by,
                nonce=order.nonce,
            )
            twin.is_duplicate = True
        market.on_rent(self._caller, request, order)
        return self._told_of_rent(with_required_price)

    def _told_of_rent(self, with_required_price: bool) -> RentOutcome:
        switches = self._market.switches
        if switches.strikes("A2"):
            self._market.pass_time(TIMEOUT_S)
            return RentUnknown("no answer in time")
        if switches.strikes("A3"):
            return RentUnknown("the answer was cut")
        if switches.strikes("A4"):
            return RentUnknown("HTTP 502")
        if switches.strikes("A5"):
            return RentUnknown("code 1", was_price_guard=with_required_price)
        return Rented()

    def fetch_spot_market(self, server_id: ServerId) -> SpotMarket:
        """Our own bid and the least price; a rival's where one has the server (F14o), not one that ends the
        order at once (F14)."""
        self._read()
        host = next((each for each in self._market.hosts() if each.server_id == server_id), None)
        price = None if host is None else self._market.price_of(host, is_spot=True)
        least = () if host is None or price is None else (Rate.per_day(price, host.currency),)
        bids = tuple(
            bid
            for order in self._market.live()
            if order.is_spot and order.host.server_id == server_id
            for bid in _bids_of(order)
        )
        rates = MarketRates(())
        return SpotMarket(
            server_id, bool(least), bids, least, rates, True, self._market.time.at(self._market.time.now_s)
        )

    def set_spot_price(self, order_id: OrderId, desired: Rate, *, current: Rate) -> None:
        self._read()
        market, switches = self._market, self._market.switches
        order = next((each for each in market.live() if each.order_id == order_id), None)
        if order is None:
            raise OfferGone("no such order")
        if not order.price <= desired and market.time.now_s - order.lowered_s < LOWERING_S:
            raise Refused("lowered a moment ago", reason="can_lower_spot_price_once_per_600_seconds")
        market.on_bid(self._caller, order, desired)
        if order.rival is not None:
            switches.note("F14o", "bid more")
        market.bid(order, desired)
        if switches.strikes("A2"):
            market.pass_time(TIMEOUT_S)
            raise MarketUnreachable("no answer in time")
        if switches.strikes("A4"):
            raise BadAnswer("HTTP 502")

    def cancel(self, order_id: OrderId, *, issue: str = "") -> CancelOutcome:
        market, switches = self._market, self._market.switches
        self._wait()
        trouble = self._trouble()
        if isinstance(trouble, BadAnswer):
            return CancelUnknown(trouble.what)
        if trouble is not None:
            return CancelRefused(trouble)
        if switches.strikes("A1"):
            market.pass_time(TIMEOUT_S)
            return CancelUnknown("no answer in time")
        found = [order for order in market.live() if order.order_id == order_id]
        if not found:
            return AlreadyEnded()
        [order] = found
        market.on_cancel(self._caller, order)
        if switches.strikes("A14"):
            return CancelAccepted()
        market.end(order, market.time.now_s, f"cancelled by {self._caller.fleet_name}")
        order.cancelled_by = self._caller.fleet_name
        if switches.strikes("A15"):
            return CancelRefused(Refused("no such order", reason="order_not_found"))
        if switches.strikes("A16") or switches.strikes("A2"):
            market.pass_time(TIMEOUT_S)
            return CancelUnknown("no answer in time")
        if switches.strikes("A4"):
            return CancelUnknown("HTTP 500")
        return CancelAccepted()


def _bids_of(order: TrueOrder) -> tuple[SpotBid, ...]:
    own = SpotBid(order.order_id, order.price, is_active=order.rival is None, is_mine=True)
    if order.rival is None:
        return (own,)
    other = OrderId(_RIVALS_FROM + order.order_id)
    return own, SpotBid(other, order.rival, is_active=True, is_mine=False)


def _refusal(arg: float) -> MarketError:
    refusals: tuple[MarketError, ...] = (
        OfferGone("server-already-rented"),
        OfferGone("server-offline"),
        PriceMoved("too_low_price"),
        Refused("currency-not-allowed", reason="currency-not-allowed"),
    )
    return refusals[int(arg * len(refusals))]
