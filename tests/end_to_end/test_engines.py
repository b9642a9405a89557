"""`deploy glm-5.1` by each engine, on a simulated server where it fits, through all checks to an answer.

One sandbox and one daemon for all of them: each replica is stopped before the next engine's is wished for.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest

from tests.cli.conftest import CommandLine
from tests.end_to_end.test_deploy import a_sandbox

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(600)]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SAID = {
    "sglang": ("sglang 0.5.23", "speculative_algorithm='EAGLE'", "mem_fraction_static", "tp_size=8"),
    "vllm": ("vLLM 0.33.0", "Maximum concurrency for 65,536 tokens"),
    "llama.cpp": ("load_tensors: offloaded 78 layers", "CPU model buffer size"),
    "ktransformers": ("sglang-kt 0.7.2", "kt_weight_path", "kt_num_gpu_experts"),
}
"""What the engine's own log must show of the setup that was planned."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    yield from a_sandbox(tmp_path_factory.mktemp("engines"))


@pytest.mark.parametrize("engine", SAID)
def test_glm_is_served_by_each_engine(home: CommandLine, engine: str):
    name = f"glm-{engine.replace('.', '')}"
    run = home("deploy", "glm-5.1", "--engine", engine, "--name", name, "--budget", "900/day", "--sandbox")
    assert run.code == 0, run.err
    assert "a simulated engine" in run.out
    deployments = home("status", "--sandbox", "--json").json["deployments"]
    [served] = [replica for deployment in deployments for replica in deployment["replicas"]]
    assert served["setup"].endswith(f" on {engine}") and served["phase"] == "serving", served
    assert "SIMULATED" in home("logs", name, "--engine", "-n", "500", "--sandbox").out
    # As it lies on the server: `logs` cuts lines as long as SGLang's list of its arguments.
    log = home("ssh", name, "--sandbox", "--", "sh", "-c", "cat .clorefleet/jobs/*-launching-*/log").out
    for part in SAID[engine]:
        assert part in log, log[-3000:]
    message = ask(home)
    if engine != "llama.cpp":  # whose recipe names no parsers
        assert message["tool_calls"][0]["function"]["name"] == "get_weather"
    assert home("stop", "--all", "--sandbox").code == 0


def ask(home: CommandLine) -> dict:
    """Through the gateway, as a client would."""
    url = home("daemon", "status", "--sandbox", "--json").json["gateway_url"]
    token = (home.home / "home" / "state" / "sandbox" / "gateway.token").read_text()
    body = {
        "model": "glm-5.1",
        "max_tokens": 60,
        "messages": [{"role": "user", "content": "What is the weather in Paris? Use the tool."}],
        "tools": [WEATHER],
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        message: dict = json.load(answer)["choices"][0]["message"]
        return message
