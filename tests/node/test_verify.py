"""What an engine behind the tunnel may answer, and what counts as an answer (A19, F16, S15)."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clorefleet.domain.failure import Cause
from clorefleet.domain.recipe import EngineName, EngineSupport
from clorefleet.node import bootstrap, engine_client
from clorefleet.node.verify import VerifyResult, verify
from tests.fleet.builders import plan

SETUP = plan().setup
PLAIN = EngineSupport(EngineName.LLAMACPP, "image", ())
PARSING = EngineSupport(EngineName.LLAMACPP, "image", (), tool_call_parser="glm47", reasoning_parser="glm45")
ASKED_NOTHING: tuple[tuple[str, tuple[str, ...]], ...] = ()


def checked(path: Path, support: EngineSupport = PLAIN) -> VerifyResult:
    """Without a known answer: what these engines say has no sense."""
    return verify(path, SETUP, support, known_answers=ASKED_NOTHING)


MODELS = json.dumps({"data": [{"id": "m", "simulated": True}]}).encode()
WHOLE = {"choices": [{"message": {"content": "one\x1b[2J two"}}], "usage": {"completion_tokens": 24}}
EVENT = b'data: {"choices":[{"delta":{"content":"one"}}]}\n\n'
STREAM = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n' + EVENT + b"data: [DONE]\n\n"


@contextmanager
def engine(folder: Path, answer: Callable[[bytes], bytes]) -> Iterator[Path]:
    """A server on a UNIX socket; `answer` turns the request's bytes into all the response's bytes."""
    path = folder / "e.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with connection:
                request = b""
                while b"\r\n\r\n" not in request or (b"POST" in request and b"}" not in request):
                    request += connection.recv(65536)
                try:
                    connection.sendall(answer(request))
                except OSError:
                    continue

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield path
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def http(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def answering(
    *, stream: bytes = STREAM, whole: object = WHOLE, status: int = 200
) -> Callable[[bytes], bytes]:
    def answer(request: bytes) -> bytes:
        if b"/v1/models" in request:
            return http(MODELS)
        if b'"stream":true' in request.replace(b" ", b""):
            return http(stream)
        return http(whole if isinstance(whole, bytes) else json.dumps(whole).encode(), status)

    return answer


def test_a_completion_and_a_stream_count_as_answered(tmp_path: Path):
    with engine(tmp_path, answering()) as path:
        assert bootstrap.is_healthy(path, SETUP)
        found = checked(path)
    assert found.answered and found.is_simulated and found.trouble == ""
    assert found.text_sample == "one\ufffd[2J two"
    assert found.tokens_per_s and found.tokens_per_s > 24


@pytest.mark.parametrize("speed", [10**400, -1, 0, "12", None])
def test_a_speed_that_nobody_has_is_not_told(speed: object, tmp_path: Path):
    card = json.dumps({"data": [{"id": "m", "simulated": True, "simulated_tokens_per_s": speed}]}).encode()
    answer = answering()
    with engine(tmp_path, lambda asked: http(card) if b"/v1/models" in asked else answer(asked)) as path:
        found = checked(path)
    assert found.answered and found.is_simulated and found.simulated_tokens_per_s is None


def test_a_model_that_only_thinks_aloud_answers_too(tmp_path: Path):
    thought = {
        "choices": [{"message": {"content": None, "reasoning_content": "hm"}}],
        "usage": {"completion_tokens": 9},
    }
    stream = STREAM.replace(b'"content"', b'"reasoning_content"')
    with engine(tmp_path, answering(stream=stream, whole=thought)) as path:
        assert checked(path).answered


@pytest.mark.parametrize(
    "changes, trouble",
    [
        ({"stream": b""}, "stream"),
        ({"stream": EVENT}, "stream"),
        ({"stream": b"data: [DONE]\n\n"}, "stream"),
        ({"stream": json.dumps(WHOLE).encode()}, "stream"),
        ({"whole": b""}, "not a completion"),
        ({"whole": b"[]"}, "not a completion"),
        ({"whole": {"choices": []}}, "not a completion"),
        ({"whole": {**WHOLE, "usage": {"completion_tokens": 10**9}}}, "not a completion"),
        ({"whole": {**WHOLE, "usage": {"completion_tokens": -(10**400)}}}, "not a completion"),
        ({"whole": {**WHOLE, "usage": {"completion_tokens": 0}}}, "empty"),
        ({"whole": {**WHOLE, "choices": [{"message": {"content": "  "}}]}}, "empty"),
        ({"whole": b'{"error": "CUDA error\x1b[2J"}', "status": 500}, "500"),
        ({"whole": b"[" * 100_000}, "not a completion"),
    ],
)
def test_anything_else_does_not(changes: dict, trouble: str, tmp_path: Path):
    with engine(tmp_path, answering(**changes)) as path:
        found = checked(path)
    assert not found.answered and trouble in found.trouble and found.trouble.isprintable()


def test_an_answer_without_end_is_left(tmp_path: Path):
    flood = b"HTTP/1.1 200 x\r\n\r\n" + b"x" * (engine_client.ANSWER_MAX_BYTES + 1)
    with engine(tmp_path, lambda _: flood) as path:
        assert not bootstrap.is_healthy(path, SETUP)
        assert "too long" in checked(path).trouble


def test_an_answer_that_drips_is_left(tmp_path: Path):
    """A19: each byte comes in time, the answer never."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "d.sock"))
    listener.listen()

    def drip() -> None:
        connection = listener.accept()[0]
        with connection:
            try:
                connection.sendall(b"HTTP/1.1 200 x\r\n\r\n")
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.05)
            except OSError:
                return

    threading.Thread(target=drip, daemon=True).start()
    began_s = time.monotonic()
    assert not bootstrap.is_healthy(tmp_path / "d.sock", SETUP, timeout_s=0.3)
    assert time.monotonic() - began_s < 3
    listener.close()


def test_nobody_behind_the_socket_is_not_healthy(tmp_path: Path):
    assert not bootstrap.is_healthy(tmp_path / "none.sock", SETUP)
    assert not checked(tmp_path / "none.sock").answered


# -- what the recipe's parsers promise, and a known answer


def message(**parts: object) -> object:
    return {"choices": [{"message": parts}], "usage": {"completion_tokens": 9}}


CALL = {"function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}


def talking(
    *, told: object = None, called: object = None, tools_status: int = 200
) -> Callable[[bytes], bytes]:
    """Answers questions with `told`, requests that offer tools with `called`."""
    told = told or message(content="It is Paris.", reasoning_content="France...")
    called = called or message(content=None, tool_calls=[CALL])

    def answer(request: bytes) -> bytes:
        if b'"tools"' in request:
            return http(json.dumps(called).encode(), tools_status)
        return answering(whole=told)(request)

    return answer


def test_a_replica_that_keeps_all_promises_is_measured_alone(tmp_path: Path):
    with engine(tmp_path, talking()) as path:
        found = verify(path, SETUP, PARSING)
    assert found.answered and found.cause is None, found
    assert found.streams == 1 and found.together_tokens_per_s == found.tokens_per_s


REFUSED = {"error": {"message": '"auto" tool choice requires --enable-auto-tool-choice'}}
OTHER = {"function": {"name": "rm", "arguments": "{}"}}
BOMB = {"function": {"name": "get_weather", "arguments": "[" * 99_999}}


@pytest.mark.parametrize(
    "name, behaviour, cause",
    [
        ("wrong answers", {"told": message(content="zq zq", reasoning_content="zq")}, Cause.WRONG_ANSWERS),
        ("no trace", {"told": message(content="It is Paris.")}, Cause.NO_THINKING),
        ("an empty trace", {"told": message(content="Paris.", reasoning_content="")}, Cause.NO_THINKING),
        ("a raw trace", {"told": message(content="<think>hm</think> Paris.")}, Cause.NO_THINKING),
        ("a raw call", {"called": message(content="<tool_call>get_weather")}, Cause.TOOL_CALLS_DROPPED),
        ("no call", {"called": message(content="It is sunny.")}, Cause.TOOL_CALLS_DROPPED),
        ("no parser", {"called": REFUSED, "tools_status": 400}, Cause.TOOL_CALLS_DROPPED),
        ("a call of another tool", {"called": message(tool_calls=[OTHER])}, Cause.TOOL_CALLS_DROPPED),
        ("a call without sense", {"called": message(tool_calls=[{"function": {}}])}, Cause.WRONG_ANSWERS),
        ("a bomb of a call", {"called": message(tool_calls=[BOMB])}, Cause.WRONG_ANSWERS),
        ("a server error", {"called": {"error": "CUDA error"}, "tools_status": 500}, Cause.GPU_DEAD),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_broken_promise_has_a_cause(name: str, behaviour: dict, cause: Cause, tmp_path: Path):
    """F16: its health route says 200 all the while."""
    with engine(tmp_path, talking(**behaviour)) as path:
        assert bootstrap.is_healthy(path, SETUP)
        found = verify(path, SETUP, PARSING)
    assert not found.answered and found.cause is cause, found
    assert found.trouble and found.trouble.isprintable()


def test_what_the_recipe_does_not_promise_is_not_asked_for(tmp_path: Path):
    with engine(tmp_path, talking(told=message(content="Paris"), called=REFUSED, tools_status=400)) as path:
        assert verify(path, SETUP, PLAIN).answered


def test_several_streams_are_measured_together_and_not_more_than_planned(tmp_path: Path):
    from dataclasses import replace

    with engine(tmp_path, talking()) as path:
        found = verify(path, replace(SETUP, concurrency=3), PARSING)
    assert found.streams == 3 and found.together_tokens_per_s


@pytest.mark.parametrize("told, is_enough", [(2048, True), (1024, False), ("many", True)])
def test_less_context_than_planned_is_told(told: object, is_enough: bool, tmp_path: Path):
    def answer(request: bytes) -> bytes:
        if b"/v1/models" in request:
            return http(json.dumps({"data": [{"id": "m", "max_model_len": told}]}).encode())
        return talking()(request)

    with engine(tmp_path, answer) as path:
        found = verify(path, SETUP, PARSING)
    assert found.answered is is_enough
    assert is_enough or found.cause is Cause.CONTEXT_TOO_LONG
