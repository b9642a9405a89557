"""Each engine's command line, metrics and deaths, as tables."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from clorefleet.config.recipes import load_recipes
from clorefleet.domain.recipe import EngineName, EngineSupport, Precision
from clorefleet.domain.setup import Setup, Speculation
from clorefleet.engine import engine_of
from tests.fleet.builders import plan

RECIPE = load_recipes()["glm-5.1"]
SMALL = plan().setup
FP8 = replace(
    SMALL,
    model="glm-5.1",
    checkpoint="fp8",
    precision=Precision.FP8,
    engine=EngineName.SGLANG,
    tensor_parallel=8,
    context_tokens=65_536,
    concurrency=4,
    memory_fraction=0.88,
    speculation=Speculation("EAGLE", 3, 1, 4),
)


def argv(setup: Setup, files: tuple[str, ...] = ("model-00001-of-00002.safetensors",)) -> list[str]:
    support = next((s for s in RECIPE.engines if s.engine is setup.engine), None)
    support = support or EngineSupport(setup.engine, "image", ())
    return list(
        engine_of(setup.engine).launch(setup, support, weights="/root/w", files=files, port=30_000).argv
    )


def test_sglang_with_eagle_is_the_public_recipe():
    assert argv(FP8) == [
        "python3",
        "-m",
        "sglang.launch_server",
        "--model-path",
        "/root/w",
        "--served-model-name",
        "glm-5.1",
        "--host",
        "127.0.0.1",
        "--port",
        "30000",
        "--tp-size",
        "8",
        "--context-length",
        "65536",
        "--enable-metrics",
        "--mem-fraction-static",
        "0.88",
        "--tool-call-parser",
        "glm47",
        "--reasoning-parser",
        "glm45",
        "--speculative-algorithm",
        "EAGLE",
        "--speculative-num-steps",
        "3",
        "--speculative-eagle-topk",
        "1",
        "--speculative-num-draft-tokens",
        "4",
    ]


def test_vllm_speaks_its_own_words_for_the_same():
    command = argv(replace(FP8, engine=EngineName.VLLM))
    assert command[:3] == ["vllm", "serve", "/root/w"]
    assert "--tensor-parallel-size 8" in " ".join(command)
    assert command[command.index("--speculative-config") + 1] == (
        '{"method": "mtp", "num_speculative_tokens": 3}'
    )
    assert "--enable-auto-tool-choice" in command


def test_llama_cpp_names_the_first_part_and_shares_the_context_over_its_slots():
    setup = replace(
        SMALL,
        experts_in_ram=(3, 4, 60),
        layers_per_gpu=(40, 39),
        concurrency=2,
        context_tokens=4096,
        model="glm-5.1",
    )
    files = tuple(f"Q4_K_M/GLM-5.1-Q4_K_M-{n:05}-of-00011.gguf" for n in (2, 1, 3))
    command = argv(setup, files)
    assert command[command.index("--model") + 1] == "/root/w/Q4_K_M/GLM-5.1-Q4_K_M-00001-of-00011.gguf"
    assert command[command.index("--ctx-size") + 1] == "8192"
    assert command[command.index("--override-tensor") + 1] == r"blk\.(3|4|60)\.ffn_.*_exps=CPU"
    assert command[command.index("--tensor-split") + 1] == "40,39"
    assert "--metrics" in command


@pytest.mark.parametrize("engine", [EngineName.SGLANG, EngineName.VLLM, EngineName.LLAMACPP])
def test_every_engine_listens_on_the_nodes_loopback_alone(engine: EngineName):
    """S13."""
    command = argv(replace(FP8, engine=engine), ("a.gguf", "b.safetensors"))
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert not any("0.0.0.0" in word for word in command)


METRICS = {
    EngineName.SGLANG: """# HELP x
sglang:num_running_reqs{model_name="glm"} 2.0
sglang:num_queue_reqs{model_name="glm"} 1.0
sglang:generation_tokens_total{model_name="glm"} 1e3
sglang:prompt_tokens_total 50
sglang:token_usage 0.25
sglang:spec_accept_length 2.4
""",
    EngineName.VLLM: """vllm:num_requests_running{engine="0"} 2
vllm:num_requests_waiting 1
vllm:generation_tokens_total 1000
vllm:prompt_tokens_total 50
vllm:kv_cache_usage_perc 0.25
vllm:spec_decode_num_accepted_tokens_total 140
vllm:spec_decode_num_drafts_total 100
""",
    EngineName.LLAMACPP: """llamacpp:requests_processing 2
llamacpp:requests_deferred 1
llamacpp:tokens_predicted_total 1000
llamacpp:prompt_tokens_total 50
llamacpp:predicted_tokens_seconds NaN
""",
}


@pytest.mark.parametrize("engine", METRICS)
def test_metrics_come_in_one_shape(engine: EngineName):
    found = engine_of(engine).metrics(METRICS[engine])
    assert (found.running, found.waiting, found.generated_tokens, found.prompt_tokens) == (2, 1, 1000, 50)
    if engine is not EngineName.LLAMACPP:
        assert found.accept_length == pytest.approx(2.4)


@pytest.mark.parametrize("text", ["", "\x00" * 100, "sglang:num_running_reqs{", "a b c\n" * 1000, "x 1e999"])
def test_metrics_of_a_strange_host_break_nothing(text: str):
    for engine in METRICS:
        engine_of(engine).metrics(text)


@pytest.mark.parametrize("figure", ["1e999", "1e300", "-1", "NaN"])
@pytest.mark.parametrize("engine", METRICS)
def test_a_figure_that_no_engine_has_is_not_told(engine: EngineName, figure: str):
    """G1: one of them would have stopped each tick, and with it the end of all servers."""
    odd = re.sub(r"^([^#].*) \S+$", rf"\1 {figure}", METRICS[engine], flags=re.MULTILINE)
    found = engine_of(engine).metrics(odd)
    assert odd != METRICS[engine]
    assert (found.running, found.waiting, found.generated_tokens, found.prompt_tokens) == (None,) * 4


@pytest.mark.parametrize(
    "engine, line, code, cause",
    [
        (EngineName.LLAMACPP, "ggml_cuda: cudaMalloc failed: out of memory", 1, "out_of_vram"),
        (EngineName.LLAMACPP, "unknown model architecture: 'glm-dsa'", 1, "engine_too_old"),
        (EngineName.SGLANG, "Not enough memory. Please try to increase --mem-fraction-static.", 1, "no_kv_memory"),
        (EngineName.SGLANG, "1. set --mem-fraction-static to a smaller value (e.g., 0.8)", 1, "out_of_vram"),
        (EngineName.SGLANG, "The NVIDIA driver on your system is too old (found version 12040)", 1, "driver_too_old"),
        (EngineName.SGLANG, "error: argument --reasoning-parser: invalid choice: 'glm47'", 2, "bad_flag"),
        (EngineName.VLLM, "ValueError: No available memory for the cache blocks.", 1, "no_kv_memory"),
        (EngineName.VLLM, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", 1, "out_of_vram"),
        (EngineName.VLLM, "OSError: [Errno 28] No space left on device", 1, "disk_full"),
        (EngineName.LLAMACPP, "Killed", 137, "out_of_ram"),
        (EngineName.LLAMACPP, "something nobody has seen", 3, "unknown"),
    ],
)  # fmt: skip
def test_a_death_is_told_by_its_log(engine: EngineName, line: str, code: int, cause: str):
    found = engine_of(engine).diagnose(("starting", line, "goodbye"), code)
    assert found.cause == cause and found.text
