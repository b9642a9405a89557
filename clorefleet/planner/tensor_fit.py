"""Memory of SGLang, vLLM and KTransformers: every GPU holds an equal share of each layer.

Tensor parallelism cuts every matrix, expert parallelism deals out whole experts, pipeline parallelism gives
each group of GPUs a run of layers. MLA's context and its small projections are whole on every GPU all the
same.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from clorefleet.domain.plan import Term
from clorefleet.domain.recipe import Checkpoint, EngineName, Mark, Precision, Recipe
from clorefleet.domain.setup import Setup
from clorefleet.planner.hardware import GIB, MIB, Hardware
from clorefleet.planner.weights import Weights, kv_bytes_per_token_and_rank, weights_of

ENGINE_RAM_BASE_BYTES = 4 * GIB
ENGINE_RAM_PER_RANK_BYTES = int(7.5 * GIB)
"""Host RAM beside page cache: one process per GPU, 64 GiB for eight [assumed]."""
KT_RAM_SPARE = 1.10
"""KTransformers keeps the weights in RAM whole: its maintainers advise over 800 GB for 756 GB of them."""
KT_MEMORY_FRACTION = 0.75
"""SGLang's static share in KTransformers' GLM-5.1 tutorial: its chunks of 16,384 tokens need the rest."""
CUDA_CONTEXT_BYTES = int(0.6 * GIB)
NCCL_BYTES = int(0.9 * GIB)
"""Per GPU: 0.4 to 0.6 GiB of context, 0.5 to 1.5 GiB of link buffers with several GPUs [assumed]. They
come out of SGLang's static share, which is measured before them; vLLM's context lies outside its share."""
VLLM_UTILISATION = 0.90
VLLM_ACTIVATION_BYTES = int(2.5 * GIB)
VLLM_GRAPH_BYTES = int(1.5 * GIB)
"""Inside vLLM's share, which it measures itself at the start [assumed]."""
_SGLANG = "SGLang 0.5.23 source"


def tensor_memory(
    setup: Setup, recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware
) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """Memory of the GPU with the most to hold, and RAM."""
    weights = weights_of(recipe, checkpoint)
    visible = min(hardware.vram_mib) * MIB
    gpu = (
        *_weights(setup, recipe, checkpoint, weights),
        *_context(setup, recipe),
        *reserve_parts(setup, recipe, visible),
    )
    return gpu, _ram(setup, checkpoint, weights)


def tokens_that_fit(setup: Setup, recipe: Recipe, hardware: Hardware) -> int:
    """Tokens of context that there is memory for, over all requests; 0 when none.

    The fixed state that hybrid models hold for each request is counted for one.
    """
    weights = weights_of(recipe, recipe.checkpoint(setup.checkpoint))
    visible = min(hardware.vram_mib) * MIB
    held = _weights(setup, recipe, recipe.checkpoint(setup.checkpoint), weights)
    rest = visible - _sum((*held, *reserve_parts(setup, recipe, visible)))
    rest -= recipe.kv_cache.per_sequence_bytes
    return max(0, rest // kv_bytes_per_token_and_rank(setup, recipe))


def gpu_experts_that_fit(setup: Setup, recipe: Recipe, hardware: Hardware) -> int:
    """KTransformers: experts of each layer that the GPUs have room for beside everything else."""
    checkpoint = recipe.checkpoint(setup.checkpoint)
    weights = weights_of(recipe, checkpoint)
    if not weights.expert_layer:
        return 0
    visible = min(hardware.vram_mib) * MIB
    bare = _weights(setup, recipe, checkpoint, weights, gpu_experts=0)
    rest = visible - _sum((*bare, *_context(setup, recipe), *reserve_parts(setup, recipe, visible)))
    one = weights.experts / recipe.architecture.experts / setup.tensor_parallel
    return max(0, min(recipe.architecture.experts, int(rest // one)))


# -- parts


def _weights(
    setup: Setup,
    recipe: Recipe,
    checkpoint: Checkpoint,
    weights: Weights,
    gpu_experts: int | None = None,
) -> tuple[Term, ...]:
    """Of the pipeline stage with the most layers."""
    arch = recipe.architecture
    stages, ranks = setup.pipeline_parallel, setup.tensor_parallel
    stage = -(-arch.num_layers // stages) / arch.num_layers
    experts, drafting = float(weights.experts), float(weights.expert_layer * weights.drafting_layers)
    if setup.engine is EngineName.KTRANSFORMERS:
        there = setup.gpu_experts if gpu_experts is None else gpu_experts
        experts *= there / max(1, arch.experts)
    how = f"whole ones on {setup.expert_parallel} GPUs" if setup.expert_parallel > 1 else f"1/{ranks} of each"
    parts = []
    if weights.experts:
        parts.append(
            _term(f"experts, {how}", experts * stage / ranks, checkpoint.bytes_mark, checkpoint.source)
        )
    if drafting:
        parts.append(
            _term(
                "drafting (MTP) layer",
                drafting / ranks,
                Mark.COMPUTED,
                "as every other layer; kept on the GPUs",
            )
        )
    name = "attention, dense layers, embeddings" if weights.experts else "weights"
    parts.append(
        _term(
            f"{name}, 1/{ranks}", weights.elsewhere * stage / ranks, checkpoint.bytes_mark, checkpoint.source
        )
    )
    per_layer = arch.replicated_per_layer
    if per_layer and ranks > 1:
        held = per_layer * arch.num_layers * stage * _bytes_each(setup.precision) * (1 - 1 / ranks)
        parts.append(
            _term("parts that every GPU holds whole", held, Mark.COMPUTED, f"{per_layer / 1e6:.1f}M a layer")
        )
    return tuple(parts)


def _bytes_each(precision: Precision) -> float:
    return {Precision.BF16: 2.0, Precision.FP8: 1.0}.get(precision, 1.0)


def _context(setup: Setup, recipe: Recipe) -> tuple[Term, ...]:
    cache = recipe.kv_cache
    each = kv_bytes_per_token_and_rank(setup, recipe)
    shared = ", whole on every GPU" if cache.is_replicated_across_tp and setup.tensor_parallel > 1 else ""
    parts = [
        _term(
            f"context of {setup.context_tokens:,} x {setup.concurrency}",
            setup.context_tokens * setup.concurrency * each,
            cache.mark,
            f"{each:,} bytes a token in {setup.kv_dtype}{shared}: {cache.source}",
        )
    ]
    if cache.per_sequence_bytes:
        state = cache.per_sequence_bytes * setup.concurrency
        parts.append(_term("linear layers' state", state, cache.mark, "fixed for each request"))
    return tuple(parts)


def _ram(setup: Setup, checkpoint: Checkpoint, weights: Weights) -> tuple[Term, ...]:
    each = ENGINE_RAM_PER_RANK_BYTES * setup.gpus_needed
    engine = _term(
        "engine", ENGINE_RAM_BASE_BYTES + min(checkpoint.bytes, each), Mark.ASSUMED, "64 GiB for eight GPUs"
    )
    if setup.engine is not EngineName.KTRANSFORMERS:
        return (engine,)
    return (
        _term("weights, whole", weights.total, checkpoint.bytes_mark, checkpoint.source),
        _term("a tenth to spare", weights.total * (KT_RAM_SPARE - 1), Mark.ASSUMED, "over 800 GB advised"),
        engine,
    )


# -- what is neither weights nor context


def reserve_parts(setup: Setup, recipe: Recipe, visible_bytes: int) -> tuple[Term, ...]:
    """Activations, graphs and overhead: in parts that sum to what the engine keeps free."""
    if setup.engine is EngineName.VLLM:
        return _vllm_reserve(setup, visible_bytes)
    fraction = setup.memory_fraction
    if fraction is None and setup.engine is EngineName.KTRANSFORMERS:
        fraction = KT_MEMORY_FRACTION
    formula = sglang_reserve(recipe, setup.gpus_needed, visible_bytes)
    total = formula.total_bytes if fraction is None else int(visible_bytes * (1 - fraction))
    process = _process(setup)
    if setup.engine is EngineName.KTRANSFORMERS:
        source = f"its tutorial's static share of {fraction:g}"
        return (_term("activations and graphs", total, Mark.PUBLISHED, source), *process)
    parts = [
        _term("activations", formula.activation_bytes, Mark.PUBLISHED, f"{_SGLANG}: 1.5 MiB x chunk"),
        _term("CUDA graphs", formula.graph_bytes, Mark.PUBLISHED, f"{_SGLANG}: by batch size"),
        _term("room for links", formula.link_bytes, Mark.PUBLISHED, f"{_SGLANG}: 1,024 MiB x GPUs / 8"),
    ]
    rest = total - _sum(tuple(parts))
    if rest < 0:
        # A share that was raised by hand, or by a correction: only the sum is known.
        return (_term("outside the static share", total, Mark.PUBLISHED, _SGLANG), *process)
    left = _term("left over for kernels", rest, Mark.PUBLISHED, f"{_SGLANG}: the rest of its reserve")
    return (*parts, left, *process)


def _process(setup: Setup) -> tuple[Term, ...]:
    """What each process takes before it loads anything."""
    context = _term("CUDA context", CUDA_CONTEXT_BYTES, Mark.ASSUMED, "0.4 to 0.6 GiB")
    if setup.gpus_needed == 1:
        return (context,)
    return (context, _term("NCCL buffers", NCCL_BYTES, Mark.ASSUMED, "0.5 to 1.5 GiB"))


def _vllm_reserve(setup: Setup, visible_bytes: int) -> tuple[Term, ...]:
    share = VLLM_UTILISATION if setup.memory_fraction is None else setup.memory_fraction
    room = min(VLLM_ACTIVATION_BYTES + VLLM_GRAPH_BYTES, visible_bytes // 8)
    graphs = min(VLLM_GRAPH_BYTES, room // 3)
    return (
        _term("outside vLLM's share", visible_bytes * (1 - share), Mark.PUBLISHED, f"utilisation {share:g}"),
        *_process(setup)[1:],
        _term("activations", room - graphs, Mark.ASSUMED, "profiled by vLLM at its start"),
        _term("CUDA graphs", graphs, Mark.ASSUMED, "captured by vLLM at its start"),
    )


@dataclass(frozen=True, slots=True)
class SglangReserve:
    """What SGLang leaves out of its static share when `--mem-fraction-static` is not given, per GPU."""

    activation_bytes: int
    graph_bytes: int
    link_bytes: int
    total_bytes: int


def sglang_reserve(recipe: Recipe, ranks: int, visible_bytes: int) -> SglangReserve:
    """512 + 1.5 x chunk + 1024 x ranks / 8 + graphs MiB, at least 10 GiB on GPUs over 60 GiB (its source)."""
    gib = visible_bytes / GIB
    many = ranks >= 4
    chunk, batch = (
        (2048, 8) if gib < 20
        else (4096, 160 if many else 48) if gib < 35
        else (4096, 160 if many else 32) if gib < 60
        else (8192, 512 if many else 256) if gib < 160
        else (16384, 512)
    )  # fmt: skip
    graphs = 2 * batch + (1536 if recipe.architecture.attention.startswith("MLA") else 0)
    activations, links = 1.5 * max(chunk, 2048), 1024 * ranks / 8
    reserved_mib = 512 + activations + links + graphs
    if gib > 60:
        reserved_mib = max(reserved_mib, 10_240)
    return SglangReserve(
        activation_bytes=int(activations * MIB),
        graph_bytes=graphs * MIB,
        link_bytes=int(links * MIB),
        total_bytes=int(reserved_mib * MIB),
    )


def _sum(terms: tuple[Term, ...]) -> int:
    return int(sum(term.value for term in terms))


def _term(name: str, value: float, mark: Mark, source: str) -> Term:
    return Term(name, Decimal(int(value)), "bytes", mark, source)
