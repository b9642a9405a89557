"""The gateway over real sockets: who may ask, where it goes, what comes back, what is counted."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as HttpRoute

from clorefleet.domain.secret import Secret
from clorefleet.gateway.app import BODY_MAX_BYTES, RequestRecord, token_counts
from clorefleet.gateway.routing import Route, RoutingTable
from clorefleet.gateway.service import GatewayService
from clorefleet.gateway.token import TokenCheck, load_or_create

TOKEN = "cf-test-token"
PROMPT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
USAGE = {"prompt_tokens": 3, "completion_tokens": 5}


class Engine:
    """A small engine on a UNIX socket that remembers what it was asked."""

    def __init__(self, socket: Path, *, pieces: int = 3, pause_s: float = 0.0) -> None:
        self.socket = socket
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.cancelled = threading.Event()
        self._pieces, self._pause_s = pieces, pause_s
        app = Starlette(
            routes=[
                HttpRoute("/v1/models", self._models),
                HttpRoute("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )
        self._server = uvicorn.Server(uvicorn.Config(app, uds=str(socket), log_config=None, lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"data": [{"id": "tiny", "simulated": True}]})

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if not body.get("stream"):
            await asyncio.sleep(self._pause_s)
            return JSONResponse(
                {"choices": [{"message": {"content": "hello"}}], "usage": USAGE},
                headers={"x-engine-host": "secret-host"},
            )
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[bytes]:
        try:
            for number in range(self._pieces):
                yield f"data: {json.dumps({'n': number})}\n\n".encode()
                await asyncio.sleep(self._pause_s)
            yield f"data: {json.dumps({'usage': USAGE})}\n\ndata: [DONE]\n\n".encode()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(5)


@contextmanager
def gateway(*engines: Engine, model: str = "tiny") -> Iterator[tuple[httpx.Client, GatewayService, list]]:
    records: list[RequestRecord] = []
    service = GatewayService(TokenCheck.of(Secret(TOKEN)), preferred_port=0, on_finished=records.append)
    service.start()
    service.set_routes([Route(f"l{i}", model, engine.socket) for i, engine in enumerate(engines)])
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=20) as client:
        yield client, service, records
    service.stop()
    for engine in engines:
        engine.stop()


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path / "e.sock")


def test_a_prompt_goes_to_the_replica_and_its_tokens_are_counted(engine: Engine):
    with gateway(engine) as (client, service, records):
        answer = client.post("/v1/chat/completions", json=PROMPT)
        assert answer.json()["choices"][0]["message"]["content"] == "hello"
        assert "x-engine-host" not in answer.headers and "server" not in answer.headers
        assert (records[0].prompt_tokens, records[0].completion_tokens) == (3, 5)
        assert service.in_flight("l0") == 0
    assert "authorization" not in engine.headers[0], "the gateway's token went to a rented host"


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": TOKEN}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
    ],
)
def test_only_the_token_from_this_machine_gets_in(engine: Engine, headers: dict, status: int):
    """S13: DNS rebinding and requests forged by web pages included."""
    with gateway(engine) as (client, _, _):
        assert client.post("/v1/chat/completions", json=PROMPT, headers=headers).status_code == status
        assert client.get("/v1/models", headers=headers).status_code == status
    assert len(engine.bodies) == (1 if status == 200 else 0)


def test_pieces_arrive_as_they_are_written(tmp_path: Path):
    with gateway(Engine(tmp_path / "e.sock", pause_s=0.2)) as (client, _, records):
        arrivals = []
        with client.stream("POST", "/v1/chat/completions", json=PROMPT | {"stream": True}) as answer:
            for _ in answer.iter_raw():
                arrivals.append(time.monotonic())
        assert len(arrivals) >= 4 and arrivals[-1] - arrivals[0] > 0.4
        assert records[0].completion_tokens == 5


def test_a_client_that_leaves_stops_the_engine(tmp_path: Path):
    engine = Engine(tmp_path / "e.sock", pieces=500, pause_s=0.05)
    with gateway(engine) as (client, service, _):
        with client.stream("POST", "/v1/chat/completions", json=PROMPT | {"stream": True}) as answer:
            next(answer.iter_raw())
        assert engine.cancelled.wait(5)
        deadline = time.monotonic() + 5
        while service.in_flight("l0") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert service.in_flight("l0") == 0


def test_an_unreachable_replica_is_passed_over_before_the_first_byte(engine: Engine, tmp_path: Path):
    with gateway(engine) as (client, service, _):
        service.set_routes(
            [Route("dead", "tiny", tmp_path / "nobody.sock"), Route("live", "tiny", engine.socket)]
        )
        assert client.post("/v1/chat/completions", json=PROMPT).status_code == 200
        service.set_routes([Route("dead", "tiny", tmp_path / "nobody.sock")])
        answer = client.post("/v1/chat/completions", json=PROMPT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unreachable")
        assert answer.headers["retry-after"]


def test_no_replica_yet_and_no_such_model_are_different_answers(engine: Engine):
    with gateway(engine) as (client, service, _):
        unknown = client.post("/v1/chat/completions", json=PROMPT | {"model": "other"})
        assert unknown.status_code == 404 and "tiny" in unknown.json()["error"]["message"]
        service.set_routes([])
        waiting = client.post("/v1/chat/completions", json=PROMPT)
        assert waiting.status_code == 503 and "retry-after" in waiting.headers


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"{", b'{"model": 3}', b'{"model": ""}', b"[" * 5000])
def test_a_body_that_is_no_request_is_refused(engine: Engine, body: bytes):
    with gateway(engine) as (client, _, _):
        assert client.post("/v1/chat/completions", content=body).status_code == 400


def test_a_body_that_is_too_large_is_refused_also_without_a_length(engine: Engine):
    def endless() -> Iterator[bytes]:
        for _ in range(BODY_MAX_BYTES // 65536 + 10):
            yield b"x" * 65536

    with gateway(engine) as (client, _, _):
        declared = client.post("/v1/chat/completions", content=b"x" * (BODY_MAX_BYTES + 1))
        assert declared.status_code == 413
        assert client.post("/v1/chat/completions", content=endless()).status_code == 413


def test_the_model_card_keeps_its_simulated_mark(engine: Engine):
    with gateway(engine) as (client, _, _):
        assert client.get("/v1/models").json()["data"] == [
            {"id": "tiny", "object": "model", "owned_by": "clorefleet", "simulated": True}
        ]


def test_a_hundred_streams_at_once_lose_nothing(tmp_path: Path):
    engines = [Engine(tmp_path / f"e{i}.sock", pieces=5, pause_s=0.02) for i in range(2)]

    async def ask(client: httpx.AsyncClient) -> int:
        answer = await client.post("/v1/chat/completions", json=PROMPT | {"stream": True})
        return answer.text.count("data:")

    with gateway(*engines) as (client, _, records):

        async def all_of_them() -> list[int]:
            async with httpx.AsyncClient(
                base_url=client.base_url, headers=client.headers, timeout=30
            ) as many:
                return await asyncio.gather(*(ask(many) for _ in range(100)))

        assert asyncio.run(all_of_them()) == [7] * 100
        assert len(records) == 100
    assert abs(len(engines[0].bodies) - len(engines[1].bodies)) <= 20


def test_the_least_loaded_replica_is_taken():
    table = RoutingTable()
    table.replace([Route("a", "m", Path("/a")), Route("b", "m", Path("/b"))])
    assert [table.take("m").lease_id for _ in range(4)] == ["a", "b", "a", "b"]
    table.give_back("b")
    assert table.take("m").lease_id == "b"
    assert table.take("m", excluding=frozenset({"a", "b"})) is None


def test_a_removed_replica_keeps_its_count_until_its_requests_end():
    """Draining asks for it."""
    table = RoutingTable()
    table.replace([Route("a", "m", Path("/a"))])
    table.take("m")
    table.replace([])
    assert table.in_flight("a") == 1 and table.take("m") is None
    table.give_back("a")
    assert table.in_flight("a") == 0


@pytest.mark.parametrize(
    "tail, counts",
    [
        (b'{"usage": {"prompt_tokens": 1, "completion_tokens": 2}}', (1, 2)),
        (b'data: {"usage": null}\n\ndata: [DONE]', (None, None)),
        (b'"usage": {"prompt_tokens": "1"', (None, None)),
        (b'{"usage": ' + b"[" * 60_000, (None, None)),
        (b"", (None, None)),
    ],
)
def test_token_counts_are_read_from_the_end_of_any_answer(tail: bytes, counts: tuple):
    assert token_counts(tail) == counts


def test_the_token_is_made_once_and_private(tmp_path: Path):
    token = load_or_create(tmp_path)
    assert load_or_create(tmp_path).reveal() == token.reveal()
    assert (tmp_path / "gateway.token").stat().st_mode & 0o077 == 0
    assert len(token.reveal()) > 30
