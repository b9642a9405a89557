"""A checkpoint's bytes by where they may live, and a context's bytes by token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from clorefleet.domain.recipe import Checkpoint, Precision, Recipe, WeightsLayout
from clorefleet.domain.setup import Setup

NON_EXPERT_BITS = 6.0
"""GGUF mixes keep attention and dense tensors at 5 to 6 bits: 13.3 GiB for GLM-5.1 on a model card."""
_EXPERT_BITS = {
    Precision.BF16: 16.0,
    Precision.FP8: 8.0 * (1 + 4 / 16_384),  # a 4-byte scale for each block of 128 x 128
    Precision.FP4: 4.25,  # MXFP4: a byte of scale for each 32 values
}
_NVFP4_BITS = 4.5
"""A byte of scale for each 16 values."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A checkpoint's bytes, divided by where they may live."""

    total: int
    expert_layer: int
    """Experts of one layer; 0 for a dense model."""
    expert_layers: int
    """Without the drafting layer."""
    elsewhere: int
    """Everything that must be on the GPUs: attention, dense and shared tensors, embeddings."""
    drafting_layers: int = 0
    """Layers that draft tokens and have experts of the same size."""

    @property
    def experts(self) -> int:
        """Of all layers but the drafting one."""
        return self.expert_layer * self.expert_layers


@lru_cache(maxsize=512)
def weights_of(recipe: Recipe, checkpoint: Checkpoint) -> Weights:
    arch, params = recipe.architecture, recipe.parameters
    layers = arch.num_layers - arch.first_k_dense
    if not params.one_expert or not arch.experts:
        return Weights(checkpoint.bytes, 0, 0, checkpoint.bytes)
    with_drafting = layers + arch.mtp_layers
    expert_params = params.one_expert * arch.experts * with_drafting
    other_params = max(0, params.total + params.mtp_layer - expert_params)
    if checkpoint.layout is WeightsLayout.GGUF:
        elsewhere = min(int(other_params * NON_EXPERT_BITS / 8), checkpoint.bytes)
    else:
        mean_bits = checkpoint.bytes * 8 / max(1, params.total + params.mtp_layer)
        bits = _EXPERT_BITS.get(checkpoint.precision, mean_bits)
        if checkpoint.format.startswith("NVFP4"):
            bits = _NVFP4_BITS
        elsewhere = max(0, checkpoint.bytes - int(expert_params * bits / 8))
    return Weights(
        total=checkpoint.bytes,
        expert_layer=(checkpoint.bytes - elsewhere) // with_drafting,
        expert_layers=layers,
        elsewhere=elsewhere,
        drafting_layers=arch.mtp_layers,
    )


def expert_layers(recipe: Recipe) -> range:
    """Layers that have experts; empty for a dense model."""
    arch = recipe.architecture
    return range(arch.first_k_dense if arch.experts else arch.num_layers, arch.num_layers)


def mtp_layers(recipe: Recipe) -> range:
    """Numbers of the layers that draft tokens; builds of llama.cpp differ in whether they load them."""
    arch = recipe.architecture
    return range(arch.num_layers, arch.num_layers + arch.mtp_layers)


def kv_bytes(recipe: Recipe, tokens: int, sequences: int, *, kv_dtype: str) -> int:
    """Context memory of `sequences` requests of `tokens` each, on one machine together."""
    cache = recipe.kv_cache
    per_token = cache.per_token_bytes_fp8 if kv_dtype == "fp8" else cache.per_token_bytes_bf16
    if kv_dtype == "q8_0":
        per_token = cache.per_token_bytes_bf16 * 17 // 32  # 8 bits and a scale for each 32 values
    return per_token * tokens * sequences + cache.per_sequence_bytes * sequences


def kv_bytes_per_token_and_rank(setup: Setup, recipe: Recipe) -> int:
    """Context memory of one token on one GPU of a tensor-parallel setup, the drafting layer's included."""
    cache = recipe.kv_cache
    each = cache.per_token_bytes_fp8 if setup.kv_dtype == "fp8" else cache.per_token_bytes_bf16
    if setup.speculation is not None:
        each += cache.mtp_extra_bytes_bf16
    shards = setup.pipeline_parallel
    if not cache.is_replicated_across_tp:
        shards *= max(1, min(setup.tensor_parallel, cache.shard_limit))
    # Rounded up: a half token's worth must not be lost in each of a million tokens.
    return -(-each // shards)
