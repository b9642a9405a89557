"""What a recipe says that its own figures, or the engines, contradict.

`read_recipe` refuses what cannot be planned with. This looks further: dimensions against parameter counts,
context bytes against the attention's formula, file sizes against precision, parsers against SGLang's lists.
An error is a contradiction; a warning is something that a careful reader would want to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clorefleet.domain.recipe import (
    Checkpoint,
    Confidence,
    EngineName,
    EngineSupport,
    Mark,
    Precision,
    Recipe,
    WeightsLayout,
)

BITS_PER_WEIGHT = {
    # Least and most that a checkpoint of the class has over all its weights, embeddings included.
    Precision.BF16: (15.5, 16.5),
    Precision.FP8: (7.9, 9.6),
    Precision.Q8: (8.0, 9.0),
    Precision.Q6: (6.0, 7.0),
    Precision.Q5: (5.0, 6.3),
    Precision.Q4: (3.7, 6.0),
    Precision.Q3: (2.7, 4.3),
    Precision.Q2: (2.0, 3.4),
    Precision.Q1: (1.4, 2.3),
    Precision.FP4: (4.0, 5.0),
}
# Choices of the parser flags in SGLang 0.5.23's source, as far as they were read.
SGLANG_REASONING = {
    "auto", "deepseek-r1", "deepseek-v3", "deepseek-v4", "glm45", "gpt-oss", "kimi_k2", "qwen3",
    "qwen3-thinking",
}  # fmt: skip
SGLANG_TOOLS = {
    "auto", "deepseekv3", "deepseekv31", "deepseekv32", "deepseekv4", "deepseekv41", "glm45", "glm47",
    "gpt-oss", "hermes", "kimi_k2", "llama3", "minimax-m2", "mistral", "pythonic", "qwen25", "qwen3_coder",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    is_error: bool
    where: str
    text: str


def check_recipe(recipe: Recipe) -> tuple[Finding, ...]:
    """Errors first, each in the recipe's order."""
    found = [
        *_dimensions(recipe),
        *_context_memory(recipe),
        *(each for checkpoint in recipe.checkpoints for each in _checkpoint(recipe, checkpoint)),
        *(each for support in recipe.engines for each in _engine(support)),
        *_sources(recipe),
    ]
    return tuple(sorted(found, key=lambda finding: not finding.is_error))


def _error(where: str, text: str) -> Finding:
    return Finding(True, where, text)


def _warning(where: str, text: str) -> Finding:
    return Finding(False, where, text)


def _dimensions(recipe: Recipe) -> Iterator[Finding]:
    arch, params = recipe.architecture, recipe.parameters
    if params.active_per_token > params.total:
        yield _error("parameters.active_per_token", "more weights are active than there are")
    if arch.experts:
        one = 3 * arch.hidden * arch.moe_intermediate
        if params.one_expert != one:
            yield _error(
                "parameters.one_expert",
                f"3 x hidden x moe_intermediate is {one:,}, not {params.one_expert:,}",
            )
        experts = params.one_expert * arch.experts * (arch.num_layers - arch.first_k_dense)
        if experts > params.total:
            yield _error(
                "parameters.total", f"the experts alone are {experts:,}, more than all {params.total:,}"
            )
        if arch.experts_per_token > arch.experts:
            yield _error("architecture.experts_per_token", "more experts are chosen than there are")
    if arch.kv_heads and arch.heads % arch.kv_heads:
        yield _error("architecture.kv_heads", f"{arch.kv_heads} do not divide {arch.heads} heads")


def _context_memory(recipe: Recipe) -> Iterator[Finding]:
    arch, cache = recipe.architecture, recipe.kv_cache
    layers = arch.kv_layers or arch.num_layers
    if arch.attention in ("MLA", "MLA+DSA"):
        computed = layers * (2 * (arch.kv_lora_rank + arch.qk_rope_head_dim) + arch.index_bytes)
        how = "layers x (2 x (kv_lora_rank + qk_rope_head_dim) + index_bytes)"
        if not cache.is_replicated_across_tp:
            yield _error("kv_cache.is_replicated_across_tp", "MLA's context is replicated on every GPU")
    elif arch.attention in ("GQA", "hybrid"):
        computed = 2 * layers * arch.kv_heads * arch.head_dim * 2
        how = "2 x layers x kv_heads x head_dim x 2"
        if cache.shard_limit > arch.kv_heads:
            yield _error("kv_cache.shard_limit", f"there are {arch.kv_heads} KV heads to share out")
    else:
        yield _warning(
            "architecture.attention", f"no formula for {arch.attention}: the figure is taken as told"
        )
        return
    if cache.per_token_bytes_bf16 != computed:
        yield _error(
            "kv_cache.per_token_bytes_bf16", f"{how} is {computed:,}, not {cache.per_token_bytes_bf16:,}"
        )
    if cache.per_token_bytes_fp8 > cache.per_token_bytes_bf16:
        yield _error("kv_cache.per_token_bytes_fp8", "FP8 context is larger than BF16 context")


def _checkpoint(recipe: Recipe, checkpoint: Checkpoint) -> Iterator[Finding]:
    where = f"checkpoints.{checkpoint.key}"
    weights = recipe.parameters.total + recipe.parameters.mtp_layer
    bits = checkpoint.bytes * 8 / weights
    least, most = BITS_PER_WEIGHT[checkpoint.precision]
    if not least <= bits <= most:
        yield _error(
            f"{where}.bytes", f"{bits:.2f} bits a weight is no {checkpoint.precision} ({least:g} to {most:g})"
        )
    if checkpoint.bytes_mark is Mark.ASSUMED or checkpoint.confidence is Confidence.LOW:
        yield _warning(f"{where}.bytes", f"{checkpoint.bytes / 1e9:,.1f} GB is assumed, not published")
    if checkpoint.layout is WeightsLayout.GGUF and not all(
        each.endswith(".gguf") for each in checkpoint.files
    ):
        yield _error(f"{where}.files", "a GGUF checkpoint needs *.gguf files only")


def _engine(support: EngineSupport) -> Iterator[Finding]:
    where = f"engines.{support.engine}"
    if support.engine in (EngineName.SGLANG, EngineName.KTRANSFORMERS):
        for field, told, known in (
            ("reasoning_parser", support.reasoning_parser, SGLANG_REASONING),
            ("tool_call_parser", support.tool_call_parser, SGLANG_TOOLS),
        ):
            if told and told not in known:
                yield _error(f"{where}.{field}", f"SGLang has no “{told}”; it has {', '.join(sorted(known))}")
    if support.engine is not EngineName.LLAMACPP and not support.min_version:
        yield _warning(f"{where}.min_version", "no least version is known; the image's is taken")


def _sources(recipe: Recipe) -> Iterator[Finding]:
    for where, source in (
        ("parameters", recipe.parameters.source),
        ("architecture", recipe.architecture.source),
        ("kv_cache", recipe.kv_cache.source),
        *((f"checkpoints.{each.key}", each.source) for each in recipe.checkpoints),
        *((f"engines.{each.engine}", each.source) for each in recipe.engines),
    ):
        if not source:
            yield _error(f"{where}.source", "every figure needs a source, if only “assumed”")
    if recipe.sampling.temperature is None:
        yield _warning("sampling", "no vendor figure: requests without a temperature get the engine's")
    if recipe.hosted_price is None:
        yield _warning("hosted_price", "none: no break-even against a hosted API can be told")
