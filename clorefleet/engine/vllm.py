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
)

_SYMPTOMS = (
    Symptom("No available memory for the cache blocks", "no_kv_memory", "the weights leave no room for context"),
    Symptom("larger than the available KV cache memory", "no_kv_memory", "the context is longer than the memory allows"),
    Symptom("is less than desired GPU memory utilization", "gpu_occupied", "another process uses a GPU of the host"),
    Symptom("must be divisible by tensor parallel size", "bad_parallelism", "the GPUs do not divide the model's heads"),
    Symptom("does not recognize this architecture", "engine_too_old", "its transformers does not know the model"),
)  # fmt: skip


class Vllm:
    health_path = "/health"

    def check_script(self) -> str:
        return "command -v vllm"

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
