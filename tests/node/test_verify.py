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

from clorefleet.node import bootstrap
from tests.fleet.builders import plan

SETUP = plan().setup
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
        found = bootstrap.verify(path, SETUP)
    assert found.answered and found.is_simulated and found.trouble == ""
    assert found.text_sample == "one\ufffd[2J two"
    assert found.tokens_per_s and found.tokens_per_s > 24


def test_a_model_that_only_thinks_aloud_answers_too(tmp_path: Path):
    thought = {
        "choices": [{"message": {"content": None, "reasoning_content": "hm"}}],
        "usage": {"completion_tokens": 9},
    }
    stream = STREAM.replace(b'"content"', b'"reasoning_content"')
    with engine(tmp_path, answering(stream=stream, whole=thought)) as path:
        assert bootstrap.verify(path, SETUP).answered


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
        ({"whole": {**WHOLE, "usage": {"completion_tokens": 0}}}, "empty"),
        ({"whole": {**WHOLE, "choices": [{"message": {"content": "  "}}]}}, "empty"),
        ({"whole": b'{"error": "CUDA error\x1b[2J"}', "status": 500}, "500"),
        ({"whole": b"[" * 100_000}, "not a completion"),
    ],
)
def test_anything_else_does_not(changes: dict, trouble: str, tmp_path: Path):
    with engine(tmp_path, answering(**changes)) as path:
        found = bootstrap.verify(path, SETUP)
    assert not found.answered and trouble in found.trouble and found.trouble.isprintable()


def test_an_answer_without_end_is_left(tmp_path: Path):
    flood = b"HTTP/1.1 200 x\r\n\r\n" + b"x" * (bootstrap.ANSWER_MAX_BYTES + 1)
    with engine(tmp_path, lambda _: flood) as path:
        assert not bootstrap.is_healthy(path, SETUP)
        assert "too long" in bootstrap.verify(path, SETUP).trouble


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
    assert not bootstrap.verify(tmp_path / "none.sock", SETUP).answered
