"""The two programs of a transfer between replicas: what one serves, and what the other believes."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import runpy
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.file_hub import FileHub, serving
from tests.node.test_fetch_weights import MIB, SCRIPT, Run, blob

SERVER = SCRIPT.with_name("serve_weights.py")
TOKEN = "canary-of-one-transfer"
CUT_NEVER = 1 << 60


@pytest.fixture
def hub() -> Iterator[FileHub]:
    files = {"big.gguf": blob(5 * MIB + 123), "sub/a file.json": b"{}\n", "empty.txt": b""}
    with serving(FileHub(files)) as running:
        yield running


@pytest.fixture
def donor(hub: FileHub, tmp_path: Path) -> Path:
    """A folder with `manifest.json` and verified `weights`, as a synced replica has it."""
    folder = tmp_path / "donor"
    folder.mkdir()
    manifest = hub.manifest(folder)
    for name, data in hub.files.items():
        file = folder / "weights" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    (folder / "weights" / ".complete").write_text(digest + "\n")
    (folder / "secret.txt").write_text("of the host")
    return folder


def start_server(folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-I", str(SERVER), str(folder / "manifest.json"), str(folder / "weights")]
    return subprocess.Popen(words, env={"SIBLING_TOKEN": TOKEN}, stdout=subprocess.PIPE, text=True)


def port_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    found = re.fullmatch(r"sibling port (\d+)\n", process.stdout.readline())
    assert found is not None
    return int(found[1])


@contextlib.contextmanager
def server_of(folder: Path) -> Iterator[int]:
    process = start_server(folder)
    try:
        yield port_of(process)
    finally:
        process.kill()
        process.communicate()


def join(near_port: int, far_port: int, *, connections: int = 3, cut_after: int = CUT_NEVER) -> None:
    """What the daemon does, over plain sockets; each way back breaks off after `cut_after` bytes."""
    for _ in range(connections):
        near = socket.create_connection(("127.0.0.1", near_port))
        far = socket.create_connection(("127.0.0.1", far_port))
        for source, target, limit in ((near, far, CUT_NEVER), (far, near, cut_after)):
            threading.Thread(target=_carry, args=(source, target, limit), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket, limit: int) -> None:
    carried = 0
    with contextlib.suppress(OSError):
        while carried < limit and (data := source.recv(64 * 1024)):
            target.sendall(data)
            carried += len(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def fetch(hub: FileHub, folder: Path) -> Run:
    return Run(hub, folder, SIBLING_TOKEN=TOKEN, SIBLING_BYTES_PER_S_MIN="1")


# -- what is believed


def test_with_a_sibling_the_hub_is_asked_for_nothing(hub: FileHub, donor: Path, tmp_path: Path):
    with server_of(donor) as far_port:
        run = fetch(hub, tmp_path)
        join(port_of(run.process), far_port)
        assert run.end() == 0, run.output
    assert run.files() == hub.files
    assert hub.requests == []


def test_a_sibling_that_lies_is_found_by_the_hubs_digest_and_asked_no_more(
    hub: FileHub, donor: Path, tmp_path: Path
):
    """F13, S12: right length, wrong bytes."""
    (donor / "weights/big.gguf").write_bytes(blob(5 * MIB + 123, seed=2))
    with server_of(donor) as far_port:
        run = fetch(hub, tmp_path)
        join(port_of(run.process), far_port)
        assert run.end() == 0, run.output
    assert run.files() == hub.files
    assert "no more from the sibling: big.gguf has wrong bytes" in run.output


def test_after_a_sibling_that_lied_the_hub_still_has_both_its_attempts(
    hub: FileHub, donor: Path, tmp_path: Path
):
    (donor / "weights/big.gguf").write_bytes(blob(5 * MIB + 123, seed=2))
    manifest = hub.manifest(tmp_path)
    hub.files["big.gguf"] = blob(5 * MIB + 123, seed=3)
    with server_of(donor) as far_port:
        run = Run(hub, tmp_path, manifest, SIBLING_TOKEN=TOKEN, SIBLING_BYTES_PER_S_MIN="1")
        join(port_of(run.process), far_port)
        assert run.end() == 24, run.output
    asked = [path for path, *_ in hub.requests if path.endswith("big.gguf")]
    assert len(asked) == 2 * 6, "two attempts at six segments"
    assert "big.gguf" not in run.files()


def test_a_way_that_breaks_off_loses_nothing_and_the_hub_gives_the_rest(
    hub: FileHub, donor: Path, tmp_path: Path
):
    with server_of(donor) as far_port:
        run = fetch(hub, tmp_path)
        join(port_of(run.process), far_port, cut_after=MIB + MIB // 2)
        assert run.end() == 0, run.output
    assert run.files() == hub.files
    assert 0 < hub.served_bytes < 5 * MIB


@pytest.mark.parametrize("peer", ["goes away", "refuses", "talks nonsense"])
def test_whatever_comes_over_the_connections_the_hub_is_there(
    peer: str, hub: FileHub, donor: Path, tmp_path: Path
):
    run = fetch(hub, tmp_path)
    near = socket.create_connection(("127.0.0.1", port_of(run.process)))
    if peer != "goes away":
        near.recv(1000)
        near.sendall(
            b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n" if peer == "refuses" else b"\x1b]52;c;\xff" * 99
        )
    near.close()
    assert run.end() == 0, run.output
    assert run.files() == hub.files
    assert TOKEN not in run.output and "\x1b" not in run.output


def test_the_transfers_token_is_sent_to_no_hub_and_lies_in_no_file(hub: FileHub, donor: Path, tmp_path: Path):
    """S10."""
    shutil.rmtree(donor)
    run = fetch(hub, tmp_path)
    socket.create_connection(("127.0.0.1", port_of(run.process))).close()
    assert run.end() == 0
    assert {token for *_, token in hub.requests} == {None}
    assert not any(TOKEN.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_sibling_below_the_hubs_speed_is_given_up():
    sibling = runpy.run_path(str(SCRIPT))["Sibling"](TOKEN, 1e12, window_s=0.0)
    near = socket.create_connection(sibling.listener.getsockname())
    connection = sibling.lend()
    with pytest.raises(ConnectionError):
        sibling.count(1000)
    sibling.give_back(connection, True)
    assert sibling.lend() is None
    near.close()


# -- what is served


def ask(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"} | headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_only_files_of_the_manifest_are_served_and_only_to_who_has_the_token(hub: FileHub, donor: Path):
    with server_of(donor) as port:
        assert ask(port, "/sub/a%20file.json") == (200, b"{}\n")
        assert ask(port, "/big.gguf", Range="bytes=5-8") == (206, hub.files["big.gguf"][5:9])
        for path in ("/../secret.txt", "/%2e%2e/secret.txt", "//etc/passwd", "/.complete", "/sub", "/"):
            assert ask(port, path) == (404, b""), path
        for range_ in (f"bytes=0-{6 * MIB}", "bytes=9-8"):
            assert ask(port, "/big.gguf", Range=range_)[0] == 416, range_
        for token in ("", "Bearer ", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \xff"):
            assert ask(port, "/big.gguf", Authorization=token) == (401, b""), token


def test_it_listens_on_loopback_alone_and_shows_its_token_to_nobody(donor: Path):
    """S13, S10."""
    process = start_server(donor)
    try:
        port = port_of(process)
        listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert [each[1] for each in listening if each[1].endswith(f":{port:04X}") and each[3] == "0A"] == [
            f"0100007F:{port:04X}"
        ]
        assert TOKEN.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("what", ["no stamp", "another manifest's stamp"])
def test_weights_that_were_not_verified_are_not_served(what: str, donor: Path):
    stamp = donor / "weights/.complete"
    if what == "no stamp":
        stamp.unlink()
    else:
        stamp.write_text("0" * 64 + "\n")
    process = start_server(donor)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 3 and "not the verified ones" in output


def test_a_link_that_leads_out_of_the_folder_is_not_followed(donor: Path):
    (donor / "weights/big.gguf").unlink()
    target = donor / "elsewhere"
    target.write_bytes(blob(5 * MIB + 123))
    (donor / "weights/big.gguf").symlink_to(target)
    with server_of(donor) as port:
        assert ask(port, "/big.gguf")[0] == 404
