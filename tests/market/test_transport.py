"""One exchange is bounded in every way, and the key goes nowhere else. Against real sockets."""

from __future__ import annotations

import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from clorefleet.clock import SystemClock
from clorefleet.domain.errors import ConfigError
from clorefleet.domain.secret import Secret
from clorefleet.market.transport import AnswerTooLarge, HttpTransport, NoAnswer, NotSent, Timeouts
from tests.market.scripted import KEY

QUICK = Timeouts(connect_s=1, read_s=0.5, total_s=0.6)
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@contextmanager
def serving(speak: Callable[[socket.socket, bytes], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that hears whole requests and answers with whatever `speak` does."""
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    request = connection.recv(65_536)
                    heard.append(request)
                    speak(connection, request)
                except OSError:
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", heard
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=5)


def saying(*pieces: bytes) -> Callable[[socket.socket, bytes], None]:
    def speak(connection: socket.socket, request: bytes) -> None:
        for piece in pieces:
            connection.sendall(piece)

    return speak


def dripping(prefix: bytes) -> Callable[[socket.socket, bytes], None]:
    def speak(connection: socket.socket, request: bytes) -> None:
        connection.sendall(prefix)
        for _ in range(200):
            connection.sendall(b"x")
            time.sleep(0.05)

    return speak


def transport_to(url: str, timeouts: Timeouts = QUICK) -> HttpTransport:
    return HttpTransport(url, Secret(KEY), clock=SystemClock(), timeouts=timeouts)


def test_the_key_travels_in_the_auth_header_and_only_when_needed() -> None:
    with serving(saying(_OK + b"content-length: 2\r\n\r\n{}")) as (url, heard):
        transport = transport_to(url)
        answer = transport.exchange("GET", "wallets", size_max=100)
        transport.exchange("GET", "marketplace", with_key=False, size_max=100)
    assert (answer.status, answer.body) == (200, b"{}")
    assert f"auth: {KEY}".encode() in heard[0]
    assert b"user-agent: clorefleet/" in heard[0]
    assert KEY.encode() not in heard[1]


def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    with (
        serving(saying(_OK + b"content-length: 2\r\n\r\n{}")) as (elsewhere, stolen),
        serving(saying(b"HTTP/1.1 302 Found\r\nlocation: " + elsewhere.encode() + b"\r\n\r\n")) as (url, _),
    ):
        assert transport_to(url).exchange("GET", "wallets", size_max=100).status == 302
    assert stolen == []


def test_a_cookie_is_not_sent_back() -> None:
    reply = saying(_OK + b"set-cookie: track=1; Path=/\r\ncontent-length: 2\r\n\r\n{}")
    with serving(reply) as (url, heard):
        transport = transport_to(url)
        for _ in range(2):
            transport.exchange("GET", "wallets", size_max=100)
    assert b"track" not in heard[1]


def test_an_answer_beyond_its_bound_is_dropped_while_it_arrives() -> None:
    with (
        serving(saying(_OK + b"content-length: 50000000\r\n\r\n", b"x" * 4096)) as (url, _),
        pytest.raises(AnswerTooLarge, match=r"1,000 bytes"),
    ):
        transport_to(url).exchange("GET", "wallets", size_max=1000)


@pytest.mark.parametrize(
    "prefix",
    [_OK + b"content-length: 5000\r\n\r\n", _OK + b"x-slow: "],
    ids=["body", "headers"],
)
def test_an_answer_that_drips_in_is_cut_at_the_total_limit(prefix: bytes) -> None:
    with serving(dripping(prefix)) as (url, _):
        began = time.monotonic()
        with pytest.raises(NoAnswer):
            transport_to(url).exchange("POST", "create_order", body=b"{}", size_max=10_000)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "speak",
    [
        saying(),
        saying(_OK + b"content-length: 100\r\n\r\n{"),
        saying(b"\x00\x01garbage\r\n\r\n"),
        lambda connection, request: time.sleep(1),
    ],
    ids=["closed", "cut body", "no http", "silence"],
)
def test_after_sending_every_failure_may_have_had_an_effect(
    speak: Callable[[socket.socket, bytes], None],
) -> None:
    with serving(speak) as (url, heard), pytest.raises(NoAnswer):
        transport_to(url).exchange("POST", "create_order", body=b"{}", size_max=100)
    assert len(heard) == 1


def test_without_a_connection_nothing_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(NotSent):
        transport_to(f"http://127.0.0.1:{port}/v1").exchange("POST", "create_order", body=b"{}", size_max=9)


def _crash_report(transport: HttpTransport) -> str:
    """What a report that prints local variables would show of a failed exchange."""
    try:
        transport.exchange("GET", "wallets", size_max=100)
    except NoAnswer as error:
        assert error.__cause__ is None
        assert error.__context__ is None
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    raise AssertionError("the exchange did not fail")


def test_the_key_is_in_no_crash_report_log_or_representation(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(saying()) as (url, heard):
        transport = transport_to(url)
        report = _crash_report(transport)
    assert KEY.encode() in heard[0]
    assert "endpoint = 'wallets'" in report
    assert KEY not in report + caplog.text + repr(transport) + repr(vars(transport))


@pytest.mark.parametrize(
    "url",
    [
        "http://api.clore.ai/v1",
        "http://10.0.0.1/v1",
        "http://127.0.0.1.evil.example/v1",
        "ftp://127.0.0.1/v1",
        "https://name:password@api.clore.ai/v1",
        "https:///v1",
        "https://api.clore.ai/v1?x=1",
        "api.clore.ai",
    ],
)
def test_the_key_is_refused_for_an_unsafe_address(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        transport_to(url)
    assert KEY not in str(caught.value)
    assert "password@" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://api.clore.ai/v1", "http://127.0.0.1:1/v1", "http://localhost:1", "http://[::1]:1"]
)
def test_the_key_is_taken_for_https_and_for_this_machine(url: str) -> None:
    transport_to(url).close()


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "umlaut-ü", "x" * 600])
def test_a_key_that_could_split_a_header_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HttpTransport("https://api.clore.ai/v1", Secret(key), clock=SystemClock())
    assert key not in str(caught.value)


def test_a_proxy_of_the_environment_never_sees_calls_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        serving(saying(_OK + b"content-length: 2\r\n\r\n{}")) as (proxy, stolen),
        serving(saying(_OK + b"content-length: 2\r\n\r\n{}")) as (url, heard),
    ):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        transport_to(url).exchange("GET", "wallets", size_max=100)
    assert stolen == []
    assert len(heard) == 1
