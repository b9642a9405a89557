"""The gateway in front of a real llama.cpp server, where its model is in the user's cache."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clorefleet.gateway.routing import Backend
from clorefleet.sandbox.assets import GGUF_NAME, TINY_NAME, default_cache_dir
from tests.gateway.conftest import Running
from tests.gateway.engine import until

SERVER = """
import signal, sys, threading
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames, params.port = ["127.0.0.1"], 0
params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.warmup = 1024, 2, 1, False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
threading.Event().wait()
"""


StartEngine = Callable[[], tuple[str, "subprocess.Popen[str]"]]


def _model_file() -> Path | None:
    return next(
        (file for name in (GGUF_NAME, TINY_NAME) if (file := default_cache_dir() / name).exists()), None
    )


@pytest.fixture
def start_engine() -> Iterator[Callable[[], tuple[str, subprocess.Popen[str]]]]:
    model = _model_file()
    if model is None:
        pytest.skip("no model in the user's cache; `clorefleet sandbox` fetches one")
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed (the `sandbox` extra)")
    started: list[subprocess.Popen[str]] = []

    def start() -> tuple[str, subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(model)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        address = ""
        while not address.startswith("http"):
            address = process.stdout.readline()
            assert address, "the engine did not start"
        return address.strip(), process

    yield start
    for process in started:
        process.terminate()
        process.wait(10)


@pytest.mark.slow
def test_a_replica_killed_under_load_fails_no_unstreamed_request(
    run_gateway: Callable[..., Running], start_engine: StartEngine
):
    (first, victim), (second, _) = start_engine(), start_engine()
    running = run_gateway()
    running.client.timeout = 170
    running.table.set_backends(
        (Backend("a", "smollm2", base_url=first), Backend("b", "smollm2", base_url=second))
    )

    def ask(number: int) -> int:
        words = {"role": "user", "content": f"Tell me about {number}."}
        prompt = {"model": "smollm2", "max_tokens": 12, "messages": [words]}
        return running.client.post("/v1/chat/completions", json=prompt).status_code

    with ThreadPoolExecutor(12) as pool:
        asking = [pool.submit(ask, number) for number in range(16)]
        until(lambda: running.table.in_flight("a") > 1)
        victim.kill()
        assert [each.result() for each in asking] == [200] * 16


def test_a_real_engine_answers_streams_and_is_counted(
    run_gateway: Callable[..., Running], start_engine: StartEngine
):
    engine_url, _ = start_engine()
    running = run_gateway()
    running.client.timeout = 170
    running.table.set_backends((Backend("l0", "smollm2", base_url=engine_url),))
    prompt = {"model": "smollm2", "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}

    plain = running.client.post("/v1/chat/completions", json=prompt)
    assert plain.status_code == 200 and plain.json()["usage"]["completion_tokens"] > 0

    streamed = prompt | {"stream": True, "stream_options": {"include_usage": True}}
    with running.client.stream("POST", "/v1/chat/completions", json=streamed) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]" and len(lines) > 3
    assert all(json.loads(line[6:])["object"] == "chat.completion.chunk" for line in lines[:-1])

    # Right after a stream: llama.cpp may be closing that connection, though it promised to keep it.
    for _ in range(10):
        with running.client.stream(
            "POST", "/v1/chat/completions", json=streamed | {"max_tokens": 1}
        ) as answer:
            answer.read()
        shown = running.client.post("/v1/embeddings", json={"model": "smollm2", "input": "x"})
        assert shown.status_code != 502

    refused = running.client.post("/v1/embeddings", json={"model": "smollm2", "input": "x"})
    assert refused.status_code in {400, 501} and refused.json()["error"]["message"].startswith("The replica")

    until(lambda: len(running.records) == 23)
    counts = [(each.prompt_tokens, each.completion_tokens) for each in running.records[:2]]
    assert counts[0] == counts[1] and None not in counts[0]
    assert [each.was_streamed for each in running.records[:3]] == [False, True, True]
