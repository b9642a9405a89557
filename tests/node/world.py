"""Real SSH servers to talk to: a sandbox node, and OpenSSH where it is installed and may be run."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from clorefleet.domain.errors import NodeUnreachable
from clorefleet.domain.identity import LeaseId
from clorefleet.domain.order import SshAddress
from clorefleet.node.keys import LeaseKeys, make_keys, startup_command
from clorefleet.node.session import NodeSession
from clorefleet.sandbox.rack import Rack
from clorefleet.sandbox.truth import ServerTruth, TrueGpu

IMAGE = "cloreai/ubuntu22.04-cuda12"
TRUTH = ServerTruth(
    server_id=7,
    gpus=(TrueGpu("NVIDIA GeForce RTX 4090", 24564, "8.9", 1008, 4, 16, 450),) * 2,
    driver_version="580.95.05",
    cuda_version="13.0",
    cpu_model="AMD EPYC 7702 64-Core Processor",
    cores=64,
    threads=128,
    ram_bytes=512 << 30,
    ram_bandwidth_gb_s=205,
    disk_free_bytes=2000 << 30,
    disk_mb_s=2000,
    down_mbit_s=1000,
    up_mbit_s=500,
    shm_bytes=8 << 30,
    boot_seconds=0,
)


@dataclass
class Server:
    """A server that accepts a lease's key."""

    kind: str
    address: SshAddress
    keys: LeaseKeys
    home: str
    """As its own commands see it."""
    state_dir: Path


@dataclass
class SandboxNode(Server):
    restart: Callable[[], None]
    """As when its host is restarted: the disk stays, processes and port do not."""


def prove_nonce(session: NodeSession, server: Server) -> None:
    """Once the server's start-up script has run, it knows the nonce."""
    deadline_s = time.monotonic() + 10
    while True:
        try:
            return session.check_nonce(server.keys.nonce)
        except NodeUnreachable:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)


@contextmanager
def sandbox_node(
    folder: Path, hub_url: str = "http://127.0.0.1:9", *, lies: frozenset[str] = frozenset()
) -> Iterator[SandboxNode]:
    """A rented node of the sandbox, in its own root where the machine allows that."""
    keys = make_keys(folder / "state", LeaseId("lease1"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    rack = Rack(root=folder / "nodes", hub_url=hub_url)

    def start() -> int:
        return run(
            rack.start(
                1,
                replace(TRUTH, lies=lies),
                image=IMAGE,
                env={"CLOREFLEET_NONCE": keys.nonce},
                ssh_key=keys.public_key,
                ssh_password=keys.password.reveal(),
                command=startup_command(keys.credentials),
                autossh=False,
            )
        )

    def restart() -> None:
        run(rack.close())
        server.address = SshAddress(("127.0.0.1",), start())

    try:
        server = SandboxNode(
            "sandbox", SshAddress(("127.0.0.1",), start()), keys, "/root", folder / "state", restart
        )
        yield server
    finally:
        run(rack.stop(1))
        run(collect_now())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


async def collect_now() -> None:
    """Let the transports of ended processes go while their loop still runs. Left to chance, their finalisers
    run inside whatever comes later; inside a parser, Python 3.11 then fails with a SystemError."""
    await asyncio.sleep(0.05)
    gc.collect()
    await asyncio.sleep(0)


def openssh_missing() -> str:
    """Why OpenSSH's server cannot be used here, or ""."""
    if shutil.which("sshd") is None and not Path("/usr/sbin/sshd").exists():
        return "no OpenSSH server installed"
    return "" if os.geteuid() == 0 else "a login as root needs root"


@contextmanager
def openssh_server(folder: Path) -> Iterator[Server]:
    """OpenSSH with its own keys and configuration; commands run with a home of their own."""
    keys = make_keys(folder / "state", LeaseId("lease1"))
    home = folder / "home"
    home.mkdir(parents=True)
    host_key = folder / "host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key)], check=True)
    authorized = folder / "authorized_keys"
    authorized.write_text(keys.public_key + "\n")
    entry = folder / "entry"
    entry.write_text(
        f"#!/bin/sh\nexport HOME={home} CLOREFLEET_NONCE={keys.nonce}\ncd {home}\n"
        'exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    entry.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {host_key}\nAuthorizedKeysFile {authorized}\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes no\nUsePAM no\n"
        f"PidFile {folder / 'sshd.pid'}\nForceCommand {entry}\n"
        "Subsystem sftp /usr/lib/openssh/sftp-server\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    process = subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield Server("openssh", SshAddress(("127.0.0.1",), port), keys, str(home), folder / "state")
    finally:
        process.terminate()
        process.wait(10)
