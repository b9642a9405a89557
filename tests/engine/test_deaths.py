"""What engines die of, told by their own lines; and the one flag that may cure it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clorefleet.domain.recipe import EngineName
from clorefleet.domain.setup import Setup
from clorefleet.engine import engine_of
from tests.fleet.builders import plan

SGLANG, VLLM, LLAMA, KT = EngineName.SGLANG, EngineName.VLLM, EngineName.LLAMACPP, EngineName.KTRANSFORMERS

DEATHS = [
    (SGLANG, "Out of memory even after retracting all other requests", "no_kv_memory"),
    (SGLANG, "The memory capacity is unbalanced. Some GPUs may be occupied", "gpu_occupied"),
    (SGLANG, "weight dim 0 is not divisible by weight quantization block_n = 128", "bad_parallelism"),
    (VLLM, "heads (20) must be divisible by tensor parallel size (8).", "bad_parallelism"),
    (VLLM, "3.1 GiB is larger than the available KV cache memory (1 GiB)", "no_kv_memory"),
    (VLLM, "Free memory is less than desired GPU memory utilization (0.92)", "gpu_occupied"),
    (VLLM, "Error: --enable-auto-tool-choice requires --tool-call-parser", "bad_flag"),
    (VLLM, "but Transformers does not recognize this architecture", "engine_too_old"),
    (LLAMA, "ggml: unable to allocate CUDA0 buffer", "out_of_vram"),
    (LLAMA, "error: invalid argument: --no-such", "bad_flag"),
    (LLAMA, "main: failed to load model", "bad_checkpoint"),
    (SGLANG, "CUDA driver version is insufficient for CUDA runtime version", "driver_too_old"),
    (SGLANG, "requirement error: unsatisfied condition: cuda>=13.0", "driver_too_old"),
    (SGLANG, "no kernel image is available for execution on the device", "gpu_unsupported"),
    (SGLANG, "NCCL WARN Error while creating shared memory segment /dev/shm/nccl-a", "shm_too_small"),
    (SGLANG, "Bus error (core dumped)", "shm_too_small"),
    (SGLANG, "torch.distributed.DistBackendError: NCCL error in: x.cpp", "nccl"),
    (SGLANG, "Watchdog caught collective operation timeout", "nccl"),
    (SGLANG, "OSError: [Errno 98] Address already in use", "port_in_use"),
    (KT, "huggingface_hub.errors.GatedRepoError: 401 Client Error.", "unauthorised"),
    (VLLM, "429 Client Error: Too Many Requests for url", "rate_limited"),
]


@pytest.mark.parametrize("engine, line, cause", DEATHS, ids=[f"{d[0]}-{d[2]}" for d in DEATHS])
def test_a_line_of_the_log_tells_the_cause(engine: EngineName, line: str, cause: str):
    found = engine_of(engine).diagnose(("loading", line, "Traceback"), 1)
    assert found.cause == cause and found.text


def test_the_particular_reason_wins_over_the_general_one():
    log = ("ggml: cudaMalloc failed: out of memory", "main: failed to load model")
    assert engine_of(LLAMA).diagnose(log, 1).cause == "out_of_vram"


@pytest.mark.parametrize(
    "code, cause", [(137, "out_of_ram"), (66, "weights_missing"), (3, "unknown"), (None, "unknown")]
)
def test_without_a_known_line_the_exit_code_speaks(code: int | None, cause: str):
    for engine in EngineName:
        assert engine_of(engine).diagnose(("nothing known",), code).cause == cause
        assert engine_of(engine).diagnose((), code).text


SMALL = plan().setup


def setup(engine: EngineName, **changes: object) -> Setup:
    return replace(SMALL, engine=engine, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "engine, before, cause, after",
    [
        (SGLANG, 0.88, "out_of_vram", 0.83),
        (SGLANG, None, "out_of_vram", 0.83),
        (SGLANG, 0.88, "no_kv_memory", 0.93),
        (KT, 0.75, "out_of_vram", 0.7),
        (VLLM, 0.92, "out_of_vram", 0.88),
        (VLLM, 0.92, "gpu_occupied", 0.88),
        (VLLM, None, "no_kv_memory", 0.96),
        (SGLANG, 0.7, "out_of_vram", None),
        (SGLANG, 0.93, "no_kv_memory", None),
        (SGLANG, 0.88, "driver_too_old", None),
        (VLLM, 0.92, "unknown", None),
    ],
)
def test_memory_is_corrected_by_its_share_inside_bounds(
    engine: EngineName, before: float | None, cause: str, after: float | None
):
    found = engine_of(engine).corrected(setup(engine, memory_fraction=before), cause)
    assert (None if found is None else found.memory_fraction) == after


def test_llama_cpp_moves_the_last_experts_of_each_gpu_to_ram():
    split = setup(LLAMA, experts_in_ram=(3, 4, 9), layers_per_gpu=(5, 6))
    found = engine_of(LLAMA).corrected(split, "out_of_vram")
    # The second GPU has layers 5 to 9 and the output head.
    assert found is not None and found.experts_in_ram == (1, 2, 3, 4, 7, 8, 9)
    assert engine_of(LLAMA).corrected(setup(LLAMA), "out_of_vram") is None
    assert engine_of(LLAMA).corrected(split, "bad_flag") is None


@pytest.mark.parametrize("engine", EngineName)
@pytest.mark.parametrize("cause", ["out_of_vram", "no_kv_memory", "gpu_occupied", "unknown", ""])
def test_a_correction_never_touches_what_was_promised(engine: EngineName, cause: str):
    before = setup(engine, memory_fraction=0.85, experts_in_ram=(3, 4))
    after = engine_of(engine).corrected(before, cause)
    if after is not None:
        assert replace(after, memory_fraction=0.85, experts_in_ram=(3, 4)) == before != after
