"""Reading the service's JSON: exact, tolerant, and one bad record never spoils the rest."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.market import convert, wire
from tests.market.scripted import FakeClock, order_doc, parsed, server_doc


@pytest.mark.parametrize(
    ("raw", "exact"),
    [
        ("0.0000412", "0.0000412"),
        ("1e-8", "0.00000001"),
        ("4.12E-5", "0.0000412"),
        ("3.90", "3.9"),
        ("410.5", "410.5"),
        ("7", "7"),
        ("0.1", "0.1"),
        ('"0.0000412"', "0.0000412"),
        ('" 12 "', "12"),
    ],
)
def test_prices_are_read_digit_by_digit(raw: str, exact: str) -> None:
    doc = wire.parse(f'{{"price": {raw}}}'.encode())
    assert wire.number(wire.fields(doc)["price"]) == Decimal(exact)


@pytest.mark.parametrize(
    "raw",
    [
        "null",
        "true",
        '"x"',
        '""',
        "[]",
        "{}",
        "1e400",
        "1e-400",
        "NaN",
        "Infinity",
        "-Infinity",
        '"NaN"',
        "9" * 5000,
    ],
)
def test_what_is_no_amount_reads_as_missing_and_spoils_nothing_else(raw: str) -> None:
    doc = wire.fields(wire.parse(f'{{"price": {raw}, "id": 7}}'.encode()))
    assert wire.number(doc["price"]) is None
    assert wire.identifier(doc["id"]) == 7


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"<html>", b"error code: 1010", b'{"a":1}x', b"\xff\xfe", b"[" * 200_000],
    ids=["empty", "cut", "html", "text", "trailing", "not utf-8", "deep"],
)
def test_a_body_that_is_not_json_is_named_so(body: bytes) -> None:
    with pytest.raises(wire.NotJson):
        wire.parse(body)


@pytest.mark.parametrize(
    ("described", "gigabytes"),
    [
        ("DGSM3512GM23T 456.0399GB", "456.0399"),
        ("XrayDisk 512GB SSD 449.8229GB", "449.8229"),
        ("KINGSTONx20SA400S37120G 91.8174GB", "91.8174"),
        (" 82.7261GB", "82.7261"),
        ("WDC 1000 GB", "1000"),
        ("no size", None),
        ("512GB SSD", None),
        (None, None),
        (512, None),
    ],
)
def test_disk_is_the_last_number_before_the_final_gb(described: Any, gigabytes: str | None) -> None:
    assert wire.disk_gb(described) == (None if gigabytes is None else Decimal(gigabytes))


@pytest.mark.parametrize(
    ("value", "version"),
    [
        ("12.2", (12, 2)),
        ("12.10", (12, 10)),
        ("13", (13, 0)),
        ("12.4.1", (12, 4)),
        (Decimal("12.10"), (12, 10)),
        (None, None),
        ("", None),
        ("n/a", None),
        (True, None),
    ],
)
def test_cuda_versions_compare_by_part(value: Any, version: tuple[int, int] | None) -> None:
    assert wire.version(value) == version


@pytest.mark.parametrize(
    ("value", "ports"),
    [
        (["22:1380", "8888:1381"], {22: 1380, 8888: 1381}),
        ({"22": 1380}, {22: 1380}),
        ({"22": "1380"}, {22: 1380}),
        (["22:0", "22:70000", "x:1", "", None, "22"], {}),
        (None, {}),
    ],
)
def test_ports_are_read_as_list_or_object(value: Any, ports: dict[int, int]) -> None:
    assert wire.port_map(value) == ports


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"si": None, "renting_server": 25756}, ("server", 25756)),
        ({"id": "602837"}, ("id", 602837)),
        ({"ct": None, "created_at": "2025-11-24T01:00:00Z"}, ("created_text", "2025-11-24T01:00:00Z")),
        ({"pub_cluster": "n1.us.clorecloud.net"}, ("hosts", ("n1.us.clorecloud.net",))),
        ({"tcp_ports": {"22": 1380}}, ("ports", {22: 1380})),
        ({"spot": True}, ("is_spot", True)),
        ({"type": "spot"}, ("is_spot", True)),
        ({"expired": True}, ("is_expired", True)),
        ({"status": "completed"}, ("is_expired", True)),
        ({"status": "completed", "expired": False}, ("is_expired", False)),
        ({"status": "running"}, ("is_expired", False)),
        ({"price": "3.9"}, ("price", Decimal("3.9"))),
    ],
)
def test_both_spellings_of_an_order_are_read(change: dict[str, Any], expected: tuple[str, Any]) -> None:
    read = wire.read_order(parsed(order_doc(**change)))
    assert getattr(read, expected[0]) == expected[1]


@pytest.mark.parametrize(
    ("doc", "order_id"),
    [
        ({"code": 0}, None),
        ({"code": 0, "order": {"id": 5}}, 5),
        ({"code": 0, "id": "5"}, 5),
        ({"code": 0, "order_id": 5}, 5),
        ({"code": 0, "order": None, "id": None}, None),
    ],
)
def test_all_forms_of_an_accepted_order_are_read(doc: dict[str, Any], order_id: int | None) -> None:
    assert wire.read_created_order_id(doc) == order_id


def test_a_bad_record_is_skipped_and_counted_and_the_others_stay() -> None:
    bad: list[Any] = [None, 7, "x", [], {}, {"id": None}, {"id": "abc"}, {"id": -1}, {"id": True}]
    decoded = wire.read_marketplace({"servers": [server_doc(1), *bad, server_doc(2)]})
    assert [server.id for server in decoded.records] == [1, 2]
    assert decoded.skipped == len(bad)
    assert len(decoded.samples) == wire.SAMPLES_MAX


def test_a_server_that_tells_only_its_id_is_kept_and_taken_as_rented() -> None:
    (server,) = wire.read_marketplace({"servers": [{"id": 5}]}).records
    assert server.is_rented
    assert server.on_demand == {}


def test_an_init_token_of_the_hosting_side_is_never_read() -> None:
    doc = {"servers": [{"name": "rig-02", "connected": False, "init_token": "EXAMPLE-INIT-TOKEN"}]}
    decoded = wire.read_my_servers(doc)
    assert decoded.records[0].name == "rig-02"
    assert "EXAMPLE-INIT-TOKEN" not in repr(decoded)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ["1x", "0x A", "99999x B", "22:", "12/", "GB", "-1GB", "1e9999", "bitcoin", "Mixed", "2x Mixed"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def _with_a_hole(doc: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The record with some of its fields, at any depth, replaced by anything."""

    def spoil(value: Any) -> st.SearchStrategy[Any]:
        if isinstance(value, dict):
            fields = {key: spoil(inner) | JSON for key, inner in value.items()}
            return st.fixed_dictionaries({}, optional=fields)
        return st.just(value)

    return spoil(doc)


@settings(max_examples=150, deadline=None)
@given(st.lists(_with_a_hole(server_doc()) | JSON, max_size=5))
def test_malformed_marketplaces_never_raise(servers: list[Any]) -> None:
    doc = wire.fields(wire.parse(json.dumps({"servers": [*servers, server_doc(424242)]}).encode()))
    decoded = wire.read_marketplace(doc)
    assert len(decoded.records) + decoded.skipped == len(servers) + 1
    rates = convert.coin_rates(decoded.records, read_at=FakeClock().now())
    offers = [convert.offer(server, rates) for server in decoded.records]
    assert offers[-1].server_id == 424242
    for offer in offers:
        assert offer.gpu_count <= wire.GPUS_MAX
        assert all(rate.amount > 0 for rate in (*offer.on_demand, *offer.spot))
        str(offer)


@settings(max_examples=150, deadline=None)
@given(st.lists(_with_a_hole(order_doc()) | JSON, max_size=5))
def test_malformed_orders_never_raise_and_never_hide_a_readable_id(orders: list[Any]) -> None:
    doc = wire.fields(wire.parse(json.dumps({"orders": [*orders, order_doc(424242)]}).encode()))
    decoded = wire.read_orders(doc)
    assert len(decoded.records) + decoded.skipped == len(orders) + 1
    converted = convert.orders(decoded.records)
    assert {order.order_id for order in converted} == {raw.id for raw in decoded.records}
