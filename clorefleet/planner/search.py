"""The setups worth trying on one hardware shape: each checkpoint with each engine, as large as it fits.

A setup is the largest sensible one: the longest context in steps, then more requests at once. Where a GGUF
does not fit on the GPUs, as few layers' experts as needed stay in RAM, with the least context asked for,
since context and experts compete for the same memory; KTransformers likewise keeps as many of each
layer's experts on the GPUs as fit. SGLang and vLLM are tried on every number of GPUs that divides the
model: eight slow links can be slower than one GPU, and 20 heads go on four GPUs of eight. Where a number
divides the heads and not the experts' width, whole experts are dealt out; where it divides nothing, vLLM
is tried in pipeline stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from clorefleet.domain.plan import Fit
from clorefleet.domain.recipe import Checkpoint, EngineName, EngineSupport, Precision, Recipe
from clorefleet.domain.setup import Setup, Speculation
from clorefleet.planner.fit import check_fit
from clorefleet.planner.hardware import MIB, Hardware
from clorefleet.planner.software import check_software, parse_version, why_indivisible
from clorefleet.planner.split_fit import cannot_hold, choose_experts_in_ram, split_layers
from clorefleet.planner.tensor_fit import (
    KT_MEMORY_FRACTION,
    VLLM_UTILISATION,
    gpu_experts_that_fit,
    sglang_reserve,
    tokens_that_fit,
)
from clorefleet.planner.weights import kv_bytes

CONTEXT_STEPS = (2048, 4096, 8192, 16_384, 32_768, 65_536)
"""More than 65,536 tokens only where they are asked for: they cost memory that speed needs."""
CONCURRENCY_MAX = 32
LLAMACPP_SLOTS_MAX = 4
"""Its slots share one context and one queue of work: more of them make each slower [assumed]."""
RANKS_MAX = 16
KT_PRECISIONS = (Precision.FP8, Precision.BF16)
"""What KTransformers' CPU kernels read as it is published; the others want converted weights."""
KT_REQUESTS_MAX = 4
"""Its tutorial's `--max-running-requests`: the CPU computes experts for all of them."""
DRAFT_STEPS = 3
"""SGLang's own choice for these models (3 steps, 1 branch, 4 tokens), and that of the public recipes."""


FitMemo = dict[tuple[object, ...], tuple[Setup, Fit]]
"""Setups by all that their arithmetic looks at, once no software refuses them: servers of other GPUs, with
more GPUs or another driver share them."""


def setups(
    recipe: Recipe,
    hardware: Hardware,
    *,
    context_tokens: int,
    precisions: tuple[Precision, ...] = tuple(Precision),
    memo: FitMemo | None = None,
    engines: tuple[EngineName, ...] = tuple(EngineName),
    checkpoints: tuple[str, ...] = (),
) -> Iterator[tuple[Setup, Fit]]:
    """What fits of each checkpoint x engine x number of GPUs; where nothing does, the nearest and why.

    `memo` may be kept between calls for the same recipe, context and roomy hardware; it changes nothing but
    the time taken.
    """
    for checkpoint in recipe.checkpoints:
        if checkpoint.precision not in precisions or (checkpoints and checkpoint.key not in checkpoints):
            continue
        for support in recipe.engines:
            if checkpoint.layout not in support.layouts or support.engine not in engines:
                continue
            base = _base(recipe, checkpoint, support, hardware, context_tokens)
            if support.engine is EngineName.LLAMACPP:
                yield _whole(base, recipe, checkpoint, support, hardware, memo, _llamacpp)
            elif support.engine is EngineName.KTRANSFORMERS:
                if checkpoint.precision in KT_PRECISIONS:
                    base = replace(base, tensor_parallel=_ranks_that_divide(recipe, checkpoint, hardware))
                    yield _whole(base, recipe, checkpoint, support, hardware, memo, _ktransformers)
            else:
                yield from _tensor_parallel(base, recipe, checkpoint, support, hardware, memo)


def _base(
    recipe: Recipe, checkpoint: Checkpoint, support: EngineSupport, hardware: Hardware, context_tokens: int
) -> Setup:
    return Setup(
        model=recipe.name,
        checkpoint=checkpoint.key,
        precision=checkpoint.precision,
        layout=checkpoint.layout,
        repo=checkpoint.repo,
        revision=checkpoint.revision,
        files=checkpoint.files,
        checkpoint_bytes=checkpoint.bytes,
        engine=support.engine,
        image=_image(support, hardware),
        tensor_parallel=len(hardware.gpus),
        context_tokens=context_tokens,
        concurrency=1,
        kv_dtype="bf16",
        context_floor_tokens=context_tokens,
    )


def _image(support: EngineSupport, hardware: Hardware) -> str:
    """The usual image, or the first variant that the driver is new enough for."""
    have = hardware.cuda_version
    if have is None or not support.min_cuda or have >= parse_version(support.min_cuda):
        return support.image
    older = (each.image for each in support.variants if have >= parse_version(each.min_cuda))
    return next(older, support.image)


_Search = Callable[[Setup, Recipe, Checkpoint, Hardware], tuple[Setup, Fit]]


def _whole(
    base: Setup,
    recipe: Recipe,
    checkpoint: Checkpoint,
    support: EngineSupport,
    hardware: Hardware,
    memo: FitMemo | None,
    search: _Search,
) -> tuple[Setup, Fit]:
    """`search`, on all GPUs of the server at once, which looks at their memory alone."""
    refusal = check_software(support, base, recipe, hardware)
    if refusal is not None:
        return base, refusal
    if memo is None:
        return search(base, recipe, checkpoint, hardware)
    key = (base.checkpoint, base.engine, base.image, hardware.vram_mib)
    if key not in memo:
        memo[key] = search(base, recipe, checkpoint, hardware)
    return memo[key]


# -- llama.cpp


def _llamacpp(setup: Setup, recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware) -> tuple[Setup, Fit]:
    if len(hardware.gpus) > 1:
        setup = replace(setup, layers_per_gpu=split_layers(recipe, hardware).counts)
    if not recipe.architecture.experts or not cannot_hold(recipe, checkpoint, hardware):
        fit = check_fit(setup, recipe, hardware)
        if fit.fits:
            return _grown(setup, fit, recipe, hardware)
        if fit.binding != "vram" or not recipe.architecture.experts:
            return setup, fit
    kv = kv_bytes(recipe, setup.context_tokens, 1, kv_dtype=setup.kv_dtype)
    in_ram = choose_experts_in_ram(recipe, checkpoint, hardware, kv_total_bytes=kv)
    setup = replace(setup, experts_in_ram=in_ram)
    return setup, check_fit(setup, recipe, hardware)


def _grown(setup: Setup, fit: Fit, recipe: Recipe, hardware: Hardware) -> tuple[Setup, Fit]:
    """The same with the longest context step, then the most requests at once, that still fit."""
    larger = [
        replace(setup, context_tokens=tokens)
        for tokens in CONTEXT_STEPS
        if setup.context_tokens < tokens <= recipe.max_context_tokens
    ]
    setup, fit = _last_that_fits(larger, setup, fit, recipe, hardware)
    busier = [replace(setup, concurrency=slots) for slots in (2, LLAMACPP_SLOTS_MAX)]
    return _last_that_fits(busier, setup, fit, recipe, hardware)


def _last_that_fits(
    growing: list[Setup], setup: Setup, fit: Fit, recipe: Recipe, hardware: Hardware
) -> tuple[Setup, Fit]:
    for larger in growing:
        verdict = check_fit(larger, recipe, hardware)
        if not verdict.fits:
            break
        setup, fit = larger, verdict
    return setup, fit


# -- SGLang and vLLM


def _tensor_parallel(
    base: Setup,
    recipe: Recipe,
    checkpoint: Checkpoint,
    support: EngineSupport,
    hardware: Hardware,
    memo: FitMemo | None,
) -> Iterator[tuple[Setup, Fit]]:
    """Every number of GPUs that fits; when none does, the largest that divides, or says what does not."""
    there = len(hardware.gpus)
    nearest: tuple[Setup, Fit] | None = None
    any_fits = False
    for tensor, stages, experts in _parallelisms(recipe, checkpoint, support, there):
        cut = replace(base, tensor_parallel=tensor, pipeline_parallel=stages, expert_parallel=experts)
        setup, fit = _remembered(cut, recipe, support, hardware, memo)
        if fit.fits:
            any_fits = True
            yield setup, fit
            continue
        if nearest is None or setup.pipeline_parallel == 1 < nearest[0].pipeline_parallel:
            nearest = (setup, fit)
        if fit.binding != "ram" and setup.pipeline_parallel == 1:
            # Fewer GPUs need fewer processes and less RAM. They cure nothing else: each holds more weights.
            break
    if any_fits or nearest is None:
        return
    setup, fit = nearest
    why = why_indivisible(recipe, checkpoint, there)
    if fit.binding == "vram" and why and setup.gpus_needed < there:
        cure = f"another number of GPUs: {setup.tensor_parallel} of them lack {fit.shortfall} each"
        fit = replace(fit, binding="divisibility", shortfall=why, cure=cure)
    yield setup, fit


def _remembered(
    base: Setup,
    recipe: Recipe,
    support: EngineSupport,
    hardware: Hardware,
    memo: FitMemo | None,
) -> tuple[Setup, Fit]:
    """`_on_ranks`, which looks at the smallest memory and two abilities of the GPUs alone."""
    refusal = check_software(support, base, recipe, hardware)
    if refusal is not None:
        return base, refusal
    if memo is None:
        return _on_ranks(base, recipe, support, hardware)
    cut = (base.tensor_parallel, base.pipeline_parallel, base.expert_parallel)
    abilities = (_has_fp8(hardware), _is_blackwell(hardware))
    key = (base.checkpoint, base.engine, base.image, cut, min(hardware.vram_mib), abilities)
    if key not in memo:
        memo[key] = _on_ranks(base, recipe, support, hardware)
    return memo[key]


def _parallelisms(
    recipe: Recipe, checkpoint: Checkpoint, support: EngineSupport, there: int
) -> Iterator[tuple[int, int, int]]:
    """Tensor, pipeline and expert parallelism on up to `there` equal GPUs, most GPUs first."""
    for ranks in range(min(there, RANKS_MAX), 0, -1):
        if not why_indivisible(recipe, checkpoint, ranks):
            yield ranks, 1, 1
        elif ranks > 1 and not why_indivisible(recipe, checkpoint, ranks, expert_parallel=ranks):
            yield ranks, 1, ranks
        elif ranks == there and support.engine is EngineName.VLLM:
            # Stages of the largest number that divides: six GPUs become three stages of two.
            for tensor in range(ranks // 2, 0, -1):
                if ranks % tensor == 0 and not why_indivisible(recipe, checkpoint, tensor):
                    yield tensor, ranks // tensor, 1
                    break


def _on_ranks(base: Setup, recipe: Recipe, support: EngineSupport, hardware: Hardware) -> tuple[Setup, Fit]:
    """The largest setup on so many GPUs. Context is in FP8 by default or where it is needed."""
    setup = replace(
        base,
        memory_fraction=_memory_fraction(recipe, support, hardware, base.gpus_needed),
        # Drafting across pipeline stages is not something that the engines do.
        speculation=_speculation(support) if base.pipeline_parallel == 1 else None,
        kv_dtype=_kv_dtype(recipe, hardware),
    )
    tokens = tokens_that_fit(setup, recipe, hardware)
    if tokens < setup.context_tokens and setup.kv_dtype == "bf16" and _has_fp8(hardware):
        halved = replace(setup, kv_dtype="fp8")
        if tokens_that_fit(halved, recipe, hardware) >= setup.context_tokens:
            setup, tokens = halved, tokens_that_fit(halved, recipe, hardware)
    steps = [each for each in CONTEXT_STEPS if each <= min(tokens, recipe.max_context_tokens)]
    setup = replace(setup, context_tokens=max([setup.context_tokens, *steps]))
    # The state that some models hold for each request is counted once in `tokens`, so count down to fit.
    requests = _power_of_two_up_to(min(CONCURRENCY_MAX, tokens // setup.context_tokens))
    fit = check_fit(replace(setup, concurrency=requests), recipe, hardware)
    while not fit.fits and requests > 1:
        requests //= 2
        fit = check_fit(replace(setup, concurrency=requests), recipe, hardware)
    return replace(setup, concurrency=requests), fit


# -- KTransformers


def _ktransformers(
    base: Setup, recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware
) -> tuple[Setup, Fit]:
    """With the experts on the GPUs that fit beside the context."""
    setup = replace(base, memory_fraction=KT_MEMORY_FRACTION)
    for requests in (KT_REQUESTS_MAX, 2, 1):
        setup = replace(setup, concurrency=requests, gpu_experts=0)
        experts = gpu_experts_that_fit(setup, recipe, hardware)
        if experts:
            break
    # It wants at least one expert of each layer on the GPUs.
    setup = replace(setup, gpu_experts=max(1, experts))
    return setup, check_fit(setup, recipe, hardware)


def _ranks_that_divide(recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware) -> int:
    there = min(len(hardware.gpus), RANKS_MAX)
    return next(each for each in range(there, 0, -1) if not why_indivisible(recipe, checkpoint, each))


def _memory_fraction(recipe: Recipe, support: EngineSupport, hardware: Hardware, ranks: int) -> float:
    if support.engine is not EngineName.SGLANG:
        return VLLM_UTILISATION
    visible = min(hardware.vram_mib) * MIB
    fraction = 1 - sglang_reserve(recipe, ranks, visible).total_bytes / visible
    # Rounded down: a little less static memory never breaks a start.
    return int(max(0.05, fraction) * 1000) / 1000


def _speculation(support: EngineSupport) -> Speculation | None:
    if not support.speculative:
        return None
    return Speculation(support.speculative, DRAFT_STEPS, top_k=1, num_draft_tokens=DRAFT_STEPS + 1)


def _kv_dtype(recipe: Recipe, hardware: Hardware) -> str:
    """FP8 where the sparse-attention kernels choose it themselves (compute capability 10 and newer)."""
    return "fp8" if _is_blackwell(hardware) and recipe.architecture.attention == "MLA+DSA" else "bf16"


def _is_blackwell(hardware: Hardware) -> bool:
    return all(gpu.compute_capability >= (10, 0) for gpu in hardware.gpus)


def _has_fp8(hardware: Hardware) -> bool:
    return all(gpu.has_fp8 for gpu in hardware.gpus)


def _power_of_two_up_to(limit: int) -> int:
    return 1 << max(0, limit.bit_length() - 1) if limit > 0 else 1


def default_precisions(recipe: Recipe) -> tuple[Precision, ...]:
    """FP8, BF16 and Q4; where a model is published natively in another class only, that one."""
    usual = (Precision.FP8, Precision.BF16, Precision.Q4)
    published = {checkpoint.precision for checkpoint in recipe.checkpoints}
    return usual if published & set(usual) else tuple(sorted(published))
