"""What is read of a request's body, and what parsing it may cost."""

from __future__ import annotations

import json

import pytest

from clorefleet.gateway.problem import Problem
from clorefleet.gateway.prompt import BEGINNING_MAX_CHARS, CONTAINERS_MAX, DEPTH_MAX, Prompt, read_prompt


def nested(levels: int) -> bytes:
    return b'{"model": "m", "x": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


@pytest.mark.parametrize(
    "body, model, is_streamed",
    [
        (b'{"model": "m"}', "m", False),
        (b'{"model": "m", "stream": true}', "m", True),
        (b'{"model": "m", "stream": "true"}', "m", False),
        ('{"model": "größe/x:1"}'.encode(), "größe/x:1", False),
        (nested(DEPTH_MAX), "m", False),
    ],
)
def test_model_and_streaming_are_read(body: bytes, model: str, is_streamed: bool):
    assert read_prompt(body) == Prompt(model, is_streamed, body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"model": 3}',
        b'{"model": null}',
        b'{"model": ""}',
        b'{"model": "a\\u001b[2J"}',
        b'{"model": "a\\nb"}',
        b'{"model": "\\u202e"}',
        json.dumps({"model": "m" * 201}).encode(),
        b'{"model": "\xff"}',
        '{"model": "m"}'.encode("utf-16"),
        nested(DEPTH_MAX + 1),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "m", "n": ' + b"9" * 100_000 + b"}",
        b'{"model": "m", "x": [' + b"[]," * CONTAINERS_MAX + b"0]}",
    ],
    ids=lambda body: str(body[:24]),
)
def test_a_body_that_is_no_request_is_refused(body: bytes):
    refused = read_prompt(body)
    assert isinstance(refused, Problem) and (refused.status, refused.code) == (400, "invalid_body")


def beginning(**body: object) -> str:
    prompt = read_prompt(json.dumps({"model": "m"} | body).encode())
    assert not isinstance(prompt, Problem)
    return prompt.beginning


SYSTEM = {"role": "system", "content": "You are kind."}


def test_turns_of_one_conversation_begin_alike():
    ask = {"role": "user", "content": "Hello?"}
    first = beginning(messages=[SYSTEM, ask])
    later = [SYSTEM, ask, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "More"}]
    assert first and first == beginning(messages=later)
    assert first == beginning(
        messages=[SYSTEM, {"role": "user", "content": [{"type": "text", "text": "Hello?"}]}]
    )
    assert first != beginning(messages=[SYSTEM, {"role": "user", "content": "Bye?"}])


def test_the_clients_own_cache_key_wins_and_plain_prompts_count_too():
    assert beginning(prompt_cache_key="tenant-1", messages=[SYSTEM]) == "tenant-1"
    assert beginning(prompt="Once upon") == "Once upon"


@pytest.mark.parametrize(
    "odd", [{}, {"messages": 3}, {"messages": ["x"]}, {"prompt": [1, 2]}, {"messages": []}]
)
def test_where_nothing_tells_there_is_no_beginning(odd: dict[str, object]):
    assert beginning(**odd) == ""


def test_a_beginning_is_bounded():
    huge = {"role": "user", "content": "x" * 1_000_000}
    assert len(beginning(messages=[huge])) <= BEGINNING_MAX_CHARS
