"""Does a setup fit on hardware? Memory by part, per GPU, in RAM and on disk, with the source of each figure.

Everything is in bytes, against what nvidia-smi shows, never against marketing gigabytes. The first
constraint that binds is named, with how much is missing and what would cure it.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate, pairwise

from clorefleet.domain.plan import Fit, Term
from clorefleet.domain.recipe import Checkpoint, EngineName, EngineSupport, Mark, Precision, Recipe
from clorefleet.domain.setup import Setup
from clorefleet.planner.hardware import GIB, MIB, Hardware

# -- reserves

LLAMACPP_CONTEXT_BYTES = int(0.6 * GIB)
"""CUDA context per process and GPU: 0.4 to 0.6 GiB [assumed]."""
LLAMACPP_COMPUTE_BYTES = int(1.4 * GIB)
"""Compute buffer of a large model at micro-batch 512: with the context about 2 GiB per GPU [assumed]."""
LLAMACPP_LARGE_MODEL_BYTES = 20 * 10**9
"""Smaller models need a share of the compute buffer by their size [assumed]."""
NON_EXPERT_BITS = 6.0
"""GGUF mixes keep attention and dense tensors at 5 to 6 bits: 13.3 GiB for GLM-5.1 on a model card."""
RAM_SPARE = 1.10
RAM_BASE_BYTES = 6 * GIB
"""CPU-side weights and a tenth, and the system's own [assumed]."""
DISK_FACTOR = 1.05
IMAGE_BYTES = {
    EngineName.LLAMACPP: 5 * 10**9,
    EngineName.SGLANG: 40 * 10**9,
    EngineName.VLLM: 40 * 10**9,
    EngineName.KTRANSFORMERS: 40 * 10**9,
}
"""Room for the container image beside the weights [assumed]."""
FULL_GPU_RAM_BYTES = 24 * GIB
"""Host RAM that a server engine of a large model wants, beside page cache [assumed]."""
VLLM_UTILISATION = 0.90
VLLM_RESERVE_BYTES = int(4 * GIB)
"""Activations at their peak and CUDA graphs inside vLLM's share [assumed]."""
MLA_REPLICATED_PARAMS_PER_LAYER = 27_000_000
"""q_a, kv_a, sparse indexer and router of GLM-5.1, on every rank [computed]; others are smaller."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A checkpoint's bytes, divided by where they may live."""

    total: int
    expert_layer: int
    """Experts of one layer; 0 for a dense model."""
    expert_layers: int
    elsewhere: int
    """Everything that must be on the GPUs."""


def weights_of(recipe: Recipe, checkpoint: Checkpoint) -> Weights:
    arch, params = recipe.architecture, recipe.parameters
    layers = arch.num_layers - arch.first_k_dense
    if not params.one_expert or not arch.experts:
        return Weights(checkpoint.bytes, 0, 0, checkpoint.bytes)
    with_mtp = layers + arch.mtp_layers
    expert_params = params.one_expert * arch.experts * with_mtp
    other_params = max(0, params.total + params.mtp_layer - expert_params)
    elsewhere = min(int(other_params * NON_EXPERT_BITS / 8), checkpoint.bytes)
    return Weights(
        total=checkpoint.bytes,
        expert_layer=(checkpoint.bytes - elsewhere) // with_mtp,
        expert_layers=layers,
        elsewhere=elsewhere,
    )


def kv_bytes(recipe: Recipe, tokens: int, sequences: int, *, kv_dtype: str) -> int:
    cache = recipe.kv_cache
    per_token = cache.per_token_bytes_fp8 if kv_dtype == "fp8" else cache.per_token_bytes_bf16
    if kv_dtype == "q8_0":
        per_token = cache.per_token_bytes_bf16 * 17 // 32  # 8 bits and a scale for each 32 values
    return per_token * tokens * sequences + cache.per_sequence_bytes * sequences


def check_fit(setup: Setup, recipe: Recipe, hardware: Hardware) -> Fit:
    """The verdict on `setup` as it stands; nothing is searched here."""
    refusal = _check_software(recipe.engine(setup.engine), setup, recipe, hardware)
    if refusal is not None:
        return refusal
    checkpoint = recipe.checkpoint(setup.checkpoint)
    if setup.engine is EngineName.LLAMACPP:
        gpu, ram, visible = _llamacpp(setup, recipe, checkpoint, hardware)
    else:
        gpu, ram = _tensor_parallel(setup, recipe, checkpoint, hardware)
        visible = min(hardware.vram_mib) * MIB
    disk = (
        _term("weights and room", checkpoint.bytes * DISK_FACTOR, checkpoint.bytes_mark, checkpoint.source),
        _term("container image", IMAGE_BYTES[setup.engine], Mark.ASSUMED, "image sizes"),
    )
    vram_margin = visible - _sum(gpu)
    ram_margin = hardware.ram_bytes - _sum(ram)
    disk_margin = hardware.disk_free_bytes - _sum(disk)
    for name, margin, cure in (
        ("vram", vram_margin, "more or larger GPUs, a smaller precision, or less context"),
        ("ram", ram_margin, "a server with more RAM, or GPUs that hold more experts"),
        ("disk", disk_margin, "a server with more free disk, or a smaller precision"),
    ):
        if margin < 0:
            return Fit(
                False, gpu, ram, disk, margin, binding=name, shortfall=f"{-margin / GIB:,.1f} GiB", cure=cure
            )
    return Fit(True, gpu, ram, disk, min(vram_margin, ram_margin, disk_margin))


def _sum(terms: tuple[Term, ...]) -> int:
    return int(sum(term.value for term in terms))


def _term(name: str, value: float, mark: Mark, source: str) -> Term:
    return Term(name, Decimal(int(value)), "bytes", mark, source)


# -- llama.cpp: layers over all GPUs, experts of some layers in RAM


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


def expert_layers(recipe: Recipe) -> range:
    """Layers that have experts; empty for a dense model."""
    arch = recipe.architecture
    return range(arch.first_k_dense if arch.experts else arch.num_layers, arch.num_layers)


def choose_experts_in_ram(
    recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware, *, kv_total_bytes: int
) -> tuple[int, ...]:
    """The layers whose experts no GPU has room for.

    Each GPU keeps the experts of as many of its own layers as fit. Leaving the *first* layers' experts in
    RAM instead (`--n-cpu-moe`) would put all the others on the last GPU.
    """
    weights = weights_of(recipe, checkpoint)
    split = split_layers(recipe, hardware)
    in_ram: list[int] = []
    for run, mib in zip(split.runs, hardware.vram_mib, strict=True):
        mine = [layer for layer in run if layer in expert_layers(recipe)]
        plain = _plain_bytes(recipe, weights, kv_total_bytes, len(run)) + llamacpp_reserve(checkpoint)
        room = max(0, int((mib * MIB - plain) // weights.expert_layer)) if weights.expert_layer else 0
        in_ram.extend(mine[: max(0, len(mine) - room)])
    return tuple(in_ram)


def _plain_bytes(recipe: Recipe, weights: Weights, kv_total_bytes: int, layers: int) -> float:
    """A run of layers without experts: their share of all other weights and of the context."""
    return (weights.elsewhere + kv_total_bytes) * layers / (recipe.architecture.num_layers + 1)


def _llamacpp(
    setup: Setup, recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware
) -> tuple[tuple[Term, ...], tuple[Term, ...], int]:
    """Memory of the GPU with the least to spare, RAM, and what that GPU has."""
    weights = weights_of(recipe, checkpoint)
    kv = kv_bytes(recipe, setup.context_tokens, setup.concurrency, kv_dtype=setup.kv_dtype)
    reserve = llamacpp_reserve(checkpoint)
    in_ram = set(setup.experts_in_ram)
    needs = []
    for run, mib in zip(split_layers(recipe, hardware).runs, hardware.vram_mib, strict=True):
        experts = sum(1 for layer in run if layer in expert_layers(recipe) and layer not in in_ram)
        need = _plain_bytes(recipe, weights, kv, len(run)) + experts * weights.expert_layer + reserve
        needs.append((mib * MIB - need, mib, len(run), experts))
    _, mib, layers, experts = min(needs)
    share = layers / (recipe.architecture.num_layers + 1)
    gpu = [
        _term(
            f"{layers} layers' weights", weights.elsewhere * share, checkpoint.bytes_mark, checkpoint.source
        ),
        _term(
            f"share of a context of {setup.context_tokens:,} x {setup.concurrency}",
            kv * share,
            recipe.kv_cache.mark,
            recipe.kv_cache.source,
        ),
        _term("CUDA context and compute buffer", reserve, Mark.ASSUMED, "about 2 GiB for a large model"),
    ]
    if weights.expert_layer:
        text = f"experts of {experts} layers"
        gpu.insert(
            1, _term(text, experts * weights.expert_layer, Mark.COMPUTED, "checkpoint's bytes per layer")
        )
    return tuple(gpu), _llamacpp_ram(weights, in_ram, recipe), mib * MIB


def _llamacpp_ram(weights: Weights, in_ram: set[int], recipe: Recipe) -> tuple[Term, ...]:
    if not in_ram:
        return (_term("system", min(RAM_BASE_BYTES, GIB + weights.total), Mark.ASSUMED, "system"),)
    # The MTP layer is loaded, used or not: its experts go where there is room for them.
    layers = len(in_ram) + recipe.architecture.mtp_layers
    experts = weights.expert_layer * layers
    return (
        _term(f"experts of {layers} layers", experts, Mark.COMPUTED, "checkpoint's bytes per layer"),
        _term("a tenth to spare", experts * (RAM_SPARE - 1), Mark.ASSUMED, "RAM >= weights + 10 %"),
        _term("system", RAM_BASE_BYTES, Mark.ASSUMED, "system and page tables"),
    )


def llamacpp_reserve(checkpoint: Checkpoint) -> int:
    """Bytes per GPU that are neither weights nor context."""
    share = min(1.0, checkpoint.bytes / LLAMACPP_LARGE_MODEL_BYTES)
    return LLAMACPP_CONTEXT_BYTES + int(LLAMACPP_COMPUTE_BYTES * share)


# -- SGLang and vLLM: tensor parallelism over equal GPUs


def _tensor_parallel(
    setup: Setup, recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware
) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """Memory of one GPU, and RAM."""
    ranks = setup.tensor_parallel
    share = checkpoint.bytes / ranks
    replicated = 0.0
    if recipe.kv_cache.is_replicated_across_tp:
        bytes_each = 2 if setup.precision is Precision.BF16 else 1
        replicated = (
            recipe.architecture.num_layers * MLA_REPLICATED_PARAMS_PER_LAYER * bytes_each * (1 - 1 / ranks)
        )
    kv = kv_bytes(recipe, setup.context_tokens, setup.concurrency, kv_dtype=setup.kv_dtype)
    if setup.speculation is not None:
        kv += recipe.kv_cache.mtp_extra_bytes_bf16 * setup.context_tokens * setup.concurrency
    if not recipe.kv_cache.is_replicated_across_tp:
        kv //= max(1, min(ranks, recipe.kv_cache.shard_limit))
    reserve = engine_reserve(setup.engine, recipe, ranks, min(hardware.vram_mib) * MIB)
    gpu = (
        _term(f"weights, 1/{ranks}", share, checkpoint.bytes_mark, checkpoint.source),
        _term("parts that every rank holds", replicated, Mark.COMPUTED, "27M per layer for GLM-5.1"),
        _term(
            f"context of {setup.context_tokens:,} x {setup.concurrency}",
            kv,
            recipe.kv_cache.mark,
            recipe.kv_cache.source,
        ),
        _term(
            f"{setup.engine}'s reserve",
            reserve,
            Mark.PUBLISHED if setup.engine is EngineName.SGLANG else Mark.ASSUMED,
            "SGLang 0.5.23 source" if setup.engine is EngineName.SGLANG else "10 % and 4 GiB",
        ),
    )
    ram = (
        _term(
            "engine", min(FULL_GPU_RAM_BYTES, 4 * GIB + checkpoint.bytes), Mark.ASSUMED, "engine and loading"
        ),
    )
    return gpu, ram


def engine_reserve(engine: EngineName, recipe: Recipe, ranks: int, visible_bytes: int) -> int:
    """Bytes per GPU that the engine keeps for activations, graphs and itself."""
    if engine is EngineName.SGLANG:
        return sglang_reserve(recipe, ranks, visible_bytes)
    return int(visible_bytes * (1 - VLLM_UTILISATION)) + min(VLLM_RESERVE_BYTES, visible_bytes // 8)


def sglang_reserve(recipe: Recipe, ranks: int, visible_bytes: int) -> int:
    """What SGLang 0.5.23 leaves out of its static share when `--mem-fraction-static` is not given.

    512 + 1.5 x chunk + 1024 x tp / 8 + graphs MiB, at least 10 GiB on GPUs over 60 GiB (its source).
    """
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
    reserved_mib = 512 + 1.5 * max(chunk, 2048) + 1024 * ranks / 8 + graphs
    if gib > 60:
        reserved_mib = max(reserved_mib, 10_240)
    return int(reserved_mib * MIB)


# -- what no memory cures


def _check_software(support: EngineSupport, setup: Setup, recipe: Recipe, hardware: Hardware) -> Fit | None:
    """The engine, its image and the GPUs: a refusal, or None."""
    for code, shortfall, cure in _software_problems(support, setup, recipe, hardware):
        return Fit(False, (), (), (), 0, binding=code, shortfall=shortfall, cure=cure)
    return None


def _software_problems(
    support: EngineSupport, setup: Setup, recipe: Recipe, hardware: Hardware
) -> list[tuple[str, str, str]]:
    problems = []
    checkpoint = recipe.checkpoint(setup.checkpoint)
    least = min(gpu.compute_capability for gpu in hardware.gpus)
    shown = f"{least[0]}.{least[1]}"
    if support.min_compute_capability and least < _version(support.min_compute_capability):
        problems.append(
            (
                "compute_capability",
                f"compute capability {shown}, and {setup.engine} needs {support.min_compute_capability}",
                "newer GPUs, or llama.cpp",
            )
        )
    if support.min_cuda:
        if hardware.cuda_version is None:
            problems.append(("cuda", "the offer names no CUDA version", "an offer that does"))
        elif hardware.cuda_version < _version(support.min_cuda):
            have = ".".join(map(str, hardware.cuda_version))
            problems.append(
                (
                    "cuda",
                    f"the driver is at CUDA {have}, the image needs {support.min_cuda}",
                    "a newer driver",
                )
            )
    if setup.engine is EngineName.LLAMACPP:
        return problems
    ranks = setup.tensor_parallel
    if hardware.is_mixed:
        problems.append(("mixed", "the server's GPUs differ", "equal GPUs, or llama.cpp"))
    if setup.precision is Precision.FP8 and not all(gpu.has_fp8 for gpu in hardware.gpus):
        problems.append(("fp8", f"no FP8 on compute capability {shown}", "Ada, Hopper or newer"))
    if checkpoint.format.startswith("NVFP4") and least < (10, 0):
        problems.append(("fp4", f"no FP4 on compute capability {shown}", "Blackwell"))
    if recipe.architecture.heads % ranks:
        problems.append(
            ("divisibility", f"{recipe.architecture.heads} heads over {ranks} GPUs", "another number of GPUs")
        )
    block = checkpoint.fp8_block
    shard = recipe.architecture.moe_intermediate // ranks
    if block and recipe.architecture.moe_intermediate and shard % block:
        problems.append(("divisibility", f"FP8 blocks of {block} over shards of {shard}", "fewer GPUs"))
    return problems


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)
