"""What engines die of, told by their own lines; and the one flag that may cure it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clorefleet.domain.failure import Cause, Correction
from clorefleet.domain.recipe import EngineName, EngineSupport, Precision
from clorefleet.domain.setup import Setup
from clorefleet.engine import engine_of
from clorefleet.engine.correction import corrected, next_correction
from tests.fleet.builders import lease, plan

SGLANG, VLLM, LLAMA, KT = EngineName.SGLANG, EngineName.VLLM, EngineName.LLAMACPP, EngineName.KTRANSFORMERS

DEATHS = [
    (SGLANG, "Out of memory even after retracting all other requests", "context_too_long"),
    (SGLANG, "The memory capacity is unbalanced. Some GPUs may be occupied", "gpu_occupied"),
    (SGLANG, "weight dim 0 is not divisible by weight quantization block_n = 128", "bad_parallelism"),
    (VLLM, "heads (20) must be divisible by tensor parallel size (8).", "bad_parallelism"),
    (VLLM, "3.1 GiB is larger than the available KV cache memory (1 GiB)", "context_too_long"),
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


def after(before: Setup, cause: str, *made: Correction) -> Setup | None:
    """The setup of the next launch, or None where nothing more is tried."""
    engine = engine_of(before.engine)
    following = next_correction(engine, before, Cause(cause), made)
    return None if following is None else corrected(engine, before, (*made, following))


@pytest.mark.parametrize(
    "engine, before, cause, fraction",
    [
        (SGLANG, 0.88, "out_of_vram", 0.83),
        (SGLANG, None, "out_of_vram", 0.83),
        (SGLANG, 0.88, "no_kv_memory", 0.93),
        (KT, 0.75, "out_of_vram", 0.7),
        (VLLM, 0.92, "out_of_vram", 0.88),
        (VLLM, 0.92, "out_of_vram_running", 0.88),
        (VLLM, 0.92, "gpu_occupied", 0.88),
        (VLLM, None, "no_kv_memory", 0.96),
    ],
)
def test_memory_is_corrected_by_its_share_inside_bounds(
    engine: EngineName, before: float | None, cause: str, fraction: float
):
    found = after(setup(engine, memory_fraction=before), cause)
    assert found is not None and found.memory_fraction == fraction


@pytest.mark.parametrize(
    "engine, cause", [(SGLANG, "driver_too_old"), (VLLM, "unknown"), (LLAMA, "bad_flag"), (KT, "nothing")]
)
def test_what_no_flag_cures_is_not_tried_again_with_another(engine: EngineName, cause: str):
    cause = "unknown" if cause == "nothing" else cause
    assert after(setup(engine, memory_fraction=0.85, context_floor_tokens=1024), cause) is None


@pytest.mark.parametrize("engine", [SGLANG, VLLM, KT])
def test_a_shortage_is_met_by_less_memory_then_by_less_context_in_chunks_then_no_more(engine: EngineName):
    planned = setup(engine, memory_fraction=0.88, context_tokens=65_536, context_floor_tokens=40_000)
    first = after(planned, "out_of_vram")
    second = after(planned, "out_of_vram", Correction.LOWER_MEMORY_FRACTION)
    assert first is not None and first.memory_fraction is not None and first.memory_fraction < 0.88
    assert second is not None and second.context_tokens == 40_000 and second.prefill_chunk_tokens == 2048
    both = (Correction.LOWER_MEMORY_FRACTION, Correction.SHORTER_CONTEXT)
    assert after(planned, "out_of_vram", *both) is None


def test_a_fraction_that_went_down_does_not_come_up_again():
    planned = setup(SGLANG, memory_fraction=0.88, context_tokens=8192, context_floor_tokens=8192)
    found = next_correction(
        engine_of(SGLANG), planned, Cause.NO_KV_MEMORY, (Correction.LOWER_MEMORY_FRACTION,)
    )
    assert found is Correction.SHORTER_CONTEXT


@pytest.mark.parametrize("engine", [SGLANG, VLLM, KT])
def test_gpus_that_cannot_reach_each_other_go_through_memory(engine: EngineName):
    found = after(setup(engine, precision=Precision.FP8), "nccl")
    assert found is not None and not found.has_peer_to_peer
    launch = engine_of(engine).launch(
        found, EngineSupport(engine, "image", ()), weights="/w", files=(), port=1
    )
    assert launch.env["NCCL_P2P_DISABLE"] == "1" and "--disable-custom-all-reduce" in launch.argv


@pytest.mark.parametrize("engine", EngineName)
def test_a_taken_port_is_answered_by_another(engine: EngineName):
    planned = setup(engine)
    assert next_correction(engine_of(engine), planned, Cause.PORT_IN_USE, ()) is Correction.OTHER_PORT
    held = lease()
    assert replace(held, corrections=(Correction.OTHER_PORT,)).engine_port != held.engine_port


def test_llama_cpp_moves_the_last_experts_of_each_gpu_to_ram():
    split = setup(LLAMA, experts_in_ram=(3, 4, 9), layers_per_gpu=(5, 6))
    found = after(split, "out_of_vram")
    # The second GPU has layers 5 to 9 and the output head.
    assert found is not None and found.experts_in_ram == (1, 2, 3, 4, 7, 8, 9)


def test_an_oom_after_the_ready_line_is_one_of_a_request():
    log = ("The server is fired up and ready to roll!", "torch.OutOfMemoryError: CUDA out of memory.")
    assert engine_of(SGLANG).diagnose(log, 1).cause is Cause.OUT_OF_VRAM_RUNNING
    assert engine_of(SGLANG).diagnose(log[::-1], 1).cause is Cause.OUT_OF_VRAM


@pytest.mark.parametrize("engine", EngineName)
@pytest.mark.parametrize("cause", Cause)
def test_a_correction_never_touches_what_was_promised(engine: EngineName, cause: Cause):
    before = setup(
        engine, memory_fraction=0.85, experts_in_ram=(3, 4), context_tokens=9000, context_floor_tokens=8000
    )
    found = corrected(engine_of(engine), before, engine_of(engine).corrections(cause))
    assert found.context_tokens >= 8000
    free = {
        "memory_fraction": 0.85,
        "experts_in_ram": (3, 4),
        "context_tokens": 9000,
        "prefill_chunk_tokens": None,
        "has_peer_to_peer": True,
    }
    assert replace(found, **free) == before  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", EngineName)
def test_no_correction_is_made_twice(engine: EngineName):
    planned = setup(engine, memory_fraction=0.85, experts_in_ram=(3, 4), context_floor_tokens=1024)
    for cause in Cause:
        made: tuple[Correction, ...] = ()
        while (following := next_correction(engine_of(engine), planned, cause, made)) is not None:
            assert following not in made
            made = (*made, following)
        assert len(made) <= 2
