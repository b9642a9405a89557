"""Runs the gateway in a thread of the daemon, on loopback."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import uvicorn

from clorefleet.domain.errors import DaemonError
from clorefleet.gateway.app import Gateway, OnFinished
from clorefleet.gateway.routing import Route, RoutingTable
from clorefleet.gateway.token import TokenCheck

HOST = "127.0.0.1"
START_TIMEOUT_S = 10.0
DRAIN_S = 10
CONNECTIONS_MAX = 1_000


class Served(Protocol):
    """A serving replica as the fleet names it."""

    @property
    def lease_id(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def socket(self) -> Path: ...


class GatewayService:
    """Bound when made: the address is known before the first request."""

    def __init__(
        self, token: TokenCheck, *, preferred_port: int, on_finished: OnFinished | None = None
    ) -> None:
        self._table = RoutingTable()
        self._gateway = Gateway(self._table, token, on_finished=on_finished)
        self._socket = _bind(preferred_port)
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._gateway.app(),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="on",
                limit_concurrency=CONNECTIONS_MAX,
                timeout_graceful_shutdown=DRAIN_S,
            )
        )
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)

    def start(self) -> None:
        """
        Raises:
            DaemonError: it did not come up.
        """
        self._thread.start()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._server.started:
            if time.monotonic() > deadline_s or not self._thread.is_alive():
                raise DaemonError(
                    "The gateway did not start.", remedy="`clorefleet doctor` looks for the cause."
                )
            time.sleep(0.01)

    def set_routes(self, backends: Iterable[Served]) -> None:
        self._table.replace(Route(each.lease_id, each.model, each.socket) for each in backends)

    def in_flight(self, lease_id: str) -> int:
        return self._table.in_flight(lease_id)

    def stop(self) -> None:
        """Let requests under way finish for a bounded time."""
        self._server.should_exit = True
        self._thread.join(timeout=DRAIN_S + 5)
        self._socket.close()

    def _run(self) -> None:
        # Signals belong to the daemon's main thread.
        with contextlib.suppress(SystemExit):
            self._server.run(sockets=[self._socket])


def _bind(preferred_port: int) -> socket.socket:
    """The preferred port, so that clients keep their address over restarts; any free one when it is taken."""
    for port in (preferred_port, 0):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind((HOST, port))
            return listener
        except OSError:
            listener.close()
    raise DaemonError("There is no free loopback port for the gateway.", remedy="Free one and start again.")
