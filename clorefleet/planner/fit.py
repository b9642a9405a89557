"""Does a setup fit on hardware? Memory by part, per GPU, in RAM and on disk, with the source of each figure.

Everything is in bytes, against what nvidia-smi shows, never against marketing gigabytes. The first
constraint that binds is named, with how much is missing and what would cure it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
UNEVEN_LAYERS = 0.04
"""Quantisation mixes give some layers more bits than others, and only the mean is published [assumed]."""
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
ENGINE_RAM_BASE_BYTES = 4 * GIB
ENGINE_RAM_PER_RANK_BYTES = int(7.5 * GIB)
"""Host RAM of SGLang and vLLM beside page cache: one process per GPU, 64 GiB for eight [assumed]."""
VLLM_UTILISATION = 0.90
VLLM_RESERVE_BYTES = int(4 * GIB)
"""Activations at their peak and CUDA graphs inside vLLM's share [assumed]."""

ROOMY_BYTES = 1 << 60
"""RAM and disk of a server that lacks neither."""


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
    return _verdict(gpu, ram, disk, visible - _sum(gpu), hardware)


def without_room(hardware: Hardware) -> Hardware:
    """The shape that thousands of servers share: all but RAM and disk, which `in_room` looks at."""
    return replace(hardware, ram_bytes=ROOMY_BYTES, disk_free_bytes=ROOMY_BYTES)


def in_room(fit: Fit, hardware: Hardware) -> Fit:
    """`fit`, which was checked on `without_room(hardware)`, as `check_fit` says it of `hardware` itself.

    Exact, since RAM and disk are looked at last and no setup is chosen by them.
    """
    if not fit.fits:
        return fit
    # On a roomy shape only GPU memory can be scarce.
    return _verdict(fit.memory_per_gpu, fit.ram, fit.disk, fit.margin_bytes, hardware)


def _verdict(
    gpu: tuple[Term, ...], ram: tuple[Term, ...], disk: tuple[Term, ...], vram_margin: int, hardware: Hardware
) -> Fit:
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


def mtp_layers(recipe: Recipe) -> range:
    """Numbers of the layers that draft tokens; builds of llama.cpp differ in whether they load them."""
    arch = recipe.architecture
    return range(arch.num_layers, arch.num_layers + arch.mtp_layers)


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
    for run, mib in zip(split.runs, hardware.vram_mib, strict=True):
        mine = [layer for layer in run if layer in with_experts]
        plain = _plain_bytes(recipe, weights, len(run)) * (1 + UNEVEN_LAYERS) + llamacpp_reserve(checkpoint)
        plain += _share(recipe, kv_total_bytes, len(run))
        layer = weights.expert_layer * (1 + UNEVEN_LAYERS)
        room = max(0, int((mib * MIB - plain) // layer)) if layer else 0
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


def _llamacpp(
    setup: Setup, recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware
) -> tuple[tuple[Term, ...], tuple[Term, ...], int]:
    """Memory of the GPU with the least to spare, RAM, and what that GPU has."""
    weights = weights_of(recipe, checkpoint)
    kv = kv_bytes(recipe, setup.context_tokens, setup.concurrency, kv_dtype=setup.kv_dtype)
    reserve = llamacpp_reserve(checkpoint)
    in_ram, with_experts = set(setup.experts_in_ram), expert_layers(recipe)
    # Of one GPU that holds everything the total is known, however uneven the layers are.
    uneven = UNEVEN_LAYERS if in_ram or len(hardware.gpus) > 1 else 0.0
    split = LayerSplit(setup.layers_per_gpu) if setup.layers_per_gpu else split_layers(recipe, hardware)
    needs = []
    for run, mib in zip(split.runs, hardware.vram_mib, strict=True):
        experts = sum(1 for layer in run if layer in with_experts and layer not in in_ram)
        held = _plain_bytes(recipe, weights, len(run)) + experts * weights.expert_layer
        need = held * (1 + uneven) + _share(recipe, kv, len(run)) + reserve
        needs.append((mib * MIB - need, mib, len(run), experts))
    _, mib, layers, experts = min(needs)
    plain, routed = _plain_bytes(recipe, weights, layers), experts * weights.expert_layer
    gpu = [_term(f"{layers} layers' weights", plain, checkpoint.bytes_mark, checkpoint.source)]
    if weights.expert_layer:
        text = f"experts of {experts} layers"
        gpu.append(_term(text, routed, Mark.COMPUTED, "checkpoint's bytes per layer"))
    if uneven:
        spare = (plain + routed) * uneven
        gpu.append(_term("uneven layers", spare, Mark.ASSUMED, f"{uneven:.0%}: only the mean is published"))
    gpu += [
        _term(
            f"share of a context of {setup.context_tokens:,} x {setup.concurrency}",
            _share(recipe, kv, layers),
            recipe.kv_cache.mark,
            recipe.kv_cache.source,
        ),
        _term("CUDA context and compute buffer", reserve, Mark.ASSUMED, "about 2 GiB for a large model"),
    ]
    return tuple(gpu), _llamacpp_ram(weights, in_ram, recipe), mib * MIB


def _llamacpp_ram(weights: Weights, in_ram: set[int], recipe: Recipe) -> tuple[Term, ...]:
    if not in_ram:
        return (_term("system", min(RAM_BASE_BYTES, GIB + weights.total), Mark.ASSUMED, "system"),)
    layers = len(in_ram)
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
    per_layer = recipe.architecture.replicated_per_layer
    replicated = per_layer * recipe.architecture.num_layers * _bytes_each(setup.precision) * (1 - 1 / ranks)
    kv = setup.context_tokens * setup.concurrency * kv_bytes_per_token_and_rank(setup, recipe)
    kv += recipe.kv_cache.per_sequence_bytes * setup.concurrency
    reserve = engine_reserve(setup, recipe, min(hardware.vram_mib) * MIB)
    gpu = (
        _term(f"weights, 1/{ranks}", share, checkpoint.bytes_mark, checkpoint.source),
        _term("parts that every rank holds", replicated, Mark.COMPUTED, f"{per_layer / 1e6:.1f}M per layer"),
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
            "SGLang 0.5.23 source" if setup.engine is EngineName.SGLANG else "10 % by default, and 4 GiB",
        ),
    )
    ram_bytes = ENGINE_RAM_BASE_BYTES + min(checkpoint.bytes, ENGINE_RAM_PER_RANK_BYTES * ranks)
    return gpu, (_term("engine", ram_bytes, Mark.ASSUMED, "64 GiB for eight GPUs"),)


def kv_bytes_per_token_and_rank(setup: Setup, recipe: Recipe) -> int:
    """Context memory of one token on one GPU of a tensor-parallel setup, the drafting layer's included."""
    cache = recipe.kv_cache
    each = cache.per_token_bytes_fp8 if setup.kv_dtype == "fp8" else cache.per_token_bytes_bf16
    if setup.speculation is not None:
        each += cache.mtp_extra_bytes_bf16
    if cache.is_replicated_across_tp:
        return each
    # Rounded up: a half token's worth must not be lost in each of a million tokens.
    return -(-each // max(1, min(setup.tensor_parallel, cache.shard_limit)))


def tokens_that_fit(setup: Setup, recipe: Recipe, hardware: Hardware) -> int:
    """Tokens of context that a tensor-parallel setup has memory for, over all requests; 0 when none."""
    checkpoint = recipe.checkpoint(setup.checkpoint)
    empty = replace(setup, context_tokens=0, concurrency=1)
    gpu, _ = _tensor_parallel(empty, recipe, checkpoint, hardware)
    rest = min(hardware.vram_mib) * MIB - _sum(gpu)
    return max(0, rest // kv_bytes_per_token_and_rank(setup, recipe))


def _bytes_each(precision: Precision) -> float:
    return {Precision.BF16: 2.0, Precision.FP8: 1.0}.get(precision, 1.0)


def engine_reserve(setup: Setup, recipe: Recipe, visible_bytes: int) -> int:
    """Bytes per GPU that are neither weights nor context: what the static share leaves out, and more."""
    fraction = setup.memory_fraction
    if setup.engine is EngineName.SGLANG:
        if fraction is None:
            return sglang_reserve(recipe, setup.tensor_parallel, visible_bytes)
        return int(visible_bytes * (1 - fraction))
    inside = min(VLLM_RESERVE_BYTES, visible_bytes // 8)
    return int(visible_bytes * (1 - (VLLM_UTILISATION if fraction is None else fraction))) + inside


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
    if support.min_compute_capability and least < parse_version(support.min_compute_capability):
        problems.append(
            (
                "compute_capability",
                f"compute capability {shown}, and {setup.engine} needs {support.min_compute_capability}",
                "newer GPUs" if setup.engine is EngineName.LLAMACPP else "newer GPUs, or llama.cpp",
            )
        )
    needed = support.min_cuda_of(setup.image)
    if needed and hardware.cuda_version is None:
        problems.append(("cuda", "the offer names no CUDA version", "an offer that does"))
    elif needed and hardware.cuda_version is not None and hardware.cuda_version < parse_version(needed):
        have = ".".join(map(str, hardware.cuda_version))
        problems.append(("cuda", f"the driver is at CUDA {have}, the image needs {needed}", "a newer driver"))
    ranks, there = setup.tensor_parallel, len(hardware.gpus)
    is_split = setup.engine is EngineName.LLAMACPP
    if (ranks != there) if is_split else (ranks > there):
        problems.append(("gpu_count", f"{there} GPUs, and the setup is for {ranks}", "all the offered GPUs"))
    if is_split:
        return problems
    if hardware.is_mixed:
        problems.append(("mixed", "the server's GPUs differ", "equal GPUs, or llama.cpp"))
    if setup.precision is Precision.FP8 and not all(gpu.has_fp8 for gpu in hardware.gpus):
        problems.append(("fp8", f"no FP8 on compute capability {shown}", "Ada, Hopper or newer"))
    if checkpoint.format.startswith("NVFP4") and least < (10, 0):
        problems.append(("fp4", f"no FP4 on compute capability {shown}", "Blackwell"))
    why = why_indivisible(recipe, checkpoint, ranks)
    if why:
        problems.append(("divisibility", why, "another number of GPUs"))
    return problems


def why_indivisible(recipe: Recipe, checkpoint: Checkpoint, ranks: int) -> str:
    """Why the model cannot be cut into `ranks` equal parts, or "" when it can."""
    arch = recipe.architecture
    if arch.heads % ranks:
        return f"{arch.heads} heads over {ranks} GPUs"
    if arch.kv_heads and arch.kv_heads % ranks and ranks % arch.kv_heads:
        return f"{arch.kv_heads} KV heads over {ranks} GPUs"
    if arch.moe_intermediate % ranks:
        return f"experts of width {arch.moe_intermediate} over {ranks} GPUs"
    if checkpoint.fp8_block and arch.moe_intermediate:
        shard = arch.moe_intermediate / ranks
        if shard % checkpoint.fp8_block:
            return f"FP8 blocks of {checkpoint.fp8_block} over shards of {shard:g}"
    return ""


def parse_version(text: str) -> tuple[int, int]:
    """`13.0` as a pair that compares by part."""
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)
