"""One SSH connection to a rented server: its key pinned, everything bounded.

First contact has no key to compare with: the connection is made, the nonce that the market was given
for this order is read back, and only then may the caller pin the key. From then on a different key
ends the trust before anything is sent. No agent, no keys and no known_hosts of the user are used, nothing
is forwarded, and the user's SSH configuration is not read.
"""

from __future__ import annotations

import hmac
import ipaddress
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paramiko

from clorefleet.domain.errors import (
    CommandFailed,
    HostKeyChanged,
    NodeError,
    NodeUnreachable,
    OutputTooLarge,
    WrongNonce,
)
from clorefleet.domain.order import SshAddress
from clorefleet.domain.text import clean_line, clean_lines

CONNECT_TIMEOUT_S = 10.0
BANNER_TIMEOUT_S = 15.0
AUTH_TIMEOUT_S = 15.0
KEEPALIVE_S = 15
COMMAND_TIMEOUT_S = 30.0
OUTPUT_MAX_BYTES = 256 * 1024
FILE_MAX_BYTES = 4 * 1024 * 1024
NONCE_MAX_BYTES = 4096
_CHUNK_BYTES = 32 * 1024
_POLL_S = 0.005
USER = "root"
"""The market's containers know no other."""
_NONCE_SCRIPT = (
    "cat /root/.clorefleet-nonce 2>/dev/null && exit 0; "
    "tr '\\0' '\\n' < /proc/1/environ 2>/dev/null | sed -n 's/^CLOREFLEET_NONCE=//p' | head -n1 | grep . "
    '&& exit 0; printf %s "$CLOREFLEET_NONCE"'
)
_PUT_SCRIPT = (
    'umask 077; mkdir -p "$(dirname "$1")" && cat > "$1.tmp" && chmod "$2" "$1.tmp" && mv "$1.tmp" "$1"'
)


@dataclass(frozen=True, slots=True)
class CommandResult:
    exit_status: int
    """-1 when the server sent none (killed by a signal)."""
    stdout: str
    stderr: str

    @property
    def is_ok(self) -> bool:
        return self.exit_status == 0


class NodeSession:
    """Open with `connect`; a context manager that closes. Thread-safe: each command has its own channel."""

    def __init__(self, transport: paramiko.Transport, host_key: str) -> None:
        self._transport = transport
        self.host_key = host_key
        """`ssh-ed25519 AAAA...`, as the server proved it."""

    # -- opening

    @classmethod
    def connect(
        cls,
        address: SshAddress,
        private_key_file: Path,
        *,
        pinned_host_key: str = "",
        allow_loopback: bool = False,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> NodeSession:
        """Log in as root with the lease's key; the market's relay names are tried in turn.

        Raises:
            HostKeyChanged: the server has another key than the pinned one. Nothing was sent to it.
            NodeError: the address is one that no rented server has (loopback, private, link-local).
            NodeUnreachable: no name answered, or the login was refused (it may not be ready yet).
        """
        key = paramiko.Ed25519Key.from_private_key_file(str(private_key_file))
        trouble: NodeUnreachable | None = None
        for host in address.hosts:
            try:
                return cls._connect_one(host, address.port, key, pinned_host_key, allow_loopback, timeout_s)
            except NodeUnreachable as error:
                trouble = error
        raise trouble or NodeUnreachable("The market gave no address for the server.")

    @classmethod
    def _connect_one(
        cls,
        host: str,
        port: int,
        key: paramiko.PKey,
        pinned: str,
        allow_loopback: bool,
        timeout_s: float,
    ) -> NodeSession:
        where = clean_line(f"{host}:{port}", max_chars=120)
        transport: paramiko.Transport | None = None
        try:
            connection = _open_socket(host, port, allow_loopback=allow_loopback, timeout_s=timeout_s)
            transport = paramiko.Transport(connection)
            transport.banner_timeout = BANNER_TIMEOUT_S
            transport.auth_timeout = AUTH_TIMEOUT_S
            if pinned:
                # Ask for the pinned kind alone: a server must not slip by with a second key.
                options = transport.get_security_options()
                options.key_types = (pinned.split(" ", 1)[0],)
            transport.start_client(timeout=BANNER_TIMEOUT_S)
            shown = transport.get_remote_server_key()
            host_key = f"{shown.get_name()} {shown.get_base64()}"
            if pinned and not hmac.compare_digest(host_key, pinned):
                raise HostKeyChanged(
                    f"The server at {where} shows another host key than before.",
                    remedy="It is given back and left out of later plans.",
                )
            transport.auth_publickey(USER, key)
            transport.set_keepalive(KEEPALIVE_S)
            return cls(transport, host_key)
        except paramiko.AuthenticationException as error:
            _close(transport)
            raise NodeUnreachable(f"{where} refuses the login so far.") from error
        except paramiko.ssh_exception.IncompatiblePeer as error:
            _close(transport)
            if pinned:
                raise HostKeyChanged(
                    f"The server at {where} no longer has its host key ({clean_line(error)})."
                ) from error
            raise NodeUnreachable(f"{where} speaks no SSH that we do: {clean_line(error)}") from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            _close(transport)
            why = clean_line(error) or type(error).__name__
            raise NodeUnreachable(f"{where} does not answer: {why}") from error
        except NodeError:
            _close(transport)
            raise

    def check_nonce(self, nonce: str) -> None:
        """Prove that this is the machine that the market started for our order.

        Raises:
            WrongNonce: it does not know the nonce. Nothing else was sent to it.
            NodeUnreachable: the connection broke, or the start-up script has not run yet.
        """
        result = self.run(["sh", "-c", _NONCE_SCRIPT], max_output_bytes=NONCE_MAX_BYTES)
        found = result.stdout.strip()
        if not found:
            raise NodeUnreachable("The server's start-up has not finished: it does not know its nonce yet.")
        if not hmac.compare_digest(found.encode(), nonce.encode()):
            raise WrongNonce(
                "The machine that answers is not the one that the order was given to.",
                remedy="It is given back and left out of later plans.",
            )

    # -- working

    def run(
        self,
        command: Sequence[str],
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
        max_output_bytes: int = OUTPUT_MAX_BYTES,
        stdin: bytes = b"",
    ) -> CommandResult:
        """Run one command; each word is quoted for the server's shell.

        Raises:
            OutputTooLarge: it printed more than `max_output_bytes`; its channel was closed.
            NodeUnreachable: it took longer than `timeout_s`, or the connection broke.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._channel(timeout_s) as channel:
            try:
                channel.settimeout(timeout_s)
                channel.exec_command(shlex.join(command))
                return _talk(channel, stdin, deadline_s, max_output_bytes)
            except (paramiko.SSHException, OSError, EOFError) as error:
                raise NodeUnreachable(
                    f"The server stopped answering: {clean_line(error) or type(error).__name__}"
                ) from error

    def run_ok(
        self,
        command: Sequence[str],
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
        max_output_bytes: int = OUTPUT_MAX_BYTES,
        stdin: bytes = b"",
    ) -> str:
        """The standard output of a command that must succeed.

        Raises:
            CommandFailed: it ended with another status than 0.
        """
        result = self.run(command, timeout_s=timeout_s, max_output_bytes=max_output_bytes, stdin=stdin)
        if not result.is_ok:
            tail = " ".join(clean_lines(result.stderr or result.stdout, max_lines=3))
            raise CommandFailed(
                f"`{clean_line(command[0], max_chars=60)}` failed on the server "
                f"(status {result.exit_status}): {tail}",
                exit_status=result.exit_status,
                output_tail=tail,
            )
        return result.stdout

    def write_file(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Put a small file in place in one step: readers see the old one or the new one."""
        if len(data) > FILE_MAX_BYTES:
            raise ValueError(f"{len(data)} bytes are no small file")
        self.run_ok(["sh", "-c", _PUT_SCRIPT, "sh", path, f"{mode:o}"], stdin=data)

    def open_tunnel_channel(self, port: int, *, timeout_s: float = CONNECT_TIMEOUT_S) -> paramiko.Channel:
        """A byte stream to a port on the server's loopback.

        Raises:
            NodeUnreachable: nothing listens there, or the connection broke.
        """
        try:
            return self._transport.open_channel(
                "direct-tcpip", ("127.0.0.1", port), ("127.0.0.1", 0), timeout=timeout_s
            )
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise NodeUnreachable(f"Port {port} of the server does not answer.") from error

    @contextmanager
    def _channel(self, timeout_s: float) -> Iterator[paramiko.Channel]:
        try:
            channel = self._transport.open_session(timeout=min(timeout_s, CONNECT_TIMEOUT_S))
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise NodeUnreachable(
                f"The connection to the server broke: {clean_line(error) or type(error).__name__}"
            ) from error
        try:
            yield channel
        finally:
            channel.close()

    # -- ending

    @property
    def is_alive(self) -> bool:
        return self._transport.is_active()

    def close(self) -> None:
        _close(self._transport)

    def __enter__(self) -> NodeSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _talk(channel: paramiko.Channel, stdin: bytes, deadline_s: float, max_output_bytes: int) -> CommandResult:
    """Feed and drain a channel until its command ends, inside both bounds."""
    out, err = bytearray(), bytearray()
    feeder = threading.Thread(target=_feed, args=(channel, stdin), daemon=True)
    feeder.start()
    while True:
        is_idle = True
        if channel.recv_ready():
            out += channel.recv(_CHUNK_BYTES)
            is_idle = False
        if channel.recv_stderr_ready():
            err += channel.recv_stderr(_CHUNK_BYTES)
            is_idle = False
        if len(out) + len(err) > max_output_bytes:
            raise OutputTooLarge(f"A command printed more than {max_output_bytes:,} bytes on the server.")
        if is_idle and (channel.exit_status_ready() or channel.closed):
            if not (channel.recv_ready() or channel.recv_stderr_ready()):
                break
            continue
        if time.monotonic() > deadline_s:
            raise NodeUnreachable("A command took longer than its time limit on the server.")
        if is_idle:
            # Wakes at once when the status comes; otherwise looks again for output.
            channel.status_event.wait(_POLL_S)
    status = channel.recv_exit_status() if channel.exit_status_ready() else -1
    return CommandResult(status, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


def _feed(channel: paramiko.Channel, stdin: bytes) -> None:
    try:
        if stdin:
            channel.sendall(stdin)
        channel.shutdown_write()
    except (paramiko.SSHException, OSError, EOFError):
        return  # the reading side sees the broken channel and says so


def _open_socket(host: str, port: int, *, allow_loopback: bool, timeout_s: float) -> socket.socket:
    """Connect to a name that the market gave, never to our own network unless told (G6).

    Raises:
        NodeError: the name points at this machine or a private network.
        OSError: it does not resolve or answer.
    """
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    trouble: OSError | None = None
    for family, kind, protocol, _, target in infos:
        if not _is_allowed(str(target[0]), allow_loopback=allow_loopback):
            raise NodeError(
                f"The market's address {clean_line(host, max_chars=80)} points at a private network.",
                remedy="No rented server is there; it is given back and left out of later plans.",
            )
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(timeout_s)
        try:
            connection.connect(target)
        except OSError as error:
            connection.close()
            trouble = error
            continue
        # Measured: without it each command waits some 40 ms for a delayed acknowledgement.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    raise trouble or OSError(f"{host} has no address")


def _is_allowed(address: str, *, allow_loopback: bool) -> bool:
    found = ipaddress.ip_address(address.split("%")[0])
    if found.is_loopback:
        return allow_loopback
    return found.is_global and not found.is_multicast


def _close(transport: paramiko.Transport | None) -> None:
    if transport is not None:
        transport.close()
