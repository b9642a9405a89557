"""Token counts, out of answers that nobody can be trusted to have written well."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clorefleet.domain.usage import UsageHour, wait_quantile_s
from clorefleet.gateway.usage import (
    TAIL_MAX_BYTES,
    RequestRecord,
    Tail,
    UsageMeter,
    hour_of_request,
    token_counts,
)

DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "tail, counts",
    [
        pytest.param(b'{"usage": {"prompt_tokens": 1, "completion_tokens": 2}}', (1, 2), id="plain"),
        pytest.param(
            b'data: {"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n' + DONE, (1, 2), id="stream"
        ),
        pytest.param(b'{"usage": {"prompt_tokens": 1, "x": {"y": [2]}}}', (1, None), id="embeddings"),
        pytest.param(b'data: {"usage": null}\n\n' + DONE, (None, None), id="not asked for"),
        pytest.param(
            b'data: {"usage": {"prompt_tokens": 1}}\n\ndata: {"usage": {"prompt_tokens": 7}}\n\n',
            (7, None),
            id="the last one is the total",
        ),
        pytest.param(
            b'{"usage": {"prompt_tokens": 1}, "timings": {"usage": null, "x": {}}}',
            (1, None),
            id="null after",
        ),
        pytest.param(
            json.dumps({"usage": {"prompt_tokens": 1}, "text": '"usage": {"prompt_tokens": 999}'}).encode(),
            (1, None),
            id="a text that speaks of usage",
        ),
        pytest.param(b'{"usage": {"prompt_tokens": "1"}}', (None, None), id="text"),
        pytest.param(b'{"usage": {"prompt_tokens": true}}', (None, None), id="truth"),
        pytest.param(b'{"usage": {"prompt_tokens": -1}}', (None, None), id="negative"),
        pytest.param(b'{"usage": {"prompt_tokens": 1e3}}', (None, None), id="fraction"),
        pytest.param(b'{"usage": {"prompt_tokens": 99999999999999}}', (None, None), id="a lie"),
        pytest.param(b'{"usage": {"prompt_tokens": ' + b"9" * 50_000 + b"}}", (None, None), id="long number"),
        pytest.param(b'"usage": {"prompt_tokens": "1', (None, None), id="cut"),
        pytest.param(b'"usage": {"a": ' + b"[" * 60_000, (None, None), id="deep"),
        pytest.param(b"\xff\x00" * 100, (None, None), id="noise"),
        pytest.param(b"", (None, None), id="empty"),
    ],
)
def test_token_counts_are_read_from_the_end_of_any_answer(tail: bytes, counts: tuple[int | None, int | None]):
    assert token_counts(tail) == counts


@pytest.mark.parametrize("piece_bytes", [1, 7, 4096, TAIL_MAX_BYTES * 3])
def test_counts_are_found_however_the_answer_was_cut_into_pieces(piece_bytes: int):
    answer = b"x" * (3 * TAIL_MAX_BYTES) + b'{"usage": {"prompt_tokens": 4, "completion_tokens": 6}}\n\n'
    tail = Tail()
    for start in range(0, len(answer), piece_bytes):
        tail.add(answer[start : start + piece_bytes])
    assert tail.token_counts() == (4, 6)
    assert tail.ends_event()


NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
ANSWERED = RequestRecord("l1", "tiny", NOON, 0.4, 2.0, 200, 10, 30, False)


def test_a_request_counts_in_the_hour_in_which_it_ended():
    late = replace(ANSWERED, started_at=NOON - timedelta(seconds=1))
    assert hour_of_request(late).hour == NOON
    assert hour_of_request(ANSWERED).last_at == NOON + timedelta(seconds=2)


@pytest.mark.parametrize(
    "status, failures, answered",
    [(200, 0, 1), (400, 0, 0), (499, 0, 0), (502, 1, 0), (504, 1, 0)],
)
def test_only_what_the_replica_failed_is_a_failure(status: int, failures: int, answered: int):
    hour = hour_of_request(replace(ANSWERED, status=status))
    assert (hour.requests, hour.failures, sum(hour.waits)) == (1, failures, answered)


def test_a_stream_without_counts_is_told_apart_and_its_events_are_kept():
    stream = replace(ANSWERED, prompt_tokens=None, completion_tokens=None, was_streamed=True, events=41)
    hour = hour_of_request(stream)
    assert (hour.uncounted, hour.uncounted_events, hour.completion_tokens) == (1, 41, 0)
    assert hour_of_request(replace(ANSWERED, events=41)).uncounted_events == 0


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 7, 1000])
def test_events_are_counted_however_the_stream_was_cut(piece_bytes: int):
    stream = b'data: {"n": 1}\n\n' * 20 + DONE
    tail = Tail()
    for start in range(0, len(stream), piece_bytes):
        tail.add(stream[start : start + piece_bytes])
    assert tail.events == 21


records = st.builds(
    RequestRecord,
    lease_id=st.sampled_from(["l1", "l2"]),
    model=st.just("tiny"),
    started_at=st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 2)).map(
        lambda at: at.replace(tzinfo=UTC)
    ),
    first_byte_s=st.none() | st.floats(0, 100),
    total_s=st.floats(0, 4000),
    status=st.sampled_from([200, 400, 499, 502]),
    prompt_tokens=st.none() | st.integers(0, 1000),
    completion_tokens=st.none() | st.integers(0, 1000),
    was_streamed=st.booleans(),
)


@given(st.lists(records, max_size=30), st.integers(0, 30))
def test_no_request_is_lost_or_counted_twice_whenever_the_meter_is_read(taken: list[RequestRecord], at: int):
    meter = UsageMeter()
    for record in taken[:at]:
        meter.count(record)
    first = meter.take()
    meter.put_back(first)  # as when the store could not be written
    for record in taken[at:]:
        meter.count(record)
    hours = meter.take()
    assert sum(each.requests for each in hours) == len(taken)
    assert sum(each.completion_tokens for each in hours) == sum(r.completion_tokens or 0 for r in taken)
    assert len({(each.lease_id, each.hour) for each in hours}) == len(hours)


def test_a_quantile_of_waits_is_the_bound_that_holds_it():
    waits = UsageHour("l1", NOON, "tiny", NOON).waits
    assert wait_quantile_s(waits, 0.5) is None
    assert wait_quantile_s((5, 4, 0, 1, *waits[4:]), 0.5) == 0.1
    assert wait_quantile_s((5, 4, 0, 1, *waits[4:]), 0.95) == 1.0
    assert wait_quantile_s((*waits[:-1], 3), 0.5) is None
