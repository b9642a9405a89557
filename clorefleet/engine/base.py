"""What every engine module offers, and the values they share."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Protocol

from clorefleet.domain.recipe import EngineSupport
from clorefleet.domain.setup import Setup


@dataclass(frozen=True, slots=True)
class Launch:
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """One shape for all engines; None where an engine does not tell."""

    running: int | None
    waiting: int | None
    generated_tokens: int | None
    """Since the engine started."""
    prompt_tokens: int | None
    kv_use: float | None
    """0..1."""
    accept_length: float | None = None
    """Mean tokens per verified draft, with speculation."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why an engine ended, as far as its log tells."""

    cause: str
    """A stable code: `out_of_vram`, `out_of_ram`, `driver_too_old`, `bad_flag`, ..., or `unknown`."""
    text: str
    """The cause, for the user."""
    remedy: str = ""
    """What would cure it, or "" where only another server does."""


class Engine(Protocol):
    """All paths are absolute paths on the node."""

    health_path: str
    """Answers 200 when the engine is ready to serve."""

    def check_script(self) -> str:
        """A shell command that prints the engine's version (or anything, where it does not tell), and fails
        where the image lacks it."""
        ...

    def launch(
        self, setup: Setup, support: EngineSupport, *, weights: str, files: tuple[str, ...], port: int
    ) -> Launch:
        """The command that serves `setup` from the folder `weights`, bound to the node's loopback."""
        ...

    def metrics(self, text: str) -> EngineMetrics: ...

    def diagnose(self, log: tuple[str, ...], exit_code: int | None) -> Diagnosis: ...

    def corrected(self, setup: Setup, cause: str) -> Setup | None:
        """The same setup with one flag moved to cure a diagnosed cause, or None where no flag does.

        What the user was promised (model, precision, context, concurrency) is never touched.
        """
        ...


@dataclass(frozen=True, slots=True)
class Symptom:
    """A piece of a log line, and what it means. Texts: docs and sources of the engines, see their modules."""

    part: str
    cause: str
    text: str
    remedy: str = ""


_SMALLER = "a smaller precision, less context, or more GPUs"
_NEWER_HOST = "a host with a newer driver, or an older image"
_SHM = "a host or image with a larger /dev/shm"
SHARED_SYMPTOMS = (
    Symptom("CUDA out of memory", "out_of_vram", "the GPUs are too small for weights and context", _SMALLER),
    Symptom("cudaMalloc failed: out of memory", "out_of_vram", "the GPUs are too small for this split", _SMALLER),
    Symptom("unable to allocate CUDA", "out_of_vram", "the GPUs are too small for this split", _SMALLER),
    Symptom("driver on your system is too old", "driver_too_old", "the host's driver is too old for the image", _NEWER_HOST),
    Symptom("driver version is insufficient", "driver_too_old", "the host's driver is too old for the image", _NEWER_HOST),
    Symptom("unsatisfied condition: cuda>=", "driver_too_old", "the image needs a newer driver than the host's", _NEWER_HOST),
    Symptom("no kernel image is available", "gpu_unsupported", "the engine was not built for this GPU"),
    Symptom("No space left on device", "disk_full", "the disk, or /dev/shm, is full"),
    Symptom("address already in use", "port_in_use", "another program has the engine's port"),
    Symptom("Error while creating shared memory segment", "shm_too_small", "/dev/shm is too small for NCCL", _SHM),
    Symptom("Bus error", "shm_too_small", "/dev/shm is too small", _SHM),
    Symptom("ncclSystemError", "nccl", "the GPUs of the host cannot talk to each other"),
    Symptom("ncclUnhandledCudaError", "nccl", "the GPUs of the host cannot talk to each other"),
    Symptom("NCCL error in", "nccl", "the GPUs of the host cannot talk to each other"),
    Symptom("Watchdog caught collective operation timeout", "nccl", "a GPU died or hangs"),
    Symptom("GatedRepoError", "unauthorised", "the hub refuses a part of the model: it may be gated"),
    Symptom("Cannot access gated repo", "unauthorised", "the hub refuses a part of the model: it is gated"),
    Symptom("401 Client Error", "unauthorised", "the hub refuses a part of the model"),
    Symptom("Repository Not Found", "not_found", "the hub does not have a part of the model"),
    Symptom("429 Client Error", "rate_limited", "the hub limits the rate of downloads"),
    Symptom("unrecognized arguments", "bad_flag", "the engine's version does not know a flag we gave"),
    Symptom("invalid choice", "bad_flag", "the engine's version does not know a value we gave"),
)  # fmt: skip
KILLED_EXIT_CODE = 137
NEEDED_FILE_MISSING = 66
"""How a job ends whose files are not there (see `clorefleet.node.jobs`)."""


def diagnose_by(
    symptoms: tuple[Symptom, ...],
    log: tuple[str, ...],
    exit_code: int | None,
    *,
    last: tuple[Symptom, ...] = (),
) -> Diagnosis:
    """The first symptom, in the order of the tables, that any line shows; else the exit code speaks."""
    lowered = [line.lower() for line in log]
    for symptom in (*symptoms, *SHARED_SYMPTOMS, *last):
        if any(symptom.part.lower() in line for line in lowered):
            return Diagnosis(symptom.cause, symptom.text, symptom.remedy)
    if exit_code == KILLED_EXIT_CODE:
        return Diagnosis(
            "out_of_ram", "the host killed it, most likely for lack of RAM", "a host with more RAM"
        )
    if exit_code == NEEDED_FILE_MISSING:
        return Diagnosis("weights_missing", "the verified weights are no longer on the server's disk")
    words = next((line for line in reversed(log) if line.strip()), "")
    return Diagnosis(
        "unknown", f"it ended with code {exit_code}: {words}" if words else f"it ended: {exit_code}"
    )


def with_memory_fraction(
    setup: Setup, step: float, *, default: float, least: float, most: float
) -> Setup | None:
    """The share of GPU memory moved by `step`, or None where it cannot move any further."""
    before = default if setup.memory_fraction is None else setup.memory_fraction
    after = round(min(most, max(least, before + step)), 3)
    return None if after == before else replace(setup, memory_fraction=after)


def parse_version(text: str) -> tuple[int, ...] | None:
    """`0.5.10`, at the beginning of the text, as numbers; what follows it (`rc1`, `.dev3`) is left out."""
    found = re.match(r"\s*v?([0-9]{1,6}(?:\.[0-9]{1,6}){1,3})", text)
    return tuple(int(part) for part in found.group(1).split(".")) if found else None


_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^}]*\})?\s+([-+0-9.eE]+|NaN)", re.MULTILINE)
METRICS_MAX_CHARS = 1_000_000


def prometheus_samples(text: str) -> dict[str, float]:
    """Values by metric name, samples of one name summed over their labels."""
    samples: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text[:METRICS_MAX_CHARS]):
        try:
            number = float(value)
        except ValueError:
            continue
        if number == number:  # not NaN
            samples[name] = samples.get(name, 0.0) + number
    return samples


def whole(samples: dict[str, float], name: str) -> int | None:
    value = samples.get(name)
    return None if value is None else int(value)
