"""One SSH connection to a rented server: its key pinned, everything bounded.

A server that shows the host key which the order's start-up script put there is known from its first byte.
Where the image kept a key of its own, the nonce that the market was given for this order is read back, and
only then may the caller pin the key; until then the session runs nothing else. From then on a different key
ends the trust before anything is sent. Whoever sits between cannot pass the nonce on: our login is signed
for one connection, so that it opens no other. No agent, no keys and no
known_hosts of the user are used, nothing is forwarded, and the user's SSH configuration is not read.

What the library leaves unbounded is bounded here: the wait for a command's acceptance, a peer that
stops acknowledging, and errors of any type that hostile bytes raise in the library's own thread.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
from clorefleet.node.reach import open_socket
from clorefleet.node.readable import Readable

CONNECT_TIMEOUT_S = 10.0
BANNER_TIMEOUT_S = 15.0
AUTH_TIMEOUT_S = 15.0
KEEPALIVE_S = 15
COMMAND_TIMEOUT_S = 30.0
OUTPUT_MAX_BYTES = 256 * 1024
FILE_MAX_BYTES = 4 * 1024 * 1024
NONCE_MAX_BYTES = 4096
SFTP_WINDOW_BYTES = 1 << 26
SFTP_PACKET_BYTES = 1 << 15
SFTP_STEP_S_MAX = 60.0
"""For one answer of the server."""
END_OF_OUTPUT_GRACE_S = 1.0
"""Output may come after the exit status; a child in the background may also hold it open for ever."""
_CHUNK_BYTES = 32 * 1024
_POLL_S = 0.25
_HOME_MAX_CHARS = 200
USER = "root"
"""The market's containers know no other."""
_NONCE = re.compile(r"[0-9a-f]{32}")
# Whether an SSH session inherits the order's environment differs between images, so all places are read:
# the container's first process, this shell, and the file that the order's start-up script leaves.
_NONCE_SCRIPT = r"""
tr '\0' '\n' < /proc/1/environ 2>/dev/null | sed -n 's/^CLOREFLEET_NONCE=//p' | head -n 1
printf '%s\n' "$CLOREFLEET_NONCE"
for f in "$HOME/.clorefleet-nonce" /root/.clorefleet-nonce; do head -c 100 "$f" 2>/dev/null; echo; done
"""
# A cut connection looks like the end of the input here, so the length decides whether all of it came.
_PUT_SCRIPT = r"""
umask 077
t="$1.$$.tmp"
mkdir -p "$(dirname "$1")" && cat > "$t" && [ "$(wc -c < "$t")" -eq "$3" ] \
  && chmod "$2" "$t" && mv -f "$t" "$1" || { rm -f "$t"; exit 1; }
"""
_LIBRARY_LOG = "clorefleet.node.ssh"
# It quotes what servers send, uncleaned (G1, G3); every trouble is in a typed error as well.
logging.getLogger(_LIBRARY_LOG).disabled = True
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
"""GCM first: one pass in place of a cipher and a digest, measured 1.5 times as fast through a tunnel."""
_DIGESTS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)
_HOST_KEY_ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}
"""A key's type names its signature algorithm, except for RSA (RFC 8332)."""


def shell(script: str, *words: str) -> tuple[str, ...]:
    """The command that runs a script of ours; `words` are its $1, $2..., quoted on the way."""
    return ("sh", "-c", script, "sh", *words)


@dataclass(frozen=True, slots=True)
class CommandResult:
    exit_status: int
    """-1 when the command ended without one (killed by a signal)."""
    stdout: str
    stderr: str

    @property
    def is_ok(self) -> bool:
        return self.exit_status == 0


class NodeSession:
    """Open with `connect`; a context manager that closes. Thread-safe: each command has its own channel."""

    def __init__(self, transport: paramiko.Transport, host_key: str, *, is_trusted: bool) -> None:
        self._transport = transport
        self.is_trusted = is_trusted
        """The server proved that it is ours: by its key, or by the nonce."""
        self._home = ""
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
        expected_host_key: str = "",
        allow_loopback: bool = False,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> NodeSession:
        """Log in as root with the lease's key; the market's relay names are tried in turn.

        `pinned_host_key` must be shown. `expected_host_key` is what the server was given: showing it makes
        the session trusted, showing another leaves that to `check_nonce`.

        Raises:
            HostKeyChanged: the server has another key than the pinned one. Nothing was sent to it.
            ForbiddenAddress: the address is one that no rented server has.
            NodeUnreachable: no name answered, or the login was refused (it may not be ready yet).
            NodeError: the lease's own key cannot be read.
        """
        try:
            key = paramiko.Ed25519Key.from_private_key_file(str(private_key_file))
        except (OSError, ValueError, paramiko.SSHException) as error:
            raise NodeError(
                "The lease's key on this machine cannot be read.", remedy="Its server is given back."
            ) from error
        trouble: NodeUnreachable | None = None
        for host in address.hosts:
            try:
                return cls._connect_one(
                    host,
                    address.port,
                    key,
                    pinned=pinned_host_key,
                    expected=expected_host_key,
                    allow_loopback=allow_loopback,
                    timeout_s=timeout_s,
                )
            except NodeUnreachable as error:
                trouble = error
        raise trouble or NodeUnreachable("The market gave no address for the server.")

    @classmethod
    def _connect_one(
        cls,
        host: str,
        port: int,
        key: paramiko.PKey,
        *,
        pinned: str,
        expected: str,
        allow_loopback: bool,
        timeout_s: float,
    ) -> NodeSession:
        where = clean_line(f"{host}:{port}", max_chars=120)
        transport: paramiko.Transport | None = None
        try:
            connection = open_socket(host, port, allow_loopback=allow_loopback, timeout_s=timeout_s)
            transport = paramiko.Transport(connection)
            transport.set_log_channel(_LIBRARY_LOG)
            host_key = _prove_host_key(transport, where, pinned)
            transport.auth_publickey(USER, key)
            transport.set_keepalive(KEEPALIVE_S)
            is_expected = bool(expected) and hmac.compare_digest(host_key, expected)
            return cls(transport, host_key, is_trusted=bool(pinned) or is_expected)
        except NodeError:
            _close(transport)
            raise
        except paramiko.AuthenticationException as error:
            _close(transport)
            raise NodeUnreachable(f"{where} refuses the login so far.") from error
        except Exception as error:
            # The library hands on whatever hostile bytes made its own thread raise.
            _close(transport)
            why = clean_line(error) or type(error).__name__
            raise NodeUnreachable(f"{where} does not answer: {why}") from error

    def check_nonce(self, nonce: str) -> None:
        """Prove that this is the machine that the market started for our order.

        Raises:
            WrongNonce: it does not know the nonce. Nothing else was sent to it.
            NodeUnreachable: the connection broke, or the start-up script has not run yet.
        """
        out = self._run(shell(_NONCE_SCRIPT), COMMAND_TIMEOUT_S, NONCE_MAX_BYTES, b"")[1]
        # Half a nonce is none: the start-up script may be writing it right now.
        found = [word for word in out.decode("ascii", "replace").split() if _NONCE.fullmatch(word)]
        if not found:
            raise NodeUnreachable("The server's start-up has not finished: it does not know its nonce yet.")
        if not any(hmac.compare_digest(word, nonce) for word in found):
            raise WrongNonce(
                "The machine that answers is not the one that the order was given to.",
                remedy="It is given back and left out of later plans.",
            )
        self.is_trusted = True

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
        status, out, err = self.run_raw(
            command, timeout_s=timeout_s, max_output_bytes=max_output_bytes, stdin=stdin
        )
        return CommandResult(status, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))

    def run_raw(
        self,
        command: Sequence[str],
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
        max_output_bytes: int = OUTPUT_MAX_BYTES,
        stdin: bytes = b"",
    ) -> tuple[int, bytes, bytes]:
        """As `run`: exit status, output and errors as bytes."""
        if not self.is_trusted:
            raise RuntimeError("a session without a pinned key runs nothing before its nonce was checked")
        return self._run(command, timeout_s, max_output_bytes, stdin)

    def _run(
        self, command: Sequence[str], timeout_s: float, max_output_bytes: int, stdin: bytes
    ) -> tuple[int, bytes, bytes]:
        deadline_s = time.monotonic() + timeout_s
        with self._channel(timeout_s) as channel:
            # The library waits without limit for the server to accept the command; closing wakes it (F4).
            alarm = threading.Timer(timeout_s, close_channel, (channel,))
            alarm.daemon = True
            alarm.start()
            try:
                channel.settimeout(timeout_s)
                with Readable(channel) as readable:
                    channel.exec_command(shlex.join(command))
                    alarm.cancel()
                    return _talk(channel, readable, stdin, deadline_s, max_output_bytes)
            except (paramiko.SSHException, OSError, EOFError) as error:
                raise NodeUnreachable(
                    f"The server stopped answering: {clean_line(error) or type(error).__name__}"
                ) from error
            finally:
                alarm.cancel()

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
        """Put a small file in place in one step: readers see the old one or the whole new one.

        Raises:
            CommandFailed: the node cannot hold it, or not all of it arrived.
        """
        if len(data) > FILE_MAX_BYTES:
            raise ValueError(f"{len(data)} bytes are no small file")
        self.run_ok(shell(_PUT_SCRIPT, path, f"{mode:o}", str(len(data))), stdin=data)

    def read_file(self, path: str, *, max_bytes: int = OUTPUT_MAX_BYTES) -> bytes:
        """A small file, whole.

        Raises:
            CommandFailed: it is not there.
            OutputTooLarge: it has more than `max_bytes`.
        """
        status, out, err = self.run_raw(
            ("head", "-c", str(max_bytes + 1), "--", path), max_output_bytes=max_bytes + 1 + _CHUNK_BYTES
        )
        if status != 0:
            tail = clean_line(err.decode("utf-8", "replace"))
            raise CommandFailed(f"A file cannot be read on the server: {tail}", exit_status=status)
        if len(out) > max_bytes:
            raise OutputTooLarge(f"A file on the server has more than {max_bytes:,} bytes.")
        return out

    def append_file(self, path: str, offset: int, read: Callable[[], bytes]) -> Iterator[int]:
        """Write what `read` gives to a file of any size, from `offset` on; yields the bytes of each step.

        By SFTP, without waiting for each acknowledgement; an error of any step is raised at the latest when
        the file is closed. The file is cut off at `offset` first.

        Raises:
            NodeUnreachable: the connection broke, or the server refuses to write.
        """
        if not self.is_trusted:
            raise RuntimeError("a session without a pinned key sends nothing before its nonce was checked")
        try:
            client = paramiko.SFTPClient.from_transport(
                self._transport, window_size=SFTP_WINDOW_BYTES, max_packet_size=SFTP_PACKET_BYTES
            )
            if client is None:
                raise NodeUnreachable("The server does no SFTP.")
            with client:
                channel = client.get_channel()
                if channel is not None:
                    channel.settimeout(SFTP_STEP_S_MAX)
                with client.open(path, "r+b" if offset else "wb") as file:
                    file.truncate(offset)
                    file.seek(offset)
                    file.set_pipelined(True)
                    while data := read():
                        file.write(data)
                        yield len(data)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise NodeUnreachable(
                f"A file could not be sent: {clean_line(error) or type(error).__name__}"
            ) from error

    def home(self) -> str:
        """The login's home folder: an absolute path of plain characters, asked for once.

        Raises:
            CommandFailed: the server names something else.
        """
        if not self._home:
            found = self.run_ok(shell('printf %s "$HOME"'))
            is_plain = re.fullmatch(r"(/[A-Za-z0-9._-]+)+", found) and "/.." not in found
            if not is_plain or len(found) > _HOME_MAX_CHARS:
                raise CommandFailed(
                    f"The server's home folder is odd: “{clean_line(found, max_chars=60)}”.", exit_status=0
                )
            self._home = found
        return self._home

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

    @contextlib.contextmanager
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
            close_channel(channel)

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


def _prove_host_key(transport: paramiko.Transport, where: str, pinned: str) -> str:
    """Exchange keys and return the server's, before anything of ours but the version was sent.

    Raises:
        HostKeyChanged: it is not the pinned one.
        paramiko.SSHException: no exchange, and no key was pinned.
    """
    options = transport.get_security_options()
    options.ciphers, options.digests = _CIPHERS, _DIGESTS
    transport.banner_timeout = BANNER_TIMEOUT_S
    transport.auth_timeout = AUTH_TIMEOUT_S
    if pinned:
        # Ask for the pinned kind alone: a server must not slip by with a second key.
        kind = pinned.split(" ", 1)[0]
        options.key_types = _HOST_KEY_ALGORITHMS.get(kind, (kind,))
    try:
        transport.start_client(timeout=BANNER_TIMEOUT_S)
        # Raises where the exchange did not end in time, which `start_client` does not.
        shown = transport.get_remote_server_key()
    except paramiko.ssh_exception.IncompatiblePeer as error:
        if not pinned:
            raise
        raise HostKeyChanged(
            f"The server at {where} no longer has its host key ({clean_line(error)}).",
            remedy="It is given back and left out of later plans.",
        ) from error
    host_key = f"{shown.get_name()} {shown.get_base64()}"
    if pinned and not hmac.compare_digest(host_key, pinned):
        raise HostKeyChanged(
            f"The server at {where} shows another host key than before.",
            remedy="It is given back and left out of later plans.",
        )
    return host_key


def _talk(
    channel: paramiko.Channel, readable: Readable, stdin: bytes, deadline_s: float, max_output_bytes: int
) -> tuple[int, bytes, bytes]:
    """Feed and drain a channel until its command ends, inside both bounds: status, output, errors."""
    out, err = bytearray(), bytearray()
    if stdin:
        threading.Thread(target=_feed, args=(channel, stdin), daemon=True).start()
    else:
        channel.shutdown_write()
    output_until_s = deadline_s
    while True:
        readable.reset()
        if _drain(channel, out, err):
            if len(out) + len(err) > max_output_bytes:
                raise OutputTooLarge(f"A command printed more than {max_output_bytes:,} bytes on the server.")
            continue
        now_s = time.monotonic()
        has_status = channel.exit_status_ready()
        if has_status and (channel.eof_received or channel.closed or now_s > output_until_s):
            break
        if now_s > deadline_s:
            raise NodeUnreachable("A command took longer than its time limit on the server.")
        if has_status:
            output_until_s = min(output_until_s, now_s + END_OF_OUTPUT_GRACE_S)
        if channel.eof_received:
            channel.status_event.wait(min(_POLL_S, deadline_s - now_s))
        else:
            readable.wait(min(_POLL_S, deadline_s - now_s))
    status = channel.recv_exit_status()
    if status == -1 and not channel.eof_received:
        # Half an answer must never be read as a whole one.
        raise NodeUnreachable("The connection to the server broke while a command ran.")
    return status, bytes(out), bytes(err)


def _drain(channel: paramiko.Channel, out: bytearray, err: bytearray) -> bool:
    """Take what is there; false when nothing was."""
    before = len(out) + len(err)
    if channel.recv_ready():
        out += channel.recv(_CHUNK_BYTES)
    if channel.recv_stderr_ready():
        err += channel.recv_stderr(_CHUNK_BYTES)
    return len(out) + len(err) > before


def _feed(channel: paramiko.Channel, stdin: bytes) -> None:
    try:
        if stdin:
            channel.sendall(stdin)
        channel.shutdown_write()
    except (paramiko.SSHException, OSError, EOFError):
        return  # the reading side sees the broken channel and says so


def close_channel(channel: paramiko.Channel) -> None:
    """Saying goodbye on a broken connection is no trouble of its own."""
    with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
        channel.close()


def _close(transport: paramiko.Transport | None) -> None:
    if transport is not None:
        transport.close()
