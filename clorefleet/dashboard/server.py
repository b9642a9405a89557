"""Serves the dashboard on loopback until it is told to end; one per profile."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from clorefleet.config.places import write_private_file
from clorefleet.dashboard.app import Dashboard
from clorefleet.dashboard.guard import HOST
from clorefleet.domain.errors import DaemonError

CONNECTIONS_MAX = 64
HEADERS_MAX_BYTES = 16 * 1024
START_S = 10.0
END_S = 2
"""For requests under way; live pages are told at once."""
_TAKEN = {errno.EADDRINUSE, errno.EACCES}
_LOCK, _INFO = "dashboard.lock", "dashboard.json"


def listen(port: int, *, or_any: bool) -> socket.socket:
    """A socket on loopback, on that port.

    Args:
        or_any: any free port serves where that one is taken.

    Raises:
        DaemonError: it is taken, and no other may be.
    """
    for tried in (port, 0) if or_any else (port,):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind((HOST, tried))
            listener.listen()
            return listener
        except OSError as error:
            listener.close()
            if error.errno not in _TAKEN:
                raise
    raise DaemonError(
        f"The dashboard cannot listen on port {port} of {HOST}: it is taken.",
        remedy="Leave --port out, or choose another.",
    )


class DashboardServer:
    """Runs in the calling thread (`serve`), or in one of its own (`start`)."""

    def __init__(self, dashboard: Dashboard, listener: socket.socket) -> None:
        self._dashboard = dashboard
        self._listener = listener
        self._thread: threading.Thread | None = None
        self._server = _Server(
            uvicorn.Config(
                dashboard.asgi(),
                interface="asgi3",
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS_MAX,
                h11_max_incomplete_event_size=HEADERS_MAX_BYTES,
                timeout_graceful_shutdown=END_S,
            ),
            on_exit=dashboard.ended.set,
        )

    def serve(self) -> None:
        """Until Ctrl-C or SIGTERM."""
        with contextlib.suppress(KeyboardInterrupt):
            self._server.run(sockets=[self._listener])

    def start(self) -> None:
        self._thread = threading.Thread(target=self.serve, name="dashboard", daemon=True)
        self._thread.start()
        if not self._server.is_up.wait(START_S):
            raise DaemonError("The dashboard did not start.")

    def stop(self) -> None:
        self._dashboard.ended.set()
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=START_S)


class _Server(uvicorn.Server):
    """Tells when it serves, and when it begins to end."""

    def __init__(self, config: uvicorn.Config, *, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self.is_up = threading.Event()
        self._on_exit = on_exit

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_exit()
        await super().shutdown(sockets)


# -- one per profile


@contextlib.contextmanager
def only_one(state_dir: Path) -> Iterator[bool]:
    """True while this process is the profile's only dashboard; False when another is."""
    descriptor = os.open(state_dir / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        info = state_dir / _INFO
        try:
            info.unlink(missing_ok=True)  # of one that was killed
            yield True
        finally:
            info.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def tell_url(state_dir: Path, url: str) -> None:
    """For a second `clorefleet dashboard`, which prints a link to this one."""
    write_private_file(state_dir / _INFO, json.dumps({"url": url}).encode())


def known_url(state_dir: Path) -> str | None:
    try:
        return str(json.loads((state_dir / _INFO).read_text("utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
