"""The simulated market's rules: who may rent what, what an order costs, when and why it ends.

One `Market` owns all state of the account. It is synchronous and does no I/O but its durable records:
each call brings the world up to the clock (`settle`), decides, stores, and answers a `Reply`. What must
happen to nodes is queued as `NodeEffect`s for the server to perform, in order.

An order's life:

    create -> listed after a lag -> has an address -> deployed -> ended
                                                   \\-> (spot) waiting <-> active

`settle` replays, in time order, everything that happened since the last call: rental limits, wallets
that could not pay an interval, other renters who took a server from a spot order, hosts coming back.
The result therefore depends on simulated time only, never on how often a client polls.

Rules that no published source settles are marked [assumed] where they stand.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Any

from clorefleet.sandbox.billing import Segment, first_unpayable_s
from clorefleet.sandbox.catalogue import Catalogue, MarketServer
from clorefleet.sandbox.clock import SandboxClock
from clorefleet.sandbox.coins import BITCOIN, CLORE, COINS, USD, CoinRates, wire_number
from clorefleet.sandbox.faults import FaultBoard
from clorefleet.sandbox.fees import creation_fee, fee_percent
from clorefleet.sandbox.listing import MarketplaceDocument
from clorefleet.sandbox.occupancy import Occupancy, Tenancy
from clorefleet.sandbox.order_record import wire_order
from clorefleet.sandbox.order_request import IndigestibleBody, InvalidBody, parse_create
from clorefleet.sandbox.orders import EndReason, OrderKind, OrderRequest, SandboxOrder
from clorefleet.sandbox.records import Records
from clorefleet.sandbox.reply import Code, Reply, Wire, failure, ok, refusal
from clorefleet.sandbox.settings import OutbidFate, SandboxSettings
from clorefleet.sandbox.truth import ServerTruth

MY_USER_ID = 2
CANCEL_IDS_MAX = 64
ISSUE_MAX_CHARS = 2048
COMPLETED_LISTED_MAX = 1000
BALANCE_MAX = Decimal(10**7)
LINE_MBIT_S_MAX = 400_000
"""Above this a JSON number no longer keeps eight decimals."""
_FIRST_ORDER_ID = 602_837
_HOUR_S = 3600
_ADDRESS_AT_BOOT_SHARE = 0.5
"""An address is published when this much of the boot is over: before SSH answers, as on the real service."""
_SETTLE_EVENTS_MAX = 100_000
_FORCED_TENANCY_S = 6.0 * _HOUR_S


class EffectKind(Enum):
    START = "start"
    PAUSE = "pause"
    """The container stops and its disk stays: an outbid order may have its machine back."""
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class NodeEffect:
    kind: EffectKind
    order_id: int


@dataclass(slots=True)
class _Outage:
    until_s: float


class Market:
    def __init__(
        self,
        settings: SandboxSettings,
        *,
        catalogue: Catalogue,
        occupancy: Occupancy,
        clock: SandboxClock,
        records: Records,
        faults: FaultBoard,
        epoch_s: int,
    ) -> None:
        """`epoch_s` is the simulated instant of the sandbox's very first start."""
        self.settings, self.catalogue, self.clock, self.faults = settings, catalogue, clock, faults
        self._occupancy, self._records, self._epoch_s = occupancy, records, epoch_s
        self.orders: dict[int, SandboxOrder] = {order.id: order for order in records.load_orders()}
        self.credits: dict[str, Decimal] = records.load_credits() or {
            USD: settings.wallet_usd,
            CLORE: settings.wallet_clore,
            BITCOIN: settings.wallet_bitcoin,
        }
        self._settled_s = float(records.load_fact("settled_s", clock.now_s()))
        self._outages = {
            int(server_id): _Outage(float(until_s))
            for server_id, until_s in records.load_fact("outages", {}).items()
        }
        for server_id, stay in records.load_fact("forced", {}).items():
            occupancy.force(int(server_id), Tenancy(*stay))
        for server_id, factor in records.load_fact("price_factors", {}).items():
            self.catalogue.servers[int(server_id)].scale_prices(Decimal(factor))
        self._rng = random.Random(f"{settings.seed}:market:{len(self.orders)}")
        self._effects: list[NodeEffect] = []
        self._document = MarketplaceDocument(self.catalogue, settings.seed)
        self._stale_wallets: Wire | None = None
        self._closed_spend = dict.fromkeys(COINS, Decimal(0))
        """What ended orders were charged: settled for good, and so summed once."""
        for order in self.orders.values():
            if not order.is_live():
                self._closed_spend[order.currency] += order.bill_at(0).total
        records.save_credits(self.credits)

    # time

    def take_effects(self) -> list[NodeEffect]:
        """What must now be done to nodes, oldest first; each is handed out once."""
        effects, self._effects = self._effects, []
        return effects

    @property
    def now_s(self) -> float:
        """The simulated instant of the last `settle`.

        Every figure of one answer is as of this one instant: the clock itself runs on while an answer is
        made, and would let `spend` and balance differ by an interval.
        """
        return self._settled_s

    def settle(self) -> None:
        """Let everything happen that was due up to the clock's now, which becomes `now_s`."""
        now_s = self.clock.now_s()
        for _ in range(_SETTLE_EVENTS_MAX):
            due = self._next_event(now_s)
            if due is None:
                break
            at_s, happen = due
            self._settled_s = max(self._settled_s, at_s)
            happen()
        else:
            raise RuntimeError("the market does not come to rest")
        self._settled_s = max(self._settled_s, now_s)
        self._drift_coins(now_s)

    def _next_event(self, now_s: float) -> tuple[float, Callable[[], None]] | None:
        """The earliest event in (settled, now]; at the same instant money comes before limits."""
        events: list[tuple[float, int, Callable[[], None]]] = []
        for coin in COINS:
            short_s = self._first_unpayable_s(coin, now_s)
            if short_s is not None:
                events.append((short_s, 0, partial(self._run_out, coin, short_s)))
        for order in self.live():
            if order.limit_s <= now_s:
                events.append((order.limit_s, 1, partial(self._reach_limit, order)))
            if order.is_spot:
                at_s = self._epoch_s + self._occupancy.next_change_s(
                    order.server_id, order.contested_s - self._epoch_s
                )
                if at_s <= now_s:
                    events.append((at_s, 2, partial(self._contest, order, at_s)))
        for server_id, outage in self._outages.items():
            if outage.until_s <= now_s:
                events.append((outage.until_s, 3, partial(self._end_outage, server_id)))
        if not events:
            return None
        at_s, _, happen = min(events, key=lambda event: event[:2])
        return at_s, happen

    def _first_unpayable_s(self, coin: str, now_s: float) -> int | None:
        return first_unpayable_s(
            [order for order in self.live() if order.currency == coin],
            self.credits[coin] - self._closed_spend[coin],
            after_s=int(self._settled_s) - 1,
            until_s=int(now_s),
        )

    def _run_out(self, coin: str, at_s: int) -> None:
        """End the youngest orders whose interval completes now, until the wallet can pay the rest."""
        candidates = [
            order
            for order in self.live()
            if order.currency == coin and order.charged_s_at(at_s) > order.charged_s_at(at_s - 1)
        ]
        for order in sorted(candidates, key=lambda order: order.id, reverse=True):
            if self.balance(coin, at_s) >= 0:
                return
            self._end(order, at_s, EndReason.OUT_OF_FUNDS, is_last_interval_unpaid=True)

    def _reach_limit(self, order: SandboxOrder) -> None:
        self._end(order, order.limit_s, EndReason.RENTAL_LIMIT)

    def _contest(self, order: SandboxOrder, at_s: float) -> None:
        """Other renters came or left: does our spot order have, keep, lose or regain the machine?"""
        order.contested_s = at_s
        rival = self._occupancy.at(order.server_id, at_s - self._epoch_s)
        wins = self._beats(order, rival)
        if order.is_active and not wins:
            taken_over = rival is not None and not rival.is_spot
            self._outbid(order, at_s, EndReason.TAKEN_OVER if taken_over else EndReason.OUTBID)
        elif not order.is_active and wins:
            order.is_active = True
            order.charge_from_now(order.price_per_day, at_s)
            self._save(order)
            self._effects.append(NodeEffect(EffectKind.START, order.id))

    def _beats(self, order: SandboxOrder, rival: Tenancy | None) -> bool:
        if rival is None:
            return True
        if not rival.is_spot:
            return not self.settings.on_demand_takes_spot and order.is_active
        return self._usd(order.currency, order.price_per_day) >= self._rival_bid_usd(order.server_id, rival)

    def _outbid(self, order: SandboxOrder, at_s: float, reason: EndReason) -> None:
        if self.settings.outbid is OutbidFate.ENDED:
            self._end(order, int(at_s), reason)
            return
        order.is_active = False
        order.is_deployed = False
        order.charge_from_now(Decimal(0), at_s)
        self._save(order)
        self._effects.append(NodeEffect(EffectKind.PAUSE, order.id))

    def _end_outage(self, server_id: int) -> None:
        del self._outages[server_id]
        self._save_outages()
        for order in self.live():
            if order.server_id == server_id and order.is_active:
                self._effects.append(NodeEffect(EffectKind.START, order.id))

    def _drift_coins(self, now_s: float) -> None:
        """One step of the coins' random walk per simulated hour, if they drift at all."""
        if not self.settings.coin_drift_per_day:
            return
        hour = int((now_s - self._epoch_s) // _HOUR_S)
        last = int(self._records.load_fact("drift_hour", 0))
        if hour <= last:
            return
        rates = self.catalogue.rates
        per_step = self.settings.coin_drift_per_day / 24**0.5
        for step in range(max(last, hour - 24 * 366), hour):
            rates = rates.drifted(self.settings.seed, step, per_step)
        self._records.save_fact("drift_hour", hour)
        self._set_rates(rates.usd)

    def _set_rates(self, usd: Mapping[str, Decimal]) -> None:
        self.catalogue.reprice(CoinRates(dict(usd)))
        self._records.save_fact("rates", {coin: str(rate) for coin, rate in usd.items()})
        self._document.render_all()

    # state

    def live(self) -> list[SandboxOrder]:
        return [order for order in self.orders.values() if order.is_live()]

    def _save(self, *orders: SandboxOrder) -> None:
        """With the instant up to which all is settled: a restart goes on from exactly there."""
        self._records.save_orders(orders, settled_s=self._settled_s)

    def _save_outages(self) -> None:
        self._records.save_fact("outages", {str(key): item.until_s for key, item in self._outages.items()})

    def save_mark(self, *, ahead: bool) -> None:
        """Store how far time has come; see `clock`."""
        mark_s = self.clock.mark_ahead_s() if ahead else self.clock.now_s()
        self._records.save_fact("clock_s", mark_s)
        self._save()

    def balance(self, coin: str, now_s: float) -> Decimal:
        running = sum(
            (order.bill_at(now_s).total for order in self.live() if order.currency == coin), Decimal(0)
        )
        return self.credits[coin] - self._closed_spend[coin] - running

    def set_balance(self, coin: str, balance: Decimal) -> None:
        """Pay in or take out until the wallet holds `balance`; raises ValueError outside 0..10 million."""
        if coin not in COINS or not 0 <= balance <= BALANCE_MAX:
            raise ValueError("a balance is from 0 to 10 million of a known currency")
        self.settle()
        now_s = self.now_s
        self.credits[coin] += balance.quantize(Decimal("0.00000001")) - self.balance(coin, now_s)
        self._records.save_credits(self.credits)
        self._save()

    def _end(
        self, order: SandboxOrder, at_s: int, reason: EndReason, *, is_last_interval_unpaid: bool = False
    ) -> None:
        order.end(at_s, reason, is_last_interval_unpaid=is_last_interval_unpaid)
        order.is_deployed = False
        self._closed_spend[order.currency] += order.bill_at(at_s).total
        self._save(order)
        self._effects.append(NodeEffect(EffectKind.STOP, order.id))

    def _usd(self, coin: str, amount: Decimal) -> Decimal:
        return self.catalogue.rates.to_usd(coin, amount)

    def _rival_bid_usd(self, server_id: int, rival: Tenancy) -> Decimal:
        least = self.catalogue.servers[server_id].spot_usd or Decimal(0)
        return least * Decimal(str(rival.spot_bid_factor or 0))

    def _rival(self, server_id: int) -> Tenancy | None:
        return self._occupancy.at(server_id, self.now_s - self._epoch_s)

    def _our_holder(self, server_id: int) -> SandboxOrder | None:
        return next(
            (order for order in self.live() if order.server_id == server_id and order.is_active), None
        )

    def is_rented_by_other(self, server: MarketServer) -> bool:
        return self._rival(server.id) is not None

    def is_online(self, server: MarketServer) -> bool:
        return not server.is_offline and server.id not in self._outages

    def truth_of(self, order: SandboxOrder) -> ServerTruth:
        return self.catalogue.servers[order.truth_server_id or order.server_id].truth

    # reading

    def marketplace(self) -> bytes:
        """The whole answer as JSON bytes."""
        ours = frozenset(order.server_id for order in self.live() if order.is_active)
        rented = self._occupancy.rented_ids(self.now_s - self._epoch_s)
        return self._document.with_rented(rented | ours)

    def wallets(self) -> Reply:
        now_s = self.now_s
        deposits = {BITCOIN: "bc1qsandbox000000000000000000000000000000", CLORE: None, USD: "0xSandbox"}
        fees = {BITCOIN: 0.00005, CLORE: 0.1, USD: 1}
        answer = [
            {
                "name": coin,
                "deposit": deposits[coin],
                "balance": wire_number(self.balance(coin, now_s)),
                "withdrawal_fee": fees[coin],
            }
            for coin in COINS
        ]
        # Accounts have wallets of retired coins, whose balance is null.
        answer.append({"name": "bitcoin-legacy", "deposit": None, "balance": None, "withdrawal_fee": None})
        payload = {"wallets": answer, "code": Code.OK}
        if self.faults.draw("stale_balance", "wallets") and self._stale_wallets is not None:
            return Reply(self._stale_wallets)
        self._stale_wallets = payload
        return Reply(payload)

    def my_orders(self, *, with_completed: bool) -> Reply:
        self._fault_orders()
        real_s = self.clock.real_unix_s()
        listed: list[SandboxOrder] = []
        ended: list[SandboxOrder] = []
        touched: list[SandboxOrder] = []
        for order in self.orders.values():
            if order.visible_real_s > real_s:
                continue
            if order.hidden_polls > 0:
                order.hidden_polls -= 1
                touched.append(order)
            elif order.is_live():
                listed.append(order)
            elif order.linger_polls > 0:
                order.linger_polls -= 1
                touched.append(order)
                listed.append(order)
            elif with_completed:
                ended.append(order)
        if touched:
            self._save(*touched)
        records = [self._wire(order, shows_end=False) for order in listed]
        records += [self._wire(order, shows_end=True) for order in ended[-COMPLETED_LISTED_MAX:]]
        records.sort(key=lambda record: int(record["id"]))
        if records and self.faults.draw("duplicate_in_list", "my_orders"):
            records.append(dict(records[-1]))
        return ok(orders=records, limit=self.settings.orders_limit)

    def _fault_orders(self) -> None:
        live = self.live()
        if live and self.faults.draw("order_dies", "my_orders"):
            order = self.faults.stream("order_dies").choice(live)
            self._end(order, int(self.now_s), EndReason.HOST_GONE)
        live = self.live()
        if live and (switch := self.faults.draw("vanishing_order", "my_orders")):
            order = self.faults.stream("vanishing_order").choice(live)
            order.hidden_polls = int(switch.params["polls"])

    def _wire(self, order: SandboxOrder, *, shows_end: bool) -> Wire:
        server = self.catalogue.servers[order.server_id]
        return wire_order(
            order,
            server,
            self.settings,
            now_s=self.now_s,
            real_s=self.clock.real_unix_s(),
            is_host_online=self.is_online(server),
            shows_end=shows_end,
        )

    def spot_marketplace(self, server_id: int | None) -> Reply:
        server = self.catalogue.servers.get(server_id or -1)
        if server is None or not server.spot:
            return ok(exists=False)
        offers = [
            {
                "offer_id": order.id,
                "bid": wire_number(order.price_per_day),
                "active": order.is_active,
                "my": True,
                "currency": order.currency,
            }
            for order in self.live()
            if order.is_spot and order.server_id == server.id
        ]
        rival = self._rival(server.id)
        if rival is not None and rival.is_spot:
            bid = self.catalogue.rates.from_usd(USD, self._rival_bid_usd(server.id, rival))
            holder = self._our_holder(server.id)
            offers.append(
                {
                    "offer_id": _FIRST_ORDER_ID - server.id % 50_000 - 1,
                    "bid": wire_number(bid),
                    "active": holder is None,
                    "my": False,
                    "currency": USD,
                }
            )
        market = {
            "currency_rates_in_usd": {
                coin: wire_number(rate) for coin, rate in self.catalogue.rates.usd.items()
            },
            "offers": offers,
            "server": {
                "min_pricing": {coin: wire_number(price) for coin, price in server.spot.items()},
                "mrl": server.mrl_hours,
                "visibility": "public",
                "online": self.is_online(server),
            },
        }
        return ok(market=market, exists=True)

    # renting

    def create_order(self, body: Wire) -> Reply:
        try:
            request = parse_create(body)
        except InvalidBody:
            return failure(Code.INVALID_INPUT)
        except IndigestibleBody:
            return failure(Code.DATABASE)
        server = self.catalogue.servers.get(request.server_id)
        if server is None:
            return refusal("server-dont-exist")
        self._move_price(server)
        refused = self._refusal(server, request)
        if refused is not None:
            return refused
        order = self._place(server, request)
        if self.faults.draw("duplicate_order", "create_order", server_id=server.id):
            self._place(server, request)
        return ok(**self._id_in_answer(order.id))

    def _refusal(self, server: MarketServer, request: OrderRequest) -> Reply | None:
        """Why this order cannot be made, or None. The order of the checks is [assumed]."""
        if switch := self.faults.draw("create_refused", "create_order", server_id=server.id):
            return refusal(str(switch.params["error"]))
        if server.owner_id == MY_USER_ID:
            return refusal("cant_rent_from_yourself")
        if not self.is_online(server):
            return refusal("server-offline")
        if request.currency not in server.rentable_coins:
            return refusal("currency-not-allowed")
        if len(self.live()) >= self.settings.orders_limit:
            return refusal("orders_limit_reached")  # [assumed] spelling; the limit itself is listed
        bid = request.bid_per_day
        if bid is None:
            refused = self._on_demand_refusal(server, request)
        else:
            refused = self._spot_refusal(server, request, bid)
        if refused is not None:
            return refused
        coin = request.currency
        price = server.on_demand[coin] if bid is None else bid
        least = price * self.settings.minimum_balance_hours / 24 + creation_fee(self.settings, coin)
        is_empty = self.faults.draw("wallet_empty", "create_order", server_id=server.id)
        if is_empty or self.balance(coin, self.now_s) < least:
            return refusal("not_enough_balance")
        return None

    def _on_demand_refusal(self, server: MarketServer, request: OrderRequest) -> Reply | None:
        rival = self._rival(server.id)
        is_takeable = rival is None or (rival.is_spot and self.settings.on_demand_takes_spot)
        if not is_takeable or self._our_holder(server.id) is not None:
            return refusal("server-already-rented")
        if request.required_price is None:
            return None
        is_equal = request.required_price == server.on_demand[request.currency]
        # Clients of the real service met code 1 with the listed price too, and so left the field out.
        if not is_equal or self._rng.random() < self.settings.required_price_refusal_rate:
            return failure(Code.DATABASE)
        return None

    def _spot_refusal(self, server: MarketServer, request: OrderRequest, bid: Decimal) -> Reply | None:
        if server.on_gigaspot:
            return refusal("machine-is-on-gigaspot")
        if request.currency not in server.spot or bid < server.spot[request.currency]:
            return refusal("too_low_price")
        if any(order.is_spot and order.server_id == server.id for order in self.live()):
            return refusal("you_already_have_spot_order")
        if self._our_holder(server.id) is not None:
            return refusal("server-already-rented")
        if self.settings.outbid is OutbidFate.WAITING:
            return None
        rival = self._rival(server.id)
        if rival is not None and not rival.is_spot:
            return refusal("server-already-rented")
        bid_usd = self._usd(request.currency, bid)
        if rival is not None and bid_usd <= self._rival_bid_usd(server.id, rival):
            return refusal("too_low_price")
        return None

    def _place(self, server: MarketServer, request: OrderRequest) -> SandboxOrder:
        now_s, real_s = self.now_s, self.clock.real_unix_s()
        is_spot = request.kind is OrderKind.SPOT
        price = request.bid_per_day if request.bid_per_day is not None else server.on_demand[request.currency]
        boot_real_s = server.truth.boot_seconds * self.settings.boot_scale
        order = SandboxOrder(
            id=max(self.orders, default=_FIRST_ORDER_ID - 1) + 1 + self._rng.randint(0, 4),
            server_id=server.id,
            owner_id=server.owner_id,
            request=request,
            currency=request.currency,
            ct=int(now_s),
            mrl_s=server.mrl_hours * _HOUR_S,
            segments=[Segment(0, price)],
            fee_percent=fee_percent(self.settings, is_spot=is_spot),
            creation_fee=creation_fee(self.settings, request.currency),
            original_price_usd=server.on_demand_usd,
            visible_real_s=real_s + self._rng.uniform(0, self.settings.list_lag_real_s),
            address_real_s=real_s + boot_real_s * _ADDRESS_AT_BOOT_SHARE,
            boot_real_s=real_s + boot_real_s,
            charge_interval_s=self.settings.charge_interval_s,
            bid_per_day=price if is_spot else None,
            contested_s=now_s,
        )
        if is_spot and not self._beats(order, self._rival(server.id)):
            order.is_active = False
            order.segments = [Segment(0, Decimal(0))]
        self._spoil(order)
        self.orders[order.id] = order
        self._save(order)
        if order.is_active:
            self._effects.append(NodeEffect(EffectKind.START, order.id))
        return order

    def _spoil(self, order: SandboxOrder) -> None:
        """Faults that are part of the order from its start."""
        if switch := self.faults.draw("late_order", "create_order", server_id=order.server_id):
            order.hidden_polls = int(switch.params["polls"])
        if switch := self.faults.draw("fee_moved", "create_order", server_id=order.server_id):
            order.fee_percent = Decimal(str(switch.params["percent"]))
        if self.faults.draw("other_hardware", "create_order", server_id=order.server_id):
            cheapest = min(
                (server for server in self.catalogue.servers.values() if not server.truth.lies),
                key=lambda server: (sum(gpu.vram_mib for gpu in server.truth.gpus), server.id),
            )
            order.truth_server_id = cheapest.id

    def _move_price(self, server: MarketServer) -> None:
        switch = self.faults.draw("price_moved", "create_order", server_id=server.id)
        if switch is None:
            return
        factor = Decimal(str(switch.params["factor"]))
        server.scale_prices(factor)
        moved = self._records.load_fact("price_factors", {})
        moved[str(server.id)] = str(Decimal(moved.get(str(server.id), "1")) * factor)
        self._records.save_fact("price_factors", moved)
        self._document.render(server)

    def _id_in_answer(self, order_id: int) -> Wire:
        if self._rng.random() >= self.settings.order_id_rate:
            return {}
        return self._rng.choice(({"order": {"id": order_id}}, {"id": order_id}, {"order_id": order_id}))

    # ending

    def cancel_order(self, body: Wire) -> Reply:
        issue = body.get("issue")
        if issue is not None and not isinstance(issue, str):
            return failure(Code.INVALID_INPUT)
        if issue is not None and len(issue) > ISSUE_MAX_CHARS:
            return refusal("issue_description_too_long")
        order_id = _id_of(body.get("id"))
        if order_id is None:
            return failure(Code.INVALID_INPUT)
        order = self.orders.get(order_id)
        if order is None:
            return refusal("you_dont_own_this_order")
        if not order.is_live():
            return refusal("order_not_active")
        if self.faults.draw("cancel_ignored", "cancel_order"):
            return ok()
        self._cancel(order)
        if self.faults.draw("cancel_reported_failed", "cancel_order"):
            return refusal("order_not_active")
        return ok()

    def cancel_orders(self, body: Wire) -> Reply:
        asked = body.get("order_ids")
        if not isinstance(asked, list) or not 1 <= len(asked) <= CANCEL_IDS_MAX:
            return failure(Code.INVALID_INPUT)
        is_ignored = self.faults.draw("cancel_ignored", "cancel_orders") is not None
        is_misreported = self.faults.draw("cancel_reported_failed", "cancel_orders") is not None
        failed = []
        for given in asked:
            order_id = _id_of(given)
            order = None if order_id is None else self.orders.get(order_id)
            if order is None or not order.is_live():
                failed.append(str(given))
            elif not is_ignored:
                self._cancel(order)
                failed += [str(given)] if is_misreported else []
        return ok(failed_to_cancel=failed)

    def _cancel(self, order: SandboxOrder) -> None:
        order.linger_polls = self._rng.randint(0, self.settings.cancel_linger_polls)
        self._end(order, int(self.now_s), EndReason.CANCELLED)

    def set_spot_price(self, body: Wire) -> Reply:
        order_id, price = _id_of(body.get("order_id")), body.get("desired_price")
        if order_id is None or isinstance(price, bool) or not isinstance(price, int | Decimal) or price <= 0:
            return failure(Code.INVALID_INPUT)
        order = self.orders.get(order_id)
        if order is None or not order.is_live() or not order.is_spot:
            return refusal("order_dont_exist")
        desired, now_s = Decimal(price), self.now_s
        if desired > BALANCE_MAX:
            return failure(Code.INVALID_INPUT)
        if desired < self.catalogue.servers[order.server_id].spot.get(order.currency, Decimal(0)):
            return refusal("amount_too_low")
        if desired < order.price_per_day:
            refused = self._lowering_refusal(order, desired, now_s)
            if refused is not None:
                return refused
            order.lowered_s = now_s
        order.bid_per_day = desired
        if order.is_active:
            order.charge_from_now(desired, now_s)
        self._save(order)
        self._contest(order, now_s)
        return ok()

    def _lowering_refusal(self, order: SandboxOrder, desired: Decimal, now_s: float) -> Reply | None:
        if order.lowered_s is not None:
            left_s = order.lowered_s + self.settings.lower_interval_s - now_s
            if left_s > 0:
                return refusal("can_lower_every_600_seconds", time_to_lowering=int(left_s) + 1)
        step_max = (order.price_per_day * self.settings.lower_step_max).quantize(Decimal("0.00000001"))
        if order.price_per_day - desired > step_max:
            return refusal("exceeded_max_step", max_step=wire_number(step_max))
        return None

    # the node's side

    def node_addressed(self, order_id: int, ssh_port: int) -> None:
        """The node of this order will answer, or answers, at this port."""
        order = self.orders[order_id]
        if order.is_live() and order.ssh_port != ssh_port:
            order.ssh_port = ssh_port
            self._save(order)

    def node_deployed(self, order_id: int) -> None:
        order = self.orders[order_id]
        if order.is_live() and order.is_active:
            order.is_deployed = True
            self._save(order)

    def node_gone(self, order_id: int) -> None:
        order = self.orders[order_id]
        if order.is_deployed:
            order.is_deployed = False
            self._save(order)

    # the operator's hand

    def start_outage(self, server_id: int, seconds: float) -> None:
        """The host goes away: its orders stay and are charged [assumed], its node answers nothing."""
        self.settle()
        self._outages[self._known(server_id).id] = _Outage(self.now_s + seconds)
        self._save_outages()
        for order in self.live():
            if order.server_id == server_id:
                order.is_deployed = False
                self._save(order)
                self._effects.append(NodeEffect(EffectKind.STOP, order.id))

    def end_outage(self, server_id: int) -> None:
        self.settle()
        if server_id in self._outages:
            self._end_outage(server_id)

    def rent_by_other(
        self, server_id: int, *, seconds: float = _FORCED_TENANCY_S, spot_bid_factor: float | None = None
    ) -> None:
        """Another renter takes the server now; ours loses it if it is spot and the rules say so."""
        self.settle()
        # Whole seconds, as all changes are: a float's rounding must never find the same change twice.
        since_s = int(self.now_s) - self._epoch_s
        stay = (since_s, since_s + int(seconds), spot_bid_factor)
        self._occupancy.force(self._known(server_id).id, Tenancy(*stay))
        forced = self._records.load_fact("forced", {})
        self._records.save_fact("forced", {**forced, str(server_id): stay})
        for order in self.live():
            if order.server_id == server_id and order.is_spot:
                self._contest(order, self.now_s)

    def end_by_host(self, order_id: int) -> None:
        self.settle()
        order = self.orders.get(order_id)
        if order is None or not order.is_live():
            raise ValueError("no live order of that id")
        self._end(order, int(self.now_s), EndReason.HOST_GONE)

    def jump_coin(self, coin: str, factor: Decimal) -> None:
        if factor <= 0 or factor > 10_000:
            raise ValueError("a factor is from 0 to 10,000")
        self.settle()
        self._set_rates(self.catalogue.rates.scaled(coin, factor).usd)

    def set_lines(self, down_mbit_s: float) -> None:
        """What servers have, not what they offer; until the sandbox is started again."""
        if not 0 < down_mbit_s <= LINE_MBIT_S_MAX:
            raise ValueError(f"a line is from 0 to {LINE_MBIT_S_MAX:,} Mbit/s")
        for server in self.catalogue.servers.values():
            server.truth = replace(server.truth, down_mbit_s=down_mbit_s)

    def _known(self, server_id: int) -> MarketServer:
        server = self.catalogue.servers.get(server_id)
        if server is None:
            raise ValueError(f"no server {server_id}")
        return server


def _id_of(value: Any) -> int | None:
    """An order id as an int or as digits: the service takes both."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return None
