"""The simulated market: the truth about who rents what, what it bills, and the lies it tells about it.

It shares no code with the market client, the journal or the ledger. `Market` is the world's one account;
how a process talks to it is in `desk`. Bills are rounded to 1e-8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Protocol

from clorefleet.domain.identity import OrderId, OwnerId, ServerId
from clorefleet.domain.money import Currency, ExchangeRate, Money, Rate
from clorefleet.domain.offer import MarketRates, MarketView, Offer, OfferedGpu, RenterFees
from clorefleet.domain.order import Order, OrderList, RentRequest, SshAddress
from clorefleet.simulation.clock import TrueTime
from clorefleet.simulation.dice import Dice
from clorefleet.simulation.faults import Switches
from clorefleet.simulation.scenario import RATES, Host, Scenario

_LAST_PLACE = Decimal("1E-8")
_FEE_PERCENT = {False: Decimal(5), True: Decimal("1.25")}
_FEE_FACTOR = {is_spot: 1 + percent / 100 for is_spot, percent in _FEE_PERCENT.items()}
_CREATION_FEE_USD = Decimal("0.1")
_CREATION_FEES = {
    currency: (_CREATION_FEE_USD / rate).quantize(_LAST_PLACE) for currency, rate in RATES.items()
}
_FEES = RenterFees(
    on_demand_percent=tuple((currency, _FEE_PERCENT[False]) for currency in Currency),
    spot_percent=tuple((currency, _FEE_PERCENT[True]) for currency in Currency),
    creation_fee=tuple((currency, _CREATION_FEES[currency]) for currency in Currency),
    source="simulated market",
)
_FEE_DUE_S = 600
_TIDES = (Decimal(1), Decimal(1), Decimal("0.8"), Decimal("0.6"))
_TIDE_S = 4 * 3600


@dataclass
class TrueOrder:
    """One rental as it really is."""

    order_id: OrderId
    host: Host
    price: Rate
    is_spot: bool
    image: str
    creation_fee: Decimal
    created_s: float
    asked_by: str
    """Name of the fleet, or "user"."""
    nonce: str
    is_guarded: bool = True
    is_duplicate: bool = False
    """The market made it a second time, of one request."""
    is_swapped: bool = False
    """The hardware is not the offered one."""
    listed_from_s: float = 0
    hidden_until_s: float = 0
    was_hidden: bool = False
    ended_s: float | None = None
    port: int = 2200
    cancelled_by: str = ""
    bids: list[tuple[int, Decimal]] = field(default_factory=list)
    """What was bid before, each up to so many charged seconds."""
    lowered_s: float = float("-inf")
    rival: Rate | None = None
    """What another renter bids for its server meanwhile: it waits, and is charged nothing."""
    rival_until_s: float = 0
    waits: list[tuple[float, float]] = field(default_factory=list)
    """From when until when it waited, as far as that is over."""
    waits_since_s: float = 0
    constant: _Constant | None = None
    """Of its record in the list, as it was last shown."""
    held: Order | None = None
    """Its record when it was first held against the books at this price."""
    shown_ended: Order | None = None
    """Its record once it has ended: that does not change any more."""

    @property
    def is_live(self) -> bool:
        return self.ended_s is None

    @property
    def charged_rate(self) -> Decimal:
        return self.price.amount if self.rival is None else Decimal(0)

    def waited_s(self, from_s: float, until_s: float) -> float:
        """Of that stretch, how long it had no server, and was charged nothing."""
        waits = self.waits if self.rival is None else [*self.waits, (self.waits_since_s, until_s)]
        return sum(max(0.0, min(end_s, until_s) - max(start_s, from_s)) for start_s, end_s in waits)

    @cached_property
    def key(self) -> tuple[OrderId, ServerId]:
        """A number may be another order's later, on another server."""
        return self.order_id, ServerId(self.host.server_id)


@dataclass(frozen=True, slots=True)
class _Constant:
    """What an order's record repeats from one reading to the next."""

    skew_s: float
    port: int
    created_at: datetime
    fee: Money
    ssh: SshAddress


class Caller(Protocol):
    """What the desk needs to know of the process that calls."""

    name: str
    fleet_name: str
    calls: int
    """Requests made, ever."""

    def at(self, boundary: str) -> None: ...


@dataclass
class Market:
    scenario: Scenario
    time: TrueTime
    dice: Dice
    switches: Switches
    pass_time: Callable[[float], None]
    trace: Callable[[str], None]
    on_rent: Callable[[Caller, RentRequest, TrueOrder], None]
    on_cancel: Callable[[Caller, TrueOrder], None]
    on_list: Callable[[Caller, OrderList], None]
    on_ask: Callable[[Caller, RentRequest], None]
    on_bid: Callable[[Caller, TrueOrder, Rate], None]
    orders: list[TrueOrder] = field(default_factory=list)
    rates: dict[Currency, Decimal] = field(default_factory=lambda: dict(RATES))
    least_rates: dict[Currency, Decimal] = field(default_factory=lambda: dict(RATES))
    """Of each coin, so far."""
    prices: dict[int, Decimal] = field(default_factory=dict)
    """Of servers whose price has changed."""
    taken_until_s: dict[int, float] = field(default_factory=dict)
    about_to_rise: set[int] = field(default_factory=set)
    """Servers whose price guard failed for nothing, and whose price rises before the next attempt."""
    extra_hosts: tuple[Host, ...] = ()
    calls: int = 0
    _last_id: int = 9000
    _live: list[TrueOrder] = field(default_factory=list)
    _next_end_s: float = float("inf")
    """When the first of the live ones has had its time."""
    _tides: dict[tuple[int, float], Decimal] = field(default_factory=dict)
    """The least bid by server and stretch of time."""
    _offers: dict[tuple[int, Decimal | None, Decimal | None, bool], Offer] = field(default_factory=dict)

    # -- the truth

    def hosts(self) -> tuple[Host, ...]:
        return self.scenario.hosts + self.extra_hosts

    def live(self) -> list[TrueOrder]:
        if self.time.now_s >= self._next_end_s:
            for order in self._live:
                ends_s = order.created_s + order.host.max_rental_s
                if order.is_live and self.time.now_s >= ends_s:
                    self.end(order, ends_s, "its time was up")
                    self.switches.note("A17", "time up")
        return self._live

    def _sort_out(self) -> None:
        """A list that somebody goes through is never changed: there is a new one."""
        self._live = [order for order in self._live if order.is_live]
        ends_s = (order.created_s + order.host.max_rental_s for order in self._live)
        self._next_end_s = min(ends_s, default=float("inf"))

    def end(self, order: TrueOrder, at_s: float, why: str) -> None:
        order.ended_s = at_s
        self._sort_out()
        self.trace(f"order {order.order_id} ends: {why}")

    def bill(self, order: TrueOrder) -> Decimal:
        """Charged so far, in the order's currency, creation fee and renter's fee included."""
        age_s = (self.time.now_s if order.ended_s is None else order.ended_s) - order.created_s
        charged_s = self._charged_s(age_s)
        until_s, priced = 0, Decimal(0)
        for end_s, amount in (*order.bids, (charged_s, order.charged_rate)):
            priced += amount * (end_s - until_s)
            until_s = end_s
        rent = priced / 86_400 * _FEE_FACTOR[order.is_spot]
        if age_s >= _FEE_DUE_S:
            rent += order.creation_fee
        return rent.quantize(_LAST_PLACE)

    def _charged_s(self, age_s: float) -> int:
        return int(age_s) if self.scenario.bills_by_second else int(age_s) // 60 * 60

    def bid(self, order: TrueOrder, desired: Rate) -> None:
        """What was charged so far stays as it is."""
        if not order.price <= desired:
            order.lowered_s = self.time.now_s
        self._charge_so_far(order)
        order.price, order.held = desired, None
        self.trace(f"order {order.order_id} bids {desired}")
        if order.rival is not None and order.rival <= desired:
            self.give_back(order)

    def outbid(self, order: TrueOrder, rival: Rate, until_s: float) -> None:
        """Another renter has its server until then, or until it bids as much: it waits, its disk stays."""
        self._charge_so_far(order)
        order.rival, order.rival_until_s, order.waits_since_s = rival, until_s, self.time.now_s
        self.trace(f"order {order.order_id} is outbid by {rival}")

    def give_back(self, order: TrueOrder) -> None:
        """Its server is its own again, and starts anew."""
        self._charge_so_far(order)
        order.waits.append((order.waits_since_s, self.time.now_s))
        order.rival = None
        self.trace(f"order {order.order_id} has its server back")

    def end_rivals(self, *, all_of_them: bool = False) -> None:
        for order in self.live():
            if order.rival is not None and (all_of_them or order.rival_until_s <= self.time.now_s):
                self.give_back(order)

    def _charge_so_far(self, order: TrueOrder) -> None:
        order.bids.append((self._charged_s(self.time.now_s - order.created_s), order.charged_rate))

    def usd_per_day(self, order: TrueOrder) -> Decimal:
        """With fee, at the rate of the plan's time as drawn; jumps of the rate are not the fleet's doing."""
        return order.price.amount * _FEE_FACTOR[order.is_spot] * RATES[order.price.currency]

    def price_of(self, host: Host, *, is_spot: bool) -> Decimal | None:
        if is_spot and host.spot_per_day is not None:
            # The least bid has its tides: who bid at high water may lower the bid later.
            key = (host.server_id, self.time.now_s // _TIDE_S)
            if key not in self._tides:
                tide = self.dice.pick(_TIDES, "tide", *key)
                self._tides[key] = (host.spot_per_day * tide).quantize(_LAST_PLACE)
            return self._tides[key]
        if is_spot:
            return None
        return self.prices.get(host.server_id, host.per_day)

    def raise_price(self, host: Host) -> None:
        self.prices[host.server_id] = (host.per_day * 2).quantize(_LAST_PLACE)

    def is_free(self, host: Host) -> bool:
        if self.taken_until_s.get(host.server_id, 0) > self.time.now_s:
            return False
        return all(order.host.server_id != host.server_id for order in self.live())

    def make_order(
        self, host: Host, *, price: Rate, is_spot: bool, image: str, asked_by: str, nonce: str
    ) -> TrueOrder:
        now_s = self.time.now_s
        live = {order.order_id for order in self.live()}
        near = {order.order_id for order in self.orders if order.host.server_id == host.server_id}
        ended = [each.order_id for each in self.orders if each.order_id not in live | near]
        if ended and self.switches.strikes("A21"):
            order_id = self.dice.pick(ended, "reused id", now_s)
        else:
            self._last_id += 1
            order_id = OrderId(self._last_id)
        fee = _CREATION_FEES[price.currency]
        if self.switches.strikes("B5"):
            fee *= 3
        order = TrueOrder(
            order_id=order_id,
            host=host,
            price=price,
            is_spot=is_spot,
            image=image,
            creation_fee=fee,
            created_s=now_s,
            asked_by=asked_by,
            nonce=nonce,
            listed_from_s=now_s,
            port=2000 + order_id % 1000,
        )
        late = self.switches.strikes("A9")
        if late:
            order.listed_from_s = now_s + 5 + 235 * late.arg**3
        if self.switches.strikes("A13"):
            order.is_swapped = True
        self.orders.append(order)
        self._live = [*self._live, order]
        self._sort_out()
        self.trace(f"order {order_id} on {host.server_id} for {asked_by} {nonce} at {price}")
        return order

    # -- what is shown of it

    def view(self, *, clock_offset_s: float = 0) -> MarketView:
        """The offers, read at `clock_offset_s` from the truth by the reader's clock."""
        without_rate = None
        window = self.switches.holds("B4", self.time.now_s)
        if window:
            without_rate = (Currency.CLORE, Currency.BITCOIN)[int(window.arg * 2)]
            self.switches.note("B4")
        read_at = self.time.at(self.time.now_s)
        return MarketView(
            offers=tuple(self._offer(host, is_free=free) for host, free in self._free()),
            rates=MarketRates.of(
                ExchangeRate(currency, usd, read_at, "simulated market")
                for currency, usd in self.rates.items()
                if currency is not without_rate
            ),
            fees=_FEES,
            read_at=read_at + timedelta(seconds=clock_offset_s),
        )

    def _free(self) -> list[tuple[Host, bool]]:
        rented = {order.host.server_id for order in self.live()}
        now_s = self.time.now_s
        return [
            (
                host,
                host.server_id not in rented and self.taken_until_s.get(host.server_id, 0) <= now_s,
            )
            for host in self.hosts()
        ]

    def _offer(self, host: Host, *, is_free: bool) -> Offer:
        price = self.price_of(host, is_spot=False)
        spot = self.price_of(host, is_spot=True)
        key = (host.server_id, price, spot, is_free)
        if key not in self._offers:
            self._offers[key] = self._made_offer(host, price, spot, is_free=is_free)
        return self._offers[key]

    @staticmethod
    def _made_offer(host: Host, price: Decimal | None, spot: Decimal | None, *, is_free: bool) -> Offer:
        return Offer(
            server_id=ServerId(host.server_id),
            owner_id=OwnerId(host.server_id % 7),
            gpus=(OfferedGpu("RTX 4090", Decimal(24)),),
            cpu_model="simulated",
            cores=32,
            threads=64,
            ram_bytes=256 << 30,
            disk_free_bytes=1 << 40,
            disk_mb_s=None,
            down_mbit_s=None,
            up_mbit_s=None,
            country="DE",
            cuda_version=(13, 0),
            reliability=None,
            rating=None,
            rating_count=0,
            max_rental_s=host.max_rental_s,
            is_rented=not is_free,
            pcie_generation=4,
            pcie_width=16,
            on_demand=() if price is None else (Rate.per_day(price, host.currency),),
            spot=() if spot is None else (Rate.per_day(spot, host.currency),),
        )

    def listed(self, *, include_completed: bool, read_at_offset_s: float) -> OrderList:
        now_s = self.time.now_s
        self.live()  # ends what has expired
        shown: list[Order] = []
        unreadable = 0
        broken = self.switches.holds("A8", now_s)
        doubled = self.switches.holds("A10", now_s)
        visible = []
        for order in self.orders:
            if order.is_live or include_completed:
                if now_s < order.listed_from_s or now_s < order.hidden_until_s:
                    order.was_hidden = True
                else:
                    visible.append(order)
        if visible and self.switches.strikes("A22"):
            for order in visible[len(visible) // 2 :]:
                order.was_hidden = True
            visible = visible[: len(visible) // 2]
        if visible and self.switches.holds("D4", now_s):
            self.switches.note("D4")
        for number, order in enumerate(visible):
            if broken and number == int(broken.arg * len(visible)):
                self.switches.note("A8")
                unreadable += 1
                continue
            record = self.as_order(order)
            shown.append(record)
            if doubled and number == int(doubled.arg * len(visible)):
                self.switches.note("A10")
                shown.append(record)
        return OrderList(
            tuple(shown),
            self.time.at(now_s + read_at_offset_s),
            include_completed,
            unreadable=unreadable,
            told_at=self.time.at(now_s),
        )

    def held_as(self, order: TrueOrder) -> Order:
        """As it was first listed at this price: for who asks what there is, and not what it has cost."""
        if order.held is None:
            order.held = self.as_order(order)
        return order.held

    def as_order(self, order: TrueOrder) -> Order:
        now_s = self.time.now_s
        if order.shown_ended is not None:
            return order.shown_ended
        skewed = self.switches.holds("D4", now_s)
        skew_s = (skewed.arg * 2 - 1) * 540 if skewed else 0.0
        constant = order.constant
        if constant is None or constant.skew_s != skew_s or constant.port != order.port:
            constant = order.constant = self._constant(order, skew_s)
        is_up = now_s - order.created_s > order.host.boot_s / 2 and order.rival is None
        shown = Order(
            order_id=order.order_id,
            server_id=ServerId(order.host.server_id),
            owner_id=None,
            price=order.price,
            spend=Money(self.bill(order), order.price.currency),
            creation_fee=constant.fee,
            created_at=constant.created_at,
            max_rental_s=order.host.max_rental_s,
            image=order.image,
            is_spot=order.is_spot,
            is_expired=not order.is_live,
            is_online=True,
            ssh=constant.ssh if is_up else None,
            container_state=2 if is_up else 1,
        )
        if not order.is_live:
            order.shown_ended = shown
        return shown

    def _constant(self, order: TrueOrder, skew_s: float) -> _Constant:
        return _Constant(
            skew_s,
            order.port,
            self.time.at(order.created_s + skew_s),
            Money(order.creation_fee, order.price.currency),
            SshAddress(("198.51.100.7",), order.port),
        )
