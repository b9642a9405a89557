"""What a simulated server really is, beside what its offer claims.

The market shows the offer; the rented node tells this. An honest host has both alike.
Pure values: no I/O here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrueGpu:
    """One GPU as the driver reports it."""

    name: str
    """As `nvidia-smi --query-gpu=name` prints it, for instance `NVIDIA GeForce RTX 4090`."""
    vram_mib: int
    """`memory.total` in MiB, which is less than the marketing figure."""
    compute_capability: str
    """For instance `8.9`."""
    memory_bandwidth_gb_s: float
    pcie_generation: int
    pcie_width: int
    power_limit_w: int
    nvlink: bool = False


@dataclass(frozen=True, slots=True)
class ServerTruth:
    """The hardware, software and manners behind one offer of the simulated market."""

    server_id: int
    gpus: tuple[TrueGpu, ...]
    driver_version: str
    """For instance `580.95.05`."""
    cuda_version: str
    """Highest CUDA version the driver supports, for instance `13.0`."""
    cpu_model: str
    cores: int
    threads: int
    ram_bytes: int
    ram_bandwidth_gb_s: float
    """Peak of all channels; a stand-in engine uses it for experts held in RAM."""
    disk_free_bytes: int
    disk_mb_s: float
    down_mbit_s: float
    up_mbit_s: float
    shm_bytes: int
    boot_seconds: float
    """From the order to an SSH banner, before the sandbox's time factor."""
    lies: frozenset[str] = frozenset()
    """Ways in which the offer differs from this record, for instance `gpu_missing`, `less_vram`,
    `old_driver`, `slow_network`, `small_disk`, `never_boots`, `own_host_key` (the image ignores the key that
    the order's script puts in place), `driver_mismatch`, `nvml`, `no_devices`, `gpu_lost`. Empty for an
    honest host. `dead_gpu`, `wrong_answers`, `drops_tool_calls`, `empty_thinking`: of a simulated engine that
    calls itself healthy."""
