"""The GPU table, and finding a model in it by the name that a market or a driver prints."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import resources

from clorefleet.domain.gpu import GpuModel


@dataclass(frozen=True, slots=True)
class GpuTable:
    models: tuple[GpuModel, ...]
    """More particular names first."""

    def find(self, name: str, claimed_vram_gib: Decimal | None = None) -> GpuModel | None:
        """The model that `name` means, or None for one the table does not have."""
        words = {word.removesuffix("gb") for word in re.findall(r"[a-z0-9]+", name.lower())}
        if claimed_vram_gib is not None:
            words.add(str(int(claimed_vram_gib.to_integral_value())))
        return next((model for model in self.models if words.issuperset(model.match)), None)


@cache
def load_gpus() -> GpuTable:
    """The packaged table. Read once."""
    text = (resources.files("clorefleet.data") / "gpus.toml").read_text("utf-8")
    return GpuTable(tuple(_model(entry) for entry in tomllib.loads(text)["gpu"]))


def _model(entry: dict[str, object]) -> GpuModel:
    major, minor = str(entry["compute_capability"]).split(".")
    tflops = entry.get("bf16_tflops")
    match = entry["match"]
    return GpuModel(
        gpu_id=str(entry["id"]),
        name=str(entry["name"]),
        match=tuple(str(word) for word in match) if isinstance(match, list) else (),
        compute_capability=(int(major), int(minor)),
        vram_mib=int(str(entry["vram_mib"])),
        bandwidth_gb_s=float(str(entry["bandwidth_gb_s"])),
        bf16_tflops=None if tflops is None else float(str(tflops)),
        has_fp8=bool(entry["has_fp8"]),
        has_nvlink=bool(entry["has_nvlink"]),
        source=str(entry["source"]),
        confidence=str(entry["confidence"]),
    )
