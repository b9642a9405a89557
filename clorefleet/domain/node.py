"""What a rented server turned out to be: facts measured over SSH."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class GpuFact:
    name: str
    vram_mib: int
    compute_capability: str
    pcie_generation: int | None = None
    pcie_width: int | None = None


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Read once in the probing phase. None where the node has no tool to tell."""

    gpus: tuple[GpuFact, ...]
    driver_version: str
    cuda_version: tuple[int, int] | None
    ram_bytes: int | None
    cores: int | None
    cpu_model: str
    disk_free_bytes: int | None
    shm_bytes: int | None
    python_version: str
    """"" when the node has no Python 3."""


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """Where a node is not what its offer said."""

    code: str
    """`gpu_count`, `gpu_model`, `vram`, `cuda`, `ram`, `disk`, `cores`, `no_gpu`."""
    offered: str
    found: str
    is_fatal: bool
    """True when the plan cannot run, or the difference is beyond its threshold."""


class JobState(StrEnum):
    ABSENT = "absent"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"
    """Started once, not running now, and no exit code was written: killed, or the host restarted."""


@dataclass(frozen=True, slots=True)
class JobReport:
    """One look at a detached job on a node. All text is already cleaned and bounded."""

    state: JobState
    exit_code: int | None = None
    progress_text: str = ""
    progress_done: int | None = None
    """In `progress_unit`, for instance bytes."""
    progress_total: int | None = None
    log_tail: tuple[str, ...] = ()
