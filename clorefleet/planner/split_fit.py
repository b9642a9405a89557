"""Memory of llama.cpp: each GPU holds a run of layers, and experts that no GPU has room for stay in RAM."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate, pairwise

from clorefleet.domain.plan import Term
from clorefleet.domain.recipe import Checkpoint, Mark, Recipe
from clorefleet.domain.setup import Setup
from clorefleet.planner.hardware import GIB, MIB, Hardware
from clorefleet.planner.weights import Weights, expert_layers, kv_bytes, mtp_layers, weights_of

CONTEXT_BYTES = int(0.6 * GIB)
"""CUDA context per process and GPU: 0.4 to 0.6 GiB [assumed]."""
COMPUTE_BYTES = int(1.4 * GIB)
"""Compute buffer of a large model at micro-batch 512: with the context about 2 GiB per GPU [assumed]."""
LARGE_MODEL_BYTES = 20 * 10**9
"""Smaller models need a share of the compute buffer by their size [assumed]."""
UNEVEN_LAYERS = 0.04
"""Quantisation mixes give some layers more bits than others, and only the mean is published [assumed]."""
RAM_SPARE = 1.10
RAM_BASE_BYTES = 6 * GIB
"""CPU-side weights and a tenth, and the system's own [assumed]."""


@dataclass(frozen=True, slots=True)
class LayerSplit:
    """Which GPU holds which layers. llama.cpp gives each GPU a run of layers, in order."""

    counts: tuple[int, ...]
    """Per GPU; the output head is one more layer of the last."""

    @property
    def runs(self) -> tuple[range, ...]:
        ends = list(accumulate(self.counts))
        return tuple(range(end - count, end) for end, count in zip(ends, self.counts, strict=True))


def split_layers(recipe: Recipe, hardware: Hardware) -> LayerSplit:
    """Runs of layers in proportion to the GPUs' memory."""
    total = recipe.architecture.num_layers + 1
    memory = sum(hardware.vram_mib)
    ends = [round(total * part / memory) for part in accumulate(hardware.vram_mib)]
    return LayerSplit(tuple(end - begin for begin, end in pairwise([0, *ends])))


def cannot_hold(recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware) -> bool:
    """True only where the GPUs surely lack memory for the weights alone, which is sooner seen than added up.

    Dividing the checkpoint's bytes among layers loses less than a byte for each.
    """
    held = weights_of(recipe, checkpoint).total - mtp_layers(recipe).stop
    return held > sum(hardware.vram_mib) * MIB


def choose_experts_in_ram(
    recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware, *, kv_total_bytes: int
) -> tuple[int, ...]:
    """The layers whose experts no GPU has room for.

    Each GPU keeps the experts of as many of its own layers as fit. Leaving the *first* layers' experts in
    RAM instead (`--n-cpu-moe`) would put all the others on the last GPU.
    """
    weights = weights_of(recipe, checkpoint)
    split, with_experts = split_layers(recipe, hardware), expert_layers(recipe)
    in_ram: list[int] = []
    rooms: dict[tuple[int, int], int] = {}
    for run, mib in zip(split.runs, hardware.vram_mib, strict=True):
        room = rooms.get((len(run), mib))
        if room is None:
            plain = _plain_bytes(recipe, weights, len(run)) * (1 + UNEVEN_LAYERS) + split_reserve(checkpoint)
            plain += _share(recipe, kv_total_bytes, len(run))
            layer = weights.expert_layer * (1 + UNEVEN_LAYERS)
            room = rooms[len(run), mib] = max(0, int((mib * MIB - plain) // layer)) if layer else 0
        mine = range(max(run.start, with_experts.start), min(run.stop, with_experts.stop))
        in_ram.extend(mine[: max(0, len(mine) - room)])
    # A build that knows the MTP layer loads it after the others, onto the last GPU unless told not to.
    return (*in_ram, *mtp_layers(recipe))


def _plain_bytes(recipe: Recipe, weights: Weights, layers: int) -> float:
    """A run of layers without experts: their share of all other weights.

    The drafting layer's experts are among those. They are told to stay in RAM, and not every build obeys or
    even loads them: room for them is kept on both sides.
    """
    drafting = weights.expert_layer * recipe.architecture.mtp_layers
    return _share(recipe, weights.elsewhere + drafting, layers)


def _share(recipe: Recipe, total_bytes: int, layers: int) -> float:
    return total_bytes * layers / (recipe.architecture.num_layers + 1)


@dataclass(frozen=True, slots=True)
class Split:
    """What llama.cpp's GPUs hold of a model, apart from its context."""

    loads: frozenset[tuple[int, int, int]]
    """Memory in MiB, layers, and layers whose experts are there: of each GPU, equal ones told once."""
    uneven: float
    """How much larger than the mean a GPU's layers may be."""

    def tightest(self, recipe: Recipe, checkpoint: Checkpoint, kv_total_bytes: int) -> tuple[int, int, int]:
        """Of `loads` the one that leaves least."""
        weights, reserve = weights_of(recipe, checkpoint), split_reserve(checkpoint)
        needs = []
        for mib, layers, experts in self.loads:
            held = _plain_bytes(recipe, weights, layers) + experts * weights.expert_layer
            need = held * (1 + self.uneven) + _share(recipe, kv_total_bytes, layers) + reserve
            needs.append((mib * MIB - need, mib, layers, experts))
        return min(needs)[1:]

    def parts(
        self, recipe: Recipe, checkpoint: Checkpoint, kv_total_bytes: int, layers: int, experts: int
    ) -> tuple[int, int, int, int, int]:
        """Bytes on such a GPU: plain weights, experts, room for uneven layers, context, and the reserve."""
        weights = weights_of(recipe, checkpoint)
        plain, routed = _plain_bytes(recipe, weights, layers), experts * weights.expert_layer
        spare, context = (plain + routed) * self.uneven, _share(recipe, kv_total_bytes, layers)
        return int(plain), routed, int(spare), int(context), split_reserve(checkpoint)

    def holds(
        self, recipe: Recipe, checkpoint: Checkpoint, tokens: int, sequences: int, *, kv_dtype: str
    ) -> bool:
        """Whether the GPUs have room for so many requests of so many tokens beside the rest."""
        kv = kv_bytes(recipe, tokens, sequences, kv_dtype=kv_dtype)
        mib, layers, experts = self.tightest(recipe, checkpoint, kv)
        return sum(self.parts(recipe, checkpoint, kv, layers, experts)) <= mib * MIB


def split_of(setup: Setup, recipe: Recipe, hardware: Hardware) -> Split:
    in_ram, with_experts = sorted(set(setup.experts_in_ram)), expert_layers(recipe)
    layers = LayerSplit(setup.layers_per_gpu) if setup.layers_per_gpu else split_layers(recipe, hardware)
    loads = set()
    for run, mib in zip(layers.runs, hardware.vram_mib, strict=True):
        begin, end = max(run.start, with_experts.start), min(run.stop, with_experts.stop)
        experts = max(0, end - begin)
        if in_ram and experts:
            experts -= bisect_left(in_ram, end) - bisect_left(in_ram, begin)
        loads.add((mib, len(run), experts))
    # Of one GPU that holds everything the total is known, however uneven the layers are.
    uneven = UNEVEN_LAYERS if in_ram or len(hardware.gpus) > 1 else 0.0
    return Split(frozenset(loads), uneven)


def split_memory(
    setup: Setup, recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware
) -> tuple[tuple[Term, ...], tuple[Term, ...], int]:
    """Memory of the GPU with the least to spare, RAM, and what that GPU has."""
    weights, split = weights_of(recipe, checkpoint), split_of(setup, recipe, hardware)
    kv = kv_bytes(recipe, setup.context_tokens, setup.concurrency, kv_dtype=setup.kv_dtype)
    mib, layers, experts = split.tightest(recipe, checkpoint, kv)
    plain, routed, spare, context, reserve = split.parts(recipe, checkpoint, kv, layers, experts)
    gpu = [_term(f"{layers} layers' weights", plain, checkpoint.bytes_mark, checkpoint.source)]
    if weights.expert_layer:
        text = f"experts of {experts} layers"
        gpu.append(_term(text, routed, Mark.COMPUTED, "checkpoint's bytes per layer"))
    if split.uneven:
        text = f"{split.uneven:.0%}: only the mean is published"
        gpu.append(_term("uneven layers", spare, Mark.ASSUMED, text))
    gpu += [
        _term(
            f"share of a context of {setup.context_tokens:,} x {setup.concurrency}",
            context,
            recipe.kv_cache.mark,
            recipe.kv_cache.source,
        ),
        _term("CUDA context and compute buffer", reserve, Mark.ASSUMED, "about 2 GiB for a large model"),
    ]
    return tuple(gpu), _ram(weights, len(set(setup.experts_in_ram)), recipe), mib * MIB


def _ram(weights: Weights, layers: int, recipe: Recipe) -> tuple[Term, ...]:
    """With the experts of so many layers."""
    if not layers:
        return (_term("system", min(RAM_BASE_BYTES, GIB + weights.total), Mark.ASSUMED, "system"),)
    experts = weights.expert_layer * layers
    return (
        _term(f"experts of {layers} layers", experts, Mark.COMPUTED, "checkpoint's bytes per layer"),
        _term("a tenth to spare", experts * (RAM_SPARE - 1), Mark.ASSUMED, "RAM >= weights + 10 %"),
        _term("system", RAM_BASE_BYTES, Mark.ASSUMED, "system and page tables"),
    )


def split_reserve(checkpoint: Checkpoint) -> int:
    """Bytes per GPU that are neither weights nor context."""
    share = min(1.0, checkpoint.bytes / LARGE_MODEL_BYTES)
    return CONTEXT_BYTES + int(COMPUTE_BYTES * share)


def _term(name: str, value: float, mark: Mark, source: str) -> Term:
    return Term(name, Decimal(int(value)), "bytes", mark, source)
