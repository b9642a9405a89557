"""What every engine module offers, and the values they share."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
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
    """A stable code: `out_of_vram`, `out_of_ram`, `driver_too_old`, `bad_flag`, ..."""
    text: str
    """The cause and its cure, for the user."""


class Engine(Protocol):
    """All paths are absolute paths on the node."""

    health_path: str
    """Answers 200 when the engine is ready to serve."""

    def check_script(self) -> str:
        """A shell command that prints the engine's program, or fails where the image lacks it."""
        ...

    def launch(
        self, setup: Setup, support: EngineSupport, *, weights: str, files: tuple[str, ...], port: int
    ) -> Launch:
        """The command that serves `setup` from the folder `weights`, bound to the node's loopback."""
        ...

    def metrics(self, text: str) -> EngineMetrics: ...

    def diagnose(self, log: tuple[str, ...], exit_code: int | None) -> Diagnosis: ...


@dataclass(frozen=True, slots=True)
class Symptom:
    """A piece of a log line, and what it means. Texts: docs of the engines, see their modules."""

    part: str
    cause: str
    text: str


SHARED_SYMPTOMS = (
    Symptom("CUDA out of memory", "out_of_vram", "the GPUs are too small for weights and context"),
    Symptom("cudaMalloc failed: out of memory", "out_of_vram", "the GPUs are too small for this split"),
    Symptom("unable to allocate CUDA", "out_of_vram", "the GPUs are too small for this split"),
    Symptom(
        "driver on your system is too old", "driver_too_old", "the host's driver is too old for the image"
    ),
    Symptom("driver version is insufficient", "driver_too_old", "the host's driver is too old for the image"),
    Symptom(
        "unsatisfied condition: cuda>=", "driver_too_old", "the image needs a newer driver than the host's"
    ),
    Symptom("no kernel image is available", "gpu_unsupported", "the engine was not built for this GPU"),
    Symptom("No space left on device", "disk_full", "the disk is full"),
    Symptom("Address already in use", "port_in_use", "another program has the engine's port"),
    Symptom("address already in use", "port_in_use", "another program has the engine's port"),
    Symptom("Error while creating shared memory segment", "shm_too_small", "/dev/shm is too small for NCCL"),
    Symptom("Bus error", "shm_too_small", "/dev/shm is too small"),
    Symptom("ncclSystemError", "nccl", "the GPUs of the host cannot talk to each other"),
    Symptom("NCCL error in", "nccl", "the GPUs of the host cannot talk to each other"),
    Symptom("unrecognized arguments", "bad_flag", "the engine's version does not know a flag we gave"),
    Symptom("invalid choice", "bad_flag", "the engine's version does not know a value we gave"),
)
KILLED_EXIT_CODE = 137


def diagnose_by(
    symptoms: tuple[Symptom, ...],
    log: tuple[str, ...],
    exit_code: int | None,
    *,
    last: tuple[Symptom, ...] = (),
) -> Diagnosis:
    """The first symptom, in the order of the tables, that any line shows; else the exit code speaks."""
    for symptom in (*symptoms, *SHARED_SYMPTOMS, *last):
        if any(symptom.part in line for line in log):
            return Diagnosis(symptom.cause, symptom.text)
    if exit_code == KILLED_EXIT_CODE:
        return Diagnosis("out_of_ram", "the host killed it, most likely for lack of RAM")
    words = next((line for line in reversed(log) if line.strip()), "")
    return Diagnosis(
        "unknown", f"it ended with code {exit_code}: {words}" if words else f"it ended: {exit_code}"
    )


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
