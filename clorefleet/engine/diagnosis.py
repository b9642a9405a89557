"""From the end of a log to a typed cause, in words for the user, with the remedy.

Texts are those of the engines' own sources (SGLang 0.5.23, vLLM 0.33.0, llama.cpp) where a row does not say
otherwise; those of PyTorch, NCCL and the hub's client are widely seen ones [assumed]. Engines' own rows stand
in their modules. The first row in the order of the tables wins, so that a particular reason hides the general
one that follows it in the log.
"""

from __future__ import annotations

from dataclasses import dataclass

from clorefleet.domain.failure import Cause
from clorefleet.domain.recipe import EngineName


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why an engine ended, as far as its log tells."""

    cause: Cause
    text: str
    """The cause, for the user."""
    remedy: str = ""
    """What would cure it, or "" where only another server does."""
    line: str = ""
    """The line of the log that told."""


@dataclass(frozen=True, slots=True)
class Symptom:
    """Pieces of one log line, and what they mean together."""

    part: str
    cause: Cause
    text: str
    remedy: str = ""
    also: str = ""
    """Another piece that the same line must have."""

    def is_in(self, lowered_line: str) -> bool:
        return self.part.lower() in lowered_line and self.also.lower() in lowered_line


_SMALLER = "a smaller precision, less context, or more GPUs"
_NEWER_HOST = "a host with a newer driver, or an image for an older CUDA"
_SHM = "a host with a larger /dev/shm (`--shm-size 16g` or `--ipc=host` where you start the container)"
_PARSER = "add `--enable-auto-tool-choice` and `--tool-call-parser`"
_LINK = "`NCCL_P2P_DISABLE=1` and `--disable-custom-all-reduce`, or another host"
FIRST_SYMPTOMS = (
    Symptom("driver on your system is too old", Cause.DRIVER_TOO_OLD, "the host's driver is too old for the image", _NEWER_HOST),
    Symptom("driver version is insufficient", Cause.DRIVER_TOO_OLD, "the host's driver is too old for the image", _NEWER_HOST),
    Symptom("unsatisfied condition: cuda>=", Cause.DRIVER_TOO_OLD, "the image needs a newer driver than the host's", _NEWER_HOST),
    Symptom("no kernel image is available", Cause.GPU_UNSUPPORTED, "the engine was not built for this GPU", "a newer image, or another GPU"),
    Symptom("requires SM90", Cause.GPU_UNSUPPORTED, "the model's attention has no kernel for this GPU", "Hopper or newer GPUs, or llama.cpp"),
    Symptom("No valid attention backend found", Cause.GPU_UNSUPPORTED, "the model's attention has no kernel for this GPU", "Hopper or newer GPUs, or llama.cpp"),
    Symptom("CUDA error: unspecified launch failure", Cause.GPU_DEAD, "a GPU failed while it worked", "another host"),
    Symptom("GPU has fallen off the bus", Cause.GPU_DEAD, "a GPU is gone", "another host"),
    Symptom("uncorrectable ECC error", Cause.GPU_DEAD, "a GPU's memory is broken", "another host"),
)  # fmt: skip
"""Asked before the engine's own rows: what follows them in a log is only their consequence."""
SHARED_SYMPTOMS = (
    Symptom("CUDA out of memory", Cause.OUT_OF_VRAM, "the GPUs are too small for weights and context", _SMALLER),
    Symptom("cudaMalloc failed: out of memory", Cause.OUT_OF_VRAM, "the GPUs are too small for this split", _SMALLER),
    Symptom("unable to allocate CUDA", Cause.OUT_OF_VRAM, "the GPUs are too small for this split", _SMALLER),
    Symptom("No space left on device", Cause.DISK_FULL, "the disk, or /dev/shm, is full", "a host with more free disk"),
    Symptom("address already in use", Cause.PORT_IN_USE, "another program has the engine's port", "another port"),
    Symptom("attempting to bind on address", Cause.PORT_IN_USE, "another program has the engine's port", "another port"),
    Symptom("couldn't bind HTTP server socket", Cause.PORT_IN_USE, "another program has the engine's port", "another port"),
    Symptom("Error while creating shared memory segment", Cause.SHM_TOO_SMALL, "/dev/shm is too small for NCCL", _SHM),
    Symptom("Bus error", Cause.SHM_TOO_SMALL, "/dev/shm is too small", _SHM),
    Symptom("ncclSystemError", Cause.NCCL, "the GPUs of the host cannot talk to each other", _LINK),
    Symptom("ncclUnhandledCudaError", Cause.NCCL, "the GPUs of the host cannot talk to each other", _LINK),
    Symptom("NCCL error in", Cause.NCCL, "the GPUs of the host cannot talk to each other", _LINK),
    Symptom("Watchdog caught collective operation timeout", Cause.NCCL, "a GPU died or hangs", "the first error on another rank tells why"),
    Symptom("GatedRepoError", Cause.UNAUTHORISED, "the hub refuses a part of the model: it may be gated", "a hub token that was granted access"),
    Symptom("Cannot access gated repo", Cause.UNAUTHORISED, "the hub refuses a part of the model: it is gated", "a hub token that was granted access"),
    Symptom("401 Client Error", Cause.UNAUTHORISED, "the hub refuses a part of the model", "a hub token, and the repository's name"),
    Symptom("Repository Not Found", Cause.NOT_FOUND, "the hub does not have a part of the model", "the repository's name, or a hub token"),
    Symptom("429 Client Error", Cause.RATE_LIMITED, "the hub limits the rate of downloads", "a hub token, or fewer downloads at once"),
    Symptom("Read timed out", Cause.SLOW_DOWNLOAD, "the download stalls", "a host with a faster line", also="resolve"),
    Symptom("Trying to resume download", Cause.SLOW_DOWNLOAD, "the download breaks again and again", "a host with a better line"),
    Symptom("too slow against the estimate", Cause.SLOW_DOWNLOAD, "the download is slower than the offer promised", "a host with a faster line"),
    Symptom('"auto" tool choice requires', Cause.TOOL_CALLS_DROPPED, "tools were asked for, and the engine has no parser for them", _PARSER),
    Symptom("requires --tool-call-parser", Cause.BAD_FLAG, "tool calls need a parser", "add `--tool-call-parser`"),
    Symptom("invalid choice: 'glm47'", Cause.BAD_FLAG, "SGLang has no reasoning parser glm47", "`--reasoning-parser glm45`", also="reasoning-parser"),
    Symptom("does not recognize this architecture", Cause.ENGINE_TOO_OLD, "its transformers does not know the model", "a newer image (GLM-5.1: transformers 5.4 or newer)"),
    Symptom("unrecognized arguments", Cause.BAD_FLAG, "the engine's version does not know a flag we gave"),
    Symptom("invalid choice", Cause.BAD_FLAG, "the engine's version does not know a value we gave"),
    Symptom("invalid tool call parser", Cause.BAD_FLAG, "the engine's version does not know the tool call parser"),
    Symptom("invalid reasoning parser", Cause.BAD_FLAG, "the engine's version does not know the reasoning parser"),
    Symptom("HeaderTooLarge", Cause.BAD_CHECKPOINT, "a weight file is damaged", "the download again, with verification"),
    Symptom("SafetensorError", Cause.BAD_CHECKPOINT, "a weight file is damaged or incomplete", "the download again, with verification"),
    Symptom("Cannot find any model weights", Cause.BAD_CHECKPOINT, "the folder has no weights that the engine reads", "another checkpoint or engine"),
    Symptom("does not appear to have a file named config.json", Cause.BAD_CHECKPOINT, "the checkpoint is incomplete", "the download again"),
)  # fmt: skip
CONTENT_SYMPTOMS = (
    Symptom("<tool_call>", Cause.TOOL_CALLS_DROPPED, "the model calls tools, and nobody parses them: they show as text", _PARSER, also="content"),
    Symptom('"reasoning_content": ""', Cause.NO_THINKING, "the reasoning trace is empty", "`--reasoning-parser`, and thinking switched on in the request"),
    Symptom("<think>", Cause.NO_THINKING, "the reasoning trace is in the answer's text", "`--reasoning-parser`", also="content"),
)  # fmt: skip
"""Of requests and answers that somebody kept: no engine logs these itself."""

KILLED_EXIT_CODE = 137
NEEDED_FILE_MISSING = 66
"""How a job ends whose files are not there (see `clorefleet.node.jobs`)."""
READY_LINES = ("fired up and ready to roll", "Application startup complete", "server is listening on")
_AT_LOAD = (Cause.OUT_OF_VRAM,)


def diagnose_by(
    symptoms: tuple[Symptom, ...],
    log: tuple[str, ...],
    exit_code: int | None,
    *,
    last: tuple[Symptom, ...] = (),
) -> Diagnosis:
    """The first symptom, in the order of the tables, that any line shows; else the exit code speaks."""
    lowered = [line.lower() for line in log]
    for symptom in (*FIRST_SYMPTOMS, *symptoms, *SHARED_SYMPTOMS, *last, *CONTENT_SYMPTOMS):
        at = next((index for index, line in enumerate(lowered) if symptom.is_in(line)), None)
        if at is not None:
            return _found(symptom, log, lowered, at)
    if exit_code == KILLED_EXIT_CODE or any(line.strip() in ("killed", "killed.") for line in lowered):
        text = "the host killed it, most likely for lack of RAM"
        return Diagnosis(Cause.OUT_OF_RAM, text, "a host with more RAM")
    if exit_code == NEEDED_FILE_MISSING:
        return Diagnosis(Cause.WEIGHTS_MISSING, "the verified weights are no longer on the server's disk")
    words = next((line for line in reversed(log) if line.strip()), "")
    code = "" if exit_code is None else f" with code {exit_code}"
    return Diagnosis(Cause.UNKNOWN, f"it ended{code}: {words}" if words else f"it ended{code}")


def _found(symptom: Symptom, log: tuple[str, ...], lowered: list[str], at: int) -> Diagnosis:
    was_ready = any(ready.lower() in line for line in lowered[:at] for ready in READY_LINES)
    if symptom.cause in _AT_LOAD and was_ready:
        text = "a request needed more GPU memory than was left"
        remedy = "a lower memory fraction, or prefill in smaller chunks"
        return Diagnosis(Cause.OUT_OF_VRAM_RUNNING, text, remedy, log[at])
    return Diagnosis(symptom.cause, symptom.text, symptom.remedy, log[at])


_MARKS = {
    EngineName.KTRANSFORMERS: ("kt-kernel", "kt_kernel", "ktransformers", "--kt-"),
    EngineName.SGLANG: ("sglang", "mem-fraction-static", "ServerArgs("),
    EngineName.VLLM: ("vllm", "EngineCore", "gpu_memory_utilization"),
    EngineName.LLAMACPP: ("llama_", "ggml_", "gguf", "llama-server", "srv  "),
}


def engine_of_log(log: tuple[str, ...]) -> EngineName:
    """The engine whose words a log uses most; SGLang where it uses none of any."""
    counts = {
        name: sum(any(mark.lower() in line.lower() for mark in marks) for line in log)
        for name, marks in _MARKS.items()
    }
    if counts[EngineName.KTRANSFORMERS]:
        return EngineName.KTRANSFORMERS  # it is SGLang's server, and says so as well
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else EngineName.SGLANG
