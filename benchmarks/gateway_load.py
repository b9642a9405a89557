"""The gateway under load, in front of real llama.cpp replicas, asked by the public `openai` client.

pip install 'clorefleet[sandbox,bench]'
python benchmarks/gateway_load.py [--pairs 60] [--streams 200] [--killed 60] [--no-router]

Three things, each also for a public router where `sglang-router` is installed:

added    what a request takes directly at a replica, and through each front, in turn with each other
streams  that many streams at once over two replicas: how many came whole
killed   unstreamed requests under way when one of two replicas is killed with -9: how many failed

All on this machine's processor: the figures that carry over are the differences and the counts, not the
tokens per second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai

from clorefleet.sandbox.assets import ensure_assets

START_S = 60
PATIENCE_S = 60
STREAMS_S = 300
"""For one of many at once, which waits for its turn."""
MODEL = "smollm2-135m"
REPLICA = """
import signal, sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames, params.port = ["127.0.0.1"], 0
params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.warmup = 8192, 8, 1, True
params.endpoint_metrics = params.endpoint_slots = True
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
threading.Event().wait()
"""
GATEWAY = """
import json, sys
from clorefleet.domain.secret import Secret
from clorefleet.gateway.limits import Limits
from clorefleet.gateway.routing import Backend, RoutingTable
from clorefleet.gateway.server import Gateway
from clorefleet.gateway.token import TokenCheck
token, model, *urls = sys.argv[1:]
table = RoutingTable()
table.set_backends(tuple(Backend(f"lease-{n}", model, base_url=url) for n, url in enumerate(urls)))
gateway = Gateway(table, TokenCheck.of(Secret(token)))
gateway.start()
print(gateway.url, flush=True)
sys.stdin.read()
gateway.stop(1)
"""


@dataclass
class Process:
    """A server of its own process and where it answers."""

    popen: subprocess.Popen[str]
    url: str

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(10)


@contextlib.contextmanager
def serving(*command: str, url: str = "") -> Iterator[Process]:
    """Start a server that prints its address as its first line with one; or one whose `url` is known."""
    popen = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert popen.stdout is not None
        while not url.startswith("http"):
            url = popen.stdout.readline().strip()
            if not url and popen.poll() is not None:
                raise SystemExit(f"{command[0]} did not start")
        yield Process(popen, url)
    finally:
        with contextlib.suppress(ProcessLookupError):
            popen.kill()
        popen.wait(10)


@contextlib.contextmanager
def replicas(count: int) -> Iterator[list[Process]]:
    model = str(ensure_assets(progress=print).gguf_path)
    with contextlib.ExitStack() as ending:
        yield [ending.enter_context(serving(sys.executable, "-c", REPLICA, model)) for _ in range(count)]


@contextlib.contextmanager
def gateway(urls: list[str]) -> Iterator[tuple[str, str]]:
    token = secrets.token_urlsafe(24)
    with serving(sys.executable, "-c", GATEWAY, token, MODEL, *urls) as process:
        yield process.url, token


@contextlib.contextmanager
def router(urls: list[str]) -> Iterator[tuple[str, str]]:
    """The public router, as its documentation starts it."""
    ports = [_free_port(), _free_port()]
    command = [
        _beside_python("sglang-router"), "launch", "--worker-urls", *urls,
        "--host", "127.0.0.1", "--port", str(ports[0]), "--prometheus-port", str(ports[1]),
        "--policy", "cache_aware",
    ]  # fmt: skip
    with serving(*command, url=f"http://127.0.0.1:{ports[0]}") as process:
        deadline_s = time.monotonic() + START_S
        while not _has_workers(process.url, len(urls)):
            if time.monotonic() > deadline_s:
                raise SystemExit("the router did not become ready")
            time.sleep(0.2)
        yield process.url, "none"


def _beside_python(name: str) -> str:
    """A command of this environment, whether or not the shell knows it."""
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return shutil.which(name, path=folders) or name


def _has_workers(url: str, count: int) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readiness", timeout=2) as answer:
            return bool(json.load(answer).get("healthy_workers", 0) >= count)
    except (OSError, ValueError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def prompt(number: int, *, tokens: int) -> dict[str, object]:
    return {
        "model": MODEL,
        "max_tokens": tokens,
        "temperature": 0.0,
        "messages": [{"role": "user", "content": f"Write a sentence about the number {number}."}],
    }


# -- added latency


def client_of(url: str, token: str) -> openai.OpenAI:
    """Each request on a connection of its own: llama.cpp closes some after a stream without saying so."""
    http = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), timeout=PATIENCE_S)
    return openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0, http_client=http)


def time_one(client: openai.OpenAI, number: int) -> dict[str, float]:
    began = time.perf_counter()
    client.chat.completions.create(**prompt(number, tokens=4))  # type: ignore[call-overload]
    answered = time.perf_counter()
    stream = client.chat.completions.create(**prompt(number, tokens=8), stream=True)  # type: ignore[call-overload]
    next(stream)
    first = time.perf_counter()
    for _ in stream:
        pass
    return {
        "answer": answered - began,
        "first piece": first - answered,
        "stream": time.perf_counter() - answered,
    }


def added(pairs: int, fronts: dict[str, object]) -> None:
    with replicas(1) as [replica], contextlib.ExitStack() as ending:
        clients = {"direct": client_of(replica.url, "none")}
        for name, front in fronts.items():
            url, token = ending.enter_context(front([replica.url]))  # type: ignore[operator]
            clients[name] = client_of(url, token)
        for client in clients.values():
            time_one(client, 0)
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
        for number in range(pairs):
            for place, (name, client) in enumerate(clients.items()):
                # A prompt of its own for each: the replica's cache would favour whoever asks second.
                with contextlib.suppress(openai.OpenAIError):
                    taken[name].append(time_one(client, 1 + number * len(clients) + place))
    print(f"\none replica, directly and through each front, {pairs} rounds in turn")
    for name, rows in taken.items():
        print(f"  {name:14} {len(rows)} of {pairs} rounds answered within {PATIENCE_S} s")
    for what in ("answer", "first piece", "stream"):
        for quantile, of in (("p50", statistics.median), ("p99", p99)):
            figures = {name: of([row[what] for row in rows]) * 1000 for name, rows in taken.items()}
            direct = figures.pop("direct")
            words = [f"{name} {figure - direct:+7.1f} ms" for name, figure in figures.items()]
            print(f"  {what:12}{quantile}  direct {direct:8.1f} ms   {'   '.join(words)}")


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


# -- many streams, and a killed replica


async def stream_one(client: openai.AsyncOpenAI, number: int) -> bool:
    """Whether it came whole: pieces, and a reason why it ended."""
    try:
        stream = await client.chat.completions.create(**prompt(number, tokens=12), stream=True)  # type: ignore[call-overload]
        reasons = [choice.finish_reason async for piece in stream for choice in piece.choices]
    except openai.OpenAIError:
        return False
    return bool(reasons) and reasons[-1] in {"stop", "length"}


async def stream_all(url: str, token: str, count: int) -> int:
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=token, max_retries=0, timeout=STREAMS_S
    ) as client:
        return sum(await asyncio.gather(*(stream_one(client, number) for number in range(count))))


async def ask_while_killing(url: str, token: str, count: int, victim: Process) -> tuple[int, int]:
    """How many unstreamed requests were answered, and how many were already when the replica died."""
    done = 0

    async def ask(client: openai.AsyncOpenAI, number: int) -> bool:
        nonlocal done
        try:
            answer = await client.chat.completions.create(**prompt(number, tokens=24))  # type: ignore[call-overload]
        except openai.OpenAIError:
            return False
        done += 1
        return bool(answer.choices)

    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=token, max_retries=0, timeout=STREAMS_S
    ) as client:
        asking = [asyncio.ensure_future(ask(client, number)) for number in range(count)]
        while done < count // 5:
            await asyncio.sleep(0.02)
        at_kill = done
        victim.kill()
        return sum(await asyncio.gather(*asking)), at_kill


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--killed", type=int, default=60)
    parser.add_argument("--no-router", action="store_true")
    given = parser.parse_args()
    fronts: dict[str, object] = {"clorefleet": gateway}
    if not given.no_router and importlib.util.find_spec("sglang_router") is not None:
        fronts["sglang-router"] = router
    else:
        print("sglang-router is not installed: the gateway alone is measured")
    print(f"{os.cpu_count()} processors; replicas: llama.cpp with SmolLM2-135M, one thread each")
    added(max(2, min(given.pairs, 1_000)), fronts)
    print(f"\n{given.streams} streams at once over two replicas")
    for name, front in fronts.items():
        with replicas(2) as two, front([each.url for each in two]) as (url, token):  # type: ignore[operator]
            began = time.perf_counter()
            whole = asyncio.run(stream_all(url, token, given.streams))
            took_s = time.perf_counter() - began
            print(f"  {name:14} {whole} whole, {given.streams - whole} lost, {took_s:.1f} s")
    print(f"\n{given.killed} unstreamed requests, one of two replicas killed under way")
    for name, front in fronts.items():
        with replicas(2) as two, front([each.url for each in two]) as (url, token):  # type: ignore[operator]
            answered, at_kill = asyncio.run(ask_while_killing(url, token, given.killed, two[0]))
            failed = given.killed - answered
            print(f"  {name:14} {answered} answered, {failed} failed ({at_kill} before the kill)")


if __name__ == "__main__":
    main()
