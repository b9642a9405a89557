"""One HTTP client per replica, and whether a failed request can have reached it.

A prompt is sent again freely only when it is certain that no engine can work on it: a prompt that crashes
its engine must not take one replica after the other with it. Certain are a connection that was never made,
and one that the other end closed before it had taken the whole request. The tunnel does the latter
whenever its SSH session is gone: it accepts on the socket, finds no session, and closes.

Each request has a connection of its own. On one that is used again, a request can cross the other end's close
and be lost in doubt: llama.cpp (seen with xllamacpp 2026.10) promises `Keep-Alive: timeout=5` and
yet closes after some streams, which cost 6 of 40 requests that followed a stream at once. What reuse would
save is one opened channel, against an answer that takes seconds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

from clorefleet.gateway.limits import Limits
from clorefleet.gateway.routing import Backend, RoutingTable

CONNECTIONS_MAX = 192
"""To one replica. Below the tunnel's own limit, which the daemon's probes share."""
CAUSES_MAX = 10
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_CUT_SENDS = frozenset({"http11.send_request_headers.failed", "http11.send_request_body.failed"})


class Delivery:
    """Follows one request on its way out."""

    def __init__(self, backend: Backend) -> None:
        self._is_socket = backend.uds_path is not None
        self._was_cut = False

    async def note(self, event: str, _info: dict[str, Any]) -> None:
        """The client library's trace of what it does."""
        self._was_cut = self._was_cut or event in _CUT_SENDS

    def cannot_have_arrived(self, error: httpx.HTTPError) -> bool:
        """Whether the whole request certainly reached nobody, given how waiting for its answer failed."""
        if isinstance(error, _UNSENT):
            return True
        if not isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
            return False
        # A UNIX socket reports a reset exactly when its peer closed with bytes of ours unread. Over TCP
        # a reset can also follow a request that was read.
        return self._was_cut or (self._is_socket and _is_reset(error))


def _is_reset(error: BaseException) -> bool:
    cause: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if cause is None:
            return False
        if isinstance(cause, ConnectionResetError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class _Upstream:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.users = 0


class Upstreams:
    """The clients of the table's backends. All calls on the gateway's event loop."""

    def __init__(self, table: RoutingTable, limits: Limits) -> None:
        self._table = table
        self._limits = limits
        self._open: dict[tuple[str, str], _Upstream] = {}

    @asynccontextmanager
    async def client(self, backend: Backend) -> AsyncIterator[httpx.AsyncClient]:
        """The backend's client, which stays open for as long as it is used here."""
        upstream = self._open.get(backend.address)
        if upstream is None:
            upstream = self._open[backend.address] = _Upstream(_client(backend, self._limits))
        upstream.users += 1
        try:
            yield upstream.client
        finally:
            upstream.users -= 1
            await self.close_removed()

    async def close_removed(self) -> None:
        """Close what the table no longer has and no request uses."""
        present = {backend.address for backend in self._table.backends()}
        removed = [
            address
            for address, upstream in self._open.items()
            if not upstream.users and address not in present
        ]
        for client in [self._open.pop(address).client for address in removed]:
            await client.aclose()

    async def close(self) -> None:
        """Close all, used or not."""
        clients = [upstream.client for upstream in self._open.values()]
        self._open.clear()
        for client in clients:
            await client.aclose()

    @property
    def open_count(self) -> int:
        return len(self._open)


def _client(backend: Backend, limits: Limits) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(
            uds=None if backend.uds_path is None else str(backend.uds_path),
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=0),
            retries=0,
            trust_env=False,
        ),
        base_url=backend.base_url or "http://localhost",
        # The exchange has clocks of its own for reading: one for the first byte, one between pieces.
        timeout=httpx.Timeout(None, connect=limits.connect_s, pool=limits.connect_s),
        # Compressed answers could not be passed through without their header, nor read for their counts.
        headers={"accept-encoding": "identity", "user-agent": "clorefleet", "connection": "close"},
        # A cookie would tie one request to the next, and a redirect would lead elsewhere.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        follow_redirects=False,
        trust_env=False,
    )
