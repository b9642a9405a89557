"""The hardware a setup is tried on: an offer's claims, or a node's measured facts, in one shape.

Thousands of offers share a few hundred shapes. `Hardware` is that shape: hashable, and free of price.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from clorefleet.domain.gpu import GpuModel
from clorefleet.domain.node import NodeFacts
from clorefleet.domain.offer import Offer
from clorefleet.planner.gpus import GpuTable

GIB = 1 << 30
MIB = 1 << 20

_RAM_BANDWIDTH_GB_S: tuple[tuple[str, float], ...] = (
    # Peak of all channels of one socket, by CPU family: channels x rate, computed. Offers do not state
    # how many channels are filled, so every figure is an assumption until the node is measured.
    (r"epyc 9[0-9]{2}5", 614.0),  # Turin, 12 x DDR5-6400
    (r"epyc 9[0-9]{2}4", 461.0),  # Genoa, 12 x DDR5-4800
    (r"epyc 8[0-9]{2}4", 230.0),  # Siena, 6 x DDR5-4800
    (r"epyc 7[0-9a-z]{2}[123]", 205.0),  # Naples to Milan, 8 x DDR4-3200 at best
    (r"xeon.*(platinum|gold|silver) [5-6]?[0-9]*[4-6][0-9]{2}[0-9a-z]*\b.*|xeon w[579]", 307.0),
    (r"threadripper pro", 205.0),
    (r"threadripper", 102.0),
    (r"xeon", 100.0),
    (r"i[3579]-1[2-9]|ultra [579]|ryzen [3579] [789][0-9]{3}", 80.0),
)
RAM_BANDWIDTH_DEFAULT_GB_S = 45.0
"""Dual-channel DDR4."""


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
    models = [gpus.find(gpu.name, gpu.claimed_vram_gib) for gpu in offer.gpus]
    found = tuple(model for model in models if model is not None)
    if not found or len(found) != len(models):
        return None
    vram = tuple(
        min(model.vram_mib, int(gpu.claimed_vram_gib * 1024)) if gpu.claimed_vram_gib else model.vram_mib
        for model, gpu in zip(found, offer.gpus, strict=True)
    )
    return Hardware(
        gpus=found,
        vram_mib=vram,
        ram_bytes=offer.ram_bytes or 0,
        disk_free_bytes=offer.disk_free_bytes or 0,
        cuda_version=offer.cuda_version,
        ram_bandwidth_gb_s=ram_bandwidth_gb_s(offer.cpu_model),
    )


def hardware_of_facts(facts: NodeFacts, gpus: GpuTable) -> Hardware | None:
    """The same from what was measured on the node."""
    models = [gpus.find(gpu.name) for gpu in facts.gpus]
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


def ram_bandwidth_gb_s(cpu_model: str) -> float:
    """Peak RAM bandwidth inferred from the CPU's name [assumed]."""
    name = cpu_model.lower()
    return next(
        (rate for pattern, rate in _RAM_BANDWIDTH_GB_S if re.search(pattern, name)),
        RAM_BANDWIDTH_DEFAULT_GB_S,
    )
