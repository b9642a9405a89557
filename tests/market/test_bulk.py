"""The bulk reading of an answer is the tolerant one, sooner: equal on answers bent in every field."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.domain.offer_columns import COLUMN_CURRENCIES
from clorefleet.market import convert, wire
from clorefleet.market.bulk import table_of_answer
from tests.market.odd_answers import bent, plain_answer

READ_AT = datetime(2026, 11, 24, tzinfo=UTC)


def tolerantly(body: bytes):
    servers = wire.read_marketplace(wire.fields(wire.parse(body))).records
    rates = convert.coin_rates(servers, read_at=READ_AT)
    return rates, tuple(convert.offer(server, rates) for server in servers)


def in_bulk(body: bytes):
    table = table_of_answer(body, read_at=READ_AT)
    return None if table is None else (table.rates, tuple(table))


def test_a_plain_answer_is_read_alike_and_in_bulk():
    body = json.dumps(plain_answer(3, 400)).encode()
    assert in_bulk(body) == tolerantly(body)


@given(seed=st.integers(0, 10**6), bends=st.integers(0, 60), indent=st.sampled_from([None, 1]))
@settings(max_examples=60, deadline=None)
def test_bent_answers_are_read_alike_or_left_to_the_tolerant_reading(seed, bends, indent):
    answer = bent(plain_answer(seed % 7, 40), random.Random(seed), bends)
    body = json.dumps(answer, indent=indent, ensure_ascii=bool(seed % 2)).encode("utf-8", "surrogatepass")
    read = in_bulk(body)
    assert read is None or read == tolerantly(body)


@given(seed=st.integers(0, 10**6), bends=st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_the_columns_claim_nothing_that_the_offers_deny(seed, bends):
    answer = bent(plain_answer(seed % 7, 40), random.Random(seed), bends)
    table = table_of_answer(json.dumps(answer).encode(), read_at=READ_AT)
    if table is None:
        return
    columns = table.columns
    assert all(table[i].is_rented for i in columns.rented.tolist())
    for row, position in enumerate(columns.free.tolist()):
        offer = table[position]
        if columns.is_odd[row]:
            continue
        assert offer.server_id == columns.ids[row] and not offer.is_rented
        assert offer.gpus == columns.gpu_kinds[columns.gpu_of[row]]
        assert offer.cpu_model == columns.cpus[columns.cpu_of[row]]
        assert offer.cuda_version == columns.cudas[columns.cuda_of[row]]
        assert offer.country == columns.countries[columns.country_of[row]]
        for exact, near in (
            (offer.ram_bytes, columns.ram_bytes), (offer.disk_free_bytes, columns.disk_bytes),
            (offer.reliability, columns.reliability), (offer.down_mbit_s, columns.down_mbit_s),
            (offer.disk_mb_s, columns.disk_mb_s),
        ):  # fmt: skip
            assert np.isnan(near[row]) if exact is None else abs(float(exact) - near[row]) <= 2, offer
        told = {rate.currency: float(rate.amount) for rate in offer.on_demand}
        assert [told.get(currency) for currency in COLUMN_CURRENCIES] == [
            None if np.isnan(price) else price for price in columns.on_demand[row].tolist()
        ]


@pytest.mark.parametrize(
    "gib", ["1e-12", "0.00000000093132257461547851562499", "0.00000000093132257461547851563"]
)
def test_less_than_a_byte_of_ram_is_not_told_in_the_columns_either(gib):
    """The last two are on either side of one byte, and one float."""
    answer = plain_answer(3, 30)
    server = answer["servers"][0]
    server |= {"rented": False}
    server["specs"]["ram"] = 777
    body = json.dumps(answer).replace('"ram": 777', f'"ram": {gib}').encode()
    table = table_of_answer(body, read_at=READ_AT)
    columns = table.columns
    row = columns.free.tolist().index(0)
    is_told = table[0].ram_bytes is not None
    assert is_told is gib.endswith("563")
    assert columns.is_odd[row] or np.isnan(columns.ram_bytes[row]) == (not is_told)


def test_an_odd_record_spoils_only_itself():
    answer = plain_answer(3, 50)
    answer["servers"][7]["specs"] = "none"
    answer["servers"][8]["price"]["on_demand"]["bitcoin"] = "0.5"
    answer["servers"][9] = 42
    table = table_of_answer(json.dumps(answer).encode(), read_at=READ_AT)
    assert table is not None and table.skipped == 1 and len(table) == len(answer["servers"]) - 1
    assert int(table.columns.is_odd.sum()) <= 2


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"null", b'{"servers":{},"code":0}', b'{"servers":[],"code":6}', b'{"servers":[]}',
     b'{"servers":[],"code":0', b'{"servers":[{"id":1,"x":"\xff"}],"code":0}', b'{"servers":[],"code":true}',
     b'{"servers":[' + b"[" * 3000 + b"]" * 3000 + b'],"code":0}', b"<html>", b'{"servers":[NaN],"code":0}'],
)  # fmt: skip
def test_what_is_no_plain_answer_is_left_to_the_tolerant_reading(body):
    assert table_of_answer(body, read_at=READ_AT) is None


def test_a_record_is_found_again_whatever_its_form():
    """By its id near where it should be; else by reading the list again."""
    answer = plain_answer(3, 30)
    for server in answer["servers"][::2]:
        server["id"] = server.pop("id")  # last
    answer["servers"][5]["owner"] = None
    answer["servers"][7]["specs"]["mb"] = "é" * 9000  # the next ones are not near where they should be
    answer["servers"][9]["id"] = answer["servers"][11]["id"]  # told twice, and not alike
    answer["servers"][13]["specs"]["others"] = [
        {"id": 5},
        {"id": answer["servers"][15]["id"], "owner": 1},
        {"id": 6},
    ]
    for style in ({}, {"indent": 3}, {"separators": (",", ":")}, {"ensure_ascii": False}):
        body = json.dumps(answer, **style).encode()
        assert in_bulk(body) == tolerantly(body)


def test_a_record_is_not_taken_for_another_that_carries_its_id():
    """A server of 12 a day was told as one of a cent, where an earlier one names its id within."""
    answer = plain_answer(3, 30)
    for number, server in enumerate(answer["servers"], 1):
        server["id"] = number
    seventh = answer["servers"][6]
    seventh |= {"allowed_coins": ["USD-Blockchain"]}
    seventh["price"]["on_demand"] = {"USD-Blockchain": 12}
    coins = ["USD-Blockchain"]
    cheap = {"id": 7, "allowed_coins": coins, "price": {"on_demand": {"USD-Blockchain": 0.01}}}
    last_id = {key: seventh[key] for key in (*(key for key in seventh if key != "id"), "id")}
    inside_id = {"mrl": 720, **seventh}
    separators = ((",", ":"), (", ", ": "))
    for form, after, style in product((seventh, last_id, inside_id), (9, 8), separators):
        answer["servers"][6] = form
        answer["servers"][4]["related"] = [{"id": 1}, cheap, {"id": after, "mrl": 1}]
        body = json.dumps(answer, separators=style).encode()
        table = table_of_answer(body, read_at=READ_AT)
        assert table is not None
        table._opened = (-1, [])  # as in a large answer, where other pieces were looked into since
        assert table[6].server_id == 7 and str(table[6].on_demand[0].amount) == "12"
        assert tuple(table) == tolerantly(body)[1]


def test_prices_keep_every_digit_of_their_text():
    answer = plain_answer(3, 30)
    text = "0.00000123456789012345678901"
    answer["servers"][0]["price"]["on_demand"] = {"bitcoin": 777}
    answer["servers"][0]["allowed_coins"] = ["bitcoin"]
    body = json.dumps(answer).replace('"bitcoin": 777', f'"bitcoin": {text}').encode()
    table = table_of_answer(body, read_at=READ_AT)
    assert table is not None and str(table[0].on_demand[0].amount) == "0.00000123456789012345678901"
