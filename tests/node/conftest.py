from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clorefleet.node.session import NodeSession
from tests.node.world import Server, openssh_missing, openssh_server, prove_nonce, sandbox_node


@pytest.fixture(scope="module", params=["sandbox", "openssh"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same tests run against the sandbox's nodes and against OpenSSH."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    if request.param == "openssh":
        if openssh_missing():
            pytest.skip(openssh_missing())
        with openssh_server(folder) as running:
            yield running
    else:
        with sandbox_node(folder) as running:
            yield running


@pytest.fixture
def session(server: Server) -> Iterator[NodeSession]:
    """As after first contact: the server has proved that it is our order's."""
    with NodeSession.connect(server.address, server.keys.private_key_file, allow_loopback=True) as opened:
        prove_nonce(opened, server)
        yield opened
