"""Engines and gateways on real sockets, ended with the test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from clorefleet.domain.secret import Secret
from clorefleet.gateway.limits import Limits
from clorefleet.gateway.routing import Backend, RoutingTable
from clorefleet.gateway.server import Gateway
from clorefleet.gateway.token import TokenCheck
from clorefleet.gateway.usage import RequestRecord
from tests.gateway.engine import PATIENCE_S, Closer, Engine

TOKEN = "cf-canary-token-0123456789abcdef"


@dataclass
class Running:
    """A gateway that serves `model` from its engines, as leases `l0`, `l1`, ..."""

    table: RoutingTable
    gateway: Gateway
    client: httpx.Client
    records: list[RequestRecord] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return httpx.URL(self.gateway.url).port or 0

    def ask(self, *, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
        prompt = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]} | fields
        return self.client.post("/v1/chat/completions", json=prompt, headers=headers)

    def raw(self, head: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and all bytes of an answer to a request written by hand; 0 when the connection was reset."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            answer = b""
            with suppress(ConnectionError):
                connection.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
            with suppress(ConnectionError):
                while piece := connection.recv(65536):
                    answer += piece
        return int(answer.split(b" ", 2)[1]) if answer else 0, answer


@pytest.fixture
def new_engine(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(**options: object) -> Engine:
        made.append(Engine(tmp_path / f"e{len(made)}.sock", **options))  # type: ignore[arg-type]
        return made[-1]

    Engine.cut_before = threading.Event()
    yield make
    for engine in made:
        engine.stop()


@pytest.fixture
def new_closer(tmp_path: Path) -> Iterator[Callable[..., Closer]]:
    with ExitStack() as ending:

        def make(*, reads_first: bool) -> Closer:
            closer = Closer(tmp_path / f"closer{reads_first}.sock", reads_first=reads_first)
            ending.callback(closer.stop)
            return closer

        yield make


@pytest.fixture
def run_gateway() -> Iterator[Callable[..., Running]]:
    with ExitStack() as ending:

        def run(*engines: Engine, limits: Limits | None = None) -> Running:
            table = RoutingTable()
            records: list[RequestRecord] = []
            wanted: list[str] = []
            gateway = Gateway(
                table,
                TokenCheck.of(Secret(TOKEN)),
                limits=limits or Limits(),
                on_finished=records.append,
                on_wanted=wanted.append,
            )
            gateway.start()
            ending.callback(gateway.stop, 1)
            table.set_backends(
                tuple(Backend(f"l{i}", "tiny", uds_path=engine.path) for i, engine in enumerate(engines))
            )
            client = httpx.Client(
                base_url=gateway.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=PATIENCE_S
            )
            ending.callback(client.close)
            return Running(table, gateway, client, records, wanted)

        yield run
