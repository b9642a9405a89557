"""The calls: what is sent, what is repeated, and what each answer becomes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest

from clorefleet.domain.errors import (
    BadAnswer,
    InvalidRequest,
    MarketUnreachable,
    NoApiKey,
    OfferGone,
    OutcomeUnknown,
    RateLimited,
    Refused,
    WrongApiKey,
)
from clorefleet.domain.identity import OrderId, ServerId
from clorefleet.domain.money import Currency, Rate
from clorefleet.domain.offer import DOCUMENTED_FEES
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
from clorefleet.fleet.edges import Market
from clorefleet.market.client import RATE_LIMIT_PATIENCE_S, READ_ATTEMPTS_MAX, encode
from clorefleet.market.rent import RentProtocol
from tests.market.scripted import (
    KEY,
    FakeClock,
    Script,
    answer,
    client_of,
    order_doc,
    request_for,
    server_doc,
    text,
)


def test_the_client_and_the_rent_protocol_are_markets_for_the_fleet() -> None:
    client = client_of(Script())
    markets: list[Market] = [client, RentProtocol(client, clock=FakeClock())]
    assert all(callable(market.rent) for market in markets)


# -- what is sent


@pytest.mark.parametrize(
    ("amount", "literal"),
    [
        ("0.0000412", "0.0000412"),
        ("1E-8", "0.00000001"),
        ("3.90", "3.90"),
        ("410", "410"),
        ("1E+2", "100"),
        ("0.1234567890123456789", "0.1234567890123456789"),
    ],
)
def test_a_price_is_sent_digit_by_digit(amount: str, literal: str) -> None:
    assert (
        encode({"a": Decimal(amount), "b": "1"})
        == f'{{"a":{literal},"b": "1"}}'.replace(': "', ':"').encode()
    )


def test_a_rent_sends_all_that_was_asked_for_and_the_approved_price() -> None:
    script = Script(answer(code=0))
    client_of(script).rent(
        request_for(
            command=Secret("#!/bin/sh\necho ok && true"),
            ssh_password=Secret("s3cret"),
            needs_ssh_entrypoint=True,
            approved_price=Rate.per_day("0.0000412", Currency.BITCOIN),
        )
    )
    assert script.body() == {
        "renting_server": 25756,
        "type": "on-demand",
        "currency": "bitcoin",
        "image": "cloreai/ubuntu22.04-cuda12",
        "ports": {"22": "tcp"},
        "env": {"NONCE": "4fa1"},
        "ssh_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample test",
        "ssh_password": "s3cret",
        "command": "#!/bin/sh\necho ok && true",
        "autossh_entrypoint": True,
        "required_price": 4.12e-05,
    }
    assert b'"required_price":0.0000412' in script.requests[0].content
    assert script.requests[0].headers["auth"] == KEY


def test_a_request_shows_neither_its_password_nor_its_script() -> None:
    request = request_for(command=Secret("KEY"), ssh_password=Secret("s3cret"))
    assert "s3cret" not in f"{request!r} {request}" and "KEY" not in f"{request!r} {request}"


def test_a_spot_rent_sends_its_bid_and_no_guard() -> None:
    script = Script(answer(code=0))
    client_of(script).rent(request_for(is_spot=True))
    assert script.body()["type"] == "spot"
    assert script.body()["spotprice"] == 3.9
    assert "required_price" not in script.body()


@pytest.mark.parametrize(
    "changes",
    [
        {"env": (("URL", "a&b"),)},
        {"env": (("NAME", "größe"),)},
        {"env": (("NAME", "a\nb"),)},
        {"env": (("1BAD", "x"),)},
        {"env": (("A B", "x"),)},
        {"ports": ((80, "http"), (81, "http"))},
        {"image": " "},
    ],
)
def test_what_the_service_chokes_on_is_refused_before_it_is_sent(changes: dict[str, Any]) -> None:
    script = Script()
    outcome = client_of(script).rent(request_for(**changes))
    assert isinstance(outcome, RentRefused)
    assert isinstance(outcome.error, InvalidRequest)
    assert script.requests == []


def test_the_key_is_not_sent_to_the_public_call() -> None:
    script = Script(answer(code=0, servers=[]))
    client_of(script).fetch_marketplace()
    assert "auth" not in script.requests[0].headers


def test_without_a_key_offers_are_read_with_documented_fees_and_nothing_else_works() -> None:
    script = Script(answer(code=0, servers=[server_doc()]))
    client = client_of(script, key="")
    assert client.fetch_view().fees == DOCUMENTED_FEES
    for call in (client.fetch_orders, client.fetch_wallets, lambda: client.rent(request_for())):
        with pytest.raises(NoApiKey):
            call()
    assert script.endpoints == ["marketplace"]


def test_completed_orders_are_asked_for_in_lower_case_text() -> None:
    script = Script(answer(code=0, orders=[]), answer(code=0, orders=[]))
    client = client_of(script)
    assert client.fetch_orders().includes_completed is False
    assert client.fetch_orders(include_completed=True).includes_completed is True
    assert [request.url.params["return_completed"] for request in script.requests] == ["false", "true"]


@pytest.mark.parametrize(
    ("dated", "told_at"),
    [
        ({"date": "Sat, 28 Nov 2026 20:00:07 GMT"}, datetime(2026, 11, 28, 20, 0, 7, tzinfo=UTC)),
        ({"date": "Sat, 28 Nov 2026 20:00:07 -0000"}, datetime(2026, 11, 28, 20, 0, 7, tzinfo=UTC)),
        ({"date": "yesterday"}, None),
        ({}, None),
    ],
)
def test_the_order_list_has_the_markets_own_time_where_the_answer_is_dated(
    dated: dict[str, str], told_at: datetime | None
) -> None:
    assert client_of(Script(answer(headers=dated, code=0, orders=[]))).fetch_orders().told_at == told_at


# -- outcomes of a rent

LOST = httpx.ReadTimeout("no answer")
NOT_SENT = httpx.ConnectError("refused")


@pytest.mark.parametrize(
    ("reply", "order_id"),
    [
        (answer(code=0), None),
        (answer(code=0, order={"id": 5}), 5),
        (answer(code=0, id="5"), 5),
        (answer(code=0, order_id=5), 5),
    ],
)
def test_an_accepted_rent_is_rented_with_or_without_an_id(
    reply: httpx.Response, order_id: int | None
) -> None:
    assert client_of(Script(reply)).rent(request_for()) == Rented(
        None if order_id is None else OrderId(order_id)
    )


@pytest.mark.parametrize(
    "reply",
    [
        LOST,
        httpx.WriteError("cut"),
        httpx.RemoteProtocolError("closed without an answer"),
        httpx.ReadError("reset"),
        answer(500, code=1),
        answer(code=1),
        answer(code=99),
        text(502, "<html>"),
        text(200, '{"code":0'),
        text(200, ""),
        text(200, b"x" * (5 << 20)),
    ],
)
def test_a_rent_that_may_have_happened_is_unknown_and_sent_once(reply: Any) -> None:
    script = Script(reply)
    outcome = client_of(script).rent(request_for())
    assert isinstance(outcome, RentUnknown)
    assert "25756" in outcome.reason
    assert script.endpoints == ["create_order"]


def test_a_rent_whose_time_is_over_when_its_turn_comes_is_not_sent() -> None:
    """C5: the market's limit holds a second rent back for 5 s; what happens meanwhile still counts."""
    script, clock = Script(answer(code=0)), FakeClock()
    client = client_of(script, clock=clock)
    assert isinstance(client.rent(request_for()), Rented)
    ends_s = clock.monotonic_s() + 1
    outcome = client.rent(request_for(25757, is_timely=lambda: clock.monotonic_s() < ends_s))
    assert isinstance(outcome, RentRefused) and "Nothing was sent" in str(outcome.error)
    assert script.endpoints == ["create_order"]


@pytest.mark.parametrize(
    ("reply", "guarded", "was_guard"),
    [
        (answer(500, code=1), True, True),
        (answer(500, code=1), False, False),
        (text(502, ""), True, False),
        (LOST, True, False),
    ],
)
def test_only_code_1_to_a_guarded_rent_is_told_as_the_guards_refusal(
    reply: Any, guarded: bool, was_guard: bool
) -> None:
    outcome = client_of(Script(reply)).rent(request_for(), with_required_price=guarded)
    assert isinstance(outcome, RentUnknown)
    assert outcome.was_price_guard is was_guard


def test_code_1_to_a_spot_rent_is_not_about_the_guard() -> None:
    outcome = client_of(Script(answer(500, code=1))).rent(request_for(is_spot=True))
    assert outcome == RentUnknown(outcome.reason, was_price_guard=False)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (NOT_SENT, MarketUnreachable),
        (httpx.ConnectTimeout("slow"), MarketUnreachable),
        (httpx.ProxyError("proxy"), MarketUnreachable),
        (answer(code=6, error="server-already-rented"), OfferGone),
        (answer(401, code=3), WrongApiKey),
        (answer(429, code=5), RateLimited),
        (text(403, "error code: 1010"), MarketUnreachable),
    ],
)
def test_a_rent_that_cannot_have_happened_is_refused_and_sent_once(reply: Any, kind: type[Exception]) -> None:
    script = Script(reply)
    outcome = client_of(script).rent(request_for())
    assert isinstance(outcome, RentRefused)
    assert type(outcome.error) is kind
    assert outcome.error.money == "Nothing was rented and nothing was spent."
    assert len(script.requests) == 1


def test_a_rent_without_a_turn_is_refused_and_never_sent() -> None:
    script, clock = Script(answer(429, code=5, headers={"retry-after": "60"})), FakeClock()
    client = client_of(script, clock=clock)
    client.rent(request_for())
    client._limiter.wait_max_s = 10
    outcome = client.rent(request_for())
    assert isinstance(outcome, RentRefused)
    assert outcome.error.money == "Nothing was sent."
    assert len(script.requests) == 1


# -- outcomes of a cancel


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (answer(code=0), CancelAccepted),
        (answer(code=6, error="order_not_active"), AlreadyEnded),
        (answer(code=6, error="order_dont_exist"), AlreadyEnded),
        (answer(code=6, error="you_dont_own_this_order"), CancelRefused),
        (answer(429, code=5), CancelRefused),
        (NOT_SENT, CancelRefused),
        (LOST, CancelUnknown),
        (answer(500, code=1), CancelUnknown),
        (text(502, ""), CancelUnknown),
        (text(200, "<html>"), CancelUnknown),
    ],
)
def test_every_answer_to_a_cancel_is_an_outcome_and_it_is_sent_once(reply: Any, kind: type[object]) -> None:
    script = Script(reply)
    assert type(client_of(script).cancel(OrderId(7))) is kind
    assert script.body() == {"id": 7}


def test_the_reason_of_a_cancel_is_cut_to_what_support_takes() -> None:
    script = Script(answer(code=0))
    client_of(script).cancel(OrderId(7), issue="x" * 5000)
    assert len(script.body()["issue"]) == 2048


def test_many_cancels_go_in_batches_and_failures_are_matched_as_text_or_number() -> None:
    ids = [OrderId(number) for number in range(1, 71)]
    script = Script(answer(code=0, failed_to_cancel=["3", 5]), LOST)
    outcomes = client_of(script).cancel_many([*ids, OrderId(1)])
    assert [len(script.body(index)["order_ids"]) for index in (0, 1)] == [64, 6]
    assert {order_id for order_id, out in outcomes.items() if isinstance(out, CancelRefused)} == {3, 5}
    assert {order_id for order_id, out in outcomes.items() if isinstance(out, CancelUnknown)} == set(ids[64:])
    assert list(outcomes) == ids


# -- reads


@pytest.mark.parametrize(
    "reply", [LOST, NOT_SENT, answer(500, code=1), text(502, ""), text(200, "<html>"), answer(code=0)]
)
def test_a_failed_read_is_repeated_and_then_told(reply: Any) -> None:
    script = Script(reply, answer(code=0, orders=[order_doc()]))
    assert len(client_of(script).fetch_orders().orders) == 1
    script, clock = Script(*[reply] * READ_ATTEMPTS_MAX), FakeClock()
    with pytest.raises((MarketUnreachable, BadAnswer)):
        client_of(script, clock=clock).fetch_orders()
    assert len(script.requests) == READ_ATTEMPTS_MAX
    assert sum(clock.slept_s) < 30


@pytest.mark.parametrize(
    ("reply", "kind"), [(answer(401, code=3), WrongApiKey), (answer(400, code=2), InvalidRequest)]
)
def test_a_read_that_cannot_succeed_is_not_repeated(reply: httpx.Response, kind: type[Exception]) -> None:
    script = Script(reply)
    with pytest.raises(kind):
        client_of(script).fetch_wallets()
    assert len(script.requests) == 1


def test_after_code_5_the_next_request_waits_as_long_as_the_market_wishes() -> None:
    clock = FakeClock()
    script = Script(answer(429, code=5, headers={"retry-after": "17"}), answer(code=0, orders=[]))
    began_s = clock.elapsed_s
    client_of(script, clock=clock).fetch_orders()
    assert clock.elapsed_s - began_s >= 17


def test_a_read_outlasts_a_storm_of_code_5_but_not_for_ever() -> None:
    refusal = answer(429, code=5)
    script = Script(*[refusal] * (READ_ATTEMPTS_MAX + 1), answer(code=0, orders=[order_doc()]))
    assert len(client_of(script, clock=FakeClock()).fetch_orders().orders) == 1
    clock = FakeClock()
    with pytest.raises(RateLimited):
        client_of(Script(*[refusal] * 20), clock=clock).fetch_orders()
    assert RATE_LIMIT_PATIENCE_S <= sum(clock.slept_s) < 2 * RATE_LIMIT_PATIENCE_S


@pytest.mark.parametrize("orders", [None, {}, "none", 0])
def test_an_answer_without_the_order_list_is_never_taken_for_an_empty_one(orders: Any) -> None:
    script = Script(*[answer(code=0, orders=orders)] * READ_ATTEMPTS_MAX)
    with pytest.raises(BadAnswer):
        client_of(script).fetch_orders()


def test_a_list_with_an_order_whose_id_cannot_be_read_says_that_it_is_not_whole() -> None:
    found = client_of(Script(answer(code=0, orders=[order_doc(), {"si": 4}]))).fetch_orders()
    assert (len(found.orders), found.unreadable) == (1, 1)


def test_a_list_with_an_order_that_is_on_no_server_is_not_whole_either() -> None:
    nowhere = {name: value for name, value in order_doc().items() if name != "si"}
    found = client_of(Script(answer(code=0, orders=[nowhere]))).fetch_orders()
    assert (len(found.orders), found.unreadable) == (1, 1)


def test_a_bad_server_record_is_logged_harmlessly_and_the_others_are_offered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = Script(answer(code=0, servers=[server_doc(1), None, {"\x1b[2Jid": 1}, server_doc(2)]))
    offers, _ = client_of(script).fetch_marketplace()
    assert [offer.server_id for offer in offers] == [1, 2]
    assert "count=2" in caplog.text
    assert "\x1b" not in caplog.text


def test_fees_are_read_once_in_a_while_and_documented_where_the_call_does_not_exist() -> None:
    clock = FakeClock()
    fees = {"renter_fees": {"on_demand": {"base": {"USD-Blockchain": 7}}}}
    script = Script(
        answer(code=0, servers=[]), answer(code=0, **fees), answer(code=0, servers=[]), answer(404, code=4)
    )
    client = client_of(script, clock=clock)
    assert client.fetch_view().fees.percent(Currency.USD, is_spot=False) == 7
    assert client.fetch_view().fees.percent(Currency.USD, is_spot=False) == 7
    assert client.fetch_fees() == DOCUMENTED_FEES
    assert script.endpoints == ["marketplace", "renter_fees", "marketplace", "renter_fees"]


def test_a_server_config_is_asked_for_in_the_body_of_a_get() -> None:
    script = Script(answer(code=0, config={"name": "rig-01", "connected": True, "mrl": 72}))
    server = client_of(script).fetch_server_config("rig-01")
    assert (script.requests[0].method, json.loads(script.requests[0].content)) == (
        "GET",
        {"server_name": "rig-01"},
    )
    assert (server.name, server.max_rental_s) == ("rig-01", 72 * 3600)


def test_a_spot_market_that_does_not_exist_is_empty() -> None:
    market = client_of(Script(answer(code=0, exists=False))).fetch_spot_market(ServerId(5))
    assert (market.exists, market.bids, market.min_prices) == (False, (), ())


# -- spot price


def test_a_lowered_price_is_not_lowered_again_within_600_s_and_raising_is_free() -> None:
    script = Script(answer(code=0), answer(code=0))
    client = client_of(script)
    low, high = Rate.per_day("2.7"), Rate.per_day("2.85")
    client.set_spot_price(OrderId(7), low, current=high)
    with pytest.raises(Refused, match="600 s"):
        client.set_spot_price(OrderId(7), Rate.per_day("2.6"), current=low)
    client.set_spot_price(OrderId(7), high, current=low)
    assert b'"desired_price":2.85' in script.requests[1].content


@pytest.mark.parametrize(
    ("reply", "kind"),
    [(answer(500, code=1), OutcomeUnknown), (answer(code=6, error="amount_too_low"), Refused)],
)
def test_a_spot_price_in_doubt_is_told_apart_from_a_refused_one(
    reply: httpx.Response, kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        client_of(Script(reply)).set_spot_price(OrderId(7), Rate.per_day(3), current=Rate.per_day(2))


# -- the key


@pytest.mark.parametrize(
    "reply", [LOST, NOT_SENT, answer(401, code=3), answer(code=6, error="x"), text(502, "")]
)
def test_the_key_is_in_no_outcome_error_or_log(reply: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    client = client_of(Script(reply))
    outcome = client.rent(request_for())
    shown = repr(outcome) + repr(getattr(outcome, "error", "")) + caplog.text + repr(vars(client))
    assert KEY not in shown
