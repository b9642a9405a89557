"""vLLM, with the model's MTP layer as speculation. Flags as of 0.33."""

from __future__ import annotations

import json

from clorefleet.domain.failure import Cause, Correction
from clorefleet.domain.recipe import EngineSupport
from clorefleet.domain.setup import Setup
from clorefleet.engine.base import EngineMetrics, Launch, chat, count_of, prometheus_samples, requests_of
from clorefleet.engine.correction import with_memory_fraction, with_shorter_context, without_peer_to_peer
from clorefleet.engine.diagnosis import Diagnosis, Symptom, diagnose_by
from clorefleet.engine.sglang import NO_P2P_ENV, OFFLINE_ENV, check_python_package

_SYMPTOMS = (
    Symptom("No available memory for the cache blocks", Cause.NO_KV_MEMORY, "the weights leave no room for context", "a higher memory share, or more GPUs"),
    Symptom("To serve at least one request with the model's max seq len", Cause.CONTEXT_TOO_LONG, "the context is longer than the memory allows", "the `--max-model-len` that the line names, or more GPUs"),
    Symptom("larger than the available KV cache memory", Cause.CONTEXT_TOO_LONG, "the context is longer than the memory allows", "less context, or more GPUs"),
    Symptom("is less than desired GPU memory utilization", Cause.GPU_OCCUPIED, "another process uses a GPU of the host, or the share is too high", "a lower `--gpu-memory-utilization`, or another host"),
    Symptom("must be divisible by tensor parallel size", Cause.BAD_PARALLELISM, "the GPUs do not divide the model's heads", "another number of GPUs"),
    Symptom("is not divisible by weight quantization block", Cause.BAD_PARALLELISM, "the GPUs do not divide the FP8 blocks", "another number of GPUs, or expert parallelism"),
)  # fmt: skip
_SHARE_DEFAULT, _SHARE_LEAST, _SHARE_MOST = 0.92, 0.7, 0.96
_SHARE_STEP = 0.04
LONG_CONTEXT_TOKENS = 65_536
"""Above this, prefill goes in named chunks. It is vLLM's default already; naming the size bounds activations."""
LONG_CONTEXT_CHUNK_TOKENS = 8192
_CORRECTIONS = {
    Cause.OUT_OF_VRAM: (Correction.LOWER_MEMORY_FRACTION, Correction.SHORTER_CONTEXT),
    Cause.OUT_OF_VRAM_RUNNING: (Correction.LOWER_MEMORY_FRACTION, Correction.SHORTER_CONTEXT),
    Cause.GPU_OCCUPIED: (Correction.LOWER_MEMORY_FRACTION,),
    Cause.NO_KV_MEMORY: (Correction.HIGHER_MEMORY_FRACTION, Correction.SHORTER_CONTEXT),
    Cause.CONTEXT_TOO_LONG: (Correction.SHORTER_CONTEXT, Correction.HIGHER_MEMORY_FRACTION),
    Cause.NCCL: (Correction.NO_PEER_TO_PEER,),
    Cause.PORT_IN_USE: (Correction.OTHER_PORT,),
}


class Vllm:
    health_path = "/health"
    proof_path = ""
    stop_signal = "TERM"
    stop_grace_s = 30.0

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
        if support.tool_call_parser.startswith("glm"):
            # GLM's template wants plain text. Source: vLLM's own recipe for GLM-5.1.
            arguments += ["--chat-template-content-format", "string"]
        if support.reasoning_parser:
            arguments += ["--reasoning-parser", support.reasoning_parser]
        if setup.speculation is not None:
            config = {"method": "mtp", "num_speculative_tokens": setup.speculation.num_steps}
            arguments += ["--speculative-config", json.dumps(config)]
        chunk = setup.prefill_chunk_tokens
        if chunk is None and setup.context_tokens > LONG_CONTEXT_TOKENS:
            chunk = LONG_CONTEXT_CHUNK_TOKENS
        if chunk is not None:
            arguments += ["--enable-chunked-prefill", "--max-num-batched-tokens", str(chunk)]
        env = {**OFFLINE_ENV, "VLLM_NO_USAGE_STATS": "1"}
        if not setup.has_peer_to_peer:
            arguments.append("--disable-custom-all-reduce")
            env |= NO_P2P_ENV
        return Launch(("vllm", "serve", *arguments), env)

    def warm_up(self, setup: Setup) -> tuple[dict[str, object], ...]:
        return (chat(setup, "Say hello.", max_tokens=8),)

    def metrics(self, text: str) -> EngineMetrics:
        samples = prometheus_samples(text)
        accepted = samples.get("vllm:spec_decode_num_accepted_tokens_total")
        drafts = samples.get("vllm:spec_decode_num_drafts_total")
        return EngineMetrics(
            running=requests_of(samples, "vllm:num_requests_running"),
            waiting=requests_of(samples, "vllm:num_requests_waiting"),
            generated_tokens=count_of(samples, "vllm:generation_tokens_total"),
            prompt_tokens=count_of(samples, "vllm:prompt_tokens_total"),
            kv_use=samples.get("vllm:kv_cache_usage_perc"),
            accept_length=1 + accepted / drafts if accepted is not None and drafts else None,
            evicted=count_of(samples, "vllm:num_preemptions_total"),
        )

    def diagnose(self, log: tuple[str, ...], exit_code: int | None) -> Diagnosis:
        return diagnose_by(_SYMPTOMS, log, exit_code)

    def corrections(self, cause: Cause) -> tuple[Correction, ...]:
        return _CORRECTIONS.get(cause, ())

    def apply(self, setup: Setup, correction: Correction) -> Setup | None:
        match correction:
            case Correction.LOWER_MEMORY_FRACTION | Correction.HIGHER_MEMORY_FRACTION:
                sign = -1 if correction is Correction.LOWER_MEMORY_FRACTION else 1
                return with_memory_fraction(
                    setup, sign * _SHARE_STEP, default=_SHARE_DEFAULT, least=_SHARE_LEAST, most=_SHARE_MOST
                )
            case Correction.SHORTER_CONTEXT:
                return with_shorter_context(setup)
            case Correction.NO_PEER_TO_PEER:
                return without_peer_to_peer(setup)
            case _:
                return None
