"""Our SSH edge beside the OpenSSH client, against one OpenSSH server on loopback, in the same run.

python -m benchmarks.ssh_edge [--mib 64] [--rounds 3]

Both keep one connection (OpenSSH by a control master) and use it for everything, so that no login is timed.
`command` is a round trip of `true`; `put` and `tunnel` are MB/s of a file sent by SFTP, and of bytes read
through a forwarded port behind a UNIX socket. Needs root and the packages openssh-server and openssh-client.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clorefleet.node.push import CHUNK_BYTES
from clorefleet.node.session import NodeSession
from clorefleet.node.tunnel import Tunnel
from tests.node.world import Server, openssh_missing, openssh_server, prove_nonce

COMMANDS = 60
MIB_MAX = 4096


def serve_zeros(listener: socket.socket, size: int) -> None:
    block = bytes(1 << 20)
    while True:
        connection = listener.accept()[0]
        with connection:
            left = size
            while left > 0:
                connection.sendall(block[:left])
                left -= len(block)


@contextmanager
def source_of_bytes(size: int) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = multiprocessing.Process(target=serve_zeros, args=(listener, size), daemon=True)
        process.start()
        yield listener.getsockname()[1]
        process.terminate()


def drain(path: Path) -> int:
    taken = 0
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        while chunk := connection.recv(1 << 18):
            taken += len(chunk)
    return taken


class Master:
    """The OpenSSH client with one kept connection."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._common = [
            *("-S", str(folder / "ctl"), "-i", str(server.keys.private_key_file), "-o", "IdentitiesOnly=yes"),
            *("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={folder / 'known'}"),
            *("-o", "LogLevel=ERROR", "-F", "none"),
        ]
        self._port, self._host = str(server.address.port), "root@127.0.0.1"
        self._run("-M", "-N", "-f", self._host)

    def _run(self, *words: str) -> None:
        subprocess.run(["ssh", *self._common, "-p", self._port, *words], check=True)

    def command(self) -> None:
        self._run(self._host, "true")

    def forward(self, path: Path, port: int) -> None:
        self._run("-O", "forward", "-L", f"{path}:127.0.0.1:{port}", self._host)

    def put(self, source: Path, target: str) -> None:
        subprocess.run(
            ["sftp", "-q", "-b", "-", *self._sftp_words(), self._host],
            input=f"put {source} {target}\n",
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def _sftp_words(self) -> list[str]:
        words = ["-P", self._port]
        common = iter(self._common)
        for name, value in zip(common, common, strict=True):
            words += ["-o", f"ControlPath={value}"] if name == "-S" else [name, value]
        return words

    def close(self) -> None:
        self._run("-O", "exit", self._host)


def seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def put_ours(session: NodeSession, source: Path, target: str) -> None:
    with source.open("rb") as file:
        for _ in session.append_file(target, 0, lambda: file.read(CHUNK_BYTES)):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    size = min(max(1, options.mib), MIB_MAX) << 20
    missing = openssh_missing() or ("" if shutil.which("ssh") else "no OpenSSH client installed")
    if missing:
        raise SystemExit(f"Not measured: {missing}.")
    with tempfile.TemporaryDirectory(prefix="ssh-edge-") as name, openssh_server(Path(name) / "s") as server:
        measure(Path(name), server, size, options.rounds)


def measure(folder: Path, server: Server, size: int, rounds: int) -> None:
    source = folder / "source"
    source.write_bytes(os.urandom(size))
    key = server.keys.private_key_file
    with (
        source_of_bytes(size) as port,
        NodeSession.connect(server.address, key, allow_loopback=True) as session,
    ):
        prove_nonce(session, server)
        theirs = Master(server, folder)
        tunnel = Tunnel(folder / "ours.sock", port, lambda: session)
        theirs.forward(folder / "theirs.sock", port)
        ours_s: dict[str, list[float]] = {"command": [], "put": [], "tunnel": []}
        theirs_s: dict[str, list[float]] = {"command": [], "put": [], "tunnel": []}
        for _ in range(rounds):
            for _ in range(COMMANDS // rounds):
                ours_s["command"].append(seconds(lambda: session.run(["true"])))
                theirs_s["command"].append(seconds(theirs.command))
            ours_s["put"].append(seconds(lambda: put_ours(session, source, f"{server.home}/a")))
            theirs_s["put"].append(seconds(lambda: theirs.put(source, f"{server.home}/b")))
            ours_s["tunnel"].append(seconds(lambda: drain(folder / "ours.sock")))
            theirs_s["tunnel"].append(seconds(lambda: drain(folder / "theirs.sock")))
        sent = source.read_bytes()
        assert all(Path(server.home, name).read_bytes() == sent for name in ("a", "b"))
        tunnel.close()
        theirs.close()
    print(f"{'':10}{'clorefleet':>14}{'OpenSSH':>14}   clorefleet is")
    mine, other = (statistics.median(each["command"]) for each in (ours_s, theirs_s))
    print(f"{'command':10}{mine * 1e3:>11.1f} ms{other * 1e3:>11.1f} ms   {other / mine:.2f}x as fast")
    for what in ("put", "tunnel"):
        mine, other = (size / 1e6 / statistics.median(each[what]) for each in (ours_s, theirs_s))
        print(f"{what:10}{mine:>9.0f} MB/s{other:>9.0f} MB/s   {mine / other:.2f}x as fast")


if __name__ == "__main__":
    main()
