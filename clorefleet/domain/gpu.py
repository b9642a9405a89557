"""One GPU model as the planner knows it. A live host's own reading wins over this table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuModel:
    gpu_id: str
    """For instance `rtx-4090`."""
    name: str
    match: tuple[str, ...]
    """Words that a market's or driver's name must all contain, in lower case; the table's order decides."""
    compute_capability: tuple[int, int]
    vram_mib: int
    """What nvidia-smi shows, which is less than the marketing figure."""
    bandwidth_gb_s: float
    bf16_tflops: float | None
    has_fp8: bool
    has_nvlink: bool
    """All to all between the GPUs of a server, not a bridge between pairs."""
    source: str
    confidence: str

    def __hash__(self) -> int:
        """By its id alone: shapes of hardware are looked up thousands of times in one plan."""
        return hash(self.gpu_id)
