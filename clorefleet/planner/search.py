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

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from clorefleet.domain.plan import Fit
from clorefleet.domain.recipe import Checkpoint, EngineName, EngineSupport, Precision, Recipe
from clorefleet.domain.setup import Setup, Speculation
from clorefleet.planner.fit import check_fit
from clorefleet.planner.hardware import MIB, Hardware
from clorefleet.planner.software import check_software, parse_version, refuse_server, why_indivisible
from clorefleet.planner.split_fit import cannot_hold, choose_experts_in_ram, split_layers, split_of
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


Found = tuple[tuple[Setup, Fit], ...]
FitMemo = dict[tuple[object, ...], Found]
"""What was found, by all that its arithmetic looks at: of a checkpoint with an engine on a whole
server, and, once no software refuses it, on a number of GPUs. Servers of other GPUs share it."""


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
    seen = {} if memo is None else _seen_by_engine(recipe, hardware)
    for checkpoint in recipe.checkpoints:
        if checkpoint.precision not in precisions or (checkpoints and checkpoint.key not in checkpoints):
            continue
        for support in recipe.engines:
            if checkpoint.layout not in support.layouts or support.engine not in engines:
                continue
            if memo is None:
                yield from _found(recipe, checkpoint, support, hardware, context_tokens, None)
                continue
            key = (checkpoint.key, support.engine, seen[support.engine])
            known = memo.get(key)
            if known is None:
                found = _found(recipe, checkpoint, support, hardware, context_tokens, memo)
                known = memo[key] = tuple(found)
            yield from known


def _seen_by_engine(recipe: Recipe, hardware: Hardware) -> dict[EngineName, tuple[object, ...]]:
    """All that a search with each engine looks at, of roomy hardware."""
    least = min(gpu.compute_capability for gpu in hardware.gpus)
    alike = min(hardware.vram_mib), len(hardware.gpus), least, _has_fp8(hardware), hardware.is_mixed
    # Only llama.cpp uses each GPU's own memory.
    split = hardware.vram_mib, least
    return {
        each.engine: (
            _driver_class(recipe, each.engine, hardware.cuda_version),
            split if each.engine is EngineName.LLAMACPP else alike,
        )
        for each in recipe.engines
    }


@lru_cache(maxsize=1024)
def _driver_class(recipe: Recipe, engine: EngineName, have: tuple[int, int] | None) -> tuple[int, int] | None:
    """The newest CUDA that an image of this engine asks for and the driver has; `have` where it has none."""
    if have is None:
        return None
    support = recipe.engine(engine)
    asked = (support.min_cuda, *(each.min_cuda for each in support.variants))
    steps = [parse_version(text) for text in asked if text]
    return max((step for step in steps if step <= have), default=have if steps else (0, 0))


def _found(
    recipe: Recipe,
    checkpoint: Checkpoint,
    support: EngineSupport,
    hardware: Hardware,
    context_tokens: int,
    memo: FitMemo | None,
) -> Iterator[tuple[Setup, Fit]]:
    """`setups` of one checkpoint with one engine."""
    image, there = _image(support, hardware), len(hardware.gpus)
    refusal = refuse_server(support, image, checkpoint, hardware)
    if support.engine in (EngineName.SGLANG, EngineName.VLLM):
        cuts = _parallelisms(recipe, checkpoint, support.engine, there)
        bases = [_base(recipe, checkpoint, support.engine, image, *cut, context_tokens) for cut in cuts]
        if refusal is None:
            yield from _tensor_parallel(bases, recipe, checkpoint, support, hardware, memo)
        elif bases:
            yield next((each for each in bases if each.pipeline_parallel == 1), bases[0]), refusal
        return
    is_split = support.engine is EngineName.LLAMACPP
    if not is_split and checkpoint.precision not in KT_PRECISIONS:
        return
    ranks = there if is_split else _ranks_that_divide(recipe, checkpoint, hardware)
    base = _base(recipe, checkpoint, support.engine, image, ranks, 1, 1, context_tokens)
    if refusal is not None:
        yield base, refusal
    elif is_split:
        yield _llamacpp(base, recipe, checkpoint, hardware)
    else:
        yield _ktransformers(base, recipe, checkpoint, hardware)


@lru_cache(maxsize=4096)
def _base(
    recipe: Recipe,
    checkpoint: Checkpoint,
    engine: EngineName,
    image: str,
    tensor_parallel: int,
    pipeline_parallel: int,
    expert_parallel: int,
    context_tokens: int,
) -> Setup:
    """One object for all servers, of one request with the least context."""
    return Setup(
        model=recipe.name,
        checkpoint=checkpoint.key,
        precision=checkpoint.precision,
        layout=checkpoint.layout,
        repo=checkpoint.repo,
        revision=checkpoint.revision,
        files=checkpoint.files,
        checkpoint_bytes=checkpoint.bytes,
        engine=engine,
        image=image,
        tensor_parallel=tensor_parallel,
        context_tokens=context_tokens,
        concurrency=1,
        kv_dtype="bf16",
        pipeline_parallel=pipeline_parallel,
        expert_parallel=expert_parallel,
        context_floor_tokens=context_tokens,
    )


def _image(support: EngineSupport, hardware: Hardware) -> str:
    """The usual image, or the first variant that the driver is new enough for."""
    have = hardware.cuda_version
    if have is None or not support.min_cuda or have >= parse_version(support.min_cuda):
        return support.image
    older = (each.image for each in support.variants if have >= parse_version(each.min_cuda))
    return next(older, support.image)


# -- llama.cpp


def _llamacpp(setup: Setup, recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware) -> tuple[Setup, Fit]:
    layers = split_layers(recipe, hardware).counts if len(hardware.gpus) > 1 else ()
    if not recipe.architecture.experts or not cannot_hold(recipe, checkpoint, hardware):
        whole = replace(setup, layers_per_gpu=layers)
        fit = check_fit(whole, recipe, hardware)
        if fit.fits:
            whole = _grown(whole, recipe, checkpoint, hardware)
            return whole, check_fit(whole, recipe, hardware)
        if fit.binding != "vram" or not recipe.architecture.experts:
            return whole, fit
    kv = kv_bytes(recipe, setup.context_tokens, 1, kv_dtype=setup.kv_dtype)
    in_ram = choose_experts_in_ram(recipe, checkpoint, hardware, kv_total_bytes=kv)
    setup = replace(setup, layers_per_gpu=layers, experts_in_ram=in_ram)
    return setup, check_fit(setup, recipe, hardware)


def _grown(setup: Setup, recipe: Recipe, checkpoint: Checkpoint, hardware: Hardware) -> Setup:
    """The same with the longest context step, then the most requests at once, that still fit on the GPUs.

    RAM and disk hold it all the same: only experts and weights are there.
    """
    split = split_of(setup, recipe, hardware)
    context, slots = setup.context_tokens, setup.concurrency
    for tokens in CONTEXT_STEPS:
        if context < tokens <= recipe.max_context_tokens:
            if not split.holds(recipe, checkpoint, tokens, slots, kv_dtype=setup.kv_dtype):
                break
            context = tokens
    for more in (2, LLAMACPP_SLOTS_MAX):
        if not split.holds(recipe, checkpoint, context, more, kv_dtype=setup.kv_dtype):
            break
        slots = more
    return replace(setup, context_tokens=context, concurrency=slots)


# -- SGLang and vLLM


def _tensor_parallel(
    bases: list[Setup],
    recipe: Recipe,
    checkpoint: Checkpoint,
    support: EngineSupport,
    hardware: Hardware,
    memo: FitMemo | None,
) -> Iterator[tuple[Setup, Fit]]:
    """Every base that fits; when none does, the largest that divides, or says what does not."""
    there = len(hardware.gpus)
    nearest: tuple[Setup, Fit] | None = None
    any_fits = False
    for base in bases:
        setup, fit = _remembered(base, recipe, support, hardware, memo)
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
    known = memo.get(key)
    if known is None:
        known = memo[key] = (_on_ranks(base, recipe, support, hardware),)
    return known[0]


@lru_cache(maxsize=1024)
def _parallelisms(
    recipe: Recipe, checkpoint: Checkpoint, engine: EngineName, there: int
) -> tuple[tuple[int, int, int], ...]:
    """Tensor, pipeline and expert parallelism on up to `there` equal GPUs, most GPUs first."""
    found = []
    for ranks in range(min(there, RANKS_MAX), 0, -1):
        if not why_indivisible(recipe, checkpoint, ranks):
            found.append((ranks, 1, 1))
        elif ranks > 1 and not why_indivisible(recipe, checkpoint, ranks, expert_parallel=ranks):
            found.append((ranks, 1, ranks))
        elif ranks == there and engine is EngineName.VLLM:
            # Stages of the largest number that divides: six GPUs become three stages of two.
            for tensor in range(ranks // 2, 0, -1):
                if ranks % tensor == 0 and not why_indivisible(recipe, checkpoint, tensor):
                    found.append((tensor, ranks // tensor, 1))
                    break
    return tuple(found)


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
