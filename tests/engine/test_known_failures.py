"""Every failure line that is known of the engines, from log tail to cause, remedy and correction."""

from __future__ import annotations

import pytest

from clorefleet.domain.failure import HOST_IS_TO_BLAME, Cause, Correction
from clorefleet.domain.recipe import EngineName
from clorefleet.engine import engine_of
from clorefleet.engine.diagnosis import engine_of_log

SGLANG, VLLM, LLAMA, KT = EngineName.SGLANG, EngineName.VLLM, EngineName.LLAMACPP, EngineName.KTRANSFORMERS
LOWER, HIGHER, SHORTER = (
    Correction.LOWER_MEMORY_FRACTION,
    Correction.HIGHER_MEMORY_FRACTION,
    Correction.SHORTER_CONTEXT,
)

ROWS: list[tuple[EngineName, str, Cause, str, tuple[Correction, ...]]] = [
    (SGLANG, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.40 GiB. GPU 0 has a total capacity", Cause.OUT_OF_VRAM, "more GPUs", (LOWER, SHORTER)),
    (SGLANG, "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", Cause.NO_KV_MEMORY, "higher memory fraction", (HIGHER, SHORTER)),
    (SGLANG, "1. set --mem-fraction-static to a smaller value (e.g., 0.8 or 0.7)", Cause.OUT_OF_VRAM, "--cuda-graph-max-bs-decode", (LOWER, SHORTER)),
    (SGLANG, "ValueError: Out of memory even after retracting all other requests in the decode batch.", Cause.CONTEXT_TOO_LONG, "FP8", (SHORTER,)),
    (SGLANG, "The memory capacity is unbalanced. Some GPUs may be occupied by other processes.", Cause.GPU_OCCUPIED, "another host", ()),
    (VLLM, "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", Cause.NO_KV_MEMORY, "more GPUs", (HIGHER, SHORTER)),
    (VLLM, "ValueError: To serve at least one request with the model's max seq len (131072), (12.50 GiB KV cache is needed, which is larger than the available KV cache memory (9.10 GiB). Based on the available memory, the estimated maximum model length is 95424.", Cause.CONTEXT_TOO_LONG, "--max-model-len", (SHORTER, HIGHER)),
    (VLLM, "ValueError: Free memory on device cuda:0 (60.1/79.2 GiB) on startup is less than desired GPU memory utilization (0.92, 72.8 GiB).", Cause.GPU_OCCUPIED, "--gpu-memory-utilization", (LOWER,)),
    (VLLM, "ValueError: Total number of attention heads (20) must be divisible by tensor parallel size (8).", Cause.BAD_PARALLELISM, "number of GPUs", ()),
    (LLAMA, "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 20480.00 MiB on device 0: cudaMalloc failed: out of memory", Cause.OUT_OF_VRAM, "less context", (Correction.MORE_EXPERTS_IN_RAM, SHORTER)),
    (LLAMA, "llama_model_load: error loading model: unable to allocate CUDA0 buffer", Cause.OUT_OF_VRAM, "less context", (Correction.MORE_EXPERTS_IN_RAM, SHORTER)),
    (LLAMA, "llama_model_load: error loading model: unknown model architecture: 'glm-dsa'", Cause.ENGINE_TOO_OLD, "newer image", ()),
    (VLLM, "ValueError: The checkpoint you are trying to load has model type `glm_moe_dsa` but Transformers does not recognize this architecture.", Cause.ENGINE_TOO_OLD, "transformers 5.4", ()),
    (SGLANG, "RuntimeError: The NVIDIA driver on your system is too old (found version 12040).", Cause.DRIVER_TOO_OLD, "newer driver", ()),
    (LLAMA, "ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient for CUDA runtime version", Cause.DRIVER_TOO_OLD, "older CUDA", ()),
    (VLLM, "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0", Cause.DRIVER_TOO_OLD, "newer driver", ()),
    (SGLANG, "RuntimeError: CUDA error: no kernel image is available for execution on the device", Cause.GPU_UNSUPPORTED, "newer image", ()),
    (VLLM, "NCCL WARN Error while creating shared memory segment /dev/shm/nccl-A1b2C3 (size 9637888)", Cause.SHM_TOO_SMALL, "--shm-size 16g", ()),
    (SGLANG, "Bus error (core dumped)", Cause.SHM_TOO_SMALL, "--ipc=host", ()),
    (SGLANG, "torch.distributed.DistBackendError: NCCL error in: /pytorch/ProcessGroupNCCL.cpp:77", Cause.NCCL, "NCCL_P2P_DISABLE", (Correction.NO_PEER_TO_PEER,)),
    (VLLM, "ncclSystemError: System call (e.g. socket, malloc) or external library call failed", Cause.NCCL, "--disable-custom-all-reduce", (Correction.NO_PEER_TO_PEER,)),
    (VLLM, "ncclUnhandledCudaError: Call to CUDA function failed.", Cause.NCCL, "another host", (Correction.NO_PEER_TO_PEER,)),
    (KT, "[rank1]:[E1125] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)", Cause.NCCL, "another rank", (Correction.NO_PEER_TO_PEER,)),
    (SGLANG, "launch_server.py: error: argument --reasoning-parser: invalid choice: 'glm47' (choose from auto, glm45)", Cause.BAD_FLAG, "glm45", ()),
    (VLLM, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', Cause.TOOL_CALLS_DROPPED, "--enable-auto-tool-choice", ()),
    (VLLM, "TypeError: Error: --enable-auto-tool-choice requires --tool-call-parser", Cause.BAD_FLAG, "--tool-call-parser", ()),
    (VLLM, '{"role":"assistant","content":"<tool_call>get_weather\\n<arg_key>city"}', Cause.TOOL_CALLS_DROPPED, "--tool-call-parser", ()),
    (SGLANG, '{"role": "assistant", "content": "4", "reasoning_content": ""}', Cause.NO_THINKING, "--reasoning-parser", ()),
    (SGLANG, "OSError: [Errno 28] No space left on device", Cause.DISK_FULL, "free disk", ()),
    (SGLANG, "huggingface_hub.errors.HfHubHTTPError: 401 Client Error: Unauthorized for url", Cause.UNAUTHORISED, "token", ()),
    (VLLM, "huggingface_hub.errors.GatedRepoError: 403", Cause.UNAUTHORISED, "token", ()),
    (VLLM, "Cannot access gated repo for url https://huggingface.co/x", Cause.UNAUTHORISED, "token", ()),
    (VLLM, "RepositoryNotFoundError: 404. Repository Not Found for url", Cause.NOT_FOUND, "name", ()),
    (VLLM, "429 Client Error: Too Many Requests for url", Cause.RATE_LIMITED, "token", ()),
    (SGLANG, "WARNING: Error while downloading from https://hub/resolve/main/a: Read timed out. Trying to resume download...", Cause.SLOW_DOWNLOAD, "faster line", ()),
    (LLAMA, "Killed", Cause.OUT_OF_RAM, "more RAM", ()),
    (SGLANG, "OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', 30000): address already in use", Cause.PORT_IN_USE, "another port", (Correction.OTHER_PORT,)),
    (LLAMA, "start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080", Cause.PORT_IN_USE, "another port", (Correction.OTHER_PORT,)),
    (SGLANG, "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge", Cause.BAD_CHECKPOINT, "verification", ()),
    (LLAMA, "llama_model_load: error loading model: a.gguf: tensor data is not within the file bounds, model is corrupted or incomplete", Cause.BAD_CHECKPOINT, "verification", ()),
    (LLAMA, "gguf_init_from_file_impl: invalid magic characters: '<htm', expected 'GGUF'", Cause.BAD_CHECKPOINT, "verification", ()),
    (SGLANG, "ValueError: triton_sparse_mla requires SM90 (Hopper) or newer", Cause.GPU_UNSUPPORTED, "llama.cpp", ()),
    (VLLM, "NVRM: Xid 79: GPU has fallen off the bus.", Cause.GPU_DEAD, "another host", ()),
]  # fmt: skip


@pytest.mark.parametrize("engine, line, cause, remedy, corrections", ROWS, ids=[f"{row[0]}-{row[2]}-{i}" for i, row in enumerate(ROWS)])  # fmt: skip
def test_a_known_line_leads_to_its_cause_its_remedy_and_what_is_tried(
    engine: EngineName, line: str, cause: Cause, remedy: str, corrections: tuple[Correction, ...]
):
    log = ("INFO loading", line, "Traceback (most recent call last):", "RuntimeError: it failed")
    found = engine_of(engine).diagnose(log, 1)
    assert found.cause is cause, found
    assert remedy in found.remedy and found.text
    assert engine_of(engine).corrections(cause) == corrections


@pytest.mark.parametrize("engine", EngineName)
def test_a_killed_process_lacked_ram(engine: EngineName):
    assert engine_of(engine).diagnose(("loading",), 137).cause is Cause.OUT_OF_RAM


@pytest.mark.parametrize("engine", EngineName)
def test_lines_of_a_healthy_start_mean_nothing(engine: EngineName):
    log = (
        "[2026-11-25] server_args=ServerArgs(model_path='/w', reasoning_parser='glm45', tool_call_parser='glm47')",
        "Load weight end. mem usage=89.1 GB",
        "INFO 11-25 Available KV cache memory: 34.60 GiB",
        "The server is fired up and ready to roll!",
        "Application startup complete.",
        "main: server is listening on http://127.0.0.1:8080",
    )
    assert engine_of(engine).diagnose(log, 0).cause is Cause.UNKNOWN


def test_the_driver_is_told_before_what_follows_from_it():
    log = (
        "ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient for CUDA runtime version",
        "main: failed to load model",
    )
    assert engine_of(LLAMA).diagnose(log, 1).cause is Cause.DRIVER_TOO_OLD


@pytest.mark.parametrize(
    "engine, line",
    [
        (SGLANG, "server_args=ServerArgs(model_path='/w')"),
        (VLLM, "(EngineCore) INFO 11-25 Starting to load model"),
        (LLAMA, "llama_model_loader: loaded meta data"),
        (KT, "sglang server_args kt_kernel AMX"),
        (SGLANG, "nothing of any engine"),
    ],
)
def test_the_engine_is_told_by_its_log(engine: EngineName, line: str):
    assert engine_of_log(("x", line)) is engine


def test_every_cause_that_a_log_tells_has_a_row_here():
    """A symptom without a test could be misspelt and never match."""
    not_of_logs = {
        Cause.OUT_OF_VRAM_RUNNING,
        Cause.INDEX_UNREACHABLE,
        Cause.PACKAGE_NOT_FOUND,
        Cause.BUILD_NEEDED,
        Cause.BAD_PACKAGE,
        Cause.INSTALL_FAILED,
        Cause.LOCAL_WEIGHTS,
        Cause.UPLOAD_BROKE,
        Cause.WEIGHTS_MISSING,
        Cause.WRONG_ANSWERS,
        Cause.TOO_SLOW,
        Cause.TOOK_TOO_LONG,
        Cause.NOT_AS_OFFERED,
        Cause.SUPERSEDED,
        Cause.OUTBID,
        Cause.NO_KEY_HERE,
        Cause.UNPROVEN,
        Cause.UNKNOWN,
    }
    assert {row[2] for row in ROWS} == set(Cause) - not_of_logs
    assert set(Cause) >= HOST_IS_TO_BLAME
