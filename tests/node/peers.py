"""SSH servers that misbehave on purpose: each one does a single thing that no honest server does."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import paramiko

from clorefleet.domain.order import SshAddress

Answer = Callable[[paramiko.Channel], None]


class _Server(paramiko.ServerInterface):
    def __init__(self, answer: Answer | None) -> None:
        self._answer = answer

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if self._answer is None:
            threading.Event().wait(5)  # neither yes nor no, for longer than the test waits
            return False
        # Begins when the yes to the request has left.
        threading.Timer(0.02, _quietly, (self._answer, channel)).start()
        return True


def _quietly(answer: Answer, channel: paramiko.Channel) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # the client has had enough
        answer(channel)


@contextmanager
def peer(host_key: paramiko.PKey, answer: Answer | None) -> Iterator[SshAddress]:
    """An SSH server that lets everybody in and answers each command by `answer`; None: not at all."""
    transports: list[paramiko.Transport] = []

    def greet(connection: socket.socket) -> None:
        transport = paramiko.Transport(connection)
        transports.append(transport)
        transport.add_server_key(host_key)
        with contextlib.suppress(Exception):  # clients that turn away are the point of some tests
            transport.start_server(server=_Server(answer))

    with listening(greet) as address:
        yield address
    for transport in transports:
        transport.close()


@contextmanager
def listening(greet: Callable[[socket.socket], None]) -> Iterator[SshAddress]:
    """A TCP port whose connections are given to `greet`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    greet(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield SshAddress(("127.0.0.1",), listener.getsockname()[1])
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def send(channel: paramiko.Channel, data: bytes, status: int = 0) -> None:
    """What an honest server does with a command's output."""
    channel.sendall(data)
    channel.send_exit_status(status)
    channel.close()
