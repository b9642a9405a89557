"""Runs the gateway on a port of this machine, in a thread with an event loop of its own.

It listens on loopback and nowhere else, unless somebody says so in as many words: the token goes over the
wire in the clear.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import math
import socket
import threading

import uvicorn

from clorefleet.clock import Clock
from clorefleet.domain.errors import DaemonError
from clorefleet.gateway.app import GatewayApp
from clorefleet.gateway.guard import Guard, is_loopback
from clorefleet.gateway.limits import DEFAULT_LIMITS, Limits
from clorefleet.gateway.relay import OnWanted
from clorefleet.gateway.routing import RoutingTable
from clorefleet.gateway.token import TokenCheck
from clorefleet.gateway.usage import OnFinished

log = logging.getLogger("clorefleet.gateway")

START_S = 10.0
DRAIN_S = 10.0
AFTER_DRAIN_S = 5.0
"""For what the drain cut off to end."""
CONNECTIONS_MAX = 1_000
"""Open at once, idle ones too. Requests have their own, lower bound with a proper answer."""
HEADERS_MAX_BYTES = 32 * 1024
_TAKEN = {errno.EADDRINUSE, errno.EACCES}


class Gateway:
    """One address in front of the table's backends. Started once, stopped once."""

    def __init__(
        self,
        routing: RoutingTable,
        token_hash: TokenCheck,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        clock: Clock | None = None,
        limits: Limits = DEFAULT_LIMITS,
        on_finished: OnFinished | None = None,
        on_wanted: OnWanted | None = None,
        allow_remote: bool = False,
        may_take_other_port: bool = True,
    ) -> None:
        """
        Args:
            host: a literal address, or `localhost`.
            port: the wanted one; 0 for any.
            may_take_other_port: any free port serves where the wanted one is taken.

        Raises:
            DaemonError: `host` is not loopback, and `allow_remote` was not said.
        """
        if not allow_remote and not is_loopback(host):
            raise DaemonError(
                f"The gateway does not listen on {host}: others could reach it there.",
                remedy="Leave it on 127.0.0.1, and reach it from elsewhere through SSH.",
            )
        self._routing = routing
        self._token_hash = token_hash
        self._host = "127.0.0.1" if host.lower() == "localhost" else host.strip("[]")
        self._wanted_port = port
        self._clock = clock
        self._limits = limits
        self._on_finished = on_finished
        self._on_wanted = on_wanted
        self._allow_remote = allow_remote
        self._may_take_other_port = may_take_other_port
        self._port: int | None = None
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it answers, without `/v1`; known once started."""
        if self._port is None:
            raise RuntimeError("the gateway was not started")
        name = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{name}:{self._port}"

    def start(self) -> None:
        """Bound and serving when it returns.

        Raises:
            DaemonError: the port is taken and no other may be, or it did not come up.
        """
        if self._thread is not None:
            raise RuntimeError("the gateway was started before")
        listener = self._bind()
        self._port = listener.getsockname()[1]
        app = GatewayApp(
            self._routing,
            Guard(self._token_hash, self._port, allow_remote=self._allow_remote),
            limits=self._limits,
            clock=self._clock,
            on_finished=self._on_finished,
            on_wanted=self._on_wanted,
        )
        server = self._server = _Server(
            uvicorn.Config(
                app.asgi(),
                interface="asgi3",
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS_MAX,
                h11_max_incomplete_event_size=HEADERS_MAX_BYTES,
            )
        )
        self._thread = threading.Thread(
            target=server.run_until_told, args=(listener,), name="gateway", daemon=True
        )
        self._thread.start()
        if not server.is_settled.wait(START_S) or not server.started:
            server.should_exit = True
            raise DaemonError("The gateway did not start.", remedy="`clorefleet doctor` looks for the cause.")

    def stop(self, timeout_s: float = DRAIN_S) -> None:
        """Take no more requests, let those under way finish for `timeout_s`, then cut them.

        A second call changes nothing.
        """
        if self._server is None or self._thread is None:
            return
        # Rounded up: the server takes whole seconds.
        self._server.config.timeout_graceful_shutdown = max(1, math.ceil(timeout_s))
        self._server.should_exit = True
        self._thread.join(timeout=timeout_s + AFTER_DRAIN_S)
        if self._thread.is_alive():
            log.warning("gateway_still_stopping after_s=%s", timeout_s + AFTER_DRAIN_S)

    def _bind(self) -> socket.socket:
        ports = (self._wanted_port, 0) if self._may_take_other_port else (self._wanted_port,)
        family = socket.AF_INET6 if ipaddress.ip_address(self._host).version == 6 else socket.AF_INET
        trouble: OSError | None = None
        for port in ports:
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Connections inherit it. Without it each answer waits 40 ms for the client's delayed ACK, since
            # its head and its body are written apart.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                listener.bind((self._host, port))
                # Two sockets can be bound to one port until one of them listens.
                listener.listen()
                return listener
            except OSError as error:
                listener.close()
                trouble = error
                if error.errno not in _TAKEN:
                    break
        raise DaemonError(
            f"The gateway cannot listen on port {self._wanted_port} of {self._host}: "
            f"{trouble.strerror if trouble else 'unknown'}.",
            remedy="Free that port, or choose another, and start again.",
        ) from trouble


class _Server(uvicorn.Server):
    """Tells when it serves, or that it never will."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_settled = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_settled.set()

    def run_until_told(self, listener: socket.socket) -> None:
        try:
            # A failed start ends in SystemExit, which is not for this process.
            with contextlib.suppress(SystemExit):
                self.run(sockets=[listener])
        finally:
            listener.close()
            self.is_settled.set()
