"""The client that `clorefleet ssh` begins: OpenSSH's own, with the pinned key."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clorefleet.cli.ssh import known_as
from clorefleet.node.session import NodeSession
from tests.node.world import Server, prove_nonce, sandbox_node

_THERE_AND_BACK = """
import os, socket, sys, threading
line = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def there():
    while data := os.read(0, 65536):
        line.sendall(data)
threading.Thread(target=there, daemon=True).start()
while data := line.recv(65536):
    os.write(1, data)
"""


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client here")
@pytest.mark.parametrize("port", [22, 2200])
def test_openssh_finds_the_pinned_key_on_any_port(tmp_path: Path, port: int):
    with sandbox_node(tmp_path) as server:
        said = _say_hello(server, tmp_path, port)
    assert said.stdout.strip() == "hello", said.stderr


def _say_hello(server: Server, folder: Path, port: int) -> subprocess.CompletedProcess[str]:
    with NodeSession.connect(server.address, server.keys.private_key_file, allow_loopback=True) as session:
        prove_nonce(session, server)
        known_hosts = folder / "known_hosts"
        known_hosts.write_text(f"{known_as('relay.example', port)} {session.host_key}\n")
    proxy = folder / "proxy.py"
    proxy.write_text(_THERE_AND_BACK)
    options = {
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": known_hosts,
        "GlobalKnownHostsFile": "none",
        "ProxyCommand": f"{sys.executable} {proxy} {server.address.port}",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    key = ["-F", "none", "-i", str(server.keys.private_key_file), "-p", str(port)]
    command = ["ssh", *key, *words, "--", "root@relay.example", "echo hello"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)
