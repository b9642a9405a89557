"""One contract, two markets: what the client promises holds on recorded traffic and on the live sandbox.

The recordings are of the sandbox, and some are transcribed from the API's documentation; none is of the
live service (see `tests/cassettes/market/README.md`). To record anew, which rewrites the first kind:

    CLOREFLEET_RECORD_MARKET=1 pytest tests/market/test_contract.py -k sandbox
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import vcr
from starlette.applications import Starlette

from clorefleet.domain.errors import (
    InvalidRequest,
    OfferGone,
    OutOfFunds,
    PriceMoved,
    RateLimited,
    Refused,
    WrongApiKey,
)
from clorefleet.domain.identity import OrderId, ServerId
from clorefleet.domain.money import Currency, Rate
from clorefleet.domain.offer import Offer
from clorefleet.domain.order import RentRequest
from clorefleet.domain.outcome import (
    AlreadyEnded,
    CancelAccepted,
    CancelRefused,
    CancelUnknown,
    Rented,
    RentRefused,
    RentUnknown,
)
from clorefleet.domain.secret import Secret
from clorefleet.market.client import MarketClient
from clorefleet.market.limiter import RequestLimiter
from clorefleet.market.rent import RentProtocol, find_new_order, is_price_acceptable
from clorefleet.sandbox.nodes import NoRack
from clorefleet.sandbox.settings import SandboxSettings
from clorefleet.sandbox.thread import RunningSandbox
from tests.market.scripted import KEY, URL, FakeClock, request_for

CASSETTES = Path(__file__).parent.parent / "cassettes" / "market"
IS_RECORDING = bool(os.environ.get("CLOREFLEET_RECORD_MARKET"))
_KEPT_HEADERS = {"content-type", "retry-after"}
SERVERS = 40
"""Enough for every case, and little to record."""

MakeClient = Callable[..., MarketClient]


# -- the contract


def the_market_is_read_whole(client: MarketClient) -> None:
    view = client.fetch_view()
    assert len(view.offers) == SERVERS
    assert view.fees.source == "market"
    assert view.fees.percent(Currency.USD, is_spot=False) == 5
    assert view.fees.creation(Currency.USD) == Decimal("0.1")
    for currency in Currency:
        rate = view.rates.of_currency(currency)
        assert rate is not None
        assert rate.usd_per_unit > 0
    for offer in view.offers:
        assert offer.gpus
        assert all(gpu.name and "NVIDIA" not in gpu.name for gpu in offer.gpus)
        assert all(isinstance(rate.amount, Decimal) and rate.amount > 0 for rate in offer.on_demand)
        assert offer.on_demand or "no_price" in {flag.code for flag in offer.flags}


def the_account_is_read(client: MarketClient) -> None:
    assert {wallet.currency for wallet in client.fetch_wallets()} == set(Currency)
    assert client.fetch_orders().orders == ()
    assert client.fetch_poh_balance().total_clore == 0
    assert client.fetch_gigaspot().usd_per_clore is not None
    client.fetch_my_servers()


def a_rent_is_listed_costs_the_approved_price_and_ends_when_cancelled(client: MarketClient) -> None:
    request = _request(_free(client))
    assert isinstance(client.rent(request), Rented)
    order = find_new_order(client.fetch_orders(), request, frozenset())
    assert order is not None
    assert is_price_acceptable(order, request.approved_price)
    assert not order.is_spot
    assert client.cancel(order.order_id, issue="contract") == CancelAccepted()
    assert client.fetch_orders().by_id(order.order_id) is None
    ended = client.fetch_orders(include_completed=True).by_id(order.order_id)
    assert ended is not None
    assert ended.is_expired
    assert client.cancel(order.order_id) == AlreadyEnded()


def the_price_guards_refusal_is_in_doubt_and_the_protocol_leaves_it_so(client: MarketClient) -> None:
    dearer = _free(client)
    too_low = RentRequest(
        server_id=dearer.server_id,
        is_spot=False,
        approved_price=Rate.per_day(_usd(dearer).amount / 2),
        image="cloreai/ubuntu22.04-cuda12",
    )
    outcome = client.rent(too_low)
    assert isinstance(outcome, RentUnknown)
    assert outcome.was_price_guard
    protocol = RentProtocol(client, clock=FakeClock(), read_back_window_s=0)
    assert isinstance(protocol.rent(too_low), RentUnknown)
    assert client.fetch_orders().orders == ()


def a_server_that_has_an_on_demand_renter_or_does_not_exist_is_gone(client: MarketClient) -> None:
    """The rent protocol's second attempt relies on the first half."""
    request = _request(_free(client))
    assert isinstance(client.rent(request), Rented)
    for again in (request, request_for(999_999_999)):
        outcome = client.rent(again, with_required_price=False)
        assert isinstance(outcome, RentRefused)
        assert isinstance(outcome.error, OfferGone)
    assert len(client.fetch_orders().live()) == 1


def an_empty_wallet_is_out_of_funds(client: MarketClient) -> None:
    outcome = client.rent(_request(_free(client)))
    assert isinstance(outcome, RentRefused)
    assert isinstance(outcome.error, OutOfFunds)


def a_wrong_key_is_told_and_nothing_else(client: MarketClient) -> None:
    with pytest.raises(WrongApiKey):
        client.fetch_orders()
    for outcome in (client.rent(request_for()), client.cancel(OrderId(1))):
        assert isinstance(outcome, RentRefused | CancelRefused)
        assert isinstance(outcome.error, WrongApiKey)


def a_spot_order_lives_by_its_bid(client: MarketClient) -> None:
    offer = next(
        offer
        for offer in client.fetch_view().offers
        if not offer.is_rented and offer.price_in(Currency.USD, is_spot=True) and not offer.flags
    )
    market = client.fetch_spot_market(offer.server_id)
    assert market.exists
    least = next(rate for rate in market.min_prices if rate.currency is Currency.USD)
    too_low = client.rent(_request(offer, bid=least * Decimal("0.5")))
    assert isinstance(too_low, RentRefused)
    assert isinstance(too_low.error, PriceMoved)
    bid = least * 2
    request = _request(offer, bid=bid)
    assert isinstance(client.rent(request), Rented)
    order = find_new_order(client.fetch_orders(), request, frozenset())
    assert order is not None
    assert order.is_spot
    assert order.price.amount == bid.amount
    mine = [each for each in client.fetch_spot_market(offer.server_id).bids if each.is_mine]
    assert [(each.order_id, each.price.amount) for each in mine] == [(order.order_id, bid.amount)]
    again = client.rent(request)
    assert isinstance(again, RentRefused)
    assert isinstance(again.error, Refused)
    assert again.error.reason == "you-already-have-spot-order"
    client.set_spot_price(order.order_id, bid * Decimal("1.5"), current=bid)
    with pytest.raises(Refused, match="at once"):
        client.set_spot_price(order.order_id, bid * Decimal("0.5"), current=bid * Decimal("1.5"))
    outcomes = client.cancel_many([order.order_id])
    assert outcomes == {order.order_id: CancelAccepted()}


def an_order_that_never_was_is_nothing_to_cancel(client: MarketClient) -> None:
    outcome = client.cancel(OrderId(999_999_999))
    assert isinstance(outcome, AlreadyEnded | CancelRefused)


def too_many_requests_are_refused_safely(client: MarketClient) -> None:
    assert client.fetch_orders().orders == ()
    outcome = client.rent(request_for(999_999_999))
    assert isinstance(outcome, RentRefused)
    assert isinstance(outcome.error, RateLimited)
    assert outcome.error.money == "Nothing was rented and nothing was spent."


def an_answer_lost_in_the_edge_leaves_the_rent_in_doubt_and_the_list_settles_it(client: MarketClient) -> None:
    request = _request(_free(client))
    outcome = client.rent(request)
    assert isinstance(outcome, RentUnknown)
    assert not outcome.was_price_guard
    order = find_new_order(client.fetch_orders(), request, frozenset())
    assert order is not None
    assert isinstance(client.cancel(order.order_id), CancelUnknown)
    assert client.fetch_orders().by_id(order.order_id) is None


def code_1_after_the_order_was_made_is_adopted_by_the_protocol(client: MarketClient) -> None:
    request = _request(_free(client))
    outcome = RentProtocol(client, clock=FakeClock()).rent(request)
    assert isinstance(outcome, Rented)
    orders = client.fetch_orders().live()
    assert [order.order_id for order in orders] == [outcome.order_id]


_LOST_ANSWERS = {"error_after": {"endpoints": ["create_order", "cancel_order"]}}
CASES: dict[Callable[[MarketClient], None], dict[str, Any]] = {
    the_market_is_read_whole: {},
    the_account_is_read: {},
    a_rent_is_listed_costs_the_approved_price_and_ends_when_cancelled: {},
    the_price_guards_refusal_is_in_doubt_and_the_protocol_leaves_it_so: {},
    a_server_that_has_an_on_demand_renter_or_does_not_exist_is_gone: {},
    an_empty_wallet_is_out_of_funds: {"wallet_usd": Decimal(0)},
    a_wrong_key_is_told_and_nothing_else: {},
    a_spot_order_lives_by_its_bid: {},
    an_order_that_never_was_is_nothing_to_cancel: {},
    too_many_requests_are_refused_safely: {"enforce_rate_limits": True, "call_interval_real_s": 30.0},
    an_answer_lost_in_the_edge_leaves_the_rent_in_doubt_and_the_list_settles_it: {"faults": _LOST_ANSWERS},
    code_1_after_the_order_was_made_is_adopted_by_the_protocol: {"faults": {"code1_after": {"count": 1}}},
}
"""Each claim, with the sandbox's settings that it needs."""
_WRONG_KEY_CASES = {a_wrong_key_is_told_and_nothing_else}


def _has_usd(offer: Offer) -> bool:
    return offer.price_in(Currency.USD, is_spot=False) is not None


def _usd(offer: Offer) -> Rate:
    rate = offer.price_in(Currency.USD, is_spot=False)
    assert rate is not None
    return rate


def _free(client: MarketClient) -> Offer:
    """The cheapest free server in USD: the same one whenever the same listing is read."""
    free = [
        offer
        for offer in client.fetch_view().offers
        if not offer.is_rented and _has_usd(offer) and not offer.flags
    ]
    return min(free, key=lambda offer: (_usd(offer).amount, offer.server_id))


def _request(offer: Offer, *, bid: Rate | None = None) -> RentRequest:
    return request_for(offer.server_id, is_spot=bid is not None, approved_price=bid or _usd(offer))


# -- the two markets


def _client(url: str, key: str) -> MarketClient:
    """Without waiting: the limiter's pace is tested by itself."""
    clock = FakeClock()
    return MarketClient(url, Secret(key), clock=clock, limiter=RequestLimiter(clock))


def _scrub_request(request: Any) -> Any:  # vcr's own, untyped
    request.headers = {}
    request.uri = URL + request.uri.split("/v1", 1)[-1]
    return request


def _scrub_response(response: dict[str, Any]) -> dict[str, Any]:
    headers = {name.lower(): value for name, value in response["headers"].items()}
    response["headers"] = {name: value for name, value in headers.items() if name in _KEPT_HEADERS}
    return response


@contextmanager
def _cassette(kind: str, name: str, *, record: bool = False) -> Iterator[Any]:
    path = CASSETTES / kind / f"{name}.yaml"
    if record:
        path.unlink(missing_ok=True)
    recorder = vcr.VCR(
        record_mode="all" if record else "none",
        # Transcribed answers are not tied to the exact bytes of a request.
        match_on=["method", "path", "query", *(["body"] if kind == "sandbox" else [])],
        before_record_request=_scrub_request,
        before_record_response=_scrub_response,
    )
    with recorder.use_cassette(str(path)) as cassette:
        yield cassette


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_recorded(case: Callable[[MarketClient], None]) -> None:
    with _cassette("sandbox", case.__name__) as cassette:
        case(_client(URL, KEY))
        assert cassette.all_played


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_sandbox(case: Callable[[MarketClient], None], tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "state_dir": tmp_path,
        "server_count": SERVERS,
        "churn": 0.0,
        "enforce_rate_limits": False,
        "list_lag_real_s": 0.0,
        "cancel_linger_polls": 0,
        "required_price_refusal_rate": 0.0,
    }
    sandbox = RunningSandbox(SandboxSettings(**(settings | CASES[case])), rack=NoRack(), hub=Starlette())
    with sandbox:
        key = KEY if case in _WRONG_KEY_CASES else sandbox.api_key
        with _cassette("sandbox", case.__name__, record=True) if IS_RECORDING else nullcontext():
            case(_client(sandbox.market_url, key))
        written = CASSETTES / "sandbox" / f"{case.__name__}.yaml"
        if IS_RECORDING:
            assert sandbox.api_key not in written.read_text("utf-8")


def test_no_recording_holds_a_key_or_a_header_of_ours() -> None:
    recordings = sorted(CASSETTES.rglob("*.yaml"))
    assert len(recordings) > len(CASES)
    for recording in recordings:
        content = recording.read_text("utf-8").lower()
        assert KEY not in content
        assert "\n      auth:" not in content
        assert "user-agent" not in content


# -- what the documentation shows, and the sandbox does not send


def test_documented_order_list_is_read_in_both_forms() -> None:
    with _cassette("documented", "orders"):
        running, ended = _client(URL, KEY).fetch_orders(include_completed=True).orders
    assert (running.order_id, running.server_id, running.is_expired) == (602837, 25756, False)
    assert running.ssh is not None
    assert (running.ssh.hosts, running.ssh.port) == (("n1.de.clorecloud.net",), 1380)
    assert running.price == Rate.per_day("3.9")
    assert (ended.order_id, ended.is_spot, ended.is_expired, ended.ssh) == (602101, True, True, None)
    with _cassette("documented", "orders_as_the_sdk_types_them"):
        (order,) = _client(URL, KEY).fetch_orders().orders
    assert (order.server_id, order.ssh and order.ssh.port) == (25756, 1380)
    assert order.created_at is not None


def test_documented_marketplace_and_wallets_are_read_exactly() -> None:
    with _cassette("documented", "market"):
        client = _client(URL, KEY)
        (offer,) = client.fetch_view().offers
        wallets = {wallet.currency: wallet.balance for wallet in client.fetch_wallets()}
    assert offer.price_in(Currency.BITCOIN, is_spot=False) == Rate.per_day("0.0000412", Currency.BITCOIN)
    assert offer.disk_free_bytes == 456_039_900_000
    bitcoin = wallets[Currency.BITCOIN]
    assert bitcoin is not None
    assert bitcoin.amount == Decimal("0.04101593")


def test_documented_answers_of_the_hosting_side_are_read_without_their_token() -> None:
    with _cassette("documented", "hosting"):
        client = _client(URL, KEY)
        servers = client.fetch_my_servers()
        config = client.fetch_server_config("rig-01")
    assert [server.name for server in servers] == ["rig-01", "rig-02"]
    assert not servers[1].is_connected
    assert config.max_rental_s == 72 * 3600
    assert "EXAMPLE-INIT-TOKEN" not in repr(servers)


def test_documented_spot_market_and_refusals_are_read() -> None:
    with _cassette("documented", "spot"):
        client = _client(URL, KEY)
        market = client.fetch_spot_market(ServerId(25756))
        assert [bid.is_mine for bid in market.bids] == [True, False]
        rate = market.rates.of_currency(Currency.BITCOIN)
        assert rate is not None
        assert (rate.usd_per_unit, rate.source) == (Decimal(94500), "spot_marketplace")
        order_id = OrderId(602101)
        with pytest.raises(Refused, match="at once"):
            client.set_spot_price(order_id, Rate.per_day("2.6"), current=Rate.per_day("2.85"))
        with pytest.raises(Refused, match="600 s"):
            client.set_spot_price(order_id, Rate.per_day("2.7"), current=Rate.per_day("2.85"))


def test_documented_batch_cancel_names_its_failures_as_text() -> None:
    with _cassette("documented", "cancel_orders"):
        outcomes = _client(URL, KEY).cancel_many([OrderId(602837), OrderId(602838)])
    assert outcomes[OrderId(602837)] == CancelAccepted()
    assert isinstance(outcomes[OrderId(602838)], CancelRefused)


def test_answers_that_clients_of_the_live_service_reported() -> None:
    with _cassette("documented", "seen_by_other_clients"):
        client = _client(URL, KEY)
        lost_race = client.rent(request_for(1))
        opaque = client.rent(request_for(2))
        edge = client.rent(request_for(3))
        limited = client.rent(request_for(4))
        missing = client.rent(request_for(5))
    assert isinstance(lost_race, RentRefused)
    assert isinstance(lost_race.error, OfferGone)
    assert isinstance(opaque, RentUnknown)
    assert opaque.was_price_guard
    assert isinstance(edge, RentRefused)
    assert "1010" in edge.error.what
    assert isinstance(limited, RentRefused)
    assert isinstance(limited.error, RateLimited)
    assert limited.error.retry_after_s == 2
    assert isinstance(missing, RentRefused)
    assert isinstance(missing.error, InvalidRequest)
