"""What a rented server turned out to be: facts measured over SSH."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from clorefleet.domain.failure import Cause, Correction
from clorefleet.domain.identity import LeaseId
from clorefleet.domain.secret import NO_SECRET, Secret


class GpuTrouble(StrEnum):
    """Why `nvidia-smi` does not tell of a GPU. Its own words for each are in `node.probe`."""

    NOT_FOUND = "not_found"
    DRIVER_MISMATCH = "driver_mismatch"
    NO_DRIVER = "no_driver"
    NO_DEVICES = "no_devices"
    GPU_LOST = "gpu_lost"
    NVML = "nvml"
    """The management library fails otherwise, usual in containers that lost access to their devices."""
    TIMED_OUT = "timed_out"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class GpuFact:
    name: str
    vram_mib: int
    compute_capability: str
    pcie_generation: int | None = None
    """The most that GPU and slot can do: at rest a link slows itself down."""
    pcie_width: int | None = None
    used_mib: int | None = None
    """VRAM that somebody held before we came."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was timed on the node itself. None where it was skipped; `skipped` says why."""

    memory_gb_s: float | None = None
    """All cores copying at once; bytes read and written both count."""
    disk_write_mb_s: float | None = None
    disk_read_mb_s: float | None = None
    """Past the page cache where the system lets us."""
    download_mbit_s: float | None = None
    """From the hub that the weights will come from, several streams."""
    gpu_tflops: tuple[float, ...] = ()
    """Dense 16-bit matrix products, per GPU."""
    skipped: tuple[str, ...] = ()
    """For instance `gpu: no torch`."""
    is_simulated: bool = False
    """The node itself says that these figures are its sandbox's."""


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
    gpu_trouble: GpuTrouble | None = None
    """Something is wrong with a GPU, though others may be well."""
    has_nvlink: bool | None = None
    """Each pair of GPUs is linked; None with one GPU."""
    memory_channels: int | None = None
    """Filled slots, where the node lets them be read; containers rarely do."""
    cpu_limit: float | None = None
    """Cores' worth of time that the container may use; None = no limit was seen."""
    pids_limit: int | None = None
    measured: Measured | None = None


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """Where a node is not what its offer said."""

    code: str
    """One of `node.attest.CODES`."""
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


@dataclass(frozen=True, slots=True)
class NodeView:
    """What one look at a node showed. Fields that the lease's phase does not ask for stay None."""

    trouble: str = ""
    """Why the look failed, cleaned; "" when it did not."""
    is_hostile: bool = False
    """The trouble is one that ends the trust: changed host key, wrong nonce, refused address."""
    lacks_key: bool = False
    """The key that was to be made for it here is not here: nobody can tell whether the server is ours."""
    key_is_elsewhere: bool = False
    """Its key was made on another machine, which may have rented with it: this one cannot log in."""
    host_key: str = ""
    facts: NodeFacts | None = None
    discrepancies: tuple[Discrepancy, ...] = ()
    engine_missing: str | None = None
    """Why the engine cannot run here; "" when it is there."""
    job: JobReport | None = None
    job_diagnosis: str = ""
    job_cause: Cause | None = None
    """What the job died of, or what is wrong with a running engine's answers."""
    correction: Correction | None = None
    """One change to the launch that may cure the cause and was not made on this lease."""
    is_healthy: bool | None = None
    """The engine answers its readiness route through the tunnel."""
    answered: bool | None = None
    """The engine completed a prompt."""
    measured_tokens_per_s: float | None = None
    measured_together_tokens_per_s: float | None = None
    """Of `measured_streams` requests at once, all together."""
    measured_streams: int = 1
    speed_is_comparable: bool = False
    """The measured speed is that of the rented hardware, and may be held against the prediction."""
    simulated_tokens_per_s: float | None = None
    """What a sandbox's stand-in says that the hardware it simulates would do: held against the prediction in
    place of the measured speed, which is this machine's."""
    engine_is_simulated: bool = False
    in_flight: int = 0
    """Requests the gateway has under way on this replica."""
    engine_running: int | None = None
    engine_waiting: int | None = None
    """Requests at the engine, by its own metrics."""
    engine_tokens: int | None = None
    """Read and generated since it started, by its own metrics."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What an order is given so that only we can log in, and so that we know it again."""

    ssh_public_key: str
    nonce: str
    ssh_password: Secret = NO_SECRET
    """For a person in need; our own client never sends it. "" = none."""
    host_private_key: Secret = NO_SECRET
    """Put in place by the start-up script; "" = the server makes its own."""


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a serving replica is reached on this machine: a UNIX socket in front of the tunnel."""

    lease_id: LeaseId
    model: str
    socket: Path
