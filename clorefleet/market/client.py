"""`MarketClient`: the calls of the Clore marketplace.

Rules:
- Reads (`fetch_*`) raise a `MarketError` and are repeated a few times first, with a jittered pause: they
  change nothing.
- Effects (`rent`, `cancel`, `set_spot_price`) are sent once, whatever happens. `rent` and `cancel` never
  raise for an answer: every answer is an outcome, and `unknown` is one of them.
- Every request waits for its turn in the limiter, repeats too.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, TypeVar

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception

from clorefleet.clock import Clock
from clorefleet.domain.errors import (
    BadAnswer,
    InvalidRequest,
    MarketError,
    MarketUnreachable,
    NoApiKey,
    OutcomeUnknown,
    RateLimited,
    Refused,
)
from clorefleet.domain.identity import OrderId, ServerId
from clorefleet.domain.money import Money, Period, Rate
from clorefleet.domain.offer import DOCUMENTED_FEES, MarketRates, MarketView, Offer, RenterFees
from clorefleet.domain.order import NO_SERVER, OrderList, RentRequest, Wallet, always_timely
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
from clorefleet.domain.secret import Secret
from clorefleet.domain.spot import SpotMarket
from clorefleet.domain.text import clean_line
from clorefleet.market import convert, wire
from clorefleet.market.answers import ALREADY_ENDED, Accepted, InDoubt, Rejected, Stake, Verdict, judge
from clorefleet.market.limiter import NoTurn, Priority, RequestLimiter
from clorefleet.market.records import GigaspotNotice, HostedServer, ProofOfHolding
from clorefleet.market.transport import USER_AGENT, Answer, HttpTransport, NoAnswer, NotSent, Timeouts

if TYPE_CHECKING:
    from clorefleet.market.bulk import OfferTable
    from clorefleet.market.machines import MachineMemo

log = logging.getLogger("clorefleet.market")

MARKETPLACE_BYTES_MAX = 128 << 20
"""2 MB for 3,500 servers in 2024; the bulk reading takes a few times this in memory."""
ANSWER_BYTES_MAX = 4 << 20
READ_ATTEMPTS_MAX = 3
RATE_LIMIT_PATIENCE_S = 60.0
"""A read that only the request limit refuses is repeated for this long: the next turn may well succeed."""
READ_PAUSE_FIRST_S = 1.0
READ_PAUSE_MAX_S = 10.0
FEES_AGE_MAX_S = 600.0
"""Fees change rarely; a reading is used again for this long."""
CANCELS_PER_CALL_MAX = 64
ISSUE_CHARS_MAX = 2048
ENV_FORBIDDEN = frozenset("&<>|;`\\")
"""`&` in a value makes the service answer code 1; one live client strips all of these."""
_NO_KEY_REMEDY = "Set CLORE_API_KEY, or api_key in config.toml."

T = TypeVar("T")
Random = Callable[[], float]
"""A number in [0, 1)."""


@dataclass(frozen=True, slots=True)
class _Call:
    """What to send."""

    method: str
    endpoint: str
    priority: Priority
    stake: Stake = Stake.READ
    query: Mapping[str, str] | None = None
    body: bytes | None = None
    needs_key: bool = True
    size_max: int = ANSWER_BYTES_MAX
    is_timely: Callable[[], bool] = always_timely


class TooLate(NotSent):
    """Its turn came when it was no longer to be sent."""


class MarketClient:
    """Thread-safe. One per profile and process: it holds the limiter of the profile's key."""

    def __init__(
        self,
        base_url: str,
        api_key: Secret | None,
        *,
        clock: Clock,
        limiter: RequestLimiter | None = None,
        timeouts: Timeouts | None = None,
        user_agent: str = USER_AGENT,
        inner: httpx.BaseTransport | None = None,
        random_unit: Random = random.random,
    ) -> None:
        """`base_url` is the API's address up to its version, for instance `https://api.clore.ai/v1`.

        `inner` replaces the network, `limiter` and `random_unit` the pace, in tests.

        Raises:
            ConfigError: the address or the key cannot be used safely.
        """
        self._clock = clock
        self._limiter = limiter or RequestLimiter(clock)
        self._random_unit = random_unit
        self._fees: tuple[float, RenterFees] | None = None
        self._machines: MachineMemo | None = None
        self._transport = HttpTransport(
            base_url, api_key, clock=clock, timeouts=timeouts, user_agent=user_agent, inner=inner
        )

    def close(self) -> None:
        self._transport.close()

    # -- reads

    def fetch_view(self) -> MarketView:
        """Offers, coin rates and fees. Needs no key; without one, or when they cannot be read, the fees are
        the last known or the documented ones.

        Raises:
            MarketError: the offers cannot be read.
        """
        offers, rates = self.fetch_marketplace()
        return MarketView(offers=offers, rates=rates, fees=self._known_fees(), read_at=self._clock.now())

    def fetch_marketplace(self) -> tuple[Sequence[Offer], MarketRates]:
        """All servers of the market, rented ones too, and USD rates by the market's own conversion.

        Of a plain answer an `OfferTable`, whose offers are made when they are looked at.
        """
        from clorefleet.market.bulk import OfferTable  # numpy: for those who look at offers

        # Public: the key is not sent where it is not needed.
        call = _Call("GET", "marketplace", Priority.READ, needs_key=False, size_max=MARKETPLACE_BYTES_MAX)
        read = self._retrying()(self._read_marketplace, call)
        if isinstance(read, OfferTable):
            if read.skipped:
                log.warning("records_skipped list=servers count=%s", read.skipped)
            return read, read.rates
        servers = _kept(wire.read_marketplace(read), "servers")
        rates = convert.coin_rates(servers, read_at=self._clock.now())
        return tuple(convert.offer(server, rates) for server in servers), rates

    def fetch_orders(self, *, include_completed: bool = False) -> OrderList:
        """The account's orders.

        Records without a readable id are left out and counted in `unreadable`, as are live ones that do not
        say on which server they are: an order missing from such a list is not to be taken for ended.
        """
        call = _Call(
            "GET",
            "my_orders",
            Priority.ORDERS,
            query={"return_completed": "true" if include_completed else "false"},
        )
        doc, told_at = self._retrying()(self._read_dated, call, "orders")
        decoded = wire.read_orders(doc)
        if decoded.skipped:
            _kept(decoded, "orders")
        orders = convert.orders(decoded.records)
        nowhere = sum(1 for each in orders if not each.is_expired and each.server_id == NO_SERVER)
        return OrderList(
            orders=orders,
            read_at=self._clock.now(),
            includes_completed=include_completed,
            unreadable=decoded.skipped + nowhere,
            told_at=told_at,
        )

    def fetch_wallets(self) -> tuple[Wallet, ...]:
        doc = self._read(_Call("GET", "wallets", Priority.READ), lists="wallets")
        return convert.wallets(_kept(wire.read_wallets(doc), "wallets"))

    def fetch_fees(self) -> RenterFees:
        """The renter's fees; the documented ones, marked assumed, where the service has no such call."""
        try:
            doc = self._read(_Call("GET", "renter_fees", Priority.READ))
        except InvalidRequest:
            return DOCUMENTED_FEES
        return convert.fees(wire.read_fees(doc))

    def fetch_spot_market(self, server_id: ServerId) -> SpotMarket:
        doc = self._read(_Call("GET", "spot_marketplace", Priority.READ, query={"market": str(server_id)}))
        return convert.spot_market(wire.read_spot_market(doc), server_id, read_at=self._clock.now())

    def fetch_my_servers(self) -> tuple[HostedServer, ...]:
        """The account's own servers on the hosting side."""
        doc = self._read(_Call("GET", "my_servers", Priority.READ), lists="servers")
        return tuple(map(convert.hosted_server, _kept(wire.read_my_servers(doc), "my_servers")))

    def fetch_server_config(self, server_name: str) -> HostedServer:
        """One of the account's own servers. The service takes the name in the body of a GET.

        Raises:
            BadAnswer: there is no such server in the answer.
        """
        body = encode({"server_name": server_name})
        doc = self._read(_Call("GET", "server_config", Priority.READ, body=body))
        found = wire.read_hosted_server(wire.fields(doc.get("config")))
        if found is None:
            raise BadAnswer("The market's answer has no server.", remedy="Check the server's name.")
        return convert.hosted_server(found)

    def fetch_poh_balance(self) -> ProofOfHolding:
        balance = wire.fields(self._read(_Call("GET", "poh_balance", Priority.READ)).get("balance"))
        return ProofOfHolding(
            wire.number(balance.get("total")) or Decimal(0), wire.number(balance.get("free_amount"))
        )

    def fetch_gigaspot(self) -> GigaspotNotice:
        doc = self._read(_Call("GET", "get_gigaspot", Priority.READ))
        fees = wire.amounts(doc.get("creation_fees"))
        return GigaspotNotice(
            user_id=wire.identifier(doc.get("my_user_id")),
            snapshot_url=clean_line(wire.text(doc.get("v1_snapshot_url")), max_chars=500),
            usd_per_clore=wire.number(doc.get("clore_price")),
            creation_fees=tuple(
                Money(fees[name], currency) for name, currency in convert.CURRENCY_OF.items() if name in fees
            ),
        )

    # -- effects

    def rent(self, request: RentRequest, *, with_required_price: bool = True) -> RentOutcome:
        """Costs money. One `create_order`, sent at most once; never repeated here.

        With `with_required_price` an on-demand order carries the approved price as a guard. The service's
        refusal of a guard is code 1, which is in doubt: `RentUnknown(was_price_guard=True)`, and
        `clorefleet.market.rent` has the protocol that follows.
        """
        is_guarded = with_required_price and not request.is_spot
        try:
            body = _create_body(request, is_guarded=is_guarded)
        except InvalidRequest as error:
            return RentRefused(error)
        call = _Call(
            "POST", "create_order", Priority.RENT, Stake.RENT, body=body, is_timely=request.is_timely
        )
        match self._effect(call):
            case Accepted(doc):
                order_id = wire.read_created_order_id(doc)
                outcome: RentOutcome = Rented(None if order_id is None else OrderId(order_id))
            case Rejected(refusal):
                outcome = RentRefused(refusal)
            case InDoubt(reason, is_code_1):
                outcome = RentUnknown(
                    f"The rent of server {request.server_id} is in doubt: {reason}",
                    was_price_guard=is_guarded and is_code_1,
                )
        log.info("rent_answered server=%s outcome=%s", request.server_id, type(outcome).__name__)
        return outcome

    def cancel(self, order_id: OrderId, *, issue: str = "") -> CancelOutcome:
        """Stops money. Accepted means asked for: the order list shows when it has ended.

        `issue` is read by the market's support; it is cut to what they take.
        """
        content: dict[str, object] = {"id": int(order_id)}
        if issue:
            content["issue"] = issue[:ISSUE_CHARS_MAX]
        verdict = self._effect(
            _Call("POST", "cancel_order", Priority.CANCEL, Stake.CANCEL, body=encode(content))
        )
        outcome = _cancel_outcome(verdict)
        log.info("cancel_answered order=%s outcome=%s", order_id, type(outcome).__name__)
        return outcome

    def cancel_many(self, order_ids: Iterable[OrderId]) -> dict[OrderId, CancelOutcome]:
        """Cancel up to 64 orders a call. The outcome of each, in the order asked for."""
        wanted = list(dict.fromkeys(order_ids))
        outcomes: dict[OrderId, CancelOutcome] = {}
        for start in range(0, len(wanted), CANCELS_PER_CALL_MAX):
            batch = wanted[start : start + CANCELS_PER_CALL_MAX]
            body = encode({"order_ids": [int(order_id) for order_id in batch]})
            verdict = self._effect(_Call("POST", "cancel_orders", Priority.CANCEL, Stake.CANCEL, body=body))
            if isinstance(verdict, Accepted):
                outcomes |= _batch_outcomes(batch, verdict.doc)
            else:
                outcomes |= dict.fromkeys(batch, _cancel_outcome(verdict))
        log.info("cancels_answered orders=%s", len(wanted))
        return outcomes

    def set_spot_price(self, order_id: OrderId, desired: Rate, *, current: Rate) -> None:
        """Change a spot order's bid, per day in the order's currency.

        `current` says whether this lowers the price, which is allowed once in 600 s.

        Raises:
            OutcomeUnknown: the price may have changed; the order list shows it.
            MarketError: refused; the order keeps its price.
        """
        is_lowering = not current <= desired
        if is_lowering:
            self._limiter.check_lowering(order_id)
        body = encode({"order_id": int(order_id), "desired_price": desired.per(Period.DAY).amount})
        verdict = self._effect(_Call("POST", "set_spot_price", Priority.READ, Stake.SPOT_PRICE, body=body))
        if is_lowering and not isinstance(verdict, Rejected):
            self._limiter.note_lowered(order_id)
        match verdict:
            case Rejected(refusal):
                raise refusal
            case InDoubt(reason):
                raise OutcomeUnknown(
                    f"The new spot price of order {order_id} is in doubt: {reason}.",
                    remedy="Read the orders again: the list shows the price in force.",
                    money="The order bills at either the old or the new price.",
                )
            case Accepted():
                log.info("spot_price_set order=%s", order_id)

    # -- one request

    def _known_fees(self) -> RenterFees:
        now_s = self._clock.monotonic_s()
        known = self._fees
        if known is not None and now_s - known[0] < FEES_AGE_MAX_S:
            return known[1]
        if self._transport.has_key:
            try:
                fees = self.fetch_fees()
            except MarketError as error:
                log.warning("fees_not_read why=%s", error.what)
            else:
                self._fees = (now_s, fees)
                return fees
        return DOCUMENTED_FEES if known is None else known[1]

    def _read(self, call: _Call, *, lists: str = "") -> wire.Fields:
        """Repeated on failures that may pass: a read changes nothing.

        `lists` names the array that the answer must have. Without it "no orders" and "no answer" look alike.
        """
        return self._retrying()(self._read_once, call, lists)

    def _retrying(self) -> Retrying:
        patient_until_s = self._clock.monotonic_s() + RATE_LIMIT_PATIENCE_S

        def is_enough(state: RetryCallState) -> bool:
            failure = None if state.outcome is None else state.outcome.exception()
            is_patient = isinstance(failure, RateLimited) and self._clock.monotonic_s() < patient_until_s
            return state.attempt_number >= READ_ATTEMPTS_MAX and not is_patient

        return Retrying(
            stop=is_enough,
            wait=self._pause_s,
            retry=retry_if_exception(_may_repeat),
            sleep=self._clock.sleep,
            reraise=True,
        )

    def _pause_s(self, state: RetryCallState) -> float:
        """1, 2, 4 s..., each between half and whole, so that clients do not march in step."""
        whole_s = min(READ_PAUSE_FIRST_S * 2.0 ** (state.attempt_number - 1), READ_PAUSE_MAX_S)
        return whole_s * (0.5 + self._random_unit() / 2)

    def _read_once(self, call: _Call, lists: str) -> wire.Fields:
        return self._read_dated(call, lists)[0]

    def _read_dated(self, call: _Call, lists: str) -> tuple[wire.Fields, datetime | None]:
        """With the market's own time, where its answer is dated."""
        answer = self._ask(call)
        if isinstance(answer, InDoubt):
            return self._settled(answer, lists), None
        return self._settled(judge(answer, call.stake), lists), answer.dated_at

    def _read_marketplace(self, call: _Call) -> OfferTable | wire.Fields:
        """The answer in bulk where it is plain, else read tolerantly."""
        from clorefleet.market.bulk import table_of_answer
        from clorefleet.market.machines import MachineMemo

        answer = self._ask(call)
        if isinstance(answer, InDoubt):
            return self._settled(answer, "servers")
        self._machines = self._machines or MachineMemo()
        table = table_of_answer(answer.body, read_at=self._clock.now(), memo=self._machines)
        if table is None:
            return self._settled(judge(answer, call.stake), "servers")
        self._limiter.note_served()
        return table

    def _ask(self, call: _Call) -> Answer | InDoubt:
        try:
            return self._send(call)
        except (NotSent, NoAnswer) as failure:
            return InDoubt(failure.reason)

    def _settled(self, verdict: Verdict, lists: str) -> wire.Fields:
        self._note(verdict)
        match verdict:
            case Rejected(error):
                raise error
            case InDoubt():
                raise verdict.as_read_error()
            case Accepted(doc):
                if lists and not isinstance(doc.get(lists), list):
                    raise InDoubt(f"its answer has no list of {lists}", is_unreadable=True).as_read_error()
                return doc

    def _effect(self, call: _Call) -> Verdict:
        """Sent at most once. Only what is certain to have had no effect is `Rejected`."""
        try:
            verdict = judge(self._send(call), call.stake)
        except TooLate as late:
            return Rejected(
                MarketUnreachable(f"Nothing was sent: {late.reason}.", money="Nothing was rented.")
            )
        except NotSent as failure:
            verdict = Rejected(
                MarketUnreachable(
                    f"The market cannot be reached: {failure.reason}.",
                    remedy="Check the connection; it is tried again by itself.",
                    money=call.stake.value,
                )
            )
        except NoAnswer as failure:
            verdict = InDoubt(failure.reason)
        except NoTurn as no_turn:
            # Not noted: the market has not answered.
            return Rejected(no_turn)
        self._note(verdict)
        return verdict

    def _send(self, call: _Call) -> Answer:
        if call.needs_key and not self._transport.has_key:
            raise NoApiKey(_NO_KEY_REMEDY)
        self._limiter.wait_turn(call.priority)
        if not call.is_timely():
            raise TooLate("when its turn came, its time was over or what was wanted had changed")
        return self._transport.exchange(
            call.method,
            call.endpoint,
            query=call.query,
            body=call.body,
            with_key=call.needs_key,
            size_max=call.size_max,
        )

    def _note(self, verdict: Verdict) -> None:
        match verdict:
            case Rejected(RateLimited() as error):
                self._limiter.note_refused(error.retry_after_s)
            case Accepted() | Rejected():
                self._limiter.note_served()
            case InDoubt():
                pass


def encode(content: Mapping[str, object]) -> bytes:
    """A JSON object whose top-level `Decimal`s are written digit by digit, never through a float."""
    parts = (
        f"{json.dumps(name)}:{f'{value:f}' if isinstance(value, Decimal) else json.dumps(value)}"
        for name, value in content.items()
    )
    return ("{" + ",".join(parts) + "}").encode()


def _may_repeat(error: BaseException) -> bool:
    return isinstance(error, MarketError) and error.may_retry and not isinstance(error, NoTurn)


def _create_body(request: RentRequest, *, is_guarded: bool) -> bytes:
    """
    Raises:
        InvalidRequest: the service would choke on it, perhaps after making the order. Nothing is sent.
    """
    _check_digestible(request)
    price = request.approved_price.per(Period.DAY)
    content: dict[str, object] = {
        "renting_server": int(request.server_id),
        "type": "spot" if request.is_spot else "on-demand",
        "currency": convert.NAME_OF[price.currency],
        "image": request.image,
        "ports": {str(port): protocol for port, protocol in request.ports},
        "env": dict(request.env),
    }
    if request.ssh_public_key:
        content["ssh_key"] = request.ssh_public_key
    if request.ssh_password.reveal():
        content["ssh_password"] = request.ssh_password.reveal()
    if request.command.reveal():
        content["command"] = request.command.reveal()
    if request.needs_ssh_entrypoint:
        content["autossh_entrypoint"] = True
    if request.is_spot:
        content["spotprice"] = price.amount
    elif is_guarded:
        content["required_price"] = price.amount
    return encode(content)


def _check_digestible(request: RentRequest) -> None:
    faults = [
        f"the value of {clean_line(name, max_chars=40)} has a character that the service cannot take"
        for name, value in request.env
        if not value.isascii() or not value.isprintable() or ENV_FORBIDDEN.intersection(value)
    ]
    faults += [
        f"“{clean_line(name, max_chars=40)}” cannot name a variable"
        for name, _ in request.env
        if not (name.isascii() and name.isidentifier())
    ]
    if sum(protocol == "http" for _, protocol in request.ports) > 1:
        faults.append("an order has at most one http port")
    if not request.image.strip():
        faults.append("an order needs an image")
    if faults:
        raise InvalidRequest(
            f"The order cannot be sent: {'; '.join(faults)}.",
            remedy="This is a fault in clorefleet or in a recipe; please report it.",
            money=Stake.RENT.value,
        )


def _cancel_outcome(verdict: Verdict) -> CancelOutcome:
    match verdict:
        case Accepted():
            return CancelAccepted()
        case Rejected(Refused(reason=reason)) if reason in ALREADY_ENDED:
            return AlreadyEnded()
        case Rejected(error):
            return CancelRefused(error)
        case InDoubt(reason):
            return CancelUnknown(f"The cancel is in doubt: {reason}")


def _batch_outcomes(batch: list[OrderId], doc: wire.Fields) -> dict[OrderId, CancelOutcome]:
    """Ids come back as numbers or as text. All that are not named as failed were cancelled."""
    told = doc.get("failed_to_cancel")
    if told is not None and not isinstance(told, list):
        return dict.fromkeys(batch, CancelUnknown("The cancel is in doubt: its answer has no list"))
    failed = {wire.identifier(item) for item in wire.items(told)}
    refused = CancelRefused(
        Refused(
            "The market did not cancel the order.",
            reason="failed-to-cancel",
            remedy="Read the orders again: it may have ended already; else cancel it alone to learn why.",
            money=Stake.CANCEL.value,
        )
    )
    return {order_id: refused if int(order_id) in failed else CancelAccepted() for order_id in batch}


def _kept(decoded: wire.Decoded[T], what: str) -> tuple[T, ...]:
    """The readable records; the others are counted in the log, with a glimpse of a few."""
    if decoded.skipped:
        log.warning(
            "records_skipped list=%s count=%s samples=%s",
            what,
            decoded.skipped,
            [clean_line(sample, max_chars=120) for sample in decoded.samples],
        )
    return decoded.records
