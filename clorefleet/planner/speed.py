"""Predicted decode speed. At batch 1 a large model is bound by per-layer latency and, with experts in RAM,
by RAM bandwidth; a model of GPU bandwidth alone is wrong by ten times.

    step = bytes read on GPUs / (bandwidth x efficiency) + layers x latency + bytes read in RAM / (RAM x eff.)
    tokens/s of one stream = speculation's gain / step

Constants are fits to published measurements (docs/planner.md has the table) or assumed, and say which.
"""

from __future__ import annotations

import math
from decimal import Decimal

from clorefleet.domain.plan import Speed, Term
from clorefleet.domain.recipe import EngineName, Mark, Recipe
from clorefleet.domain.setup import Setup
from clorefleet.planner.fit import weights_of
from clorefleet.planner.hardware import Hardware

GPU_EFFICIENCY = 0.7
"""Share of HBM bandwidth that large matrix-vector products reach: 0.65 to 0.75 [assumed]."""
LAYER_S_ONE_GPU = 0.00011
"""Fit to GLM-4.7-Flash BF16 on one H100 (120.3 tok/s)."""
LAYER_S_TP8_NVLINK = 0.000224
"""Fit to GLM-5.2 FP8 on 8xH200 without speculation (52.6 tok/s)."""
LAYER_S_PCIE = 0.00045
"""Two all-reduces over PCIe in place of NVLink: 0.3 to 0.6 ms [assumed]."""
CPU_EFFICIENCY = 0.30
"""Share of peak RAM bandwidth on offloaded experts: 0.27 to 0.40 in published runs."""
SPECULATION_GAIN = 2.08
"""GLM-5.2 FP8, three drafts, batch 1: 109.3 against 52.6 tok/s."""
BATCH_EFFICIENCY = 0.55
"""Share of linear growth that more streams bring [assumed]."""
TYPICAL_HIDDEN = 6144
"""Latency per layer is for layers of this width; small models' layers are quicker [assumed]."""


def predict(setup: Setup, recipe: Recipe, hardware: Hardware) -> Speed:
    checkpoint = recipe.checkpoint(setup.checkpoint)
    arch, params = recipe.architecture, recipe.parameters
    weights = weights_of(recipe, checkpoint)
    bytes_per_weight = checkpoint.bytes / max(1, params.total + params.mtp_layer)
    active = params.active_per_token * bytes_per_weight
    in_ram = len(setup.experts_in_ram)
    routed_per_layer = (
        arch.experts_per_token * params.one_expert * bytes_per_weight if weights.expert_layer else 0.0
    )
    ram_bytes = routed_per_layer * in_ram
    gpu_bytes = max(0.0, active - ram_bytes)
    # Tensor parallelism reads from all GPUs at once; a layer split from one after the other.
    parallel = 1 if setup.engine is EngineName.LLAMACPP else setup.tensor_parallel
    bandwidth = min(gpu.bandwidth_gb_s for gpu in hardware.gpus) * 1e9
    gpu_s = gpu_bytes / (bandwidth * GPU_EFFICIENCY * parallel)
    layer_s, layer_mark = _layer_seconds(setup, recipe, hardware)
    layers_s = arch.num_layers * layer_s
    ram_s = ram_bytes / (hardware.ram_bandwidth_gb_s * 1e9 * CPU_EFFICIENCY)
    gain = SPECULATION_GAIN if setup.speculation is not None else 1.0
    step_s = gpu_s + layers_s + ram_s
    tokens_per_s = gain / step_s
    terms = [
        _seconds("weights read on GPUs", gpu_s, Mark.ASSUMED, "active bytes / (bandwidth x 0.7)"),
        _seconds(f"{arch.num_layers} layers' latency", layers_s, layer_mark, "fits to published runs"),
    ]
    if ram_bytes:
        terms.append(
            _seconds(
                "experts read in RAM",
                ram_s,
                Mark.ASSUMED,
                f"{ram_bytes / 1e9:.1f} GB / ({hardware.ram_bandwidth_gb_s:.0f} GB/s by CPU model x 0.3)",
            )
        )
    if setup.speculation is not None:
        terms.append(
            Term("speculation's gain", Decimal(str(gain)), "x", Mark.PUBLISHED, "GLM-5.2 on 8xH200, 3 drafts")
        )
    throughput = tokens_per_s * max(
        1.0, setup.concurrency * (BATCH_EFFICIENCY if setup.concurrency > 1 else 1)
    )
    if ram_bytes:
        throughput = tokens_per_s  # more streams touch more experts: RAM gives nothing back [assumed]
    return Speed(tokens_per_s, tuple(terms), Mark.ASSUMED, throughput)


def _layer_seconds(setup: Setup, recipe: Recipe, hardware: Hardware) -> tuple[float, Mark]:
    width = min(1.0, recipe.architecture.hidden / TYPICAL_HIDDEN)
    base = LAYER_S_ONE_GPU * max(0.2, width**0.5)
    ranks = setup.tensor_parallel
    if setup.engine is EngineName.LLAMACPP or ranks == 1:
        return base, Mark.PUBLISHED
    if all(gpu.has_nvlink for gpu in hardware.gpus):
        step = (LAYER_S_TP8_NVLINK - LAYER_S_ONE_GPU) * math.log2(ranks) / 3
        return base + step, Mark.PUBLISHED
    return max(base, LAYER_S_PCIE), Mark.ASSUMED


def _seconds(name: str, value: float, mark: Mark, source: str) -> Term:
    return Term(name, Decimal(str(round(value * 1000, 4))), "ms/token", mark, source)
