"""A UNIX socket on our side in front of a port on the node's loopback.

A loopback port of ours would be open to every user of this machine and would walk around the gateway's
token; a socket in a private folder is not. Each connection is one channel of the node's session.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import selectors
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import paramiko

from clorefleet.config.places import make_private_dir
from clorefleet.domain.errors import NodeError
from clorefleet.node.readable import Readable
from clorefleet.node.session import NodeSession, close_channel

CONNECTIONS_MAX = 256
_CHUNK_BYTES = 64 * 1024
_SOCKET_PATH_MAX = 100
"""The kernel's limit is 108 bytes."""


def socket_path(state_dir: Path, lease_id: str) -> Path:
    """Where a lease's socket is; in a short private folder of the user where the state folder is too deep."""
    path = state_dir / "run" / f"{lease_id}.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
        make_private_dir(path.parent)
        return path
    digest = hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:12]
    folder = Path(f"/tmp/clorefleet-{os.getuid()}")  # noqa: S108 - private, owner checked
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise NodeError(
            f"{folder} is not a private folder of yours.", remedy="Remove it, or set CLOREFLEET_HOME."
        )
    return folder / f"{digest}-{lease_id}.sock"


class Tunnel:
    """Accepts on `path` until closed; `session_of` gives the live session of the moment."""

    def __init__(self, path: Path, port: int, session_of: Callable[[], NodeSession]) -> None:
        self.path = path
        self.port = port
        self._session_of = session_of
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._is_closed = threading.Event()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        previous = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(previous)
        self._listener.listen(128)
        threading.Thread(target=self._accept, name=f"tunnel-{path.stem}", daemon=True).start()

    @property
    def is_open(self) -> bool:
        """False also when somebody cleaned the socket's file away: nobody could connect any more."""
        return not self._is_closed.is_set() and self.path.exists()

    def close(self) -> None:
        """Stop listening and cut what is under way; a second call changes nothing."""
        self._is_closed.set()
        with self._lock:
            cut = list(self._connections)
        for connection in cut:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while not self._is_closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                # Closed, or out of file descriptors: who wants the tunnel then makes another.
                self.close()
                return
            if not self._slots.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._carry, args=(connection,), daemon=True).start()

    def _carry(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)
        try:
            channel = self._session_of().open_tunnel_channel(self.port)
            try:
                _pump(connection, channel)
            finally:
                close_channel(channel)
        except NodeError:
            pass  # the client sees a closed connection, and the gateway takes another replica
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()
            self._slots.release()


def _pump(connection: socket.socket, channel: paramiko.Channel) -> None:
    """Copy both ways until one side ends; a half-closed side lets the other finish."""
    try:
        with selectors.DefaultSelector() as selector, Readable(channel) as readable:
            selector.register(connection, selectors.EVENT_READ)
            selector.register(readable, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is connection:
                        data = connection.recv(_CHUNK_BYTES)
                        if data:
                            channel.sendall(data)
                        else:
                            channel.shutdown_write()
                            selector.unregister(connection)
                    else:
                        readable.reset()
                        if channel.recv_ready():
                            connection.sendall(channel.recv(_CHUNK_BYTES))
                            if channel.recv_ready() or channel.eof_received or channel.closed:
                                readable.set()
                        elif channel.eof_received or channel.closed:
                            return
    except (OSError, EOFError, paramiko.SSHException):
        return
