"""The hardware a setup is tried on: an offer's claims, or a node's measured facts, in one shape.

Thousands of offers share a few hundred shapes. `Hardware` is that shape: hashable, and free of price.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from clorefleet.domain.gpu import GpuModel
from clorefleet.domain.node import NodeFacts
from clorefleet.domain.offer import Offer, OfferedGpu
from clorefleet.planner.gpus import GpuTable

GIB = 1 << 30
MIB = 1 << 20

_RAM_BANDWIDTH_GB_S: tuple[tuple[str, float], ...] = (
    # Peak of one socket with every channel filled, by CPU family: channels x rate x 8 bytes [computed from
    # the family's published memory controller]. Offers do not say how many channels are filled, and a second
    # socket brings llama.cpp nothing, so every figure is an assumption until the node is measured.
    (r"epyc 9\w{2}5", 614.0),  # Turin: 12 x DDR5-6400
    (r"epyc 9\w{2}4", 461.0),  # Genoa, Bergamo: 12 x DDR5-4800
    (r"epyc 8\w{2}4", 230.0),  # Siena: 6 x DDR5-4800
    (r"epyc 4\w{2}[45]", 83.0),  # Raphael: 2 x DDR5-5200
    (r"epyc 7\w{2}[23]", 205.0),  # Rome, Milan: 8 x DDR4-3200
    (r"epyc 7\w{2}1", 171.0),  # Naples: 8 x DDR4-2666
    (r"epyc 3\w{2}1", 85.0),  # Snowy Owl: 4 x DDR4-2666
    (r"threadripper pro [79]\d{3}wx", 333.0),  # 8 x DDR5-5200
    (r"threadripper pro", 205.0),  # 8 x DDR4-3200
    (r"threadripper [79]\d{3}x", 166.0),  # 4 x DDR5-5200
    (r"threadripper", 85.0),  # 4 x DDR4-2666 at least
    (r"xeon.* 6[79]\d{2}[pe]\b", 410.0),  # Granite Rapids, Sierra Forest: 8 x DDR5-6400 at least
    # Scalable Xeons: the second digit is the generation.
    (r"xeon.*(platinum|gold|silver|bronze) [3-9]5\d{2}", 358.0),  # Emerald Rapids: 8 x DDR5-5600
    (r"xeon.*(platinum|gold|silver|bronze) [3-9]4\d{2}", 307.0),  # Sapphire Rapids: 8 x DDR5-4800
    (r"xeon.*(platinum|gold|silver|bronze) [3-9]3\d{2}", 205.0),  # Ice Lake: 8 x DDR4-3200
    (r"xeon.*(platinum|gold|silver|bronze) [3-9]2\d{2}", 141.0),  # Cascade Lake: 6 x DDR4-2933
    (r"xeon.*(platinum|gold|silver|bronze) [3-9]1\d{2}", 128.0),  # Skylake: 6 x DDR4-2666
    (r"xeon.* w[579]-3[45]\d{2}", 307.0),  # 8 x DDR5-4800
    (r"xeon.* w[3579]-2[45]\d{2}", 154.0),  # 4 x DDR5-4800
    (r"xeon.* w-3[23]\d{2}", 141.0),  # 6 x DDR4-2933
    (r"xeon.* w-2\d{3}", 85.0),  # 4 x DDR4-2666
    (r"xeon.* e5-[124]\d{3}\w* *v4", 77.0),  # 4 x DDR4-2400
    (r"xeon.* e5-[124]\d{3}\w* *v3", 68.0),  # 4 x DDR4-2133
    (r"xeon.* e[57]-", 51.0),  # 4 x DDR3-1600
    (r"xeon.* e-?[23]", 42.0),  # 2 x DDR4-2666
    (r"ryzen [3579] [789]\d{3}|ultra [579] 2", 83.0),  # 2 x DDR5-5200
)
RAM_BANDWIDTH_DEFAULT_GB_S = 45.0
"""Dual-channel DDR4-2800: what a CPU has at least that is not in the table."""


@dataclass(frozen=True, slots=True)
class Hardware:
    gpus: tuple[GpuModel, ...]
    vram_mib: tuple[int, ...]
    """Per GPU, visible: the smaller of the table's and the claimed or measured figure."""
    ram_bytes: int
    disk_free_bytes: int
    cuda_version: tuple[int, int] | None
    ram_bandwidth_gb_s: float

    @property
    def is_mixed(self) -> bool:
        return len({gpu.gpu_id for gpu in self.gpus}) > 1


def hardware_of_offer(offer: Offer, gpus: GpuTable) -> Hardware | None:
    """None when a GPU is not in the table: what is not known is not promised."""
    models = offered_models(offer.gpus, gpus)
    return None if models is None else hardware_of_models(models, offer)


def hardware_of_models(models: OfferedModels, offer: Offer) -> Hardware:
    """The same where the offer's GPUs were found already."""
    found, vram = models
    return Hardware(
        gpus=found,
        vram_mib=vram,
        ram_bytes=offer.ram_bytes or 0,
        disk_free_bytes=offer.disk_free_bytes or 0,
        cuda_version=offer.cuda_version,
        ram_bandwidth_gb_s=ram_bandwidth_gb_s(offer.cpu_model),
    )


OfferedModels = tuple[tuple[GpuModel, ...], tuple[int, ...]]
"""GPUs and the memory of each in MiB."""


class ModelsMemo:
    """`offered_models` of kinds that come again as the same objects. Equal answers are one object."""

    KINDS_MAX = 8192

    def __init__(self) -> None:
        self._found: dict[int, tuple[tuple[OfferedGpu, ...], OfferedModels | None]] = {}
        self._models: dict[OfferedModels | None, OfferedModels | None] = {}
        self._gpus: GpuTable | None = None

    def models(self, offered: tuple[OfferedGpu, ...], gpus: GpuTable) -> OfferedModels | None:
        if gpus is not self._gpus or len(self._found) >= self.KINDS_MAX:
            self._found.clear()
            self._models.clear()
            self._gpus = gpus
        known = self._found.get(id(offered))
        if known is None or known[0] is not offered:
            models = offered_models(offered, gpus)
            known = self._found[id(offered)] = (offered, self._models.setdefault(models, models))
        return known[1]


def offered_models(offered: tuple[OfferedGpu, ...], gpus: GpuTable) -> OfferedModels | None:
    """The GPUs on offer and the memory of each; None where the table lacks one, or one has no memory."""
    models = [gpus.find(gpu.name, gpu.claimed_vram_gib) for gpu in offered]
    found = tuple(model for model in models if model is not None)
    if not found or len(found) != len(models):
        return None
    vram = tuple(
        min(model.vram_mib, int(gpu.claimed_vram_gib * 1024)) if gpu.claimed_vram_gib else model.vram_mib
        for model, gpu in zip(found, offered, strict=True)
    )
    # A stranger may claim less than a MiB, which no share of the weights can be reckoned of.
    return (found, vram) if min(vram) > 0 else None


def hardware_of_facts(facts: NodeFacts, gpus: GpuTable) -> Hardware | None:
    """The same from what was measured on the node."""
    models = [gpus.find(gpu.name, Decimal(gpu.vram_mib) / 1024) for gpu in facts.gpus]
    found = tuple(model for model in models if model is not None)
    if not found or len(found) != len(models):
        return None
    return Hardware(
        gpus=found,
        vram_mib=tuple(gpu.vram_mib for gpu in facts.gpus),
        ram_bytes=facts.ram_bytes or 0,
        disk_free_bytes=facts.disk_free_bytes or 0,
        cuda_version=facts.cuda_version,
        ram_bandwidth_gb_s=ram_bandwidth_gb_s(facts.cpu_model),
    )


@lru_cache(maxsize=4096)
def ram_bandwidth_gb_s(cpu_model: str) -> float:
    """Peak RAM bandwidth of one socket, inferred from the CPU's name [assumed]."""
    name = re.sub(r"\((r|tm)\)", "", cpu_model.lower())
    return next(
        (rate for pattern, rate in _RAM_BANDWIDTH_GB_S if re.search(pattern, name)),
        RAM_BANDWIDTH_DEFAULT_GB_S,
    )
