"""What every engine module offers, and the values they share."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol

from clorefleet.domain.failure import Cause, Correction
from clorefleet.domain.recipe import EngineSupport
from clorefleet.domain.setup import Setup
from clorefleet.engine.diagnosis import Diagnosis


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
    tokens_per_s: float | None = None
    """All streams together, as the engine counts it."""
    evicted: int | None = None
    """Requests that lost their context memory to others since the engine started."""


class Engine(Protocol):
    """All paths are absolute paths on the node."""

    health_path: str
    """Answers 200 when the engine is ready to serve."""
    proof_path: str
    """Answers 200 only after the GPUs made a token (F16); "" where the engine has no such route."""
    stop_signal: str
    """Lets requests under way finish."""
    stop_grace_s: float
    """After that it is killed."""

    def check_script(self) -> str:
        """A shell command that prints the engine's version (or anything, where it does not tell), and fails
        where the image lacks it."""
        ...

    def launch(
        self, setup: Setup, support: EngineSupport, *, weights: str, files: tuple[str, ...], port: int
    ) -> Launch:
        """The command that serves `setup` from the folder `weights`, bound to the node's loopback.

        Raises:
            BadInput: the engine cannot serve such a setup.
        """
        ...

    def warm_up(self, setup: Setup) -> tuple[dict[str, object], ...]:
        """Chat requests that fill caches and compile kernels, to be sent before anything is measured."""
        ...

    def metrics(self, text: str) -> EngineMetrics: ...

    def diagnose(self, log: tuple[str, ...], exit_code: int | None) -> Diagnosis: ...

    def corrections(self, cause: Cause) -> tuple[Correction, ...]:
        """What may cure a cause, the gentlest first."""
        ...

    def apply(self, setup: Setup, correction: Correction) -> Setup | None:
        """`setup` with one thing changed, or None where that cannot be changed any further.

        Model, precision and concurrency are never touched, and the context not below what was asked for.
        """
        ...


def chat(setup: Setup, content: str, **more: object) -> dict[str, object]:
    """A request body. Greedy, so that the same engine answers the same."""
    message = {"role": "user", "content": content}
    return {"model": setup.model, "messages": [message], "temperature": 0, **more}


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


REQUESTS_MAX = 1_000_000
"""More than any engine holds at once."""
TOKENS_MAX = 2**53
"""Beyond it a float does not count any more."""


def requests_of(samples: dict[str, float], name: str) -> int | None:
    """How many requests a gauge tells; None for a figure that no engine has (G1): a host can write anything."""
    return _whole(samples.get(name), REQUESTS_MAX)


def count_of(samples: dict[str, float], name: str) -> int | None:
    """What a counter has come to; None for a figure that no engine reaches."""
    return _whole(samples.get(name), TOKENS_MAX)


def _whole(value: float | None, most: int) -> int | None:
    return None if value is None or not 0 <= value <= most else int(value)
