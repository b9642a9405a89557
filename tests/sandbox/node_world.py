"""Real simulated nodes for tests: a rack in a thread of its own, and a foreign SSH client."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import paramiko

from clorefleet.sandbox.assets import TINY, Assets, make_tiny_gguf, sha256_of
from clorefleet.sandbox.rack import Rack
from clorefleet.sandbox.truth import ServerTruth, TrueGpu

Result = TypeVar("Result")
CALL_S_MAX = 60
RTX_4090 = TrueGpu(
    name="NVIDIA GeForce RTX 4090",
    vram_mib=24564,
    compute_capability="8.9",
    memory_bandwidth_gb_s=1008,
    pcie_generation=4,
    pcie_width=16,
    power_limit_w=450,
)
TWO_4090 = ServerTruth(
    server_id=1,
    gpus=(RTX_4090, RTX_4090),
    driver_version="580.95.05",
    cuda_version="13.0",
    cpu_model="AMD EPYC 7543 32-Core Processor",
    cores=32,
    threads=64,
    ram_bytes=128 << 30,
    ram_bandwidth_gb_s=205,
    disk_free_bytes=500 << 30,
    disk_mb_s=3000,
    down_mbit_s=900,
    up_mbit_s=900,
    shm_bytes=8 << 30,
    boot_seconds=60,
)


def tiny_assets(folder: Path) -> Assets:
    """A model that is real in all but sense, so that no test needs a network."""
    gguf = folder / "tiny.gguf"
    make_tiny_gguf(gguf)
    return Assets(gguf, TINY, "a test's model", sha256_of(gguf))


@dataclass
class Ran:
    status: int
    out: str
    err: str


@dataclass
class RunningRack:
    """A rack whose coroutines run in another thread, as in the sandbox's own process."""

    root: Path
    assets: Assets
    hub_url: str = "http://127.0.0.1:9"
    kind: str | None = None
    key: paramiko.PKey = field(default_factory=lambda: new_key())
    password: str = "correct horse"
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    rack: Rack = field(init=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.rack = self.call(self._make())

    async def _make(self) -> Rack:
        return Rack(root=self.root, hub_url=self.hub_url, assets=self.assets, kind=self.kind)

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S_MAX)

    def start(self, order_id: int, **changes: Any) -> int:
        wanted: dict[str, Any] = {
            "truth": TWO_4090,
            "image": "cloreai/ubuntu22.04-cuda12",
            "env": {"CLOREFLEET_NONCE": "n0nce", "GREETING": "it's here"},
            "ssh_key": f"{self.key.get_name()} {self.key.get_base64()}",
            "ssh_password": self.password,
            "command": None,
            "autossh": False,
        }
        truth = changes.pop("truth", wanted.pop("truth"))
        return self.call(self.rack.start(order_id, truth, **(wanted | changes)))

    def stop(self, order_id: int) -> None:
        self.call(self.rack.stop(order_id))

    def close(self) -> None:
        self.call(self.rack.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @contextmanager
    def login(self, port: int, **credentials: Any) -> Iterator[paramiko.SSHClient]:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        try:
            client.connect(
                "127.0.0.1",
                port,
                username=credentials.pop("username", "root"),
                **(credentials or {"pkey": self.key}),
                allow_agent=False,
                look_for_keys=False,
                timeout=10,
            )
            yield client
        finally:
            client.close()


def new_key() -> paramiko.PKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    text = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    return paramiko.Ed25519Key.from_private_key(io.StringIO(text.decode()))


def run(client: paramiko.SSHClient, command: str, stdin: bytes = b"", timeout_s: float = 30) -> Ran:
    channel = client.get_transport().open_session()  # type: ignore[union-attr]
    channel.settimeout(timeout_s)
    channel.exec_command(command)
    if stdin:
        channel.sendall(stdin)
    channel.shutdown_write()
    out = channel.makefile("rb").read().decode()
    err = channel.makefile_stderr("rb").read().decode()
    status = channel.recv_exit_status()
    channel.close()
    return Ran(status, out, err)
