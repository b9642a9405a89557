"""SGLang, with EAGLE speculation over the model's own MTP layer. Flags as of 0.5.23."""

from __future__ import annotations

import shlex

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

_SYMPTOMS = (
    Symptom("Please try to increase --mem-fraction-static", "no_kv_memory", "the weights leave no room for context", "a higher memory fraction, or more GPUs"),
    Symptom("set --mem-fraction-static to a smaller value", "out_of_vram", "CUDA graphs do not fit beside the weights", "a lower memory fraction"),
    Symptom("even after retracting all other requests", "no_kv_memory", "one request is larger than all context memory", "less context, or FP8 context memory"),
    Symptom("The memory capacity is unbalanced", "gpu_occupied", "another process uses a GPU of the host"),
    Symptom("must be divisible by tensor parallel size", "bad_parallelism", "the GPUs do not divide the model's heads"),
    Symptom("is not divisible by weight quantization block", "bad_parallelism", "the GPUs do not divide the FP8 blocks"),
    Symptom("does not recognize this architecture", "engine_too_old", "its transformers does not know the model", "a newer image"),
)  # fmt: skip


_FRACTION_DEFAULT, _FRACTION_LEAST, _FRACTION_MOST = 0.88, 0.7, 0.93
_FRACTION_STEP = 0.05
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
            arguments += [
                "--speculative-algorithm", setup.speculation.algorithm,
                "--speculative-num-steps", str(setup.speculation.num_steps),
                "--speculative-eagle-topk", str(setup.speculation.top_k),
                "--speculative-num-draft-tokens", str(setup.speculation.num_draft_tokens),
            ]  # fmt: skip
        return Launch(("python3", "-m", "sglang.launch_server", *arguments))

    def metrics(self, text: str) -> EngineMetrics:
        samples = prometheus_samples(text)
        return EngineMetrics(
            running=whole(samples, "sglang:num_running_reqs"),
            waiting=whole(samples, "sglang:num_queue_reqs"),
            generated_tokens=whole(samples, "sglang:generation_tokens_total"),
            prompt_tokens=whole(samples, "sglang:prompt_tokens_total"),
            kv_use=samples.get("sglang:token_usage"),
            accept_length=samples.get("sglang:spec_accept_length"),
        )

    def diagnose(self, log: tuple[str, ...], exit_code: int | None) -> Diagnosis:
        return diagnose_by(_SYMPTOMS, log, exit_code)

    def corrected(self, setup: Setup, cause: str) -> Setup | None:
        step = {"out_of_vram": -_FRACTION_STEP, "no_kv_memory": _FRACTION_STEP}.get(cause)
        if step is None:
            return None
        return with_memory_fraction(
            setup, step, default=_FRACTION_DEFAULT, least=_FRACTION_LEAST, most=_FRACTION_MOST
        )
