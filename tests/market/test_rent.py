"""The way from a price guard that the service chokes on to a safe answer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from clorefleet.domain.errors import OfferGone
from clorefleet.domain.identity import OrderId
from clorefleet.domain.money import Currency, Rate
from clorefleet.domain.outcome import Rented, RentOutcome, RentRefused, RentUnknown
from clorefleet.market import convert, wire
from clorefleet.market.rent import READ_BACKS_MAX, RentProtocol, is_price_acceptable
from tests.market.scripted import (
    FakeClock,
    Script,
    answer,
    client_of,
    order_doc,
    parsed,
    request_for,
    server_doc,
    text,
)

LISTED = server_doc(price={"on_demand": {"USD-Blockchain": 3.9}})
DEARER = server_doc(price={"on_demand": {"USD-Blockchain": 4.0}})
NO_ORDERS = {"code": 0, "orders": []}
GUARD_REFUSED = answer(500, code=1)


def _rent(*replies: Any, window_s: float = 0, is_spot: bool = False) -> tuple[RentOutcome, list[str], Script]:
    script, clock = Script(*replies), FakeClock()
    client = client_of(script, clock=clock)
    protocol = RentProtocol(client, clock=clock, read_back_window_s=window_s)
    outcome = protocol.rent(request_for(is_spot=is_spot))
    return outcome, script.endpoints, script


def _orders(*orders: dict[str, Any]) -> httpx.Response:
    return answer(code=0, orders=list(orders))


def _offers(*servers: dict[str, Any]) -> tuple[httpx.Response, httpx.Response]:
    return answer(code=0, servers=list(servers)), answer(404, code=4)


def test_an_accepted_guard_is_the_answer() -> None:
    outcome, endpoints, script = _rent(_orders(), answer(code=0, order_id=9))
    assert outcome == Rented(OrderId(9))
    assert endpoints == ["my_orders", "create_order"]
    assert "required_price" in script.body()


@pytest.mark.parametrize(
    "reply",
    [answer(code=6, error="server-offline"), text(502, ""), httpx.ReadTimeout("lost"), answer(code=2)],
)
def test_any_other_answer_than_code_1_is_passed_on_without_a_second_rent(reply: Any) -> None:
    outcome, endpoints, _ = _rent(_orders(), reply)
    assert not isinstance(outcome, Rented)
    assert endpoints.count("create_order") == 1


def test_an_order_made_in_spite_of_code_1_is_adopted_instead_of_rented_again() -> None:
    outcome, endpoints, _ = _rent(_orders(), GUARD_REFUSED, _orders(), _orders(order_doc(77)), window_s=8)
    assert outcome == Rented(OrderId(77))
    assert endpoints.count("create_order") == 1


@pytest.mark.parametrize(
    "other",
    [
        order_doc(5),
        order_doc(77, server_id=1),
        order_doc(77, image="other/image"),
        order_doc(77, spot=True),
        order_doc(77, expired=True),
    ],
    ids=["known before", "other server", "other image", "spot", "ended"],
)
def test_an_order_that_is_not_ours_for_certain_is_not_adopted(other: dict[str, Any]) -> None:
    outcome, endpoints, script = _rent(
        _orders(order_doc(5)), GUARD_REFUSED, _orders(order_doc(5), other), *_offers(LISTED), answer(code=0)
    )
    assert outcome == Rented(None)
    assert endpoints.count("create_order") == 2
    assert "required_price" not in script.body()


def test_the_second_rent_goes_out_only_while_the_listed_price_is_still_the_approved_one() -> None:
    outcome, endpoints, _ = _rent(_orders(), GUARD_REFUSED, _orders(), *_offers(DEARER))
    assert isinstance(outcome, RentUnknown)
    assert "above the approved" in outcome.reason
    assert endpoints.count("create_order") == 1


@pytest.mark.parametrize(
    "servers",
    [[], [server_doc(1)], [LISTED | {"rented": True}], [LISTED | {"allowed_coins": ["bitcoin"]}]],
    ids=["withdrawn", "others only", "taken", "other currency"],
)
def test_a_server_that_is_no_longer_free_may_be_ours_and_stays_in_doubt(
    servers: list[dict[str, Any]],
) -> None:
    outcome, endpoints, _ = _rent(_orders(), GUARD_REFUSED, _orders(), *_offers(*servers))
    assert isinstance(outcome, RentUnknown)
    assert endpoints.count("create_order") == 1


def test_a_refusal_of_the_second_rent_says_nothing_about_the_first() -> None:
    taken = answer(code=6, error="server-already-rented")
    outcome, endpoints, _ = _rent(_orders(), GUARD_REFUSED, _orders(), *_offers(LISTED), taken)
    assert isinstance(outcome, RentUnknown)
    assert not outcome.was_price_guard
    assert endpoints.count("create_order") == 2


def test_two_failures_in_a_row_stay_unknown_and_there_is_no_third_rent() -> None:
    outcome, endpoints, _ = _rent(_orders(), GUARD_REFUSED, _orders(), *_offers(LISTED), GUARD_REFUSED)
    assert isinstance(outcome, RentUnknown)
    assert endpoints.count("create_order") == 2


def test_a_list_that_cannot_be_read_back_stays_in_doubt_without_a_second_rent() -> None:
    lost = [httpx.ReadTimeout("lost")] * 3
    outcome, endpoints, _ = _rent(_orders(), GUARD_REFUSED, *lost)
    assert isinstance(outcome, RentUnknown)
    assert endpoints.count("create_order") == 1


def test_nothing_is_rented_when_the_list_cannot_be_read_before() -> None:
    outcome, endpoints, _ = _rent(*[httpx.ReadTimeout("lost")] * 3)
    assert isinstance(outcome, RentRefused)
    assert "create_order" not in endpoints


def test_the_list_is_read_a_bounded_number_of_times() -> None:
    looks = [_orders() for _ in range(READ_BACKS_MAX)]
    _, endpoints, _ = _rent(_orders(), GUARD_REFUSED, *looks, *_offers(DEARER), window_s=1e9)
    assert endpoints.count("my_orders") == 1 + READ_BACKS_MAX


def test_a_spot_rent_goes_straight_through() -> None:
    outcome, endpoints, _ = _rent(answer(code=6, error="server-offline"), is_spot=True)
    assert isinstance(outcome, RentRefused)
    assert isinstance(outcome.error, OfferGone)
    assert endpoints == ["create_order"]


@pytest.mark.parametrize(
    ("price", "currency", "tolerance", "is_acceptable"),
    [
        ("3.9", "USD-Blockchain", "0", True),
        ("3.8", "USD-Blockchain", "0", True),
        ("3.9000001", "USD-Blockchain", "0", False),
        ("3.978", "USD-Blockchain", "0.02", True),
        ("3.979", "USD-Blockchain", "0.02", False),
        ("3.9", "bitcoin", "0", False),
        (None, "USD-Blockchain", "0", False),
        ("3.9", "doge", "0", False),
    ],
)
def test_an_orders_price_is_acceptable_up_to_the_approved_one(
    price: str | None, currency: str, tolerance: str, is_acceptable: bool
) -> None:
    read = wire.read_order(parsed(order_doc(price=price, currency=currency)))
    assert read is not None
    approved = Rate.per_day("3.9", Currency.USD)
    assert is_price_acceptable(convert.order(read), approved, convert.Decimal(tolerance)) is is_acceptable
