"""One HTTP exchange with the market, bounded in every way. The only module that knows httpx.

Rules:
- The key becomes a header on one line here, and goes only to the configured base address, over https, or
  over http to this machine (the sandbox). Redirects are not followed and no cookie is kept.
- Every exchange has a connect, a read and a total time limit and a size limit. The total limit holds
  against an answer that drips in byte by byte, headers too.
- Each exchange has its own connection. At one request a second this costs little, and a connection that
  the other side closed meanwhile can never leave a rent in doubt.
- Proxies of the environment are used for https, where they see only a tunnel; never for this machine.

Two things can go wrong, and the difference is money: `NotSent` is certain that the market saw nothing;
after `NoAnswer` it may have done what was asked.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from clorefleet import __version__
from clorefleet.clock import Clock
from clorefleet.domain.errors import ConfigError
from clorefleet.domain.http_date import http_date
from clorefleet.domain.secret import Secret
from clorefleet.domain.text import clean_line

USER_AGENT = f"clorefleet/{__version__}"
"""The service's edge refuses some libraries' default names with 403 `error code: 1010`."""
RETRY_AFTER_MAX_S = 600.0
_KEY_CHARS_MAX = 512


@dataclass(frozen=True, slots=True)
class Timeouts:
    connect_s: float = 10.0
    read_s: float = 20.0
    """Silence between two pieces of the answer."""
    total_s: float = 60.0
    """From the call to the last byte."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whole."""

    status: int
    body: bytes
    retry_after_s: float | None = None
    dated_at: datetime | None = None
    """By the service's own clock; None where it did not say."""


class ExchangeFailed(Exception):
    """No whole answer. Its text is harmless and has no secret; the foreign error is not chained to it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotSent(ExchangeFailed):
    """The market cannot have seen the request."""


class NoAnswer(ExchangeFailed):
    """The market may have seen the request and acted on it."""


class AnswerTooLarge(NoAnswer):
    """The answer passed its size limit and was dropped."""


_BEFORE_SENDING = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)


class HttpTransport:
    """Sends one request at a time per call; safe to share between threads."""

    def __init__(
        self,
        base_url: str,
        api_key: Secret | None,
        *,
        clock: Clock,
        timeouts: Timeouts | None = None,
        user_agent: str = USER_AGENT,
        inner: httpx.BaseTransport | None = None,
    ) -> None:
        """`inner` replaces the network in tests.

        Raises:
            ConfigError: the address or the key cannot be used safely.
        """
        self._base_url = _checked_url(base_url, has_key=bool(api_key and api_key.reveal()))
        self._api_key = api_key if api_key and api_key.reveal() else None
        _check_key(self._api_key)
        self._clock = clock
        self._timeouts = timeouts or Timeouts()
        # httpcore's debug lines describe requests and answers; ours say all that is needed.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = httpx.Client(
            transport=inner,
            follow_redirects=False,
            trust_env=not _is_this_machine(urlsplit(self._base_url).hostname or ""),
            verify=True,
            http2=False,
            limits=httpx.Limits(max_connections=16, max_keepalive_connections=0),
            timeout=httpx.Timeout(
                self._timeouts.read_s, connect=self._timeouts.connect_s, pool=self._timeouts.connect_s
            ),
            headers={"user-agent": user_agent, "accept": "application/json", "accept-encoding": "identity"},
        )

    @property
    def has_key(self) -> bool:
        return self._api_key is not None

    def close(self) -> None:
        self._client.close()

    def exchange(
        self,
        method: str,
        endpoint: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        with_key: bool = True,
        size_max: int,
    ) -> Answer:
        """Send one request and read its whole answer.

        Raises:
            NotSent: certainly nothing happened.
            NoAnswer: something may have happened.
        """
        failure: ExchangeFailed
        try:
            return self._exchange(method, endpoint, query, body, with_key, size_max)
        except ExchangeFailed as error:
            failure = error
        except _BEFORE_SENDING as error:
            failure = NotSent(f"no connection to the market ({_words(error)})")
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            failure = NoAnswer(f"the market's answer did not arrive ({_words(error)})")
        # Raised outside the handler, with nothing chained and no inner frames: httpx's errors and those
        # frames hold the request, whose headers hold the key, and a crash report may print them.
        failure.__context__ = None
        failure.__traceback__ = None
        raise failure

    def _exchange(
        self,
        method: str,
        endpoint: str,
        query: Mapping[str, str] | None,
        body: bytes | None,
        with_key: bool,
        size_max: int,
    ) -> Answer:
        headers: dict[str, str] = {} if body is None else {"content-type": "application/json"}
        if with_key and self._api_key is not None:
            headers["auth"] = self._api_key.reveal()
        deadline_s = self._clock.monotonic_s() + self._timeouts.total_s
        with (
            _hang_up_after(self._timeouts.total_s) as trace,
            self._client.stream(
                method,
                f"{self._base_url}/{endpoint}",
                params=query,
                content=body,
                headers=headers,
                extensions={"trace": trace},
            ) as response,
        ):
            # A cookie would tie calls together that must stand alone.
            self._client.cookies.clear()
            received = bytearray()
            for piece in response.iter_bytes():
                received += piece
                if len(received) > size_max:
                    raise AnswerTooLarge(f"the market's answer is larger than {size_max:,} bytes")
                if self._clock.monotonic_s() > deadline_s:
                    raise NoAnswer(f"the market's answer took longer than {self._timeouts.total_s:g} s")
            return Answer(
                response.status_code,
                bytes(received),
                _retry_after_s(response),
                http_date(response.headers.get("date")),
            )


@contextmanager
def _hang_up_after(seconds: float) -> Iterator[Any]:
    """A trace function for httpcore that learns the connection, and a timer that cuts it.

    httpcore bounds each read, not their number: headers that come a byte at a time would hold a thread
    for a day. `Any`: httpcore's trace hook and its streams are untyped here.
    """
    lock = threading.Lock()
    streams: list[Any] = []
    has_expired = False

    def cut(stream: Any) -> None:
        raw = stream.get_extra_info("socket")
        if isinstance(raw, socket.socket):
            # The plain socket's method: a TLS socket's own would touch state that a reader is using.
            try:
                socket.socket.shutdown(raw, socket.SHUT_RDWR)
            except OSError:
                return

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with lock:
                streams.append(info.get("return_value"))
                if has_expired and streams[-1] is not None:
                    cut(streams[-1])

    def expire() -> None:
        nonlocal has_expired
        with lock:
            has_expired = True
            for stream in streams:
                if stream is not None:
                    cut(stream)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield trace
    finally:
        timer.cancel()


def _checked_url(base_url: str, *, has_key: bool) -> str:
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    remedy = "Set api_url to an https address, for instance https://api.clore.ai/v1."
    if parts.scheme not in ("https", "http") or not host or parts.query or parts.fragment:
        raise ConfigError("The market's address is not a web address.", remedy=remedy)
    if parts.username is not None or parts.password is not None:
        raise ConfigError("The market's address must not hold a name or password.", remedy=remedy)
    if parts.scheme == "http" and has_key and not _is_this_machine(host):
        raise ConfigError(
            f"The API key is not sent to {clean_line(host, max_chars=80)} without encryption.", remedy=remedy
        )
    return base_url.rstrip("/")


def _check_key(api_key: Secret | None) -> None:
    if api_key is None:
        return
    value = api_key.reveal()
    if len(value) > _KEY_CHARS_MAX or not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigError(
            "The API key has blanks or characters that no key has.",
            remedy="Copy it again from clore.ai, on one line.",
        )


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds only; the form with a date would trust the other side's clock."""
    raw = response.headers.get("retry-after", "").strip()
    return min(float(raw), RETRY_AFTER_MAX_S) if raw.isascii() and raw.isdigit() and len(raw) < 9 else None


def _words(error: BaseException) -> str:
    return clean_line(
        f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, max_chars=160
    )
