"""A rented server that misbehaves by a script, and remembers everything that it was sent.

It is honest in all that the script does not name, so that an attack comes where it is meant to: before the
login, at the nonce, at the probe, in a job's report, or behind the tunnel.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import paramiko

from clorefleet.domain.order import SshAddress
from tests.node.peers import listening, send

Answer = Callable[["HostileHost", paramiko.Channel], None]

HONEST_PROBE = """
==gpus==
NVIDIA GeForce RTX 4090, 24564, 580.95.05, 8.9, 4, 16, 4

status 0
==header==
| NVIDIA-SMI 580.95.05    Driver Version: 580.95.05    CUDA Version: 13.0     |
==cores==
128
==cpu==
AMD EPYC 7702 64-Core Processor
==ram==
549755813888
==disk==
2199023255552
==shm==
68719476736
==python==
Python 3.11.2
==end==
"""
MARK = "--clorefleet--"


def kind_of(command: str) -> str:
    """Which of our commands this is."""
    for mark, kind in (
        ("CLOREFLEET_NONCE", "nonce"),
        ("nvidia-smi", "probe"),
        ("measure.py", "measure"),
        ('t="$1.$$.tmp"', "put"),
        ('cat > "$d/script"', "start"),
        (MARK, "read"),
        ('printf %s "$HOME"', "home"),
        ("llama-server", "engine"),
    ):
        if mark in command:
            return kind
    return "other"


def say(text: str | bytes, status: int = 0) -> Answer:
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return lambda _, channel: send(channel, data, status)


def read_all(channel: paramiko.Channel) -> bytes:
    taken = b""
    while chunk := channel.recv(65536):
        taken += chunk
    return taken


def _take(text: str) -> Answer:
    def answer(host: HostileHost, channel: paramiko.Channel) -> None:
        host.received += read_all(channel)
        send(channel, text.encode())

    return answer


HONEST: dict[str, Answer] = {
    "nonce": lambda host, channel: send(channel, f"\n{host.nonce}\n".encode()),
    "home": say("/root"),
    "probe": say(HONEST_PROBE),
    "measure": say('{"memory_gb_s": 120, "skipped": ["gpu: no torch"]}'),
    "put": _take(""),
    "start": _take("started\n"),
    "read": say(f"running\n{MARK}\n\n{MARK}\nloading\n"),
    "engine": say("version: 7000\n"),
    "other": say(""),
}


@dataclass
class Script:
    """What a server does that an honest one does not."""

    answers: Mapping[str, Answer] = field(default_factory=dict)
    """By kind of command."""
    tunnel: Callable[[paramiko.Channel], None] | None = None
    """What stands behind the engine's port; None: nothing."""
    host_key: paramiko.PKey | None = None
    """Shown instead of the pinned one."""
    asks_for: str = "publickey"
    """The only ways to log in that it offers."""
    greet: Callable[[socket.socket], None] | None = None
    """Instead of SSH."""
    after_login: Callable[[paramiko.Transport], Any] | None = None


@dataclass
class HostileHost:
    script: Script
    host_key: paramiko.PKey
    nonce: str
    received: bytes = b""
    """Everything that came: commands, input, user names, whatever was offered for a login."""
    kinds: list[str] = field(default_factory=list)
    """Of the commands, in their order."""
    logins: list[str] = field(default_factory=list)
    """Ways of logging in that were tried."""
    opened: list[str] = field(default_factory=list)
    """Channels that the client let it open on the client's side."""

    @contextmanager
    def serve(self) -> Iterator[SshAddress]:
        transports: list[paramiko.Transport] = []

        def greet(connection: socket.socket) -> None:
            if self.script.greet is not None:
                self.script.greet(connection)
                return
            transport = paramiko.Transport(connection)
            transports.append(transport)
            transport.add_server_key(self.script.host_key or self.host_key)
            with contextlib.suppress(Exception):
                transport.start_server(server=_Door(self, transport))

        with listening(greet) as address:
            yield address
        for transport in transports:
            transport.close()


class _Door(paramiko.ServerInterface):
    def __init__(self, host: HostileHost, transport: paramiko.Transport) -> None:
        self._host, self._transport = host, transport

    def get_allowed_auths(self, username: str) -> str:
        return self._host.script.asks_for

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self._host.logins.append("publickey")
        self._host.received += username.encode() + key.asbytes()
        return paramiko.AUTH_SUCCESSFUL if "publickey" in self._host.script.asks_for else paramiko.AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        self._host.logins.append("password")
        self._host.received += password.encode()
        return paramiko.AUTH_SUCCESSFUL

    def check_auth_interactive(self, username: str, submethods: str) -> paramiko.InteractiveQuery:
        self._host.logins.append("keyboard-interactive")
        return paramiko.InteractiveQuery("Password", "", ("Password: ", False))

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        self._host.received += "".join(responses).encode()
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if self._host.script.after_login is not None:
            after, self._host.script.after_login = self._host.script.after_login, None
            threading.Thread(target=_quietly, args=(self._open, after), daemon=True).start()
        return paramiko.OPEN_SUCCEEDED

    def _open(self, after: Callable[[paramiko.Transport], Any]) -> None:
        channel = after(self._transport)  # raises where the client refuses
        self._host.opened.append(channel.get_name())

    def check_channel_env_request(self, channel: paramiko.Channel, name: bytes, value: bytes) -> bool:
        self._host.received += name + b"=" + value
        return True

    def check_channel_direct_tcpip_request(self, chanid: int, origin: Any, destination: Any) -> int:
        tunnel = self._host.script.tunnel
        if tunnel is None:
            return paramiko.OPEN_FAILED_CONNECT_FAILED

        def carry() -> None:
            while (channel := self._transport.accept(5)) is not None:
                if channel.get_id() == chanid:  # others are those of commands
                    _quietly(tunnel, channel)
                    return

        threading.Thread(target=carry, daemon=True).start()
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        text = command.decode("utf-8", "replace")
        kind = kind_of(text)
        self._host.received += command + b"\n"
        self._host.kinds.append(kind)
        answer = self._host.script.answers.get(kind, HONEST[kind])
        threading.Timer(0.02, _quietly, (answer, self._host, channel)).start()
        return True


def _quietly(act: Callable[..., Any], *words: Any) -> None:
    with contextlib.suppress(Exception):  # the client has had enough of us
        act(*words)
