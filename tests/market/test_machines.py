"""What is kept of machines from answer to answer changes nothing that is read of a later one."""

from __future__ import annotations

import json
import random
from dataclasses import fields
from datetime import UTC, datetime
from threading import Barrier, Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.market import convert, wire
from clorefleet.market.bulk import OfferTable, table_of_answer
from clorefleet.market.machines import MachineMemo, Machines, text_of
from tests.market.odd_answers import bent, plain_answer

READ_AT = datetime(2026, 11, 24, tzinfo=UTC)
KINDS = {"gpus": "gpu_of", "cpus": "cpu_of", "cudas": "cuda_of", "countries": "country_of"}


def told(table: OfferTable) -> dict[str, object]:
    """The columns, each row with its own values instead of their numbers."""
    columns = table.columns
    found = {
        each.name: np.asarray(getattr(columns, each.name)).tolist()
        for each in fields(columns)
        if each.name not in {"gpu_kinds", "read_spot", *KINDS, *KINDS.values()}
    }
    for name, numbers in KINDS.items():
        values = getattr(columns, "gpu_kinds" if name == "gpus" else name)
        found[name] = [values[number] for number in getattr(columns, numbers).tolist()]
    return {name: repr(values) for name, values in found.items()}  # in which one nan is another


def later(answer, rng):
    """Prices have moved, servers were rented and given back, some were rebuilt."""
    answer = json.loads(json.dumps(answer))
    for server in answer["servers"]:
        if not isinstance(server, dict):
            continue
        if rng.random() < 0.3:
            server["rented"] = not server.get("rented")
        if isinstance(server.get("price"), dict):
            server["price"]["on_demand"] = {"CLORE-Blockchain": rng.uniform(1, 4000), "bitcoin": 0.0001}
        if isinstance(server.get("specs"), dict) and rng.random() < 0.1:
            server["specs"]["ram"] = rng.choice([64, 128.5, "256", None])
    return answer


@given(seed=st.integers(0, 10**6), bends=st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_columns_and_offers_are_those_of_a_reader_without_a_memory(seed, bends):
    rng, memo = random.Random(seed), MachineMemo()
    answer = bent(plain_answer(seed % 7, 40), rng, bends)
    for _ in range(3):
        body = json.dumps(answer).encode()
        table = table_of_answer(body, read_at=READ_AT, memo=memo)
        fresh = table_of_answer(body, read_at=READ_AT)
        assert (table is None) == (fresh is None)
        if table is not None and fresh is not None:
            assert told(table) == told(fresh)
            assert tuple(table) == tuple(fresh) and table.rates == fresh.rates
        answer = later(answer, rng)


def test_a_machine_is_read_once_for_all_answers():
    memo, answer = MachineMemo(), plain_answer(3, 200)
    table_of_answer(json.dumps(answer).encode(), read_at=READ_AT, memo=memo)
    first = len(memo.machines())
    for server in answer["servers"]:
        server["price"]["on_demand"]["bitcoin"] *= 1.5
    table_of_answer(json.dumps(answer).encode(), read_at=READ_AT, memo=memo)
    assert first == len(memo.machines()) > 0


def test_too_many_machines_are_forgotten_between_answers(monkeypatch):
    monkeypatch.setattr("clorefleet.market.machines._TEXT_BYTES_MAX", 20_000)
    memo = MachineMemo()
    for seed in range(4):
        body = json.dumps(plain_answer(seed, 100)).encode()
        table = table_of_answer(body, read_at=READ_AT, memo=memo)
        fresh = table_of_answer(body, read_at=READ_AT)
        assert table is not None and fresh is not None and told(table) == told(fresh)
        assert memo.machines().is_full or len(memo.machines()) == 0 or seed == 0
    assert len(memo.machines()) == 0, "the last answer alone was more than may be kept"


def test_threads_that_add_the_same_machines_agree_on_their_rows():
    machines, start = Machines(), Barrier(4)
    texts = [
        text_of(json.dumps({"ram": number, "cpu": f"EPYC {number}"}).encode(), b"", b"", b'"12.4"', b"")
        for number in range(1, 600)
    ]
    found: list[list[int]] = []

    def add(order: list[bytes]) -> None:
        start.wait()
        rows = machines.add(order)
        found.append([rows[order.index(text)] for text in texts])

    orders = [random.Random(seed).sample(texts, len(texts)) for seed in range(4)]
    threads = [Thread(target=add, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(each == found[0] for each in found)
    columns = machines.columns(np.array(found[0]))
    assert columns.ram_gib.tolist() == list(range(1, 600))
    assert [machines.cpus.values[number] for number in columns.cpu_of.tolist()] == [
        f"EPYC {number}" for number in range(1, 600)
    ]


@pytest.mark.parametrize(
    "odd",
    ["9" * 5000, "1e999999999", '{"price":{"on_demand":{"bitcoin":9}}}', '{"price":1}',
     '[{"price":{"on_demand":{"bitcoin":0.5}}}]'],
)  # fmt: skip
@pytest.mark.parametrize("where", ["before", "after"])
def test_what_else_a_record_holds_does_not_touch_its_prices(odd, where):
    """Numbers that nobody can mean, and a second part of the name of the first."""
    answer = plain_answer(3, 30)
    for server in answer["servers"]:
        server["price"]["on_demand"] = {"bitcoin": 0.5}
        if where == "before":
            first = {"id": server.pop("id"), "note": "NOTE"}
            rest = dict(server)
            server.clear()
            server.update(first | rest)
        else:
            server["note"] = "NOTE"
    body = json.dumps(answer, separators=(",", ":")).replace('"NOTE"', odd).encode()
    table = table_of_answer(body, read_at=READ_AT)
    servers = wire.read_marketplace(wire.fields(wire.parse(body))).records
    rates = convert.coin_rates(servers, read_at=READ_AT)
    assert table is not None
    assert tuple(table) == tuple(convert.offer(server, rates) for server in servers)
