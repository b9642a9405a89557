"""vLLM, with the model's MTP layer as speculation. Flags as of 0.33."""

from __future__ import annotations

import json

from clorefleet.domain.recipe import EngineSupport
from clorefleet.domain.setup import Setup
from clorefleet.engine.base import (
    Diagnosis,
    EngineMetrics,
    Launch,
    Symptom,
    diagnose_by,
    prometheus_samples,
    whole,
    with_memory_fraction,
)
from clorefleet.engine.sglang import check_python_package

_SYMPTOMS = (
    Symptom("No available memory for the cache blocks", "no_kv_memory", "the weights leave no room for context", "a higher memory share, or more GPUs"),
    Symptom("larger than the available KV cache memory", "no_kv_memory", "the context is longer than the memory allows", "less context, or more GPUs"),
    Symptom("is less than desired GPU memory utilization", "gpu_occupied", "another process uses a GPU of the host"),
    Symptom("requires --tool-call-parser", "bad_flag", "tool calls need a parser"),
    Symptom("must be divisible by tensor parallel size", "bad_parallelism", "the GPUs do not divide the model's heads"),
    Symptom("does not recognize this architecture", "engine_too_old", "its transformers does not know the model", "a newer image"),
)  # fmt: skip


_SHARE_DEFAULT, _SHARE_LEAST, _SHARE_MOST = 0.92, 0.7, 0.96
_SHARE_STEP = 0.04


class Vllm:
    health_path = "/health"

    def check_script(self) -> str:
        return f"command -v vllm > /dev/null || exit 1; {check_python_package('vllm')} 2>/dev/null || echo unknown"

    def launch(
        self, setup: Setup, support: EngineSupport, *, weights: str, files: tuple[str, ...], port: int
    ) -> Launch:
        arguments = [
            weights,
            "--served-model-name", setup.model,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--tensor-parallel-size", str(setup.tensor_parallel),
            "--max-model-len", str(setup.context_tokens),
            "--max-num-seqs", str(max(1, setup.concurrency)),
        ]  # fmt: skip
        if setup.pipeline_parallel > 1:
            arguments += ["--pipeline-parallel-size", str(setup.pipeline_parallel)]
        if setup.expert_parallel > 1:
            arguments += ["--enable-expert-parallel"]
        if setup.memory_fraction is not None:
            arguments += ["--gpu-memory-utilization", f"{setup.memory_fraction:g}"]
        if setup.kv_dtype == "fp8":
            arguments += ["--kv-cache-dtype", "fp8"]
        if support.tool_call_parser:
            arguments += ["--enable-auto-tool-choice", "--tool-call-parser", support.tool_call_parser]
        if support.reasoning_parser:
            arguments += ["--reasoning-parser", support.reasoning_parser]
        if setup.speculation is not None:
            config = {"method": "mtp", "num_speculative_tokens": setup.speculation.num_steps}
            arguments += ["--speculative-config", json.dumps(config)]
        return Launch(("vllm", "serve", *arguments))

    def metrics(self, text: str) -> EngineMetrics:
        samples = prometheus_samples(text)
        accepted = samples.get("vllm:spec_decode_num_accepted_tokens_total")
        drafts = samples.get("vllm:spec_decode_num_drafts_total")
        return EngineMetrics(
            running=whole(samples, "vllm:num_requests_running"),
            waiting=whole(samples, "vllm:num_requests_waiting"),
            generated_tokens=whole(samples, "vllm:generation_tokens_total"),
            prompt_tokens=whole(samples, "vllm:prompt_tokens_total"),
            kv_use=samples.get("vllm:kv_cache_usage_perc"),
            accept_length=1 + accepted / drafts if accepted is not None and drafts else None,
        )

    def diagnose(self, log: tuple[str, ...], exit_code: int | None) -> Diagnosis:
        return diagnose_by(_SYMPTOMS, log, exit_code)

    def corrected(self, setup: Setup, cause: str) -> Setup | None:
        steps = {"out_of_vram": -_SHARE_STEP, "gpu_occupied": -_SHARE_STEP, "no_kv_memory": _SHARE_STEP}
        if cause not in steps:
            return None
        return with_memory_fraction(
            setup, steps[cause], default=_SHARE_DEFAULT, least=_SHARE_LEAST, most=_SHARE_MOST
        )
