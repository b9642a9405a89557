"""SGLang, with EAGLE speculation over the model's own MTP layer. Flags as of 0.5.23."""

from __future__ import annotations

import shlex

from clorefleet.domain.failure import Cause, Correction
from clorefleet.domain.recipe import EngineSupport
from clorefleet.domain.setup import Setup
from clorefleet.engine.base import EngineMetrics, Launch, chat, count_of, prometheus_samples, requests_of
from clorefleet.engine.correction import with_memory_fraction, with_shorter_context, without_peer_to_peer
from clorefleet.engine.diagnosis import Diagnosis, Symptom, diagnose_by

_SYMPTOMS = (
    Symptom("Please try to increase --mem-fraction-static", Cause.NO_KV_MEMORY, "the weights leave no room for context", "a higher memory fraction, or more GPUs"),
    Symptom("set --mem-fraction-static to a smaller value", Cause.OUT_OF_VRAM, "CUDA graphs do not fit beside the weights", "a lower memory fraction, or `--cuda-graph-max-bs-decode 16`"),
    Symptom("Capture cuda graph failed", Cause.OUT_OF_VRAM, "CUDA graphs do not fit beside the weights", "a lower memory fraction, or `--cuda-graph-max-bs-decode 16`"),
    Symptom("even after retracting all other requests", Cause.CONTEXT_TOO_LONG, "one request is larger than all context memory", "less context, or FP8 context memory"),
    Symptom("The memory capacity is unbalanced", Cause.GPU_OCCUPIED, "another process uses a GPU of the host", "another host"),
    Symptom("must be divisible by tensor parallel size", Cause.BAD_PARALLELISM, "the GPUs do not divide the model's heads", "another number of GPUs"),
    Symptom("is not divisible by weight quantization block", Cause.BAD_PARALLELISM, "the GPUs do not divide the FP8 blocks", "another number of GPUs, or expert parallelism"),
)  # fmt: skip
_FRACTION_DEFAULT, _FRACTION_LEAST, _FRACTION_MOST = 0.88, 0.7, 0.93
_FRACTION_STEP = 0.05
_CORRECTIONS = {
    Cause.OUT_OF_VRAM: (Correction.LOWER_MEMORY_FRACTION, Correction.SHORTER_CONTEXT),
    Cause.OUT_OF_VRAM_RUNNING: (Correction.LOWER_MEMORY_FRACTION, Correction.SHORTER_CONTEXT),
    Cause.NO_KV_MEMORY: (Correction.HIGHER_MEMORY_FRACTION, Correction.SHORTER_CONTEXT),
    Cause.CONTEXT_TOO_LONG: (Correction.SHORTER_CONTEXT,),
    Cause.NCCL: (Correction.NO_PEER_TO_PEER,),
    Cause.PORT_IN_USE: (Correction.OTHER_PORT,),
}
NO_P2P_ENV = {"NCCL_P2P_DISABLE": "1"}
"""Of NCCL, which both tensor engines use."""
OFFLINE_ENV = {"HF_HUB_OFFLINE": "1"}
"""The weights are verified files on the node: nothing is asked of the hub any more."""
_VERSION_SCRIPT = """
import importlib.metadata as metadata, importlib.util as util, sys
if util.find_spec(sys.argv[1]) is None: sys.exit(1)
try: print(metadata.version(sys.argv[1]))
except metadata.PackageNotFoundError: print("unknown version")
"""


def check_python_package(name: str) -> str:
    """A shell command that prints a package's version without importing it: that takes half a minute."""
    return shlex.join(["python3", "-c", _VERSION_SCRIPT, name])


class SgLang:
    health_path = "/health"
    proof_path = "/health_generate"
    stop_signal = "TERM"
    stop_grace_s = 30.0

    def check_script(self) -> str:
        return check_python_package("sglang")

    def launch(
        self, setup: Setup, support: EngineSupport, *, weights: str, files: tuple[str, ...], port: int
    ) -> Launch:
        arguments = [
            "--model-path", weights,
            "--served-model-name", setup.model,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--tp-size", str(setup.tensor_parallel),
            "--context-length", str(setup.context_tokens),
            "--enable-metrics",
        ]  # fmt: skip
        if setup.expert_parallel > 1:
            arguments += ["--ep-size", str(setup.expert_parallel)]
        if setup.memory_fraction is not None:
            arguments += ["--mem-fraction-static", f"{setup.memory_fraction:g}"]
        if setup.kv_dtype == "fp8":
            arguments += ["--kv-cache-dtype", "fp8_e4m3"]
        if support.tool_call_parser:
            arguments += ["--tool-call-parser", support.tool_call_parser]
        if support.reasoning_parser:
            arguments += ["--reasoning-parser", support.reasoning_parser]
        if setup.speculation is not None:
            # All four or none: with some of them SGLang stops at an assertion.
            arguments += [
                "--speculative-algorithm", setup.speculation.algorithm,
                "--speculative-num-steps", str(setup.speculation.num_steps),
                "--speculative-eagle-topk", str(setup.speculation.top_k),
                "--speculative-num-draft-tokens", str(setup.speculation.num_draft_tokens),
            ]  # fmt: skip
        if setup.prefill_chunk_tokens is not None:
            arguments += ["--chunked-prefill-size", str(setup.prefill_chunk_tokens)]
        env = dict(OFFLINE_ENV)
        if not setup.has_peer_to_peer:
            arguments.append("--disable-custom-all-reduce")
            env |= NO_P2P_ENV
        return Launch(("python3", "-m", "sglang.launch_server", *arguments), env)

    def warm_up(self, setup: Setup) -> tuple[dict[str, object], ...]:
        # SGLang warms itself up before it is ready; the first drafts of EAGLE still compile.
        return (chat(setup, "Say hello.", max_tokens=8),)

    def metrics(self, text: str) -> EngineMetrics:
        samples = prometheus_samples(text)
        return EngineMetrics(
            running=requests_of(samples, "sglang:num_running_reqs"),
            waiting=requests_of(samples, "sglang:num_queue_reqs"),
            generated_tokens=count_of(samples, "sglang:generation_tokens_total"),
            prompt_tokens=count_of(samples, "sglang:prompt_tokens_total"),
            kv_use=samples.get("sglang:token_usage"),
            accept_length=samples.get("sglang:spec_accept_length"),
            tokens_per_s=samples.get("sglang:gen_throughput"),
            evicted=count_of(samples, "sglang:num_retracted_reqs"),
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
                    setup,
                    sign * _FRACTION_STEP,
                    default=_FRACTION_DEFAULT,
                    least=_FRACTION_LEAST,
                    most=_FRACTION_MOST,
                )
            case Correction.SHORTER_CONTEXT:
                return with_shorter_context(setup)
            case Correction.NO_PEER_TO_PEER:
                return without_peer_to_peer(setup)
            case _:
                return None
