"""llama.cpp's server: GGUF on any number of GPUs, with experts in RAM where the GPUs are too small."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from clorefleet.domain.errors import BadInput
from clorefleet.domain.failure import Cause, Correction
from clorefleet.domain.recipe import EngineSupport
from clorefleet.domain.setup import Setup
from clorefleet.engine.base import EngineMetrics, Launch, chat, count_of, prometheus_samples, requests_of
from clorefleet.engine.correction import with_shorter_context
from clorefleet.engine.diagnosis import Diagnosis, Symptom, diagnose_by

ALL_LAYERS = "99"
UBATCH_AFTER_SHORTAGE = 256
MORE_EXPERT_LAYERS = 2
"""Per GPU, moved to RAM when a split was too large for the GPUs: with GLM-5.1 at Q4 some 11 GiB."""
_SYMPTOMS = (
    Symptom("unknown model architecture", Cause.ENGINE_TOO_OLD, "this llama.cpp does not know the model", "a newer image"),
    Symptom("error: invalid argument", Cause.BAD_FLAG, "this llama.cpp does not know a flag we gave", "another image"),
    Symptom("error while handling argument", Cause.BAD_FLAG, "this llama.cpp does not take a value we gave", "another image"),
    Symptom("invalid magic characters", Cause.BAD_CHECKPOINT, "a weight file is no GGUF, or is damaged", "the download again, with verification"),
    Symptom("tensor data is not within the file bounds", Cause.BAD_CHECKPOINT, "a weight file is cut short", "the download again, with verification"),
)  # fmt: skip
_LAST = (
    Symptom(
        "failed to load model", Cause.BAD_CHECKPOINT, "the weights cannot be loaded", "another checkpoint"
    ),
)
"""Printed after every more particular reason."""
_CORRECTIONS = {
    Cause.OUT_OF_VRAM: (Correction.MORE_EXPERTS_IN_RAM, Correction.SHORTER_CONTEXT),
    Cause.OUT_OF_VRAM_RUNNING: (Correction.MORE_EXPERTS_IN_RAM, Correction.SHORTER_CONTEXT),
    Cause.PORT_IN_USE: (Correction.OTHER_PORT,),
}


class LlamaCpp:
    health_path = "/health"
    proof_path = ""
    stop_signal = "TERM"
    stop_grace_s = 10.0

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
        arguments += _experts_in_ram(setup)
        if setup.kv_dtype == "q8_0":
            arguments += ["--flash-attn", "on", "--cache-type-k", "q8_0", "--cache-type-v", "q8_0"]
        else:
            arguments += ["--flash-attn", "auto"]
        if setup.prefill_chunk_tokens is not None:
            # Its compute buffer grows with the micro-batch, which is 512 unless named.
            arguments += ["--ubatch-size", str(min(UBATCH_AFTER_SHORTAGE, setup.prefill_chunk_tokens))]
        find = 'p=$(command -v llama-server || echo /app/llama-server); exec "$p" "$@"'
        return Launch(("sh", "-c", find, "llama-server", *arguments))

    def warm_up(self, setup: Setup) -> tuple[dict[str, object], ...]:
        return (chat(setup, "Say hello.", max_tokens=4),)

    def metrics(self, text: str) -> EngineMetrics:
        samples = prometheus_samples(text)
        return EngineMetrics(
            running=requests_of(samples, "llamacpp:requests_processing"),
            waiting=requests_of(samples, "llamacpp:requests_deferred"),
            generated_tokens=count_of(samples, "llamacpp:tokens_predicted_total"),
            prompt_tokens=count_of(samples, "llamacpp:prompt_tokens_total"),
            kv_use=samples.get("llamacpp:kv_cache_usage_ratio"),
            tokens_per_s=samples.get("llamacpp:predicted_tokens_seconds"),
        )

    def diagnose(self, log: tuple[str, ...], exit_code: int | None) -> Diagnosis:
        return diagnose_by(_SYMPTOMS, log, exit_code, last=_LAST)

    def corrections(self, cause: Cause) -> tuple[Correction, ...]:
        return _CORRECTIONS.get(cause, ())

    def apply(self, setup: Setup, correction: Correction) -> Setup | None:
        match correction:
            case Correction.MORE_EXPERTS_IN_RAM if setup.experts_in_ram:
                return replace(setup, experts_in_ram=_more_experts_in_ram(setup))
            case Correction.SHORTER_CONTEXT:
                return with_shorter_context(setup)
            case _:
                return None


def _experts_in_ram(setup: Setup) -> list[str]:
    """On one GPU the first layers' experts are in RAM, which has a flag of its own; else layers are named."""
    layers = sorted(setup.experts_in_ram)
    if not layers:
        return []
    arguments: list[str] = []
    if setup.tensor_parallel == 1 and not setup.layers_per_gpu:
        end = layers[0]
        while layers and layers[0] == end:
            layers.pop(0)
            end += 1
        arguments += ["--n-cpu-moe", str(end)]
    if layers:
        named = "|".join(map(str, layers))
        arguments += ["--override-tensor", rf"blk\.({named})\.ffn_.*_exps=CPU"]
    return arguments


def _more_experts_in_ram(setup: Setup) -> tuple[int, ...]:
    in_ram = set(setup.experts_in_ram)
    for layers in _layers_by_gpu(setup):
        # From the last layer back: the first ones may be dense and have no experts to move.
        in_ram |= set([layer for layer in reversed(layers) if layer not in in_ram][:MORE_EXPERT_LAYERS])
    return tuple(sorted(in_ram))


def _layers_by_gpu(setup: Setup) -> list[range]:
    if not setup.layers_per_gpu:
        return [range(max(setup.experts_in_ram) + 1 + MORE_EXPERT_LAYERS)]
    ends = list(accumulate(setup.layers_per_gpu))
    starts = [0, *ends[:-1]]
    # The output head is counted last and is no layer.
    return [range(start, min(end, ends[-1] - 1)) for start, end in zip(starts, ends, strict=True)]
