"""What the gateway adds to a request: the same upstream on a UNIX socket, asked directly and through it.

python benchmarks/gateway_latency.py [--requests 300] [--pieces 50]

Upstream, gateway and client are processes of their own; direct and gateway requests alternate, so that both
meet the same load of the machine. `answer` is a small unstreamed answer; `first byte` and `stream` are
of one stream of `--pieces` events written without a pause.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import httpx

REQUESTS_MAX = 5_000
PIECES_MAX = 2_000
WARM_UP = 20
START_S = 30
Timing = dict[str, float]


def run_upstream(path: str, pieces: int, ready: Connection) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    async def chat(request: Request) -> Response:
        if not (await request.json()).get("stream"):
            return JSONResponse({"choices": [{"message": {"content": "hello"}}]})
        event = b"data: " + json.dumps({"choices": [{"delta": {"content": "word"}}]}).encode() + b"\n\n"

        async def events():
            for _ in range(pieces):
                yield event

        return StreamingResponse(events(), media_type="text/event-stream")

    class Server(uvicorn.Server):
        async def startup(self, sockets=None) -> None:
            await super().startup(sockets)
            ready.send(path)

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    Server(uvicorn.Config(app, uds=path, log_config=None, access_log=False, lifespan="off")).run()


def run_gateway(path: str, token: str, ready: Connection) -> None:
    from clorefleet.domain.secret import Secret
    from clorefleet.gateway.routing import Backend, RoutingTable
    from clorefleet.gateway.server import Gateway
    from clorefleet.gateway.token import TokenCheck

    table = RoutingTable()
    table.set_backends((Backend("lease", "m", uds_path=Path(path)),))
    gateway = Gateway(table, TokenCheck.of(Secret(token)))
    gateway.start()
    ready.send(gateway.url)
    ready.recv()
    gateway.stop(1)


def measure(client: httpx.Client) -> Timing:
    prompt = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    began = time.perf_counter()
    client.post("/v1/chat/completions", json=prompt).raise_for_status()
    answered = time.perf_counter()
    with client.stream("POST", "/v1/chat/completions", json=prompt | {"stream": True}) as answer:
        answer.raise_for_status()
        pieces = answer.iter_raw()
        next(pieces)
        first = time.perf_counter()
        for _ in pieces:
            pass
    ended = time.perf_counter()
    return {"answer": answered - began, "first byte": first - answered, "stream": ended - answered}


def report(direct: list[Timing], through: list[Timing]) -> None:
    def p50(values: list[float]) -> float:
        return statistics.median(values)

    def p99(values: list[float]) -> float:
        return statistics.quantiles(values, n=100)[98]

    quantiles: tuple[tuple[str, Callable[[list[float]], float]], ...] = (("p50", p50), ("p99", p99))
    print(f"{'':12}{'':6}{'direct':>10}{'gateway':>10}{'added':>10}{'ratio':>8}")
    for what in direct[0]:
        for name, quantile in quantiles:
            one, other = (quantile([timing[what] for timing in side]) * 1000 for side in (direct, through))
            print(f"{what:12}{name:6}{one:7.2f} ms{other:7.2f} ms{other - one:7.2f} ms{other / one:7.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--pieces", type=int, default=50)
    asked = parser.parse_args()
    requests = max(2, min(asked.requests, REQUESTS_MAX))
    pieces = max(1, min(asked.pieces, PIECES_MAX))
    token = secrets.token_urlsafe(24)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/engine.sock"
        ours, theirs = context.Pipe()
        upstream = context.Process(target=run_upstream, args=(path, pieces, theirs), daemon=True)
        gateway = context.Process(target=run_gateway, args=(path, token, theirs), daemon=True)
        started = []
        try:
            addresses = []
            for process in (upstream, gateway):
                process.start()
                started.append(process)
                if not ours.poll(START_S):
                    raise SystemExit("a server did not start")
                addresses.append(ours.recv())
            with (
                httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://localhost") as direct,
                httpx.Client(base_url=addresses[1], headers={"Authorization": f"Bearer {token}"}) as through,
            ):
                for _ in range(WARM_UP):
                    measure(direct), measure(through)
                pairs = [(measure(direct), measure(through)) for _ in range(requests)]
        finally:
            for process in started:
                process.terminate()
                process.join(5)
    print(f"{requests} alternating pairs, streams of {pieces} events")
    report([pair[0] for pair in pairs], [pair[1] for pair in pairs])


if __name__ == "__main__":
    main()
