"""Predicted decode speed. At batch 1 a large model is bound by per-layer latency and, with experts in RAM,
by RAM bandwidth; a model of GPU bandwidth alone is wrong by ten times.

    step = bytes read on GPUs / (bandwidth x efficiency) + layers x latency + bytes read in RAM / (RAM x eff.)
    tokens/s of one stream = gain of speculation / step

Constants are fits to published measurements or assumed, and say which. `docs/planner.md` sets predictions
beside every published figure, misses included, and `tests/planner/test_speed.py` holds that table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

from clorefleet.domain.plan import Speed, Term
from clorefleet.domain.recipe import EngineName, Mark, Recipe
from clorefleet.domain.setup import Setup
from clorefleet.planner.hardware import Hardware
from clorefleet.planner.weights import (
    NON_EXPERT_BITS,
    expert_layers,
    kv_bytes_per_token_and_rank,
    weights_of,
)

GPU_EFFICIENCY = 0.7
"""Share of memory bandwidth that matrix-vector products reach: 0.65 to 0.75 [assumed]."""
CPU_EFFICIENCY = 0.30
"""Share of one socket's peak RAM bandwidth on offloaded experts: 0.27 to 0.40 in published runs."""
LAYER_S = {
    # (tensor engine?, has experts?): router, attention and many small kernels, at batch 1.
    (True, True): 0.000109,  # fit: GLM-4.7-Flash BF16 on one H100, 120.3 tok/s
    (True, False): 0.00002,  # Llama-3.1-8B on one H100 at 158 tok/s leaves no more [assumed]
    (False, True): 0.000172,  # fit: GLM-4.7-Flash IQ5_K wholly on one RTX PRO 6000, 99.4 tok/s
    (False, False): 0.00005,  # llama.cpp, dense [assumed]
}
LINK_S_NVLINK = 0.000115
"""Two all-reduces a layer over eight GPUs. Fit: GLM-5.2 FP8 on 8xH200 without drafts, 52.6 tok/s."""
LINK_S_PCIE = 0.00019
"""The same through PCIe with peer-to-peer [assumed]. Chosen by GLM-5.2 on 8xRTX PRO 6000 at 40 tok/s, whose
checkpoint is not named (NVFP4 taken). Facts say 0.3 to 0.6 ms a layer in all, which would give 24 to 36."""
LINK_S_NO_PEER = 0.00034
"""GeForce: through host memory, peer-to-peer being off in the driver [assumed, 0.3 to 0.6 ms a layer]."""
GAIN_LARGE = 2.08
"""Three drafts on GLM-5.2 FP8, 8xH200, one stream: 109.3 against 52.6 tok/s."""
GAIN_SMALL = 1.39
"""EAGLE-3 on GLM-4.7-Flash, one H100: 167.8 against 120.3 tok/s. Drafts cost a small model more."""
LARGE_FROM_WEIGHTS = 300_000_000_000
"""Nothing was measured between 30B and 355B: the smaller gain is taken there [assumed]."""
GAIN_LOSS_PER_DOUBLING = 0.15
"""Of the gain, for each doubling of the streams: 16 and 64 streams of GLM-5.2 on 8xH200 then agree."""
CONTEXT_READ_TOKENS = 4096
"""Context that a typical request reads back at each step [assumed]. Sparse attention reads 2,048 at most."""
SPARSE_READ_TOKENS = 2048


def predict(setup: Setup, recipe: Recipe, hardware: Hardware) -> Speed:
    step = _step_of(setup, recipe, hardware)
    one_s = step.seconds(1)
    streams = setup.concurrency
    # Experts in RAM are read anew for each stream that wants others: more streams gain nothing there.
    together = 1 if step.ram_bytes else streams
    terms = [
        _ms("weights read on GPUs", step.gpu_s(1), Mark.ASSUMED, f"{step.gpu_text} x {GPU_EFFICIENCY}"),
        _ms("context read back", step.context_s, Mark.ASSUMED, f"{step.context_tokens:,} tokens"),
        _ms(f"{step.layers} layers' latency", step.layers * step.layer_s, step.layer_mark, step.layer_text),
    ]
    if step.ram_bytes:
        source = (
            f"{step.ram_bytes / 1e9:.1f} GB / ({hardware.ram_bandwidth_gb_s:.0f} GB/s by CPU model"
            f" x {CPU_EFFICIENCY})"
        )
        terms.append(_ms("experts read in RAM", step.ram_s, Mark.ASSUMED, source))
    if setup.speculation is not None:
        gain = Decimal(str(step.gain))
        terms.append(Term("speculation's gain", gain, "x", Mark.PUBLISHED, step.gain_text))
    return Speed(
        decode_tokens_per_s=step.gain_at(1) / one_s,
        terms=tuple(terms),
        mark=Mark.ASSUMED,
        throughput_tokens_per_s=together * step.gain_at(together) / step.seconds(together),
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """One decode step, in its parts."""

    dense_bytes: float
    """Read for every step, whatever the batch: attention, shared experts, head."""
    routed_bytes: float
    """Experts on GPUs that one stream chooses."""
    ram_bytes: float
    """Experts in RAM that one stream chooses."""
    experts: int
    chosen: int
    gpu_bandwidth: float
    """Bytes/s that all GPUs give together."""
    gpu_text: str
    ram_bandwidth: float
    context_tokens: int
    context_s: float
    layers: int
    layer_s: float
    layer_mark: Mark
    layer_text: str
    gain: float
    gain_text: str

    @property
    def ram_s(self) -> float:
        return self.ram_bytes / self.ram_bandwidth

    def gpu_s(self, streams: int) -> float:
        return (self.dense_bytes + self.routed_bytes * self._distinct(streams)) / self.gpu_bandwidth

    def seconds(self, streams: int) -> float:
        fixed = self.layers * self.layer_s + self.context_s * streams
        return self.gpu_s(streams) + fixed + self.ram_s

    def gain_at(self, streams: int) -> float:
        if self.gain <= 1:
            return 1.0
        return max(1.0, self.gain - GAIN_LOSS_PER_DOUBLING * math.log2(streams))

    def _distinct(self, streams: int) -> float:
        """Experts that a batch touches, as a multiple of those that one stream does."""
        if not self.experts:
            return 1.0
        share = self.chosen / self.experts
        return (1 - (1 - share) ** streams) / share


def _step_of(setup: Setup, recipe: Recipe, hardware: Hardware) -> _Step:
    checkpoint = recipe.checkpoint(setup.checkpoint)
    arch, params, weights = recipe.architecture, recipe.parameters, weights_of(recipe, checkpoint)
    is_tensor = setup.engine is not EngineName.LLAMACPP
    mean_bytes = checkpoint.bytes / max(1, params.total + params.mtp_layer)
    moe_layers = expert_layers(recipe)
    in_ram = sum(1 for layer in setup.experts_in_ram if layer in moe_layers)
    routed_layer = arch.experts_per_token * params.one_expert
    if weights.expert_layer:
        expert_bytes = weights.expert_layer / (arch.experts * params.one_expert)
        # GGUF mixes keep what is not an expert at about 6 bits; elsewhere the mean is the truth.
        other_bytes = mean_bytes if is_tensor else min(2.0, max(mean_bytes, NON_EXPERT_BITS / 8))
        expert_bytes = mean_bytes if is_tensor else expert_bytes
    else:
        expert_bytes = other_bytes = mean_bytes
    dense = max(0, params.active_per_token - routed_layer * len(moe_layers))
    # Tensor parallelism reads from all GPUs at once; a layer split from one after the other.
    ranks = setup.tensor_parallel if is_tensor else 1
    slowest = min(gpu.bandwidth_gb_s for gpu in hardware.gpus)
    bandwidth = slowest * 1e9 * GPU_EFFICIENCY * ranks
    layer_s, layer_mark, layer_text = _layer_latency(setup, recipe, hardware)
    gain, gain_text = _gain(setup, recipe)
    return _Step(
        dense_bytes=dense * other_bytes,
        routed_bytes=routed_layer * (len(moe_layers) - in_ram) * expert_bytes,
        ram_bytes=routed_layer * in_ram * expert_bytes,
        experts=arch.experts,
        chosen=arch.experts_per_token,
        gpu_bandwidth=bandwidth,
        gpu_text=f"{ranks} x {slowest:,.0f} GB/s" if ranks > 1 else f"{slowest:,.0f} GB/s",
        ram_bandwidth=hardware.ram_bandwidth_gb_s * 1e9 * CPU_EFFICIENCY,
        context_tokens=_context_read(setup, recipe),
        context_s=_context_s(setup, recipe, slowest),
        layers=arch.num_layers,
        layer_s=layer_s,
        layer_mark=layer_mark,
        layer_text=layer_text,
        gain=gain,
        gain_text=gain_text,
    )


def _context_read(setup: Setup, recipe: Recipe) -> int:
    """Tokens read at each step. llama.cpp reads all of them: it has no sparse attention here [assumed]."""
    is_sparse = recipe.architecture.attention == "MLA+DSA" and setup.engine is not EngineName.LLAMACPP
    return min(SPARSE_READ_TOKENS if is_sparse else CONTEXT_READ_TOKENS, setup.context_tokens)


def _context_s(setup: Setup, recipe: Recipe, slowest_gb_s: float) -> float:
    """Reading one stream's context back. Each rank reads its own share, at the same time."""
    tokens = _context_read(setup, recipe)
    if setup.engine is EngineName.LLAMACPP:
        each = recipe.kv_cache.per_token_bytes_bf16
    else:
        each = kv_bytes_per_token_and_rank(setup, recipe)
    return tokens * each / (slowest_gb_s * 1e9 * GPU_EFFICIENCY)


def _layer_latency(setup: Setup, recipe: Recipe, hardware: Hardware) -> tuple[float, Mark, str]:
    is_tensor = setup.engine is not EngineName.LLAMACPP
    has_experts = bool(recipe.architecture.experts)
    base = LAYER_S[is_tensor, has_experts]
    mark = Mark.PUBLISHED if has_experts else Mark.ASSUMED
    if not is_tensor or setup.tensor_parallel == 1:
        return base, mark, f"{base * 1000:.3f} ms a layer on one GPU"
    doublings = math.log2(setup.tensor_parallel) / 3
    if all(gpu.has_nvlink for gpu in hardware.gpus):
        link, name = LINK_S_NVLINK, "NVLink"
    elif any(gpu.name.startswith("GeForce") for gpu in hardware.gpus):
        link, name, mark = LINK_S_NO_PEER, "PCIe without peer-to-peer", Mark.ASSUMED
    else:
        link, name, mark = LINK_S_PCIE, "PCIe", Mark.ASSUMED
    total = base + link * doublings
    if setup.tensor_parallel != 8:
        mark = Mark.ASSUMED  # between the measured one and eight GPUs
    return total, mark, f"{total * 1000:.3f} ms a layer, {setup.tensor_parallel} GPUs over {name}"


def _gain(setup: Setup, recipe: Recipe) -> tuple[float, str]:
    if setup.speculation is None:
        return 1.0, ""
    if recipe.parameters.total < LARGE_FROM_WEIGHTS:
        return GAIN_SMALL, "GLM-4.7-Flash on one H100, one stream"
    return GAIN_LARGE, "GLM-5.2 on 8xH200, 3 drafts, one stream"


def _ms(name: str, seconds: float, mark: Mark, source: str) -> Term:
    return Term(name, Decimal(str(round(seconds * 1000, 4))), "ms/token", mark, source)
