"""Token counts, out of answers that nobody can be trusted to have written well."""

from __future__ import annotations

import json

import pytest

from clorefleet.gateway.usage import TAIL_MAX_BYTES, Tail, token_counts

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
