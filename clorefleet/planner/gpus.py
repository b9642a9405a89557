"""The GPU table, and finding a model in it by the name that a market or a driver prints."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from importlib import resources

from clorefleet.domain.gpu import GpuModel


@dataclass(frozen=True, slots=True)
class GpuTable:
    models: tuple[GpuModel, ...]
    """More particular names first."""
    _found: dict[tuple[str, Decimal | None], GpuModel | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Answers so far: a market has few names, each thousands of times."""

    def find(self, name: str, claimed_vram_gib: Decimal | None = None) -> GpuModel | None:
        """The model that `name` means, or None for one the table does not have.

        The memory tells apart what shares a name (A100 40 and 80 GB, a 4090 with doubled memory). It is
        given as claimed by an offer or as measured on a node, so it may lie a little beside the marketing
        figure that the table's words have.
        """
        key = (name, claimed_vram_gib)
        if key not in self._found:
            if len(self._found) >= _FOUND_MAX:
                self._found.clear()
            self._found[key] = self._find(name, claimed_vram_gib)
        return self._found[key]

    def _find(self, name: str, claimed_vram_gib: Decimal | None) -> GpuModel | None:
        words = {word.removesuffix("gb") for word in re.findall(r"[a-z0-9]+", name.lower())}
        if words & _OTHER_SILICON:
            return None
        if claimed_vram_gib is not None:
            words |= _sizes_near(claimed_vram_gib)
        return next((model for model in self.models if words.issuperset(model.match)), None)


_FOUND_MAX = 4096
_OTHER_SILICON = frozenset({"laptop", "mobile"})
"""Names that hold a desktop GPU's name but are slower, smaller chips."""
_SIZES_GB = (8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 80, 94, 96, 141, 180, 288)
_SIZE_TOLERANCE = Decimal("0.07")
"""Between marketing gigabytes and visible GiB: B200's 180 shows as 179.1, B300's 288 as some 269."""


def _sizes_near(gib: Decimal) -> set[str]:
    return {str(size) for size in _SIZES_GB if abs(gib - size) <= size * _SIZE_TOLERANCE}


@cache
def load_gpus() -> GpuTable:
    """The packaged table. Read once."""
    text = (resources.files("clorefleet.data") / "gpus.toml").read_text("utf-8")
    return GpuTable(tuple(gpu_model(entry) for entry in tomllib.loads(text)["gpu"]))


def gpu_model(entry: dict[str, object]) -> GpuModel:
    """A table's entry as a value."""
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
