"""llama.cpp's server: GGUF on any number of GPUs, with experts in RAM where the GPUs are too small."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from clorefleet.domain.errors import BadInput
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

ALL_LAYERS = "99"
MORE_EXPERT_LAYERS = 2
"""Per GPU, moved to RAM when a split was too large for the GPUs: with GLM-5.1 at Q4 some 11 GiB."""
_SYMPTOMS = (
    Symptom(
        "unknown model architecture",
        "engine_too_old",
        "this llama.cpp does not know the model",
        "a newer image",
    ),
    Symptom("invalid argument", "bad_flag", "this llama.cpp does not know a flag we gave"),
)
_LAST = (Symptom("failed to load model", "bad_checkpoint", "the weights cannot be loaded"),)
"""Printed after every more particular reason."""


class LlamaCpp:
    health_path = "/health"

    def check_script(self) -> str:
        # The project's own image has it in /app, packages have it on PATH.
        return "command -v llama-server || { test -x /app/llama-server && echo /app/llama-server; }"

    def launch(
        self, setup: Setup, support: EngineSupport, *, weights: str, files: tuple[str, ...], port: int
    ) -> Launch:
        # Of a split checkpoint the first part is named, and the server finds the others.
        first = next((name for name in sorted(files) if name.endswith(".gguf")), None)
        if first is None:
            raise BadInput(f"{setup.model} {setup.checkpoint} has no GGUF file, which llama.cpp needs.")
        arguments = [
            "--model", f"{weights}/{first}",
            "--alias", setup.model,
            "--host", "127.0.0.1",
            "--port", str(port),
            "--n-gpu-layers", ALL_LAYERS,
            # The context is shared by the slots.
            "--ctx-size", str(setup.context_tokens * setup.concurrency),
            "--parallel", str(setup.concurrency),
            "--jinja",
            "--metrics",
        ]  # fmt: skip
        if setup.layers_per_gpu:
            arguments += ["--tensor-split", ",".join(map(str, setup.layers_per_gpu))]
        if setup.experts_in_ram:
            layers = "|".join(map(str, setup.experts_in_ram))
            arguments += ["--override-tensor", rf"blk\.({layers})\.ffn_.*_exps=CPU"]
        if setup.kv_dtype == "q8_0":
            arguments += ["--flash-attn", "on", "--cache-type-k", "q8_0", "--cache-type-v", "q8_0"]
        find = 'p=$(command -v llama-server || echo /app/llama-server); exec "$p" "$@"'
        return Launch(("sh", "-c", find, "llama-server", *arguments))

    def metrics(self, text: str) -> EngineMetrics:
        samples = prometheus_samples(text)
        return EngineMetrics(
            running=whole(samples, "llamacpp:requests_processing"),
            waiting=whole(samples, "llamacpp:requests_deferred"),
            generated_tokens=whole(samples, "llamacpp:tokens_predicted_total"),
            prompt_tokens=whole(samples, "llamacpp:prompt_tokens_total"),
            kv_use=samples.get("llamacpp:kv_cache_usage_ratio"),
        )

    def diagnose(self, log: tuple[str, ...], exit_code: int | None) -> Diagnosis:
        return diagnose_by(_SYMPTOMS, log, exit_code, last=_LAST)

    def corrected(self, setup: Setup, cause: str) -> Setup | None:
        if cause != "out_of_vram" or not setup.experts_in_ram:
            return None
        in_ram = set(setup.experts_in_ram)
        for layers in _layers_by_gpu(setup):
            # From the last layer back: the first ones may be dense and have no experts to move.
            in_ram |= set([layer for layer in reversed(layers) if layer not in in_ram][:MORE_EXPERT_LAYERS])
        return replace(setup, experts_in_ram=tuple(sorted(in_ram)))


def _layers_by_gpu(setup: Setup) -> list[range]:
    if not setup.layers_per_gpu:
        return [range(max(setup.experts_in_ram) + 1 + MORE_EXPERT_LAYERS)]
    ends = list(accumulate(setup.layers_per_gpu))
    starts = [0, *ends[:-1]]
    # The output head is counted last and is no layer.
    return [range(start, min(end, ends[-1] - 1)) for start, end in zip(starts, ends, strict=True)]
