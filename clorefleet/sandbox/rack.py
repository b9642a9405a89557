"""Where the sandbox's nodes run: one folder, one tree of processes and one SSH server per order.

The market calls `start` when a host has booted and `stop` when an order ends. A stopped node is gone with
its disk, as a container is. A rack that is closed (the sandbox stops) keeps the folders: a later `start` for
the same order finds its disk and its host key, and no processes, like a host that was restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import asyncssh

from clorefleet.sandbox import isolation
from clorefleet.sandbox.assets import Assets, ensure_assets
from clorefleet.sandbox.clock import SandboxClock
from clorefleet.sandbox.furnish import (
    Furnishing,
    furnish,
    has_own_sshd,
    hidden_binds,
    node_environment,
    told_files,
)
from clorefleet.sandbox.isolation import NodeFolder, NodeSystem
from clorefleet.sandbox.node import LOOPBACK, NodeServer, credentials_of, load_or_make_host_key
from clorefleet.sandbox.truth import ServerTruth

log = logging.getLogger(__name__)

STARTUP_WAIT_S = 5.0
HOST_KEY_MAX_BYTES = 16_384
DEFAULT_LOAD_SCALE = 1 / 60
"""A simulated engine that takes 5 minutes to load takes 5 real seconds."""


class Lines(Protocol):
    """Where a node's true line speed is told to; the hub throttles its downloads by it."""

    def connect(self, order_id: int, *, down_mbit_s: float) -> None: ...

    def disconnect(self, order_id: int) -> None: ...


class _Node:
    """What must be undone when a node stops."""

    def __init__(self, folder: NodeFolder, system: NodeSystem) -> None:
        self.folder = folder
        self.system = system
        self.server: NodeServer | None = None
        self.closed_port: socket.socket | None = None
        self.startup: asyncio.subprocess.Process | None = None

    async def end(self) -> None:
        if self.server is not None:
            await self.server.close()
        if self.closed_port is not None:
            self.closed_port.close()
        await self.system.stop()
        if self.startup is not None:
            await self.startup.wait()


class Rack:
    """All nodes of one sandbox.

    `isolation` says how they are kept from the user's machine (see `clorefleet.sandbox.isolation`), and
    `isolation_warning` what to tell the user about it, "" when all is well.
    """

    def __init__(
        self,
        *,
        root: Path,
        hub_url: str,
        assets: Assets | None = None,
        clock: SandboxClock | None = None,
        lines: Lines | None = None,
        kind: str | None = None,
        load_scale: float = DEFAULT_LOAD_SCALE,
    ) -> None:
        """`assets` None: they are had from the user's cache at the first start. `clock` is not needed by
        nodes, whose durations are real."""
        self._root = root
        self._hub_url = hub_url
        self._assets = assets
        self._assets_lock = asyncio.Lock()
        self._lines = lines
        self._load_scale = load_scale
        self._nodes: dict[int, _Node] = {}
        self.isolation = kind or isolation.available()
        self.isolation_warning = "" if self.isolation == isolation.NAMESPACES else isolation.PATH_ONLY_WARNING

    async def start(
        self,
        order_id: int,
        truth: ServerTruth,
        *,
        image: str,
        env: Mapping[str, str],
        ssh_key: str | None,
        ssh_password: str | None,
        command: str | None,
        autossh: bool,
        ssh_port: int = 0,
    ) -> int:
        """Start the node and return the loopback port of its SSH server.

        An image without an SSH server, started without `autossh`, has the port taken but closed. Raises
        `isolation.NodeDidNotStart`, or OSError when `ssh_port` is in use; nothing is left running then.
        """
        await self._end(order_id)
        folder = NodeFolder(self._root / str(order_id))
        folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        system = isolation.make_system(self.isolation, folder, hostname=f"order-{order_id}")
        assets = await self._ready_assets()
        furnishing = Furnishing(
            order_id=order_id,
            truth=truth,
            image=image,
            env=env,
            hub_url=f"{self._hub_url}/n/{order_id}",
            writer_gguf=assets.gguf_path,
            load_scale=self._load_scale,
        )
        furnish(folder, furnishing, prefix=system.prefix)
        node = self._nodes[order_id] = _Node(folder, system)
        try:
            await system.start(
                env=node_environment(furnishing, prefix=system.prefix),
                shm_bytes=truth.shm_bytes,
                proc=_in_host(folder, told_files()),
                binds=hidden_binds(folder, furnishing) if not system.prefix else (),
            )
            if self._lines is not None:
                self._lines.connect(order_id, down_mbit_s=truth.down_mbit_s)
            if command:
                node.startup = await _run_at_start(node, command)
                # The image's SSH server starts after the order's script [assumed], but not at any price.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(node.startup.wait()), STARTUP_WAIT_S)
            if not (autossh or has_own_sshd(image)):
                node.closed_port = _take_port(ssh_port)
                return int(node.closed_port.getsockname()[1])
            own_key = load_or_make_host_key(folder.path / "host_key")
            host_key = own_key if "own_host_key" in truth.lies else _given_host_key(folder) or own_key
            server = NodeServer(system, host_key=host_key, credentials=credentials_of(ssh_key, ssh_password))
            port = await server.listen(ssh_port)
            node.server = server
        except BaseException:
            await self._end(order_id)
            raise
        log.info("node_started order=%s port=%s isolation=%s", order_id, port, self.isolation)
        return port

    async def pause(self, order_id: int) -> None:
        """End the node and keep its disk."""
        await self._end(order_id)

    async def stop(self, order_id: int) -> None:
        """End the node and delete its disk; an unknown order is fine."""
        await self._end(order_id)
        await asyncio.to_thread(_delete, self._root / str(order_id))

    async def close(self) -> None:
        """End all nodes and keep their disks."""
        await asyncio.gather(*(self._end(order_id) for order_id in list(self._nodes)))

    async def _end(self, order_id: int) -> None:
        node = self._nodes.pop(order_id, None)
        if node is None:
            return
        if self._lines is not None:
            self._lines.disconnect(order_id)
        await node.end()

    async def _ready_assets(self) -> Assets:
        async with self._assets_lock:
            if self._assets is None:
                self._assets = await asyncio.to_thread(ensure_assets)
        return self._assets


def _in_host(folder: NodeFolder, told: Mapping[str, str]) -> dict[str, str]:
    """The binds over /proc are made before the root changes, so they need the host's paths."""
    return {name: str(folder.hidden / name) for name in told}


async def _run_at_start(node: _Node, command: str) -> asyncio.subprocess.Process:
    """The order's `command`: runs beside the SSH server; what it prints goes where a container's log goes."""
    if node.system.prefix:
        # A node without a root of its own: the script would write the user's own SSH server's key.
        for place in ("/etc/ssh", "/run/sshd.pid", "/var/run/sshd.pid"):
            command = command.replace(f"={place}\n", f"={node.system.prefix}{place}\n")
            command = command.replace(f" {place}", f" {node.system.prefix}{place}")
    launch = node.system.launch(["/bin/sh", f"{node.system.prefix}/opt/sandbox/login", command])
    with (node.folder.path / "container.log").open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *launch.argv,
            env=launch.env,
            cwd=launch.cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _given_host_key(folder: NodeFolder) -> asyncssh.SSHKey | None:
    """What the order's start-up script put where OpenSSH looks for its host key."""
    file = folder.rootfs / "etc/ssh/ssh_host_ed25519_key"
    try:
        if file.is_symlink() or file.stat().st_size > HOST_KEY_MAX_BYTES:
            return None
        return asyncssh.read_private_key(str(file))
    except (OSError, asyncssh.KeyImportError):
        return None


def _take_port(port: int) -> socket.socket:
    """Bound and not listening: connections are refused, and nobody else is given the port."""
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind((LOOPBACK, port))
    return taken


def _delete(folder: Path) -> None:
    """Everything is mounted in the node's own namespace, so the host sees only the node's own files here."""

    def make_writable_and_retry(function: Callable[[str], object], name: str, _: object) -> None:
        path = Path(name)
        path.parent.chmod(0o700)
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
        function(name)

    if folder.exists():
        shutil.rmtree(folder, onerror=make_writable_and_retry)
