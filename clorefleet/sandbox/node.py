"""One simulated rented server as seen from outside: an SSH server in front of a node's processes.

It lets in only `root`, with the order's own key or password. It runs commands with the container's
environment, serves files below the node's root, and forwards TCP to loopback ports that processes of the
node itself have opened. Reverse forwards, agents and X11 are refused.

Like OpenSSH it ends a command's channel when the command has ended *and* nobody holds its output any more:
a background process that was started without redirection keeps the channel open.
"""

# SFTP names are bytes that need not be text, and pathlib takes only text.
# ruff: noqa: PTH104, PTH105, PTH106, PTH107, PTH114, PTH115, PTH211

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hmac
import logging
import os
import posixpath
import pty
import shutil
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from clorefleet.sandbox.furnish import HIDDEN_PLACE
from clorefleet.sandbox.isolation import Launch, NodeSystem, owns_listener

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
USER = "root"
LOGIN_TIMEOUT_S = 30
_CHUNK_BYTES = 64 * 1024
_LINKS_MAX = 40
_FORWARD_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
_SIGNAL_BASE = 128


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the order allows in; with neither, nobody."""

    public_key: asyncssh.SSHKey | None
    password: str | None


def credentials_of(ssh_key: str | None, ssh_password: str | None) -> Credentials:
    """An unreadable key lets nobody in, as in a container whose authorized_keys is garbage."""
    key = None
    if ssh_key:
        with contextlib.suppress(asyncssh.KeyImportError):
            key = asyncssh.import_public_key(ssh_key)
    return Credentials(public_key=key, password=ssh_password or None)


def load_or_make_host_key(file: Path) -> asyncssh.SSHKey:
    """The host key of this node: made at its first start, the same ever after."""
    if file.exists():
        return asyncssh.read_private_key(str(file))
    key = asyncssh.generate_private_key("ssh-ed25519")
    draft = file.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_bytes(key.export_private_key())
    draft.replace(file)
    return key


class NodeServer:
    """The SSH server of one node."""

    def __init__(self, system: NodeSystem, *, host_key: asyncssh.SSHKey, credentials: Credentials) -> None:
        self._system = system
        self._host_key = host_key
        self._credentials = credentials
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._connections: set[asyncssh.SSHServerConnection] = set()

    async def listen(self, port: int) -> int:
        """Open `port` on loopback (0 = any); returns the port."""
        asyncssh.set_log_level(logging.WARNING)  # below that it logs each command, and with it secrets
        self._acceptor = await asyncssh.create_server(
            self._gate,
            LOOPBACK,
            port,
            server_host_keys=[self._host_key],
            process_factory=self._run,
            sftp_factory=self._files,
            allow_scp=True,
            agent_forwarding=False,
            x11_forwarding=False,
            line_editor=False,
            login_timeout=LOGIN_TIMEOUT_S,
            encoding=None,
            reuse_address=True,
        )
        return int(self._acceptor.get_port())

    async def close(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
            await self._acceptor.wait_closed()
            self._acceptor = None
        for connection in list(self._connections):
            connection.abort()

    def _gate(self) -> asyncssh.SSHServer:
        return _Gate(self._credentials, self._connections, self._may_reach)

    def _files(self, channel: asyncssh.SSHServerChannel[bytes]) -> asyncssh.SFTPServer:
        return NodeFiles(channel, self._system.root)

    def _may_reach(self, host: str, port: int) -> bool:
        return host in _FORWARD_HOSTS and owns_listener(self._system.pids(), port)

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        command = process.command
        words = [] if command is None else [command]
        launch = self._system.launch(["/bin/sh", f"{self._system.prefix}{HIDDEN_PLACE}/login", *words])
        try:
            if process.get_terminal_type():
                status = await _with_terminal(process, launch)
            else:
                status = await _with_pipes(process, launch)
            if status < 0:
                status = _SIGNAL_BASE - status
            process.exit(status)
        except (asyncssh.Error, OSError) as error:
            log.debug("node_command_cut reason=%s", error)
            process.close()


class _Gate(asyncssh.SSHServer):
    """Who may log in and what may be forwarded."""

    def __init__(
        self,
        credentials: Credentials,
        connections: set[asyncssh.SSHServerConnection],
        may_reach: Callable[[str, int], bool],
    ) -> None:
        self._credentials = credentials
        self._connections = connections
        self._may_reach = may_reach
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        # asyncio sets TCP_NODELAY on its sockets, without which each command would wait 40 ms for an ACK.
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._connections.discard(self._connection)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return self._credentials.public_key is not None

    def password_auth_supported(self) -> bool:
        return self._credentials.password is not None

    def kbdint_auth_supported(self) -> bool:
        return False

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        known = self._credentials.public_key
        return username == USER and known is not None and key.public_data == known.public_data

    def validate_password(self, username: str, password: str) -> bool:
        known = self._credentials.password
        return (
            username == USER and known is not None and hmac.compare_digest(password.encode(), known.encode())
        )

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        if self._may_reach(dest_host, dest_port):
            return True
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "Connection refused")

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return False

    def unix_connection_requested(self, dest_path: str) -> bool:
        return False

    def unix_server_requested(self, listen_path: str) -> bool:
        return False


# -- commands


async def _with_pipes(process: asyncssh.SSHServerProcess[bytes], launch: Launch) -> int:
    child = await asyncio.create_subprocess_exec(
        *launch.argv,
        env=launch.env,
        cwd=launch.cwd,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    if child.stdin is None or child.stdout is None or child.stderr is None:
        raise OSError(errno.EPIPE, "the command has no pipes")
    feeding = asyncio.create_task(_feed(process, child.stdin))
    try:
        await asyncio.gather(_drain(child.stdout, process.stdout), _drain(child.stderr, process.stderr))
        return await child.wait()
    finally:
        feeding.cancel()


async def _with_terminal(process: asyncssh.SSHServerProcess[bytes], launch: Launch) -> int:
    """The terminal is the host's; `setsid --ctty` makes it the command's controlling terminal."""
    ours, theirs = pty.openpty()
    try:
        columns, rows = process.get_terminal_size()[:2]
        _set_size(theirs, columns, rows)
        setsid = [found, "--ctty", "--wait"] if (found := shutil.which("setsid")) else []
        child = await asyncio.create_subprocess_exec(
            *setsid,
            *launch.argv,
            env={**launch.env, "TERM": process.get_terminal_type() or "dumb"},
            cwd=launch.cwd,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    screen, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(ours), "rb", 0)
    )
    keys, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(ours, "wb", 0))
    writer = asyncio.StreamWriter(keys, protocol, None, loop)
    feeding = asyncio.create_task(_feed(process, writer))
    try:
        await _drain(reader, process.stdout)
        return await child.wait()
    finally:
        feeding.cancel()
        screen.close()
        keys.abort()


async def _feed(process: asyncssh.SSHServerProcess[bytes], target: asyncio.StreamWriter) -> None:
    """The client's input to the command, until either side has enough."""
    with contextlib.suppress(OSError, asyncssh.Error):
        while True:
            try:
                data = await process.stdin.read(_CHUNK_BYTES)
            except asyncssh.TerminalSizeChanged as change:
                _set_size(target.get_extra_info("pipe").fileno(), change.width, change.height)
                continue
            except (asyncssh.SignalReceived, asyncssh.BreakReceived):
                continue
            if not data:
                break
            target.write(data)
            await target.drain()
    target.close()


async def _drain(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    while True:
        try:
            data = await source.read(_CHUNK_BYTES)
        except OSError:  # a terminal whose last user is gone answers EIO
            return
        if not data:
            return
        target.write(data)
        await target.drain()


def _set_size(terminal: int, columns: int, rows: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


# -- files


def resolve_below(root: bytes, path: bytes, *, follow_last: bool = True) -> bytes:
    """`path` as a process with root folder `root` would find it; links are followed inside `root` only.

    Raises:
        OSError: (ELOOP) too many links.
    """
    pending = path.split(b"/")[::-1]
    done: list[bytes] = []
    links = 0
    while pending:
        part = pending.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            del done[-1:]
            continue
        target = None
        if pending or follow_last:
            with contextlib.suppress(OSError):
                target = os.readlink(b"/".join([root, *done, part]))
        if target is None:
            done.append(part)
            continue
        links += 1
        if links > _LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if target.startswith(b"/"):
            done.clear()
        pending.extend(target.split(b"/")[::-1])
    return b"/".join([root, *done])


class NodeFiles(asyncssh.SFTPServer):
    """SFTP below the node's root.

    asyncssh's own `chroot` follows links that point out of it; here every name is resolved inside the root
    first. A program on the node that swaps a folder for a link within that instant could win; nodes run the
    user's own commands, and everything they may do is done with the user's rights anyway.
    """

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], root: Path) -> None:
        super().__init__(channel)
        self._root = os.fsencode(root)

    def map_path(self, path: bytes) -> bytes:
        return resolve_below(self._root, posixpath.join(b"/root", path))

    def _itself(self, path: bytes) -> bytes:
        """The name itself, even if it is a link."""
        return resolve_below(self._root, posixpath.join(b"/root", path), follow_last=False)

    def reverse_map_path(self, path: bytes) -> bytes:
        return path.removeprefix(self._root) or b"/"

    def realpath(self, path: bytes) -> bytes:
        return self.reverse_map_path(self.map_path(path))

    def lstat(self, path: bytes) -> Any:
        return os.lstat(self._itself(path))

    def remove(self, path: bytes) -> None:
        os.remove(self._itself(path))

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._itself(path))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self._itself(path))

    def symlink(self, oldpath: bytes, newpath: bytes) -> None:
        os.symlink(oldpath, self._itself(newpath))

    def link(self, oldpath: bytes, newpath: bytes) -> None:
        os.link(self._itself(oldpath), self._itself(newpath), follow_symlinks=False)

    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        source, target = self._itself(oldpath), self._itself(newpath)
        if os.path.lexists(target):
            raise asyncssh.SFTPFileAlreadyExists("File already exists")
        os.rename(source, target)

    def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        os.replace(self._itself(oldpath), self._itself(newpath))

    def lsetstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        if os.path.islink(self._itself(path)):
            return  # a link has no attributes worth setting
        self.setstat(path, attrs)
